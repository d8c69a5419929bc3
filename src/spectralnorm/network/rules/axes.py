"""Axes of a call's tensors: the first one is the batch's, and no operation may touch it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from spectralnorm.network.outward import root_up
from spectralnorm.network.rules.call import Call

__all__ = ["broadcast_factor", "check_axes", "per_axis"]


def check_axes(call: Call, axes: Any, ndim: int) -> None:
    """Raise a ValueError unless axes are given and leave out the batch's.

    Args:
        call: for the error.
        axes: a whole number or several, as the user wrote them.
        ndim: axes of the tensor that they count in.

    Raises:
        ValueError: when axis 0 is among them, or they are not known.
    """
    known: Iterable[Any] = axes if isinstance(axes, (tuple, list)) else [axes]
    if axes != 0 and all(isinstance(axis, int) for axis in known) and 0 not in [a % ndim for a in known]:
        return
    raise ValueError(
        f"{call} works along axis {axes} of {ndim}, and axis 0 holds the batch, whose inputs must not meet; "
        "expected axes from 1. Name them in the call"
    )


def per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """An option such as `kernel_size`, one number per spatial axis."""
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) if len(value) == axes else tuple(value) * axes


def broadcast_factor(call: Call, tensor: Tensor) -> float:
    """What broadcasting an input to the output's shape multiplies its length by.

    Returns:
        The root of how often each of its numbers is shown.

    Raises:
        ValueError: when the output has other axes, so that the batch would not lie on the first.
    """
    shape = call.output.shape
    if tensor.ndim != len(shape):
        raise ValueError(
            f"{call} broadcasts a tensor of shape {tuple(tensor.shape)} to {tuple(shape)}; expected as many axes, "
            "the batch first. Reshape the input, or the constant"
        )
    return root_up(math.prod(n // max(1, m) for n, m in zip(shape, tensor.shape, strict=True)))
