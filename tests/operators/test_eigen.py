"""Closed forms against LAPACK."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spectralnorm.operators.eigen import leading, symmetric

SPECTRA = ([1, 1, 0], [1, 1 - 1e-6, 0.5], [1, 0.999, 0.998], [1, 0, 0], [1, 1, 1], [1, 1e-12, 0], [0, 0, 0])


def with_values(values: list[float], scale: float, dtype: torch.dtype, seed: int) -> Tensor:
    """Hermitian matrices (50, n, n) of these eigenvalues, times the scale."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    vectors = torch.linalg.qr(torch.randn(50, n, n, dtype=dtype, generator=generator)).Q
    matrix = vectors @ torch.diag(torch.tensor(values, dtype=dtype)) @ vectors.mH * scale
    return (matrix + matrix.mH) / 2


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("spectrum", SPECTRA, ids=str)
def test_leading_attains_the_largest_eigenvalue(spectrum: list[float], scale: float, dtype: torch.dtype) -> None:
    seed = int(torch.randint(2**31, ()))
    matrix = with_values(spectrum, scale, dtype, seed)
    z = leading(matrix)
    eps = torch.finfo(dtype).eps
    assert z.dtype == dtype
    assert float((torch.linalg.vector_norm(z, dim=-1) - 1).abs().max()) < 4 * eps
    height = (z.conj()[..., None, :] @ matrix @ z[..., None])[..., 0, 0].real
    assert bool((height >= torch.linalg.eigvalsh(matrix)[..., -1] - 40 * eps * scale).all())


@pytest.mark.parametrize("scale", [1e-305, 1e-290, 1e300, 3.2e307])
def test_leading_at_the_ends_of_float64(scale: float) -> None:
    matrix = with_values([3, 2, 1], 1.0, torch.complex128, 0)
    z = leading(matrix * scale)
    height = (z.conj()[..., None, :] @ matrix @ z[..., None])[..., 0, 0].real
    assert bool((height >= 3 - 1e-13).all())


def test_leading_of_matrices_with_zero_rows() -> None:
    matrix = torch.zeros(3, 3, 3, dtype=torch.complex64)
    matrix[1, 2, 2], matrix[2, 0, 0] = 3, 2
    assert leading(matrix).abs().argmax(-1).tolist() == [0, 2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1.0, 1e15])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_symmetric_puts_the_matrix_together_again(n: int, scale: float, dtype: torch.dtype) -> None:
    matrix = torch.randn(50, n, n, dtype=dtype) * scale
    matrix = matrix + matrix.mT
    matrix[0] = scale * torch.eye(n)
    values, vectors = symmetric(matrix)
    whole = vectors @ torch.diag_embed(values) @ vectors.mT
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(whole, matrix, rtol=0, atol=60 * eps * scale)
    torch.testing.assert_close(
        vectors.mT @ vectors, torch.eye(n, dtype=dtype).expand(50, n, n), rtol=0, atol=20 * eps
    )
