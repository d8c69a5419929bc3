"""Moving the tracks of a model's layers: one sweep a layer each time its weights have changed.

Layers of one tap layout are swept together, as groups of one stacked symbol: the small work is done once for
all of them, and each kernel is still read in place.
"""

from __future__ import annotations

import itertools
import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectralnorm.estimators.ascent import Tracks, normalised, power_sweep, sweep
from spectralnorm.estimators.tracked import frequency_step
from spectralnorm.operators.base import undisturbed
from spectralnorm.operators.fourier import SymbolStack

if TYPE_CHECKING:
    from spectralnorm.normalize.parametrization import SpectralNormalization

__all__ = ["Engine", "advance", "store"]

_Members = list[tuple["SpectralNormalization", Tensor]]  # with their weights

_PADDING = 4.0  # padded vectors may hold this many times the numbers of the layers' own


class Engine:
    """The layers of one model whose states move together.

    It holds its members weakly, and neither copies nor pickles them: a copied layer joins the engine of its
    copy when it is first used.
    """

    def __init__(self) -> None:
        self._members: weakref.WeakValueDictionary[int, SpectralNormalization] = weakref.WeakValueDictionary()

    def join(self, member: SpectralNormalization) -> None:
        """Add a layer; joining twice is harmless."""
        self._members[id(member)] = member

    def update(self) -> None:
        """Sweep every member in training whose weights have changed since its last sweep."""
        stale = [(m, w) for m in list(self._members.values()) if (w := m.changed_weight()) is not None]
        alike: dict[Any, _Members] = defaultdict(list)
        for member, weight in stale:
            alike[member.stack_key(weight)].append((member, weight))
        if not stale:
            return
        with undisturbed(stale[0][1].device):
            for stack in itertools.chain.from_iterable(map(_stacks, alike.values())):
                advance([m for m, _ in stack], [w for _, w in stack])

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        copy = Engine()
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> tuple[type[Engine], tuple[()]]:
        return Engine, ()


def advance(members: Sequence[SpectralNormalization], weights: Sequence[Tensor]) -> None:
    """One step of each member's state, in place.

    Args:
        members: layers with equal `stack_key`.
        weights: their weights.
    """
    symbol = SymbolStack([member.symbol(weight) for member, weight in zip(members, weights, strict=True)])
    step = _climb if members[0].thorough else _glide
    step(symbol, members)
    for member, weight in zip(members, weights, strict=True):
        member.turn += 1
        member.mark(weight)


def _climb(symbol: SymbolStack, members: Sequence[SpectralNormalization]) -> None:
    """A small model: a LOBPCG sweep of every track; now and then one starts anew elsewhere, as a scout.

    A scout has some two dozen steps to climb before its turn comes again: so another frequency that overtakes
    the leader is found (a stale maximum, `MATHS.md`, section 2).
    """
    slots = (slice(0, members[0].heights.shape[1]),)
    basis, w = _gather(symbol, members, slots, 3)
    scout = members[0].scout()
    if scout is not None:
        basis[:, scout], w[:, scout] = _start(symbol, members[0].turn, w[:, scout])
    tracks = Tracks(basis, w, w.new_zeros(w.shape[:2]))
    move = frequency_step(symbol, None, everywhere=False)
    for _ in range(2 * members[0].sweeps):  # the second reads little: images are carried along
        tracks = sweep(symbol, tracks, move)
    place = torch.arange(w.shape[1], device=w.device)
    best = tracks.height.argmax(1, keepdim=True)
    tracks = tracks.take(torch.where(place == 0, best, torch.where(place == best, 0, place)))
    assert tracks.images is not None  # noqa: S101 - every sweep leaves them
    phases = symbol.layout.phases(tracks.w[:, 0])
    v = symbol.unfold(tracks.images[:, 0, 0], phases)
    v = v / tracks.height[:, 0, None, None].clamp_min(1e-30)
    store(symbol, members, slots, (tracks.basis, v, tracks.w, tracks.height, symbol.fold(v, phases)))


def _glide(symbol: SymbolStack, members: Sequence[SpectralNormalization]) -> None:
    """A large model: a power sweep of the leaders, which reads the kernels least, and of one other in rotation."""
    slots = members[0].slots()
    basis, w = _gather(symbol, members, slots, 1)
    move = frequency_step(symbol, None, everywhere=False)
    x = basis[:, :, 0]
    for _ in range(members[0].sweeps):
        x, v, w, height, folded = power_sweep(symbol, x, w, move)
    if len(slots) > 1:
        x, v, w, height, folded = _leader_first(height, x, v, w, height, folded)
    store(symbol, members, slots, (x[:, :, None], v[:, 0], w, height, folded[:, 0]))


