"""Transposed convolutions: the adjoint of a convolution, cropped or extended by output_padding."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import spectralnorm as sn
from messages import check_says, complaint
from reference import dense_matrix, dense_norm, size_free_norm

TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LAYERS: list[tuple[tuple[int, ...], dict[str, Any]]] = [  # kernel, options of a layer from 4 to 2 channels
    ((3,), {}),
    ((4,), {"stride": 2, "padding": 1}),
    ((3,), {"stride": 2, "output_padding": 1, "groups": 2}),
    ((3,), {"dilation": 3, "output_padding": 2, "padding": 2}),
    ((2,), {"stride": 3, "dilation": 2, "output_padding": 2}),
    ((3, 2), {"stride": (1, 2), "padding": (1, 0), "output_padding": (0, 1)}),
    ((3, 3), {"stride": 2, "dilation": (1, 2), "groups": 2}),
    ((2, 1, 3), {"stride": (2, 1, 1), "padding": (0, 0, 1)}),
]
each_layer = pytest.mark.parametrize(("kernel", "options"), LAYERS, ids=str)


def transposed(kernel: tuple[int, ...], **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TRANSPOSED[len(kernel)](4, 2, kernel, dtype=torch.float64, **options)


@each_layer
def test_the_supremum_of_the_symbol_bounds_every_size_and_is_approached(
    kernel: tuple[int, ...], options: dict[str, Any]
) -> None:
    layer = transposed(kernel, **options)
    norm = size_free_norm(layer)
    small, large = {1: (range(1, 9), 60), 2: (range(1, 5), 14), 3: (range(1, 3), 6)}[len(kernel)]
    for size in itertools.product(small, repeat=len(kernel)):
        assert dense_norm(layer, size) <= norm * (1 + 1e-12)
    assert dense_norm(layer, (large,) * len(kernel)) >= {1: 0.99, 2: 0.95, 3: 0.8}[len(kernel)] * norm
    assert float(sn.spectral_norm(layer)) == pytest.approx(norm, rel=1e-3)


@each_layer
def test_a_raw_weight_is_the_layer(kernel: tuple[int, ...], options: dict[str, Any]) -> None:
    options = {name: value for name, value in options.items() if name != "output_padding"}
    layer, size = transposed(kernel, **options), (3,) * len(kernel)
    for kwargs in ({}, {"input_shape": size}, {"method": "flattened"}):
        raw = sn.spectral_norm(layer.weight, transposed=True, **kwargs, **options)
        assert float(raw) == float(sn.spectral_norm(layer, **kwargs))


def test_it_is_the_adjoint_of_the_convolution_with_its_weight() -> None:
    for stride, padding, dilation, n in itertools.product((1, 2, 3), (0, 1, 2), (1, 2), (3, 5)):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "bias": False}
        up, down = nn.ConvTranspose1d(3, 2, 3, **options), nn.Conv1d(2, 3, 3, **options)
        down.weight = up.weight
        (m,) = sn.as_operator(up).output_size((n,))
        torch.testing.assert_close(dense_matrix(up, (n,)), dense_matrix(down, (m,)).T)
        assert float(sn.spectral_norm(up)) == pytest.approx(float(sn.spectral_norm(down)), rel=2e-3)


def test_reads_all_by_counting() -> None:
    """Over every small layer of one channel: no output reads all taps where a stride parts them."""
    each = itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 3), (0, 1, 3), (0, 1, 2), (1, 2, 4))
    for k, stride, dilation, padding, more, n in each:
        if more >= max(stride, dilation) or (n - 1) * stride - 2 * padding + (k - 1) * dilation + 1 + more < 1:
            continue
        options = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": more}
        layer = nn.ConvTranspose1d(1, 1, k, **options)
        nn.init.ones_(layer.weight)
        reads = dense_matrix(layer, (n,)).sum(1).max()
        operator = sn.as_operator(layer)
        assert operator.reads_all((n,)) == (reads == k), (k, n, options)
        assert operator.reads_all(None) or not operator.reads_all((n,))


def test_reads_all_at_some_size_is_found_at_a_large_one() -> None:
    for k, stride, dilation in itertools.product((1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4)):
        operator = sn.as_operator(nn.ConvTranspose1d(1, 1, k, stride=stride, dilation=dilation, padding=5))
        assert operator.reads_all(None) == operator.reads_all((40,))


def test_flattened_divides_by_what_pytorch_does_and_bounds_from_below_where_some_output_reads_all() -> None:
    for options in ({"padding": 1}, {"stride": 2}, {"groups": 2}):
        layer = transposed((3, 3), **options)
        bound = sn.spectral_norm(layer, method="flattened")
        scaled = nn.utils.parametrizations.spectral_norm(transposed((3, 3), **options), n_power_iterations=500)
        ratio = layer.weight.detach().norm() / scaled.weight.detach().norm()
        assert float(bound) == pytest.approx(float(ratio), rel=1e-6)
        assert (bound.lower > 0) == (options == {"padding": 1})
        assert bound.lower <= size_free_norm(layer)


def test_an_output_padding_that_pytorch_refuses() -> None:
    layer = nn.ConvTranspose1d(1, 1, 3, stride=2, output_padding=2)
    with pytest.raises(RuntimeError, match="output padding must be smaller"):
        layer(torch.zeros(1, 1, 5))
    message = complaint(ValueError, lambda: sn.spectral_norm(layer))
    check_says(message, "output_padding=(2,)", "stride (2,)", "dilation (1,)", "expected less")


def test_a_padding_that_takes_every_output_of_a_pointwise_layer_away() -> None:
    """At stride 3 two cells make outputs x00y, of which padding leaves 00; a third makes it 00y00."""
    layer = nn.ConvTranspose1d(1, 1, 1, stride=3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 5.0)
    assert float(sn.spectral_norm(layer, input_shape=2)) == dense_norm(layer, (2,)) == 0
    assert float(sn.spectral_norm(layer, input_shape=3)) == pytest.approx(dense_norm(layer, (3,))) == 5
    assert float(sn.spectral_norm(layer)) == pytest.approx(5)
