"""Eigenvectors of very small matrices without an eigensolver.

On a GPU a solver waits for the stream, and cuSOLVER's gives wrong vectors for batches of complex matrices
(pytorch#192483) and NaN for zeros (cupy#6539): layers of one input channel, whose energies have rank one, met NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["leading", "symmetric"]

_APART = 1e-7  # gap between eigenvalues, over their sum, below which they are taken for equal


def symmetric(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of real symmetric matrices; up to 2 x 2 in closed form.

    Args:
        matrix: (..., n, n), finite.

    Returns:
        Eigenvalues (..., n) in any order, and orthonormal eigenvectors as columns (..., n, n).
    """
    if matrix.shape[-1] == 1:
        return matrix[..., 0], torch.ones_like(matrix)
    if matrix.shape[-1] > 2:
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    mean, half = (matrix[..., 0, 0] / 2 + sign * matrix[..., 1, 1] / 2 for sign in (1, -1))
    cross = matrix[..., 0, 1]
    radius, angle = torch.hypot(half, cross), torch.atan2(cross, half) / 2
    cos, sin = angle.cos(), angle.sin()
    columns = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -1)
    return torch.stack([mean + radius, mean - radius], -1), columns


def leading(matrix: Tensor) -> Tensor:
    """Unit eigenvectors of the largest eigenvalues of Hermitian 3 x 3 matrices, in closed form.

    With eigenvalues a >= b >= c, (A - b)(A - c) has no other columns than multiples of the vector; where a = b,
    A - c has none outside the space of both.

    Args:
        matrix: (..., 3, 3) complex, positive semidefinite; its entries finite, the largest of them 0 or normal.

    Returns:
        (..., 3) in the dtype of the matrix; the first unit vector where all eigenvalues are equal.
    """
    a = matrix.to(torch.complex128)
    largest = a.diagonal(dim1=-2, dim2=-1).real.amax(-1)[..., None, None]
    a = torch.where(largest > 0, a / largest.clamp_min(torch.finfo(torch.float64).tiny), 0.0)  # no trace overflows
    trace = a.diagonal(dim1=-2, dim2=-1).real.sum(-1)[..., None, None]
    one = torch.eye(3, dtype=a.dtype, device=a.device)
    a = torch.where(trace > 0, a / trace.clamp_min(1.0), 0.0)
    rest = a - one / 3
    size = (rest.abs().square().sum((-2, -1)) / 6).sqrt()
    minors = torch.linalg.cross(rest[..., 1], rest[..., 2], dim=-1)
    half = (rest[..., 0] * minors).sum(-1).real / 2  # of the determinant
    angle = (half / size.pow(3).clamp_min(1e-300)).clamp(-1, 1).acos() / 3
    top, low = (1 / 3 + 2 * size * (angle + turn).cos() for turn in (0, 2 * math.pi / 3))
    middle = 1 - top - low
    first, second = a - middle[..., None, None] * one, a - low[..., None, None] * one
    apart, any_apart = ((top - each > _APART)[..., None, None] for each in (middle, low))
    columns = torch.where(any_apart, torch.where(apart, first @ second, second), one)
    lengths = columns.abs().square().sum(-2)
    longest = lengths.argmax(-1)[..., None, None].expand(*lengths.shape[:-1], 3, 1)
    vector = columns.gather(-1, longest)[..., 0]
    unit: Tensor = vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return unit.to(matrix.dtype)
