"""The input a layer stretches most, at a size: Golub-Kahan-Lanczos on the layer and its adjoint.

Golub & Kahan (SIAM J. Numer. Anal. 1965), one-sided reorthogonalisation (Simon & Zha, SIAM J. Sci. Comput.
2000), restarted from the best Ritz vector when the basis is full.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spectralnorm.estimators.base import random_input
from spectralnorm.operators.base import Operator, Size

__all__ = ["largest_input"]

_BASIS_ENTRIES = 2**26  # of basis vectors held at once: 256 MiB in float32


@torch.no_grad()
def largest_input(
    operator: Operator, size: Size, rtol: float, max_steps: int, seed: int
) -> tuple[Tensor, dict[str, Any]]:
    """Iterate from a random input until the residual says that its norm is within rtol.

    Args:
        operator: the layer's map.
        size: the spatial size.
        rtol: relative tolerance of the norm.
        max_steps: applications of the layer and its adjoint, at most.
        seed: of the random input.

    Returns:
        The input (*input_shape,), and the steps it took and whether it has converged.
    """
    v = random_input(operator, size, torch.Generator("cpu").manual_seed(seed))
    steps, converged = 0, False
    while steps < max_steps and not converged:
        v, used, converged = _run(operator, size, v, rtol, max_steps - steps)
        steps += used
    return v[0], {"steps": steps, "converged": converged}


def _run(operator: Operator, size: Size, v: Tensor, rtol: float, most: int) -> tuple[Tensor, int, bool]:
    """One Lanczos run from v: the best Ritz vector, the steps taken, whether it has converged."""
    shape, columns = v.shape, v.numel()
    most = max(2, min(most, columns, _BASIS_ENTRIES // columns, 200))
    basis = [(v / torch.linalg.vector_norm(v).clamp_min(torch.finfo(v.dtype).tiny)).flatten()]
    alphas: list[float] = []
    betas: list[float] = []
    left = torch.zeros((), device=v.device)
    for step in range(most):
        image = operator.apply(basis[-1].reshape(shape))
        image = image - betas[-1] * left if betas else image
        alphas.append(float(torch.linalg.vector_norm(image)))
        left = image / max(alphas[-1], torch.finfo(v.dtype).tiny)
        back = operator.adjoint(left, size).flatten()
        stacked = torch.stack(basis)
        for _ in range(2):  # twice is enough (Kahan)
            back = back - stacked.T @ (stacked @ back)
        betas.append(float(torch.linalg.vector_norm(back)))
        ritz, sigma, residual = _ritz(alphas, betas)
        exhausted = betas[-1] <= 1e-7 * max(alphas)
        if residual <= rtol / 50 * sigma or exhausted or step + 1 == columns:
            return (ritz.to(stacked) @ stacked).reshape(shape), step + 1, True
        basis.append(back / betas[-1])
    return (ritz.to(stacked) @ stacked).reshape(shape), most, False


def _ritz(alphas: list[float], betas: list[float]) -> tuple[Tensor, float, float]:
    """Top right singular vector of the bidiagonal matrix, its value, and the residual of the Ritz triple."""
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64, device="cpu"))
    if len(alphas) > 1:
        matrix += torch.diag(torch.tensor(betas[:-1], dtype=torch.float64, device="cpu"), 1)
    u, s, vh = torch.linalg.svd(matrix)
    residual = betas[-1] * math.fabs(float(u[-1, 0]))
    return vh[0], float(s[0]), residual
