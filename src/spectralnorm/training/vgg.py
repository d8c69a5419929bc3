"""VGG16 for small images.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015,
arXiv 1409.1556).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from spectralnorm.robustness.attacks import check_count

from .building import add_conv, check_image_shape

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # configuration D


def vgg16(input_shape: Sequence[int], classes: int, *, batch_norm: bool = True) -> nn.Sequential:
    """Build VGG16 with one linear layer: 13 3x3 convolutions in five stages, each followed by a max-pool.

    As is usual on CIFAR, the three linear layers of the original, made for 224x224, are one behind a global
    average pool. A max-pool that would leave nothing of a small image is left out.

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        batch_norm: Whether a BatchNorm follows each convolution, which then has no bias.

    Returns:
        A network from (N, C, H, W) to (N, classes), about 14.7 million weights, initialised from torch's
        global generator.

    Raises:
        ValueError: If the shape is not (C, H, W), or there are fewer than two classes.

    Reference:
        Simonyan & Zisserman 2015, table 1, configuration D.

    Example:
        >>> model = vgg16((3, 32, 32), classes=10)
        >>> [name for name, _ in model.named_children()][:7]
        ['conv1_1', 'bn1_1', 'relu1_1', 'conv1_2', 'bn1_2', 'relu1_2', 'pool1']
    """
    channels, *size = check_image_shape(input_shape)
    check_count("classes", classes, minimum=2)
    smallest = min(size)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, widths in enumerate(_STAGES, start=1):
        for index, out in enumerate(widths, start=1):
            name = f"{stage}_{index}"
            add_conv(layers, name, channels, out, 3, batch_norm=batch_norm)
            layers[f"relu{name}"] = nn.ReLU()
            channels = out
        if smallest > 1:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
            smallest //= 2
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
