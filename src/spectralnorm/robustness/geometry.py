"""Balls around inputs: steps in them, random points of them, and the way back into them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import Bounds


def project(candidate: Tensor, x: Tensor, eps: float | Tensor, norm: str, bounds: Bounds) -> Tensor:
    """Bring each candidate within eps of its clean input, then within the bounds.

    In half precision, where rounding could carry a point far out of the ball, as `rounded_inward` does.

    Args:
        candidate: Points to move, (N, ...).
        x: Clean inputs within the bounds, shaped as `candidate`.
        eps: Largest perturbation of an example, or (N, 1, ...) of each.
        norm: "linf" or "l2".
        bounds: Lowest and highest value of an input.

    Returns:
        Points within eps of x, up to rounding, and within the bounds, shaped as x.

    Example:
        >>> project(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0, "l2", (0.0, 0.7))
        tensor([[0.6000, 0.7000]])
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        return rounded_inward(candidate, x, eps, norm, bounds)
    delta = candidate - x
    if norm == "linf":
        delta = delta.clamp(-eps, eps)  # type: ignore[arg-type]
    else:
        length = lengths(delta)
        delta = torch.where(length > eps, delta * (eps / length), delta)
    return (x + delta).clamp(*bounds)


def rounded_inward(candidate: Tensor, x: Tensor, eps: float | Tensor, norm: str, bounds: Bounds) -> Tensor:
    """Project in float64, and round each entry toward its clean input: within eps in the dtype of x, too.

    Args:
        candidate: Points to move, (N, ...).
        x: Clean inputs within the bounds, shaped as `candidate`.
        eps: Largest perturbation of an example, or (N, 1, ...) of each.
        norm: "linf" or "l2".
        bounds: Lowest and highest value of an input.

    Returns:
        Points within eps of x and within the bounds, shaped as x, in its dtype.

    Example:
        >>> x = torch.ones(1, 1, dtype=torch.bfloat16)  # the next numbers are 0.9961 and 1.0078
        >>> float(rounded_inward(x + 1, x, 0.015, "linf", (0.0, 2.0)))
        1.0078125
    """
    near, largest = x.double(), torch.finfo(x.dtype).max
    exact = project(candidate.double().clamp(-largest, largest), near, eps, norm, bounds)  # a step may overflow
    point = exact.to(x.dtype)
    host = "cpu" if x.dtype == torch.float16 else x.device  # CUDA has no nextafter for float16
    nearer = torch.nextafter(point.to(host), x.to(host)).to(x.device)
    return torch.where((point.double() - near).abs() > (exact - near).abs(), nearer, point)


def reach(x: Tensor, norm: str, bounds: Bounds) -> float:
    """Return the largest distance of two inputs shaped as one of x, (N, ...): a larger eps allows nothing more."""
    return (bounds[1] - bounds[0]) * (math.sqrt(x[0].numel()) if norm == "l2" and len(x) else 1)


def direction(gradient: Tensor, norm: str) -> Tensor:
    """Return the steepest step of length one in that norm; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    largest = gradient.abs().amax(tuple(range(1, gradient.ndim)), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, 1)  # squares of tiny gradients would underflow
    return scaled / lengths(scaled).clamp_min(1)


def noise(x: Tensor, eps: float | Tensor, norm: str, generator: torch.Generator) -> Tensor:
    """Draw perturbations uniformly from the ball of radius eps, shaped as x."""
    if norm == "linf":
        return eps * torch.empty_like(x).uniform_(-1, 1, generator=generator)
    gauss = torch.empty_like(x).normal_(generator=generator)
    uniform = torch.empty_like(lengths(x)).uniform_(generator=generator)
    return eps * uniform.pow(1 / x[0].numel()) * direction(gauss, norm)  # volume grows as radius^d


def lengths(delta: Tensor) -> Tensor:
    """Return the L2 norm of each example, (N, 1, ...); squares of large entries would overflow."""
    axes = tuple(range(1, delta.ndim))
    largest = delta.abs().amax(axes, keepdim=True).clamp_min(1)
    length: Tensor = largest * torch.linalg.vector_norm(delta / largest, dim=axes, keepdim=True)
    return length


def confined(candidate: Tensor, x: Tensor, eps: float, norm: str, bounds: Bounds) -> Tensor:
    """Bring what an attack returns within eps and the bounds; points that lie there already stay as they are.

    Args:
        candidate: What it returned, (N, ...).
        x: Clean inputs within the bounds, shaped as `candidate`.
        eps: Largest perturbation of an example.
        norm: "linf" or "l2".
        bounds: Lowest and highest value of an input.

    Returns:
        Points within eps of x and within the bounds; x itself where a value is not finite.

    Example:
        >>> confined(torch.tensor([[0.3, 9.0], [0.1, torch.nan]]), torch.zeros(2, 2), 0.5, "linf", (0.0, 1.0))
        tensor([[0.3000, 0.5000],
                [0.0000, 0.0000]])
    """
    if len(x) == 0:
        return x
    each = (-1, *[1] * (x.ndim - 1))
    candidate = torch.where(torch.isfinite(candidate).flatten(1).all(1).view(each), candidate, x)
    inside = ((candidate >= bounds[0]) & (candidate <= bounds[1])).flatten(1).all(1)
    inside &= distance(candidate, x, norm) <= eps
    return torch.where(inside.view(each), candidate, rounded_inward(candidate, x, eps, norm, bounds))


def distance(one: Tensor, other: Tensor, norm: str) -> Tensor:
    """Return how far each example lies from the other, (N,), in float64."""
    delta = (one.double() - other.double()).flatten(1)
    if norm == "linf":
        return delta.abs().amax(1)
    length: Tensor = torch.linalg.vector_norm(delta, dim=1)
    return length
