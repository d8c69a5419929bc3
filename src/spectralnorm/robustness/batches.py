"""The data and the sizes that an evaluation and a certification take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from torch import Tensor

from .checks import check_budget, check_count

Batches = Iterable[tuple[Tensor, Tensor]]


def batches_of(data: tuple[Tensor, Tensor] | Batches, batch_size: int) -> tuple[Batches, int | None]:
    """Return the batches of a data set, and how many there are if that is known.

    Args:
        data: Inputs and labels, (N, ...) and (N,), or an iterable of such batches.
        batch_size: Examples per batch, for a pair of tensors.

    Returns:
        Both.

    Raises:
        TypeError: If it is something else.
        ValueError: If there is not one label per input.

    Example:
        >>> import torch
        >>> batches, count = batches_of((torch.zeros(5, 2), torch.zeros(5).long()), 2)
        >>> count, [len(x) for x, _ in batches]
        (3, [2, 2, 1])
    """
    check_count("batch_size", batch_size)
    pair = pair_of(data)
    if pair is not None:
        return _cut(*pair, batch_size), math.ceil(len(pair[0]) / batch_size)
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(f"data: got {outline(data)}, expected (x, y) or an iterable of such batches; pass a pair")
    return map(_pair, data), len(data) if isinstance(data, Sized) else None


def pair_of(data: tuple[Tensor, Tensor] | Batches) -> tuple[Tensor, Tensor] | None:
    """Return data that are one pair of tensors; None for batches.

    Args:
        data: As for `batches_of`.

    Returns:
        Inputs and labels, (N, ...) and (N,).

    Raises:
        ValueError: If one has no axis.

    Example:
        >>> import torch
        >>> pair_of([(torch.zeros(5, 2), torch.zeros(5).long())])
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        return None
    x, y = data
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return None
    if x.ndim == 0 or y.ndim == 0:
        raise ValueError(
            f"data: got tensors of shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (N, ...) and (N,); add "
            "a batch axis"
        )
    return x, y


def _cut(x: Tensor, y: Tensor, batch_size: int) -> Batches:
    """Cut a pair of tensors into batches."""
    if len(x) != len(y):
        raise ValueError(f"data: got {len(x)} inputs and {len(y)} labels, expected one label per input; cut one")
    starts = range(0, len(x), batch_size)
    return [(x[start : start + batch_size], y[start : start + batch_size]) for start in starts]


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Check that a batch is a pair."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"data: got a batch that is {outline(batch)}, expected a pair (x, y) of tensors")
    return batch[0], batch[1]


def sizes_of(eps: Mapping[str, Sequence[float]]) -> list[tuple[str, float]]:
    """Return every size with its norm, checked.

    Args:
        eps: Sizes of perturbations for each norm.

    Returns:
        Norms and sizes, in order.

    Raises:
        TypeError: If it is no mapping to sequences.
        ValueError: If a norm or a size is none.

    Example:
        >>> sizes_of({"l2": [0.5, 1]})
        [('l2', 0.5), ('l2', 1.0)]
    """
    if not isinstance(eps, Mapping) or any(not isinstance(sizes, Sequence) for sizes in eps.values()):
        raise TypeError(f"eps: got {eps!r}, expected a list of sizes per norm; pass for example {{'l2': [0.5]}}")
    pairs = [(norm, size) for norm, sizes in eps.items() for size in sizes]
    for norm, size in pairs:
        check_budget(size, norm)
    return [(norm, float(size)) for norm, size in pairs]


def outline(value: object) -> str:
    """Describe a value in a few words."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
