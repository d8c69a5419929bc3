"""Normalisations of others, to train and to compare with: power iteration on the layer, and the exact norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectralnorm.estimators.exact import Exact
from spectralnorm.measure import spectral_norm

__all__ = ["ExactNormalization", "PowerNormalization"]


class PowerNormalization(nn.Module):
    """Weight * target / sigma, by one power iteration a step on the layer itself, at the size that it meets.

    As in the code of Farnia, Zhang & Tse (ICLR 2019): y = A v, v <- A^T y, sigma = |A v|, each of unit length:
    three convolutions on one image. The lean form keeps |A v| and y for the next step instead, which is the same
    iteration for two. The gradient goes through sigma, at a fixed v.

    Args:
        layer: a Linear, or a convolution along two axes without groups and dilation, padded with zeros.
        shape: of its input, with a batch of one.
        target: the norm it gets.
        lean: see above.

    Raises:
        TypeError: for another layer.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> PowerNormalization(layer, (1, 3))(layer.weight).shape
        torch.Size([2, 3])
    """

    def __init__(self, layer: nn.Module, shape: Sequence[int], target: float = 1.0, *, lean: bool = False) -> None:
        super().__init__()
        self.target, self.lean, self.pads = target, lean, [0, 0]
        self.options = _options(layer)
        weight = layer.get_parameter("weight").detach()
        v = torch.randn(tuple(shape), device=weight.device, dtype=weight.dtype)
        y = self.image(v, weight)
        if self.options is not None:  # what makes the transposed convolution's output as large as the input
            strides, paddings = self.options
            sides = zip(shape[2:], y.shape[2:], weight.shape[2:], strides, paddings, strict=True)
            self.pads = [n - ((m - 1) * s - 2 * p + k) for n, m, k, s, p in sides]
        self.v: Tensor
        self.y: Tensor
        self.register_buffer("v", _unit(v))
        self.register_buffer("y", _unit(y))

    def image(self, v: Tensor, weight: Tensor) -> Tensor:
        """The layer, without its bias."""
        return F.linear(v, weight) if self.options is None else F.conv2d(v, weight, None, *self.options)

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        """Its transpose."""
        if self.options is None:
            return F.linear(y, weight.T)
        return F.conv_transpose2d(y, weight, None, *self.options, output_padding=self.pads)

    def forward(self, weight: Tensor) -> Tensor:
        """The scaled weight; the vectors move in train mode."""
        if self.training:
            with torch.no_grad():
                fixed = weight.detach()
                y = self.y if self.lean else _unit(self.image(self.v, fixed))
                self.v = _unit(self.adjoint(y, fixed))
        y = self.image(self.v, weight)
        sigma: Tensor = torch.linalg.vector_norm(y)
        if self.training and self.lean:
            self.y = (y / sigma).detach()
        scaled: Tensor = weight * (self.target / sigma)
        return scaled


class ExactNormalization(nn.Module):
    """Weight * target / sigma, sigma by FFT and an SVD of every frequency: exact for circular padding, and slow.

    Args:
        layer: a Linear, or a convolution, of which the padding is taken for circular.
        size: spatial size of its input; None for a Linear.
        target: the norm it gets.

    Reference:
        Sedghi, Gupta & Long, ICLR 2019 (arXiv 1805.10408).

    Example:
        >>> layer = nn.Conv2d(2, 3, 3, padding=1)
        >>> ExactNormalization(layer, (6, 6))(layer.weight).shape
        torch.Size([3, 2, 3, 3])
    """

    def __init__(self, layer: nn.Module, size: tuple[int, ...] | None, target: float = 1.0) -> None:
        super().__init__()
        self.size, self.target = size, target
        names = ("stride", "padding", "dilation", "groups")
        self.options: dict[str, Any] = {} if size is None else {name: getattr(layer, name) for name in names}
        if size is not None:
            self.options["padding_mode"] = "circular"
        self(layer.get_parameter("weight").detach())  # raises at once where the size has no closed form

    def forward(self, weight: Tensor) -> Tensor:
        """The scaled weight, in train and eval mode alike."""
        method = Exact(dtype=torch.float32)  # its faster precision
        bound = spectral_norm(weight, input_shape=self.size, method=method, **self.options)
        return weight * (self.target / bound.value)


def _options(layer: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Stride and padding of a convolution; None of a Linear."""
    if isinstance(layer, nn.Linear):
        return None
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and set(layer.dilation) == {1}
    if not plain or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise TypeError(
            f"power: got {layer}, expected a Linear or a Conv2d without groups and dilation, padded with zeros by "
            "numbers; use normalize='tracked', which takes every convolution"
        )
    conv = cast("nn.Conv2d", layer)
    return conv.stride, cast("tuple[int, ...]", conv.padding)


def _unit(x: Tensor) -> Tensor:
    unit: Tensor = x / torch.linalg.vector_norm(x)
    return unit
