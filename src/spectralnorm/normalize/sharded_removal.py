"""Baking normalised weights into the shards that FSDP2 manages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from spectralnorm.normalize.fsdp import leave, reshard
from spectralnorm.normalize.parametrization import Normalization, SpectralNormalization, parametrizations_of
from spectralnorm.normalize.scaling import factor
from spectralnorm.operators.shards import Slab, is_sharded

__all__ = ["bake_shard", "cut_to_shard", "prepare_shards"]

_Found = tuple[str, nn.Module, str, Normalization, int]  # as `normalised` yields it
_CURE = (
    "Load its full state dict (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
    "full_state_dict=True) into a model normalised alike in one process, and remove there."
)


def prepare_shards(model: nn.Module, layers: Sequence[_Found]) -> None:
    """Bring every sharded tensor back to its shards, or say why they cannot be baked in.

    Args:
        model: the model.
        layers: what is normalised in it.

    Raises:
        ValueError: for a folded BatchNorm, or a weight that several modules share.
    """
    if not any(part.sharded for *_, part, _ in layers):
        return
    reshard(model)
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for name, layer, tensor, part, _ in layers:
        original = parametrizations_of(layer, tensor).original
        owner = f"{name or type(layer).__name__}.{tensor}"
        if part.sharded and not isinstance(part, SpectralNormalization):
            raise ValueError(
                f"{owner} is sharded, and so is the layer folded into it; expected a model in one piece. {_CURE}"
            )
        if is_sharded(original) and holders[id(original)] > 1:
            raise ValueError(f"{owner} is sharded and shared by several modules; expected one. {_CURE}")


def cut_to_shard(whole: Tensor, layer: nn.Module, tensor: str, part: Normalization) -> Tensor:
    """Of a tensor in one piece, what this process holds."""
    original = parametrizations_of(layer, tensor).original
    return Slab.of(original, part.blocks).cut(whole) if is_sharded(original) else whole


@torch.no_grad()
def bake_shard(layer: nn.Module, tensor: str, part: Normalization, value: Tensor | None) -> None:
    """Write the normalised weight into its shard, and make that plain.

    Args:
        layer: the layer.
        tensor: name of the weight.
        part: what scales it.
        value: what to write into this process's shard; None for the scaled weight.
    """
    original = parametrizations_of(layer, tensor).original
    if value is None:
        original.mul_(factor(part.measure(original)[0], part.rule)[0].to(original.dtype))
    else:
        local = cast("Tensor", original.to_local())  # type: ignore[attr-defined]
        local.copy_(value.view_as(local))
    leave(layer, tensor)
