"""Covering the torus of frequencies with cells, each small enough for one test at its centre.

A function of exponential type d_a per axis that is S at its maximum is at least S cos(sum_a d_a |delta_a|) at a
distance delta (`MATHS.md`, section 3), so cells are best balls of that sum. In two dimensions such balls are
diamonds, which tile the plane and split into four of half the size; a third axis is cut into intervals. The symbol
is even in w, so of each pair of cells c and -c only one is kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Cover", "grid_points"]

_WHOLE = 2**63  # what a 64-bit integer stays below


@dataclass(frozen=True)
class Cover:
    """Equal cells over the torus; a cell is a row of integers, the centre in units of the half-widths.

    Attributes:
        degrees: of the symbol, per axis; an axis of degree 0 needs no cutting.
        counts: half-widths per turn of each axis; 0 for an axis of degree 0.
    """

    degrees: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of_angle(cls, degrees: tuple[float, ...], angle: float) -> Cover:
        """The coarsest cover whose cells reach sum_a d_a |delta_a| <= angle from their centres."""
        active = sum(d > 0 for d in degrees)
        shares = {1: (1.0,), 2: (1.0, 1.0), 3: (2 / 3, 2 / 3, 1 / 3)}.get(active, ())  # of two axes: a diamond
        share = iter(shares)
        counts = tuple(2 * math.ceil(math.pi * d / (angle * next(share))) if d else 0 for d in degrees)
        return cls(degrees, counts)

    @cached_property
    def axes(self) -> list[int]:
        """The axes that are cut; the first two of several make the diamond."""
        return [axis for axis, count in enumerate(self.counts) if count]

    @cached_property
    def half_widths(self) -> Tensor:
        """(axes,) float64; 0 where nothing is cut."""
        return torch.tensor(
            [2 * math.pi / n if n else 0.0 for n in self.counts], dtype=torch.float64, device="cpu"
        )

    @cached_property
    def diamond(self) -> list[int]:
        """The two axes, if there are two, along which a cell is a diamond; along the others it is an interval."""
        return self.axes[:2] if len(self.axes) > 1 else []

    @property
    def angle(self) -> float:
        """sum_a d_a |delta_a| at the farthest point of a cell, rounded up."""
        reach = torch.tensor(self.degrees, dtype=torch.float64, device="cpu") @ self.corners.abs().T
        return float(reach.max()) * (1 + 1e-12)

    @cached_property
    def corners(self) -> Tensor:
        """(corners, axes) of a cell around its centre, one of each pair; outwards by more than a centre rounds."""
        outer = (self.half_widths * (1 + 1e-12) + 1e-14).tolist()
        intervals = [axis for axis in self.axes if axis not in self.diamond]
        tips = [{axis: outer[axis]} for axis in self.diamond] or [{}]
        signs = itertools.product((1, -1), repeat=len(intervals))
        ends = [{axis: sign * outer[axis] for axis, sign in zip(intervals, s, strict=True)} for s in signs]
        rows = [[(tip | end).get(axis, 0.0) for axis in range(len(outer))] for tip in tips for end in ends]
        return torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(len(rows), len(outer))

    @property
    def size(self) -> int:
        """How many cells there are, nearly, without listing them."""
        full = math.prod(n for n in self.counts if n)
        return max(1, full >> max(2, len(self.axes)))

    def cells(self) -> Tensor:
        """Every cell, one of each pair c, -c: (cells, axes) integers."""
        steps = [1 if axis in self.diamond else 2 for axis in range(len(self.counts))]
        cells = _products([range(0, max(1, n), step) for n, step in zip(self.counts, steps, strict=True)])
        if self.diamond:  # like the white squares of a chessboard
            cells = cells[cells[:, self.diamond].sum(1) % 2 == 0]
        return cells[self._distinct(cells, torch.zeros(len(cells), dtype=torch.long, device="cpu"))]

    def finer(self) -> Cover:
        """Cells of half the size."""
        return Cover(self.degrees, tuple(2 * n for n in self.counts))

    def children(self, group: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The cells of `finer()` that make up these, one of each pair c, -c in a group; and first their groups."""
        moves = [[(axis, 1), (axis, -1)] for axis in self.axes]
        if len(moves) > 1:  # a diamond splits into four around its centre
            moves[:2] = [moves[0] + moves[1]]
        every = range(len(self.counts))
        offsets = _rows(
            [[dict(move).get(axis, 0) for axis in every] for move in itertools.product(*moves)], len(every)
        )
        cells = (2 * cells[:, None] + offsets).flatten(0, 1)
        group = group.repeat_interleave(len(offsets))
        kept = self.finer()._distinct(cells, group)
        return group[kept], cells[kept]

    def frequencies(self, cells: Tensor) -> Tensor:
        """Centres (cells, axes) in [0, 2 pi), float64."""
        return (cells % self._period) * self.half_widths

    @cached_property
    def _period(self) -> Tensor:
        return _rows([[max(1, n) for n in self.counts]], len(self.counts))[0]

    def _distinct(self, cells: Tensor, group: Tensor) -> Tensor:
        """Indices of one of each pair c, -c in a group."""
        return one_of_pairs(cells, self._period, group)


def grid_points(points: tuple[int, ...]) -> Tensor:
    """The points 2 pi j / points of a finite grid, one of each pair w, -w: (m, axes) integers j."""
    every = _products([range(n) for n in points])
    period = _rows([points], len(points))[0]
    return every[one_of_pairs(every, period, torch.zeros(len(every), dtype=torch.long, device="cpu"))]


def one_of_pairs(cells: Tensor, period: Tensor, group: Tensor) -> Tensor:
    """Indices of one of each pair c, -c modulo the period, in each group."""
    both = _numbered(torch.cat([cells, -cells]) % period, period, group.repeat(2))
    pairs, place = torch.minimum(*both.chunk(2)).unique(return_inverse=True)
    index = torch.arange(len(cells), device="cpu")
    return torch.full((len(pairs),), len(cells), device="cpu").scatter_reduce_(0, place, index, "amin")


def _rows(rows: Iterable[Sequence[int]], width: int) -> Tensor:
    """Integers (rows, width), the width being 0 at times."""
    every = list(rows)
    return torch.tensor(every, dtype=torch.long, device="cpu").reshape(len(every), width)


def _products(ranges: Sequence[range]) -> Tensor:
    """As `itertools.product`, without a Python object for each row."""
    if not ranges:
        return torch.zeros(1, 0, dtype=torch.long, device="cpu")
    axes = [torch.arange(r.start, r.stop, r.step, device="cpu") for r in ranges]
    return torch.cartesian_prod(*axes).reshape(-1, len(ranges))


def _numbered(cells: Tensor, period: Tensor, group: Tensor) -> Tensor:
    """One number for each cell, of its coordinates in [0, period) and its group.

    Two cells must never share one, or one of them would count as excluded untested.

    Returns:
        The numbers, int64.

    Raises:
        OverflowError: for cells so small that their numbers do not fit in 64 bits.
    """
    flat, most = group, 1 + int(group.max()) if len(group) else 1
    for axis, n in enumerate(period.tolist()):
        if most * n >= _WHOLE:  # number afresh those there are
            distinct, flat = flat.unique(return_inverse=True)
            most = len(distinct)
        if most * n >= _WHOLE:
            raise OverflowError(
                f"certified: {most} cells of 1/{n} of a turn cannot be told apart by 64-bit numbers. Ask for a "
                "larger rtol, or give Certified a smaller max_cells."
            )
        flat, most = flat * n + cells[:, axis], most * n
    return flat
