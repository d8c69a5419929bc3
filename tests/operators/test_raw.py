"""Raw weights with the arguments of their convolution, against the layers that hold both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from messages import check_says, complaint
from reference import dense_norm
from spectralnorm.operators.base import Operator

TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"stride": 2, "output_padding": 1},
    {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)},
    {"stride": 3, "padding": (0, 2), "dilation": 2, "output_padding": (0, 1)},
    {"dilation": 3, "output_padding": 2},
    {"stride": 2, "padding": 2, "groups": 2, "output_padding": 1},
]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
@pytest.mark.parametrize("method", ["exact", "auto"])
def test_a_raw_transposed_weight_against_its_dense_matrix(options: dict[str, Any], method: str) -> None:
    layer = nn.ConvTranspose2d(4, 6, (3, 2), bias=False, **options)
    weight, size = layer.weight.detach(), (4, 3)
    bound = sn.spectral_norm(weight, transposed=True, input_shape=size, method=method, **options)
    assert float(bound) == pytest.approx(dense_norm(layer, size), rel=1e-3 if method == "auto" else 1e-6)
    free = sn.spectral_norm(weight, transposed=True, certified=True, **options)
    assert free.upper >= dense_norm(layer, size) * (1 - 1e-12)
    x = drawn(2, 4, *size)
    ours = sn.as_operator(weight, transposed=True, **options)
    torch.testing.assert_close(ours.apply(x), layer(x).detach())
    y = torch.randn_like(ours.apply(x))
    back = ours.adjoint(y, size)  # <A x, y> = <x, A^T y>
    torch.testing.assert_close((ours.apply(x) * y).sum(), (x * back).sum(), rtol=1e-4, atol=1e-4)


def test_output_padding_is_that_of_transposed_weights_only() -> None:
    message = complaint(TypeError, lambda: sn.as_operator(drawn(4, 4, 3), output_padding=1))
    check_says(message, "unknown argument output_padding", "output_padding if it is transposed")
    message = complaint(ValueError, lambda: sn.as_operator(drawn(4, 4, 3), transposed=True, output_padding=1))
    check_says(message, "output_padding=1", "stride (1,)", "dilation (1,)")
    message = complaint(ValueError, lambda: sn.as_operator(drawn(4, 4, 3), transposed=True, output_padding=-1))
    check_says(message, "output_padding=-1", "at least 0")
    message = complaint(TypeError, lambda: sn.as_operator(drawn(4, 4, 3), transposed=True, bias=True))
    check_says(message, "unknown argument bias", "output_padding")


def same(one: Operator, other: Operator) -> bool:
    names = ("stride", "padding", "dilation", "groups")
    mine, theirs = ([getattr(operator, name) for name in names] for operator in (one, other))
    kinds = [type(v) for value in mine[:1] + mine[2:3] for v in value]
    return mine == theirs and set(kinds) == {int} and type(mine[3]) is int


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_whole_numbers_of_numpy(kind: type) -> None:
    weight, rng = drawn(4, 2, 3, 3), kind
    plain = {"stride": 2, "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    theirs = {
        "stride": rng(2),
        "padding": (rng(1), rng(0)),
        "dilation": [rng(1), rng(2)],
        "groups": rng(2),
    }
    assert same(sn.as_operator(weight, **theirs), sn.as_operator(weight, **plain))
    more = {"output_padding": rng(1)}
    assert same(
        sn.as_operator(weight, transposed=True, **theirs, **more),
        sn.as_operator(weight, transposed=True, **plain, output_padding=1),
    )
    bound, expected = (sn.spectral_norm(weight, input_shape=(9, 9), **o) for o in (theirs, plain))
    assert float(bound) == float(expected)


@pytest.mark.parametrize("name", ["stride", "dilation", "groups", "padding"])
@pytest.mark.parametrize("value", [np.float64(1), np.bool_(True), np.int64(-1), 1.0, True, "1"])
def test_other_values_are_refused(name: str, value: Any) -> None:
    message = complaint(ValueError, lambda: sn.as_operator(drawn(4, 4, 3), **{name: value}))
    check_says(message, f"{name}={value!r}", "expected")
