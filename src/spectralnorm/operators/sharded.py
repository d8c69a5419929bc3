"""Symbols whose kernels lie in parts in several processes; none of them ever holds a kernel in one piece."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectralnorm.operators.fourier import Symbol, SymbolStack, TapLayout
from spectralnorm.operators.shards import Slab, is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["ShardedStack", "ShardedSymbol", "sharded_outer", "stacked"]


@dataclass(frozen=True, eq=False)
class ShardedSymbol(Symbol):
    """K^(w) of a kernel that is dealt out: `read` and `read_adjoint` are collective, and so is what uses them.

    Attributes:
        weight: NaN in the kernel's shape, without memory: only its shape, dtype and device are to be used.
        slab: what this process holds.
    """

    slab: Slab | None = None

    @classmethod
    def of(cls, weight: Tensor, blocks: Sequence[int], layout: TapLayout) -> ShardedSymbol:
        """The symbol of a sharded weight, detached."""
        assert is_sharded(weight)  # noqa: S101 - `symbol_of` has asked
        return cls._made(Slab.of(weight, blocks), layout)

    @classmethod
    def _made(cls, slab: Slab, layout: TapLayout) -> ShardedSymbol:
        nothing = slab.local.new_full((1, 1, 1, 1), torch.nan).expand(slab.blocks)
        return cls(nothing, layout, slab=slab)

    @property
    def part(self) -> Slab:
        """What this process holds."""
        assert self.slab is not None  # noqa: S101 - None only for dataclasses' order of fields
        return self.slab

    def to(self, dtype: torch.dtype) -> Symbol:
        """The same symbol with weights of this dtype."""
        return self._made(self.part.to(dtype), self.layout)

    def largest(self) -> Tensor:
        """The largest magnitude of an entry in any process."""
        tiny = self.weight.new_full((), torch.finfo(self.weight.dtype).tiny)
        mine = self.part.local.abs().amax().maximum(tiny) if self.part.local.numel() else tiny
        return self.part.highest(mine)

    def over(self, number: Tensor) -> Symbol:
        """The symbol of the kernel over a number; in one piece where there is one row or column only."""
        slab = self.part.over(number)
        if min(self.rows, self.columns) == 1:
            return Symbol(slab.gathered(), self.layout)
        return self._made(slab, self.layout)

    def agreed(self, values: Tensor) -> Tensor:
        """The largest of the processes' values, so that all of them go the same way."""
        return self.part.highest(values.double())

    def plain(self) -> Symbol:
        """The same symbol: nothing is ever folded into a sharded weight."""
        assert self.row_scale is None  # noqa: S101
        assert self.column_scale is None  # noqa: S101
        return self

    def at(self, w: Tensor) -> Tensor:
        """Raises RuntimeError: it would gather the kernel."""
        del w
        raise _in_parts("Blocks of the symbol")

    def bilinear(self, group: int, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """Raises RuntimeError: its gradient would gather the kernel."""
        del group, u, v, w
        raise _in_parts("A derivative with respect to the weight")

    def _times_kernel(self, x: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:2], self.flat.shape[2])
        self.part.add_times_kernel(x, out)
        return self.part.summed(out)

    def _times_transpose(self, x: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:2], self.rows)
        self.part.add_times_transpose(x, out)
        return self.part.summed(out)


class ShardedStack(SymbolStack):
    """Sharded symbols side by side, dealt out over the same processes: a product sums all their shares at once."""

    parts: tuple[ShardedSymbol, ...]

    def agreed(self, values: Tensor) -> Tensor:
        """The largest of the processes' values, so that all of them go the same way."""
        return self.parts[0].agreed(values)

    def _times_kernel(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], x.shape[1], self.sizes[2])
        for part, span in zip(self.parts, self.spans, strict=True):
            part.part.add_times_kernel(x[span, :, : part.rows], out[span, :, : part.flat.shape[2]])
        return self.parts[0].part.summed(out)

    def _times_transpose(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], x.shape[1], self.sizes[1])
        for part, span in zip(self.parts, self.spans, strict=True):
            part.part.add_times_transpose(x[span, :, : part.flat.shape[2]], out[span, :, : part.rows])
        return self.parts[0].part.summed(out)


def _in_parts(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what} would gather a weight that is dealt out over processes; expected one in one piece. Gather it "
        "yourself, with weight.full_tensor() or model.unshard()."
    )


def sharded_outer(left: Tensor, right: Tensor, like: DTensor) -> DTensor:
    """The sharded left^T right, (g, k, rows) and (g, k, c_in/g * taps), dealt out like another tensor."""
    groups, _, rows = left.shape
    slab = Slab.of(like, (groups, rows, like.shape[1], math.prod(like.shape[2:])))
    share = slab.outer(left, right).view_as(like.to_local())
    mesh, placements = like.device_mesh, like.placements
    made: DTensor = type(like).from_local(share, mesh, placements, shape=like.shape, stride=like.stride())
    return made


def stacked(symbols: Sequence[Symbol]) -> SymbolStack:
    """Symbols of one layout side by side: all sharded, over the same processes, or none."""
    return (ShardedStack if isinstance(symbols[0], ShardedSymbol) else SymbolStack)(symbols)
