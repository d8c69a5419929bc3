"""The spectral norms of a model's layers as a term of the loss.

Yoshida & Miyato, "Spectral Norm Regularization for Improving the Generalizability of Deep Learning" (2017,
arXiv 1705.10941): lambda / 2 times the sum of the squared norms; here of the true norms of convolutions.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from spectralnorm.normalize.api import is_small
from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.scaling import norm_of
from spectralnorm.normalize.sites import check_plain, is_normalizable, normalised
from spectralnorm.normalize.tracker import Tracker
from spectralnorm.operators.registry import as_operator

__all__ = ["load_penalty_state", "penalty_state", "spectral_penalty"]

_Trackers = dict[str, tuple["weakref.ref[nn.Module]", Tracker]]  # by the layer's name
_TRACKERS: weakref.WeakKeyDictionary[nn.Module, _Trackers] = weakref.WeakKeyDictionary()


def spectral_penalty(model: nn.Module) -> Tensor:
    """The sum of the squared spectral norms of a model's Linear, Conv and ConvTranspose layers, differentiable.

    Add `lam / 2 * spectral_penalty(model)` to the loss. The first call finds every norm from cold; later ones
    follow the weights by one sweep for each change of them, as `spectral_normalize` does. The state is kept beside
    the model, not in its `state_dict`: a model that is loaded or copied starts from cold, unless `penalty_state`
    and `load_penalty_state` carry it over.

    Args:
        model: a layer or model with plain weights; layers that occur several times count once.

    Returns:
        0-dim tensor.

    Raises:
        TypeError: for something that is not a module.
        ValueError: for a model without such a layer, or one whose weights are parametrised.

    Reference:
        Yoshida & Miyato 2017, equation (5).

    Example:
        >>> import torch, spectralnorm as sn
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 2.0])))
        >>> loss = 0.01 / 2 * sn.spectral_penalty(layer)
        >>> loss.backward()
        >>> [[round(x, 3) for x in row] for row in layer.weight.grad.tolist()]  # lam times the norm, at its place
        [[0.03, 0.0], [0.0, 0.0]]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"spectral_penalty expected a torch.nn.Module, got {type(model).__name__}.")
    terms = []
    for layer, tracker in _tracked(model).values():
        tracker.training = layer.training
        terms.append(_norm(tracker, cast("Tensor", layer.weight)).square())
    return torch.stack(terms).sum()


def penalty_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The state behind `spectral_penalty`, for a checkpoint: a run that loads it goes on bit for bit.

    Args:
        model: whose penalty it is.

    Returns:
        By layer, what its tracker's `state_dict` gives; tensors, numbers and text.

    Example:
        >>> import torch, spectralnorm as sn
        >>> list(penalty_state(torch.nn.Sequential(torch.nn.Linear(3, 2))))
        ['0']
    """
    return {name: tracker.state_dict() for name, (_, tracker) in _tracked(model).items()}


def load_penalty_state(model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Put a state from `penalty_state` behind a model whose weights are as they were then.

    Args:
        model: with the weights loaded.
        state: of the same model.

    Raises:
        ValueError: when it is the state of other layers.

    Example:
        >>> import torch, spectralnorm as sn
        >>> layer = torch.nn.Linear(3, 2)
        >>> load_penalty_state(layer, penalty_state(layer))
    """
    found = _tracked(model)
    if found.keys() != state.keys():
        raise ValueError(
            f"got the state of {', '.join(state)}, expected that of {', '.join(found)}; load that "
            "of the same model"
        )
    for name, (_, tracker) in found.items():
        tracker.load_state_dict(state[name])


def _tracked(model: nn.Module) -> dict[str, tuple[nn.Module, Tracker]]:
    """By name, every layer to penalise, and what follows its norm."""
    layers = {name: layer for name, layer in model.named_modules() if is_normalizable(layer)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no Linear or convolution layer to penalise; expected one at least."
        )
    if next(normalised(model), None):
        raise ValueError(
            f"{type(model).__name__} is normalised, so that a penalty on its norms does nothing; expected "
            "plain weights. Call remove_spectral_norm first, or leave the penalty out."
        )
    trackers = _TRACKERS.get(model, {})
    if {name: there() for name, (there, _) in trackers.items()} != layers:
        trackers = _TRACKERS[model] = _track(layers)
    return {name: (layer, trackers[name][1]) for name, layer in layers.items()}


def _track(layers: dict[str, nn.Module]) -> _Trackers:
    """A tracker for each layer, which no module holds."""
    for name, layer in layers.items():
        check_plain(layer, "weight", name)
    engine, operators = Engine(), [as_operator(layer) for layer in layers.values()]
    small, trackers = is_small(operators), {}
    for place, ((name, layer), operator) in enumerate(zip(layers.items(), operators, strict=True)):
        tracker = Tracker(operator, engine, place=place, small=small)
        tracker.attached(cast("Tensor", layer.weight))
        trackers[name] = (weakref.ref(layer), tracker)
    return trackers


def _norm(tracker: Tracker, weight: Tensor) -> Tensor:
    """The norm, 0-dim: its value from the state, its gradient through u^H K^(w) v at fixed vectors."""
    sigma, left, right = tracker.measure(weight)
    return norm_of(sigma, (weight, left, right))
