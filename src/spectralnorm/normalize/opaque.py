"""The sweep as one opaque operation, so that `torch.compile` sees no branch on versions of tensors.

Compiled code calls a tracker by a number. The operation has a hidden state, the tracker's; it gives the same
result for the same tensors, so that a compiler may merge calls.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectralnorm.normalize.steps import watch_optimizers
from spectralnorm.normalize.transforms import bare, outside, transformed
from spectralnorm.operators.base import queued

if TYPE_CHECKING:
    from spectralnorm.normalize.stack import Sources
    from spectralnorm.normalize.tracker import Tracker

__all__ = ["ask", "enlist"]

_LIVE: weakref.WeakValueDictionary[int, Tracker] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def enlist(tracker: Tracker) -> int:
    """A number of its own for a tracker, by which compiled code finds it."""
    watch_optimizers(_addresses)
    number = next(_NUMBERS)
    _LIVE[number] = tracker
    return number


def _addresses() -> set[int]:
    """Of all tensors that trackers have met."""
    return {address for tracker in list(_LIVE.values()) for address in tracker.addresses()}


def ask(tracker: Tracker, *sources: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sigma (), left (g, 2, rows) and right (g, 2, c_in/g * taps) of a tracker for these tensors."""
    if torch.compiler.is_compiling():
        found: tuple[Tensor, Tensor, Tensor] = _lead([source.detach() for source in sources], tracker.handle)
        return found
    if sources[0].is_meta:
        return _shaped(tracker, sources[0])
    if transformed():
        sources = tuple(map(bare, sources))
        with outside():
            return tracker.measure(*sources)
    return tracker.measure(*sources)


@torch.library.custom_op("spectralnorm::lead", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _lead(sources: list[Tensor], handle: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `ask`; the results are copies, since a compiler may write over what it was given."""
    tracker = _LIVE.get(handle)
    if tracker is None:
        raise RuntimeError(
            "This program was exported from a normalised model that is not here any more; expected one of plain "
            "weights. Export after remove_spectral_norm, of a copy where training goes on."
        )
    sigma, left, right = tracker.measure(*_uncopied(sources, tracker.known()))
    return (
        sigma.clone(),
        left.clone(memory_format=torch.contiguous_format),
        right.clone(memory_format=torch.contiguous_format),
    )


def _uncopied(sources: list[Tensor], known: Sources | None) -> Sources:
    """The parameters in place of copies of them, which a compiler makes in layouts of its own liking.

    Copies are known by their values. On a GPU that would stop the stream: there a copy counts as a changed weight.

    Returns:
        The tensors to measure.
    """
    if known is None or any(queued(source.device) for source in sources):
        return tuple(sources)
    return tuple(
        there if there.data_ptr() == source.data_ptr() or torch.equal(there, source) else source
        for there, source in zip(known, sources, strict=True)
    )


@_lead.register_fake
def _(sources: list[Tensor], handle: int) -> tuple[Tensor, Tensor, Tensor]:
    return _shaped(_LIVE[int(handle)], sources[0])


def _shaped(tracker: Tracker, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors of the shapes that a tracker gives, on the device of another."""
    groups, rows, columns, taps = tracker.blocks
    shapes: tuple[tuple[int, ...], ...] = ((), (groups, 2, rows), (groups, 2, columns * taps))
    sigma, left, right = (like.new_empty(shape, dtype=tracker.heights.dtype) for shape in shapes)
    return sigma, left, right
