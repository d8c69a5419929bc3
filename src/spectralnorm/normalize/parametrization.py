"""The parametrization that a normalised layer carries: its state, and the scaled weight.

The state is a handful of tracks (`estimators/ascent.py`) and the leading singular triple (u, v, w). It moves
once each time the weight has changed, in training only; reading the weight again changes nothing.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, cast

import torch
from torch import Tensor, nn

from spectralnorm.estimators.ascent import lengths, normalised, power_sweep
from spectralnorm.estimators.tracked import Tracked
from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.scaling import Direction, scale_weight
from spectralnorm.normalize.stack import Slots, Stack
from spectralnorm.operators.base import Operator, compute_dtype, undisturbed
from spectralnorm.operators.fourier import Symbol

__all__ = ["SpectralNormalization"]

_TRACKS = 8
_SCOUT = 2  # steps per fresh scout in a small model
_ROTATION = 7  # steps per sweep of a track beside the leader in a large one; odd, for the halves to alternate
_BUFFERS = ("u", "v", "w", "heights")
_Mark = tuple[int, int]  # version and address of a weight


class _Seen:
    """What a parametrization knows of the weight it last met; a plain object, since nn.Module's setattr is slow.

    Attributes:
        weight: the weight, held weakly.
        mark: of the weight the state belongs to.
        lead: sigma and its derivative, for the weight of `lead_mark`.
        lead_mark: see `lead`.
        joined: whether the engine knows the parametrization.
    """

    __slots__ = ("joined", "lead", "lead_mark", "mark", "weight")

    def __init__(self) -> None:
        self.weight: weakref.ref[Tensor] | None = None
        self.mark: _Mark | None = None
        self.lead: tuple[Tensor, Direction] | None = None
        self.lead_mark: _Mark | None = None
        self.joined = False


class SpectralNormalization(nn.Module):
    """Scales a weight so that its layer's size-free spectral norm is the target.

    Buffers (complex numbers as a last axis of 2; slot 0 of the m tracks leads its group): `u` (g, m, 3, rows, 2),
    each track's left vector, last direction and residual; `v` (g, c_in/g, components, 2), the leaders' right
    vectors; `w` (g, m, axes), frequencies; `heights` (g, m). The norm is the highest leader's height.

    Attributes:
        target: the norm the scaled weight has.
        mode: "hard" scales always, "soft" only norms above the target.
        sweeps: sweeps per change of the weight.
        engine: moves the states of all layers of a model together.
        thorough: whether a step sweeps every track, with scouts among them, or does the least that keeps up.
        turn: how often the state has moved.
    """

    u: Tensor
    v: Tensor
    w: Tensor
    heights: Tensor

    def __init__(
        self,
        operator: Operator,
        target: float,
        mode: str,
        engine: Engine,
        *,
        sweeps: int = 1,
        thorough: bool = True,
    ) -> None:
        super().__init__()
        symbol = operator.symbol()
        self.target, self.mode, self.sweeps, self.engine, self.turn = target, mode, sweeps, engine, 0
        self.thorough = thorough
        self._blocks = tuple(symbol.weight.shape)
        self._layout = symbol.layout
        self._key = (tuple(map(tuple, self._layout.positions.tolist())), sweeps)
        self._seen = _Seen()
        self._pending: str | None = None  # "check" or "converge" at the next use: after a copy, after a write
        self._print: tuple[float, ...] = ()  # for "check": fingerprint of the weight the state belongs to
        self._attached = False
        with torch.inference_mode(False):
            self._allocate(operator.weight)
        self.converge(operator.weight)

    def _allocate(self, weight: Tensor) -> None:
        groups, rows, columns, _ = self._blocks
        axes, components = self._layout.axes, self._layout.components
        shapes = ((_TRACKS, 3, rows, 2), (columns, components, 2), (_TRACKS, axes), (_TRACKS,))
        for name, shape in zip(_BUFFERS, shapes, strict=True):
            zeros = torch.zeros((groups, *shape), dtype=compute_dtype(weight), device=weight.device)
            self.register_buffer(name, zeros)

    def symbol(self, weight: Tensor) -> Symbol:
        """The symbol of a weight of this layer, detached, on the weight's device."""
        flat = weight.detach().to(self.heights.dtype).reshape(self._blocks)
        return Symbol(flat, self._layout.on(weight.device))

    def stack_key(self, weight: Tensor) -> tuple[Any, ...]:
        """Layers with equal keys can be swept together."""
        phase = self.turn % (self._every * (_TRACKS - 1))
        return (self._key, self.heights.dtype, weight.device, self.thorough, phase)

    @property
    def _every(self) -> int:
        return _SCOUT if self.thorough else _ROTATION

    def scout(self) -> int | None:
        """The track beside the leader whose turn it is in the next step, if one's is."""
        turn, rest = divmod(self.turn, self._every)
        return None if rest else 1 + turn % (_TRACKS - 1)

    def halves(self) -> tuple[bool, bool]:
        """Whether the next step in a large model computes K^(w)^H x, and whether K^(w) v: they take turns."""
        rest = self.turn % _ROTATION
        both = rest == 0 or self.sweeps > 1  # another track comes along, or several sweeps are asked for
        return both or rest % 2 == 1, both or rest % 2 == 0

    def slots(self) -> Slots:
        """The tracks the next step sweeps in a large model: the leaders, and at times one other in rotation."""
        other = self.scout()
        return ((0, 1),) if other is None else ((0, 1), (other, other + 1))

    @property
    def sigma(self) -> Tensor:
        """The norm of the unscaled weight, as of the last move of the state."""
        return self.heights[:, 0].amax()

    # -- the weight ---------------------------------------------------------------------------------

    def forward(self, weight: Tensor) -> Tensor:
        """The scaled weight; in training, the state first moves if the weight has changed."""
        sigma, direction = self.measure(weight)
        return scale_weight(weight, sigma, direction, self.target, soft=self.mode == "soft")

    def measure(self, weight: Tensor) -> tuple[Tensor, Direction]:
        """The norm of the weight as the state knows it, and its derivative; the state moves first if it has to."""
        seen = self._seen
        seen.weight = weakref.ref(weight)
        if not seen.joined:
            self.engine.join(self)
            seen.joined = True
        if self._pending is not None:
            self._settle(weight)
        mark = _mark_of(weight)
        if not self._attached:
            self.mark(weight)  # torch calls this while registering, with the weight just measured
        if self.training and seen.mark != mark:
            self.engine.update()
        if seen.lead is None or seen.lead_mark != mark:
            self._lead_on(weight, mark)
        assert seen.lead is not None  # noqa: S101 - either the engine or `_lead_on` has set it
        return seen.lead

    def right_inverse(self, value: Tensor) -> Tensor:
        """An assigned weight is taken as it is, and normalised from a fresh state."""
        if self._attached:  # torch also calls this while registering, with the weight just measured
            self._pending = "converge"
        return value

    def attached(self, weight: Tensor) -> None:
        """Note that a layer carries this parametrization now, and that the state belongs to its weight."""
        self._attached = True
        self._pending = None
        self._seen.weight = weakref.ref(weight)
        self.mark(weight)

    def changed_weight(self) -> Tensor | None:
        """The weight, when in training and changed since the state last moved."""
        seen = self._seen
        weight = seen.weight() if seen.weight is not None else None
        if weight is None or not self.training or self._pending or seen.mark == _mark_of(weight):
            return None
        return weight

    def mark(self, weight: Tensor) -> None:
        """Note that the state, and the lead, belong to this weight as it is now."""
        self._seen.mark = self._seen.lead_mark = _mark_of(weight)

    def lead(self, heights: Tensor, left: Tensor, right: Tensor) -> None:
        """Take sigma and its derivative from the leaders: heights (g,), left (g, 2, rows), right (g, 2, ...)."""
        if len(heights) > 1:
            best = nn.functional.one_hot(heights.argmax(), len(heights)).to(left)
            left = left * best[:, None, None]
        self._seen.lead = (heights.amax(), Direction(left, right))

    def _settle(self, weight: Tensor) -> None:
        """Do at the first use after a copy, a load or an assignment what could not be done then."""
        pending, self._pending = self._pending, None
        self._seen.lead = None
        if pending == "converge":
            self.converge(weight)
        if pending == "converge" or _alike(self._print, _fingerprint(weight)):
            self.mark(weight)

    def _current_print(self) -> tuple[float, ...]:
        """Fingerprint of the weight the state belongs to; empty when the weight has moved on."""
        if self._pending is not None:
            return self._print if self._pending == "check" else ()
        seen = self._seen
        weight = seen.weight() if seen.weight is not None else None
        return _fingerprint(weight) if weight is not None and seen.mark == _mark_of(weight) else ()

    def _lead_on(self, weight: Tensor, mark: _Mark) -> None:
        """Work out the lead from the state as it is, or from its heights on a weight changed since, in eval."""
        with undisturbed(weight.device):
            symbol, v = self.symbol(weight), torch.view_as_complex(self.v)
            folded = symbol.fold(v, symbol.layout.phases(self.w[:, 0]))
            heights, left = self.heights[:, 0].clone(), torch.view_as_complex(self.u[:, 0, 0].clone())
            if self._seen.mark != mark and float(lengths(v.flatten(1)).min()) > 0.999:
                ahead = symbol.read(folded[:, None])[:, 0]
                heights, left = lengths(ahead), normalised(ahead)
            elif self._seen.mark != mark:  # averaged buffers, or a kernel that was zero: no unit vectors to go by
                x, _, _, height, fresh = self._cold(symbol)
                heights, left, folded = height[:, 0], x[:, 0], fresh[:, 0]
            self.lead(heights, torch.view_as_real(left).mT, torch.view_as_real(folded.flatten(1)).mT)
            self._seen.lead_mark = mark

    # -- the state ----------------------------------------------------------------------------------

    def converge(self, weight: Tensor) -> None:
        """Find the state of a weight from cold."""
        with undisturbed(weight.device):
            symbol = self.symbol(weight)
            x, v, w, height, folded = self._cold(symbol)
            self.u.zero_()
            self.heights.zero_()
            basis = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], 2)
            slots = ((0, w.shape[1]),)
            Stack([(self, weight)]).store(slots, (basis, v[:, 0], w, height), (x[:, 0], folded[:, 0]))
        self.turn = 0

    def _cold(self, symbol: Symbol) -> tuple[Tensor, ...]:
        """Converged tracks, the leaders first, as `power_sweep` leaves them."""
        tracks, _ = Tracked(tracks=2 * _TRACKS).climb(symbol, None, 1e-3)
        tracks = tracks.take(tracks.distinct(_TRACKS))
        largest = symbol.weight.abs().max().clamp_min(torch.finfo(symbol.weight.dtype).tiny)
        unit = Symbol(symbol.weight / largest, symbol.layout)  # heights are squared: keep them in range
        x, v, w, height, folded = power_sweep(unit, *tracks.start(), lambda _, w: w)
        anywhere = torch.full_like(v, math.prod(v.shape[2:]) ** -0.5)  # where the kernel answers with zero
        return x, torch.where(height[..., None, None] > 0, v, anywhere), w, height * largest, folded

    # -- copies, checkpoints, devices ---------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """What a checkpoint holds beside the buffers: `turn`, and the fingerprint of the state's weight."""
        return torch.tensor([self.turn, *self._current_print()], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up where a checkpoint left off."""
        turn, *fingerprint = state.tolist()
        self.turn, self._print = int(turn), tuple(fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        pending = self._pending or "check"
        return {**self.__dict__, "_seen": _Seen(), "_print": self._current_print(), "_pending": pending}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, metadata: Any, *args: Any) -> None:
        """Weights that come with their state keep it bit for bit; weights without it reconverge."""
        complete = all(prefix + name in state_dict for name in (*_BUFFERS, "_extra_state"))
        missing = cast("list[str]", args[1])
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)
        missing[:] = [key for key in missing if not key.startswith(prefix)]
        weight = self._seen.weight() if self._seen.weight is not None else None
        replaced = bool(metadata.get("assign_to_params_buffers"))
        if complete:
            self._pending = "check"
        elif replaced or weight is None or self._seen.mark != _mark_of(weight):
            self._pending = "converge"

    def _apply(self, fn: Any, recurse: bool = True) -> SpectralNormalization:
        """Move devices and dtypes like any module, but never below float32: sigma would lose its digits."""
        precise = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in precise.items():
            after = cast("Tensor", self._buffers[name])
            if after.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        """Target, mode and the last norm."""
        return f"target={self.target:g}, mode={self.mode!r}, sigma={float(self.sigma):.4g}"


@torch.no_grad()
def _fingerprint(weight: Tensor) -> tuple[float, ...]:
    """Sums that tell a weight from a changed one, over copies, devices and files."""
    exact = weight.detach().double()
    places = torch.arange(exact.numel(), dtype=torch.float64, device=exact.device).cos()
    return float(exact.sum()), float(exact.flatten() @ places), float(exact.square().sum())


def _alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two fingerprints agree up to the order of summation; an empty one agrees with none."""
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9 * math.sqrt(abs(other[-1])))
        for a, b in zip(one, other, strict=True)
    )


def _mark_of(weight: Tensor) -> _Mark:
    """What changes when PyTorch writes to a tensor or another takes its place; `.data` writes go unseen."""
    return (0 if weight.is_inference() else weight._version, weight.data_ptr())
