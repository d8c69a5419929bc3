"""An evaluation as a table, plain or for rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectralnorm.network.text_table import aligned

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from .evaluation import Accuracy, Evaluation

HEADINGS = ("condition", "norm", "eps", "right", "accuracy, %", "95 % interval", "seconds")
WORDS = 2  # columns at the left that hold words, not numbers


def text_table(found: Evaluation) -> str:
    """Write an evaluation as plain text.

    Args:
        found: The evaluation.

    Returns:
        A line per condition under a heading, then the notes, each on a line.
    """
    lines = [list(HEADINGS), *_lines(found)]
    return "\n".join([*aligned(lines, WORDS), *notes(found)])


def rich_table(found: Evaluation) -> Table:
    """Build an evaluation's table for rich.

    Args:
        found: The evaluation.

    Returns:
        The table, without the notes.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i < WORDS else "right", overflow="fold", no_wrap=i > 0)
    for line in _lines(found):
        table.add_row(*map(Text, line))
    return table


def rich_page(found: Evaluation) -> Group:
    """Build an evaluation's table for rich, and the notes below it, as wide as the console.

    Args:
        found: The evaluation.

    Returns:
        Both.
    """
    from rich.console import Group
    from rich.text import Text

    return Group(rich_table(found), *map(Text, notes(found)))


def notes(found: Evaluation) -> list[str]:
    """Say what the table rests on, and raise the alarms.

    Args:
        found: The evaluation.

    Returns:
        Sentences.
    """
    said = [
        f"{found.examples} examples. Worst case: examples that withstand every attack of that norm and eps. Every "
        "attack's points were cut to eps and the bounds, and classified again."
    ]
    for entry in found.results:
        if entry.broken_by:
            parts = ", ".join(f"{name} {count}" for name, count in entry.broken_by.items())
            said.append(f"Broken in {entry.attack}, {entry.norm} {entry.eps:.4g}: {parts}.")
    if not found.complete:
        total = "an unknown number of" if found.batches is None else str(found.batches)
        said.append(f"Not complete: {len(found.records)} of {total} batches.")
    said += [f"ALARM: {alarm.message}." for alarm in found.alarms]
    return said


def _lines(found: Evaluation) -> list[list[str]]:
    lines = [["clean", "", "", *_cells(found.clean), ""]]
    lines += [[entry.name, "", f"severity {entry.severity}", *_cells(entry), ""] for entry in found.controls]
    for worst in found.worst_case:
        same = [entry for entry in found.results if (entry.norm, entry.eps) == (worst.norm, worst.eps)]
        for entry in [*same, worst] if len(same) > 1 else same:
            lines.append([entry.attack, entry.norm, f"{entry.eps:.4g}", *_cells(entry), f"{entry.seconds:.1f}"])
    return lines


def _cells(entry: Accuracy) -> list[str]:
    low, high = entry.interval
    return [str(entry.right), f"{100 * entry.share:.2f}", f"{100 * low:.1f} to {100 * high:.1f}"]