def _start(symbol: SymbolStack, seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Basis (g, 3, rows) and frequency (g, axes) of a fresh track in every group; no global generator is used."""
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(symbol.groups, symbol.rows, 2, generator=generator, device="cpu").to(like)
    for part, span in zip(symbol.parts, symbol.spans, strict=True):
        x[span, part.rows :] = 0
    x = normalised(torch.view_as_complex(x))
    w = 2 * torch.pi * torch.rand(like.shape, generator=generator, device="cpu").to(like)
    return torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 1), w


def _gather(
    symbol: SymbolStack, members: Sequence[SpectralNormalization], slots: Sequence[slice], depth: int
) -> tuple[Tensor, Tensor]:
    """Bases (g, k, depth, rows) and w (g, k, axes) in these slots of every member, padded to the largest."""
    widths = [slot.stop - slot.start for slot in slots]
    u = members[0].u.new_zeros(symbol.groups, sum(widths), depth, symbol.rows, 2)
    targets, sources = [], []
    for member, span, part in zip(members, symbol.spans, symbol.parts, strict=True):
        for slot, target in zip(slots, u[span, :, :, : part.rows].split(widths, 1), strict=True):
            targets.append(target)
            sources.append(member.u[:, slot, :depth])
    torch._foreach_copy_(targets, sources)
    w = torch.cat([torch.cat([member.w[:, slot] for member in members]) for slot in slots], 1)
    # weights that were not finite for a while leave tracks that are not: start those from zero, for others to pass
    return torch.view_as_complex(u.nan_to_num_(0.0, 0.0, 0.0)), w.nan_to_num(0.0, 0.0, 0.0)


def store(
    symbol: SymbolStack,
    members: Sequence[SpectralNormalization],
    slots: Sequence[slice],
    tracks: tuple[Tensor, ...],
) -> None:
    """Write tracks to the members' slots, the first of each group as its leader.

    Args:
        symbol: the members' symbols, stacked.
        members: the layers.
        slots: the k slots they belong in.
        tracks: bases (g, k, depth, rows), the leaders' unit v (g, c_in/g, components), w (g, k, axes),
            heights (g, k), and the leaders' v with the phases folded in (g, c_in/g, taps).
    """
    basis, v, w, height, folded = tracks
    right = torch.view_as_real(folded.flatten(1)).mT  # (g, 2, c_in/g * taps)
    left = torch.view_as_real(basis[:, 0, 0]).mT  # (g, 2, rows)
    real_u, real_v, depth = torch.view_as_real(basis), torch.view_as_real(v), basis.shape[2]
    widths = [slot.stop - slot.start for slot in slots]
    targets, sources = [], []
    for member, span, part in zip(members, symbol.spans, symbol.parts, strict=True):
        rows, inputs, taps = part.weight.shape[1:]
        targets.append(member.v)
        sources.append(real_v[span, :inputs])
        for whole, own in (
            (real_u[span, :, :, :rows], member.u[:, :, :depth]),
            (w[span], member.w),
            (height[span], member.heights),
        ):
            targets += [own[:, slot] for slot in slots]
            sources += [whole] if len(slots) == 1 else whole.split(widths, 1)
        member.lead(height[span, 0], left[span, :, :rows], right[span, :, : inputs * taps])
    torch._foreach_copy_(targets, sources)


def _leader_first(height: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Swap the two tracks of a group in each tensor (g, 2, ...) where the second has overtaken the first."""
    overtaken = height[:, 1] > height[:, 0]
    return tuple(torch.where(overtaken.reshape(-1, *(1,) * (a.ndim - 1)), a.flip(1), a) for a in tensors)


def _stacks(members: _Members) -> list[_Members]:
    """Split layers of one layout into stacks, largest first, where padding does not outgrow the work."""

    def size(member: SpectralNormalization) -> int:
        return member.u.shape[3] + member.v.shape[1] * member.v.shape[2]

    members = sorted(members, key=lambda pair: -size(pair[0]))
    stacks: list[_Members] = []
    used = 0
    for pair in members:
        groups = pair[0].heights.shape[0]
        if stacks:
            largest = size(stacks[-1][0][0])
            padded = largest * (groups + sum(m.heights.shape[0] for m, _ in stacks[-1]))
        if not stacks or padded > _PADDING * (used + groups * size(pair[0])):
            stacks.append([])
            used = 0
        stacks[-1].append(pair)
        used += groups * size(pair[0])
    return stacks
