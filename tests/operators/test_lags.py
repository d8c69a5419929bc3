"""The height of a vector over all frequencies, as one polynomial."""

from __future__ import annotations

import math

import pytest
import torch

from spectralnorm.operators import lags
from spectralnorm.operators.symbols import conv_symbol

KERNELS = [
    ((5,), (1,)),
    ((4, 3), (1, 1)),
    ((5, 4), (2, 1)),
    ((3, 3), (4, 2)),
    ((2, 3, 2), (1, 2, 1)),
    ((1, 6), (1, 3)),
]


@pytest.mark.parametrize("large", [False, True], ids=["pairs", "transforms"])
@pytest.mark.parametrize(("kernel", "stride"), KERNELS, ids=str)
def test_the_polynomial_is_the_squared_height(
    kernel: tuple[int, ...], stride: tuple[int, ...], large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lags, "_LARGE", 0 if large else math.inf)
    monkeypatch.setattr(lags, "_NUMBERS", 500)  # in several parts
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 2, *kernel, dtype=torch.float64, generator=generator)
    symbol = conv_symbol(weight, 2, stride, (1,) * len(kernel))
    x = torch.randn(2, 4, 3, dtype=torch.complex128, generator=generator)
    w = 2 * math.pi * torch.rand(2, 4, len(kernel), dtype=torch.float64, generator=generator)
    images, of = symbol.read_adjoint(x), lags.lags_of(symbol.layout, torch.float64)
    squares = symbol.unfold(images, symbol.layout.phases(w)).abs().square().sum((-2, -1))
    torch.testing.assert_close(of.height(of.coefficients(images), w), squares)
