"""The networks that come with the library, by name, and the smallest of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from spectralnorm.robustness.attacks import check_count

from .activations import activation_of, label_of
from .building import check_image_shape
from .imports import IMPORT_STRING, accepts, call_factory, import_attribute
from .lenet import lenet
from .lipschitz_cnn import lipschitz_cnn
from .resnet import resnet18, resnet20
from .vgg import vgg16
from .wide_resnet import wrn_16_4


def small_cnn(
    input_shape: Sequence[int],
    classes: int,
    *,
    width: int = 32,
    batch_norm: bool = False,
    activation: str = "relu",
) -> nn.Sequential:
    """Build a CNN of three 3x3 convolutions (zero padding, strides 1, 2, 2) and two linear layers.

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        width: Channels of the first convolution; the next two have twice as many.
        batch_norm: Whether a BatchNorm follows each convolution, which then has no bias.
        activation: "relu", "maxmin" or "groupsort", which need an even width.

    Returns:
        A network from (N, C, H, W) to (N, classes), initialised from torch's global generator.

    Raises:
        ValueError: If an argument is not as expected.

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
    label = label_of(activation)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (out, stride) in enumerate([(width, 1), (2 * width, 2), (2 * width, 2)], start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, out, 3, stride, padding=1, bias=not batch_norm)
        if batch_norm:
            layers[f"bn{index}"] = nn.BatchNorm2d(out)
        layers[f"{label}{index}"] = activation_of(activation, out)
        channels = out
    features = channels * _quarter(height) * _quarter(width_in)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(features, 4 * width)
    layers[f"{label}4"] = activation_of(activation, 4 * width)
    layers["fc2"] = nn.Linear(4 * width, classes)
    return nn.Sequential(layers)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "small-cnn": small_cnn,
    "lenet": lenet,
    "lipschitz-cnn": lipschitz_cnn,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "wrn-16-4": wrn_16_4,
}


def build(
    name: str, input_shape: Sequence[int], classes: int, *, batch_norm: bool | None = None, **options: Any
) -> nn.Module:
    """Build a network by the name of its architecture, or with a factory of your own.

    Args:
        name: A key of `MODELS`: "small-cnn", "lenet", "lipschitz-cnn", "vgg16", "resnet20", "resnet18" or
            "wrn-16-4". Or an import string, `package.module:factory`, of a module or of a callable that returns
            one. It is called with (input_shape, classes) if it takes two positional arguments, else with none.
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits.
        batch_norm: Whether the network has BatchNorms; None is the architecture's default. A factory of your own
            gets it as a keyword argument, unless it is None.
        options: Further keyword arguments of the architecture or the factory, such as `width` of "small-cnn".

    Returns:
        A network from (N, C, H, W) to (N, classes), as far as it is one of the library's.

    Raises:
        ValueError: If there is no architecture of that name, or nothing fit to be called at the import string.
        TypeError: If the architecture or factory has no such option.
        RuntimeError: If your own factory raises.

    Example:
        >>> len(build("small-cnn", (1, 28, 28), classes=10)), len(build("lenet", (1, 28, 28), 10, pool="max"))
        (10, 12)
        >>> build("resnet20", (1, 28, 28), classes=10, batch_norm=False).conv.bias.shape
        torch.Size([16])
    """
    if batch_norm is not None:
        options["batch_norm"] = batch_norm
    if name in MODELS:
        if not accepts(MODELS[name], input_shape, classes, **options):
            raise TypeError(_untaken(name, options))
        return MODELS[name](input_shape, classes, **options)
    if not IMPORT_STRING.fullmatch(name):
        raise ValueError(
            f"name: got {name!r}, expected {', '.join(MODELS)} or package.module:factory; choose one of these"
        )
    return _imported(name, (input_shape, classes), options)


def _imported(text: str, arguments: tuple[object, ...], options: Mapping[str, object]) -> nn.Module:
    """Return the module an import string names, or what the factory it names returns."""
    found = import_attribute(text)
    if isinstance(found, nn.Module):
        if options:
            raise TypeError(_untaken(text, options))
        return found
    if not callable(found) or not (accepts(found, *arguments) or accepts(found)):
        raise ValueError(
            f"{text}: got a {type(found).__name__}, expected a torch.nn.Module, or a callable that takes "
            "(input_shape, classes) or needs no argument, and returns one; write such a function"
        )
    for given in (arguments, ()):
        if accepts(found, *given, **options):
            return call_factory(text, found, *given, **options)
    raise TypeError(_untaken(text, options))


def _untaken(name: str, options: Mapping[str, object]) -> str:
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return (
        f"{name}: got {given}, expected only keyword arguments that it takes; leave the others out, or write a "
        "factory that takes them"
    )


def _quarter(size: int) -> int:
    """Return the size left by two 3-wide convolutions with stride 2 and padding 1."""
    return (size + 3) // 4
