"""What the architectures share: the check of an image's shape, a convolution alone and with its BatchNorm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from spectralnorm.robustness.attacks import check_count


def check_image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (C, H, W) as three positive ints.

    Args:
        input_shape: Shape of one image, without the batch.

    Returns:
        The same, as a tuple.

    Raises:
        ValueError: If it is not three numbers of at least 1.

    Example:
        >>> check_image_shape([3, 32, 32])
        (3, 32, 32)
    """
    shape = tuple(input_shape)
    if len(shape) != 3:
        raise ValueError(
            f"input_shape: got {shape}, expected (C, H, W); give one image's shape, without the batch"
        )
    for size in shape:
        check_count("input_shape", size)
    return shape


def he_conv(channels: int, out: int, kernel: int, stride: int = 1, *, bias: bool) -> nn.Conv2d:
    """Build a convolution with He's initialisation.

    Args:
        channels: Input channels.
        out: Output channels.
        kernel: Size of the square kernel, odd; the padding keeps the image's size.
        stride: Along both axes.
        bias: Whether it has one, zero at first.

    Returns:
        The layer, from (N, channels, H, W) to (N, out, H / stride, W / stride), rounded up.

    Example:
        >>> he_conv(3, 8, 5, bias=False)
        Conv2d(3, 8, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), bias=False)
    """
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def add_conv(
    layers: OrderedDict[str, nn.Module],
    suffix: str,
    channels: int,
    out: int,
    kernel: int,
    stride: int = 1,
    *,
    batch_norm: bool,
) -> None:
    """Add a convolution with He's initialisation, and the BatchNorm behind it.

    Args:
        layers: Modules by name; "conv" and "bn" are added, with the suffix.
        suffix: What tells these from the other layers.
        channels: Input channels.
        out: Output channels.
        kernel: Size of the square kernel, odd; the padding keeps the image's size.
        stride: Along both axes.
        batch_norm: Whether a BatchNorm follows, so that the convolution needs no bias.

    Example:
        >>> layers = OrderedDict()
        >>> add_conv(layers, "1", 3, 8, 3, batch_norm=True)
        >>> list(layers)
        ['conv1', 'bn1']
    """
    layers[f"conv{suffix}"] = he_conv(channels, out, kernel, stride, bias=not batch_norm)
    if batch_norm:
        layers[f"bn{suffix}"] = nn.BatchNorm2d(out)
