"""The height of a vector at every frequency, as one short trigonometric polynomial.

For a fixed x, ||K^(w)^H x||^2 = sum_l a_l exp(i w . l): the coefficient of lag l sums the inner products of
the images K_t^T x over the pairs of taps that lie l apart in the same polyphase component. A few dozen
numbers a track replace the kernel while w moves.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spectralnorm.operators.eigen import symmetric
from spectralnorm.operators.fourier import TapLayout

__all__ = ["Lags", "lags_of"]

_LARGE = 100  # taps from which transforms are cheaper than the inner products of all pairs
_NUMBERS = 2**24  # of inner products or of boxes held at once: 128 MiB
_SHARES = (1.0, 0.5, 0.125, 0.0)  # of the Newton step: the best is taken


@dataclass(frozen=True, eq=False)
class Lags:
    """Lags of one tap layout, on a device and in a dtype.

    Attributes:
        pairs: (taps * taps,) flat lag index of each pair of taps; pairs of different components share a
            last, discarded slot.
        places: (taps,) flat index of each tap in a box (components, *extents).
        components: polyphase components.
        extents: number of lags per axis, 2 q_max + 1.
        vectors: (lags, axes), the lag of each coefficient.
        squares: (lags, axes * axes), their outer products.
        shares: (4, 1, 1, 1), the shares of a Newton step that are tried.
    """

    pairs: Tensor
    places: Tensor
    components: int
    extents: tuple[int, ...]
    vectors: Tensor
    squares: Tensor
    shares: Tensor

    def coefficients(self, images: Tensor) -> Tensor:
        """Images (g, m, c, taps) -> coefficients (g, m, lags), complex."""
        large = images.shape[3] >= _LARGE
        numbers = images.shape[2] * 8 * math.prod(self.extents) if large else len(self.pairs)
        parts = images.split(max(1, _NUMBERS // (images.shape[0] * numbers)), 1)
        sums = [self._transformed(part) if large else self._paired(part) for part in parts]
        return sums[0] if len(sums) == 1 else torch.cat(sums, 1)

    def _paired(self, images: Tensor) -> Tensor:
        """Inner products of the images, summed over the pairs of each lag."""
        gram = images.mT @ images.conj()  # (g, m, taps, taps)
        slots = gram.new_zeros(*gram.shape[:2], self.vectors.shape[0] + 1)
        return slots.index_add_(-1, self.pairs, gram.flatten(-2))[..., :-1]

    def _transformed(self, images: Tensor) -> Tensor:
        """The same for a kernel of many taps: autocorrelations by FFT, in boxes that nothing wraps around in."""
        lags, axes = self.vectors.shape[0], tuple(range(4, 4 + len(self.extents)))
        boxes = images.new_zeros(*images.shape[:3], self.components * lags)
        boxes.index_copy_(3, self.places, images)
        boxes = boxes.unflatten(3, (self.components, *self.extents))
        squares = torch.fft.fftn(boxes, dim=axes).abs().square().sum((2, 3))
        sums = torch.fft.ifftn(squares, dim=tuple(range(2, 2 + len(axes))))
        ordered: Tensor = torch.fft.fftshift(sums, dim=tuple(range(2, 2 + len(axes))))
        return ordered.flatten(2)

    def _terms(self, a: Tensor, w: Tensor) -> Tensor:
        """Terms of a (g, m, lags) at w (..., g, m, axes): a_l exp(i w . l), (..., g, m, lags)."""
        angle = w @ self.vectors.T
        return a * torch.complex(angle.cos(), angle.sin())

    def height(self, a: Tensor, w: Tensor) -> Tensor:
        """Squared height: a (g, m, lags) at w (..., g, m, axes) -> (..., g, m)."""
        return self._terms(a, w).real.sum(-1)

    def climb(self, a: Tensor, w: Tensor) -> Tensor:
        """One safeguarded Newton step up the polynomial: w (g, m, axes) -> w, never lower.

        Negative curvature is turned into steps up by its absolute value (Dauphin et al., NeurIPS 2014).

        Returns:
            The frequencies after the step.
        """
        terms = self._terms(a, w)
        slope = -(terms.imag @ self.vectors)
        curvature = (terms.real @ self.squares).unflatten(-1, (w.shape[-1], w.shape[-1]))
        bends, axes = symmetric(torch.where(curvature.isfinite(), curvature, 0.0))
        along = (slope[..., None, :] @ axes)[..., 0, :] / (
            bends.abs() + 1e-6 * bends.abs().amax(-1, keepdim=True) + 1e-30
        )
        step = (axes @ along[..., None])[..., 0].clamp(-1.0, 1.0)
        best = self.height(a, w + self.shares * step).argmax(0)  # (g, m)
        moved: Tensor = w + self.shares[best, 0, 0] * step
        return moved

    def on_grid(self, a: Tensor, points: tuple[int, ...]) -> Tensor:
        """Squared heights of a (g, m, lags) at the frequencies 2 pi j / points: (g, m, points of all axes)."""
        values = a.unflatten(-1, self.extents) if self.extents else a
        for count, extent in zip(points, self.extents, strict=True):
            lag = torch.arange(extent, device=a.device, dtype=a.real.dtype) - extent // 2
            angle = 2 * math.pi / count * torch.arange(count, device=a.device, dtype=lag.dtype)[:, None] * lag
            waves = torch.complex(angle.cos(), angle.sin())
            values = torch.tensordot(values, waves, dims=([2], [1]))  # the axis moves last: each comes up in turn
        return values.real.flatten(2)

    @staticmethod
    def frequencies(flat: Tensor, points: tuple[int, ...]) -> Tensor:
        """The frequencies (..., axes) of flat indices into `on_grid`, float64."""
        index: list[Tensor] = []
        for count in reversed(points):
            index.insert(0, (flat % count).double() * (2 * math.pi / count))
            flat = flat // count
        return torch.stack(index, -1) if index else flat[..., None][..., :0].double()

    def search(self, a: Tensor, w: Tensor, points: tuple[int, ...]) -> Tensor:
        """The highest of a grid's frequencies 2 pi j / points and the current w: (g, m, axes)."""
        heights, flat = self.on_grid(a, points).max(-1)
        better = heights > self.height(a, w)
        return torch.where(better[..., None], self.frequencies(flat, points).to(w), w)


