"""Padding as a linear map: each cell of the padded input is zero, or a copy of a cell of the input."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MODES", "Padding", "least_size", "most_copies", "most_copies_ever", "pad", "unpad"]

Padding = tuple[tuple[int, int], ...]  # (left, right) per axis

MODES = ("zeros", "circular", "reflect", "replicate")


def pad(x: Tensor, padding: Padding, mode: str) -> Tensor:
    """Pad the trailing axes of x (batch, channels, *size)."""
    if mode == "zeros":
        return F.pad(x, [cells for both in reversed(padding) for cells in both])
    for axis, (left, right) in enumerate(padding, start=2):
        if left or right:
            x = x.index_select(axis, _source(x.shape[axis], left, right, mode, x.device))
    return x


def unpad(x: Tensor, size: tuple[int, ...], padding: Padding, mode: str) -> Tensor:
    """The adjoint of `pad`: each cell of the input sums its copies; (batch, channels, *padded) -> *size."""
    for axis, (n, (left, right)) in enumerate(zip(size, padding, strict=True), start=2):
        if mode != "zeros" and (left or right):
            shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
            x = x.new_zeros(shape).index_add_(axis, _source(n, left, right, mode, x.device), x)
        else:
            x = x.narrow(axis, left, n)
    return x


def least_size(left: int, right: int, mode: str) -> int:
    """The smallest size that PyTorch pads so: it wraps around once at most, and reflects at distinct cells."""
    more = {"circular": 0, "reflect": 1}
    return max(1, max(left, right) + more[mode]) if mode in more else 1


def most_copies(n: int, left: int, right: int, mode: str, reads: int) -> int:
    """How often the first `reads` cells of a padded axis show one cell of the input, at most."""
    if mode == "zeros":
        return 1
    return int(torch.bincount(_source(n, left, right, mode, torch.device("cpu"))[:reads]).amax())


def most_copies_ever(left: int, right: int, mode: str) -> int:
    """The same at the worst size: small inputs are copied most."""
    if mode == "circular":
        return 1 + ceil((left + right) / max(1, left, right))
    if mode == "reflect":
        return 1 + (left > 0) + (right > 0)
    return 1 + left + right if mode == "replicate" else 1


def _source(n: int, left: int, right: int, mode: str, device: torch.device) -> Tensor:
    """The input cell that each cell of a padded axis shows."""
    cell = torch.arange(-left, n + right, device=device)
    if mode == "circular":
        return cell % n
    if mode == "reflect":
        return (n - 1) - ((n - 1) - cell.abs()).abs()
    return cell.clamp(0, n - 1)
