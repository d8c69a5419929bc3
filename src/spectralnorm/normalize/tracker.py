"""What follows the spectral norm of one layer through training: a handful of tracks, and the leading triple.

The state moves once each time the weight has changed, in training only; asking again changes nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, distributed, nn

from spectralnorm.estimators.ascent import lengths, power_sweep
from spectralnorm.estimators.tracked import Tracked
from spectralnorm.normalize.climbing import ahead
from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.fingerprint import OUTDATED, TRUSTED, alike, fingerprint
from spectralnorm.normalize.opaque import enlist
from spectralnorm.normalize.seen import Lead, Mark, Seen
from spectralnorm.normalize.stack import TRACKS, Slots, Sources, Stack
from spectralnorm.normalize.survey import frequencies, random_vectors, survey
from spectralnorm.operators.base import Operator, compute_dtype, undisturbed
from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.shards import is_sharded
from spectralnorm.operators.symbols import symbol_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Tracker"]

_SURVEY = 10  # steps between surveys in a small model at most; sooner where heights have moved
_DRIFT = 0.02  # by this share in all; and each
_SURVEY_BLIND = 3  # steps where that is not known, since asking would stop a GPU's stream;
_DRIFT_LARGE = 0.1  # or by this share in all
_SURVEY_COLD = 4  # rounds of the first survey
_SURVEY_LARGE = 100  # in a large model, where each layer has its own turn
_ROTATION = 7  # steps per sweep of a track beside the leader in a large model; odd, for the halves to alternate
_BUFFERS = ("u", "v", "w", "heights", "grid")


class Tracker(nn.Module):
    """The size-free spectral norm of one layer, followed through training.

    Buffers (complex numbers as a last axis of 2; slot 0 of the m tracks leads its group): `u` (g, m, 3, rows, 2),
    each track's left vector, last direction and residual; `v` (g, c_in/g, components, 2), the leaders' right
    vectors; `w` (g, m, axes), frequencies; `heights` (g, m); `grid` (g, F, rows, 2), a vector for each frequency
    that a survey looks at. The norm is the highest leader's height.

    Attributes:
        sweeps: sweeps per change of the weight.
        engine: moves the states of all layers of a model together.
        place: of the layer in its model: large layers are surveyed in turn by it.
        thorough: whether a step sweeps every track, and surveys come often, or it does the least that keeps up.
        turn: how often the state has moved.
        rested: moves since the last survey.
        drift: share by which heights have moved since then.
        blocks: (g, rows, c_in/g, taps), shape of the symbol's weight.
        handle: what compiled code calls the tracker by.
    """

    u: Tensor
    v: Tensor
    w: Tensor
    heights: Tensor
    grid: Tensor

    def __init__(
        self, operator: Operator, engine: Engine, *, place: int = 0, sweeps: int = 1, thorough: bool = True
    ) -> None:
        super().__init__()
        symbol = operator.symbol()
        self.engine, self.place, self.sweeps, self.thorough, self.turn = engine, place, sweeps, thorough, 0
        self.rested, self.drift = 0, 0.0
        self.blocks = tuple(symbol.weight.shape)
        self._layout = symbol.layout
        self._key = (str(self._layout.positions.tolist()), str(self._layout.component.tolist()), sweeps)
        self._seen = Seen()
        # at the next use: "check" after a copy, "converge" after a write, "fresh" where processes run side by side
        self._pending: str | None = None
        self._print: tuple[float, ...] = ()  # fingerprint of the sources the state belongs to
        self._attached = False
        self.handle = enlist(self)
        with torch.inference_mode(False):
            self._allocate(operator.weight)
        self._converge(symbol)

    def _allocate(self, weight: Tensor) -> None:
        groups, rows, columns, _ = self.blocks
        axes, components = self._layout.axes, self._layout.components
        points = len(frequencies(self._layout.degrees))
        shapes = ((TRACKS, 3, rows, 2), (columns, components, 2), (TRACKS, axes), (TRACKS,), (points, rows, 2))
        for name, shape in zip(_BUFFERS, shapes, strict=True):
            zeros = torch.zeros((groups, *shape), dtype=compute_dtype(weight), device=weight.device)
            self.register_buffer(name, zeros)

    def symbol(self, sources: Sources) -> Symbol:
        """The symbol of these tensors, detached, on their device; the first is the weight."""
        weight = sources[0].detach().to(self.heights.dtype)
        return symbol_of(weight, self.blocks, self._layout.on(weight.device), *self.scales(sources))

    def scales(self, sources: Sources) -> tuple[Tensor | None, Tensor | None]:
        """Factors of the symbol's rows and columns, where something is folded into the weight."""
        del sources
        return None, None

    def stack_key(self, sources: Sources) -> tuple[Any, ...]:
        """Layers with equal keys can be swept together."""
        phase = self.turn % (_ROTATION * (TRACKS - 1))
        dealt = self._seen.dealt
        processes = None if dealt is None else (dealt.weight.device_mesh, dealt.weight.placements)
        return (self._key, self.heights.dtype, sources[0].device, self.thorough, phase, processes)

    def wants_survey(self) -> bool:
        """Whether a survey is due now; if so, the count starts anew."""
        self.rested += 1
        if self.thorough:
            most = _SURVEY if self.heights.device.type == "cpu" else _SURVEY_BLIND
            due = self.rested >= most or not self.drift <= _DRIFT  # also where it is no number
        else:
            due = (self.turn + self.place) % _SURVEY_LARGE == 0 or not self.drift <= _DRIFT_LARGE
        if due:
            self.rested, self.drift = 0, 0.0
        return due

    def halves(self) -> tuple[bool, bool]:
        """Whether the next step in a large model computes K^(w)^H x, and whether K^(w) v: they take turns."""
        rest = self.turn % _ROTATION
        both = rest == 0 or self.sweeps > 1  # another track comes along, or several sweeps are asked for
        return both or rest % 2 == 1, both or rest % 2 == 0

    def slots(self) -> Slots:
        """The tracks the next step sweeps in a large model: the leaders, and at times one other in rotation."""
        turn, rest = divmod(self.turn, _ROTATION)
        other = 1 + turn % (TRACKS - 1)
        return ((0, 1),) if rest else ((0, 1), (other, other + 1))

    @property
    def sigma(self) -> Tensor:
        """The norm of the unscaled weight, as of the last move of the state."""
        return self.heights[:, 0].amax()

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
        """The norm as the state knows it, and its derivative; the state moves first if it has to."""
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
            symbol, v = self.symbol(sources), torch.view_as_complex(self.v)
            if self._seen.mark == mark:
                folded = symbol.fold(v, symbol.layout.phases(self.w[:, 0]))
                heights, left = self.heights[:, 0].clone(), torch.view_as_complex(self.u[:, 0, 0].clone())
            elif float(lengths(v.flatten(1)).min()) > 0.999:
                heights, left, folded = ahead(self, symbol)
            else:  # averaged buffers, or a kernel that was zero: no unit vectors to go by
                x, _, _, height, fresh = _cold(symbol)
                heights, left, folded = height[:, 0], x[:, 0], fresh[:, 0]
            self.lead(heights, torch.view_as_real(left).mT, torch.view_as_real(folded.flatten(1)).mT)
            self._seen.lead_mark = mark

    # -- the state ----------------------------------------------------------------------------------

    def converge(self, *sources: Tensor) -> None:
        """Find the state of a weight from cold."""
        with undisturbed(sources[0].device):
            self._converge(self.symbol(sources))

    def _converge(self, symbol: Symbol) -> None:
        with undisturbed(symbol.weight.device):
            symbol = symbol.to(self.heights.dtype)
            x, v, w, height, folded = _cold(symbol)
            self.u.zero_()
            self.heights.zero_()
            basis = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 2)
            slots = ((0, w.shape[1]),)
            self.grid.copy_(random_vectors(self.grid))
            survey(symbol, torch.view_as_complex(self.grid), _SURVEY_COLD)
            Stack([self], [symbol]).store(slots, (basis, v[:, 0], w, height), (x[:, 0], folded[:, 0]))
        self.turn, self.rested, self.drift = 0, 0, 0.0

    # -- copies, checkpoints, devices ---------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """What a checkpoint holds beside the buffers: counters, and the fingerprint of the state's weight."""
        return torch.tensor([self.turn, self.rested, self.drift, *self._current_print()], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up where a checkpoint left off."""
        turn, rested, self.drift, *known = state.tolist()
        self.turn, self.rested, self._print = int(turn), int(rested), tuple(known)

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
        complete = prefix + "_extra_state" in state_dict and all(
            _fits(state_dict.get(prefix + name), self.get_buffer(name)) for name in _BUFFERS
        )
        if not complete:  # or of another release, whose states have other shapes, or not finite
            for name in (*_BUFFERS, "_extra_state"):
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

    def _apply(self, fn: Any, recurse: bool = True) -> Tracker:
        """Move devices and dtypes like any module, but never below float32: sigma would lose its digits."""
        precise = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        # tensors of one axis, since memory formats are for images and kernels
        super()._apply(lambda t: fn(t.reshape(-1)).view(t.shape), recurse)  # type: ignore[no-untyped-call]
        for name, before in precise.items():
            after = cast("Tensor", self._buffers[name])
            if after.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = before.to(after.device)
        return self


def _fits(found: Tensor | None, buffer: Tensor) -> bool:
    """Whether a loaded tensor can be a state's buffer: of its shape, and finite."""
    return found is not None and found.shape == buffer.shape and (found.is_meta or bool(found.isfinite().all()))


def _cold(symbol: Symbol) -> tuple[Tensor, ...]:
    """Converged tracks, the leaders first, as `power_sweep` leaves them."""
    symbol = symbol.plain()
    tracks, _ = Tracked(tracks=2 * TRACKS).climb(symbol, None, 1e-3)
    tracks = tracks.take(tracks.distinct(TRACKS))
    largest = symbol.largest()  # heights are squared: keep them in range
    x, v, w, height, folded = power_sweep(symbol.over(largest), *tracks.start(), lambda _, w: w)
    anywhere = torch.full_like(v, math.prod(v.shape[2:]) ** -0.5)  # where the kernel answers with zero
    return x, torch.where(height[..., None, None] > 0, v, anywhere), w, height * largest, folded
