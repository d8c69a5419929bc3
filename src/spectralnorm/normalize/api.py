"""The verbs: normalise a model or layer, bake the result in, reconverge."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectralnorm.normalize.classes import own_class
from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.parametrization import SpectralNormalization
from spectralnorm.normalize.proven import shrink_until_proven
from spectralnorm.operators.base import Operator
from spectralnorm.operators.batchnorm import is_batchnorm
from spectralnorm.operators.registry import as_operator, has_operator

__all__ = [
    "attach",
    "check_plain",
    "check_target",
    "is_normalizable",
    "is_small",
    "normalisations",
    "refresh",
    "remove_spectral_norm",
    "spectral_normalize",
]

MODES = ("hard", "soft")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SMALL_MODEL = 2**20  # weights in all
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def spectral_normalize(
    model_or_layer: AnyModule, *, target: float = 1.0, mode: str = "hard", method: str = "tracked"
) -> AnyModule:
    """Hold the true spectral norm of every Linear and convolution of a model at the target.

    The trained tensor becomes `layer.parametrizations.weight.original`; `layer.weight` is its scaled value.
    In training the estimate moves once per change of the weights; in eval it stands still.

    Args:
        model_or_layer: a layer, or a model whose Linear, Conv and ConvTranspose layers (and registered types)
            are normalised in place. Other modules with weights, BatchNorm too, are named in one warning.
        target: the norm each layer gets, above 0.
        mode: "hard", W target / sigma always; "soft", W min(1, target / sigma).
        method: "tracked", the only one cheap enough for training.

    Returns:
        The same object, parametrised. A zero weight stays as it is.

    Raises:
        TypeError: for something that is not a module, or a layer without operator.
        ValueError: for a wrong target, mode or method, a model without layers to normalise, or one that is
            normalised already.

    Reference:
        Pan & Mishra 2021 (arXiv 2103.13815), our reading of it; Gouk et al. 2021 for the soft mode.

    Example:
        >>> import torch, spectralnorm as sn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> net = sn.spectral_normalize(net, target=1.0)
        >>> round(float(sn.spectral_norm(net[0])), 2)
        1.0
    """
    _check_options(target, mode, method)
    if not isinstance(model_or_layer, nn.Module):
        raise TypeError(f"spectral_normalize expected a torch.nn.Module, got {type(model_or_layer).__name__}.")
    taken = [name or "the layer itself" for name, _ in _normalised(model_or_layer)]
    if taken:
        raise ValueError(
            f"{', '.join(taken)} already carries a spectral normalisation; expected a model without. "
            "Call remove_spectral_norm first, or leave the second call out."
        )
    if is_normalizable(model_or_layer):
        layers = {"": model_or_layer}
    else:
        layers = {name: layer for name, layer in model_or_layer.named_modules() if is_normalizable(layer)}
    childless = not isinstance(model_or_layer, _CONTAINERS) and not list(model_or_layer.children())
    if not layers and childless and not is_batchnorm(model_or_layer):
        as_operator(model_or_layer)  # raises, and says how to register the type
    if not layers:
        raise ValueError(
            f"{type(model_or_layer).__name__} has no Linear or convolution layer to normalise; expected one at "
            "least. Register its layer types with @spectralnorm.register_operator."
        )
    for name, layer in layers.items():
        check_plain(layer, name)
    engine = Engine()
    operators = [as_operator(layer) for layer in layers.values()]
    small = is_small(operators)
    prepared = [SpectralNormalization(op, target, mode, engine, thorough=small) for op in operators]
    for layer, normalisation in zip(layers.values(), prepared, strict=True):  # all measured before one is changed
        attach(layer, normalisation)
    _warn_of_others(model_or_layer)
    return model_or_layer


def is_normalizable(layer: nn.Module) -> bool:
    """Whether a layer's weight is to be scaled: a BatchNorm's map depends on its statistics too."""
    return has_operator(layer) and not is_batchnorm(layer)


def is_small(operators: Sequence[Operator]) -> bool:
    """Whether the layers are so small together that thorough sweeps cost them next to nothing."""
    return sum(operator.weight.numel() for operator in operators) <= _SMALL_MODEL


def attach(layer: nn.Module, normalisation: SpectralNormalization) -> None:
    """Register a normalisation on a layer's weight, and make the layer copy and pickle properly."""
    parametrize.register_parametrization(layer, "weight", normalisation)
    own_class(layer)
    normalisation.attached(_weight_list(layer).original)


