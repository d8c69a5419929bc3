"""Baking the normalised weights in, proven where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectralnorm.normalize.checkpoints import unhook
from spectralnorm.normalize.folding import FoldedNormalization
from spectralnorm.normalize.parametrization import Normalization
from spectralnorm.normalize.proven import shrink_until_proven
from spectralnorm.normalize.sharded_removal import bake_shard, cut_to_shard, prepare_shards
from spectralnorm.normalize.sites import only_normalised
from spectralnorm.normalize.ties import find_ties, warn_of_ties
from spectralnorm.operators.base import Operator, with_weight
from spectralnorm.operators.batchnorm import BatchNorm, fold_batchnorm
from spectralnorm.operators.raw import conv_operator
from spectralnorm.operators.registry import as_operator
from spectralnorm.operators.shards import is_sharded

__all__ = ["remove_spectral_norm"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def remove_spectral_norm(model: AnyModule, *, certified: bool = False) -> AnyModule:
    """Bake the normalised weights in and drop the parametrizations: a plain model with the same outputs.

    Args:
        model: a model or layer that `spectral_normalize` or the drop-in has normalised.
        certified: whether to scale each weight (of a folded pair, the BatchNorm's gamma) down until its layer's
            norm is proven to be at most its target at every input size: by a part in a thousand or so, and by more
            where the norm held in training had fallen behind the weights. Where padding leaves the norm open
            (reflect, replicate, circular with a stride) this scales by what the padding can add.

    Returns:
        The same object, in place. It is left as it was if a layer cannot be proven. A weight that another module
        shares stays shared only where both get the same numbers: else the layer gets a parameter of its own.

    Raises:
        ValueError: when nothing in it is normalised, a weight carries another parametrization too, or a target
            cannot be reached in the weight's dtype.

    Example:
        >>> import torch, spectralnorm as sn
        >>> layer = sn.remove_spectral_norm(sn.spectral_normalize(torch.nn.Linear(4, 3)))
        >>> sorted(layer.state_dict())
        ['bias', 'weight']
    """
    layers = only_normalised(model, "There is nothing to remove.")
    prepare_shards(model, layers)
    proven = [_proven(name, layer, tensor, part) if certified else None for name, layer, tensor, part, _ in layers]
    ties = find_ties(model, [(layer, tensor, part) for _, layer, tensor, part, _ in layers], proven)
    warn_of_ties([name for name, *_ in layers], ties, "Build the model without sharing to load its state_dict.")
    for (_, layer, tensor, part, _), weight, tie in zip(layers, proven, ties, strict=True):
        if part.sharded:
            bake_shard(layer, tensor, part, weight)
        else:
            parametrize.remove_parametrizations(layer, tensor, leave_parametrized=tie is None)
            _write(layer, tensor, weight if tie is None else tie.value, apart=tie is not None and tie.breaks)
        unhook(layer, part)
    return model


@torch.no_grad()
def _write(layer: nn.Module, tensor: str, value: Tensor | None, *, apart: bool) -> None:
    """Set a tensor that is plain again, in place or, where others go by the same parameter, apart from them."""
    before = cast("Tensor", getattr(layer, tensor))
    if apart:
        setattr(layer, tensor, nn.Parameter(cast("Tensor", value), before.requires_grad))
    elif value is not None:
        before.copy_(value)


def _proven(name: str, layer: nn.Module, tensor: str, part: Normalization) -> Tensor:
    """A copy of a normalised tensor, scaled until its layer's norm is proven; of a sharded one, of the shard."""
    scaled = cast("Tensor", getattr(layer, tensor)).detach()
    weight = scaled.full_tensor() if is_sharded(scaled) else scaled.clone()
    shrink_until_proven(weight, _maker(layer, part), part.target, 1e-3, name or type(layer).__name__)
    return cut_to_shard(weight, layer, tensor, part)


def _maker(layer: nn.Module, part: Normalization) -> Callable[[Tensor], Operator]:
    """From a tensor to the map whose norm is held, with that tensor in place of the layer's own."""
    if isinstance(part, FoldedNormalization):
        before, norm = as_operator(part.pair[0]), _plain(part.pair[1])

        def folded(gamma: Tensor) -> Operator:
            norm.weight = nn.Parameter(gamma, requires_grad=False)
            return fold_batchnorm(before, norm)

        return folded
    if isinstance(layer, nn.MultiheadAttention):
        return lambda weight: conv_operator(weight[..., None], groups=part.blocks[0])
    operator = as_operator(layer)
    return lambda weight: with_weight(operator, weight)


def _plain(norm: BatchNorm) -> BatchNorm:
    """A BatchNorm with the same statistics, and no parametrization."""
    kind = parametrize.type_before_parametrizations(norm)
    plain = cast("BatchNorm", object.__new__(kind))
    nn.Module.__init__(plain)
    plain.eps, plain.running_var = norm.eps, norm.running_var
    return plain
