"""The parametrizations that a normalised layer carries: they scale a tensor by what their tracker knows."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.opaque import ask
from spectralnorm.normalize.scaling import Rule, factor, scale_weight
from spectralnorm.normalize.stack import Sources
from spectralnorm.normalize.tracker import Tracker
from spectralnorm.normalize.transforms import plain_norm_of, transformed
from spectralnorm.operators.base import Operator

__all__ = ["Normalization", "SpectralNormalization", "parametrizations_of"]


def parametrizations_of(layer: nn.Module, tensor: str) -> parametrize.ParametrizationList:
    """The parametrizations of a layer's tensor; its `original` is what is trained."""
    return cast("parametrize.ParametrizationList", cast("nn.ModuleDict", layer.parametrizations)[tensor])


class Normalization(Tracker):
    """A tracker that stands on a tensor of its layer and scales it.

    Attributes:
        rule: what the norm is brought to.
    """

    def __init__(self, operator: Operator, rule: Rule, engine: Engine, **options: Any) -> None:
        super().__init__(operator, engine, **options)
        self.rule = rule

    @property
    def target(self) -> float:
        """The norm of the scaled layer."""
        return self.rule.target

    def sources_on(self, layer: nn.Module, tensor: str) -> Sources:
        """The tensors that the norm is made of, the weight first, of the layer that carries this."""
        dealt = self._seen.dealt
        return (parametrizations_of(layer, tensor).original if dealt is None else dealt.weight,)

    def right_inverse(self, value: Tensor) -> Tensor:
        """An assigned tensor is taken as it is, and normalised from a fresh state."""
        if self._attached:  # torch also calls this while registering, with the weight just measured
            self._pending = "converge"
        return value

    def extra_repr(self) -> str:
        """Target, mode and the last norm."""
        return f"{self.rule}, sigma={float(self.sigma):.4g}"


class SpectralNormalization(Normalization):
    """Scales a weight so that its layer's size-free spectral norm is the target."""

    def forward(self, weight: Tensor) -> Tensor:
        """The scaled weight; in training, the state first moves if the weight has changed."""
        sigma, left, right = ask(self, weight)
        if transformed():
            found = plain_norm_of(sigma, (weight, left, right)) if self.rule.through_norm else sigma
            return weight * factor(found, self.rule)[0]
        return scale_weight(weight, sigma, left, right, self.rule)
