"""An audit as a table, plain or for rich, with notes that say what its columns mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spectralnorm.network.text_table import aligned
from spectralnorm.operators.base import Size

if TYPE_CHECKING:
    from rich.table import Table

    from spectralnorm.bound import Bound
    from spectralnorm.network.audit_result import Audit, AuditRow

__all__ = ["BATCHNORM", "rich_table", "text_table"]

BATCHNORM = " + BN"  # ends the type of a layer that a BatchNorm is folded into
PRODUCT = "product of the layers' norms"
LEGEND = (
    "PyTorch: what torch.nn.utils.parametrizations.spectral_norm divides by, the norm of the flattened kernel. "
    "True norm: of the layer itself, the supremum over all input sizes."
)
FOLDED = (
    "+: the layer above and the BatchNorm that alone reads it, as the one map they are in eval mode; the product "
    "takes that norm."
)
COPIES = (
    "*: the padding copies cells of the input, so the norm over all sizes is not one number of the kernel. Shown "
    "is that of the convolution behind the padding; the layer's own can be larger"
)
WORDS = 3  # columns at the left that hold words, not numbers


def text_table(found: Audit) -> str:
    """Write an audit as plain text.

    Args:
        found: the audit.

    Returns:
        A line per row under a heading, two where a BatchNorm is folded in, then the notes, each on a line.
    """
    lines = [_headings(found), *(line for row in found.rows for line in _lines(found, row))]
    return "\n".join([*aligned(lines, WORDS), *_notes(found)])


def rich_table(found: Audit) -> Table:
    """Build an audit's table for rich; headings of numbers go over two lines, so that 80 columns hold them.

    Args:
        found: the audit.

    Returns:
        The table, with the notes below it.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    notes = Text("\n".join(_notes(found)))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=notes)
    table.caption_justify, table.caption_style = "left", ""
    for i, heading in enumerate(_headings(found)):
        table.add_column(
            heading.replace(" ", "\n", 1),
            justify="left" if i < WORDS else "right",
            overflow="fold",
            no_wrap=i > 1,
        )
    for line in (line for row in found.rows for line in _lines(found, row)):
        table.add_row(*map(Text, line))
    return table


def _headings(found: Audit) -> list[str]:
    at_size = ["input size", "norm at it"] if found.input_shape is not None else []
    proven = ["at most"] if found.certified else []
    return ["layer", "type", "weight", "PyTorch", "true norm", *proven, "ratio", *at_size]


def _lines(found: Audit, row: AuditRow) -> list[list[str]]:
    """The cells of a layer, and below it those of the layer with the BatchNorm behind it, where that is folded."""

    def norms(bound: Bound, ratio: str) -> list[str]:
        proven = [_number(bound.upper, up=True)] if found.certified else []
        return [_number(float(bound)), *proven, ratio]

    there, at_size, blank = row.norm_at_size, [], []
    if found.input_shape is not None:
        at_size, blank = [_times(row.size or ()), "-" if there is None else _number(float(there))], ["", ""]
    kind = row.type.removesuffix(BATCHNORM)
    kind += "*" if row.padding_copies else ""
    pytorch = "-" if row.pytorch is None else _number(row.pytorch)
    start = [row.name or "(model)", kind, _times(row.weight_shape), pytorch]
    alone = [*start, *norms(row.alone, _number(row.ratio))]
    if row.batchnorm is None:
        return [[*alone, *at_size]]
    return [[*alone, *blank], [f"+ {row.batchnorm}", f"{kind}{BATCHNORM}", "", "", *norms(row.norm, ""), *at_size]]


def _notes(found: Audit) -> list[str]:
    at_most = f", at most {_number(found.product_upper, up=True)}" if found.certified else ""
    notes = [f"{PRODUCT}: {_number(found.product)}{at_most} (not a Lipschitz bound of the network)", LEGEND]
    if any(row.batchnorm for row in found.rows):
        notes.append(FOLDED)
    if any(row.padding_copies for row in found.rows):
        notes.append(COPIES + (', up to what "at most" says.' if found.certified else "."))
    if any(math.isnan(row.ratio) for row in found.rows):
        notes.append('Ratio "-": there is no kernel to flatten (BatchNorm alone), or its norm is 0.')
    if found.certified:
        notes.append("At most: proven, by a search that excludes every frequency.")
    if found.train_mode:
        notes.append(
            f"In train mode: {_listed(found.train_mode)}. There a BatchNorm divides by the statistics of each "
            "batch, which is not linear; measured is eval mode, by its running statistics."
        )
    if found.skipped:
        names = ", ".join(f"{module.name or '(model)'} ({module.type})" for module in found.skipped)
        notes.append(f"Not measured, no operator: {names}.")
    return notes


def _listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(name or "(model)" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _times(shape: Size) -> str:
    return "x".join(map(str, shape)) or "-"


def _number(value: float, *, up: bool = False) -> str:
    """Three decimals, or scientific; rounded up for an upper bound."""
    if math.isnan(value):
        return "-"
    if value and not 1e-3 <= value < 1e5:
        return f"{value:.2e}" if not up else f"{value * 1.005:.2e}"
    return f"{math.ceil(value * 1000) / 1000 if up and math.isfinite(value) else value:.3f}"
