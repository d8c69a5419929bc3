"""What follows the spectral norm of one layer through training: a handful of tracks, and the leading triple.

The state moves once each time the weight has changed, in training only; asking again changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, distributed, nn

from spectralnorm.estimators.ascent import lengths
from spectralnorm.normalize.climbing import ahead, cold
from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.fingerprint import OUTDATED, TRUSTED, alike, fingerprint
from spectralnorm.normalize.opaque import enlist
from spectralnorm.normalize.seen import Lead, Mark, Seen
from spectralnorm.normalize.stack import Sources, Stack
from spectralnorm.normalize.state import BUFFERS, State, fits
from spectralnorm.normalize.survey import random_vectors, survey
from spectralnorm.operators.base import Operator, undisturbed
from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Tracker"]

_SURVEY_COLD = 4  # rounds of the first survey
_COUNTERS = 3  # in the extra state, before the fingerprint


class Tracker(State):
    """The size-free spectral norm of one layer, followed through training.

    What it has found is its state; this class knows which weight that belongs to, and when it has to move.

    Attributes:
        engine: moves the states of all layers of a model together.
        handle: what compiled code calls the tracker by.
    """

    def __init__(
        self, operator: Operator, engine: Engine, *, place: int = 0, sweeps: int = 1, small: bool = True
    ) -> None:
        symbol = operator.symbol()
        super().__init__(symbol, place=place, sweeps=sweeps, small=small)
        self.engine = engine
        self._seen = Seen()
        # at the next use: "check" after a copy, "converge" after a write, "fresh" where processes run side by side
        self._pending: str | None = None
        self._print: tuple[float, ...] = ()  # fingerprint of the sources the state belongs to
        self._attached = False
        self.handle = enlist(self)
        self._converge(symbol)

    def stack_key(self, sources: Sources) -> tuple[Any, ...]:
        """Layers with equal keys can be swept together."""
        dealt = self._seen.dealt
        processes = None if dealt is None else (dealt.weight.device_mesh, dealt.weight.placements)
        return (self._key, self.heights.dtype, sources[0].device, self.thorough, self.phase, processes)

    @property
    def moves(self) -> bool:
        """Whether the state follows the weight: in training."""
        return self.training

    @property
    def sharded(self) -> bool:
        """Whether the weight is dealt out over processes between forward passes."""
        return self._seen.dealt is not None

    # -- the weight ---------------------------------------------------------------------------------

    def measure(self, *sources: Tensor) -> Lead:
        """The norm as the state knows it, and its derivative; the state moves first if it has to.

        Threads wait for each other here: a state that two of them moved at once would be of neither's weights.

        Returns:
            Sigma, and its singular vectors.
        """
        with self.engine.lock:
            return self._measure(sources)

    def _measure(self, sources: Sources) -> Lead:
        seen = self._seen
        met = seen.dealt is None and (
            len(seen.sources) != len(sources)
            or any(
                (there := ref()) is None or there.data_ptr() != source.data_ptr()
                for ref, source in zip(seen.sources, sources, strict=True)
            )
        )
        if met:  # compiled code passes aliases that do not outlive it: a parameter is kept in their place
            seen.meet(sources)
        alone = not seen.joined or (met and self._pending is not None)
        self._join()
        if self._pending is not None and not alone:
            self.engine.settle()  # all of a loaded model: its layers move together then, as they would have
        if self._pending is not None:
            alone = True
            self._settle(sources)
        mark = self.mark_of(sources)
        if not self._attached:
            self.mark(sources)  # torch calls this while registering, with the weight just measured
        if self.moves and seen.mark != mark:
            # layers of a copy, or with tensors just assigned, come one by one: those before have moved already;
            # and in a forward pass of FSDP2 no weight but this one needs to be there
            if alone or (seen.dealt is not None and not is_sharded(sources[0])):
                self.engine.sweep(self, sources)
            else:
                self.engine.update(sharded=seen.dealt is not None)
        if seen.lead is None or seen.lead_mark != mark:
            self._lead_on(sources, mark)
        assert seen.lead is not None  # noqa: S101 - either the engine or `_lead_on` has set it
        return seen.lead

    def _join(self) -> None:
        if not self._seen.joined:
            self.engine.join(self)
            self._seen.joined = True

    def known(self) -> Sources | None:
        """The tensors last met, if they are all still there, and in one piece."""
        return None if self.sharded else self._seen.known()

    def mark_of(self, sources: Sources) -> Mark:
        """What changes when PyTorch writes to a tensor or another takes its place; `.data` writes go unseen."""
        if self._seen.dealt is not None:
            return self._seen.dealt.mark()
        return tuple((0 if s.is_inference() else s._version, s.data_ptr()) for s in sources)

    def addresses(self) -> list[int]:
        """Where the tensors lie that the lead was last worked out for."""
        return [address for _, address in self._seen.lead_mark or ()]

    def attached(self, *sources: Tensor) -> None:
        """Note that a layer carries this tracker now, and that the state belongs to its weight."""
        self._attached = True
        self._pending = None
        self._join()
        self._seen.meet(sources)
        self.weigh(sources)
        self.mark(sources)
        if not self.sharded and distributed.is_available() and distributed.is_initialized():
            # DDP may be about to write the first process's weights, but not its state, into this one
            self._pending, self._print = "fresh", fingerprint(sources)

    def deal_out(self, weight: DTensor) -> None:
        """Note that the weight is dealt out from now on, or has got other shards. Nothing else happens to it."""
        if self._seen.dealt is not None:
            self._seen.dealt.weight = weight
            return
        known = self._seen.known()
        current = known is not None and self._seen.mark == self.mark_of(known)
        self._seen.deal_out(weight)
        if self._pending == "fresh":
            self._pending = None if current else "converge"
        if current:
            self.mark(())

    def changed(self) -> Sources | None:
        """The sources, when in training and changed since the state last moved."""
        known = self._seen.known()
        if known is None or not self.moves or self._pending or self._seen.mark == self.mark_of(known):
            return None
        return known

    def mark(self, sources: Sources) -> None:
        """Note that the state, and the lead, belong to the sources as they are now."""
        self._seen.mark = self._seen.lead_mark = self.mark_of(sources)

    def lead(self, heights: Tensor, left: Tensor, right: Tensor) -> None:
        """Take sigma and its derivative from the leaders: heights (g,), left (g, 2, rows), right (g, 2, ...)."""
        if len(heights) > 1:
            best = nn.functional.one_hot(heights.argmax(), len(heights)).to(left)
            left = left * best[:, None, None]
        self._seen.lead = (heights.amax(), left, right)

    def settle(self) -> None:
        """Do what a load or an assignment has left to do, if the tensors are known."""
        known = None if self._pending is None else self.known()
        if known is not None:
            self._settle(known)

    def _settle(self, sources: Sources) -> None:
        """Do at the first use after a copy, a load or an assignment what could not be done then."""
        pending, self._pending = self._pending, None
        self._seen.lead = None
        same = pending != "converge" and self._recognises(sources)
        if not same and pending != "check":
            self.converge(*sources)
            same = True
        else:
            self.weigh(sources)
        if same:
            self.mark(sources)

    def _recognises(self, sources: Sources) -> bool:
        """Whether the state belongs to the sources; of shards, whether it did belong to those it came with."""
        if self.sharded or self._print == TRUSTED:
            return bool(self._print) and self._print != OUTDATED
        return alike(self._print, fingerprint(sources))

    def _current_print(self) -> tuple[float, ...]:
        """Fingerprint of the sources the state belongs to; empty when the weight has moved on."""
        if self._pending is not None:
            return self._print if self._pending != "converge" else ()
        known = self._seen.known()
        current = known is not None and self._seen.mark == self.mark_of(known)
        if self.sharded:  # to sum over all shards would be collective
            return TRUSTED if current else OUTDATED
        return fingerprint(known) if known is not None and current else ()

    def _lead_on(self, sources: Sources, mark: Mark) -> None:
        """Work out the lead from the state as it is or, in eval on a weight changed since, from where it leads."""
        with undisturbed(sources[0].device):
            current = self._seen.mark == mark
            if not current:
                self.weigh(sources)
            symbol, v = self.symbol(sources), torch.view_as_complex(self.v)
            if current:
                folded = symbol.fold(v, symbol.layout.phases(self.w[:, 0]))
                heights, left = self.heights[:, 0].clone(), torch.view_as_complex(self.u[:, 0, 0].clone())
            elif float(lengths(v.flatten(1)).min()) > 0.999:
                heights, left, folded = ahead(self, symbol)
                heights = heights * 2.0**self.exponent
            else:  # averaged buffers, or a kernel that was zero: no unit vectors to go by
                x, _, _, height, fresh = cold(symbol)
                heights, left, folded = height[:, 0] * 2.0**self.exponent, x[:, 0], fresh[:, 0]
            self.lead(heights, torch.view_as_real(left).mT, torch.view_as_real(folded.flatten(1)).mT)
            self._seen.lead_mark = mark

    # -- the state ----------------------------------------------------------------------------------

    def converge(self, *sources: Tensor) -> None:
        """Find the state of a weight from cold."""
        with undisturbed(sources[0].device):
            self.weigh(sources)
            self._converge(self.symbol(sources))

    def _converge(self, symbol: Symbol) -> None:
        with undisturbed(symbol.weight.device):
            symbol = symbol.to(self.heights.dtype).plain()
            x, v, w, height, folded = cold(symbol)
            self.u.zero_()
            self.heights.zero_()
            basis = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 2)
            slots = ((0, w.shape[1]),)
            self.grid.copy_(random_vectors(self.grid))
            survey(symbol.over(symbol.largest()), torch.view_as_complex(self.grid), _SURVEY_COLD)
            Stack([self], [symbol]).store(slots, (basis, v[:, 0], w, height), (x[:, 0], folded[:, 0]))
        self.turn, self.rested, self.drift = 0, 0, 0.0

    # -- copies, checkpoints, devices ---------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """What a checkpoint holds beside the buffers: counters, and the fingerprint of the state's weight."""
        return torch.tensor([self.turn, self.rested, self.drift, *self._current_print()], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up where a checkpoint left off."""
        turn, rested, drift, *known = state.tolist()
        self.turn, self.rested, self.drift, self._print = int(turn), int(rested), drift, tuple(known)

    def _apply(self, fn: Any, recurse: bool = True) -> Tracker:
        """As of any state; what `to_empty` makes of one on the meta device is found anew."""
        was_meta = self.heights.is_meta
        super()._apply(fn, recurse)
        if was_meta and not self.heights.is_meta:
            self._pending = "converge"
        return self

    def __getstate__(self) -> dict[str, Any]:
        pending = "converge" if self._pending == "converge" else "check"
        return {**self.__dict__, "_seen": Seen(), "_print": self._current_print(), "_pending": pending}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.handle = enlist(self)

    def _replicate_for_data_parallel(self) -> Tracker:
        """Refuse: replicas live for one forward pass, and what their states learn is lost."""
        raise RuntimeError(
            "A normalised layer cannot be replicated by nn.DataParallel, whose copies are thrown away after each "
            "pass, with what their states have learnt; expected one process a device. Use "
            "torch.nn.parallel.DistributedDataParallel."
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *args: Any) -> None:
        """Weights that come with their state keep it bit for bit; weights without it reconverge."""
        complete = _counts(state_dict.get(prefix + "_extra_state")) and all(
            fits(state_dict.get(prefix + name), self.get_buffer(name)) for name in BUFFERS
        )
        if not complete:  # or of another release, whose states have other shapes, or not finite
            for name in (*BUFFERS, "_extra_state"):
                state_dict.pop(prefix + name, None)
        missing = cast("list[str]", args[1])
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)
        missing[:] = [key for key in missing if not key.startswith(prefix)]
        known = self._seen.known()
        replaced = bool(metadata.get("assign_to_params_buffers"))
        if complete:
            self._pending, self._seen.mark = "check", None
        elif replaced or known is None or self._seen.mark != self.mark_of(known):
            self._pending = "converge"


def _counts(extra: object) -> bool:
    """Whether a loaded extra state begins with counters."""
    return isinstance(extra, Tensor) and fits(extra[:_COUNTERS], extra.new_empty(_COUNTERS))
