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
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

__all__ = ["Symbol", "SymbolStack", "TapLayout", "tap_layout"]


@dataclass(frozen=True, eq=False)
class TapLayout:
    """Where the taps of a kernel sit: what a symbol knows beside the weights.

    Attributes:
        positions: (taps, axes) float64, centred positions q_t on the grid of outputs.
        component: (taps,) int64, the polyphase component tap t reads.
        components: how many components are read at all.
        degrees: degree of the symbol per axis: half the extent of the taps, in grid steps. Numbers, since reading
            them off positions on a GPU would stop its stream.
    """

    positions: Tensor
    component: Tensor
    components: int
    degrees: tuple[float, ...]

    @property
    def axes(self) -> int:
        """Number of frequency axes."""
        return self.positions.shape[1]

    def on(self, device: torch.device) -> TapLayout:
        """The layout on a device, moved once."""
        return self if self.positions.device == device else _moved(self, device)

    @property
    def reach(self) -> float:
        """The largest angle w . q_t for w in [0, 2 pi): what the rounding of phases grows with."""
        return 2 * math.pi * sum(self.degrees)

    def phases(self, w: Tensor) -> Tensor:
        """Phases exp(-i w . q_t) for frequencies w (..., axes): complex (..., taps)."""
        angle = w @ _minus_positions(self, w.dtype)
        return torch.complex(angle.cos(), angle.sin())

    def scatter(self, like: Tensor) -> Tensor:
        """One-hot (taps, components) matrix that sums taps into their component."""
        return _one_hot(self, like.dtype)


@lru_cache(maxsize=256)
def _moved(layout: TapLayout, device: torch.device) -> TapLayout:
    return replace(layout, positions=layout.positions.to(device), component=layout.component.to(device))


@lru_cache(maxsize=256)
def _minus_positions(layout: TapLayout, dtype: torch.dtype) -> Tensor:
    return -layout.positions.to(dtype).T


