"""Moving the tracks of a model's layers: one sweep a layer each time its weights have changed.

Layers of one tap layout are swept together, as groups of one stacked symbol: the small work is done once for
all of them, and each kernel is still read in place.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spectralnorm.estimators.ascent import lengths
from spectralnorm.estimators.tracked import frequency_step
from spectralnorm.normalize.climbing import climb, look
from spectralnorm.normalize.stack import Member, Sources, Stack
from spectralnorm.operators.base import queued, undisturbed

if TYPE_CHECKING:
    from spectralnorm.normalize.tracker import Tracker

__all__ = ["Engine"]

_TURN = 1e-3  # one minus the overlap of a leader's old and new vector, up to which a quick sweep is enough
_SCALING = 0.25  # how much of a large model's drift a change of height counts for
_PADDING = 1.5  # padded vectors may hold this many times the numbers of the layers' own;
_PADDING_LARGE = 4.0  # in a large model, whose quick sweeps handle few vectors: there the calls are what costs


class Engine:
    """The layers of one model whose states move together.

    It holds its members weakly, and neither copies nor pickles them: a copied layer joins the engine of its
    copy when it is first used.

    Attributes:
        lock: held while a state is asked for or moved.
    """

    def __init__(self) -> None:
        self._members: weakref.WeakValueDictionary[int, Tracker] = weakref.WeakValueDictionary()
        self._last: list[Stack] = []  # of the last step
        self.lock = threading.RLock()

    def join(self, member: Tracker) -> None:
        """Add a layer; joining twice is harmless."""
        self._members[id(member)] = member

    def update(self, *, sharded: bool = False) -> None:
        """Sweep every member in training whose weights have changed since its last sweep.

        Args:
            sharded: those whose weights are dealt out over processes, which is collective; or the others.
        """
        self.settle()
        like = [member for member in list(self._members.values()) if member.sharded == sharded]
        stale = [(member, sources) for member in like if (sources := member.changed()) is not None]
        if not stale:
            return
        with undisturbed(stale[0][1][0].device):
            for stack, members in self._stacks(stale):
                _advance(stack, members)

    def settle(self) -> None:
        """Do for every member what a load has left to do."""
        for member in list(self._members.values()):
            member.settle()

    def sweep(self, member: Tracker, sources: Sources) -> None:
        """Sweep one member, with the tensors at hand."""
        with undisturbed(sources[0].device):
            _advance(Stack.of([(member, sources)]), [(member, sources)])

    def _stacks(self, stale: list[Member]) -> list[tuple[Stack, list[Member]]]:
        """The stale layers as stacks: those of the last step where nothing but the numbers has changed."""
        order = {id(member): (member, sources) for member, sources in stale}
        known = [[order[id(m)] for m in stack.members if id(m) in order] for stack in self._last]
        if sum(map(len, known)) == len(stale) and all(
            len(stack) == len(members) and stack.fits(members)
            for stack, members in zip(self._last, known, strict=True)
        ):
            return list(zip(self._last, known, strict=True))
        alike: dict[Any, list[Member]] = defaultdict(list)
        for member, sources in stale:
            alike[member.stack_key(sources)].append((member, sources))
        members = list(itertools.chain.from_iterable(map(_split, alike.values())))
        self._last = [Stack.of(part) for part in members]
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
    stack.rescale(members)
    parts = stack.symbol.parts
    if first.thorough:
        due = stack.due_for_survey(members)
        found = None
        if any(due):
            asked = [member for (member, _), each in zip(members, due, strict=True) if each]
            found = stack.placed(look(asked, stack.some(due)), due)
        climb(stack, first, found=found)
    else:
        if _glide(stack, first):
            climb(stack, first, tracks=1)
        due = stack.due_for_survey(members)
    for (member, sources), part, wanted in zip(members, parts, due, strict=True):
        if wanted and not first.thorough:
            climb(Stack.of([(member, sources)]), member, found=look([member], part))
    if not queued(parts[0].weight.device):
        _weigh(stack.strays(members))
    for member, sources in members:
        member.turn += 1
        member.mark(sources)


def _weigh(strays: Sequence[Member]) -> None:
    """Look anew for the norms of kernels that have grown or shrunk beyond what their scale was chosen for."""
    for member, sources in strays:
        if member.weigh(sources):
            alone = Stack.of([(member, sources)])
            climb(alone, member, found=look([member], alone.symbol))


def _glide(stack: Stack, first: Tracker) -> bool:
    """A large model: half a power sweep of the leaders, so that each kernel is read once; the halves take turns.

    Now and then a whole sweep takes one other track along, in rotation. On a GPU every sweep is whole: launches
    cost more there than reads.

    Returns:
        Whether a leader has turned so far that this was too little; never on a GPU, where asking stops the stream.
    """
    symbol, slots, (adjoint, forward) = stack.symbol, first.slots(), first.halves()
    basis, w, v, known = stack.load(slots, 1)
    ask, move = not queued(w.device), frequency_step(symbol, None, everywhere=False)
    x, phases = basis[:, :, 0, :, None], symbol.layout.phases(w)
    before = x, v
    for _ in range(first.sweeps):
        if adjoint or not ask:
            image = symbol.read_adjoint(x[..., 0])
            w = move(image, w)
            phases = symbol.layout.phases(w)
            v, height = _unit(symbol.unfold(image, phases), v)
        folded = symbol.fold(v, phases)
        if forward or not ask:
            x, height = _unit(symbol.read(folded)[..., None], x)
    turned = False
    if ask:
        turn = _turn(before[0], x).maximum(_turn(before[1], v))
        turned = bool(symbol.agreed((turn > _TURN).any()))
        change = (height - known).abs()[:, 0] / height[:, 0].clamp_min(1e-30)
        stack.drift(turn + _SCALING * change)  # a BatchNorm's statistics scale heights, and turn little
    x = x[..., 0]
    if len(slots) > 1:
        x, v, w, height, folded = _leader_first(height, x, v, w, height, folded)
    stack.store(slots, (x[:, :, None], v[:, 0], w, height), (x[:, 0], folded[:, 0]))
    return turned


def _turn(one: Tensor, other: Tensor) -> Tensor:
    """One minus the overlap of the leaders' unit vectors (g, k, ...): (g,)."""
    a, b = one[:, 0].flatten(1), other[:, 0].flatten(1)
    return 1 - (a[:, None].conj() @ b[..., None])[:, 0, 0].abs()


