"""Layers whose norms are known, to audit."""

from __future__ import annotations

from typing import Any

from torch import nn


def blur(channels: int = 1, **options: Any) -> nn.Conv2d:
    """A convolution whose true norm is 1, and whose flattened kernel has norm 1/3."""
    conv = nn.Conv2d(channels, channels, 3, groups=channels, bias=False, **options)
    nn.init.constant_(conv.weight, 1 / 9)
    return conv


def batch_norm(channels: int, **options: Any) -> nn.BatchNorm2d:
    """With statistics of some training behind it."""
    norm = nn.BatchNorm2d(channels, **options).eval()
    if norm.running_var is not None:
        nn.init.uniform_(norm.running_var, 0.1, 2)
    return norm
