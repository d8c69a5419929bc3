"""Layers of one tap layout that are swept together, and the padded buffers they are swept in.

What can be prepared once is: the stacked symbol, and for every choice of slots the views that states are read
and written through. In a warm step of a large model this bookkeeping was as dear as reading the kernels.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectralnorm.estimators.ascent import Tracks
from spectralnorm.operators.fourier import Symbol, SymbolStack
from spectralnorm.operators.sharded import ShardedStack, stacked

if TYPE_CHECKING:
    from spectralnorm.normalize.tracker import Tracker

__all__ = ["TRACKS", "Member", "Slots", "Sources", "Stack"]

TRACKS = 4  # of each group; the first leads

_FAR = 2.0**24  # a height beyond, or below one over it: fourth powers are near the end of float32's range

Sources = tuple[Tensor, ...]  # what a symbol is made of: the weight first
Member = tuple["Tracker", Sources]
Slots = tuple[tuple[int, int], ...]  # which of a group's tracks: ranges of them

_NAMES = ("u", "w", "v", "heights")


class Stack:
    """Members side by side, held weakly; their vectors padded with zeros to the largest.

    Args:
        members: layers with equal `stack_key`.
        symbols: theirs.
        places: addresses of their weights, where those are read in place.

    Attributes:
        symbol: all of them as one.
        leaders: (g,) heights of the last step, over 2^exponent.
    """

    def __init__(self, members: Sequence[Tracker], symbols: Sequence[Symbol], places: Sequence[int] = ()) -> None:
        self._members = list(map(weakref.ref, members))
        self._own = [[member.get_buffer(name) for name in _NAMES] for member in members]
        self._views: dict[tuple[Slots, int], _Views] = {}
        self.symbol = stacked(symbols)
        self._places = list(places)
        self._exponents = [member.exponent for member in members]
        self.leaders = self._own[0][0].new_zeros(0)
        # a weight in another layout (channels_last) or dtype is copied to be read: that copy serves one step
        self._in_place = [symbol.weight.data_ptr() for symbol in symbols] == self._places and all(
            symbol.weight.is_contiguous() for symbol in symbols
        )

    @classmethod
    def of(cls, members: Sequence[Member]) -> Stack:
        """The stack of these layers, with their weights as they are."""
        trackers = [member for member, _ in members]
        symbols = [member.symbol(sources) for member, sources in members]
        return cls(trackers, symbols, [sources[0].data_ptr() for _, sources in members])

    def rescale(self, members: Sequence[Member]) -> None:
        """Take up what is folded into the weights, which moves with them."""
        scales = [member.scales(sources) for member, sources in members]
        if any(scale is not None for pair in scales for scale in pair):
            self.symbol.scale(scales)

    def some(self, wanted: Sequence[bool]) -> Symbol:
        """The symbol of some members, at least one."""
        parts = [part for part, each in zip(self.symbol.parts, wanted, strict=True) if each]
        return self.symbol if all(wanted) else stacked(parts)

    def placed(self, found: Tracks, wanted: Sequence[bool]) -> Tracks:
        """Tracks of `some` members as tracks of the stack; groups of the others get copies of zero vectors."""
        count, basis = found.w.shape[1], found.basis
        groups = [span for span, each in zip(self.symbol.spans, wanted, strict=True) if each]
        whole = basis.new_zeros(self.symbol.groups, count, 3, self.symbol.rows)
        w = found.w.new_zeros(self.symbol.groups, count, self.symbol.layout.axes)
        begin = 0
        for span in groups:
            part = slice(begin, begin := begin + span.stop - span.start)
            whole[span, ..., : basis.shape[3]], w[span] = basis[part], found.w[part]
        return Tracks(whole, w, w.new_zeros(w.shape[:2]))

    def drift(self, changes: Tensor) -> None:
        """Tell each member by what share its heights have moved in this step: changes (g,)."""
        changes = self.symbol.agreed(changes)
        for member, span in zip(self.members, self.symbol.spans, strict=True):
            member.drift += float(changes[span].amax())

    def due_for_survey(self, members: Sequence[Member]) -> list[bool]:
        """Which members' surveys are due, in this process or, of sharded kernels, in any."""
        due = [member.wants_survey() for member, _ in members]
        if isinstance(self.symbol, ShardedStack):
            due = [bool(one) for one in self.symbol.agreed(self._own[0][0].new_tensor(due))]
        return due

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> list[Tracker]:
        """The layers that are still there."""
        return [member for ref in self._members if (member := ref()) is not None]

    def fits(self, members: Sequence[Member]) -> bool:
        """Whether these are the stack's layers, in step, with their weights and buffers where they were."""
        turn = members[0][0].turn
        return self._in_place and all(
            ref() is member
            and sources[0].data_ptr() == place
            and member.turn == turn
            and member.exponent == exponent
            and all(member._buffers[name] is buffer for name, buffer in zip(_NAMES, own, strict=True))
            for (member, sources), ref, place, exponent, own in zip(
                members, self._members, self._places, self._exponents, self._own, strict=True
            )
        )

    def load(self, slots: Slots, depth: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Bases (g, k, depth, rows), w (g, k, axes), heights (g, k) in these slots; the leaders' v (g, 1, ...)."""
        views = self._view(slots, depth)
        torch._foreach_copy_(views.inner, views.outer)
        # weights that were not finite for a while leave tracks that are not: start those from zero
        u, w, v, heights = (views.work[name].nan_to_num_(0.0, 0.0, 0.0) for name in _NAMES)
        if self._units is not None:
            heights = heights / self._units
        return torch.view_as_complex(u), w.clone(), torch.view_as_complex(v)[:, None], heights.clone()

    def store(self, slots: Slots, tracks: tuple[Tensor, ...], lead: tuple[Tensor, Tensor]) -> None:
        """Write tracks to the members' slots, the first of each group as its leader.

        Args:
            slots: the k slots they belong in.
            tracks: bases (g, k, depth, rows), the leaders' unit v (g, c_in/g, components), w (g, k, axes),
                heights (g, k).
            lead: the leaders' singular vectors that go with their heights: left (g, rows), and right with the
                phases folded in (g, c_in/g, taps).
        """
        basis, v, w, height = tracks
        views = self._view(slots, basis.shape[2])
        self.leaders = height[:, 0].clone()
        height = height if self._units is None else height * self._units
        for name, value in zip(_NAMES, (torch.view_as_real(basis), w, torch.view_as_real(v), height), strict=True):
            views.work[name].copy_(value)
        torch._foreach_copy_(views.outer, views.inner)
        left = torch.view_as_real(lead[0]).mT  # (g, 2, rows)
        right = torch.view_as_real(lead[1].flatten(1)).mT  # (g, 2, c_in/g * taps)
        leaders = height[:, 0].clone()
        for member, span, rows, columns in self._spans:
            there = member()
            if there is not None:
                there.lead(leaders[span], left[span, :, :rows], right[span, :, :columns])

    def strays(self, members: Sequence[Member]) -> list[Member]:
        """Those whose leaders' heights, as they were swept, are so far from one that their squares lose digits."""
        low, high = torch.aminmax(self.leaders)
        if float(low) > 1 / _FAR and float(high) < _FAR:
            return []
        far = ~((self.leaders > 1 / _FAR) & (self.leaders < _FAR))
        return [pair for pair, span in zip(members, self.symbol.spans, strict=True) if bool(far[span].any())]

    @cached_property
    def _units(self) -> Tensor | None:
        """What heights are over while they are swept (g, 1); None where that is one for all."""
        if not any(self._exponents):
            return None
        units = self._own[0][0].new_ones(self.symbol.groups, 1)
        for exponent, span in zip(self._exponents, self.symbol.spans, strict=True):
            units[span] = 2.0**exponent
        return units

    @cached_property
    def _spans(self) -> list[tuple[weakref.ref[Tracker], slice, int, int]]:
        """Of each member, its groups in the stack and what of a padded vector is its own."""
        parts = zip(self._members, self.symbol.spans, self.symbol.parts, strict=True)
        return [(member, span, *part.flat.shape[1:]) for member, span, part in parts]

    def _view(self, slots: Slots, depth: int) -> _Views:
        views = self._views.get((slots, depth))
        if views is None:
            views = self._views[slots, depth] = _Views(self.symbol, self._own, slots, depth)
        return views


class _Views:
    """Buffers to sweep one choice of slots in, and the views that connect them to the members' own.

    Attributes:
        work: u (g, k, depth, rows, 2), w (g, k, axes), v (g, c_in/g, components, 2), heights (g, k), padded.
        inner, outer: views of `work`, and those of the members' states that they stand for.
    """

    def __init__(self, symbol: SymbolStack, own: Sequence[list[Tensor]], slots: Slots, depth: int) -> None:
        widths = [stop - start for start, stop in slots]
        most = max(part.weight.shape[2] for part in symbol.parts)
        groups, like = symbol.groups, own[0][0]
        self.work = {
            "u": like.new_zeros(groups, sum(widths), depth, symbol.rows, 2),
            "w": like.new_zeros(groups, sum(widths), symbol.layout.axes),
            "v": like.new_zeros(groups, most, symbol.layout.components, 2),
            "heights": like.new_zeros(groups, sum(widths)),
        }
        self.inner: list[Tensor] = []
        self.outer: list[Tensor] = []
        for (u, w, v, heights), span, part in zip(own, symbol.spans, symbol.parts, strict=True):
            rows, inputs = part.weight.shape[1:3]
            work = {name: buffer[span] for name, buffer in self.work.items()}
            ends = itertools.accumulate(widths)
            for (first, last), width, end in zip(slots, widths, ends, strict=True):
                slot, place = slice(first, last), slice(end - width, end)
                self.inner += [work["u"][:, place, :, :rows], work["w"][:, place], work["heights"][:, place]]
                self.outer += [u[:, slot, :depth], w[:, slot], heights[:, slot]]
            self.inner.append(work["v"][:, :inputs])
            self.outer.append(v)
