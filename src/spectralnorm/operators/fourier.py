"""The symbol of a convolution: its Fourier transform, polyphase components included.

On an infinite or circular grid a convolution is block diagonal over frequencies; the block at w is

    K^(w) = sum_t K_t exp(-i w . q_t)          one (c_out x c_in) matrix

over the taps t at positions q_t (Sedghi, Gupta & Long, ICLR 2019). A stride s folds the input into
s^D polyphase components that act as further input channels: tap t at position p reads component
p mod s at position p div s. Everything below touches the kernel only through two real products with
its flattened form, one for K^(w) v and one for K^(w)^H u; it never copies or transposes the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Symbol", "TapLayout", "conv_symbol", "dense_symbol", "tap_layout"]


@dataclass(frozen=True, eq=False)
class TapLayout:
    """Where the taps of a kernel sit: what a symbol knows beside the weights.

    Attributes:
        positions: (taps, axes) float64, centred positions q_t on the grid of outputs.
        component: (taps,) int64, the polyphase component tap t reads.
        components: how many components are read at all.
    """

    positions: Tensor
    component: Tensor
    components: int

    @property
    def axes(self) -> int:
        """Number of frequency axes."""
        return self.positions.shape[1]

    @property
    def degrees(self) -> tuple[float, ...]:
        """Degree of the symbol per axis: half the extent of the taps, in grid steps."""
        if self.positions.shape[0] == 0:
            return (0.0,) * self.axes
        return tuple(float(d) for d in self.positions.amax(0))

    def phases(self, w: Tensor) -> Tensor:
        """Phases exp(-i w . q_t) for frequencies w (..., axes): complex (..., taps)."""
        angle = w @ self.positions.to(w).T
        return torch.polar(torch.ones_like(angle), -angle)

    def scatter(self, like: Tensor) -> Tensor:
        """One-hot (taps, components) matrix that sums taps into their component."""
        return torch.nn.functional.one_hot(self.component, self.components).to(like)


@lru_cache(maxsize=256)
def tap_layout(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> TapLayout:
    """Lay out the taps of a kernel read with this stride and dilation.

    Args:
        kernel: kernel size per axis.
        stride: stride per axis.
        dilation: dilation per axis.

    Returns:
        The layout, taps in the order of the flattened kernel.
    """
    taps = list(itertools.product(*(range(k) for k in kernel)))
    reads = [[p * d for p, d in zip(tap, dilation, strict=True)] for tap in taps]
    residues = [tuple(x % s for x, s in zip(read, stride, strict=True)) for read in reads]
    number = {residue: i for i, residue in enumerate(sorted(set(residues)))}
    quotients = [[x // s for x, s in zip(read, stride, strict=True)] for read in reads]
    q = torch.tensor(quotients, dtype=torch.float64).reshape(len(taps), len(kernel))
    centred = q - (q.amax(0) + q.amin(0)) / 2
    return TapLayout(centred, torch.tensor([number[r] for r in residues]), len(number))


@dataclass(frozen=True, eq=False)
class Symbol:
    """K^(w) of one layer; `m` below counts frequencies or tracks, `g` groups.

    Attributes:
        weight: (g, c_out/g, c_in/g, taps), a view of the layer's weight.
        layout: where the taps sit.
    """

    weight: Tensor
    layout: TapLayout

    @property
    def groups(self) -> int:
        """Number of groups, each with a symbol of its own."""
        return self.weight.shape[0]

    @property
    def rows(self) -> int:
        """Output channels of one group."""
        return self.weight.shape[1]

    @property
    def columns(self) -> int:
        """Input channels of one group, polyphase components included."""
        return self.weight.shape[2] * self.layout.components

    def to(self, dtype: torch.dtype) -> Symbol:
        """The same symbol, detached, with weights of this dtype."""
        layout = TapLayout(
            self.layout.positions.to(self.weight.device),
            self.layout.component.to(self.weight.device),
            self.layout.components,
        )
        return Symbol(self.weight.detach().to(dtype), layout)

    def at(self, w: Tensor) -> Tensor:
        """The blocks K^(w) for frequencies w (m, axes): complex (m, g, rows, columns)."""
        phases = self.layout.phases(w)
        spread = phases[:, :, None] * self.layout.scatter(phases)  # (m, taps, components)
        real = torch.einsum("goct,mtr->mgocr", self.weight, spread.real.to(self.weight))
        imag = torch.einsum("goct,mtr->mgocr", self.weight, spread.imag.to(self.weight))
        return torch.complex(real, imag).flatten(-2)

    def read_adjoint(self, u: Tensor) -> Tensor:
        """K_t^T u for every tap at once, one read of the kernel: (g, m, rows) -> (g, m, c_in/g, taps)."""
        stacked = torch.cat([u.real, u.imag], dim=1)
        images = torch.matmul(stacked, self.weight.flatten(2))
        real, imag = images.unflatten(-1, self.weight.shape[2:]).chunk(2, dim=1)
        return torch.complex(real, imag)

    def read(self, folded: Tensor) -> Tensor:
        """K^(w) v with the phases folded into v, one read: (g, m, c_in/g, taps) -> (g, m, rows)."""
        stacked = torch.cat([folded.real, folded.imag], dim=1).flatten(2)
        real, imag = torch.matmul(stacked, self.weight.flatten(2).mT).chunk(2, dim=1)
        return torch.complex(real, imag)

    def unfold(self, images: Tensor, phases: Tensor) -> Tensor:
        """K^(w)^H u from its images K_t^T u and the phases (g, m, taps): (g, m, c_in/g, components)."""
        turned = images * phases.conj()[:, :, None, :]
        if self.layout.components == 1:
            return turned.sum(-1, keepdim=True)
        return turned @ self.layout.scatter(turned)

    def fold(self, v: Tensor, phases: Tensor) -> Tensor:
        """Spread v (g, m, c_in/g, components) over the taps, phases included: (g, m, c_in/g, taps)."""
        spread = v if self.layout.components == 1 else v.index_select(-1, self.layout.component)
        return spread * phases[:, :, None, :]

    def bilinear(self, group: int, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """Re(u^H K^(w) v) of one group: 0-dim and linear in the weight, so its gradient is exact.

        With unit u (rows,), v (columns,) and w (axes,) a maximiser, this is the norm, and its gradient
        Re(conj(u) v^T exp(-i w . q_t)) a valid subgradient, at ties too.

        Returns:
            The 0-dim value.
        """
        v = v.unflatten(-1, (-1, self.layout.components))
        folded = self.fold(v[None, None], self.layout.phases(w)[None, None].to(v))[0, 0]
        outer = u.conj()[:, None, None] * folded
        return (self.weight[group] * outer.real.to(self.weight)).sum()


def conv_symbol(weight: Tensor, groups: int, stride: Sequence[int], dilation: Sequence[int]) -> Symbol:
    """The symbol of a convolution kernel (c_out, c_in/groups, *k) on the grid of its outputs.

    Args:
        weight: the kernel.
        groups: number of groups; each has a block of its own.
        stride: stride per axis, folded into polyphase components.
        dilation: dilation per axis.

    Returns:
        The symbol, its weight a view of the kernel where that is contiguous.
    """
    c_out, c_in = weight.shape[:2]
    kernel = tuple(weight.shape[2:])
    blocks = weight.reshape(groups, c_out // groups, c_in, math.prod(kernel))
    return Symbol(blocks, tap_layout(kernel, tuple(stride), tuple(dilation)))


def dense_symbol(weight: Tensor) -> Symbol:
    """The symbol of a matrix (outputs, inputs): one tap, no frequency axis."""
    return Symbol(weight[None, :, :, None], tap_layout((), (), ()))
