"""From upper bounds of symbols to an upper bound of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectralnorm.bound import Bound
from spectralnorm.estimators.base import attach_gradient
from spectralnorm.estimators.rounding import rescaled
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol

__all__ = ["Ceiling", "bound_from_above"]

_ABOVE = 1 + 2.0**-48  # more than what rounds in a bound's last few products

# (symbol in float64 with entries below 2, finite grid or None) -> (bound on its norm, gradient of that with
# respect to the symbol's weight, stats)
Ceiling = Callable[[Symbol, Size | None], tuple[float, Tensor, dict[str, Any]]]


def bound_from_above(operator: Operator, size: Size | None, method: str, ceiling: Ceiling) -> Bound:
    """The upper bound for a layer that a method for symbols gives.

    Where the layer has a closed form at the size, its norm is the symbol's maximum over a finite grid; else the
    smallest of the operator's ceilings counts. A zero weight has norm 0, whatever the rounding.

    Args:
        operator: the layer's map.
        size: the spatial size, or None for the size-free norm.
        method: for `Bound.method`.
        ceiling: bounds a symbol, on the finite grid it is given or everywhere.

    Returns:
        A bound with `lower = 0`; its value is the upper end, differentiable.
    """
    weight = operator.weight
    if not weight.detach().any():
        return Bound(attach_gradient(0.0, (0 * weight).sum(), up=True), 0.0, 0.0, method, {})
    closed = None if size is None else operator.grid(size)
    if closed is not None:
        choices = [_ceiling_of(*closed, 1.0, ceiling)]
    else:
        choices = [_ceiling_of(symbol, None, factor, ceiling) for symbol, factor in operator.ceilings(size)]
    upper, bilinear, stats = min(choices, key=lambda choice: choice[0])
    return Bound(attach_gradient(upper, bilinear, up=True), 0.0, upper, method, stats)


def _ceiling_of(
    symbol: Symbol, grid: Size | None, factor: float, ceiling: Ceiling
) -> tuple[float, Tensor, dict[str, Any]]:
    """A symbol's bound, times a factor; the method sees it rescaled, which keeps every power in range.

    Returns:
        The bound, the product of the weight and the bound's gradient, and the stats.
    """
    with torch.no_grad():
        exact, scale = rescaled(symbol)
        value, gradient, stats = ceiling(exact, grid)
    upper = math.nextafter(value * factor * _ABOVE * scale, math.inf)
    return upper, factor * (symbol.weight * gradient.to(symbol.weight)).sum(), stats
