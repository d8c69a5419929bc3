"""An upper bound from the kernel flattened in several ways.

Singla & Feizi, "Fantastic Four: Differentiable Bounds on Singular Values of Convolution Layers" (ICLR 2021). In
two dimensions a kernel has four flattenings; after polyphase decomposition the bound holds for strides too.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectralnorm.bound import Bound
from spectralnorm.estimators.above import bound_from_above
from spectralnorm.estimators.base import Estimator
from spectralnorm.estimators.rounding import dense_rounding, frobenius_norm
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol, TapLayout

__all__ = ["FlattenedBound"]

Sides = tuple[tuple[int, ...], tuple[int, ...]]  # axes whose taps lie along the rows, and along the columns


@dataclass(frozen=True)
class FlattenedBound(Estimator):
    """From above, by at most sqrt(taps): sqrt(taps) times the smallest norm of the 2^D flattened kernels.

    With the taps' axes split between rows (R) and columns (C), K^(w) = (I x a)^H M (I x b), where M is the
    flattened kernel and the entries of a and b are phases: ||a||^2 is the number of taps along R, ||b||^2 along C.

    Example:
        >>> import torch, spectralnorm as sn
        >>> kernel = torch.tensor([[[1.0, 1.0, -1.0]]])  # norm sqrt(5), over all sizes
        >>> round(float(sn.spectral_norm(kernel, method=sn.FlattenedBound())), 4)
        3.0
    """

    name: ClassVar[str] = "flattened_bound"

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """An SVD of each flattened kernel, whatever the tolerance."""
        del rtol
        return bound_from_above(operator, size, self.name, _ceiling)


def _ceiling(symbol: Symbol, grid: Size | None) -> tuple[float, Tensor, dict[str, Any]]:
    """Bound of the symbol everywhere, so on a finite grid too."""
    del grid
    counts, slots = _box(symbol.layout)
    weight = symbol.weight
    box = weight.new_zeros(*weight.shape[:3], math.prod(counts) * symbol.layout.components)
    box = box.index_copy(3, slots, weight).unflatten(3, (symbol.layout.components, *counts))
    heights = torch.stack([_height(_flatten(box, sides)) for sides in _all_sides(counts)])  # (flattenings, groups)
    group = int(heights.amin(0).argmax())
    sides = _all_sides(counts)[int(heights[:, group].argmin())]
    root = math.sqrt(math.prod(counts))
    gradient = torch.zeros_like(weight)
    gradient[group] = root * _slope(box[group : group + 1], sides).flatten(2)[..., slots]
    return root * float(heights[:, group].min()), gradient, {"rows": sides[0], "group": group}


def _box(layout: TapLayout) -> tuple[list[int], Tensor]:
    """Number of distinct positions per axis, and each tap's flat index in (components, *counts)."""
    counts, index = [], layout.component
    for axis in range(layout.axes):
        distinct, place = layout.positions[:, axis].unique(return_inverse=True)
        counts.append(len(distinct))
        index = index * len(distinct) + place
    return counts, index


def _all_sides(counts: list[int]) -> list[Sides]:
    """Every split of the axes; those with a single tap need not be moved."""
    choices = itertools.product(*((False, True) if count > 1 else (False,) for count in counts))
    numbered = [list(enumerate(choice)) for choice in choices]
    return [(tuple(a for a, row in c if row), tuple(a for a, row in c if not row)) for c in numbered]


def _order(sides: Sides) -> list[int]:
    """Axes of (g, o, c, components, *counts) in the order of a flattening: groups, rows, columns."""
    rows, columns = sides
    return [0, 1, *(4 + axis for axis in rows), 2, 3, *(4 + axis for axis in columns)]


def _flatten(box: Tensor, sides: Sides) -> Tensor:
    """(g, o, c, components, *counts) -> (g, o * taps along the rows, c * components * taps along the columns)."""
    cut = 2 + len(sides[0])
    return box.permute(_order(sides)).flatten(cut).flatten(1, cut - 1)


def _height(matrix: Tensor) -> Tensor:
    """Bound on the norm of each group's matrix (g, rows, columns), the rounding of the SVD included."""
    rounding = dense_rounding(matrix.shape[1], matrix.shape[2], frobenius_norm(matrix), torch.float64)
    heights: Tensor = torch.linalg.svdvals(matrix)[:, 0] + rounding
    return heights


def _slope(box: Tensor, sides: Sides) -> Tensor:
    """Gradient of the norm of one group's flattened kernel: u v^T, laid out as (o, c, components, *counts)."""
    order = _order(sides)
    u, _, vh = torch.linalg.svd(_flatten(box, sides)[0], full_matrices=False)
    outer = torch.outer(u[:, 0], vh[0]).reshape([box.shape[axis] for axis in order])
    slope: Tensor = outer.permute([order.index(axis) for axis in range(box.ndim)])[0]
    return slope
