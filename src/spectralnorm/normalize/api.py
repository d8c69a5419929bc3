"""The verbs: normalise a model or layer, move its states, reconverge them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import nn

from spectralnorm.network.graph import batchnorm_pairs, readers
from spectralnorm.normalize.checkpoints import hook_up
from spectralnorm.normalize.classes import own_class
from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.folding import FoldedNormalization
from spectralnorm.normalize.fsdp import register, reshard
from spectralnorm.normalize.initial import check_orthogonal, orthogonal_
from spectralnorm.normalize.options import check_in_range, check_options, check_switches, targets_of
from spectralnorm.normalize.parametrization import Normalization, SpectralNormalization
from spectralnorm.normalize.scaling import Rule
from spectralnorm.normalize.sites import Site, check_pairs, check_whole, find_sites, is_normalizable, normalised
from spectralnorm.operators.base import Operator
from spectralnorm.operators.batchnorm import is_batchnorm
from spectralnorm.operators.registry import as_operator

__all__ = ["attach", "is_small", "refresh", "spectral_normalize", "step"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SMALL_MODEL = 2**20  # weights in all
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def spectral_normalize(
    model_or_layer: AnyModule,
    *,
    target: float | Mapping[str, float] = 1.0,
    mode: str = "hard",
    method: str = "tracked",
    budget: float | None = None,
    fold_batchnorm: bool = False,
    pairs: Sequence[tuple[str, str]] | None = None,
    init: str | None = None,
    through_norm: bool = True,
) -> AnyModule:
    """Hold the true spectral norm of every Linear and convolution of a model at the target.

    The trained tensor becomes `layer.parametrizations.weight.original`; `layer.weight` is its scaled value.
    In training the state moves once per change of the weights; in eval it stands still, and the norm of a weight
    changed since is found from it. Under FSDP2 and tensor parallelism that takes no gathering of weights.

    Args:
        model_or_layer: a layer, or a model whose Linear, Conv and ConvTranspose layers, projections of
            `MultiheadAttention`, and registered types are normalised in place. Other modules with weights are
            named in one warning.
        target: the norm each layer gets, above 0; or a mapping from names or patterns such as "layer1.*" to
            targets, of which the first that fits a layer counts.
        mode: "hard", W target / sigma always; "soft", W min(1, target / sigma).
        method: "tracked", the only one cheap enough for training.
        budget: instead of `target`, the product of all targets; each layer gets an equal share.
        fold_batchnorm: hold the norm of each layer and the BatchNorm that alone reads it as the one map they are
            in eval mode, by a factor on the BatchNorm's gamma. Without, a BatchNorm undoes the constraint.
        pairs: names of (layer, BatchNorm) to fold, for a model that torch.fx cannot trace.
        init: "orthogonal" first sets the weights to orthogonal matrices, at the centre tap of a convolution;
            None leaves them.
        through_norm: whether gradients flow through sigma too; False takes it for a constant.

    Returns:
        The same object, parametrised. A zero weight stays as it is.

    Raises:
        TypeError: for something that is not a module, or a layer without operator.
        ValueError: for a wrong option, a model without layers to normalise, or one that is normalised already.

    Reference:
        Pan & Mishra 2021 (arXiv 2103.13815), our reading of it; Gouk et al. 2021 for the soft mode and, with
        Farnia et al. 2019, for folding; Xiao et al. 2018 (arXiv 1806.05393) for the orthogonal start.

    Example:
        >>> import torch, spectralnorm as sn
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> net = sn.spectral_normalize(net, target=1.0)
        >>> round(float(sn.spectral_norm(net[0])), 2)
        1.0
    """
    check_options(target, mode, method, budget, init)
    check_switches(fold_batchnorm=fold_batchnorm, through_norm=through_norm)
    if not isinstance(model_or_layer, nn.Module):
        raise TypeError(f"spectral_normalize expected a torch.nn.Module, got {type(model_or_layer).__name__}.")
    taken = dict.fromkeys(name or "the layer itself" for name, *_ in normalised(model_or_layer))
    if taken:
        raise ValueError(
            f"{', '.join(taken)} already carries a spectral normalisation; expected a model without. "
            "Call remove_spectral_norm first, or leave the second call out."
        )
    reshard(model_or_layer)
    if fold_batchnorm or pairs is not None:
        check_whole(model_or_layer)
    folded = _traced_pairs(model_or_layer) if fold_batchnorm and pairs is None else {}
    folded = folded if pairs is None else check_pairs(model_or_layer, pairs)
    sites = find_sites(model_or_layer, folded)
    _check_readers(model_or_layer, folded)
    if not sites:
        _refuse(model_or_layer)
    names = [site.name for site in sites]
    targets = targets_of(names, target, budget)
    check_in_range(names, [site.dtype for site in sites], targets)
    if init == "orthogonal":
        for each in (check_orthogonal, orthogonal_):  # all are checked before one is set
            for site in sites:
                each(site)
        sites = find_sites(model_or_layer, folded)
    rules = [Rule(each, mode, through_norm) for each in targets]
    prepared = _prepare(sites, rules)  # all are measured before one is changed
    for site, normalisation in zip(sites, prepared, strict=True):
        attach(site, normalisation)
    _warn_of_others(model_or_layer, sites, fold=fold_batchnorm)
    return model_or_layer


def _check_readers(model: nn.Module, pairs: Mapping[str, str]) -> None:
    """Raise a ValueError for a pair that a user names and that is not what torch.fx sees, where it can trace."""
    try:
        known = readers(model)
    except ValueError:
        return
    for layer, norm in pairs.items():
        if known.get(layer, [norm]) != [norm]:
            others = ", ".join(name or "another operation" for name in known[layer]) or "nothing"
            raise ValueError(
                f"pairs: the output of {layer!r} is read by {others}; expected {norm!r} alone. Name the BatchNorm "
                "that reads it, or leave the pair out."
            )


def _traced_pairs(model: nn.Module) -> dict[str, str]:
    """The layers to fold a BatchNorm into, as torch.fx sees them."""
    if not any(map(is_batchnorm, model.modules())):
        return {}
    try:
        return batchnorm_pairs(model)
    except ValueError as error:
        raise ValueError(
            f"fold_batchnorm=True: {error}. Expected a model that it can trace; name "
            "pairs=[(layer, batchnorm), ...] instead."
        ) from error


def _prepare(sites: Sequence[Site], rules: Sequence[Rule]) -> list[Normalization]:
    """A normalisation for each site, its state converged."""
    engine, small = Engine(), is_small([site.operator for site in sites])
    return [
        SpectralNormalization(site.operator, rule, engine, place=place, small=small)
        if site.pair is None
        else FoldedNormalization(
            site.operator, rule, engine, site.pair, on_columns=site.on_columns, place=place, small=small
        )
        for place, (site, rule) in enumerate(zip(sites, rules, strict=True))
    ]


def _refuse(model: nn.Module) -> None:
    """Say why there is nothing to normalise."""
    childless = not isinstance(model, _CONTAINERS) and not list(model.children())
    if childless and not is_batchnorm(model):
        as_operator(model)  # raises, and says how to register the type
    raise ValueError(
        f"{type(model).__name__} has no Linear or convolution layer to normalise; expected one at "
        "least. Register its layer types with @spectralnorm.register_operator."
    )


def is_small(operators: Sequence[Operator]) -> bool:
    """Whether the layers are so small together that thorough sweeps cost them next to nothing."""
    return sum(operator.weight.numel() for operator in operators) <= _SMALL_MODEL


def attach(site: Site, normalisation: Normalization) -> None:
    """Register a normalisation on a layer's tensor, and make the layer copy and pickle properly."""
    layer, tensor = site.layer, site.tensor
    if getattr(layer, tensor) is None:  # a BatchNorm without affine parameters: gamma is 1, and not trained
        ones = torch.ones_like(cast("torch.Tensor", layer.running_var))
        layer.register_parameter(tensor, nn.Parameter(ones, requires_grad=False))
    register(layer, tensor, normalisation)
    own_class(layer)
    normalisation.attached(*normalisation.sources_on(layer, tensor))
    hook_up(layer, normalisation)


