"""Where a model can be normalised, its pairs with BatchNorms and attention among it; and where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectralnorm.normalize.parametrization import Normalization, parametrizations_of
from spectralnorm.operators.base import Operator, with_weight
from spectralnorm.operators.batchnorm import BatchNorm, fold_batchnorm, is_batchnorm
from spectralnorm.operators.raw import conv_operator
from spectralnorm.operators.registry import as_operator, has_operator
from spectralnorm.operators.shards import is_sharded, stand_in
from spectralnorm.operators.transposed import TransposedConvOperator

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "Site",
    "check_pairs",
    "check_plain",
    "check_whole",
    "find_sites",
    "is_normalizable",
    "normalised",
    "only_normalised",
]


@dataclass(frozen=True, eq=False)
class Site:
    """A tensor to scale.

    Attributes:
        name: of the layer whose norm is held, as in `model.named_modules()`; with the tensor's for attention.
        layer: the module that holds the tensor.
        tensor: its name there.
        operator: the map whose norm is held.
        pair: a layer and its BatchNorm, when the tensor is the BatchNorm's gamma.
    """

    name: str
    layer: nn.Module
    tensor: str
    operator: Operator
    pair: tuple[nn.Module, BatchNorm] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor that is scaled."""
        tensor = getattr(self.layer, self.tensor)  # None of a BatchNorm without affine parameters
        return self.operator.weight.dtype if tensor is None else cast("torch.dtype", tensor.dtype)

    @property
    def on_columns(self) -> bool:
        """Whether the BatchNorm's channels are the columns of the symbol."""
        return self.pair is not None and isinstance(as_operator(self.pair[0]), TransposedConvOperator)


def is_normalizable(layer: nn.Module) -> bool:
    """Whether a layer's weight is to be scaled: a BatchNorm's map depends on its statistics too."""
    return has_operator(layer) and not is_batchnorm(layer)


def find_sites(model: nn.Module, pairs: Mapping[str, str]) -> list[Site]:
    """Every tensor of a model that is to be scaled, each checked to be plain.

    Args:
        model: a layer or model.
        pairs: layers by name, with the names of the BatchNorms to fold into them.

    Returns:
        The sites, in the model's order.
    """
    sites: list[Site] = []
    for name, module in model.named_modules():
        if is_normalizable(module):
            check_plain(module, "weight", name)
            if name in pairs:
                sites.append(_folded(name, module, pairs[name], model.get_submodule(pairs[name])))
            else:
                sites.append(Site(name, module, "weight", _operator(module, name)))
            if name == "":
                break
        elif type(module) is nn.MultiheadAttention:
            sites += _attention(name, module)
    return sites


def _folded(name: str, layer: nn.Module, norm_name: str, norm: nn.Module) -> Site:
    if not is_batchnorm(norm):
        raise ValueError(
            f"pairs: {norm_name!r} is a {type(norm).__name__}; expected the BatchNorm that alone reads the output "
            f"of {name!r}. Name that, or leave the pair out."
        )
    if norm.weight is not None:
        check_plain(norm, "weight", norm_name, operator=False)
    return Site(name, norm, "weight", fold_batchnorm(as_operator(layer), norm), (layer, norm))


def _attention(name: str, module: nn.MultiheadAttention) -> list[Site]:
    """The projections of queries, keys and values: of each its own norm, of which the largest counts."""
    tensors = (
        ("in_proj_weight",) if module._qkv_same_embed_dim else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    )
    sites = []
    for tensor in tensors:
        check_plain(module, tensor, name, operator=False)
        weight = cast("Tensor", getattr(module, tensor))
        # (3 E, E): three matrices side by side, as the groups of a pointwise convolution
        groups = 3 if tensor == "in_proj_weight" else 1
        if is_sharded(weight):
            _check_shards(weight, f"{name}.{tensor}")
            operator = with_weight(conv_operator(stand_in(weight)[..., None], groups=groups), weight[..., None])
        else:
            operator = conv_operator(weight[..., None], groups=groups)
        sites.append(Site(f"{name}.{tensor}".lstrip("."), module, tensor, operator))
    return sites


def check_whole(model: nn.Module) -> None:
    """Raise a ValueError for a model with sharded parameters, whose BatchNorms are not folded."""
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise ValueError(
                f"{name} is sharded, so that no BatchNorm can be folded into its layer; expected plain weights. "
                "Call spectral_normalize before fully_shard."
            )


