"""The Lipschitz constants that a network has while its norms are held: from the targets, without measuring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectralnorm.network.last_linear import last_linear
from spectralnorm.network.lipschitz import analyse
from spectralnorm.network.outward import product_up
from spectralnorm.network.plain import unwrapped
from spectralnorm.normalize.sites import normalised
from spectralnorm.operators.registry import as_operator

__all__ = ["HeldLipschitz"]


class HeldLipschitz:
    """Lipschitz constants of a network under `spectral_normalize`, from its layers' targets.

    The targets go through the network by the rules of `sn.lipschitz`, once: they do not change in training. In
    soft mode a layer's norm may lie below its target, which the constants do not see. The last layer's part, where
    the network ends in a Linear, is the distance of two rows of its weight as it is, and has a gradient.

    In training a norm is held to what is tracked of it, from below: nothing here is proven. `sn.Certifier` proves
    the trained network's constants. A folded BatchNorm is counted as it acts in eval mode.

    Attributes:
        bound: of all logits together.

    Args:
        model: classifier from (N, ...) to logits, all linear layers of which `spectral_normalize` holds.
        input_shape: one input's shape without batch, such as `(3, 32, 32)`.

    Raises:
        TypeError: as `sn.lipschitz`.
        ValueError: as `sn.lipschitz`, or when the norm of a linear layer is not held.

    Reference:
        Tsuzuku, Sato & Sugiyama, "Lipschitz-Margin Training" (NeurIPS 2018, arXiv 1802.04034), sections 3 and 4.

    Example:
        >>> import torch, spectralnorm as sn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> held = sn.HeldLipschitz(sn.spectral_normalize(net, target=0.5), (4,))
        >>> held.bound, held.constants().shape
        (0.25, torch.Size([3, 3]))
        >>> x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> loss = sn.losses.lipschitz_margin(net(x), y, margin=0.1, constants=held.constants())
        >>> loss.backward()
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        model = unwrapped(model)
        held = _held_norms(model)
        found = analyse(model, input_shape, measure_of=lambda plain: _Held(plain, held))
        self.bound = found.bound
        last = last_linear(found)
        self._layer = None if last is None else model.get_submodule(last.name)
        self._before = 0.0 if last is None else product_up([last.before, last.factor])

    def constants(self) -> Tensor:
        """Lipschitz constants of f_y - f_j.

        Returns:
            (classes, classes), 0 where y is j, with a gradient to the last layer's weight; 0-dim, sqrt(2) times
            the bound, where the network does not end in a Linear.
        """
        if self._layer is None:
            return torch.tensor(math.sqrt(2) * self.bound)
        weight = _matrix(self._layer)
        # differences first, then their length: nothing cancels
        rows = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
        return self._before * rows

    def radii(self, logits: Tensor, labels: Tensor, constants: Tensor) -> Tensor:
        """The radii that follow from the constants, in the precision of the logits, and not proven.

        Args:
            logits: (N, classes).
            labels: (N,), int64.
            constants: from `constants`, read once for many batches; divided by a temperature if the logits are.

        Returns:
            (N,): at most 0 where misclassified.
        """
        gaps = logits.gather(1, labels[:, None]) - logits
        rows = (constants[labels] if constants.ndim else constants).to(gaps).expand_as(gaps)
        distances = torch.where(rows > 0, gaps / rows, torch.where(gaps > 0, math.inf, -math.inf))
        return distances.scatter(1, labels[:, None], math.inf).amin(1)


def _matrix(layer: nn.Module) -> Tensor:
    """A dense layer's matrix as it is used, in at least float32, with its graph."""
    plain = parametrize.type_before_parametrizations(layer) is nn.Linear  # which needs no check of its values
    weight = cast("Tensor", layer.weight) if plain else as_operator(layer).flattened()
    return weight if weight.dtype == torch.float64 else weight.float()


class _Held:
    """Norms of a plain copy's layers, by their names in the model."""

    def __init__(self, plain: nn.Module, held: Mapping[str, float]) -> None:
        self._names = {module: name for name, module in plain.named_modules()}
        self._held = held

    def __call__(
        self, layer_or_weight: nn.Module | Tensor, size: tuple[int, ...] | None = None, **conv_args: Any
    ) -> float:
        """What the norm is held to, times what padding by copies adds at the size.

        Returns:
            The norm.

        Raises:
            ValueError: when it is not held.
        """
        part = layer_or_weight
        if isinstance(part, nn.Sequential) and part not in self._names:  # a layer and its BatchNorm
            part = part[1]
        name = self._names.get(part) if isinstance(part, nn.Module) else None
        if name is None or name not in self._held:
            kind = type(part).__name__ if isinstance(part, nn.Module) else "a raw weight"
            raise ValueError(
                f"the norm of this linear map ({kind}) is not held, so that it has no bound in training; expected "
                "every one under spectral_normalize, BatchNorms folded"
            )
        operator = as_operator(layer_or_weight, **conv_args)
        there = () if operator.axes == 0 else size
        return product_up([self._held[name], operator.ceilings(there)[0][1]])


def _held_norms(model: nn.Module) -> dict[str, float]:
    """Targets by the name of the module that holds the scaled weight: of a folded pair the BatchNorm."""
    found = {name: part.target for name, _, tensor, part, _ in normalised(model) if tensor == "weight"}
    if not found:
        raise ValueError(
            f"model: no layer of {type(model).__name__} is held, expected one under spectral_normalize; call that "
            "first"
        )
    return found
