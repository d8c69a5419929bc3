"""Looking over all frequencies, so that none overtakes the leader unseen.

While weights move, s(w) may become largest where no track is (a stale maximum, `MATHS.md`, section 2); layers that
are normalised get nearly flat over frequencies, with many peaks that take turns. So one vector is kept for each
frequency of a grid. A survey improves them all with a few products with the kernel. Where its heights have a peak,
a parabola through the neighbours says where between the points of the grid tracks should start to climb: from a
point itself they would get there in many small steps, since where singular values lie close the vector turns fast
with the frequency.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from spectralnorm.estimators.ascent import Tracks, lengths, normalised
from spectralnorm.estimators.tracked import seeds
from spectralnorm.operators.eigen import symmetric
from spectralnorm.operators.fourier import Symbol

__all__ = ["frequencies", "peaks", "random_vectors", "survey"]

_REACH = 1.5  # grid steps an axis to a neighbour
_SHIFTS = 8  # of the grid, which moves on between surveys: a narrow peak may lie between its points
_LATTICE = (1, 3, 5)  # eighths of a grid step an axis: a lattice that fills the cells between the points
_BLOCK = 4  # vectors of a layer without frequencies
_CPU = torch.device("cpu")


def frequencies(degrees: tuple[float, ...], turn: int = 0, device: torch.device = _CPU) -> Tensor:
    """The grid (F, axes), float64: that of cold starts, moved on a little in each turn, and all of 0 and pi.

    A layer without frequencies has one point, several times.

    Returns:
        The frequencies, kept on the device: to copy them there in each step would make the host wait for it.
    """
    return _frequencies_on(degrees, turn % _SHIFTS, device)


@lru_cache(maxsize=512)
def _frequencies_on(degrees: tuple[float, ...], shift: int, device: torch.device) -> Tensor:
    return _frequencies(degrees, shift).to(device)


def _frequencies(degrees: tuple[float, ...], shift: int) -> Tensor:
    if not any(degrees):
        return torch.zeros(_BLOCK, len(degrees), dtype=torch.float64, device="cpu")
    moved = torch.tensor([shift * eighths / _SHIFTS for eighths in _LATTICE], dtype=torch.float64, device="cpu")
    grid = seeds(degrees) + (moved[: len(degrees)] % 1) * _steps(degrees)
    ends = itertools.product(*([0.0, math.pi] if degree else [0.0] for degree in degrees))
    return torch.cat([grid, torch.tensor(list(ends), dtype=torch.float64, device="cpu")])


def _steps(degrees: tuple[float, ...]) -> Tensor:
    """Grid steps (axes,): the first axis of a degree is halved."""
    counts = [len(axis.unique()) for axis in seeds(degrees).T]
    halved = next(axis for axis, degree in enumerate(degrees) if degree)
    steps = [2 * math.pi / (n * (1 + (axis == halved))) for axis, n in enumerate(counts)]
    return torch.tensor(steps, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, eq=False)
class _Neighbours:
    """Which points of the grid lie next to each, w and -w being the same.

    Attributes:
        index: (F, K) the neighbours of each point, padded with the point itself.
        fit: (F, U, K) from heights over the point's own to the parabola g . d + d H d / 2: g, then H's triangle.
        spread: (active axes, axes) from d, in grid steps along the axes that have any, to frequencies.
    """

    index: Tensor
    fit: Tensor
    spread: Tensor


@lru_cache(maxsize=512)
def _neighbours_on(degrees: tuple[float, ...], shift: int, device: torch.device) -> _Neighbours:
    found = _neighbours(degrees, shift)
    return _Neighbours(found.index.to(device), found.fit.to(device), found.spread.to(device))


def _neighbours(degrees: tuple[float, ...], shift: int) -> _Neighbours:
    w, unit = _frequencies(degrees, shift), _steps(degrees)
    found: list[tuple[Tensor, Tensor]] = []
    for point in w:
        apart = torch.cat([(sign * w - point + math.pi) % (2 * math.pi) - math.pi for sign in (1, -1)]) / unit
        near = (apart.abs() < _REACH).all(1) & (apart.abs() > 1e-9).any(1)
        found.append((near.nonzero()[:, 0] % len(w), apart[near]))
    most = max(len(index) for index, _ in found)
    axes = [axis for axis, degree in enumerate(degrees) if degree]
    pairs = list(itertools.combinations_with_replacement(axes, 2))
    index = torch.arange(len(w), device="cpu")[:, None].repeat(1, most)
    fit = torch.zeros(len(w), len(axes) + len(pairs), most, dtype=torch.float64, device="cpu")
    for place, (near, d) in enumerate(found):
        squares = [d[:, a] * d[:, b] * (0.5 if a == b else 1.0) for a, b in pairs]
        index[place, : len(near)] = near
        fit[place, :, : len(near)] = torch.linalg.pinv(torch.stack([*(d[:, a] for a in axes), *squares], 1))
    return _Neighbours(index, fit, torch.diag(unit)[axes])


def random_vectors(like: Tensor) -> Tensor:
    """Unit vectors (g, F, rows, 2) to start from; no global generator is used."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(like.shape, generator=generator, device="cpu").to(like)
    length: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return x / length


