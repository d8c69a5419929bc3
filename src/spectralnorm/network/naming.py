"""Errors that say which layer, or which call, they are of, and what another error said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["first_line", "naming"]

_NAMED = (TypeError, ValueError, MemoryError)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put a name before the message of what goes wrong with the input.

    Args:
        what: the name.

    Yields:
        Nothing.

    Example:
        >>> with naming("layer 'fc'"):
        ...     raise ValueError("it is too large")
        Traceback (most recent call last):
        ValueError: layer 'fc': it is too large
    """
    try:
        yield
    except _NAMED as error:
        kind = next(kind for kind in _NAMED if isinstance(error, kind))  # those derived take other arguments
        raise kind(f"{what}: {error}") from error


def first_line(error: Exception) -> str:
    """An error's type and the beginning of what it says, to quote in another.

    Args:
        error: any.

    Returns:
        One line.

    Example:
        >>> first_line(ValueError("it is too large"))
        'ValueError: it is too large'
    """
    said = str(error).strip().split("\n", maxsplit=1)[0]
    return f"{type(error).__name__}: {said[:120]}"
