"""The norm at a size without closed form: Golub-Kahan-Lanczos on the layer and its adjoint.

Golub & Kahan (SIAM J. Numer. Anal. 1965), one-sided reorthogonalisation (Simon & Zha, SIAM J. Sci. Comput.
2000), restarted from the best Ritz vector when the basis is full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectralnorm.bound import Bound
from spectralnorm.estimators.base import Estimator, check_counts, layer_bound, random_input
from spectralnorm.operators.base import Operator, Size

__all__ = ["MatrixFree"]

_BASIS_ENTRIES = 2**26  # of basis vectors held at once: 256 MiB in float32


@dataclass(frozen=True)
class MatrixFree(Estimator):
    """From below, to rtol; what `auto` uses at a size without closed form.

    Attributes:
        max_steps: applications of the layer and its adjoint, at most.
        seed: of the random starting vector.
    """

    name: ClassVar[str] = "matrix-free"
    max_steps: int = 600
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(max_steps=self.max_steps)

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Iterate until the residual says that the norm is within rtol."""
        if size is None:
            raise ValueError(
                "the matrix-free method works at a size: expected input_shape, got None. "
                "Give the spatial size, such as (32, 32)."
            )
        with torch.no_grad():
            generator = torch.Generator("cpu").manual_seed(self.seed)
            v = random_input(operator, size, generator)
            steps, converged = 0, False
            while steps < self.max_steps and not converged:
                v, used, converged = _run(operator, size, v, rtol, self.max_steps - steps)
                steps += used
        return layer_bound(operator, v[0], self.name, {"steps": steps, "converged": converged})


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
