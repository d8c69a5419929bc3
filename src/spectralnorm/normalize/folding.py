"""Normalising a layer together with the BatchNorm behind it: the factor goes to gamma.

A factor on the layer's weight would be undone by the BatchNorm, which divides by what it sees; on gamma it stays
(Gouk et al. 2021, Farnia et al. 2019). The map that is measured is that of eval mode: gamma / sqrt(var + eps)
times the layer, by the running statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectralnorm.normalize.dealt import Dealt
from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.opaque import ask
from spectralnorm.normalize.parametrization import Normalization, parametrizations_of
from spectralnorm.normalize.scaling import Rule, factor, norm_of
from spectralnorm.normalize.seen import Lead
from spectralnorm.normalize.stack import Sources
from spectralnorm.normalize.transforms import plain_norm_of, transformed
from spectralnorm.operators.base import Operator
from spectralnorm.operators.batchnorm import BatchNorm
from spectralnorm.operators.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["LOADS", "FoldedNormalization", "count_pass", "loads_of"]

LOADS = "_loads_before_batchnorm"


class FoldedNormalization(Normalization):
    """Scales the gamma of a BatchNorm so that the fused map of a layer and it has the target for its norm.

    Attributes:
        pair: the layer and the BatchNorm; a plain tuple, so that they are no parts of this module.
        on_columns: whether the BatchNorm's channels are columns of the symbol, as of a transposed convolution's.
        passes: of the BatchNorm in training; its kernels write the statistics without a trace in their version.
        loads: of the layer, as far as the state knows of them.
    """

    by_statistics = True

    def __init__(
        self,
        operator: Operator,
        rule: Rule,
        engine: Engine,
        pair: tuple[nn.Module, BatchNorm],
        *,
        on_columns: bool,
        **options: Any,
    ) -> None:
        super().__init__(operator, rule, engine, **options)
        self.pair, self.on_columns, self.passes, self.loads = pair, on_columns, 0, loads_of(pair[0])
        self._looked: tuple[Tensor, ...] | None = None

    def forward(self, gamma: Tensor) -> Tensor:
        """The scaled gamma; in training, the state first moves if weight, gamma or statistics have changed."""
        weight, norm = cast("Tensor", self.pair[0].weight), self.pair[1]
        sigma, left, right, variance = self._look(weight, gamma)
        if not (self.rule.through_norm and torch.is_grad_enabled()):
            return gamma * factor(sigma, self.rule)[0]
        inverse = (variance + norm.eps).rsqrt().to(sigma.dtype)  # (c,)
        slope = self._slope(weight, left, right) * inverse  # of sigma = u^H K^(w) v, which is linear in gamma
        scale = (gamma.detach().to(sigma.dtype) * inverse).reshape(left.shape[0], 1, -1)
        if self.on_columns:
            right = (right.unflatten(2, (scale.shape[2], -1)) * scale[..., None]).flatten(2)
        else:
            left = left * scale
        one = torch.ones_like(slope[None, :1, None])
        linear = plain_norm_of if transformed() else norm_of
        found = linear(sigma, (weight, left, right), (gamma, slope[None, None], one))
        # of a copy, since an optimiser may step before this graph is used again
        scaled: Tensor = gamma.clone() * factor(found, self.rule)[0]
        return scaled

    def _look(self, weight: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
        """What `ask` gives, and the variance it goes by; within a backward pass, what the forward pass got."""
        variance = cast("Tensor", self.pair[1].running_var)
        if torch.compiler.is_compiling():
            return *ask(self, weight, gamma, variance), variance
        # activation checkpointing runs a BatchNorm again, when its statistics have moved on
        if self._looked is None or torch._C._current_graph_task_id() == -1:
            self._looked = *ask(self, weight, gamma, variance), variance.clone()
        return self._looked

    def measure(self, *sources: Tensor) -> Lead:
        """As of one tensor, found anew if the layer was loaded; of shards, in a pass that has gathered both."""
        self._note_loads()
        if self.sharded or is_sharded(sources[0]):
            self._check_whole(sources)
        return super().measure(*sources)

    def settle(self) -> None:
        """As of one tensor, also where the layer alone was loaded."""
        self._note_loads()
        super().settle()

    def _note_loads(self) -> None:
        loads = loads_of(self.pair[0])
        if loads != self.loads:
            self.loads, self._pending = loads, self._pending or "converge"

    def converge(self, *sources: Tensor) -> None:
        """As of one tensor; never from shards."""
        self._check_whole(sources)
        super().converge(*sources)

    def changed(self) -> Sources | None:
        """As of one tensor; shards are left to the forward pass."""
        return None if self.sharded else super().changed()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_looked": None}

    def deal_out(self, weight: DTensor) -> None:
        """Note that gamma is dealt out, and probably the layer's weight."""
        super().deal_out(weight)
        cast("Dealt", self._seen.dealt).beside = self.pair[0]

    def _check_whole(self, sources: Sequence[Tensor]) -> None:
        if any(map(is_sharded, sources)):
            names = " and ".join(type(module).__name__ for module in self.pair)
            raise RuntimeError(
                f"The weights of a folded {names} are not both whole. Either FSDP2 shards the two in groups "
                "of their own, so that one is not there when the other is used: call fully_shard on a module that "
                "holds both instead. Or gamma is read outside the forward pass: call model.unshard() before that."
            )

    def sources_on(self, layer: nn.Module, tensor: str) -> Sources:
        """The weight of the layer before, the trained gamma, and the running variance."""
        before, norm = self.pair
        gamma = parametrizations_of(layer, tensor).original
        return cast("Tensor", before.weight), gamma, cast("Tensor", norm.running_var)

    @property
    def moves(self) -> bool:
        """In training, also where the BatchNorm is frozen in eval and the layer before it is trained."""
        return self.training or self.pair[0].training

    def mark_of(self, sources: Sources) -> tuple[tuple[int, int], ...]:
        """Versions and addresses, and how often the BatchNorm has written to its statistics."""
        mark = (*super().mark_of(sources), (self.passes, 0))
        variance = cast("Tensor", self.pair[1].running_var)
        return (*mark, (variance._version, variance.data_ptr())) if self.sharded else mark

    def _slope(self, weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """(c,) Re(conj(u_i) (K^(w) v)_i) of the rows without their scales, or the same of the columns.

        From the kernel as it is: sigma |u_i|^2 / gamma_i is the same once u has settled, but blows up where a
        gamma has just come near zero and u has not followed.

        Returns:
            One number a channel.
        """
        flat = weight.detach().to(left.dtype).reshape(*self.blocks[:2], -1)  # (g, rows, c_in/g * taps)
        if self.on_columns:
            each = (right * (left @ flat)).sum(1).unflatten(1, (self.blocks[2], -1)).sum(2)
        else:
            each = (left * (right @ flat.mT)).sum(1)
        slope: Tensor = each.flatten()
        return slope

    def folded_scales(self, sources: Sources) -> tuple[Tensor | None, Tensor | None]:
        """Gamma / sqrt(var + eps) for the rows, or for the columns."""
        _, gamma, variance = (source.detach() for source in sources)
        scale = gamma.double() * (variance.double() + self.pair[1].eps).rsqrt()
        scale = scale.to(self.heights.dtype).reshape(self.blocks[0], -1)
        return (None, scale) if self.on_columns else (scale, None)


def loads_of(layer: nn.Module) -> int:
    """How often the layer before a folded BatchNorm has been given weights by `load_state_dict`."""
    return cast("int", layer.__dict__.get(LOADS, 0))


def count_pass(norm: nn.Module, *_: Any) -> None:
    """Forward hook of a folded BatchNorm: note that its statistics moved, which compiled code shows itself."""
    if norm.training and not torch.compiler.is_compiling() and parametrize.is_parametrized(norm, "weight"):
        for part in parametrizations_of(norm, "weight"):
            if isinstance(part, FoldedNormalization):
                part.passes += 1
