"""Spectral normalisation by power iteration on the layer itself, for `training_step.py` to compare with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PowerNormalization(nn.Module):
    """Weight / sigma, by one power iteration a step on the layer itself, at the size that it meets.

    Farnia, Zhang & Tse (ICLR 2019), as in the authors' code: y = A v, v <- A^T y, sigma = |A v|, each of unit
    length: three convolutions on one image. Their lean form keeps |A v| and y for the next step instead, which is
    the same iteration for two. The gradient goes through sigma, at a fixed v.
    """

    def __init__(self, layer: nn.Module, shape: torch.Size, *, lean: bool) -> None:
        super().__init__()
        self.shape, self.lean, self.pads = shape, lean, (0, 0)
        self.options = (layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else None
        with torch.no_grad():
            v = torch.randn(shape, device=layer.weight.device)
            y = self.image(v, layer.weight)
        if self.options is not None:  # what makes the transposed convolution's output as large as the input
            strides, paddings = self.options
            sides = zip(shape[2:], y.shape[2:], layer.weight.shape[2:], strides, paddings, strict=True)
            self.pads = tuple(n - ((m - 1) * s - 2 * p + k) for n, m, k, s, p in sides)
        self.register_buffer("v", F.normalize(v.flatten(), dim=0).view_as(v))
        self.register_buffer("y", F.normalize(y.flatten(), dim=0).view_as(y))

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
        sigma = torch.linalg.vector_norm(y)
        if self.training and self.lean:
            self.y = (y / sigma).detach()
        return weight / sigma


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x)
