"""The networks that come with the library."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectralnorm.training.models import build, small_cnn


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 7), (1, 1, 1)])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_small_cnn_takes_any_image(shape: tuple[int, int, int], batch_norm: bool) -> None:
    model = small_cnn(shape, 7, width=3, batch_norm=batch_norm)
    assert model(torch.rand(4, *shape)).shape == (4, 7)


def test_small_cnn_has_strides_and_readable_names() -> None:
    layers = dict(small_cnn((1, 8, 8), 10, batch_norm=True).named_children())
    assert list(layers)[:6] == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2"]
    strides = [layer.stride for layer in layers.values() if isinstance(layer, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2), (2, 2)]


def test_build_by_name() -> None:
    assert build("small-cnn", (1, 28, 28), 10)(torch.rand(1, 1, 28, 28)).shape == (1, 10)
    with pytest.raises(ValueError, match="name: got 'resnet', expected one of small-cnn"):
        build("resnet", (1, 28, 28), 10)


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (((8, 8), 10), ValueError, r"input_shape: got \(8, 8\), expected \(C, H, W\)"),
        (((1, 0, 8), 10), ValueError, "input_shape: got 0, expected at least 1"),
        (((1, 8.0, 8), 10), TypeError, "input_shape: got 8.0, expected an int"),
        (((1, 8, 8), 1), ValueError, "classes: got 1, expected at least 2"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        small_cnn(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width: got 0"):
        small_cnn((1, 8, 8), 10, width=0)
