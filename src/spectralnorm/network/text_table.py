"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned"]


def aligned(lines: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lay out lines of cells in columns, the first line as a heading with a rule below it.

    Args:
        lines: of equally many cells.
        words: columns at the left that hold words, not numbers.

    Returns:
        The lines, and the rule.

    Example:
        >>> aligned([("layer", "norm"), ("conv1", "1.00")], words=1)
        ['layer  norm', '-----------', 'conv1  1.00']
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [table[0], "-" * (sum(widths) + 2 * len(widths) - 2), *table[1:]]