def _unit(x: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (g, k, ...) made unit ones, or the spare where they are zero; and their lengths (g, k)."""
    length = lengths(x.flatten(2))
    size = length[..., None, None]
    return torch.where(size > 0, x / size.clamp_min(1e-30), spare), length


def _leader_first(height: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Swap the two tracks of a group in each tensor (g, 2, ...) where the second has overtaken the first."""
    overtaken = height[:, 1] > height[:, 0]
    return tuple(torch.where(overtaken.reshape(-1, *(1,) * (a.ndim - 1)), a.flip(1), a) for a in tensors)


def _split(members: list[Member]) -> list[list[Member]]:
    """Split layers of one layout into stacks, largest first, where padding does not outgrow the work."""

    def size(member: Tracker) -> int:
        return member.u.shape[3] + member.v.shape[1] * member.v.shape[2]

    padding = _PADDING if members and members[0][0].thorough else _PADDING_LARGE
    members = sorted(members, key=lambda pair: -size(pair[0]))
    stacks: list[list[Member]] = []
    used = 0
    for pair in members:
        groups = pair[0].heights.shape[0]
        if stacks:
            largest = size(stacks[-1][0][0])
            padded = largest * (groups + sum(m.heights.shape[0] for m, _ in stacks[-1]))
        if not stacks or padded > padding * (used + groups * size(pair[0])):
            stacks.append([])
            used = 0
        stacks[-1].append(pair)
        used += groups * size(pair[0])
    return stacks
