"""Checks of what attacks and evaluations take: each error says what was got, what is expected, and the cure."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

Bounds = tuple[float, float]
NORMS = ("linf", "l2")


def check_batch(x: Tensor, y: Tensor, bounds: Bounds) -> None:
    """Check a batch: x, (N, ...), floating point within the bounds, and y, (N,), int64."""
    check_types(x, y)
    if x.ndim < 2 or y.shape != x.shape[:1]:
        raise ValueError(
            f"x, y: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (N, ...) and (N,); "
            "add a batch axis, and give one label per input"
        )
    _check_values(x, y, bounds)


def check_types(x: Tensor, y: Tensor) -> None:
    """Check that inputs are floating point, and labels int64."""
    for name, value in [("x", x), ("y", y)]:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor; use torch.as_tensor")
    if not x.is_floating_point() or y.dtype != torch.int64:
        raise TypeError(
            f"x, y: got {x.dtype} and {y.dtype}, expected floating point and torch.int64; "
            f"convert with {'y.long()' if x.is_floating_point() else 'x.float() / 255'}"
        )


def _check_values(x: Tensor, y: Tensor, bounds: Bounds) -> None:
    """Check that inputs lie within the bounds and that labels are not negative."""
    check_bounds(bounds)
    low, high = bounds
    if high - low > torch.finfo(x.dtype).max:
        raise ValueError(f"bounds: got {bounds}, expected a range that {x.dtype} can hold; give the range of x")
    if len(x) == 0:
        return
    lowest, highest = x.min().item(), x.max().item()
    kept = torch.tensor(bounds, dtype=torch.float64).to(x.dtype).tolist()  # as x can hold them
    if not (min(low, kept[0]) <= lowest and highest <= max(high, kept[1])):  # true for NaN, too
        raise ValueError(
            f"x: got values from {lowest} to {highest}, expected them within bounds {bounds}; "
            "rescale x, or pass its own bounds"
        )
    if int(y.min()) < 0:
        raise ValueError(f"y: got label {int(y.min())}, expected class indices from 0; relabel")


def check_bounds(bounds: Bounds) -> None:
    """Check that a pair is the range of an input: finite, and the lower end below the higher one."""
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(f"bounds: got {bounds!r}, expected (low, high); give the range of x")
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bounds: got {bounds}, expected finite low < high; give the range of x")


def check_budget(eps: float, norm: str) -> None:
    """Check a perturbation's size and norm."""
    check_choice("norm", norm, NORMS)
    check_number("eps", eps, positive=False)


def check_sizes(eps: Tensor, y: Tensor) -> float:
    """Check sizes of perturbations, one for each label; return the largest."""
    if not eps.is_floating_point():
        raise TypeError(f"eps: got {eps.dtype}, expected a number or floating-point tensor; pass eps.float()")
    if eps.shape != y.shape:
        raise ValueError(f"eps: got shape {tuple(eps.shape)}, expected ({len(y)},); give one size per example")
    lowest, largest = (float(end) for end in eps.aminmax()) if len(eps) else (0.0, 0.0)
    if not (lowest >= 0 and math.isfinite(largest)):  # false for NaN, too
        raise ValueError(
            f"eps: got sizes from {lowest} to {largest}, expected finite numbers of at least 0; clamp them"
        )
    return largest


def check_number(name: str, value: float, *, positive: bool) -> None:
    """Check that an argument is a finite number, above zero or at least zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r}, expected a number; pass a float")
    if not _finite(value) or value < 0 or (positive and value == 0):
        expected = "above 0" if positive else "at least 0"
        raise ValueError(f"{name}: got {value}, expected a finite number {expected}; pass such a number")


def _finite(value: float) -> bool:
    """Whether a number is finite as a float, which a large int is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Check that an argument is an integer, and not below the minimum."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected an int; pass a whole number")
    if value < minimum:
        raise ValueError(f"{name}: got {value}, expected at least {minimum}; pass a larger number")


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Check that an argument is one of the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(allowed)}; choose one of these")
