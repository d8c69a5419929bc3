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

from spectralnorm.estimators.ascent import Tracks, lengths, normalised, sweep
from spectralnorm.estimators.tracked import frequency_step
from spectralnorm.normalize.stack import Member, Stack
from spectralnorm.operators.base import undisturbed
from spectralnorm.operators.fourier import SymbolStack

if TYPE_CHECKING:
    from spectralnorm.normalize.parametrization import SpectralNormalization

__all__ = ["Engine"]

_CALM = 5e-3  # relative change of a norm in a step that a large model's quick sweeps follow
_PADDING = 4.0  # padded vectors may hold this many times the numbers of the layers' own


class Engine:
    """The layers of one model whose states move together.

    It holds its members weakly, and neither copies nor pickles them: a copied layer joins the engine of its
    copy when it is first used.
    """

    def __init__(self) -> None:
        self._members: weakref.WeakValueDictionary[int, SpectralNormalization] = weakref.WeakValueDictionary()
        self._last: list[Stack] = []  # of the last step

    def join(self, member: SpectralNormalization) -> None:
        """Add a layer; joining twice is harmless."""
        self._members[id(member)] = member

    def update(self) -> None:
        """Sweep every member in training whose weights have changed since its last sweep."""
        stale = [(m, w) for m in list(self._members.values()) if (w := m.changed_weight()) is not None]
        if not stale:
            return
        with undisturbed(stale[0][1].device):
            for stack, members in self._stacks(stale):
                _advance(stack, members)

    def _stacks(self, stale: list[Member]) -> list[tuple[Stack, list[Member]]]:
        """The stale layers as stacks: those of the last step where nothing but the numbers has changed."""
        order = {id(member): (member, weight) for member, weight in stale}
        known = [[order[id(m)] for m in stack.members if id(m) in order] for stack in self._last]
        if sum(map(len, known)) == len(stale) and all(
            len(stack) == len(members) and stack.fits(members)
            for stack, members in zip(self._last, known, strict=True)
        ):
            return list(zip(self._last, known, strict=True))
        alike: dict[Any, list[Member]] = defaultdict(list)
        for member, weight in stale:
            alike[member.stack_key(weight)].append((member, weight))
        members = list(itertools.chain.from_iterable(map(_split, alike.values())))
        self._last = [Stack(part) for part in members]
        return list(zip(self._last, members, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        copy = Engine()
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> tuple[type[Engine], tuple[()]]:
        return Engine, ()


def _advance(stack: Stack, members: Sequence[Member]) -> None:
    """One step of each member's state, in place."""
    first = members[0][0]
    if first.thorough or _glide(stack, first):
        _climb(stack, first)
    for member, weight in members:
        member.turn += 1
        member.mark(weight)


def _climb(stack: Stack, first: SpectralNormalization) -> None:
    """A small model, or fast weights: LOBPCG sweeps of every track; now and then one starts anew, as a scout.

    A scout has some two dozen steps to climb before its turn comes again: so another frequency that overtakes
    the leader is found (a stale maximum, `MATHS.md`, section 2).
    """
    symbol, slots = stack.symbol, ((0, first.heights.shape[1]),)
    basis, w, _, _ = stack.load(slots, 3)
    if not first.thorough:
        basis[:, :, 1:] = 0  # directions and residuals of some earlier climb
    scout = first.scout()
    if scout is not None:
        basis[:, scout], w[:, scout] = _start(symbol, first.turn, w[:, scout])
    tracks = Tracks(basis, w, w.new_zeros(w.shape[:2]))
    move = frequency_step(symbol, None, everywhere=False)
    for _ in range(2 * first.sweeps):  # the second reads little: images are carried along
        tracks = sweep(symbol, tracks, move)
    place = torch.arange(w.shape[1], device=w.device)
    best = tracks.height.argmax(1, keepdim=True)
    tracks = tracks.take(torch.where(place == 0, best, torch.where(place == best, 0, place)))
    assert tracks.images is not None  # noqa: S101 - every sweep leaves them
    phases = symbol.layout.phases(tracks.w[:, 0])
    v = symbol.unfold(tracks.images[:, 0, 0], phases)
    v = v / tracks.height[:, 0, None, None].clamp_min(1e-30)
    stack.store(slots, (tracks.basis, v, tracks.w, tracks.height), (tracks.basis[:, 0, 0], symbol.fold(v, phases)))


def _glide(stack: Stack, first: SpectralNormalization) -> bool:
    """A large model: half a power sweep of the leaders, so that each kernel is read once; the halves take turns.

    Now and then a whole sweep takes one other track along, in rotation. On a GPU every sweep is whole: launches
    cost more there than reads.

    Returns:
        Whether a norm has moved so fast that this was too little; never on a GPU, where asking stops the stream.
    """
    symbol, slots, (adjoint, forward) = stack.symbol, first.slots(), first.halves()
    basis, w, v, before = stack.load(slots, 1)
    ask, move = w.device.type == "cpu", frequency_step(symbol, None, everywhere=False)
    x, phases = basis[:, :, 0, :, None], symbol.layout.phases(w)
    for _ in range(first.sweeps):
        if adjoint or not ask:
            image = symbol.read_adjoint(x[..., 0])
            w = move(image, w)
            phases = symbol.layout.phases(w)
            v, height = _unit(symbol.unfold(image, phases), v)
        folded = symbol.fold(v, phases)
        if forward or not ask:
            x, height = _unit(symbol.read(folded)[..., None], x)
    fast = ask and bool(((height - before).abs() > _CALM * height)[:, 0].any())
    x = x[..., 0]
    if len(slots) > 1:
        x, v, w, height, folded = _leader_first(height, x, v, w, height, folded)
    stack.store(slots, (x[:, :, None], v[:, 0], w, height), (x[:, 0], folded[:, 0]))
    return fast


def _unit(x: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (g, k, ...) made unit ones, or the spare where they are zero; and their lengths (g, k)."""
    length = lengths(x.flatten(2))
    size = length[..., None, None]
    return torch.where(size > 0, x / size.clamp_min(1e-30), spare), length


def _start(symbol: SymbolStack, seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Basis (g, 3, rows) and frequency (g, axes) of a fresh track in every group; no global generator is used."""
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(symbol.groups, symbol.rows, 2, generator=generator, device="cpu").to(like)
    for part, span in zip(symbol.parts, symbol.spans, strict=True):
        x[span, part.rows :] = 0
    x = normalised(torch.view_as_complex(x))
    w = 2 * torch.pi * torch.rand(like.shape, generator=generator, device="cpu").to(like)
    return torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 1), w


def _leader_first(height: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Swap the two tracks of a group in each tensor (g, 2, ...) where the second has overtaken the first."""
    overtaken = height[:, 1] > height[:, 0]
    return tuple(torch.where(overtaken.reshape(-1, *(1,) * (a.ndim - 1)), a.flip(1), a) for a in tensors)


def _split(members: list[Member]) -> list[list[Member]]:
    """Split layers of one layout into stacks, largest first, where padding does not outgrow the work."""

    def size(member: SpectralNormalization) -> int:
        return member.u.shape[3] + member.v.shape[1] * member.v.shape[2]

    members = sorted(members, key=lambda pair: -size(pair[0]))
    stacks: list[list[Member]] = []
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