def step(model: AnyModule) -> AnyModule:
    """Move the state of every layer in training whose weights have changed, now and not in the next forward pass.

    The plain forward pass does this by itself. Call it to read norms between steps, or as an optimizer's hook. Of
    a sharded model every process has to call it.

    Args:
        model: a normalised model or layer.

    Returns:
        The same object.

    Raises:
        ValueError: when nothing in it is normalised.

    Example:
        >>> import torch, spectralnorm as sn
        >>> layer = sn.spectral_normalize(torch.nn.Linear(4, 3))
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> hook = optimizer.register_step_post_hook(lambda *_: sn.step(layer))
    """
    for engine in {id(found.engine): found.engine for _, found in _found(model)}.values():
        engine.update()
        engine.update(sharded=True)
    return model


def refresh(model: AnyModule) -> AnyModule:
    """Converge the state of every normalised layer anew, after writes PyTorch cannot see (`.data`).

    Of a sharded model every process has to call it.

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
    for sources, normalisation in _found(model):
        normalisation.converge(*sources)
        normalisation.mark(sources)
    return model


def _found(model: nn.Module) -> list[tuple[tuple[torch.Tensor, ...], Normalization]]:
    """Every normalisation of a model, with the tensors it goes by."""
    found = []
    for _, layer, tensor, normalisation, _ in normalised(model):
        found.append((normalisation.sources_on(layer, tensor), normalisation))
    if not found:
        raise ValueError(
            f"{type(model).__name__} carries no spectral normalisation; expected one from spectral_normalize."
        )
    return found


def _warn_of_others(model: nn.Module, sites: Sequence[Site], *, fold: bool) -> None:
    """Name once the modules whose weights stay as they are."""
    inside = {part for _, layer, *_ in normalised(model) for part in layer.modules()}
    inside |= {layer for site in sites if site.pair for layer in site.pair}
    left = {
        name: module
        for name, module in model.named_modules()
        if module not in inside and any(True for _ in module.parameters(recurse=False))
    }
    norms = [name for name, module in left.items() if is_batchnorm(module)]
    advice = ""
    if norms and any(is_normalizable(site.layer) for site in sites):
        advice = " BatchNorm rescales what it reads, which undoes the constraint on the layer before it: " + (
            "torch.fx found none that alone feeds it, or it keeps no running statistics. Name "
            "pairs=[(layer, batchnorm), ...] where there is one."
            if fold
            else "use fold_batchnorm=True, or pairs=[(layer, batchnorm), ...]."
        )
    if left:
        others = ", ".join(f"{name} ({type(module).__name__})" for name, module in left.items())
        warnings.warn(
            f"spectral_normalize left the weights of {others} as they are: it normalises "
            f"Linear, Conv, ConvTranspose and registered layers.{advice}",
            stacklevel=3,
        )
