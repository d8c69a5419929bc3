"""An interval that is proven to hold the norm: tracked from below, every frequency excluded from above.

From below as `tracked`. From above the search of `search.py`: one Cholesky factorisation excludes a whole cell of
frequencies by the Bernstein-Szego inequality, its rounding included. Where a cell cannot be excluded because the
norm is larger than the tracks had found, they climb on from there.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from spectralnorm.bound import Bound
from spectralnorm.estimators.ascent import Tracks
from spectralnorm.estimators.base import Estimator, check_counts, check_seed, layer_bound
from spectralnorm.estimators.lanczos import largest_input
from spectralnorm.estimators.memory import check_memory
from spectralnorm.estimators.proof import Claim
from spectralnorm.estimators.rounding import rescaled, rescaled_back
from spectralnorm.estimators.search import CHUNK, Places, Search
from spectralnorm.estimators.sharing import Sharing
from spectralnorm.estimators.tracked import Tracked, tracked_bound
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.gram_polynomial import GramPolynomial, gram_polynomial

__all__ = ["Certified"]

_FEW_POINTS = 128  # of a grid: tested one by one
_CLIMBERS = 8  # tracks that climb where the lower bound is beaten


@dataclass(frozen=True)
class Certified(Estimator):
    """Both ends proven, `upper <= (1 + rtol) lower` wherever the norm has a closed form.

    Size-free, and at a size with a closed form, the interval is as narrow as asked. At another size `lower` is
    the norm found by iterating on the layer, and `upper` what holds at that size for any layer with such a symbol
    (`MATHS.md`, section 1); with reflect or replicate padding, or circular with a stride, the size-free interval
    is as wide as the padding makes it.

    Where `torch.distributed` is initialised, its processes share the work; all must call, with the same weight.

    Time grows with the number of tests, each O(n^3) for n channels: on one thread 0.1, 0.3, 1.4 and 6 seconds per
    1,000 of them for 64, 128, 256 and 512 channels. A 3x3 kernel takes some hundreds; large kernels, three spatial
    axes, and small tolerances where the norm is nearly the same at many frequencies take thousands. `on_progress`
    tells how far they are, and `max_cells` ends them early.

    Attributes:
        max_cells: frequencies tested before the interval is widened, with a warning: from then on the gap between
            its ends doubles until it is proven, which takes as many tests again at the most, and some tens.
        distributed: whether processes share the work; False where one of them calls alone.
        on_progress: called with the share of the frequencies excluded so far, from 0 to 1.
        seed: of the tracks.

    Example:
        >>> import torch, spectralnorm as sn
        >>> kernel = torch.tensor([[[1.0, 1.0, -1.0]]])  # norm sqrt(5), over all sizes
        >>> bound = sn.spectral_norm(kernel, method=sn.Certified(), rtol=1e-6)
        >>> bound.lower <= 5**0.5 <= bound.upper <= (1 + 1e-6) * bound.lower
        True
    """

    name: ClassVar[str] = "certified"
    max_cells: int = 200_000
    distributed: bool = True
    on_progress: Callable[[float], None] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(max_cells=self.max_cells)
        check_seed(self.seed)
        if not isinstance(self.distributed, bool):
            raise ValueError(f"distributed={self.distributed!r} is neither True nor False; expected one of them.")
        if self.on_progress is not None and not callable(self.on_progress):
            raise ValueError(
                f"on_progress={self.on_progress!r} cannot be called; expected a function of the share of the "
                "frequencies excluded so far, or None."
            )

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Climb, then exclude every frequency."""
        started = time.perf_counter()
        closed = None if size is None else operator.grid(size)
        if closed is not None:
            found = _Proof(self, *closed, rtol).on_grid()
        elif size is None:
            found = _Proof(self, operator.symbol(), None, rtol).everywhere()
            found = self._padded(operator, size, rtol, found, found)
        else:
            v, stats = largest_input(operator, size, rtol, max_steps=600, seed=self.seed)
            below = layer_bound(operator, v, self.name, stats)
            symbol = operator.symbol()
            found = self._padded(operator, size, rtol, below, _Proof(self, symbol, None, rtol).everywhere())
        return Bound(
            found.value,
            found.lower,
            found.upper,
            self.name,
            {**found.stats, "seconds": time.perf_counter() - started},
        )

    def _padded(self, operator: Operator, size: Size | None, rtol: float, below: Bound, first: Bound) -> Bound:
        """The lower end of one bound, with the smallest upper end that the operator's ceilings prove.

        Args:
            operator: the layer's map.
            size: the spatial size, or None.
            rtol: relative tolerance.
            below: the norm from below.
            first: the proven norm of the first ceiling's symbol.

        Returns:
            The bound.
        """
        (_, factor), *others = operator.ceilings(size)
        upper = factor * first.upper
        for symbol, other in others:
            proof = _Proof(self, symbol, None, rtol)
            if other * proof.best.lower < upper:
                upper = min(upper, other * proof.everywhere().upper)
        return Bound(below.value, below.lower, max(upper, below.lower), self.name, {**below.stats, **first.stats})


