"""LeNet-5 for small images, with ReLU or sorting activations.

LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition" (Proceedings of the
IEEE 86(11), 1998).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from spectralnorm.robustness.attacks import check_count

from .activations import activation_of, label_of
from .building import add_conv, check_image_shape

POOLS: dict[str, type[nn.AvgPool2d] | type[nn.MaxPool2d]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}


def lenet(
    input_shape: Sequence[int],
    classes: int,
    *,
    batch_norm: bool = False,
    pool: str = "average",
    activation: str = "relu",
) -> nn.Sequential:
    """Build LeNet-5: two 5x5 convolutions of 6 and 16 channels, a pool behind each, and three linear layers.

    Apart from its activation it differs from the original in its padding, which keeps the image's size, so that
    images of 8x8 still have cells to pool. (The original, made for 32x32, shrinks them; its third convolution,
    which sees all that is left, is the first linear layer.) A pool that would leave nothing of a small image is
    left out.

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        batch_norm: Whether a BatchNorm follows each convolution, which then has no bias.
        pool: "average", as in the original but without its trained factors, or "max".
        activation: "relu", "maxmin" or "groupsort".

    Returns:
        A network from (N, C, H, W) to (N, classes), initialised from torch's global generator.

    Raises:
        ValueError: If the shape is not (C, H, W), there are fewer than two classes, or no such pool or activation.

    Reference:
        LeCun et al. 1998, section II.B.

    Example:
        >>> import torch
        >>> model = lenet((1, 28, 28), classes=10)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> [name for name, _ in model.named_children()][:7]
        ['conv1', 'relu1', 'pool1', 'conv2', 'relu2', 'pool2', 'flatten']
    """
    channels, height, width = check_image_shape(input_shape)
    check_count("classes", classes, minimum=2)
    if pool not in POOLS:
        raise ValueError(f"pool: got {pool!r}, expected one of {', '.join(POOLS)}; choose one of these")
    label = label_of(activation)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, out in enumerate((6, 16), start=1):
        add_conv(layers, str(index), channels, out, 5, batch_norm=batch_norm)
        layers[f"{label}{index}"] = activation_of(activation, out)
        if min(height, width) > 1:
            layers[f"pool{index}"] = POOLS[pool](2)
            height, width = height // 2, width // 2
        channels = out
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels * height * width, 120)
    layers[f"{label}3"] = activation_of(activation, 120)
    layers["fc2"] = nn.Linear(120, 84)
    layers[f"{label}4"] = activation_of(activation, 84)
    layers["fc3"] = nn.Linear(84, classes)
    return nn.Sequential(layers)
