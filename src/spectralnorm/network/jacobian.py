"""A network's Lipschitz constant from below: the norm of its Jacobian at one input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["jacobian_norm"]

_STEPS = 8


def jacobian_norm(model: nn.Module, x: Tensor) -> float:
    """The norm of the Jacobian at an input, from below.

    For every unit vector u, |J^T u| is at most the norm, and one backward pass gives it; u is moved towards the
    largest by power iteration, J v by a difference quotient, which need not be exact.

    Args:
        model: plain, in eval mode, in float64.
        x: a batch of one, float64.

    Returns:
        The largest |J^T u| that was met; 0 where it is not finite.

    Example:
        >>> linear = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        >>> linear.weight.data = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
        >>> round(jacobian_norm(linear, torch.ones(1, 2, dtype=torch.float64)), 3)
        3.0
    """
    best = 0.0
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        y = model(point)
    if not y.requires_grad:
        return 0.0
    u = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(y.device)
    for _ in range(_STEPS):
        length = float(u.norm())
        if not (math.isfinite(length) and length > 0):
            break
        (v,) = torch.autograd.grad(y, point, u / length, retain_graph=True)
        found = float(v.norm())
        if not (math.isfinite(found) and found > 0):
            break
        best = max(best, found)
        step = 1e-6 * max(1.0, float(x.norm())) / found
        with torch.no_grad():
            u = (model(x + step * v) - y.detach()) / step
    return best
