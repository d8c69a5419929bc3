"""The cheapest literal layer separation: each pair of channels by itself, then one small matrix.

Our reading of Pan & Mishra, "Fast Approximate Spectral Normalization for Robust Deep Neural Networks" (2021, arXiv
2103.13815), taken by its words: a convolution is separated into scalar filters, one for each pair of channels; the
Fourier transform gives each one's norm; the norm of the matrix of these norms bounds the layer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectralnorm.bound import Bound
from spectralnorm.estimators.above import bound_from_above
from spectralnorm.estimators.base import Estimator, check_counts
from spectralnorm.estimators.grids import between_points, check_grid, half_grid, uniform_points
from spectralnorm.estimators.rounding import dense_rounding, evaluation_rounding, frobenius_norm
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol

__all__ = ["Separated"]

_CHUNK = 2**18  # numbers held at once: 2 MiB, a few times over, in cache


@dataclass(frozen=True)
class Separated(Estimator):
    """From above: |K^_ij(w)| <= M_ij, the maximum over w, so that ||K^(w)|| <= ||M||; loose for many channels.

    Exact for depthwise layers without stride, up to what lies between the points of the grid.

    Attributes:
        points: of the uniform grid of frequencies, per axis, at least; large kernels get more. Its maxima are
            divided by the product of cos(pi d_a / N_a) (Bernstein-Szego; `MATHS.md`, section 3).

    Example:
        >>> import torch, spectralnorm as sn
        >>> kernel = torch.tensor([[[1.0, 1.0, -1.0]]])  # norm sqrt(5), over all sizes
        >>> bound = sn.spectral_norm(kernel, method=sn.Separated(points=100))
        >>> 5**0.5 <= bound.upper <= 1.001 * 5**0.5
        True
    """

    name: ClassVar[str] = "separated"
    points: int = 32

    def __post_init__(self) -> None:
        check_counts(points=self.points)

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Evaluate the filters on the grid, then one SVD, whatever the tolerance."""
        del rtol
        return bound_from_above(operator, size, self.name, self._ceiling)

    def _ceiling(self, symbol: Symbol, grid: Size | None) -> tuple[float, Tensor, dict[str, Any]]:
        """Bound of the symbol everywhere, so on a finite grid too."""
        del grid
        points = uniform_points(symbol.layout.degrees, self.points)
        # the phases of every tap, their real and imaginary parts, and a pair of channels at every frequency
        numbers, pairs = 6 * symbol.weight.shape[3] + 4, symbol.groups * symbol.rows * symbol.columns
        check_grid(points, numbers, pairs, symbol.weight.device, self.name)
        w = half_grid(points).to(symbol.weight.device)
        maxima, index = _pair_maxima(symbol, w)
        group = int(torch.linalg.svdvals(maxima)[:, 0].argmax())
        u, s, vh = torch.linalg.svd(maxima[group], full_matrices=False)
        rounding = dense_rounding(symbol.rows, symbol.columns, frobenius_norm(maxima), torch.float64)
        factor = between_points(symbol.layout.degrees, points)
        gradient = torch.zeros_like(symbol.weight)
        gradient[group] = factor * _slope(symbol, group, w, index[group], torch.outer(u[:, 0], vh[0]))
        upper = factor * (float(s[0]) + rounding + evaluation_rounding(symbol))
        return upper, gradient, {"points": w.shape[0], "group": group}


def _pair_maxima(symbol: Symbol, w: Tensor) -> tuple[Tensor, Tensor]:
    """Largest |K^_ij| over the frequencies w (m, axes), and which of them: (g, rows, columns) both."""
    layout, pairs = symbol.layout, symbol.weight.flatten(0, 2)  # (pairs, taps)
    squares = pairs.new_empty(len(pairs), layout.components)
    index = torch.empty_like(squares, dtype=torch.long)
    for component in range(layout.components):
        mine = layout.component == component
        filters, waves = pairs[:, mine], layout.phases(w)[:, mine].mT
        real, imag = waves.real.contiguous(), waves.imag.contiguous()
        for chunk in torch.arange(len(pairs), device=w.device).split(max(1, _CHUNK // len(w))):
            square = (filters[chunk] @ real).square_() + (filters[chunk] @ imag).square_()
            squares[chunk, component], index[chunk, component] = square.max(1)
    shape = (symbol.groups, symbol.rows, symbol.columns)
    return squares.sqrt().reshape(shape), index.reshape(shape)


def _slope(symbol: Symbol, group: int, w: Tensor, index: Tensor, outer: Tensor) -> Tensor:
    """Gradient (rows, c_in/g, taps) of u^T M v at the frequencies where the maxima of M lie.

    Args:
        symbol: the symbol, in float64.
        group: the group of M.
        w: (m, axes) frequencies.
        index: (rows, columns) where each pair of channels has its maximum.
        outer: (rows, columns) u v^T.

    Returns:
        Re(conj(K^_ij / |K^_ij|) exp(-i w . q_t)) for every tap, times its entry of u v^T.
    """
    layout, weight = symbol.layout, symbol.weight[group]  # (rows, c_in/g, taps)
    of_tap = index.unflatten(1, (-1, layout.components))[..., layout.component]
    phases = layout.phases(w)[of_tap, torch.arange(weight.shape[2], device=w.device)]  # (rows, c_in/g, taps)
    entries = (weight * phases) @ layout.scatter(phases)  # (rows, c_in/g, components)
    pull = outer.unflatten(1, (-1, layout.components)) * torch.sgn(entries).conj()
    slope: Tensor = (pull[..., layout.component] * phases).real
    return slope
