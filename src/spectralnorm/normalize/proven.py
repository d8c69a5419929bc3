"""Scaling a weight down until its layer's norm is proven to be at most a target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectralnorm.bound import Bound
from spectralnorm.measure import spectral_norm

__all__ = ["shrink_until_proven"]

_TRIES = 12


@torch.no_grad()
def shrink_until_proven(layer: nn.Module, weight: Tensor, target: float, rtol: float) -> Bound:
    """Scale the weight, in place, by as little as a certified norm with this tolerance asks for.

    Args:
        layer: the layer, which reads `weight`.
        weight: its weight.
        target: what the norm is to be at most, over all input sizes.
        rtol: tolerance of the certificate; the norm ends at most about so much below the target.

    Returns:
        The last bound, with `upper <= target`.

    Raises:
        ValueError: when the target lies where the weight's dtype has no numbers left.
    """
    margin = 4 * torch.finfo(weight.dtype).eps  # rounding the scaled weight can raise the norm again
    for _ in range(_TRIES):
        bound = spectral_norm(layer, certified=True, rtol=rtol)
        if bound.upper <= target:
            return bound
        weight.mul_(target / bound.upper * (1 - margin))
        margin *= 2
    raise ValueError(
        f"the norm of {type(layer).__name__} stays at {bound.upper:.6g} where at most {target:.6g} was asked for: "
        f"its weight of dtype {weight.dtype} cannot be scaled that finely. Convert it with .float() first."
    )