@lru_cache(maxsize=256)
def lags_of(layout: TapLayout, dtype: torch.dtype) -> Lags:
    """The lags of a layout, on its device, in a real dtype."""
    q = layout.positions
    difference = q[:, None] - q[None]  # (taps, taps, axes), integers within a component
    same = layout.component[:, None] == layout.component[None]
    reach = [int(r) for r in (q.amax(0) - q.amin(0)).round()]
    extents = tuple(2 * r + 1 for r in reach)
    index = torch.zeros(same.shape, dtype=torch.long, device=q.device)
    for axis, (r, extent) in enumerate(zip(reach, extents, strict=True)):
        index = index * extent + (difference[..., axis].round().long() + r)
    index = torch.where(same, index, math.prod(extents))
    ranges = [range(-r, r + 1) for r in reach]
    vectors = torch.tensor(list(itertools.product(*ranges)), dtype=dtype, device=q.device)
    vectors = vectors.reshape(math.prod(extents), len(reach))
    squares = (vectors[:, :, None] * vectors[:, None]).flatten(1)
    shares = torch.tensor(_SHARES, dtype=dtype, device=q.device)[:, None, None, None]
    places = layout.component
    for axis, extent in enumerate(extents):
        places = places * extent + (q[:, axis] - q[:, axis].amin()).round().long()
    return Lags(index.flatten(), places, layout.components, extents, vectors, squares, shares)
