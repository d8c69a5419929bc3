"""Looking over all frequencies, so that none overtakes the leader unseen.

While weights move, s(w) may become largest where no track is (a stale maximum, `MATHS.md`, section 2); normalised
layers are nearly flat over frequencies, with many peaks that take turns. So one vector is kept for each frequency
of a grid. A survey improves them all with a few products with the kernel, and its peaks are where tracks should
climb next.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from spectralnorm.estimators.ascent import Tracks, lengths, normalised
from spectralnorm.estimators.tracked import seeds
from spectralnorm.operators.fourier import Symbol

__all__ = ["frequencies", "peaks", "random_vectors", "survey"]


@lru_cache(maxsize=256)
def frequencies(degrees: tuple[float, ...]) -> Tensor:
    """The grid (F, axes), float64: that of cold starts; one point where there is nothing to look over."""
    return seeds(degrees) if any(degrees) else torch.zeros(1, len(degrees), dtype=torch.float64, device="cpu")


@lru_cache(maxsize=256)
def _neighbours(degrees: tuple[float, ...]) -> Tensor:
    """Which points of the grid are next to which (F, F), w and -w being the same."""
    w = frequencies(degrees)
    counts = [len(axis.unique()) for axis in w.T]
    halved = next(axis for axis, degree in enumerate(degrees) if degree)
    steps = [2 * math.pi / (n * (1 + (axis == halved))) for axis, n in enumerate(counts)]
    near: Tensor = torch.zeros(len(w), len(w), dtype=torch.bool, device="cpu")
    for sign in (1, -1):
        apart = (w[:, None] - sign * w[None] + math.pi) % (2 * math.pi) - math.pi
        near |= (apart.abs() < 1.5 * torch.tensor(steps, dtype=w.dtype, device="cpu")).all(-1)
    near.fill_diagonal_(False)
    return near


def random_vectors(like: Tensor) -> Tensor:
    """Unit vectors (g, F, rows, 2) to start from; no global generator is used."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(like.shape, generator=generator, device="cpu").to(like)
    length: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return x / length


def survey(symbol: Symbol, x: Tensor, rounds: int) -> Tensor:
    """Improve the vector of every frequency, in place, by Rayleigh-Ritz in span{x, G x}, G = K^ K^^H.

    Args:
        symbol: the symbol, detached.
        x: (g, F, rows) complex unit vectors.
        rounds: how often; each is three reads of the kernel for all frequencies.

    Returns:
        (g, F) heights.
    """
    w = frequencies(symbol.layout.degrees).to(x.device, x.real.dtype)
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
        x.copy_(torch.where((p + q != 0)[..., None], normalised(p[..., None] * x + q[..., None] * e), x))
    return squares.clamp_min(0).sqrt()


def _top(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first eigenvector (p, q) of [[a, b], [b, c]], b not negative, up to scale; and its eigenvalue."""
    top = (a + c) / 2 + ((a - c).square() / 4 + b.square()).sqrt()
    first = a >= c  # (top - c, b) is one, and so is (b, top - a): the longer is taken
    return torch.where(first, top - c, b), torch.where(first, b, top - a), top


def peaks(symbol: Symbol, x: Tensor, heights: Tensor, count: int) -> Tracks:
    """Tracks at the highest points of the grid that no neighbour tops."""
    degrees = symbol.layout.degrees
    near = _neighbours(degrees).to(heights.device)
    topped: Tensor = (torch.where(near, heights[:, None], -1.0) > heights[..., None]).any(-1)
    place = torch.where(topped, heights - heights.amax(1, keepdim=True) - 1, heights)
    best = place.topk(min(count, place.shape[1]), 1).indices
    group = torch.arange(len(best), device=best.device)[:, None]
    w = frequencies(degrees).to(x.device)[best].to(heights)
    chosen, empty = x[group, best], torch.zeros_like(x[group, best])
    return Tracks(torch.stack([chosen, empty, empty], 2), w, heights[group, best])
