"""The proof that a symbol stays below a bound: every cell of the torus is excluded, or every point of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spectralnorm.estimators.cells import Cover, grid_points
from spectralnorm.estimators.search import Places, Search
from spectralnorm.operators.base import Size

__all__ = ["Claim", "Climb"]

Climb = Callable[[Places, Tensor], float]  # places and frequencies where s is high -> a lower bound of the norm
_FEW = 8  # places that tell whether most of them would pass
_CUT = 2  # when the tests are spent, what is left is still cut where that makes fewer cells than this part of them


class Claim:
    """That the norm of every group is at most `bound`, which is (1 + rtol) times what is known from below.

    Args:
        search: the tests.
        lower: the norm is at least this, above 0.
        rtol: relative tolerance; below what rounding hides, the bound is as much larger as that.
        climb: finds a new lower bound where the old one is beaten.
    """

    def __init__(self, search: Search, lower: float, rtol: float, climb: Climb) -> None:
        self.search, self.rtol, self.climb = search, rtol, climb
        self.lower, self.bound, self.steps, self.widened, self.probed = 0.0, 0.0, 1, False, 0
        self._raise(lower)

    def prove(self, max_tests: int, cover: Cover | None = None) -> None:
        """Exclude every cell of the torus, cutting those that are left into smaller ones.

        Once so many tests are spent, the gap between the ends doubles until most cells pass; they are still cut
        where few are left. So an interval that could not be as narrow as asked is as narrow as the tests allow. As
        a rule it is at most 2.5 times as wide as that of a larger tolerance which they would have sufficed for
        (at 180 random kernels with 1 to 1,000 tests, the largest ratio was 13).

        Args:
            max_tests: the tests after which the interval is widened.
            cover: to start from; None to look for one.
        """
        search = self.search
        groups = search.open_groups(self.bound)
        if not len(groups):
            return
        cover = cover or search.start(groups, self.bound, max_tests)
        places = Places.everywhere(groups, cover.cells())
        search.share = 1 / len(places)
        while True:
            squares = lambda bound, cover=cover: search.squares(bound, cover)  # noqa: E731
            places = self._left(places, cover.frequencies(places.cell), squares)
            if not len(places):
                return
            if search.tests > max_tests and self._widen(places, cover, max_tests):
                continue
            before = len(places)
            places, cover = Places(*cover.children(places.group, places.cell)), cover.finer()
            search.levels, search.share = search.levels + 1, search.share * before / max(1, len(places))

    def _widen(self, places: Places, cover: Cover, max_tests: int) -> bool:
        """Double the gap between the ends: once, or where too many places are left to cut until most would pass.

        Returns:
            Whether there are too many to cut.
        """
        self.widened = True
        cut = len(places) * 2 ** places.cell.shape[1]
        many = cut > max_tests // _CUT or self.search.tests - self.probed > 2 * max_tests
        few = places.take(torch.linspace(0, len(places) - 1, min(_FEW, len(places)), device="cpu").long())
        w, passed = cover.frequencies(few.cell), False
        while not passed:
            self.bound += self.bound - self.lower
            below = self.search.below(few, w, self.search.squares(self.bound, cover))
            self.probed += len(few)
            passed = not many or 4 * int(below.sum()) >= 3 * len(few)
        return many

    def prove_points(self, points: Size) -> None:
        """Test every point of a finite grid.

        Args:
            points: per axis.

        Raises:
            ArithmeticError: when a point neither passes nor raises the lower bound; `_raise` rules that out.
        """
        cells = grid_points(points)
        groups = torch.arange(len(self.search.polynomial.rounding), device="cpu")
        places = Places.everywhere(groups, cells)
        self.search.share = 1 / len(places)
        # in float64 from the start: a float times integers would be float32
        w = 2 * math.pi * places.cell.double() / torch.tensor(points, dtype=torch.float64, device="cpu")
        if len(self._left(places, w, self.search.flat_squares)):  # the margins of `_raise` leave none
            raise ArithmeticError("certified: rounding left a frequency undecided; please report this weight.")

    def _left(self, places: Places, w: Tensor, squares: Callable[[float], Tensor]) -> Places:
        """Test places; where one shows that the norm is higher than known, climb there and test again.

        Returns:
            The places that have not passed, of which none tells more.
        """
        while len(places):
            levels = squares(self.bound)
            failed = ~self.search.below(places, w, levels)
            places, w = places.take(failed), w[failed]
            above = (levels - 2 * self.search.slack(levels) > self.lower**2)[places.group]
            if not above.any():
                break
            self._raise(self.climb(places.take(above), w[above]))
        return places

    def _raise(self, lower: float) -> None:
        """Take up a new lower bound; if it is none, rounding is all that is left, and the bound grows by that."""
        slack = float(
            self.search.slack(torch.tensor(max(lower, self.bound) ** 2, dtype=torch.float64, device="cpu")).max()
        )
        if lower <= self.lower:
            self.steps += 1
            self.bound = math.sqrt(self.bound**2 + 2**self.steps * slack)
            return
        self.lower = lower
        self.bound = max(self.bound, (1 + self.rtol) * lower, math.sqrt(lower**2 + 8 * slack))
