"""Climbing with all tracks of a stack, and with those that a survey of all frequencies adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectralnorm.estimators.ascent import Tracks, power_sweep, sweep
from spectralnorm.estimators.tracked import Tracked, frequency_step
from spectralnorm.normalize.stack import TRACKS, Stack
from spectralnorm.normalize.survey import peaks, survey
from spectralnorm.operators.base import queued
from spectralnorm.operators.fourier import Symbol, SymbolStack

if TYPE_CHECKING:
    from spectralnorm.normalize.tracker import Tracker

__all__ = ["ahead", "climb", "cold", "look"]

_STILL = 1e-4  # relative gain of a sweep at which a climb ends
_MOST = 8  # sweeps a step in a small model at most,
_MOST_LARGE = 3  # and in a large one,
_BLIND = 3  # and sweeps where the gain is not asked for, since that would stop a GPU's stream
_POLISH = 8  # sweeps of a leader that stays: gradients go by its vectors, which settle after its height
_PEAKS = 40  # of a survey, that climb in a small model: all there are along two axes
_PEAKS_LARGE = 4
_SCOUTED = 3  # sweeps of those: the highest then climb on beside the tracks, as often as they gain


def climb(stack: Stack, first: Tracker, *, tracks: int = TRACKS, found: Tracks | None = None) -> None:
    """LOBPCG sweeps; in a small model until the highest track gains next to nothing.

    Args:
        stack: the layers.
        first: one of them.
        tracks: how many of the stack's own climb, the leader first.
        found: further ones; the best of all are kept.
    """
    symbol, slots = stack.symbol, ((0, tracks),)
    basis, w, _, known = stack.load(slots, 3)
    if not first.thorough:
        basis[:, :, 1:] = 0  # directions and residuals of some earlier climb
    climbing = Tracks(basis, w, w.new_zeros(w.shape[:2]))
    climbing = climbing if found is None else climbing.beside(found)
    climbing = _sweeps(symbol, climbing, first.sweeps * _most(first), leader=True)
    if first.thorough and not queued(w.device):
        moved = (climbing.height[:, :tracks] - known).abs().amax(1)
        stack.drift(moved / climbing.height.amax(1).clamp_min(1e-30))
    if found is not None:
        return _store(stack, climbing.take(climbing.distinct(tracks)))
    place = torch.arange(tracks, device=w.device)
    leader = climbing.height.argmax(1, keepdim=True)
    return _store(stack, climbing.take(torch.where(place == 0, leader, torch.where(place == leader, 0, place))))


def look(members: Sequence[Tracker], symbol: Symbol) -> Tracks:
    """Survey layers of one layout, and give the best of what climbs from the peaks.

    Args:
        members: the layers, in step with each other.
        symbol: theirs, one or stacked; the vectors of smaller layers are padded with zeros.

    Returns:
        A few tracks of each group of the symbol.
    """
    first = members[0]
    spans = symbol.spans if isinstance(symbol, SymbolStack) else (slice(symbol.groups),)
    grids = [torch.view_as_complex(member.grid) for member in members]
    x = grids[0].new_zeros(symbol.groups, grids[0].shape[1], symbol.rows)
    for span, grid in zip(spans, grids, strict=True):
        x[span, :, : grid.shape[2]] = grid
    heights = survey(symbol, x, 2 if first.thorough else 1, first.turn)
    for span, grid in zip(spans, grids, strict=True):
        grid.copy_(x[span, :, : grid.shape[2]])
    tracks = peaks(symbol, x, heights, _PEAKS if first.thorough else _PEAKS_LARGE, first.turn)
    tracks = _sweeps(symbol, tracks, _SCOUTED, leader=False)
    return tracks.take(tracks.distinct(TRACKS))


def ahead(member: Tracker, symbol: Symbol) -> tuple[Tensor, Tensor, Tensor]:
    """The leaders of a weight that the state does not belong to, found from the state, which stays as it is.

    Args:
        member: in eval mode.
        symbol: of the weight as it is.

    Returns:
        Heights (g,), left vectors (g, rows), right vectors with the phases folded in (g, c_in/g, taps).
    """
    x, basis = torch.view_as_complex(member.grid.clone()), torch.view_as_complex(member.u.clone())
    heights = survey(symbol, x, 2, member.turn)
    basis[:, :, 1:] = 0  # directions and residuals of another weight
    tracks = Tracks(basis, member.w, member.heights).beside(peaks(symbol, x, heights, _PEAKS, member.turn))
    tracks = _sweeps(symbol, tracks, _MOST, leader=False)
    leaders, move = (
        tracks.take(tracks.height.argmax(1, keepdim=True)),
        frequency_step(symbol, None, everywhere=False),
    )
    for _ in range(_POLISH):
        leaders = sweep(symbol, leaders, move)
    return (
        leaders.height[:, 0],
        leaders.basis[:, 0, 0],
        symbol.fold(_right(symbol, leaders), _phases(symbol, leaders)),
    )


def cold(symbol: Symbol) -> tuple[Tensor, ...]:
    """Converged tracks, the leaders first, as `power_sweep` leaves them."""
    symbol = symbol.plain()
    tracks, _ = Tracked(tracks=2 * TRACKS).climb(symbol, None, 1e-3)
    tracks = tracks.take(tracks.distinct(TRACKS))
    largest = symbol.largest()  # heights are squared: keep them in range
    x, v, w, height, folded = power_sweep(symbol.over(largest), *tracks.start(), lambda _, w: w)
    anywhere = torch.full_like(v, math.prod(v.shape[2:]) ** -0.5)  # where the kernel answers with zero
    return x, torch.where(height[..., None, None] > 0, v, anywhere), w, height * largest, folded


def _phases(symbol: Symbol, tracks: Tracks) -> Tensor:
    return symbol.layout.phases(tracks.w[:, 0])


def _right(symbol: Symbol, tracks: Tracks) -> Tensor:
    """The leaders' right singular vectors (g, c_in/g, components)."""
    assert tracks.images is not None  # noqa: S101 - every sweep leaves them
    v = symbol.unfold(tracks.images[:, 0, 0], _phases(symbol, tracks))
    return v / tracks.height[:, 0, None, None].clamp_min(1e-30)


def _most(member: Tracker) -> int:
    return _MOST if member.thorough else _MOST_LARGE


def _sweeps(symbol: Symbol, tracks: Tracks, most: int, *, leader: bool) -> Tracks:
    """Sweeps until the leader, or every track, gains next to nothing; on a GPU, where asking is dear, a few."""
    watched, move = not queued(tracks.w.device), frequency_step(symbol, None, everywhere=False)
    for _ in range(most if watched else min(most, _BLIND)):
        before = tracks.height
        tracks = sweep(symbol, tracks, move)  # from the second on images are carried along
        if leader:
            still = tracks.height.amax(1) <= before.amax(1) * (1 + _STILL)
        else:
            still = tracks.height <= before * (1 + _STILL)
        if watched and not symbol.agreed(~still.all()):
            break
    return tracks


def _store(stack: Stack, tracks: Tracks) -> None:
    """Write all tracks of a stack to its members, with the leaders' right vectors."""
    symbol, slots, v = stack.symbol, ((0, tracks.w.shape[1]),), _right(stack.symbol, tracks)
    lead = tracks.basis[:, 0, 0], symbol.fold(v, _phases(symbol, tracks))
    stack.store(slots, (tracks.basis, v, tracks.w, tracks.height), lead)
