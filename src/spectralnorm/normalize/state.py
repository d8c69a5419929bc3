"""What is known of one layer's norm, in buffers, and when each part of it is due.

Which weight the state belongs to, and when it has to move at all, is the tracker's business.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from spectralnorm.normalize.stack import TRACKS, Slots, Sources
from spectralnorm.normalize.survey import frequencies
from spectralnorm.operators.base import compute_dtype, queued
from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.shards import is_sharded
from spectralnorm.operators.symbols import symbol_of

__all__ = ["BUFFERS", "State", "fits"]

_SURVEY = 10  # steps between surveys in a small model at most; sooner where heights have moved
_DRIFT = 0.01  # by this share in all; and each
_SURVEY_BLIND = 3  # steps where that is not known, since asking would stop a GPU's stream;
_DRIFT_LARGE = 0.1  # or by this share in all
_SURVEY_LARGE = 100  # in a large model, where each layer has its own turn
_ROTATION = 7  # steps per sweep of a track beside the leader in a large model; odd, for the halves to alternate
_NEAR = 16  # binary orders of magnitude from one, within which kernels are swept as they are
BUFFERS = ("u", "v", "w", "heights", "grid")


class State(nn.Module):
    """A handful of tracks, the leading triple, and a vector for each frequency of a grid.

    Buffers (complex numbers as a last axis of 2; slot 0 of the m tracks leads its group): `u` (g, m, 3, rows, 2),
    each track's left vector, last direction and residual; `v` (g, c_in/g, components, 2), the leaders' right
    vectors; `w` (g, m, axes), frequencies; `heights` (g, m); `grid` (g, F, rows, 2), a vector for each frequency
    that a survey looks at. The norm is the highest leader's height.

    Attributes:
        sweeps: sweeps per change of the weight.
        place: of the layer in its model: large layers are surveyed in turn by it.
        small: whether the model is so small that thorough sweeps cost it next to nothing.
        by_statistics: whether a BatchNorm's statistics move the norm, as well as training.
        turn: how often the state has moved.
        rested: moves since the last survey.
        drift: share by which heights have moved since then.
        exponent: the kernel is swept over two to this power, since heights are squared twice; 0 near one.
        blocks: (g, rows, c_in/g, taps), shape of the symbol's weight.
    """

    u: Tensor
    v: Tensor
    w: Tensor
    heights: Tensor
    grid: Tensor
    by_statistics = False

    def __init__(self, symbol: Symbol, *, place: int, sweeps: int, small: bool) -> None:
        super().__init__()
        self.place, self.sweeps, self.small = place, sweeps, small
        self.turn, self.rested, self.drift, self.exponent = 0, 0, 0.0, 0
        self.blocks = tuple(symbol.weight.shape)
        self._layout = symbol.layout.on(torch.device("cpu"))
        self._key = (str(self._layout.positions.tolist()), str(self._layout.component.tolist()), sweeps)
        with torch.inference_mode(False):
            self._allocate(symbol.weight)

    def _allocate(self, weight: Tensor) -> None:
        groups, rows, columns, _ = self.blocks
        axes, components = self._layout.axes, self._layout.components
        points = len(frequencies(self._layout.degrees))
        shapes = ((TRACKS, 3, rows, 2), (columns, components, 2), (TRACKS, axes), (TRACKS,), (points, rows, 2))
        for name, shape in zip(BUFFERS, shapes, strict=True):
            zeros = torch.zeros((groups, *shape), dtype=compute_dtype(weight), device=weight.device)
            self.register_buffer(name, zeros)

    @property
    def thorough(self) -> bool:
        """Whether a step sweeps every track, and surveys come often, or it does the least that keeps up.

        On a GPU small sweeps cost as much as large ones, and drift is not known: there, only where a BatchNorm's
        statistics can lift another direction from one step to the next. Weights alone move too little for that.
        """
        return self.by_statistics if queued(self.heights.device) else self.small

    @property
    def sigma(self) -> Tensor:
        """The norm of the unscaled weight, as of the last move of the state."""
        return self.heights[:, 0].amax()

    def symbol(self, sources: Sources) -> Symbol:
        """The symbol of these tensors over 2^exponent, detached, on their device; the first is the weight."""
        weight = sources[0].detach().to(self.heights.dtype)
        return symbol_of(weight, self.blocks, self._layout, *self.scales(sources))

    def scales(self, sources: Sources) -> tuple[Tensor | None, Tensor | None]:
        """Factors of the symbol's rows and columns: 2^-exponent, and what is folded into the weight."""
        rows, columns = self.folded_scales(sources)
        if self.exponent:
            rows = self.heights.new_ones(self.blocks[:2]) if rows is None else rows
            rows = rows * 2.0**-self.exponent
        return rows, columns

    def folded_scales(self, sources: Sources) -> tuple[Tensor | None, Tensor | None]:
        """Factors of the rows and columns, where something is folded into the weight."""
        del sources
        return None, None

    def weigh(self, sources: Sources) -> bool:
        """Choose the exponent anew, by the largest entry; the host waits for it. Shards keep 0.

        Returns:
            Whether it has changed.
        """
        if is_sharded(sources[0]):
            return False
        before, largest = self.exponent, float(sources[0].detach().abs().amax())
        for scale in self.folded_scales(sources):
            largest *= 1.0 if scale is None else float(scale.abs().amax())
        if math.isfinite(largest):
            power = math.frexp(largest)[1]
            self.exponent = power if largest and abs(power) > _NEAR else 0
        return self.exponent != before

    def wants_survey(self) -> bool:
        """Whether a survey is due now; if so, the count starts anew."""
        self.rested += 1
        if self.thorough:
            most = _SURVEY_BLIND if queued(self.heights.device) else _SURVEY
            due = self.rested >= most or not self.drift <= _DRIFT  # also where it is no number
        else:
            due = (self.turn + self.place) % _SURVEY_LARGE == 0 or not self.drift <= _DRIFT_LARGE
        if due:
            self.rested, self.drift = 0, 0.0
        return due

    @property
    def phase(self) -> int:
        """Of the rotation: layers in equal phases do the same in their next step."""
        return self.turn % (_ROTATION * (TRACKS - 1))

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

    def _apply(self, fn: Any, recurse: bool = True) -> State:
        """Move devices and dtypes like any module, but never below float32: sigma would lose its digits."""
        precise = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        # tensors of one axis, since memory formats are for images and kernels
        super()._apply(lambda t: fn(t.reshape(-1)).view(t.shape), recurse)  # type: ignore[no-untyped-call]
        for name, before in precise.items():
            after = cast("Tensor", self._buffers[name])
            if after.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = before.to(after.device)
        return self


def fits(found: Tensor | None, buffer: Tensor) -> bool:
    """Whether a loaded tensor can be a state's buffer: of its shape, and finite."""
    return found is not None and found.shape == buffer.shape and (found.is_meta or bool(found.isfinite().all()))
