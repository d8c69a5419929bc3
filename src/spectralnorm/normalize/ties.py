"""Weights that several modules share, when the normalised ones among them are baked in."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from spectralnorm.normalize.parametrization import Normalization, parametrizations_of

__all__ = ["Tie", "find_ties", "warn_of_ties"]

_ALIKE = 1e-2  # trackers of one map may differ by so much


@dataclass(frozen=True, eq=False)
class Tie:
    """What becomes of a tensor that shares its parameter.

    Attributes:
        value: the normalised tensor.
        breaks: whether the others go by other numbers, so that the layer needs a parameter of its own.
    """

    value: Tensor
    breaks: bool


@torch.no_grad()
def find_ties(
    model: nn.Module,
    found: Sequence[tuple[nn.Module, str, Normalization]],
    proven: Sequence[Tensor | None] | None = None,
) -> list[Tie | None]:
    """How the parameters of normalised tensors are shared within a model.

    Args:
        model: the model.
        found: layer, tensor and normalisation of each.
        proven: values in place of the normalised tensors' own.

    Returns:
        For each a tie, or None where it alone holds its parameter.
    """
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    mates: dict[int, list[int]] = defaultdict(list)
    originals = [parametrizations_of(layer, tensor).original for layer, tensor, _ in found]
    for place, original in enumerate(originals):
        mates[id(original)].append(place)
    ties: list[Tie | None] = [None] * len(found)
    for parameter, places in mates.items():
        if holders[parameter] > 1:
            values = [_value(*found[place][:2], proven[place] if proven else None) for place in places]
            rules = {found[place][2].rule for place in places}
            together = holders[parameter] == len(places) and len(rules) == 1
            together = together and all(_close(value, values[0]) for value in values)
            smallest = min(values, key=lambda value: float(value.norm()))
            for place, value in zip(places, values, strict=True):
                ties[place] = Tie(smallest if together else value, breaks=not together)
    return ties


def warn_of_ties(names: Sequence[str], ties: Sequence[Tie | None], cure: str) -> None:
    """Warn of layers that share a parameter, and cannot go on sharing it since they are scaled unlike.

    Args:
        names: of the normalised tensors.
        ties: from `find_ties`.
        cure: what to do.
    """
    apart = [name for name, tie in zip(names, ties, strict=True) if tie is not None and tie.breaks]
    if apart:
        warnings.warn(
            f"The weights of {', '.join(apart)} are shared with other layers, for which the norm asks for other "
            f"numbers (another stride, target or type of layer): each gets its own. {cure}",
            stacklevel=3,
        )


def _value(layer: nn.Module, tensor: str, proven: Tensor | None) -> Tensor:
    return cast("Tensor", getattr(layer, tensor)).clone() if proven is None else proven


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _ALIKE * other.norm())
