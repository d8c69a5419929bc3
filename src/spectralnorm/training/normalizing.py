"""Putting a network under the normalisation that a run's settings ask for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import parametrize

from spectralnorm.normalize.api import spectral_normalize
from spectralnorm.normalize.options import targets_of
from spectralnorm.normalize.sites import normalised
from spectralnorm.normalize.ties import find_ties

from .baselines import ExactNormalization, PowerNormalization
from .settings import Settings

__all__ = ["normalize", "targets"]


class _Factor(nn.Module):
    """Multiplies a weight of norm 1 by a target."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target

    def forward(self, weight: Tensor) -> Tensor:
        """The scaled weight."""
        return weight * self.target


def normalize(net: nn.Module, settings: Settings, input_shape: Sequence[int]) -> None:
    """Hold down the norms of a network's layers, in place; a penalty is left to the loss.

    Args:
        net: from (N, C, H, W) to logits, on its device.
        settings: which normalisation, and its targets.
        input_shape: of one image.

    Raises:
        ValueError: when the normalisation cannot be put on this network.
    """
    if settings.normalize in ("none", "penalty"):
        return
    with warnings.catch_warnings():  # of BatchNorms, which the settings have decided on
        warnings.simplefilter("ignore", UserWarning)
        if settings.normalize == "tracked":
            _tracked(net, settings)
            return
        sizes, layers = _input_shapes(net, input_shape), _layers(net)
        each = targets_of(list(layers), _by_name(settings), settings.budget or None)
        for (name, layer), target in zip(layers.items(), each, strict=True):
            if settings.normalize == "pytorch":
                torch_parametrizations.spectral_norm(layer)
                parametrize.register_parametrization(layer, "weight", _Factor(target))
            elif settings.normalize == "power":
                power = PowerNormalization(layer, sizes[name], target)
                parametrize.register_parametrization(layer, "weight", power)
            else:
                size = None if isinstance(layer, nn.Linear) else sizes[name][2:]
                parametrize.register_parametrization(layer, "weight", ExactNormalization(layer, size, target))


def targets(net: nn.Module) -> dict[str, float]:
    """List the target of every layer that `tracked` holds.

    Args:
        net: a network under `normalize`.

    Returns:
        Targets by the layer's name; that of a folded pair by the BatchNorm's.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2))
        >>> normalize(net, Settings(target=0.5), (3,))
        >>> targets(net)
        {'0': 0.5}
    """
    return {name: part.target for name, _, _, part, _ in normalised(net)}


def _tracked(net: nn.Module, settings: Settings) -> None:
    try:
        spectral_normalize(
            net,
            target=1.0 if settings.budget else _by_name(settings),
            budget=settings.budget or None,
            mode=settings.mode,
            fold_batchnorm=settings.fold_batchnorm,
            init=None if settings.init == "default" else settings.init,
        )
    except ValueError as error:
        if not str(error).startswith("fold_batchnorm"):
            raise
        raise ValueError(f"{error} --no-fold-batchnorm leaves BatchNorms as they are.") from error
    found = list(normalised(net))
    ties = find_ties(net, [(layer, tensor, part) for _, layer, tensor, part, _ in found])
    apart = [name for (name, *_), tie in zip(found, ties, strict=True) if tie is not None and tie.breaks]
    if apart:
        raise ValueError(
            f"arch: {', '.join(apart)} share their weights with layers for which the norm asks for other numbers "
            "(another stride, target or type of layer), so that no state_dict of the network could hold both; "
            "expected layers alike, or weights of their own"
        )


def _by_name(settings: Settings) -> float | dict[str, float]:
    return {**settings.targets, "*": settings.target} if settings.targets else settings.target


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


@torch.no_grad()
def _input_shapes(net: nn.Module, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The shape of the input that every layer meets, for a batch of one."""
    probe, shapes = copy.deepcopy(net).eval(), {}
    for name, layer in _layers(probe).items():
        layer.register_forward_hook(lambda _, args, __, name=name: shapes.update({name: tuple(args[0].shape)}))
    weight = next(probe.parameters())
    probe(weight.new_zeros(1, *input_shape))
    return shapes
