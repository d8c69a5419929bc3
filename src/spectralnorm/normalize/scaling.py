"""W target / sigma and its gradient, in one autograd function.

The backward needs the scaled weight, sigma and the singular vectors, never the weight itself: an optimiser
may step between two backward passes through the same graph, and both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["Direction", "scale_weight"]

_SMALLEST = 1e-30  # a norm below this is taken for zero: the weight is left as it is


class Direction:
    """The derivative of sigma with respect to the weight: U^T X in one group, zero in the others.

    Attributes:
        left: (groups, 2, rows) real and imaginary part of u, zero but in the group that attains sigma.
        right: (groups, 2, c_in/g * taps) real and imaginary part of v with the phases folded in.
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left = left
        self.right = right


def scale_weight(
    weight: Tensor, sigma: Tensor, direction: Direction | None, target: float, *, soft: bool
) -> Tensor:
    """The normalised weight: W target / sigma, or W min(1, target / sigma) when soft.

    Args:
        weight: any shape.
        sigma: 0-dim, the norm of the weight; its gradient is `direction`.
        direction: the derivative of sigma; None when no gradient is asked for.
        target: the norm to reach.
        soft: leave weights whose norm is below the target.

    Returns:
        The scaled weight, twice differentiable with respect to `weight`.
    """
    if direction is None:
        return weight * _factor(sigma, target, soft)[0]
    apply = cast("Callable[..., tuple[Tensor, Tensor]]", _Scale.apply)
    return apply(weight, sigma, direction.left, direction.right, target, soft)[0]


def _factor(sigma: Tensor, target: float, soft: bool) -> tuple[Tensor, Tensor]:
    """The scale, and whether it depends on sigma."""
    active = sigma > (target if soft else _SMALLEST)
    return torch.where(active, target / torch.where(active, sigma, 1.0), 1.0), active


class _Scale(torch.autograd.Function):
    """(W, sigma) -> (s W, sigma); the second output carries sigma's own derivative to higher orders."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, sigma: Tensor, left: Tensor, right: Tensor, target: float, soft: bool
    ) -> tuple[Tensor, Tensor]:
        scaled, sigma = weight * _factor(sigma, target, soft)[0], sigma.clone()
        ctx.target, ctx.soft = target, soft
        ctx.save_for_backward(scaled, sigma, left, right)
        return scaled, sigma

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_sigma: Tensor) -> tuple[Tensor | None, ...]:
        scaled, sigma, left, right = ctx.saved_tensors
        scale, active = _factor(sigma, ctx.target, ctx.soft)
        # d(sW) = s dW - (s W / sigma) d sigma, and d sigma = <left^T right, dW>
        along = (grad * scaled).sum(dtype=sigma.dtype)
        weight_of_direction = grad_sigma - torch.where(active, along / torch.where(active, sigma, 1.0), 0.0)
        outer = (left.mT * weight_of_direction) @ right  # (groups, rows, c_in/g * taps)
        return grad * scale + outer.to(grad.dtype).reshape(grad.shape), None, None, None, None, None
