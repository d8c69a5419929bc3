"""Uniform grids of frequencies, and what can hide between their points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectralnorm.estimators.memory import check_memory
from spectralnorm.operators.base import Size

__all__ = [
    "between_points",
    "check_grid",
    "half_grid",
    "uniform_points",
]


def check_grid(points: Size, numbers: int, block: int, device: torch.device, method: str) -> None:
    """Raise a MemoryError, before anything is allocated, where a grid does not fit.

    Args:
        points: per axis.
        numbers: held for each frequency of `half_grid` beside itself.
        block: numbers in the symbol at one of them, which are held several times over.
        device: where it is evaluated.
        method: for the message.
    """
    frequencies = math.prod(points) // 2 + 1
    check_memory(
        8 * (frequencies * (3 * len(points) + numbers) + 12 * block),
        device,
        f"method={method!r} at {frequencies} frequencies",
        "Lower points or input_shape, or use method='tracked' or 'certified', which need no grid.",
    )


def half_grid(points: Size) -> Tensor:
    """Frequencies 2 pi j / points (m, axes), one of each pair w, -w: a real kernel's norm is even in w."""
    halved = next((axis for axis, n in enumerate(points) if n > 1), None)
    counts = [n // 2 + 1 if axis == halved else n for axis, n in enumerate(points)]
    grids = [
        2 * math.pi * torch.arange(c, dtype=torch.float64, device="cpu") / n
        for c, n in zip(counts, points, strict=True)
    ]
    if not grids:
        return torch.zeros(1, 0, dtype=torch.float64, device="cpu")
    return torch.stack(torch.meshgrid(*grids, indexing="ij"), -1).reshape(-1, len(points))


def uniform_points(degrees: tuple[float, ...], points: int) -> Size:
    """A uniform grid with `points` an axis, one where the degree is 0; more where that leaves too little margin.

    With 8 points for a degree of 1, `between_points` gives at most 1.083 an axis.

    Returns:
        The number of points per axis.
    """
    return tuple(max(points, math.ceil(8 * d)) if d else 1 for d in degrees)


def between_points(degrees: tuple[float, ...], points: Size) -> float:
    """By how much a symbol, or one entry of it, exceeds its maximum over a uniform grid at most.

    Bernstein-Szego: the supremum is at most that maximum over the product of cos(pi d_a / N_a), N_a > 2 d_a
    (`MATHS.md`, section 3).

    Returns:
        The factor, at least 1.
    """
    cosines = (math.cos(math.pi * d / n) for d, n in zip(degrees, points, strict=True))
    return 1 / math.prod(cosines)
