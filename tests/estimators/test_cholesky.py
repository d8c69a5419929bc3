"""Factorisations tell definite from indefinite matrices, by LAPACK's panels and by plain columns alike."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import spectralnorm as sn
from reference import size_free_norm
from spectralnorm.estimators import search
from spectralnorm.estimators.cholesky import factorisation_rounding, factorises

SIDES = [1, 2, 31, 32, 33, 70]
either = pytest.mark.parametrize("by_columns", [False, True], ids=["panels", "columns"])


def grams(n: int, *, real: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(3, n, n + 5, dtype=torch.float64 if real else torch.complex128, generator=generator)
    return x @ x.mH


def panels(matrices: Tensor) -> list[Tensor]:
    return [matrices[:, start:, start : start + 32].clone() for start in range(0, matrices.shape[-1], 32)]


@either
@pytest.mark.parametrize("real", [False, True], ids=["complex", "real"])
@pytest.mark.parametrize("n", SIDES)
def test_factorises_tells_definite_from_indefinite(n: int, real: bool, by_columns: bool) -> None:
    gram = grams(n, real=real)
    least = torch.linalg.eigvalsh(gram)[:, 0]
    for i in range(3):
        for shift, expected in ((1e-9, False), (-1e-9, True)):
            moved = -float(least[i]) * (1 + shift)
            assert bool(factorises(panels(gram[i : i + 1]), n, moved, by_columns=by_columns)) == expected


@either
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0])
@pytest.mark.parametrize("n", SIDES)
def test_what_is_not_a_positive_matrix_never_passes(n: int, value: float, by_columns: bool) -> None:
    for place in {0, n // 2, n - 1}:
        broken = grams(n)
        broken[1, place, place] = value
        assert factorises(panels(broken), n, 0.0, by_columns=by_columns).tolist() == [True, False, True]


@either
@pytest.mark.parametrize("n", SIDES)
def test_the_rounding_is_within_its_bound(n: int, by_columns: bool) -> None:
    """Matrices on the edge: what factorises has no eigenvalue further below zero than the bound says."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        q, _ = torch.linalg.qr(torch.randn(20, n, n, dtype=torch.complex128, generator=generator))
        values = torch.rand(20, n, dtype=torch.float64, generator=generator)
        values[:, 0] = 1e-16 * torch.arange(-10, 10)
        matrix = (q * values[:, None].to(q)) @ q.mH
        matrix = (matrix + matrix.mH) / 2
        passed = factorises(panels(matrix), n, 0.0, by_columns=by_columns)
        least = torch.linalg.eigvalsh(matrix)[:, 0]
        trace = matrix.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        assert (least[passed] >= -factorisation_rounding(n) * trace[passed] - 4e-15 * n).all()


def test_certificates_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: the same interval, from the same tests."""
    weights = [torch.randn(c, c + 2, 3, 3, generator=torch.Generator().manual_seed(c)) for c in (2, 5, 40)]
    usual = [sn.spectral_norm(weight, certified=True) for weight in weights]
    monkeypatch.setattr(search, "factorises", lambda *args: factorises(*args, by_columns=True))
    for weight, before in zip(weights, usual, strict=True):
        bound = sn.spectral_norm(weight, certified=True)
        assert (bound.lower, bound.upper) == (before.lower, before.upper)
        assert bound.stats["factorisations"] == before.stats["factorisations"]
    layer = torch.nn.Conv2d(4, 2, 3)
    layer.weight.data = weights[0].clone()
    assert size_free_norm(layer) <= sn.spectral_norm(layer, certified=True).upper
