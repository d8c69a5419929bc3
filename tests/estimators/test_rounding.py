"""What rounding can hide: ends at the limits of float64, and float32 products that PyTorch may round further."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import spectralnorm as sn
from spectralnorm.estimators.rounding import float32_is_whole, rescaled_back

TINY = 2.0**-1074  # the smallest subnormal number

# ---------------------------------------------------------------------- subnormal and huge weights


def encloses(bound: sn.Bound, square: Fraction) -> bool:
    """Whether the interval holds the root of a number, in exact arithmetic."""
    above = bound.upper == float("inf") or Fraction(bound.upper) ** 2 >= square
    return Fraction(bound.lower) ** 2 <= square and above


@pytest.mark.parametrize("value", [TINY, 3 * TINY, 1e-318, 3e-310, 2.0**-1022, 1e-300, 1e300])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("method", ["exact", sn.Exact(dtype=torch.float32), "flattened", "tracked", "certified"])
def test_ends_of_tiny_and_huge_weights_lie_outwards(value: float, n: int, method: Any) -> None:
    square = n * Fraction(value) ** 2
    row = torch.full((1, n), value, dtype=torch.float64)
    for bound in (
        sn.spectral_norm(row, method=method),
        sn.spectral_norm(row[None], stride=n, method=method),
        sn.spectral_norm(row[:, :, None], input_shape=3, method=method),
    ):
        assert encloses(bound, square)


@pytest.mark.parametrize("value", [TINY, 1e-318, 1e-300, 1e300])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_ends_of_a_dense_matrix_lie_outwards(value: float, n: int) -> None:
    """At a size without closed form: every window of n cells once."""
    bound = sn.spectral_norm(
        torch.full((1, 1, n), value, dtype=torch.float64), stride=n, input_shape=2 * n, method="exact"
    )
    assert encloses(bound, n * Fraction(value) ** 2)


@pytest.mark.parametrize("method", ["exact", "flattened"])
def test_a_norm_beyond_the_largest_number_is_not_below_the_lower_end(method: str) -> None:
    row = torch.full((1, 100), 1.7e308, dtype=torch.float64)
    bound = sn.spectral_norm(row, method=method)
    assert bound.lower <= sys.float_info.max
    assert bound.upper == float("inf")


def test_bounds_are_brought_back_outwards() -> None:
    assert rescaled_back(0.0, 2.0**-1022, up=True) == 0
    assert rescaled_back(1e-20, 2.0**-1022, up=True) == TINY
    assert rescaled_back(1e-20, 2.0**-1022, up=False) == 0
    assert rescaled_back(1.5, 2.0**-1022, up=True) == 1.5 * 2.0**-1022
    assert rescaled_back(4.0, 2.0**1022, up=False) == sys.float_info.max
    assert rescaled_back(4.0, 2.0**1022, up=True) == float("inf")


# ---------------------------------------------------------------------- reduced float32


@pytest.fixture(params=["high", "medium"])
def reduced(request: pytest.FixtureRequest) -> Iterator[None]:
    """Float32 products in TF32 or bfloat16, where the machine has them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("reduced")
@pytest.mark.parametrize("options", [{}, {"padding": 1, "input_shape": (6, 6)}], ids=["size-free", "dense"])
@pytest.mark.parametrize("estimator", [sn.Exact, sn.Gram])
def test_they_are_not_relied_on(estimator: Any, options: dict[str, Any]) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    assert not float32_is_whole()
    single, double = (
        sn.spectral_norm(weight, method=estimator(dtype=dtype), rtol=1e-2, **options)
        for dtype in (torch.float32, torch.float64)
    )
    assert (single.lower, single.upper) == (double.lower, double.upper)


def exact(weight: Tensor, dtype: torch.dtype, **options: Any) -> sn.Bound:
    return sn.spectral_norm(weight, method=sn.Exact(dtype=dtype), rtol=1e-2, **options)


@pytest.mark.parametrize("options", [{}, {"padding": 1, "input_shape": (6, 6)}], ids=["size-free", "dense"])
def test_whole_float32_is_used_and_its_rounding_stated(options: dict[str, Any]) -> None:
    assert float32_is_whole()
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    single, double = exact(weight, torch.float32, **options), exact(weight, torch.float64, **options)
    assert single.lower < double.lower
    assert double.upper < single.upper
    assert float(single) == pytest.approx(float(double), rel=1e-5)
