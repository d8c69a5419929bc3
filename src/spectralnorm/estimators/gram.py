"""An upper bound by Gram iteration: matrix products instead of singular values, fast on accelerators.

Delattre, Barthelemy, Araujo & Allauzen, "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram
Iteration" (ICML 2023): G <- G^H G squares every singular value, so that ||G||_F^(1/2^steps) tends to the largest.
We add what the paper leaves out: strides, grids between whose points nothing hides, and the rounding.
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
from spectralnorm.estimators.rounding import evaluation_rounding, float32_is_whole
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol

__all__ = ["Gram"]

_CHUNK = 2**21  # complex entries of symbol blocks held at once: 32 MiB, a few times over
_MOST_STEPS = 50  # n^(1/2^51) is 1 + 1e-14 for n = 1e6: what rounding hides is more
_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@dataclass(frozen=True)
class Gram(Estimator):
    """From above, by at most a factor n^(1/2^(steps+1)) for blocks of side n, and what lies between grid points.

    Where the norm has a closed form at the size, that grid; else a uniform one for the size-free norm, whose
    maximum is divided by the product of cos(pi d_a / N_a) (Bernstein-Szego; `MATHS.md`, section 3).

    Attributes:
        steps: products per frequency, at most 50.
        points: of the uniform grid, per axis, at least; large kernels get more.
        dtype: of the products, torch.float64, or torch.float32 for speed: rounding is part of the bound, which
            for n channels grows by up to 3e-7 n^(3/2). Where PyTorch may round float32 products further (TF32),
            they are made in float64.

    Example:
        >>> import torch, spectralnorm as sn
        >>> kernel = torch.tensor([[[1.0, 1.0, -1.0]]])  # norm sqrt(5), over all sizes
        >>> bound = sn.spectral_norm(kernel, method=sn.Gram(points=100))
        >>> 5**0.5 <= bound.upper <= 1.001 * 5**0.5
        True
    """

    name: ClassVar[str] = "gram"
    steps: int = 6
    points: int = 32
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.dtype not in _ROUNDOFF:
            raise ValueError(f"dtype={self.dtype} is not offered; expected torch.float64 or torch.float32.")
        check_counts(steps=self.steps, points=self.points)
        if self.steps > _MOST_STEPS:
            raise ValueError(
                f"steps={self.steps} gain nothing over {_MOST_STEPS}, which leave less than rounding of what they "
                f"lower; expected at most {_MOST_STEPS}. The default of 6 is within a few per cent."
            )

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Iterate at every frequency of the grid, whatever the tolerance."""
        del rtol
        return bound_from_above(operator, size, self.name, self._ceiling)

    def _ceiling(self, symbol: Symbol, grid: Size | None) -> tuple[float, Tensor, dict[str, Any]]:
        layout = symbol.layout
        points = uniform_points(layout.degrees, self.points) if grid is None else grid
        factor = between_points(layout.degrees, points) if grid is None else 1.0
        entries = max(symbol.groups * symbol.rows * symbol.columns, layout.components * symbol.weight.shape[3])
        check_grid(points, 4, entries, symbol.weight.device, self.name)
        w = half_grid(points).to(symbol.weight.device)
        peaks = [self._heights(symbol.at(part)).max(1) for part in w.split(max(1, _CHUNK // entries))]
        heights, groups = torch.cat([p.values for p in peaks]), torch.cat([p.indices for p in peaks])
        index = int(heights.argmax())
        group = int(groups[index])
        gradient = torch.zeros_like(symbol.weight)
        gradient[group] = factor * self._slope(symbol, group, w[index])
        stats = {"points": w.shape[0], "frequency": tuple(w[index].tolist()), "group": group}
        return factor * (float(heights[index]) + evaluation_rounding(symbol)), gradient, stats

    def _heights(self, blocks: Tensor) -> Tensor:
        """Bound on the norm of each of the blocks (m, g, rows, columns), in float64: (m, g).

        Every block B has a Frobenius norm f and is divided by it. The product of U = B / f with itself is computed
        within `_product_rounding`, so that ||U||^2 <= ||computed U^H U|| + rounding, and ||B|| <= f (||U|| + 2 u):
        bounds go backwards through the products, from the Frobenius norm of the last.

        Returns:
            The bounds.
        """
        dtype = self.dtype if float32_is_whole() else torch.float64
        matrix = blocks.mT if blocks.shape[-2] < blocks.shape[-1] else blocks  # the smaller side stays
        rounding, scales = _product_rounding(matrix.shape[-2], dtype), []
        for _ in range(self.steps):
            scales.append(_frobenius(matrix).clamp_min(1e-30))  # a zero block stays zero
            unit = (matrix / scales[-1][..., None, None]).to(dtype.to_complex())
            matrix = unit.mH @ unit
        height = _frobenius(matrix) * (1 + 2 * matrix.shape[-1] ** 2 * _ROUNDOFF[torch.float64])
        for scale in reversed(scales):
            height = scale * ((height + rounding).sqrt() + 2 * _ROUNDOFF[dtype])
        return height

    def _slope(self, symbol: Symbol, group: int, w: Tensor) -> Tensor:
        """Gradient (rows, c_in/g, taps) of the bound at a frequency: of the Schatten norm of order 2^(steps+1)."""
        layout, order = symbol.layout, 2.0 ** (self.steps + 1)
        block = Symbol(symbol.weight[group : group + 1], layout).at(w[None])[0, 0]
        u, s, vh = torch.linalg.svd(block, full_matrices=False)
        ratios = s / s[0].clamp_min(1e-300)
        powers = (ratios / ratios.pow(order).sum().pow(1 / order).clamp_min(1e-300)).pow(order - 1)
        slope = (u * powers) @ vh
        return symbol.fold(slope.conj().unflatten(-1, (-1, layout.components)), layout.phases(w)).real


def _product_rounding(terms: int, dtype: torch.dtype) -> float:
    """Bound on the error of U^H U, in the Frobenius norm, for ||U||_F at most 1 up to rounding.

    A real or imaginary part sums 2 terms real products, in whatever order: its error is at most gamma(2 terms)
    times the entry of |U|^H |U| (Higham 2002, section 3.1), that of an entry sqrt(2) times as much, and
    || |U|^H |U| ||_F <= ||U||_F^2. The 16 more, and 1.5 for sqrt(2), are for the rounding of U, of the scalars of
    `_heights`, and all second orders; underflow is far below them.

    Returns:
        The error at most; infinite where there are too many terms for the dtype.
    """
    share = (2 * terms + 16) * _ROUNDOFF[dtype]
    return 1.5 * share / (1 - share) if share < 0.5 else float("inf")


def _frobenius(blocks: Tensor) -> Tensor:
    """Frobenius norm of each of the matrices (..., rows, columns), summed in float64."""
    norms: Tensor = torch.linalg.vector_norm(torch.view_as_real(blocks).double(), dim=(-3, -2, -1))
    return norms
