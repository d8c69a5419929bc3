"""Activations by name, for the architectures that let one choose."""

from __future__ import annotations

from torch import nn

from spectralnorm.layers.blocks import GroupSort, MaxMin

__all__ = ["ACTIVATIONS", "activation_of", "label_of"]

ACTIVATIONS = ("relu", "maxmin", "groupsort")
_GROUP = 4  # channels that groupsort sorts together, or the largest divisor of all channels below


def activation_of(name: str, channels: int) -> nn.Module:
    """Build an activation.

    Args:
        name: "relu"; "maxmin", which sorts pairs of channels; or "groupsort", which sorts groups of four, or of
            three or two where four does not divide the channels.
        channels: that it reads.

    Returns:
        A module of Lipschitz constant 1 from (N, channels, ...) to the same shape.

    Raises:
        ValueError: If there is no such activation, or the channels cannot be sorted in groups.

    Reference:
        Anil, Lucas & Grosse, "Sorting Out Lipschitz Function Approximation" (ICML 2019, arXiv 1811.05381).

    Example:
        >>> activation_of("groupsort", 6), activation_of("maxmin", 6)
        (GroupSort(3), MaxMin())
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation: got {name!r}, expected one of {', '.join(ACTIVATIONS)}; choose one of these"
        )
    if name == "relu":
        return nn.ReLU()
    group = 2 if name == "maxmin" else next((size for size in (_GROUP, 3) if channels % size == 0), 2)
    if channels % group:
        raise ValueError(
            f"activation: got {name} for {channels} channels, expected a multiple of 2; choose another width"
        )
    return MaxMin() if name == "maxmin" else GroupSort(group)


def label_of(name: str) -> str:
    """How layers of an activation are called in a network: "relu", else "sort"."""
    return "relu" if name == "relu" else "sort"
