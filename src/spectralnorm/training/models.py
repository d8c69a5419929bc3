"""The networks that come with the library, by name, and the smallest of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from spectralnorm.robustness.attacks import check_count

from .building import check_image_shape
from .resnet import resnet18, resnet20
from .vgg import vgg16


def small_cnn(
    input_shape: Sequence[int], classes: int, *, width: int = 32, batch_norm: bool = False
) -> nn.Sequential:
    """Build a CNN of three 3x3 convolutions (zero padding, strides 1, 2, 2) and two linear layers.

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        width: Channels of the first convolution; the next two have twice as many.
        batch_norm: Whether a BatchNorm follows each convolution, which then has no bias.

    Returns:
        A network from (N, C, H, W) to (N, classes), initialised from torch's global generator.

    Example:
        >>> import torch
        >>> model = small_cnn((1, 8, 8), classes=10)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> [name for name, _ in model.named_children()][:4]
        ['conv1', 'relu1', 'conv2', 'relu2']
    """
    channels, height, width_in = check_image_shape(input_shape)
    check_count("classes", classes, minimum=2)
    check_count("width", width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (out, stride) in enumerate([(width, 1), (2 * width, 2), (2 * width, 2)], start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, out, 3, stride, padding=1, bias=not batch_norm)
        if batch_norm:
            layers[f"bn{index}"] = nn.BatchNorm2d(out)
        layers[f"relu{index}"] = nn.ReLU()
        channels = out
    features = channels * _quarter(height) * _quarter(width_in)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(features, 4 * width)
    layers["relu4"] = nn.ReLU()
    layers["fc2"] = nn.Linear(4 * width, classes)
    return nn.Sequential(layers)


MODELS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "small-cnn": small_cnn,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "vgg16": vgg16,
}


def build(name: str, input_shape: Sequence[int], classes: int) -> nn.Module:
    """Build a network by the name of its architecture, with that architecture's defaults.

    Args:
        name: A key of `MODELS`: "small-cnn", "resnet20", "resnet18" or "vgg16".
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits.

    Returns:
        A network from (N, C, H, W) to (N, classes).

    Raises:
        ValueError: If there is no architecture of that name.

    Example:
        >>> len(build("small-cnn", (1, 28, 28), classes=10))
        10
    """
    if name not in MODELS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(MODELS)}; choose one of these")
    return MODELS[name](input_shape, classes)


def _quarter(size: int) -> int:
    """Return the size left by two 3-wide convolutions with stride 2 and padding 1."""
    return (size + 3) // 4