def remove_spectral_norm(model: AnyModule, *, certified: bool = False) -> AnyModule:
    """Bake the normalised weights in and drop the parametrizations: a plain model with the same outputs.

    Args:
        model: a model or layer that `spectral_normalize` or the drop-in has normalised.
        certified: whether to scale each weight down, by a part in a thousand or so, until its layer's norm is
            proven to be at most its target at every input size. Where padding leaves the norm open (reflect,
            replicate, circular with a stride) this scales by what the padding can add.

    Returns:
        The same object, in place.

    Raises:
        ValueError: when nothing in it is normalised, or a weight carries another parametrization too.

    Example:
        >>> import torch, spectralnorm as sn
        >>> layer = sn.remove_spectral_norm(sn.spectral_normalize(torch.nn.Linear(4, 3)))
        >>> sorted(layer.state_dict())
        ['bias', 'weight']
    """
    layers = list(_normalised(model))
    if not layers:
        raise ValueError(
            f"{type(model).__name__} carries no spectral normalisation; expected one from spectral_normalize. "
            "There is nothing to remove."
        )
    for name, layer in layers:
        if len(_weight_list(layer)) > 1:
            raise ValueError(
                f"{name or type(layer).__name__}.weight carries further parametrizations; expected the spectral "
                "normalisation alone. Remove the others first."
            )
    for _, layer in layers:
        target = cast("SpectralNormalization", _weight_list(layer)[0]).target
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        if certified:
            shrink_until_proven(layer, cast("Tensor", layer.weight), target, rtol=1e-3)
    return model


def refresh(model: AnyModule) -> AnyModule:
    """Converge the state of every normalised layer anew, after writes PyTorch cannot see (`.data`).

    Args:
        model: a normalised model or layer.

    Returns:
        The same object, in place.

    Raises:
        ValueError: when nothing in it is normalised.

    Example:
        >>> import torch, spectralnorm as sn
        >>> layer = sn.spectral_normalize(torch.nn.Linear(4, 3))
        >>> layer.parametrizations.weight.original.data *= 7
        >>> round(float(sn.spectral_norm(sn.refresh(layer))), 2)
        1.0
    """
    found = normalisations(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} carries no spectral normalisation; expected one from spectral_normalize."
        )
    for weight, normalisation in found:
        normalisation.converge(weight)
        normalisation.mark(weight)
    return model


def normalisations(model: nn.Module) -> list[tuple[Tensor, SpectralNormalization]]:
    """Every original weight of a model with its normalisation."""
    found = []
    for _, layer in _normalised(model):
        weights = _weight_list(layer)
        found += [(weights.original, n) for n in weights if isinstance(n, SpectralNormalization)]
    return found


def _weight_list(layer: nn.Module) -> parametrize.ParametrizationList:
    return cast("parametrize.ParametrizationList", cast("nn.ModuleDict", layer.parametrizations)["weight"])


def _normalised(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every layer whose weight carries our parametrization."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    for name, layer in model.named_modules():
        if parametrize.is_parametrized(layer, "weight") and any(
            isinstance(p, SpectralNormalization) for p in _weight_list(layer)
        ):
            yield name, layer


def check_plain(layer: nn.Module, name: str) -> None:
    """Raise a ValueError unless the layer's weight is a plain parameter that its operator shares."""
    if parametrize.is_parametrized(layer, "weight"):
        others = ", ".join(type(p).__name__ for p in _weight_list(layer))
        raise ValueError(
            f"{name or type(layer).__name__}.weight is already parametrised by {others}; expected a plain weight. "
            "Bake that in first with torch.nn.utils.parametrize.remove_parametrizations."
        )
    weight = layer._parameters.get("weight", layer._buffers.get("weight"))
    if weight is None or as_operator(layer).weight.shape != weight.shape:
        raise ValueError(
            f"{name or type(layer).__name__} has no plain parameter 'weight' that is its operator's weight; "
            "expected one. Remove what makes it (a hook of spectral_norm, weight_norm or pruning) first."
        )


def check_target(name: str, target: float) -> None:
    """Raise a ValueError unless a norm can be the target."""
    number = isinstance(target, (int, float)) and not isinstance(target, bool)
    if not (number and 0 < target <= sys.float_info.max):
        raise ValueError(
            f"{name}={target!r:.60} cannot be reached; expected a finite number above 0, such as 1.0."
        )


def _check_options(target: float, mode: str, method: str) -> None:
    check_target("target", target)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; expected one of {', '.join(MODES)}.")
    if method != "tracked":
        raise ValueError(f"method={method!r} cannot be used in training; expected 'tracked'.")


def _warn_of_others(model: nn.Module) -> None:
    """Name once the modules whose weights stay as they are."""
    inside = {m for _, layer in _normalised(model) for m in layer.modules()}
    others = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if module not in inside and any(True for _ in module.parameters(recurse=False))
    ]
    if others:
        warnings.warn(
            f"spectral_normalize left the weights of {', '.join(others)} as they are: it normalises "
            "Linear, Conv, ConvTranspose and registered layers.",
            stacklevel=3,
        )
