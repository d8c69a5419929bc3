"""K^(w)^H K^(w) at every frequency, as one trigonometric polynomial of small matrices.

On the smaller channel side the Gram matrix of a symbol is

    G(w) = sum_q T_q exp(-i w . q),    T_q = sum_p K_p^T K_{p+q},    T_{-q} = T_q^T

over the lags q between taps. The T_q are formed once, in float64; a frequency then costs one small real
product and no read of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralnorm.operators.fourier import Symbol, TapLayout

__all__ = ["PANEL", "GramPolynomial", "gram_polynomial"]

PANEL = 32  # columns; a Cholesky factorisation by such panels takes 0.6 of LAPACK's time for 512 x 512 matrices
_ROUNDOFF = 2.0**-53
_ABOUT = 1 + 1e-6  # the sums that bound the rounding are rounded too


@dataclass(frozen=True, eq=False)
class GramPolynomial:
    """G(w) of every group, in float64; n is its side, H the number of lags up to sign, without zero.

    G is Hermitian: only its lower triangle is held, as panels of `PANEL` columns, each from its diagonal down.

    Attributes:
        side: n.
        constant: per panel (g, rows * width), of T_0.
        even: per panel (g, H, rows * width), of T_q + T_q^T: what cos(w . q) multiplies.
        odd: per panel (g, H, rows * width), of T_q - T_q^T: what -i sin(w . q) multiplies.
        lags: (H, axes) float64.
        norms: (g, 1 + H), bounds on the norms of T_0 and of the T_q.
        rounding: (g,), a bound on the norm of G_computed(w) - G(w) for w in [0, 2 pi].
    """

    side: int
    constant: tuple[Tensor, ...]
    even: tuple[Tensor, ...]
    odd: tuple[Tensor, ...]
    lags: Tensor
    norms: Tensor
    rounding: Tensor

    @staticmethod
    def numbers(symbol: Symbol) -> int:
        """How many float64 numbers forming the polynomial of a symbol takes at the most."""
        n, lags = min(symbol.rows, symbol.columns), math.prod(_extents(symbol.layout))
        positions = len(_places(symbol.layout)[0])
        return symbol.groups * (3 * lags * n * n + positions * (n * n + 2 * symbol.rows * symbol.columns))

    def negative(self, group: int, w: Tensor) -> Iterator[Tensor]:
        """-G(w) of one group at w (m, axes), panel by panel: each (m, rows, width), complex where it varies."""
        cos, sin = (w @ self.lags.T).cos(), (w @ self.lags.T).sin()
        starts = range(0, self.side, PANEL)
        for start, constant, even, odd in zip(starts, self.constant, self.even, self.odd, strict=True):
            if len(self.lags):
                real = torch.addmm(constant[group], cos, even[group], beta=-1, alpha=-1)
                panel = torch.complex(real, sin @ odd[group])
            else:
                panel = -constant[group].expand(len(w), -1)
            yield panel.unflatten(1, (-1, min(PANEL, self.side - start)))

    def scalars(self, group: Tensor, w: Tensor) -> Tensor:
        """G(w) where its side is 1, of group (m,) at w (m, axes): (m,)."""
        cosines = (w @ self.lags.T).cos()
        return self.constant[0][group, 0] + (cosines * self.even[0][group, :, 0]).sum(1)


def _panels(matrices: Tensor) -> tuple[Tensor, ...]:
    """The lower triangles of (..., n, n) matrices in panels (..., rows * width)."""
    starts = range(0, matrices.shape[-1], PANEL)
    return tuple(matrices[..., start:, start : start + PANEL].flatten(-2).contiguous() for start in starts)


def _norm_bounds(constant: Tensor, positive: Tensor) -> Tensor:
    """Bounds (g, 1 + H) on the spectral norms of the T_q (g, n, n) and (g, H, n, n).

    Frobenius norms, or sqrt of row sums times column sums; those of the T_q beside T_0 are made sharper where they
    are small against it, but not as small as rounding, which is where `search.py` gains by that.

    Returns:
        The bounds.
    """
    around, middle = (torch.linalg.vector_norm(t, dim=(-2, -1)) for t in (positive, constant))
    share = around.sum(1) / middle.clamp_min(1e-300)
    if ((share > 1e-5) & (share < 1)).any():
        around = torch.minimum(around, _schatten(positive))
    norms = torch.cat([middle[:, None], around], 1)
    sizes = [t.abs() for t in (constant[:, None], positive)]
    mixed = torch.cat([(s.sum(-1).amax(-1) * s.sum(-2).amax(-1)).sqrt() for s in sizes], 1)
    return torch.minimum(mixed, norms) * _ABOUT


def _schatten(matrices: Tensor) -> Tensor:
    """||A||_2 <= ||(A^T A)^4||_F^(1/8), of each matrix: at most n^(1/16) too much, and a little for rounding.

    Each product is divided by its Frobenius norm; computed, that is wrong by n^(3/2) u at most, relatively, which
    `_ABOUT` outweighs for every n that can be held.

    Returns:
        The bounds.
    """
    scales = []
    for _ in range(3):
        scales.append(torch.linalg.vector_norm(matrices, dim=(-2, -1)).clamp_min(1e-300))  # zero stays zero
        unit = matrices / scales[-1][..., None, None]
        matrices = unit.mT @ unit
    bound: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    for scale in reversed(scales):
        bound = scale * bound.sqrt()
    return bound


def gram_polynomial(symbol: Symbol) -> GramPolynomial:
    """Form the T_q of a symbol on its smaller channel side.

    Rounding (`MATHS.md`, section 3; u the unit roundoff). An entry of T_q sums at most P r products, P positions
    and r the larger side: forming adds (P r + 2) u ||M||^2 to the norm, M = sum_p |K_p|, and
    ||M||^2 <= ||M||_1 ||M||_inf. Evaluating sums H + 1 products an entry, of real and of imaginary part, where an
    angle w . q is wrong by (axes + 3) u |w . q| and its cosine by u more:
    sqrt(2) (H + 6 + (axes + 3) reach) u || sum_q |T_q| ||_inf.

    Args:
        symbol: the symbol, of any dtype; computed in float64. Entries far from 1 are the caller's to rescale.

    Returns:
        The polynomial.
    """
    symbol = symbol.to(torch.float64)
    blocks, positions = _by_position(symbol)  # (g, r, P, n), (P, axes)
    n, extents = blocks.shape[3], _extents(symbol.layout)
    slots = blocks.new_zeros(symbol.groups, n, math.prod(extents), n)
    index = _flat_lags(positions, extents)
    for s in range(blocks.shape[2]):  # positions are in order: a later one has a lag of the positive half
        products = blocks[:, :, s].mT @ blocks[:, :, s:].flatten(2)
        slots.index_add_(2, index[s, s:], products.unflatten(2, (-1, n)))
    middle = slots.shape[2] // 2
    constant, positive = slots[:, :, middle], slots[:, :, middle + 1 :].transpose(1, 2)  # (g, n, n), (g, H, n, n)
    sizes = constant.abs() + (positive.abs() + positive.abs().mT).sum(1)
    matrix = blocks.abs().sum(2)
    formed = (blocks.shape[2] * blocks.shape[1] + 2) * matrix.sum(1).amax(-1) * matrix.sum(2).amax(-1)
    reach = 2 * (symbol.layout.axes + 3) * symbol.layout.reach
    evaluated = math.sqrt(2) * (positive.shape[1] + 6 + reach) * sizes.sum(-1).amax(-1)
    return GramPolynomial(
        side=n,
        constant=_panels(constant),
        even=_panels(positive + positive.mT),
        odd=_panels(positive - positive.mT),
        lags=_lag_vectors(extents).to(blocks)[middle + 1 :],
        norms=_norm_bounds(constant, positive),
        rounding=(formed + evaluated) * (_ROUNDOFF * _ABOUT),
    )


def _extents(layout: TapLayout) -> tuple[int, ...]:
    """Number of lags per axis."""
    return tuple(2 * round(2 * d) + 1 for d in layout.degrees)


def _by_position(symbol: Symbol) -> tuple[Tensor, Tensor]:
    """The blocks of the taps, components included, with their positions in order.

    Returns:
        (g, r, P, n) blocks, transposed where the rows are the smaller side n, which transposes every T_q and
        keeps the eigenvalues of G; and (P, axes) positions.
    """
    weight, layout = symbol.weight, symbol.layout  # (g, o, c, t)
    positions, place = _places(layout)
    slot = place * layout.components + layout.component
    blocks = weight.new_zeros(*weight.shape[:3], len(positions) * layout.components)
    blocks.index_copy_(3, slot, weight)
    blocks = blocks.unflatten(3, (len(positions), layout.components))  # (g, o, c, P, components)
    if symbol.columns <= symbol.rows:
        return blocks.permute(0, 1, 3, 2, 4).flatten(3).contiguous(), positions
    return blocks.permute(0, 2, 4, 3, 1).flatten(1, 2).contiguous(), positions


def _places(layout: TapLayout) -> tuple[Tensor, Tensor]:
    """Distinct positions of the taps, in order (P, axes), and the number of each tap's (taps,)."""
    index = torch.zeros_like(layout.component)
    for axis, degree in enumerate(layout.degrees):
        index = index * (round(2 * degree) + 1) + (layout.positions[:, axis] + degree).round().long()
    distinct, place = index.unique(return_inverse=True)
    positions = layout.positions.new_zeros(len(distinct), layout.axes)
    return positions.index_copy_(0, place, layout.positions), place


def _flat_lags(positions: Tensor, extents: tuple[int, ...]) -> Tensor:
    """Flat index (P, P) of the lag from one position to another."""
    index = torch.zeros(len(positions), len(positions), dtype=torch.long, device=positions.device)
    for axis, extent in enumerate(extents):
        lag = positions[None, :, axis] - positions[:, None, axis]
        index = index * extent + lag.round().long() + extent // 2
    return index


def _lag_vectors(extents: tuple[int, ...]) -> Tensor:
    """Every lag (lags, axes), in the order of the flat index."""
    ranges = [torch.arange(e, dtype=torch.float64, device="cpu") - e // 2 for e in extents]
    if not ranges:
        return torch.zeros(1, 0, dtype=torch.float64, device="cpu")
    return torch.stack(torch.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, len(extents))
