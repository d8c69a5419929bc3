"""Which Hermitian matrices are positive definite, for many at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["factorisation_rounding", "factorises"]


def factorises(panels: Iterable[Tensor], n: int, shift: float) -> Tensor:
    """Whether each of m matrices, plus a multiple of the identity, has a Cholesky factorisation in floating point.

    Left-looking: a panel is asked for when its turn comes, so that it is made and used in cache; most of the work
    is one batched product a panel. NaN never passes.

    Args:
        panels: of the lower triangles (m, rows, width), real or complex; overwritten.
        n: side of the matrices.
        shift: added to their diagonals.

    Returns:
        (m,) bool.
    """
    start, factors, passed = 0, torch.empty(0), torch.empty(0)
    for panel in panels:
        m, _, width = panel.shape
        stop = start + width
        if not start:
            factors, passed = panel.new_empty(m, n, n), torch.ones(m, dtype=torch.bool, device=panel.device)
        panel[:, :width].diagonal(dim1=-2, dim2=-1).add_(shift)
        if start:
            panel.baddbmm_(factors[:, start:, :start], factors[:, start:stop, :start].mH, alpha=-1)
        corner, failed = torch.linalg.cholesky_ex(panel[:, :width])
        pivots = corner.diagonal(dim1=-2, dim2=-1).real
        passed &= (failed == 0) & (pivots > 0).all(-1) & pivots.isfinite().all(-1)
        if stop < n:
            factors[:, start:stop, start:stop] = corner
            below = torch.linalg.solve_triangular(corner.mH, panel[:, width:], upper=True, left=False)
            factors[:, stop:, start:stop] = below
        start = stop
    return passed


def factorisation_rounding(n: int) -> float:
    """By how much a matrix that factorises can fail to be positive, in units of its trace.

    The computed factor is that of A + E with |E| <= sqrt(8) (n + 2) u |R^H| |R| (Higham 2002, theorem 10.3, with
    his constants of complex arithmetic), and || |R^H| |R| || <= trace(A) up to the same rounding.

    Args:
        n: side of the matrix.

    Returns:
        2 sqrt(2) (n + 2) u, and a little for the second order.
    """
    return 2.83 * (n + 2) * 2.0**-53 * (1 + 1e-6)
