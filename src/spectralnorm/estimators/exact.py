"""The exact norm: Fourier transform, then an SVD per frequency.

Sedghi, Gupta & Long, "The Singular Values of Convolutional Layers" (ICLR 2019), with strides by polyphase
components. O(points c^3): the reference, too slow for training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from spectralnorm.bound import Bound
from spectralnorm.estimators.base import Estimator, attach_gradient, check_counts
from spectralnorm.estimators.grids import between_points, check_grid, half_grid
from spectralnorm.estimators.rounding import (
    dense_rounding,
    evaluation_rounding,
    float32_is_whole,
    frobenius_norm,
    power_of_two,
    rescaled,
    rescaled_back,
)
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol

__all__ = ["Exact"]

_CHUNK = 2**22  # complex entries of symbol blocks held at once: 64 MiB in float64


@dataclass(frozen=True)
class Exact(Estimator):
    """Every frequency's SVD where the norm has a closed form; the SVD of the layer's matrix where not.

    Size-free, a uniform grid fine enough for rtol: the supremum is at most the grid's maximum over the
    product of cos(pi d_a / N_a) (Bernstein-Szego; `MATHS.md`, section 3), and at least that maximum.

    Attributes:
        max_columns: a layer without closed form at a size may have this many inputs, no more.
        max_points: frequencies of the size-free grid, at most.
        dtype: torch.float64, or torch.float32 for speed; the interval states its rounding either way. Where
            PyTorch may round float32 products further (TF32), float64 is used.

    Example:
        >>> import torch, spectralnorm as sn
        >>> kernel = torch.tensor([[[1.0, 1.0, -1.0]]])  # norm sqrt(5), over all sizes
        >>> bound = sn.spectral_norm(kernel, method=sn.Exact(), rtol=1e-6)
        >>> bound.lower <= 5**0.5 <= bound.upper
        True
    """

    name: ClassVar[str] = "exact"
    max_columns: int = 4096
    max_points: int = 2**20
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype={self.dtype} cannot be decomposed; expected torch.float64 or torch.float32.")
        check_counts(max_columns=self.max_columns, max_points=self.max_points)

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Evaluate the grid, or the dense matrix."""
        if size is None:
            symbol = operator.symbol()
            points = _uniform_points(symbol.layout.degrees, rtol)
            if math.prod(points) > self.max_points:
                raise ValueError(
                    f"method='exact' needs {math.prod(points)} frequencies for rtol={rtol:g}; expected at most "
                    f"max_points={self.max_points}. Use method='certified', which proves the same."
                )
            factor = operator.ceilings(None)[0][1] * between_points(symbol.layout.degrees, points)
            return self._grid_bound(symbol, points, factor)
        closed = operator.grid(size)
        if closed is not None:
            return self._grid_bound(*closed, 1.0)
        return self._dense_bound(operator, size)

    @property
    def _working_dtype(self) -> torch.dtype:
        return self.dtype if float32_is_whole() else torch.float64

    def _grid_bound(self, symbol: Symbol, points: Size, factor: float) -> Bound:
        dtype = self._working_dtype
        with torch.no_grad():
            exact, scale = rescaled(symbol)
            working = exact.to(dtype)
            entries = max(working.groups * working.rows * working.columns, working.weight.shape[3])
            check_grid(points, 2 * working.groups, entries, working.weight.device, self.name)
            w = half_grid(points).to(working.weight.device)
            per_chunk = max(1, _CHUNK // entries)
            heights = [torch.linalg.svdvals(working.at(part))[..., 0] for part in torch.split(w, per_chunk)]
            flat = torch.cat(heights)  # (points, groups)
            index, group = divmod(int(flat.argmax()), working.groups)
            block = working.at(w[index][None])[0, group]
            u, s, vh = torch.linalg.svd(block, full_matrices=False)
            # ||K^(w)||_F <= sum_t ||K_t||_F <= sqrt(taps) ||W||_F
            frobenius = math.sqrt(working.weight.shape[3]) * frobenius_norm(working.weight)
        rounding = dense_rounding(working.rows, working.columns, frobenius, dtype)
        rounding += evaluation_rounding(exact, dtype)
        sigma = float(s[0])
        value = attach_gradient(sigma * scale, symbol.bilinear(group, u[:, 0], vh[0].conj(), w[index]))
        lower = rescaled_back(max(0.0, sigma - rounding), scale, up=False)
        upper = rescaled_back((sigma + rounding) * factor, scale, up=True)
        stats = {"points": w.shape[0], "frequency": tuple(w[index].tolist()), "group": group}
        return Bound(value, lower, upper if frobenius else 0.0, self.name, stats)

    def _dense_bound(self, operator: Operator, size: Size) -> Bound:
        shape = operator.input_shape(size)
        columns = math.prod(shape)
        if columns > self.max_columns:
            raise ValueError(
                f"method='exact' has no closed form at input_shape={size}, and the layer's matrix has {columns} "
                f"columns; expected at most {self.max_columns}. Use method='auto', or leave input_shape out."
            )
        dtype, weight = self._working_dtype, operator.weight
        with torch.no_grad():
            # in float64: PyTorch may make float32 convolutions in TF32, whatever it does with products
            basis = torch.eye(columns, dtype=torch.float64, device=weight.device)
            matrix = operator.apply(basis.reshape(-1, *shape)).flatten(1).T
            scale = power_of_two(matrix)
            matrix = (matrix / scale).to(dtype)
            u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        sigma = float(s[0])
        frobenius = frobenius_norm(matrix)
        rounding = dense_rounding(matrix.shape[0], columns, frobenius, dtype)
        image = operator.apply(vh[0].reshape(1, *shape).to(weight)).flatten()
        value = attach_gradient(sigma * scale, (image * u[:, 0].to(weight)).sum())
        lower = rescaled_back(max(0.0, sigma - rounding), scale, up=False)
        upper = rescaled_back(sigma + rounding, scale, up=True)
        return Bound(value, lower, upper if frobenius else 0.0, self.name, {"columns": columns})


def _uniform_points(degrees: tuple[float, ...], rtol: float) -> Size:
    """Grid points per axis for which the cosine factors stay within rtol / 2 together."""
    axes = sum(d > 0 for d in degrees)
    if not axes:
        return (1,) * len(degrees)
    angle = math.acos((1 + rtol / 2) ** (-1 / axes))
    return tuple(math.ceil(math.pi * d / angle) if d else 1 for d in degrees)
