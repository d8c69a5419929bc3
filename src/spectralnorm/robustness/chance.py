"""What chance allows: an interval of an accuracy, and tests of paired outcomes and of a share."""

from __future__ import annotations

import math

CONFIDENCE = 1.959963984540054  # standard deviations of a normal variable that hold 95 %


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the Wilson interval of a share, 95 %.

    Args:
        successes: From 0 to `trials`.
        trials: How many there were; without any, the share may be anything.

    Returns:
        Its ends, within [0, 1].

    Reference:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.

    Example:
        >>> tuple(round(end, 3) for end in wilson(9, 10))
        (0.596, 0.982)
    """
    if trials == 0:
        return 0.0, 1.0
    share, z = successes / trials, CONFIDENCE
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else max(0.0, (middle - half) / scale)
    high = 1.0 if successes == trials else min(1.0, (middle + half) / scale)
    return low, high


def more_than_chance(more: int, less: int, level: float = 0.01) -> bool:
    """Say whether paired outcomes differ by more than chance: McNemar's exact test, one-sided.

    Args:
        more: Pairs in which only the first of two things happened.
        less: Pairs in which only the second did.
        level: Of the test.

    Returns:
        Whether so many of one kind, or more, would come up with at most that probability if both were equally
        likely.

    Reference:
        McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.

    Example:
        >>> more_than_chance(10, 1), more_than_chance(6, 4)
        (True, False)
    """
    pairs = more + less
    if more <= less:
        return False
    if pairs > 1000:  # normal, with the continuity correction: the exact sum would overflow a float
        return 0.5 * math.erfc((more - less - 1) / math.sqrt(2 * pairs)) <= level
    return float(sum(math.comb(pairs, k) for k in range(more, pairs + 1))) <= level * 2.0**pairs


def exceeds(count: int, trials: int, share: float, level: float = 0.01) -> bool:
    """Say whether a count is more than a share allows by chance: the exact binomial test, one-sided.

    Args:
        count: From 0 to `trials`.
        trials: How many there were.
        share: From 0 to 1, of the trials that would be expected at most.
        level: Of the test.

    Returns:
        Whether so many, or more, would come up with at most that probability if each trial counted with the
        probability `share`.

    Example:
        >>> exceeds(1, 88, 0.002), exceeds(3, 88, 0.002)
        (False, True)
    """
    if count == 0 or share >= 1:
        return False
    if share <= 0:
        return True
    log_tails = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(share)
        + (trials - k) * math.log1p(-share)
        for k in range(count, trials + 1)
    )
    return math.fsum(map(math.exp, log_tails)) <= level
