"""Learning rates over a run, and seeds that depend on nothing but the run's seed and the step."""

from __future__ import annotations

import hashlib
import math

__all__ = ["rate", "seed_of"]


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate of a step, as a share of the largest one.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: steps in which the rate rises linearly.
        schedule: "cosine", to 0 at the end of the run (Loshchilov & Hutter 2017, without restarts), or "constant".

    Returns:
        A number in (0, 1].

    Example:
        >>> [round(rate(step, 6, 2, "cosine"), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant" or steps <= warmup:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def seed_of(seed: int, *parts: int | str) -> int:
    """A seed for one purpose at one step: a resumed run draws the same numbers, with no generator to save.

    Args:
        seed: of the run.
        parts: what it is for, and when.

    Returns:
        63 bits.

    Example:
        >>> seed_of(0, "order", 1) == seed_of(0, "order", 1) != seed_of(0, "order", 2)
        True
    """
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
