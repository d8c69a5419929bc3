"""The command `spectralnorm certify`."""

from __future__ import annotations

from fractions import Fraction

__all__ = ["numbers"]


def numbers(flag: str, text: str | None) -> list[float]:
    """Read numbers, such as 0.1,8/255.

    Args:
        flag: what to call them in errors.
        text: separated by commas; None for none.

    Returns:
        The numbers.

    Raises:
        ValueError: when one is no number.

    Example:
        >>> numbers("--eps", "0.1,51/255")
        [0.1, 0.2]
    """
    try:
        return [float(Fraction(part.strip())) for part in text.split(",")] if text is not None else []
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{flag}: got {text!r}, expected numbers such as 0.1 or 8/255,16/255; correct it"
        ) from None
