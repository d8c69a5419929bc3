"""Arithmetic on upper bounds: every result is rounded up, so that what was proven stays proven."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["product_up", "root_sum_squares_up", "root_up", "sum_up", "up"]


def up(value: float) -> float:
    """The next float above a result that was rounded to the nearest one; 0 is taken as exact."""
    return math.nextafter(value, math.inf) if value else 0.0


def product_up(factors: Iterable[float]) -> float:
    """At least the product of numbers that are not negative; with a zero among them exactly 0.

    Returns:
        The product, rounded up.

    Example:
        >>> product_up([0.1] * 3) >= 0.1**3
        True
        >>> product_up([math.inf, 0.0])
        0.0
    """
    known = list(factors)
    if 0.0 in known:
        return 0.0
    total = 1.0
    for factor in known:
        total *= factor
        if factor != 1.0:
            total = math.nextafter(total, math.inf)  # also where the product underflows to 0
    return total


def sum_up(terms: Iterable[float]) -> float:
    """At least the sum of numbers that are not negative."""
    total = 0.0
    for term in terms:
        total = up(total + term) if total and term else total + term
    return total


def root_up(value: float) -> float:
    """At least the square root; exact where that is a whole number."""
    root = math.sqrt(value)
    return root if root == int(root) and root * root == value else up(root)


def root_sum_squares_up(terms: Sequence[float]) -> float:
    """At least the length of a vector; of one entry, that entry."""
    known = [term for term in terms if term]
    if len(known) <= 1:
        return sum(known)
    return math.nextafter(math.hypot(*known) * (1 + 2.0**-50), math.inf)