@lru_cache(maxsize=256)
def _one_hot(layout: TapLayout, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.one_hot(layout.component, layout.components).to(dtype)


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
    q = torch.tensor(quotients, dtype=torch.float64, device="cpu").reshape(len(taps), len(kernel))
    centred = q - (q.amax(0) + q.amin(0)) / 2
    component = torch.tensor([number[r] for r in residues], device="cpu")
    return TapLayout(centred, component, len(number), tuple(centred.amax(0).tolist()))


@dataclass(frozen=True, eq=False)
class Symbol:
    """K^(w) of one layer; `m` below counts frequencies or tracks, `g` groups.

    Attributes:
        weight: (g, c_out/g, c_in/g, taps), a view of the layer's weight.
        layout: where the taps sit; on the weight's device, whichever it came on.
        row_scale: (g, c_out/g) factors of the rows in `read` and `read_adjoint`, or None: of a BatchNorm that is
            folded in without a copy of the weight.
        column_scale: (g, c_in/g) the same of the columns.
    """

    weight: Tensor
    layout: TapLayout
    row_scale: Tensor | None = None
    column_scale: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", self.layout.on(self.weight.device))

    @property
    def groups(self) -> int:
        """Number of groups, each with a symbol of its own."""
        return self.weight.shape[0]

    @cached_property
    def flat(self) -> Tensor:
        """The flattened kernel (g, rows, c_in/g * taps)."""
        return self.weight.flatten(2)

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
        weight = self.weight.detach().to(dtype)
        return Symbol(weight, self.layout, self.row_scale, self.column_scale)

    def largest(self) -> Tensor:
        """The largest magnitude of an entry of the kernel, 0-dim; of zeros the smallest normal number."""
        return self.weight.abs().max().clamp_min(torch.finfo(self.weight.dtype).tiny)

    def over(self, number: Tensor) -> Symbol:
        """The symbol of the kernel over a number, without scales."""
        return Symbol(self.weight / number, self.layout)

    def agreed(self, values: Tensor) -> Tensor:
        """Numbers to decide by, the same in every process that holds a part of the kernel."""
        return values

    def plain(self) -> Symbol:
        """The same symbol with its scales multiplied into a copy of the weight."""
        weight = self.weight
        if self.row_scale is not None:
            weight = weight * self.row_scale[:, :, None, None]
        if self.column_scale is not None:
            weight = weight * self.column_scale[:, None, :, None]
        return Symbol(weight, self.layout)

    def at(self, w: Tensor) -> Tensor:
        """The blocks K^(w) for float64 frequencies w (m, axes): complex (m, g, rows, columns)."""
        phases = self.layout.phases(w)
        spread = phases[:, :, None] * self.layout.scatter(phases)  # (m, taps, components)
        real = torch.einsum("goct,mtr->mgocr", self.weight, spread.real.to(self.weight))
        imag = torch.einsum("goct,mtr->mgocr", self.weight, spread.imag.to(self.weight))
        return torch.complex(real, imag).flatten(-2)

    def read_adjoint(self, u: Tensor) -> Tensor:
        """K_t^T u for every tap at once, one read of the kernel: (g, m, rows) -> (g, m, c_in/g, taps)."""
        m = u.shape[1]
        u = u if self.row_scale is None else u * self.row_scale[:, None]
        images = self._times_kernel(torch.cat([u.real, u.imag], 1))
        images = images.view(*images.shape[:2], -1, self.weight.shape[3])
        whole = torch.complex(images[:, :m], images[:, m:])
        return whole if self.column_scale is None else whole * self.column_scale[:, None, :, None]

    def read(self, folded: Tensor) -> Tensor:
        """K^(w) v with the phases folded into v, one read: (g, m, c_in/g, taps) -> (g, m, rows)."""
        m = folded.shape[1]
        folded = folded if self.column_scale is None else folded * self.column_scale[:, None, :, None]
        product = self._times_transpose(torch.cat([folded.real, folded.imag], 1).flatten(2))
        whole = torch.complex(product[:, :m], product[:, m:])
        return whole if self.row_scale is None else whole * self.row_scale[:, None]

    def _times_kernel(self, x: Tensor) -> Tensor:
        """Real (g, n, rows) @ kernel -> (g, n, c_in/g * taps)."""
        return _product(x, self.flat)

    def _times_transpose(self, x: Tensor) -> Tensor:
        """Real (g, n, c_in/g * taps) @ transposed kernel -> (g, n, rows)."""
        return _product(x, self.flat.mT)

    def unfold(self, images: Tensor, phases: Tensor) -> Tensor:
        """K^(w)^H u from its images (..., c_in/g, taps) and the phases (..., taps): (..., c_in/g, components)."""
        waves = phases.conj()[..., None]
        if self.layout.components > 1:
            waves = waves * self.layout.scatter(waves)
        return images @ waves

    def fold(self, v: Tensor, phases: Tensor) -> Tensor:
        """Spread v (..., c_in/g, components) over the taps, phases included: (..., c_in/g, taps)."""
        spread = v if self.layout.components == 1 else v.index_select(-1, self.layout.component)
        return spread * phases[..., None, :]

    def bilinear(self, group: int, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """Re(u^H K^(w) v) of one group: 0-dim and linear in the weight, so its gradient is exact.

        With unit u (rows,), v (columns,) and w (axes,) a maximiser, this is the norm, and its gradient
        Re(conj(u) v^T exp(-i w . q_t)) a valid subgradient, at ties too.

        Returns:
            The 0-dim value.
        """
        v = v.unflatten(-1, (-1, self.layout.components))
        folded = self.fold(v, self.layout.phases(w).to(v))
        outer = u.conj()[:, None, None] * folded
        return (self.weight[group] * outer.real.to(self.weight)).sum()


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """Batched product; of one matrix as a plain one, which is faster."""
    return torch.bmm(x, matrix) if len(matrix) > 1 else torch.mm(x[0], matrix[0])[None]


class SymbolStack(Symbol):
    """Symbols of one layout side by side, as groups of one; each kernel is read where it is.

    Vectors of smaller symbols are padded with zeros to the largest.

    Attributes:
        parts: the symbols.
        spans: of each, its groups in the stack.
    """

    def __init__(self, parts: Sequence[Symbol]) -> None:
        super().__init__(parts[0].weight, parts[0].layout)
        ends = list(itertools.accumulate(part.groups for part in parts))
        spans = [slice(end - part.groups, end) for part, end in zip(parts, ends, strict=True)]
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "spans", tuple(spans))
        self.scale([(part.row_scale, part.column_scale) for part in parts])

    def scale(self, scales: Sequence[tuple[Tensor | None, Tensor | None]]) -> None:
        """Take up each part's scales of rows and columns."""
        pairs = zip(self.parts, scales, strict=True)
        object.__setattr__(
            self, "parts", tuple(replace(part, row_scale=one, column_scale=two) for part, (one, two) in pairs)
        )
        for axis, name in enumerate(("row_scale", "column_scale")):
            known = [pair[axis] for pair in scales]
            whole = None
            if any(scale is not None for scale in known):
                most = max(part.weight.shape[1 + axis] for part in self.parts)
                whole = self.parts[0].weight.new_ones(self.groups, most)
                for scale, span in zip(known, self.spans, strict=True):
                    if scale is not None:
                        whole[span, : scale.shape[1]] = scale
            object.__setattr__(self, name, whole)

    parts: tuple[Symbol, ...]
    spans: tuple[slice, ...]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Groups of all the parts, then rows and inputs (c_in/g * taps) of the largest."""
        shapes = [part.flat.shape for part in self.parts]
        return sum(g for g, _, _ in shapes), max(rows for _, rows, _ in shapes), max(n for _, _, n in shapes)

    @property
    def groups(self) -> int:
        """Groups of all the parts."""
        return self.sizes[0]

    @property
    def rows(self) -> int:
        """Output channels of the largest group."""
        return self.sizes[1]

    def _times_kernel(self, x: Tensor) -> Tensor:
        return self._products(x, [part.flat for part in self.parts], self.sizes[2])

    def _times_transpose(self, x: Tensor) -> Tensor:
        return self._products(x, [part.flat.mT for part in self.parts], self.sizes[1])

    def _products(self, x: Tensor, matrices: Sequence[Tensor], width: int) -> Tensor:
        """Each part's product, in its groups of a result (g, n, width) padded with zeros."""
        out = x.new_zeros(x.shape[0], x.shape[1], width)
        for matrix, span in zip(matrices, self.spans, strict=True):
            groups, rows, columns = matrix.shape
            if groups == 1:  # as plain products, which are faster
                left, into, right = x[span.start], out[span.start], matrix[0]
            else:
                left, into, right = x[span], out[span], matrix
            left = left if rows == left.shape[-1] else left[..., :rows]
            into = into if columns == width else into[..., :columns]
            torch.matmul(left, right, out=into)
        return out
