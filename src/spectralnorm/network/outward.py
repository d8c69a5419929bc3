"""Arithmetic on upper bounds: exact, then rounded up once, so that what was proven stays proven."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

__all__ = ["product_up", "root_sum_squares_up", "root_up", "sum_up", "up"]


def up(value: float) -> float:
    """The next float above a result that was rounded to the nearest one; 0 is taken as exact."""
    return math.nextafter(value, math.inf) if value else 0.0


def product_up(factors: Iterable[float]) -> float:
    """The least float that is at least the product of numbers that are not negative; 0 with a zero among them.

    Returns:
        The product, rounded up.

    Example:
        >>> product_up([0.1] * 3) >= 0.1**3, product_up([2.0, 3.0])
        (True, 6.0)
        >>> product_up([math.inf, 0.0])
        0.0
    """
    known = list(factors)
    if 0.0 in known or math.inf in known:
        return 0.0 if 0.0 in known else math.inf
    return _least_float_above(math.prod(map(Fraction, known), start=Fraction(1)))


def sum_up(terms: Iterable[float]) -> float:
    """The least float that is at least the sum of numbers that are not negative."""
    known = list(terms)
    return math.inf if math.inf in known else _least_float_above(sum(map(Fraction, known), start=Fraction(0)))


def root_up(value: float) -> float:
    """A float that is at least the square root; exact where that is a float."""
    return _root(Fraction(value), math.sqrt(value))


def root_sum_squares_up(terms: Sequence[float]) -> float:
    """A float that is at least the length of a vector; exact where that is a float."""
    if math.inf in terms:
        return math.inf
    return _root(sum((Fraction(term) ** 2 for term in terms), start=Fraction(0)), math.hypot(*terms))


def _root(square: Fraction, guess: float) -> float:
    """A float whose square is at least a number, from a guess that is nearly right; as it is if it is exact."""
    below = math.nextafter(guess, 0.0)
    root = guess if Fraction(below) ** 2 < square else below
    while not math.isinf(root) and Fraction(root) ** 2 < square:
        root = math.nextafter(root, math.inf)
    return root


def _least_float_above(exact: Fraction) -> float:
    try:
        nearest = float(exact)
    except OverflowError:
        return math.inf
    return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)
