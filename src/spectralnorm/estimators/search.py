"""Tests that exclude whole cells of frequencies, by one Cholesky factorisation each.

Claim: S = sup s(w) <= B. If not, let s(w*) = S > B with unit u*, v*. Re(exp(ia) u*^H K^(w) v*) is bounded by S
and of exponential type d_a per axis, so s(w* + delta) >= S cos(sum_a d_a |delta_a|) (Bernstein-Szego; Duffin &
Schaeffer for half-integer degrees; `MATHS.md`, section 3). A cell that reaches an angle t from its centre c holds
no such w* if s(c) < B cos(t). That says nothing of a finite grid, whose largest s may lie below S: its points are
tested at B, each for itself.

A second threshold costs nothing more. Let x* be the top eigenvector of G(w*). G is Hermitian and at most S^2
everywhere, so that x*^H G(w) x* has its maximum S^2 at w*: its slope vanishes there, and its second derivative
along delta is at most 2 sum_{q > 0} (q . delta)^2 ||T_q||. Hence

    s(w* + delta)^2 >= S^2 - sum_{q > 0} (q . delta)^2 ||T_q||,

and a cell whose centre lies below B^2 minus the most that this sum reaches in the cell (at a corner: it is convex)
holds no such w* either. Cells of nearly flat kernels, orthogonal ones above all, are many times as wide by that.
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
        each = torch.arange(len(cells), device="cpu").repeat(len(groups))
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
        passed = torch.zeros(len(places), dtype=torch.bool, device="cpu")
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
        passed = torch.zeros(len(group), dtype=torch.bool, device="cpu")
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
        return torch.full_like(self.polynomial.rounding, bound**2 * _DOWN, device="cpu")

    def squares(self, bound: float, cover: Cover) -> Tensor:
        """(g,) squared thresholds under which a cell's centre excludes the cell."""
        far = (bound * math.cos(cover.angle)) ** 2 if cover.angle < math.pi / 2 else 0.0
        bends = (self.polynomial.lags.cpu() @ cover.corners.T).square()  # (H, corners)
        falls = (self.polynomial.norms[:, 1:].cpu() @ bends).amax(1)
        # the rounding of the T_q, of which a cell of `_ANGLES` sees less than three times
        near = bound**2 - falls * (1 + 1e-12) - 4 * self.polynomial.rounding.cpu()
        return near.clamp_min(far) * _DOWN

    def open_groups(self, bound: float) -> Tensor:
        """The groups that the norms of the T_q alone do not already hold below the bound."""
        norms = self.polynomial.norms.cpu()
        sums = (norms[:, 0] + 2 * norms[:, 1:].sum(1)) * (1 + 1e-12) + 2 * self.polynomial.rounding.cpu()
        return (sums > bound**2 * _DOWN).nonzero()[:, 0]

    def start(self, groups: Tensor, bound: float, most: int) -> Cover:
        """The cover to start from: the coarsest whose cells mostly pass, judged from a few random frequencies.

        Args:
            groups: in which all cells are to be tested.
            bound: on the norm.
            most: cells in all of the groups, at most; but never fewer than the coarsest cover has.

        Returns:
            The cover.
        """
        coarsest, *rest = (Cover.of_angle(self.degrees, angle) for angle in _ANGLES)
        covers = [coarsest, *(cover for cover in rest if cover.size * len(groups) <= most)]
        generator = torch.Generator("cpu").manual_seed(0)
        count = _PROBES if any(self.degrees) else 0
        group = groups[torch.randint(len(groups), (count,), generator=generator, device="cpu")]
        probes = Places(group, torch.zeros(count, len(self.degrees), dtype=torch.long, device="cpu"))
        turns = torch.rand(count, len(self.degrees), generator=generator, dtype=torch.float64, device="cpu")
        w = 2 * math.pi * turns
        low, high = 0, len(covers) - 1 if count else 0
        passing, failing = torch.full_like(group, high), torch.full_like(group, -1)  # the finest known to do so
        while low < high:
            middle = (low + high) // 2
            unknown = ((passing > middle) & (failing < middle)).nonzero()[:, 0]
            passed = self.below(probes.take(unknown), w[unknown], self.squares(bound, covers[middle]))
            passing[unknown[passed]], failing[unknown[~passed]] = middle, middle
            enough = int((passing <= middle).sum()) >= 0.75 * count
            low, high = (low, middle) if enough else (middle + 1, high)
        return covers[low]
