"""What a tracker remembers of the tensors that its state belongs to."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, cast

from torch import Tensor

from spectralnorm.normalize.dealt import Dealt
from spectralnorm.normalize.stack import Sources
from spectralnorm.operators.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Lead", "Mark", "Seen"]

Mark = tuple[tuple[int, int], ...]  # version and address of each source
Lead = tuple[Tensor, Tensor, Tensor]  # sigma (); left (g, 2, rows), right (g, 2, c_in/g * taps), its derivative


class Seen:
    """What a tracker knows of the tensors it last met. A plain object, since nn.Module's setattr is slow.

    Attributes:
        dealt: the weight, where it is dealt out over processes.
        sources: the tensors, held weakly.
        mark: of the sources the state belongs to.
        lead: sigma and its derivative, for the sources of `lead_mark`.
        lead_mark: see `lead`.
        joined: whether the engine knows the tracker.
    """

    __slots__ = ("dealt", "joined", "lead", "lead_mark", "mark", "sources")

    def __init__(self) -> None:
        self.dealt: Dealt | None = None
        self.sources: tuple[weakref.ref[Tensor], ...] = ()
        self.mark: Mark | None = None
        self.lead: Lead | None = None
        self.lead_mark: Mark | None = None
        self.joined = False

    def meet(self, sources: Sources) -> None:
        """Remember the tensors, weakly but for shards."""
        if is_sharded(sources[0]):
            self.deal_out(sources[0])
        else:
            self.sources = tuple(map(weakref.ref, sources))

    def deal_out(self, weight: DTensor) -> None:
        """Remember a weight by its shards."""
        self.dealt, self.sources = Dealt(weight), ()

    def known(self) -> Sources | None:
        """The tensors, if they are all still there; or the shards of the weight."""
        if self.dealt is not None:
            return (self.dealt.weight,)
        found = tuple(source() for source in self.sources)
        return None if not found or any(source is None for source in found) else cast("Sources", found)