def survey(symbol: Symbol, x: Tensor, rounds: int, turn: int = 0) -> Tensor:
    """Improve the vector of every frequency, in place, by Rayleigh-Ritz in span{x, G x}, G = K^ K^^H.

    The vectors of a layer without frequencies make up a block, of which the next one is known when it overtakes.

    Args:
        symbol: the symbol, detached.
        x: (g, F, rows) complex unit vectors.
        rounds: how often; each is two or three reads of the kernel for all frequencies.
        turn: moves the grid.

    Returns:
        (g, F) heights.
    """
    if not any(symbol.layout.degrees):
        return _block(symbol, x, rounds)
    w = frequencies(symbol.layout.degrees, turn, x.device).to(x.real.dtype)
    phases = symbol.layout.phases(w)  # (F, taps)
    squares = x.real.new_zeros(x.shape[:2])
    for _ in range(rounds):
        y = symbol.read(symbol.fold(symbol.unfold(symbol.read_adjoint(x), phases), phases))
        a = (x.conj() * y).sum(-1).real
        rest = y - a[..., None] * x
        b = lengths(rest)
        e = rest / b[..., None].clamp_min(1e-30)
        c = lengths(symbol.unfold(symbol.read_adjoint(e), phases).flatten(2)).square()
        p, q, squares = _top(a, torch.where(b > 1e-5 * a, b, 0.0), c)
        fine = (p + q != 0) & (p + q).isfinite()  # weights that are not finite for a step leave no trace
        x.copy_(torch.where(fine[..., None], normalised(p[..., None] * x + q[..., None] * e), x))
    return squares.clamp_min(0).sqrt()


def _block(symbol: Symbol, x: Tensor, rounds: int) -> Tensor:
    """The same of one frequency: Rayleigh-Ritz in the span of all vectors and of their images."""
    phases = symbol.layout.phases(torch.zeros(symbol.layout.axes, dtype=x.real.dtype, device=x.device))
    energies = x.real.new_zeros(x.shape[:2])
    for _ in range(rounds):
        y = symbol.read(symbol.fold(symbol.unfold(symbol.read_adjoint(x), phases), phases))
        basis = torch.linalg.qr(torch.cat([x, normalised(y)], 1).mT).Q.mT  # (g, up to 2 F, rows)
        images = symbol.unfold(symbol.read_adjoint(basis), phases).flatten(2)
        energy = images.conj() @ images.mT
        values, vectors = torch.linalg.eigh(torch.where(energy.isfinite(), energy, 0.0))
        count = min(x.shape[1], values.shape[1])  # fewer in a layer of few rows
        fresh = normalised(vectors.flip(2)[..., :count].mT @ basis)  # a GPU's solver may not give unit vectors
        x[:, :count] = torch.where(fresh.isfinite(), fresh, x[:, :count])
        energies[:, :count] = values.flip(1)[:, :count]
    return energies.clamp_min(0).sqrt()


def _top(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first eigenvector (p, q) of [[a, b], [b, c]], b not negative, up to scale; and its eigenvalue."""
    top = (a + c) / 2 + ((a - c).square() / 4 + b.square()).sqrt()
    first = a >= c  # (top - c, b) is one, and so is (b, top - a): the longer is taken
    return torch.where(first, top - c, b), torch.where(first, b, top - a), top


def peaks(symbol: Symbol, x: Tensor, heights: Tensor, count: int, turn: int = 0) -> Tracks:
    """Tracks that start where a parabola puts the highest peaks: near the points that no neighbour tops."""
    degrees, device = symbol.layout.degrees, heights.device
    w = frequencies(degrees, turn, device)
    if not any(degrees):
        empty = torch.zeros_like(x)
        return Tracks(torch.stack([x, empty, empty], 2), w.to(heights).expand(len(x), -1, -1), heights)
    grid = _neighbours_on(degrees, turn % _SHIFTS, device)
    over = heights[:, grid.index] - heights[..., None]  # (g, F, K)
    move, rise = _vertex(grid.fit.to(heights.dtype), over, len(grid.spread))
    guess = torch.where((over > 0).any(-1), -1.0, heights + rise)
    best = guess.topk(min(count, guess.shape[1]), 1).indices
    group = torch.arange(len(best), device=device)[:, None]
    w = w + move.double() @ grid.spread
    chosen = x[group, best]
    empty = torch.zeros_like(chosen)
    return Tracks(torch.stack([chosen, empty, empty], 2), w[group, best].to(heights), heights[group, best])


def _vertex(fit: Tensor, over: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where the parabola of each point has its vertex (g, F, count), a step away at most, and its rise there."""
    terms = torch.einsum("fuk,gfk->gfu", fit, over)
    slope, bend = terms[..., :count], over.new_zeros(*terms.shape[:2], count, count)
    for place, (a, b) in enumerate(itertools.combinations_with_replacement(range(count), 2)):
        bend[..., a, b] = bend[..., b, a] = terms[..., count + place]
    bends, along = symmetric(torch.where(bend.isfinite(), bend, 0.0))
    tilt = (slope[..., None, :] @ along)[..., 0, :]
    down = bends < -1e-6 * bends.abs().amax(-1, keepdim=True) - 1e-30
    step = torch.where(down, -tilt / torch.where(down, bends, -1.0), 0.0).clamp(-1.0, 1.0)
    rise = (tilt * step + bends * step.square() / 2).sum(-1)
    move = (along @ step[..., None])[..., 0]
    return move, rise.clamp_min(0.0)
