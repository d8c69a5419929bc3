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

from spectralnorm.estimators.ascent import power_sweep
from spectralnorm.estimators.tracked import frequency_step
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
        device = stale[0][1].device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):  # half precision would move the norm
            for stack in itertools.chain.from_iterable(map(_stacks, alike.values())):
                advance([m for m, _ in stack], [w for _, w in stack])

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        copy = Engine()
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> tuple[type[Engine], tuple[()]]:
        return Engine, ()


def advance(members: Sequence[SpectralNormalization], weights: Sequence[Tensor]) -> None:
    """One step of each member's state, in place: the leading tracks, and every few steps one other in rotation.

    Args:
        members: layers with equal `stack_key`.
        weights: their weights.
    """
    symbol = SymbolStack([member.symbol(weight) for member, weight in zip(members, weights, strict=True)])
    slots = members[0].slots()
    x, w = _gather(symbol, members, slots)
    move = frequency_step(symbol, None, everywhere=False)
    for _ in range(members[0].sweeps):
        x, v, w, height, folded = power_sweep(symbol, x, w, move)
    if len(slots) > 1:
        x, v, w, height, folded = _leader_first(height, x, v, w, height, folded)
    store(symbol, members, slots, (x, v, w, height, folded))
    for member, weight in zip(members, weights, strict=True):
        member.turn += 1
        member.mark(weight)


def _gather(
    symbol: SymbolStack, members: Sequence[SpectralNormalization], slots: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """X (g, k, rows) and w (g, k, axes) in these slots of every member, padded to the largest."""
    u = members[0].u.new_zeros(symbol.groups, len(slots), symbol.rows, 2)
    targets, sources = [], []
    for member, span, part in zip(members, symbol.spans, symbol.parts, strict=True):
        for i, slot in enumerate(slots):
            targets.append(u[span, i, : part.rows])
            sources.append(member.u[:, slot])
    torch._foreach_copy_(targets, sources)
    w = [torch.cat([member.w[:, slot : slot + 1] for member in members]) for slot in slots]
    return torch.view_as_complex(u), torch.cat(w, 1)


def store(
    symbol: SymbolStack,
    members: Sequence[SpectralNormalization],
    slots: Sequence[int],
    tracks: tuple[Tensor, ...],
) -> None:
    """Write tracks to the members' slots, the first of each group as its leader.

    Args:
        symbol: the members' symbols, stacked.
        members: the layers.
        slots: the k slots they belong in.
        tracks: as `power_sweep` leaves them, k in each group.
    """
    x, v, w, height, folded = tracks
    right = torch.view_as_real(folded[:, 0].flatten(1)).mT  # (g, 2, c_in/g * taps)
    left = torch.view_as_real(x[:, 0]).mT  # (g, 2, rows)
    real_x, real_v = torch.view_as_real(x), torch.view_as_real(v[:, 0])
    targets, sources = [], []
    for member, span, part in zip(members, symbol.spans, symbol.parts, strict=True):
        rows, inputs, taps = part.weight.shape[1:]
        targets.append(member.v)
        sources.append(real_v[span, :inputs])
        for i, slot in enumerate(slots):
            targets += [member.u[:, slot], member.w[:, slot], member.heights[:, slot]]
            sources += [real_x[span, i, :rows], w[span, i], height[span, i]]
        member.lead(height[span, 0], left[span, :, :rows], right[span, :, : inputs * taps])
    torch._foreach_copy_(targets, sources)


def _leader_first(height: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Swap the two tracks of a group in each tensor (g, 2, ...) where the second has overtaken the first."""
    overtaken = height[:, 1] > height[:, 0]
    return tuple(torch.where(overtaken.reshape(-1, *(1,) * (a.ndim - 1)), a.flip(1), a) for a in tensors)


def _stacks(members: _Members) -> list[_Members]:
    """Split layers of one layout into stacks, largest first, where padding does not outgrow the work."""

    def size(member: SpectralNormalization) -> int:
        return member.u.shape[2] + member.v.shape[1] * member.v.shape[2]

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
