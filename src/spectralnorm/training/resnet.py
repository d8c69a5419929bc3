"""Residual networks for small images: ResNet-20, and ResNet-18 with the stem that suits 32x32.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016, arXiv 1512.03385).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from spectralnorm.robustness.attacks import check_count

from .building import add_conv, check_image_shape


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and a shortcut around them that is a 1x1 convolution where the shape changes.

    Attributes:
        branch: conv1, bn1, relu, conv2, bn2.
        shortcut: The identity, or conv and bn (He et al. 2016, option B).
        relu: Of their sum.
    """

    def __init__(self, channels: int, out: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        branch: OrderedDict[str, nn.Module] = OrderedDict()
        add_conv(branch, "1", channels, out, 3, stride, batch_norm=batch_norm)
        branch["relu"] = nn.ReLU()
        add_conv(branch, "2", out, out, 3, batch_norm=batch_norm)
        around: OrderedDict[str, nn.Module] = OrderedDict()
        if stride > 1 or channels != out:
            add_conv(around, "", channels, out, 1, stride, batch_norm=batch_norm)
        self.branch = nn.Sequential(branch)
        self.shortcut = nn.Sequential(around) if around else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(branch(x) + shortcut(x)), (N, out, H / stride, W / stride)."""
        y: Tensor = self.relu(self.branch(x) + self.shortcut(x))
        return y


def resnet20(input_shape: Sequence[int], classes: int, *, batch_norm: bool = True) -> nn.Sequential:
    """Build ResNet-20: three stages of three basic blocks, of 16, 32 and 64 channels.

    The shortcuts where the shape changes are 1x1 convolutions (option B), which have a norm; the original
    CIFAR network pads with zeros there (option A).

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        batch_norm: Whether a BatchNorm follows each convolution, which then has no bias.

    Returns:
        A network from (N, C, H, W) to (N, classes), about 0.27 million weights, initialised from torch's
        global generator.

    Raises:
        ValueError: If the shape is not (C, H, W), or there are fewer than two classes.

    Reference:
        He et al. 2016, section 4.2.

    Example:
        >>> import torch
        >>> model = resnet20((1, 28, 28), classes=10)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> [name for name, _ in model.named_children()]
        ['conv', 'bn', 'relu', 'stage1', 'stage2', 'stage3', 'pool', 'flatten', 'fc']
    """
    return _resnet(input_shape, classes, (16, 32, 64), 3, batch_norm)


def resnet18(input_shape: Sequence[int], classes: int, *, batch_norm: bool = True) -> nn.Sequential:
    """Build ResNet-18 for small images: four stages of two basic blocks, of 64, 128, 256 and 512 channels.

    Its first convolution is 3x3 with stride 1 and no pooling behind it, as is usual on CIFAR; ImageNet's is 7x7
    with stride 2.

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        batch_norm: Whether a BatchNorm follows each convolution, which then has no bias.

    Returns:
        A network from (N, C, H, W) to (N, classes), about 11.17 million weights, initialised from torch's
        global generator.

    Raises:
        ValueError: If the shape is not (C, H, W), or there are fewer than two classes.

    Reference:
        He et al. 2016, table 1.

    Example:
        >>> model = resnet18((3, 32, 32), classes=10)
        >>> sum(p.numel() for p in model.parameters())
        11173962
    """
    return _resnet(input_shape, classes, (64, 128, 256, 512), 2, batch_norm)


def _resnet(
    input_shape: Sequence[int], classes: int, widths: Sequence[int], blocks: int, batch_norm: bool
) -> nn.Sequential:
    """Build stages of so many blocks; each after the first halves the image with its first convolution."""
    channels, *_ = check_image_shape(input_shape)
    check_count("classes", classes, minimum=2)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    add_conv(layers, "", channels, widths[0], 3, batch_norm=batch_norm)
    layers["relu"] = nn.ReLU()
    channels = widths[0]
    for stage, width in enumerate(widths, start=1):
        first = BasicBlock(channels, width, 1 if stage == 1 else 2, batch_norm)
        rest = [BasicBlock(width, width, 1, batch_norm) for _ in range(blocks - 1)]
        layers[f"stage{stage}"] = nn.Sequential(first, *rest)
        channels = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