def _operator(layer: nn.Module, name: str) -> Operator:
    """A layer's operator; of one that FSDP2 has sharded, with the weight left in its shards."""
    weight = layer._parameters.get("weight")
    if not is_sharded(weight):
        return as_operator(layer)
    _check_shards(weight, f"{name or type(layer).__name__}.weight")
    try:
        layer._parameters["weight"] = nn.Parameter(stand_in(weight), requires_grad=False)
        return with_weight(as_operator(layer), weight)
    finally:
        layer._parameters["weight"] = cast("nn.Parameter", weight)


def _check_shards(weight: DTensor, owner: str) -> None:
    """Raise a ValueError where some process holds numbers that are not finite."""
    with torch.no_grad():
        bad = int(cast("DTensor", (~weight.isfinite()).sum()).full_tensor())
    if bad:
        raise ValueError(
            f"{owner} holds {bad} NaN or infinite entries of {weight.numel()}; expected finite values. "
            "Look for a diverged training step or a damaged checkpoint."
        )


def normalised(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Normalization, int]]:
    """Every normalised tensor of a model.

    Yields:
        Name and module of its holder, its own name, what scales it, and how many parametrizations it has.

    Raises:
        TypeError: for something that is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    for name, layer in model.named_modules():
        if parametrize.is_parametrized(layer):
            for tensor in cast("nn.ModuleDict", layer.parametrizations):
                chain = parametrizations_of(layer, tensor)
                for part in chain:
                    if isinstance(part, Normalization):
                        yield name, layer, tensor, part, len(chain)


def only_normalised(model: nn.Module, advice: str) -> list[tuple[str, nn.Module, str, Normalization, int]]:
    """What `normalised` yields, there being something, and no tensor with another parametrization."""
    layers = list(normalised(model))
    if not layers:
        raise ValueError(
            f"{type(model).__name__} carries no spectral normalisation; expected one from spectral_normalize. "
            f"{advice}"
        )
    for name, layer, tensor, _, count in layers:
        if count > 1:
            raise ValueError(
                f"{name or type(layer).__name__}.{tensor} carries further parametrizations; expected the spectral "
                "normalisation alone. Remove the others first."
            )
    return layers


def check_plain(layer: nn.Module, tensor: str, name: str, *, operator: bool = True) -> None:
    """Raise a ValueError unless a layer's tensor is a plain parameter, which its operator shares."""
    owner = f"{name or type(layer).__name__}.{tensor}"
    if parametrize.is_parametrized(layer, tensor):
        found = parametrizations_of(layer, tensor)
        ours = all(isinstance(part, Normalization) for part in found)
        cure = "spectralnorm.remove_spectral_norm" if ours else "nn.utils.parametrize.remove_parametrizations"
        raise ValueError(
            f"{owner} is already parametrised by {', '.join(type(part).__name__ for part in found)}; expected a "
            f"plain weight. Bake that in first with {cure}."
        )
    plain = layer._parameters.get(tensor, layer._buffers.get(tensor))
    if plain is None or (operator and not is_sharded(plain) and not _same(as_operator(layer).weight, plain)):
        raise ValueError(
            f"{name or type(layer).__name__} has no plain parameter {tensor!r} that is its operator's weight; "
            "expected one. Remove what makes it (a hook of spectral_norm, weight_norm or pruning) first."
        )


@torch.no_grad()
def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other.to(one.dtype)).all())


def _is_list(thing: object) -> bool:
    return isinstance(thing, Sequence) and not isinstance(thing, str)


def check_pairs(model: nn.Module, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The pairs a user named, as a dictionary, their modules found in the model.

    Args:
        model: the model.
        pairs: names of a layer and of the BatchNorm that alone reads it.

    Returns:
        Layer to BatchNorm.

    Raises:
        ValueError: for a name the model lacks, a layer that cannot be normalised, or a name that occurs twice.
    """
    if not (_is_list(pairs) and all(_is_list(pair) and len(pair) == 2 for pair in pairs)):
        raise ValueError(f"pairs={pairs!r:.60} is no list of pairs; expected such as [('conv1', 'bn1')].")
    modules, found = dict(model.named_modules()), dict(pairs)
    names = [name for pair in pairs for name in pair]
    if len(set(names)) != len(names):
        raise ValueError(f"pairs={pairs!r} name a layer twice; expected each layer and BatchNorm in one pair.")
    for name in names:
        if name not in modules:
            raise ValueError(
                f"pairs: the model has no module {name!r}; expected names as in model.named_modules()."
            )
    for name in found:
        if not is_normalizable(modules[name]):
            raise ValueError(
                f"pairs: {name!r} is a {type(modules[name]).__name__}; expected a Linear, Conv or ConvTranspose "
                "first, then its BatchNorm."
            )
    return found
