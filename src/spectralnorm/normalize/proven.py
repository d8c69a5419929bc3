"""Scaling a tensor down until the norm of its layer is proven to be at most a target."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectralnorm.bound import Bound
from spectralnorm.estimators import Certified
from spectralnorm.operators.base import Operator

__all__ = ["shrink_until_proven"]

_TRIES = 12


@torch.no_grad()
def shrink_until_proven(
    weight: Tensor, operator: Callable[[Tensor], Operator], target: float, rtol: float, name: str
) -> Bound:
    """Scale a tensor, in place, by as little as a certified norm with this tolerance asks for.

    Args:
        weight: the tensor.
        operator: the layer's map with that tensor, which the norm of the map is proportional to.
        target: what the norm is to be at most, over all input sizes.
        rtol: tolerance of the certificate; the norm ends at most about so much below the target.
        name: what errors call the layer.

    Returns:
        The last bound, with `upper <= target`.

    Raises:
        ValueError: when the target lies where the weight's dtype has no numbers left.
    """
    margin, zero = 4 * torch.finfo(weight.dtype).eps, not weight.any()  # rounding can raise the norm again
    for _ in range(_TRIES):
        with torch.autocast(weight.device.type, enabled=False):
            bound = Certified().estimate(operator(weight), None, rtol)
        if bound.upper <= target and (zero or weight.any()):
            return bound
        weight.mul_(target / max(bound.upper, target) * (1 - margin))
        margin *= 2
    raise ValueError(
        f"{name}: its norm stays at {bound.upper:.6g} where at most {target:.6g} was asked for: "
        f"its weight of dtype {weight.dtype} cannot be scaled that finely. Convert it with .float() first."
    )
