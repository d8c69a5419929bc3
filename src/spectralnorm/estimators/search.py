"""Tests that exclude whole cells of frequencies, by one Cholesky factorisation each.

Claim: S = sup s(w) <= B. If not, let s(w*) = S > B with unit u*, v*. Re(exp(ia) u*^H K^(w) v*) is bounded by S
and of exponential type d_a per axis, so s(w* + delta) >= S cos(sum_a d_a |delta_a|) (Bernstein-Szego; Duffin &
Schaeffer for half-integer degrees; `MATHS.md`, section 3). A cell that reaches an angle t from its centre c holds
no such w* if s(c) < B cos(t). That says nothing of a finite grid, whose largest s may lie below S: its points are
tested at B, each for itself.

A second test costs nothing more: within a cell, G moves by at most sum_q ||T_q|| |exp(-i delta . q) - 1|, so that
s(c)^2 < B^2 minus that proves the whole cell. It excludes flat kernels, orthogonal ones above all, at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralnorm.estimators.cells import Cover
from spectralnorm.estimators.cholesky import factorisation_rounding, factorises
from spectralnorm.estimators.sharing import Sharing
from spectralnorm.operators.gram_polynomial import GramPolynomial

__all__ = ["CHUNK", "Places", "Search"]

CHUNK = 2**22  # entries of the matrices factorised at once: 64 MiB
_PROBES = 8
_ANGLES = [1.2 * 2 ** (-k / 4) for k in range(24)]  # of the coarsest cells to start from
_DOWN = 1 - 1e-15  # so that a rounded threshold is never above the true one


@dataclass(frozen=True)
class Places:
    """Frequencies to test, each in a group: cells of a cover, or points of a grid.

    Attributes:
        group: (m,) which group.
        cell: (m, axes) integers, as the cover, or the grid, counts.
    """

    group: Tensor
    cell: Tensor

    def __len__(self) -> int:
        return len(self.group)

    def take(self, index: Tensor) -> Places:
        """Those at an index, or where a mask is true."""
        return Places(self.group[index], self.cell[index])

    @classmethod
    def everywhere(cls, groups: Tensor, cells: Tensor) -> Places:
        """Every cell in every one of these groups."""
        each = torch.arange(len(cells)).repeat(len(groups))
        return cls(groups.repeat_interleave(len(cells)), cells[each])


@dataclass
class Search:
    """What is tested against a bound, and what that took.

    Attributes:
        polynomial: G(w) of every group.
        degrees: of the symbol, per axis.
        sharing: the work over processes.
        on_progress: called with the share of the frequencies that is excluded, after each chunk of tests.
        tests: frequencies tested.
        levels: how often cells were cut finer.
        share: of all frequencies, that one test excludes.
        excluded: share of the frequencies excluded so far.
    """

    polynomial: GramPolynomial
    degrees: tuple[float, ...]
    sharing: Sharing
    on_progress: Callable[[float], None] | None = None
    tests: int = 0
    levels: int = 0
    share: float = 0.0
    excluded: float = 0.0

    def below(self, places: Places, w: Tensor, squares: Tensor) -> Tensor:
        """Whether s(w)^2 is proven to lie below the square of its group.

        Args:
            places: what is tested.
            w: (m, axes) its frequencies.
            squares: (g,) squared thresholds.

        Returns:
            (m,) bool; False proves nothing, but that s(w)^2 is at least the square less twice `slack`.
        """
        shifts = squares - self.slack(squares)
        passed = torch.zeros(len(places), dtype=torch.bool)
        mine = self.sharing.mine(len(places))
        passed[mine] = self._tested(places.group[mine], w[mine], shifts)
        self.tests += len(places)
        return self.sharing.merged(passed)

    def slack(self, squares: Tensor) -> Tensor:
        """(g,) what rounding may hide: of G, of the factorisation, and of adding the shift to the diagonal."""
        n = self.polynomial.side
        relative = factorisation_rounding(n) * n + 4 * 2.0**-53
        return self.polynomial.rounding.cpu() + relative * squares

    def _tested(self, group: Tensor, w: Tensor, shifts: Tensor) -> Tensor:
        polynomial, device = self.polynomial, self.polynomial.lags.device
        if polynomial.side == 1:
            parts = zip(group.split(CHUNK // 64), w.split(CHUNK // 64), strict=True)
            values = [polynomial.scalars(g.to(device), at.to(device)).cpu() for g, at in parts]
            passed = torch.cat([*values, w.new_zeros(0)]) < shifts[group]
            self._report(int(passed.sum()))
            return passed
        passed = torch.zeros(len(group), dtype=torch.bool)
        for g in group.unique().tolist():
            if shifts[g] > 0:
                index = (group == g).nonzero()[:, 0]
                for part in index.split(max(1, CHUNK // polynomial.side**2)):
                    panels = polynomial.negative(g, w[part].to(device))
                    passed[part] = factorises(panels, polynomial.side, float(shifts[g])).cpu()
                    self._report(int(passed[part].sum()))
        return passed

    def _report(self, passed: int) -> None:
        self.excluded = min(1.0, self.excluded + passed * self.share * self.sharing.processes)
        if self.on_progress is not None and self.share:
            self.on_progress(self.excluded)

    def flat_squares(self, bound: float) -> Tensor:
        """(g,) squared thresholds of single frequencies."""
        return torch.full((len(self.polynomial.rounding),), bound**2 * _DOWN, dtype=torch.float64)

    def squares(self, bound: float, cover: Cover) -> Tensor:
        """(g,) squared thresholds under which a cell's centre excludes the cell."""
        far = (bound * math.cos(cover.angle)) ** 2 if cover.angle < math.pi / 2 else 0.0
        spans = cover.spans(self.polynomial.lags)
        moves = 2 * self.polynomial.norms[:, 1:].cpu() @ spans.clamp(max=2.0)  # |exp(-ix) - 1| <= min(|x|, 2)
        near = bound**2 - moves * (1 + 1e-12) - 4 * self.polynomial.rounding.cpu()
        return torch.maximum(near, torch.tensor(far, dtype=torch.float64)) * _DOWN

    def open_groups(self, bound: float) -> Tensor:
        """The groups that the norms of the T_q alone do not already hold below the bound."""
        sums = self.polynomial.norms.cpu() @ torch.tensor([1.0] + [2.0] * len(self.polynomial.lags)).double()
        sums = sums * (1 + 1e-12) + 2 * self.polynomial.rounding.cpu()
        return (sums > bound**2 * _DOWN).nonzero()[:, 0]

    def start(self, groups: Tensor, bound: float) -> Cover:
        """The cover to start from: the coarsest whose cells mostly pass, judged from a few random frequencies."""
        covers = [Cover.of_angle(self.degrees, angle) for angle in _ANGLES]
        generator = torch.Generator("cpu").manual_seed(0)
        count = _PROBES if any(self.degrees) else 0
        group = groups[torch.randint(len(groups), (count,), generator=generator)]
        probes = Places(group, torch.zeros(count, len(self.degrees), dtype=torch.long))
        w = 2 * math.pi * torch.rand(count, len(self.degrees), generator=generator, dtype=torch.float64)
        low, high = 0, len(covers) - 1 if count else 0
        passing, failing = torch.full((count,), high), torch.full((count,), -1)  # the finest known to do so
        while low < high:
            middle = (low + high) // 2
            unknown = ((passing > middle) & (failing < middle)).nonzero()[:, 0]
            passed = self.below(probes.take(unknown), w[unknown], self.squares(bound, covers[middle]))
            passing[unknown[passed]], failing[unknown[~passed]] = middle, middle
            enough = int((passing <= middle).sum()) >= 0.75 * count
            low, high = (low, middle) if enough else (middle + 1, high)
        return covers[low]
