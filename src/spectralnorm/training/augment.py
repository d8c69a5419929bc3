"""Random shifts and mirrored images, drawn from a generator of the caller's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["augmented"]

_SHIFT = 8  # a crop moves an image by up to a part of its size: 4 of 32 pixels, as is usual on CIFAR


def augmented(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image of a batch by random numbers.

    Args:
        x: (N, C, H, W).
        kind: "none", "flip", "crop" (zeros come in at the border) or "crop-flip".
        generator: on the CPU.

    Returns:
        Images of the same shape.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> augmented(x, "none", torch.Generator()) is x
        True
    """
    count, _, height, width = x.shape
    if "crop" in kind:
        most = max(1, min(height, width) // _SHIFT)
        moves = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
        padded = F.pad(x, (most,) * 4)
        rows, columns = (torch.arange(n) + move for n, move in zip((height, width), moves, strict=True))
        each = torch.arange(count)[:, None, None]
        x = padded[each, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()
    if "flip" in kind:
        mirrored = torch.rand(count, generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x