class _Proof:
    """The norm of one symbol, over the torus or a finite grid, between two proven bounds.

    Args:
        options: of the method.
        symbol: the symbol, with its graph.
        grid: the points per axis of a finite grid; None for the torus.
        rtol: relative tolerance.
    """

    def __init__(self, options: Certified, symbol: Symbol, grid: Size | None, rtol: float) -> None:
        self.options, self.symbol, self.grid, self.rtol = options, symbol, grid, rtol
        self.tracked = Tracked(seed=options.seed)
        self.best = self.tracked.of_symbol(symbol, grid, min(rtol / 5, 1e-3))
        self.exact, self.scale = rescaled(symbol)
        self.sharing = Sharing.over_processes(symbol.weight.device) if options.distributed else Sharing()

    @cached_property
    def search(self) -> Search:
        """Tests of the rescaled symbol."""
        exact = self.exact
        check_memory(
            8 * (GramPolynomial.numbers(exact) + 6 * CHUNK),
            exact.weight.device,
            f"method='certified' on {exact.groups} x {exact.rows} x {exact.columns} channels",
            "Use method='tracked', which needs little more than the weight and gives a proven lower bound.",
        )
        return Search(gram_polynomial(exact), exact.layout.degrees, self.sharing, self.options.on_progress)

    def everywhere(self) -> Bound:
        """Over all frequencies."""
        if not self.symbol.weight.detach().any():
            return Bound(self.best.value, 0.0, 0.0, "certified", self.best.stats)
        claim = self._claim()
        claim.prove(self.options.max_cells)
        found = self._found(claim)
        if claim.widened:
            warnings.warn(
                f"certified: max_cells={self.options.max_cells} tests do not suffice for rtol={self.rtol:g}; the "
                f"interval [{found.lower:.6g}, {found.upper:.6g}] is proven, but wider than asked.",
                stacklevel=2,
            )
        return found

    def on_grid(self) -> Bound:
        """Over the grid: all of its points where they are few, else over all frequencies where that is enough."""
        if not self.symbol.weight.detach().any():
            return self.everywhere()
        assert self.grid is not None  # noqa: S101 - the caller's promise
        claim, points = self._claim(), math.prod(self.grid)
        groups = self.search.open_groups(claim.bound)
        if not len(groups):
            return self._found(claim)
        tests = points * len(groups)
        cover = self.search.start(groups, claim.bound, tests) if points > _FEW_POINTS else None
        if cover is not None and 4 * cover.size < points:
            torus = _Proof(self.options, self.symbol, None, self.rtol)
            torus.search = self.search
            everywhere = torus._claim()
            everywhere.prove(tests, cover)  # after so many tests, the points themselves had been cheaper
            if everywhere.bound <= claim.bound:
                claim.bound = max(everywhere.bound, claim.lower)
                return self._found(claim)
        claim.prove_points(self.grid)
        return self._found(claim)

    def _claim(self) -> Claim:
        return Claim(self.search, self.sharing.agreed(self.best.lower / self.scale), self.rtol, self._climb)

    def _found(self, claim: Claim) -> Bound:
        known = rescaled_back(claim.lower, self.scale, up=False)  # by another process, perhaps
        lower = max(self.best.lower, known)
        stats = {**self.best.stats, "factorisations": self.search.tests, "levels": self.search.levels}
        upper = max(lower, rescaled_back(claim.bound, self.scale, up=True))
        return Bound(self.best.value, lower, upper, "certified", stats)

    def _climb(self, places: Places, w: Tensor) -> float:
        """A new lower bound: tracks climb from frequencies where s is higher than known."""
        before = self.best.lower
        few = torch.arange(0, len(places), max(1, len(places) // _CLIMBERS), device="cpu")[:_CLIMBERS]
        for group in places.group[few].unique().tolist():
            start = w[few][places.group[few] == group]
            symbol = Symbol(self.symbol.weight[group : group + 1], self.symbol.layout)
            self._take(self.tracked.of_symbol(symbol, self.grid, min(self.rtol / 5, 1e-3), start), group)
        if self.best.lower <= before:
            self._decompose(int(places.group[0]), w[0])
        return self.sharing.agreed(self.best.lower / self.scale)

    def _decompose(self, group: int, w: Tensor) -> None:
        """Where tracks find nothing higher, the SVD of the block at a frequency."""
        symbol = Symbol(self.symbol.weight[group : group + 1], self.symbol.layout)
        at = w.to(symbol.weight.device)
        u, s, _ = torch.linalg.svd(self.exact.at(at[None])[0, group], full_matrices=False)
        x = u[:, 0]
        basis = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)])[None, None]
        self._take(tracked_bound(symbol, Tracks(basis, at[None, None], s[None, :1]), self.grid, {}), group)

    def _take(self, found: Bound, group: int) -> None:
        if found.lower > self.best.lower:
            self.best = Bound(found.value, found.lower, found.upper, found.method, {**found.stats, "group": group})
