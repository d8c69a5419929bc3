"""A certification as a table, and in sentences."""

from __future__ import annotations

from rich import box
from rich.table import Table

from spectralnorm.robustness.certification import Certification

__all__ = ["certification_summary", "certification_table"]

_NAMES = {"l2": "L2", "linf": "L∞"}


def certification_table(found: Certification) -> Table:
    """Build the table: a row for the clean images, and one per norm and size.

    Args:
        found: the certification.

    Returns:
        The table.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("changes of at most")
    table.add_column("accuracy proven, %", justify="right")
    table.add_row("none (clean accuracy)", f"{100 * found.clean_accuracy:.2f}")
    for each in found.results:
        table.add_row(f"{_NAMES[each.norm]} {each.eps:.6g}", f"{100 * each.certified_accuracy:.2f}")
    return table


def certification_summary(found: Certification) -> list[str]:
    """Say what the table rests on.

    Args:
        found: the certification.

    Returns:
        Sentences.
    """
    said = [
        f"{found.examples} test images. Lipschitz bound of the network in L2, proven: {found.lipschitz:.4g}. "
        "Sizes are in pixels from 0 to 1."
    ]
    if any(each.norm == "linf" for each in found.results):
        said.append("L∞ goes through the L2 radius over the root of the dimension, which is loose.")
    return said
