"""The size-free norm of a convolution from below, by tracks that climb over vectors and frequencies.

Our reading of Pan & Mishra, "Fast Approximate Spectral Normalization for Robust Deep Neural Networks"
(2021, arXiv 2103.13815): Fourier transform, layer separation, and work proportional to the distinct
weights. The inner iteration is LOBPCG (Knyazev, SIAM J. Sci. Comput. 2001); see `ascent.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectralnorm.bound import Bound
from spectralnorm.estimators.ascent import FrequencyStep, Tracks, lengths, normalised, sweep
from spectralnorm.estimators.base import Estimator, attach_gradient, check_counts, check_seed
from spectralnorm.estimators.grids import half_grid
from spectralnorm.estimators.rounding import frobenius_norm, phase_rounding, rescaled, rescaled_back
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.lags import lags_of

__all__ = ["Tracked", "cold_start", "frequency_step", "tracked_bound"]


_NEWTON = 12  # steps from a grid point to the peak beside it
_LINE = (
    256  # points of half a grid along one axis that are all searched; along several, as many as there are seeds
)
_COARSE = 1024  # and of a grid too coarse for the peaks of the torus to tell where its own are
_NUMBERS = 2**24  # of such points' images, at most
_PEAKS = 8  # of the torus, around which larger grids are searched


def seeds(degrees: tuple[float, ...]) -> Tensor:
    """Starting frequencies (m, axes): a grid over the half torus, shifted off its symmetric points.

    The symbol of a real kernel is even in w, so half the torus holds a maximiser. At w = 0 or pi with
    real vectors the slope in w vanishes, hence the shift.

    Args:
        degrees: of the symbol, per axis.

    Returns:
        The frequencies, float64; four times the origin where no axis has a degree.
    """
    base = {0: 1, 1: 64, 2: 12, 3: 6}[sum(d > 0 for d in degrees)]
    counts = [min(4 * base, max(base, math.ceil(6 * d) + 2)) if d else 1 for d in degrees]
    grids = []
    halved = False
    for count, degree in zip(counts, degrees, strict=True):
        half = bool(degree) and not halved
        halved |= half
        points = (torch.arange(count // 2 if half else count, dtype=torch.float64, device="cpu") + 0.37) / count
        grids.append(2 * math.pi * points)
    if not halved:
        return torch.zeros(4, len(degrees), dtype=torch.float64, device="cpu")
    return torch.stack(torch.meshgrid(*grids, indexing="ij"), -1).reshape(-1, len(degrees))


def frequency_step(symbol: Symbol, grid: Size | None, *, everywhere: bool) -> FrequencyStep:
    """How a track moves its frequency.

    Args:
        symbol: the symbol.
        grid: the points per axis of a finite circular grid, to stay on it; None for the whole torus.
        everywhere: search the torus (a grid of it, then Newton) instead of one Newton step from where it is.

    Returns:
        The step, from images and frequencies to frequencies that are never lower.
    """
    lags = lags_of(symbol.layout, symbol.weight.dtype)
    coarse = tuple(max(8, 2 * extent) if extent > 1 else 1 for extent in lags.extents)

    def move(images: Tensor, w: Tensor) -> Tensor:
        if not any(symbol.layout.degrees):
            return w
        a = lags.coefficients(images)
        if grid is not None:
            return lags.search(a, w, grid) if everywhere else w
        if everywhere:
            w = lags.climb(a, lags.search(a, w, coarse))
        return lags.climb(a, w)

    return move


def cold_start(symbol: Symbol, w: Tensor, generator: torch.Generator) -> Tracks:
    """Tracks at frequencies w (m, axes) in every group, from random vectors.

    Args:
        symbol: the symbol, detached.
        w: the frequencies to start from.
        generator: for the random vectors, drawn on the CPU so that every device starts alike.

    Returns:
        The tracks, their vectors already multiplied by K^(w) once.
    """
    weight = symbol.weight
    shape = (symbol.groups, w.shape[0], weight.shape[2], symbol.layout.components)
    dtype = torch.complex128 if weight.dtype == torch.float64 else torch.complex64
    v = torch.randn(shape, dtype=dtype, generator=generator, device="cpu").to(weight.device)
    w = w.to(weight).expand(symbol.groups, -1, -1).contiguous()
    x = symbol.read(symbol.fold(v, symbol.layout.phases(w)))
    # for a kernel that answers with zero
    spare = torch.randn(x.shape, dtype=dtype, generator=generator, device="cpu").to(x.device)
    x = normalised(torch.where(lengths(x)[..., None] > 0, x, spare))
    empty = torch.zeros_like(x)
    return Tracks(torch.stack([x, empty, empty], 2), w, torch.zeros_like(x.real[..., 0]))


@dataclass(frozen=True)
class Tracked(Estimator):
    """Tracks from a shifted grid of seeds; the best few climb on until they stand still.

    The value and `lower` are a proven lower bound of the norm, recomputed in float64; there is no upper one. At a
    circular size, every point of a small grid is searched, and of a larger one those around the highest peaks.

    Attributes:
        screening: sweeps of all the seeds; wide layers, on whose flat spectra sweeps gain little, get some more.
        tracks: how many climb on.
        max_sweeps: sweeps of those at most.
        seed: of the random starting vectors.

    Example:
        >>> import torch, spectralnorm as sn
        >>> kernel = torch.tensor([[[1.0, 1.0, -1.0]]])  # norm sqrt(5), over all sizes
        >>> round(float(sn.spectral_norm(kernel, method=sn.Tracked(tracks=2))), 4)
        2.2361
    """

    name: ClassVar[str] = "tracked"
    screening: int = 5
    tracks: int = 16
    max_sweeps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(screening=self.screening, tracks=self.tracks, max_sweeps=self.max_sweeps)
        check_seed(self.seed)

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Climb to a relative gain below rtol / 20 in four sweeps."""
        symbol, grid = operator.symbol(), None
        if size is not None:
            closed = operator.grid(size)
            if closed is None:
                raise ValueError(
                    f"method='tracked' measures the size-free norm, and this layer has no closed form at "
                    f"input_shape={size}. Leave input_shape out, or use method='auto'."
                )
            symbol, grid = closed
        return self.of_symbol(symbol, grid, rtol)

    def of_symbol(self, symbol: Symbol, grid: Size | None, rtol: float, start: Tensor | None = None) -> Bound:
        """Measure one symbol, over the torus or a finite grid; arguments as `climb`, but with the graph."""
        with torch.no_grad():
            precise = rtol < 1e-5 or symbol.weight.dtype == torch.float64
            working = symbol.to(torch.float64 if precise else torch.float32)
            tracks, stats = self.climb(working, grid, rtol, start)
        return tracked_bound(symbol, tracks, grid, stats)

    def climb(
        self, symbol: Symbol, grid: Size | None, rtol: float, start: Tensor | None = None
    ) -> tuple[Tracks, dict[str, object]]:
        """Converge tracks from cold.

        Args:
            symbol: the symbol, detached.
            grid: a finite circular grid to stay on, or None.
            rtol: relative tolerance of the norm.
            start: (m, axes) frequencies to start from, on the grid where there is one; None for the usual seeds.

        Returns:
            The tracks, highest first in each group and without images, and what was done.
        """
        largest = symbol.largest()
        symbol = symbol.over(largest)  # heights are squared: keep them in range
        if min(symbol.rows, symbol.columns) == 1 and start is None:
            return _scaled(scalar_peaks(symbol, grid, self.tracks), largest), {"sweeps": 0, "converged": True}
        tracks, stats = self._screened(symbol, grid, start)
        step = frequency_step(symbol, grid, everywhere=False)
        # over a grid, screening has been everywhere; not from given frequencies
        search = frequency_step(symbol, grid, everywhere=not grid or start is not None)
        # the last sweeps of a grid's screening are those of few tracks, and count
        best, count, converged = float(tracks.height.max()) if grid and start is None else 0.0, 0, False
        while count < self.max_sweeps and not converged:
            for i in range(4):
                tracks = sweep(symbol, tracks, search if i == 0 else step)
            count += 4
            height = float(symbol.agreed(tracks.height.max()))
            converged = height <= best * (1 + rtol / 20)
            best = max(best, height)
        tracks = tracks.take(tracks.height.sort(1, descending=True).indices)
        stats["sweeps"] += count
        return _scaled(tracks, largest), {**stats, "converged": converged}

    def _screened(self, symbol: Symbol, grid: Size | None, start: Tensor | None) -> tuple[Tracks, dict[str, int]]:
        """The best few tracks after some sweeps of all, and how many sweeps and seeds those were.

        On the points of a grid vectors do not follow when a frequency jumps to the next, so that peaks are missed:
        either every point has a track, or tracks climb the torus first, and then the points around its peaks.

        Returns:
            The tracks, and the counts.
        """
        sweeps = self.screening + min(symbol.rows, symbol.columns) // 200
        w = seeds(symbol.layout.degrees) if start is None else start
        on_torus = not grid
        if grid and start is None:
            on_torus = math.prod(grid) // 2 > _points_searched(symbol, grid, w.shape[0])
            w = w if on_torus else half_grid(grid)
        tracks = cold_start(symbol, w, torch.Generator("cpu").manual_seed(self.seed))
        tracks = _swept(symbol, tracks, None if on_torus else grid, sweeps)
        if grid and on_torus:
            tracks = _swept(symbol, tracks.take(tracks.distinct(_PEAKS)), None, 4, everywhere=True)
            tracks = _swept(symbol, _around(tracks, grid, symbol.layout.degrees), grid, 4)
            sweeps += 8
        while grid and tracks.w.shape[1] > 2 * self.tracks:
            better = tracks.height.topk(tracks.w.shape[1] // 2, 1).indices
            tracks, sweeps = _swept(symbol, tracks.take(better), grid, 4), sweeps + 4
        best = tracks.distinct(min(self.tracks, tracks.w.shape[1]))
        return tracks.take(best), {"sweeps": sweeps, "seeds": w.shape[0]}


def _points_searched(symbol: Symbol, grid: Size, most: int) -> int:
    """How many points half a grid may have for each to get a track of its own; `most` over several axes."""
    cut = [(n, d) for n, d in zip(grid, symbol.layout.degrees, strict=True) if d]
    if any(n < 6 * d for n, d in cut):
        return max(most, min(_COARSE, _NUMBERS // (symbol.groups * symbol.flat.shape[2])))
    return _LINE if len(cut) == 1 else most


def _swept(symbol: Symbol, tracks: Tracks, grid: Size | None, sweeps: int, *, everywhere: bool = False) -> Tracks:
    """So many sweeps, over a grid or the torus; `everywhere` searches all of it in the first."""
    search = frequency_step(symbol, grid, everywhere=everywhere)
    step = frequency_step(symbol, grid, everywhere=False)
    for i in range(sweeps):
        tracks = sweep(symbol, tracks, step if i else search)
    return tracks


def _around(tracks: Tracks, grid: Size, degrees: tuple[float, ...]) -> Tracks:
    """A track at each of the points of a grid that surround each track; anew, but for its vector."""
    step = 2 * math.pi / torch.tensor(grid, dtype=tracks.w.dtype, device=tracks.w.device)
    ends = [torch.arange(2 if d else 1, device=tracks.w.device) for d in degrees]
    corners = torch.cartesian_prod(*ends).reshape(-1, len(grid))
    w = (((tracks.w / step).floor()[:, :, None] + corners) * step).flatten(1, 2)
    x = tracks.basis[:, :, 0].repeat_interleave(len(corners), 1)
    empty = torch.zeros_like(x)
    return Tracks(torch.stack([x, empty, empty], 2), w, tracks.height.repeat_interleave(len(corners), 1))


def scalar_peaks(symbol: Symbol, grid: Size | None, count: int) -> Tracks:
    """Tracks of a symbol with one row or one column, such as a depthwise layer's: no vectors to iterate on.

    Its squared height is one trigonometric polynomial: searched on a fine grid, and climbed from the best points.

    Args:
        symbol: the symbol, detached.
        grid: a finite circular grid to stay on, or None.
        count: of tracks.

    Returns:
        The tracks, highest first in each group.
    """
    weight, layout = symbol.weight, symbol.layout
    lags = lags_of(layout, weight.dtype)
    zero = torch.zeros_like(weight.flatten(1, 2))
    a = lags.coefficients(torch.complex(weight.flatten(1, 2), zero)[:, None])  # (g, 1, lags)
    points = grid or tuple(1 if extent == 1 else 4 * extent for extent in lags.extents)
    heights = lags.on_grid(a, points)[:, 0]
    best = heights.topk(min(count, heights.shape[1]), 1).indices
    w = lags.frequencies(best, points).to(weight)
    for _ in range(_NEWTON if any(layout.degrees) and not grid else 0):
        w = lags.climb(a, w)
    height = lags.height(a, w).clamp_min(0).sqrt()
    v = torch.ones(*w.shape[:2], weight.shape[2], layout.components, device=weight.device, dtype=a.dtype)
    ahead = symbol.read(symbol.fold(v, layout.phases(w)))
    x = torch.ones_like(ahead) if symbol.rows == 1 else normalised(ahead)
    empty = torch.zeros_like(x)
    tracks = Tracks(torch.stack([x, empty, empty], 2), w, height)
    return tracks.take(height.sort(1, descending=True).indices)


def _scaled(tracks: Tracks, factor: Tensor) -> Tracks:
    """Of a kernel so many times as large, without images."""
    return Tracks(tracks.basis, tracks.w, tracks.height * factor)


def _nearest(w: Tensor, grid: Size | None) -> Tensor:
    """The nearest frequencies 2 pi j / n of a finite grid, to full precision."""
    if not grid:
        return w
    step = 2 * math.pi / torch.tensor(grid, dtype=w.dtype, device=w.device)
    return (w / step).round() * step


def tracked_bound(symbol: Symbol, tracks: Tracks, grid: Size | None, stats: dict[str, object]) -> Bound:
    """The highest track, its height recomputed in float64 and lowered by the rounding of that.

    An entry of K^(w)^H x sums rows products and then taps complex ones: the vector is within
    sqrt(2) (rows + 2 taps + 6) u sqrt(taps) ||W||_F of the true one. The lengths of x and of it, summed in any
    order, are within (rows + columns + 8) u of theirs, and the phases add their own rounding.

    Args:
        symbol: the symbol, with its graph.
        tracks: highest first in each group.
        grid: the finite grid they lie on, or None.
        stats: for `Bound.stats`.

    Returns:
        The bound, its value differentiable.
    """
    with torch.no_grad():
        group = int(tracks.height[:, 0].argmax())
        exact, scale = rescaled(Symbol(symbol.weight[group : group + 1], symbol.layout))
        x = normalised(tracks.basis[group, 0, 0].to(torch.complex128))
        w = _nearest(tracks.w[group, 0].double(), grid)
        v = exact.unfold(exact.read_adjoint(x[None, None])[0, 0], exact.layout.phases(w)).flatten()
        sigma = float(torch.linalg.vector_norm(v))
        taps = symbol.weight.shape[3]
        terms = math.sqrt(2) * (symbol.rows + 2 * taps + 6) * math.sqrt(taps) * frobenius_norm(exact.weight)
        lengths_of = (symbol.rows + symbol.columns + 8) * sigma
        rounding = 2.0**-53 * (terms + lengths_of) + phase_rounding(exact)
    lower = rescaled_back(max(0.0, sigma - rounding), scale, up=False)
    real = torch.complex128 if symbol.weight.dtype == torch.float64 else torch.complex64
    bilinear = symbol.bilinear(group, x.to(real), (v / max(sigma, 1e-300)).to(real), w)
    stats = {**stats, "frequency": tuple(w.tolist()), "group": group}
    return Bound(attach_gradient(lower, bilinear), lower, math.inf, "tracked", stats)
