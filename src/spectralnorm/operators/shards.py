"""The part of a kernel that one process holds, where FSDP2 or tensor parallelism has dealt it out (`DTensor`).

Products with a vector need no kernel in one piece: each process multiplies the part it has, and the small results
are summed over the processes. Everything here that sums is collective: every process must call it, in one order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Slab", "is_sharded", "stand_in"]

_Piece = tuple[slice, slice, Tensor]  # groups, rows of each, and their part (g', rows', c', taps)


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor is dealt out over processes; without importing what nobody else has imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return isinstance(tensor, getattr(module, "DTensor", ()))


def stand_in(tensor: Tensor) -> Tensor:
    """Ones in one piece, in the shape of a sharded tensor, without memory."""
    return torch.ones((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


@dataclass(frozen=True, eq=False)
class Slab:
    """Some rows of a kernel (g, rows, c_in/g, taps), counted through all groups, and of those some columns.

    Attributes:
        blocks: shape of the kernel.
        local: (rows held, columns held, taps).
        row: the first of the rows held; they may reach over several groups.
        column: the first of the columns held.
        sums: process groups over which products are summed, one after the other.
    """

    blocks: tuple[int, int, int, int]
    local: Tensor
    row: int
    column: int
    sums: tuple[distributed.ProcessGroup, ...]

    @classmethod
    def of(cls, weight: DTensor, blocks: Sequence[int]) -> Slab:
        """What this process holds of a weight (rows of all groups, columns, *kernel).

        Args:
            weight: the weight.
            blocks: (g, rows, c_in/g, taps), whose entries are the weight's in their order.

        Returns:
            The slab, detached.

        Raises:
            ValueError: for a weight that is dealt out otherwise than in runs of its first two axes.
        """
        groups, rows, columns, taps = blocks
        starts, sizes = [0, 0], [groups * rows, columns]
        sums: list[distributed.ProcessGroup] = []
        for axis, placement in enumerate(weight.placements):
            if placement.is_replicate():
                continue
            dim = getattr(placement, "dim", None)
            if type(placement).__name__ != "Shard" or dim not in (0, 1):
                raise ValueError(
                    f"The weight has placements {weight.placements}; expected Replicate, Shard(0) or Shard(1). "
                    "Gather it with full_tensor(), or shard it along its first axis."
                )
            count, rank = weight.device_mesh.size(axis), weight.device_mesh.get_local_rank(axis)
            chunk = -(-sizes[dim] // count)
            start = min(rank * chunk, sizes[dim])
            starts[dim], sizes[dim] = starts[dim] + start, min(chunk, sizes[dim] - start)
            if count > 1:
                sums.append(weight.device_mesh.get_group(axis))
        local = cast("DTensor", weight.detach()).to_local().reshape(*sizes, taps)
        return cls((groups, rows, columns, taps), local, starts[0], starts[1], tuple(sums))

    def to(self, dtype: torch.dtype) -> Slab:
        """The slab with numbers of this dtype."""
        return replace(self, local=self.local.to(dtype))

    def over(self, number: Tensor) -> Slab:
        """The slab of the kernel over a number."""
        return replace(self, local=self.local / number)

    @cached_property
    def _pieces(self) -> list[_Piece]:
        """The rows held, cut where groups begin; whole groups together."""
        rows, row, end = self.blocks[1], self.row, self.row + self.local.shape[0]
        pieces: list[_Piece] = []
        while row < end:
            group, first = divmod(row, rows)
            whole = (end - row) // rows if first == 0 else 0
            size = whole * rows or min(end - row, rows - first)
            part = self.local[row - self.row : row - self.row + size].unflatten(0, (max(whole, 1), -1))
            pieces.append((slice(group, group + max(whole, 1)), slice(first, first + part.shape[1]), part))
            row += size
        return pieces

    @property
    def _columns(self) -> slice:
        return slice(self.column, self.column + self.local.shape[1])

    def add_times_kernel(self, x: Tensor, out: Tensor) -> None:
        """Add this process's share of x @ kernel to `out`: (g, n, rows) -> (g, n, c_in/g * taps)."""
        for groups, rows, part in self._pieces:
            images = (x[groups, :, rows] @ part.flatten(2)).unflatten(2, part.shape[2:])
            out[groups].unflatten(2, self.blocks[2:])[:, :, self._columns] += images

    def add_times_transpose(self, y: Tensor, out: Tensor) -> None:
        """Add this process's share of y @ transposed kernel to `out`: (g, n, c_in/g * taps) -> (g, n, rows)."""
        for groups, rows, part in self._pieces:
            mine = y[groups].unflatten(2, self.blocks[2:])[:, :, self._columns].flatten(2)
            out[groups, :, rows] += mine @ part.flatten(2).mT

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """This process's share of left^T right, (g, k, rows) and (g, k, c_in/g * taps); shaped like `local`."""
        share = torch.zeros_like(self.local)
        wide = right.unflatten(2, self.blocks[2:])[:, :, self._columns].flatten(2)
        whole = replace(self, local=share)
        for groups, rows, part in whole._pieces:
            part.copy_((left[groups, :, rows].mT @ wide[groups]).view_as(part))
        return share

    def cut(self, whole: Tensor) -> Tensor:
        """A copy of what lies here of a tensor in one piece; shaped like `local`."""
        rows = whole.reshape(-1, *self.blocks[2:])[self.row : self.row + self.local.shape[0]]
        return rows[:, self._columns].clone()

    def gathered(self) -> Tensor:
        """The kernel in one piece; for kernels no larger than a vector."""
        whole = self.local.new_zeros(self.blocks)
        for groups, rows, part in self._pieces:
            whole[groups, rows, self._columns] = part
        return self.summed(whole)

    def summed(self, share: Tensor) -> Tensor:
        """The sum of the shares of all processes, in place."""
        for group in self.sums:
            distributed.all_reduce(share, group=group)
        return share

    def highest(self, mine: Tensor) -> Tensor:
        """The largest of the numbers of all processes, in place."""
        for group in self.sums:
            distributed.all_reduce(mine, op=distributed.ReduceOp.MAX, group=group)
        return mine
