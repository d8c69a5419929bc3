"""Wide residual networks for small images: pre-activation blocks, WRN-16-4 among them.

Zagoruyko & Komodakis, "Wide Residual Networks" (BMVC 2016, arXiv 1605.07146); the blocks are those of He, Zhang,
Ren & Sun, "Identity Mappings in Deep Residual Networks" (ECCV 2016, arXiv 1603.05027).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from spectralnorm.robustness.attacks import check_count

from .building import check_image_shape, he_conv


class PreActivationBlock(nn.Module):
    """A BatchNorm and a ReLU before each of two 3x3 convolutions, and a shortcut around them.

    bn2 alone reads conv1 and folds into it. bn1 reads what came before the block, most often a sum, which is no
    convolution to fold into.

    Attributes:
        before: bn1, relu1.
        branch: conv1, bn2, relu2, conv2.
        projects: Whether the shape changes.
        shortcut: If so, a 1x1 convolution of what `before` returns; else the identity, of the block's input.
    """

    def __init__(self, channels: int, out: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        before: OrderedDict[str, nn.Module] = OrderedDict()
        if batch_norm:
            before["bn1"] = nn.BatchNorm2d(channels)
        before["relu1"] = nn.ReLU()
        branch: OrderedDict[str, nn.Module] = OrderedDict()
        branch["conv1"] = he_conv(channels, out, 3, stride, bias=not batch_norm)
        if batch_norm:
            branch["bn2"] = nn.BatchNorm2d(out)
        branch["relu2"] = nn.ReLU()
        branch["conv2"] = he_conv(out, out, 3, bias=not batch_norm)
        around: OrderedDict[str, nn.Module] = OrderedDict()
        self.projects = stride > 1 or channels != out
        if self.projects:
            around["conv"] = he_conv(channels, out, 1, stride, bias=not batch_norm)
        self.before = nn.Sequential(before)
        self.branch = nn.Sequential(branch)
        self.shortcut = nn.Sequential(around) if around else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return branch(before(x)) plus the shortcut, (N, out, H / stride, W / stride)."""
        active = self.before(x)
        y: Tensor = self.branch(active) + self.shortcut(active if self.projects else x)
        return y


def wide_resnet(
    input_shape: Sequence[int], classes: int, depth: int, widen: int, *, batch_norm: bool = True
) -> nn.Sequential:
    """Build a Wide ResNet: three stages of pre-activation blocks, of 16, 32 and 64 times `widen` channels.

    A BatchNorm stands before a convolution here, not behind it, so that not every one can be folded, by
    `spectral_normalize(model, fold_batchnorm=True)`, into a convolution in front of it. In each block bn2 folds
    into conv1. For `widen` above 1 the first block's bn1 folds into the network's first convolution. The bn1 of
    all other blocks and the last bn read the sum of a branch and a shortcut: they fold into nothing, stay
    unconstrained, and are named in a warning.

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        depth: Layers that hold weights along the branches, 6 n + 4 for stages of n blocks: 10, 16, 22, 28, ...
        widen: Factor on the channels of all stages.
        batch_norm: Whether a BatchNorm stands before each ReLU; convolutions then have no bias.

    Returns:
        A network from (N, C, H, W) to (N, classes), initialised from torch's global generator.

    Raises:
        ValueError: If the shape is not (C, H, W), there are fewer than two classes, or the depth is no 6 n + 4.

    Reference:
        Zagoruyko & Komodakis 2016, table 1, without dropout.

    Example:
        >>> import torch
        >>> model = wide_resnet((3, 32, 32), classes=10, depth=10, widen=2)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    channels, *_ = check_image_shape(input_shape)
    check_count("classes", classes, minimum=2)
    check_count("widen", widen)
    check_count("depth", depth, minimum=10)
    blocks, rest = divmod(depth - 4, 6)
    if rest:
        raise ValueError(f"depth: got {depth}, expected 6 n + 4; give one of 10, 16, 22, 28, ...")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = he_conv(channels, 16, 3, bias=not batch_norm)
    channels = 16
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
        first = PreActivationBlock(channels, width, 1 if stage == 1 else 2, batch_norm)
        others = [PreActivationBlock(width, width, 1, batch_norm) for _ in range(blocks - 1)]
        layers[f"stage{stage}"] = nn.Sequential(first, *others)
        channels = width
    if batch_norm:
        layers["bn"] = nn.BatchNorm2d(channels)
    layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)


def wrn_16_4(input_shape: Sequence[int], classes: int, *, batch_norm: bool = True) -> nn.Sequential:
    """Build WRN-16-4: three stages of two pre-activation blocks, of 64, 128 and 256 channels.

    Seven pairs fold: conv1 and bn2 inside each of the six blocks, and the network's first convolution and the bn1
    behind it. The other six BatchNorms do not, as `wide_resnet` says.

    Args:
        input_shape: Shape of one image, (C, H, W).
        classes: Number of logits, at least 2.
        batch_norm: Whether a BatchNorm stands before each ReLU; convolutions then have no bias.

    Returns:
        A network from (N, C, H, W) to (N, classes), about 2.75 million weights, initialised from torch's global
        generator.

    Raises:
        ValueError: If the shape is not (C, H, W), or there are fewer than two classes.

    Reference:
        Zagoruyko & Komodakis 2016, table 1 with N = 2 and k = 4.

    Example:
        >>> model = wrn_16_4((3, 32, 32), classes=10)
        >>> sum(p.numel() for p in model.parameters())
        2748890
    """
    return wide_resnet(input_shape, classes, 16, 4, batch_norm=batch_norm)
