"""Which Hermitian matrices are positive definite, for many at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["factorisation_rounding", "factorises"]


def factorises(panels: Iterable[Tensor], n: int, shift: float, *, by_columns: bool | None = None) -> Tensor:
    """Whether each of m matrices, plus a multiple of the identity, has a Cholesky factorisation in floating point.

    Left-looking: a panel is asked for when its turn comes, so that it is made and used in cache; most of the work
    is one batched product a panel. NaN never passes.

    On a CPU the panels are LAPACK's. On an accelerator its libraries may solve triangular systems by inverting
    blocks of the diagonal, which `factorisation_rounding` does not cover: there each column is divided by its
    pivot and taken off the others, by operations on single numbers. Products are sums in float64 either way.

    Args:
        panels: of the lower triangles (m, rows, width), real or complex; overwritten.
        n: side of the matrices.
        shift: added to their diagonals.
        by_columns: whether to do without triangular solves; None to do so on anything but a CPU.

    Returns:
        (m,) bool.
    """
    factors, passed = None, None
    start = 0
    for panel in panels:
        m, _, width = panel.shape
        stop = start + width
        if factors is None or passed is None:
            factors, passed = panel.new_empty(m, n, n), torch.ones(m, dtype=torch.bool, device=panel.device)
        panel[:, :width].diagonal(dim1=-2, dim2=-1).add_(shift)
        if start:
            panel.baddbmm_(factors[:, start:, :start], factors[:, start:stop, :start].mH, alpha=-1)
        plain = panel.device.type != "cpu" if by_columns is None else by_columns
        pivots = (_by_columns if plain else _by_lapack)(panel, factors[:, start:, start:stop])
        passed &= (pivots > 0).all(-1) & pivots.isfinite().all(-1)
        start = stop
    assert passed is not None  # noqa: S101 - a matrix has a panel
    return passed


def _by_lapack(panel: Tensor, factor: Tensor) -> Tensor:
    """Write the columns (m, rows, width) of the factor; return their pivots (m, width), NaN where it fails."""
    width = panel.shape[2]
    corner, failed = torch.linalg.cholesky_ex(panel[:, :width])
    factor[:, :width] = corner
    if panel.shape[1] > width:
        factor[:, width:] = torch.linalg.solve_triangular(corner.mH, panel[:, width:], upper=True, left=False)
    pivots: Tensor = corner.diagonal(dim1=-2, dim2=-1).real
    return pivots.where(failed[:, None] == 0, torch.nan)


def _by_columns(panel: Tensor, factor: Tensor) -> Tensor:
    """The same, one column after the other; nothing is written above the diagonal, which is never read."""
    width, pivots = panel.shape[2], []
    for j in range(width):
        pivots.append(panel[:, j, j].real.sqrt())  # NaN below 0, and then in all that follows
        parts = torch.view_as_real(panel[:, j:, j]) if panel.is_complex() else panel[:, j:, j, None]
        parts = parts / pivots[-1][:, None, None]  # real numbers: no algorithm of complex division
        column = torch.view_as_complex(parts) if panel.is_complex() else parts[..., 0]
        factor[:, j:, j] = column
        panel[:, j + 1 :, j + 1 :] -= column[:, 1:, None] * column[:, None, 1 : width - j].conj()
    return torch.stack(pivots, 1)


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
