"""The height of a vector at every frequency, as one short trigonometric polynomial.

For a fixed x, ||K^(w)^H x||^2 = sum_l a_l exp(i w . l): the coefficient of lag l sums the inner products of
the images K_t^T x over the pairs of taps that lie l apart in the same polyphase component. A few dozen
numbers a track replace the kernel while w moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spectralnorm.operators.fourier import TapLayout

__all__ = ["Lags", "lags_of"]

_SHRINKS = (1.0, 0.5, 0.125)  # shares of the Newton step tried; 0 is always among the candidates


@dataclass(frozen=True, eq=False)
class Lags:
    """Lags of one tap layout.

    Attributes:
        pairs: (taps * taps,) flat lag index of each pair of taps; pairs of different components share a
            last, discarded slot.
        extents: number of lags per axis, 2 q_max + 1.
        vectors: (lags, axes) float64, the lag of each coefficient.
    """

    pairs: Tensor
    extents: tuple[int, ...]
    vectors: Tensor

    def coefficients(self, images: Tensor) -> Tensor:
        """Images (g, m, c, taps) -> coefficients (g, m, lags), complex."""
        gram = images.mT @ images.conj()  # (g, m, taps, taps)
        slots = gram.new_zeros(*gram.shape[:2], self.vectors.shape[0] + 1)
        sums: Tensor = slots.index_add(-1, self.pairs, gram.flatten(-2))
        return sums[..., :-1]

    def height(self, a: Tensor, w: Tensor) -> Tensor:
        """Squared height: a (g, m, lags) at w (..., g, m, axes) -> (..., g, m)."""
        return (a * self._waves(a, w)).real.sum(-1)

    def _waves(self, a: Tensor, w: Tensor) -> Tensor:
        angle = w @ self.vectors.to(w).T
        return torch.polar(torch.ones_like(angle), angle).to(a.dtype)

    def climb(self, a: Tensor, w: Tensor) -> Tensor:
        """One safeguarded Newton step up the polynomial: w (g, m, axes) -> w, never lower."""
        lags = self.vectors.to(w)
        terms = a * self._waves(a, w)
        slope = -(terms.imag @ lags)
        curvature = -torch.einsum("gml,la,lb->gmab", terms.real, lags, lags)
        step = _newton(slope, curvature)
        shares = torch.tensor((*_SHRINKS, 0.0), dtype=w.dtype, device=w.device)
        candidates = w + shares[:, None, None, None] * step
        best = self.height(a, candidates).argmax(0)  # (g, m)
        moved: Tensor = w + shares[best][..., None] * step
        return moved

    def search(self, a: Tensor, w: Tensor, points: tuple[int, ...]) -> Tensor:
        """The highest of a grid's frequencies 2 pi j / points and the current w: (g, m, axes)."""
        values = a.unflatten(-1, self.extents)
        for count, extent in zip(points, self.extents, strict=True):
            lag = torch.arange(extent, device=w.device, dtype=w.dtype) - extent // 2
            angle = 2 * math.pi / count * torch.arange(count, device=w.device, dtype=w.dtype)[:, None] * lag
            waves = torch.polar(torch.ones_like(angle), angle).to(a.dtype)
            values = torch.tensordot(values, waves, dims=([2], [1]))  # the axis moves last: each comes up in turn
        heights, index = values.real.flatten(2).max(-1)
        found = torch.stack(torch.unravel_index(index, points), -1)
        found = found * (2 * math.pi / torch.tensor(points, device=w.device, dtype=w.dtype))
        return torch.where((heights > self.height(a, w))[..., None], found, w)


def _newton(slope: Tensor, curvature: Tensor) -> Tensor:
    """Newton's step up, the curvature made negative definite by a Gershgorin shift where it is not."""
    diagonal = curvature.diagonal(dim1=-2, dim2=-1)
    radius = curvature.abs().sum(-1) - diagonal.abs()
    shift = (diagonal + radius).amax(-1).clamp_min(0) + 1e-6 * curvature.abs().amax((-2, -1)) + 1e-30
    eye = torch.eye(slope.shape[-1], dtype=slope.dtype, device=slope.device)
    step = torch.linalg.solve(shift[..., None, None] * eye - curvature, slope[..., None])[..., 0]
    return step.clamp(-1.0, 1.0)


@lru_cache(maxsize=256)
def lags_of(layout: TapLayout) -> Lags:
    """The lags of a layout, on its device."""
    q = layout.positions
    difference = q[:, None] - q[None]  # (taps, taps, axes), integers within a component
    same = layout.component[:, None] == layout.component[None]
    reach = [int(r) for r in (q.amax(0) - q.amin(0)).round()]
    extents = tuple(2 * r + 1 for r in reach)
    index = torch.zeros(same.shape, dtype=torch.long, device=q.device)
    for axis, (r, extent) in enumerate(zip(reach, extents, strict=True)):
        index = index * extent + (difference[..., axis].round().long() + r)
    index = torch.where(same, index, math.prod(extents))
    grids = torch.meshgrid(*(torch.arange(-r, r + 1, dtype=q.dtype) for r in reach), indexing="ij")
    vectors = torch.stack(grids, -1).reshape(-1, len(reach)) if reach else q.new_zeros(1, 0)
    return Lags(index.flatten(), extents, vectors.to(q.device))
