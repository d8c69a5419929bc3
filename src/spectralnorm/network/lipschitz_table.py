"""Where a network's Lipschitz bound comes from: its calls, and what each adds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NodeBound", "NodeTable"]


@dataclass(frozen=True)
class NodeBound:
    """One call in a network.

    Attributes:
        name: of the module, or of the call in the graph.
        operation: the module's class, or the function or method.
        constant: what its rule returned: one number for the call as a map of all its inputs together, or a
            tuple with a number per input.
        bound: Lipschitz constant of its output as a map of the network's input.
    """

    name: str
    operation: str
    constant: float | tuple[float, ...]
    bound: float


class NodeTable(tuple[NodeBound, ...]):
    """The calls in the order they are made; printing it gives a table.

    Example:
        >>> print(NodeTable([NodeBound("fc", "Linear", 2.0, 2.0), NodeBound("add", "add", (1.0, 1.0), 3.0)]))
        node  operation  constant      bound
        fc    Linear     2                 2
        add   add        1 + 1             3
    """

    __slots__ = ()

    def __str__(self) -> str:
        """A line per call under a heading."""
        lines = [("node", "operation", "constant", "bound")]
        for row in self:
            parts = row.constant if isinstance(row.constant, tuple) else (row.constant,)
            lines.append(
                (row.name, row.operation, " + ".join(f"{part:.6g}" for part in parts), f"{row.bound:.6g}")
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        widths[2:] = [max(widths[2], 12), max(widths[3], 5)]
        return "\n".join(
            f"{name:<{widths[0]}}  {what:<{widths[1]}}  {constant:<{widths[2]}}  {bound:>{widths[3]}}"
            for name, what, constant, bound in lines
        )
