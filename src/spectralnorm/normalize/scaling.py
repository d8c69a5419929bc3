"""W target / sigma and its gradient, in one autograd function.

The backward needs the scaled weight, sigma and the singular vectors, never the weight itself: an optimiser
may step between two backward passes through the same graph, and both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from spectralnorm.operators.base import queued
from spectralnorm.operators.sharded import sharded_outer
from spectralnorm.operators.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Rule", "factor", "norm_of", "scale_weight"]

_SMALLEST = 1e-30  # a norm below this is taken for zero: the weight is left as it is


@dataclass(frozen=True)
class Rule:
    """What a norm is brought to.

    Attributes:
        target: the norm of the scaled layer.
        mode: "hard" scales always, "soft" only norms above the target.
        through_norm: whether gradients flow through the norm, or take it for a constant.
    """

    target: float
    mode: str = "hard"
    through_norm: bool = True

    def __str__(self) -> str:
        constant = "" if self.through_norm else ", norm taken for a constant"
        return f"target={self.target:g}, mode={self.mode!r}{constant}"


def scale_weight(weight: Tensor, sigma: Tensor, left: Tensor, right: Tensor, rule: Rule) -> Tensor:
    """The normalised weight: W target / sigma, or W min(1, target / sigma) when soft.

    The derivative of sigma with respect to the weight is left^T right in one group, zero in the others.

    Args:
        weight: any shape.
        sigma: 0-dim, the norm of the weight.
        left: (groups, 2, rows) real and imaginary part of u, zero but in the group that attains sigma.
        right: (groups, 2, c_in/g * taps) real and imaginary part of v with the phases folded in.
        rule: what to bring the norm to.

    Returns:
        The scaled weight. It may be differentiated twice with respect to `weight`, the second time at fixed
        singular vectors, as PyTorch's `spectral_norm` has it: how these turn with the weight is left out.
    """
    if not rule.through_norm:
        return weight * factor(sigma, rule)[0]
    apply = cast("Callable[..., tuple[Tensor, Tensor]]", _Scale.apply)
    return apply(weight, sigma, left, right, rule)[0]


def factor(sigma: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """What a rule multiplies by, 0-dim (which leaves the dtype of weights alone), and whether sigma matters."""
    active = sigma > (rule.target if rule.mode == "soft" else _SMALLEST)
    return torch.where(active, rule.target / torch.where(active, sigma, 1.0), 1.0), active


class _Scale(torch.autograd.Function):
    """(W, sigma) -> (s W, sigma); the second output carries sigma's own derivative to higher orders."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, sigma: Tensor, left: Tensor, right: Tensor, rule: Rule
    ) -> tuple[Tensor, Tensor]:
        scaled, sigma = weight * factor(sigma, rule)[0], sigma.clone()
        ctx.rule = rule
        ctx.save_for_backward(scaled, sigma, left, right)
        return scaled, sigma

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_sigma: Tensor) -> tuple[Tensor | None, ...]:
        scaled, sigma, left, right = ctx.saved_tensors
        scale, active = factor(sigma, ctx.rule)
        if not torch.compiler.is_compiling() and is_sharded(grad):
            return _sharded_slope(grad, grad_sigma, ctx), None, None, None, None
        # d(sW) = s dW - (s W / sigma) d sigma, and d sigma = <left^T right, dW>
        along = _inner(grad, scaled).to(sigma.dtype)
        change = grad_sigma - torch.where(active, along / torch.where(active, sigma, 1.0), 0.0)
        outer = torch.bmm((left.mT * change).to(grad.dtype), right.to(grad.dtype)).reshape(grad.shape)
        if _is_plain(grad):  # one pass over memory less
            return outer.add_(grad, alpha=float(scale)), None, None, None, None
        return grad * scale + outer, None, None, None, None


def _sharded_slope(grad: DTensor, grad_sigma: Tensor, ctx: Any) -> Tensor:
    """The same of a weight that is dealt out over processes, by shards."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "A sharded weight that is read outside the forward pass can be differentiated once; expected no "
            "create_graph. Read it in the forward pass, or from the gathered model."
        )
    scaled, sigma, left, right = ctx.saved_tensors
    scale, active = factor(sigma, ctx.rule)
    grad = grad.redistribute(placements=scaled.placements)
    along = (grad * scaled).sum().full_tensor().to(sigma.dtype)
    change = grad_sigma - torch.where(active, along / torch.where(active, sigma, 1.0), 0.0)
    outer = sharded_outer((left * change).to(grad.dtype), right.to(grad.dtype), grad)
    return grad * scale + outer


def _is_plain(grad: Tensor) -> bool:
    """Whether nobody will differentiate this again, compile it, or wait for a GPU."""
    return not queued(grad.device) and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of products, in at least float32; without a temporary where that is possible."""
    if a.dtype == b.dtype and a.dtype in (torch.float32, torch.float64):
        return torch.dot(a.reshape(-1), b.reshape(-1))
    return (a * b).sum(dtype=torch.float32)


def norm_of(sigma: Tensor, *slopes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Sigma, 0-dim, with its derivative: for each (tensor, left, right) left^T right, in the tensor's shape."""
    apply = cast("Callable[..., Tensor]", _Norm.apply)
    return apply(sigma, *(part for slope in slopes for part in slope))


class _Norm(torch.autograd.Function):
    """Sigma of tensors, whose derivative is known."""

    @staticmethod
    def forward(ctx: Any, sigma: Tensor, *slopes: Tensor) -> Tensor:
        ctx.save_for_backward(*slopes[1::3], *slopes[2::3])
        ctx.likes = [(tensor.shape, tensor.dtype) for tensor in slopes[::3]]
        sharded = not torch.compiler.is_compiling() and any(map(is_sharded, slopes[::3]))
        ctx.shards = [tensor.detach() for tensor in slopes[::3]] if sharded else None
        return sigma.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(ctx.likes)
        found: list[Tensor | None] = []
        if ctx.shards is not None:  # of one weight: nothing is folded into shards
            return (
                None,
                sharded_outer((saved[0] * grad).to(ctx.likes[0][1]), saved[1].to(ctx.likes[0][1]), *ctx.shards),
                None,
                None,
            )
        for (shape, dtype), left, right in zip(ctx.likes, saved[:count], saved[count:], strict=True):
            found += [torch.bmm(left.mT * grad, right).reshape(shape).to(dtype), None, None]
        return None, *found
