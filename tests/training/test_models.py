"""The networks that come with the library."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import spectralnorm as sn
from spectralnorm.network.graph import batchnorm_pairs
from spectralnorm.training.models import MODELS, build, small_cnn
from spectralnorm.training.resnet import resnet18, resnet20
from spectralnorm.training.vgg import vgg16

DEEP = {"resnet20": (resnet20, 21), "resnet18": (resnet18, 20), "vgg16": (vgg16, 13)}  # and their convolutions
deep = pytest.mark.parametrize("name", DEEP)


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}


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


@deep
@pytest.mark.parametrize("batch_norm", [False, True])
def test_deep_networks_take_images_and_can_be_traced(name: str, batch_norm: bool) -> None:
    factory, convs = DEEP[name]
    model = factory((3, 32, 32), 10, batch_norm=batch_norm).eval()
    assert len(convolutions(model)) == convs
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert norms == (convs if batch_norm else 0)
    assert all((conv.bias is None) == batch_norm for conv in convolutions(model).values())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    assert model(x).shape == (2, 10)
    assert batchnorm_pairs(model).keys() == (convolutions(model).keys() if batch_norm else set())


@deep
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (2, 5, 7), (1, 1, 1)])
def test_deep_networks_take_small_images(name: str, shape: tuple[int, int, int]) -> None:
    assert build(name, shape, 3).eval()(torch.rand(1, *shape)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "count"), [("resnet20", 272_474), ("resnet18", 11_173_962), ("vgg16", 14_724_042)]
)
def test_numbers_of_parameters(name: str, count: int) -> None:
    """As published: 0.27, 11.17 and 14.7 million."""
    assert sum(p.numel() for p in build(name, (3, 32, 32), 10).parameters()) == count


def test_resnets_halve_the_image_between_stages() -> None:
    model = resnet20((3, 32, 32), 10)
    names = [name for name, _ in model.named_children()]
    assert names == ["conv", "bn", "relu", "stage1", "stage2", "stage3", "pool", "flatten", "fc"]
    strided = [name for name, conv in convolutions(model).items() if conv.stride == (2, 2)]
    assert strided == [f"stage{i}.0.{part}" for i in (2, 3) for part in ("branch.conv1", "shortcut.conv")]
    assert model[:6](torch.rand(1, 3, 32, 32)).shape == (1, 64, 8, 8)
    assert resnet18((3, 32, 32), 10)[:7](torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)


def test_vgg_pools_five_times_and_is_named_as_in_the_paper() -> None:
    names = [name for name, _ in vgg16((3, 32, 32), 10, batch_norm=False).named_children()]
    assert names[:5] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert names[-6:] == ["conv5_3", "relu5_3", "pool5", "pool", "flatten", "fc"]
    assert sum(name.startswith("pool") for name in names) == 6


def test_resnet20_can_be_normalised() -> None:
    model = sn.spectral_normalize(resnet20((1, 8, 8), 10, batch_norm=False))
    loss = model(torch.rand(2, 1, 8, 8)).square().sum()
    torch.autograd.backward(loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@deep
def test_deep_networks_check_their_arguments(name: str) -> None:
    assert name in MODELS
    with pytest.raises(ValueError, match=r"input_shape: got \(8, 8\), expected \(C, H, W\)"):
        build(name, (8, 8), 10)
    with pytest.raises(ValueError, match="classes: got 1, expected at least 2"):
        build(name, (1, 8, 8), 1)
