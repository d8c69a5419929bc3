"""An evaluation over processes: each takes every so-manieth batch, and all get the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """This process's part.

    Attributes:
        index: Of the part.
        count: How many parts there are.
        together: Whether the processes of torch.distributed have one each, and exchange what they find.
    """

    index: int = 0
    count: int = 1
    together: bool = False

    def has(self, batch: int) -> bool:
        """Whether a batch belongs to this part."""
        return batch % self.count == self.index

    def first(self, find: Callable[[], T]) -> T:
        """What the first process finds, in all of them; its error, too."""
        waits = self.together and self.index > 0
        first: T = self.all((lambda: None) if waits else find)[0]
        return first

    def all(self, find: Callable[[], T]) -> list[Any]:
        """What each process finds, in all of them; the first error that any of them meets is raised in each."""
        if not self.together:
            return [find()]
        outcome: tuple[Any, Exception | None]
        try:
            outcome = find(), None
        except Exception as error:
            outcome = None, error
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, outcome)
        for _, met in found:
            if met is not None:
                raise met
        return [value for value, _ in found]


def shard_of(given: tuple[int, int] | None) -> Shard:
    """Return the part that is asked for, or this process's where torch.distributed is initialised.

    Args:
        given: Index and count, or None.

    Returns:
        The part.

    Raises:
        ValueError: If the index does not lie in [0, count).

    Example:
        >>> shard_of((1, 4)).has(5)
        True
    """
    if given is not None:
        if (
            not isinstance(given, (tuple, list))
            or len(given) != 2
            or not all(isinstance(each, int) for each in given)
            or not 0 <= given[0] < given[1]
        ):
            raise ValueError(
                f"shard: got {given!r}, expected (index, count), 0 <= index < count; pass such a pair"
            )
        return Shard(*given)
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return Shard(distributed.get_rank(), distributed.get_world_size(), together=True)
    return Shard()
