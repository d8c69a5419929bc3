"""Lipschitz rules of PyTorch's operations, in the L2 norm; importing this registers them."""

from spectralnorm.network.rules import (
    activations,
    arithmetic,
    blocks,
    linear,
    pooling,
    refused,
    resampling,
    shapes,
    statistics,
)

__all__ = [
    "activations",
    "arithmetic",
    "blocks",
    "linear",
    "pooling",
    "refused",
    "resampling",
    "shapes",
    "statistics",
]
