"""Checkpoints of plain models, and of those that PyTorch's own spectral norms wrap: read, and written.

| form | keys of a weight |
|---|---|
| plain | `weight` |
| parametrized, of `torch.nn.utils.parametrizations` | `parametrizations.weight.original`, `.0._u`, `.0._v` |
| legacy, of `torch.nn.utils` | `weight_orig`, `weight_u`, `weight_v` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectralnorm.normalize.folding import LOADS, FoldedNormalization, count_pass, loads_of
from spectralnorm.normalize.parametrization import Normalization, parametrizations_of
from spectralnorm.normalize.sites import only_normalised
from spectralnorm.normalize.ties import find_ties
from spectralnorm.operators.base import compute_dtype
from spectralnorm.operators.batchnorm import is_batchnorm

__all__ = ["FORMS", "hook_up", "plain_state_dict", "unhook"]

FORMS = ("plain", "parametrized", "legacy")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


# -- writing ------------------------------------------------------------------------------------------


def plain_state_dict(model: nn.Module, *, form: str = "plain") -> dict[str, Any]:
    """The state dict that a model would have after `eval()` and `remove_spectral_norm`, which it does not undergo.

    Where a weight is tied to a module that is not normalised, such as an Embedding, the two entries differ.

    Args:
        model: a model or layer that `spectral_normalize` or the drop-in has normalised.
        form: "plain" for the same model without normalisation. "parametrized" and "legacy" for one whose layers
            carry `torch.nn.utils.parametrizations.spectral_norm` or `torch.nn.utils.spectral_norm`: their trained
            tensors, with u and v of the flattened weight. Such a model divides by the flattened norm, so that its
            outputs are the same only for Linear layers of target 1. A layer and the BatchNorm folded into it are
            plain in every form.

    Returns:
        The state dict; tensors that are not normalised are the model's own, as in `model.state_dict()`.

    Raises:
        TypeError: for something that is not a module.
        ValueError: for an unknown form, a model in which nothing is normalised, or a tensor that carries another
            parametrization too.

    Example:
        >>> import torch, spectralnorm as sn
        >>> net = sn.spectral_normalize(torch.nn.Linear(4, 3))
        >>> torch.nn.Linear(4, 3).load_state_dict(sn.plain_state_dict(net))
        <All keys matched successfully>
        >>> sorted(sn.plain_state_dict(net, form="legacy"))
        ['bias', 'weight_orig', 'weight_u', 'weight_v']
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown; expected one of {', '.join(FORMS)}.")
    layers = only_normalised(model, "Its state_dict() is plain already.")
    found = [(layer, tensor, part) for _, layer, tensor, part, _ in layers]
    handles = [
        layer.register_state_dict_post_hook(partial(_write, tensor, entries))
        for (layer, tensor, _), entries in zip(found, _entries(model, found, form), strict=True)
    ]
    try:
        return model.state_dict()
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _entries(
    model: nn.Module, found: list[tuple[nn.Module, str, Normalization]], form: str
) -> list[dict[str, Tensor]]:
    """What stands in a state dict of this form for each normalised tensor, by the rest of its key."""
    followed: list[nn.Module] = [part for _, _, part in found]
    followed += [part.pair[0] for _, _, part in found if isinstance(part, FoldedNormalization)]
    modes = [module.training for module in followed]
    for module in followed:
        module.training = False  # reading moves no state then
    try:
        ties = find_ties(model, found)
        return [
            _forms(layer, tensor, form)
            if form != "plain" and not isinstance(part, FoldedNormalization)
            else {tensor: tie.value if tie else cast("Tensor", getattr(layer, tensor)).detach().clone()}
            for (layer, tensor, part), tie in zip(found, ties, strict=True)
        ]
    finally:
        for module, mode in zip(followed, modes, strict=True):
            module.training = mode


def _forms(layer: nn.Module, tensor: str, form: str) -> dict[str, Tensor]:
    """A trained tensor as PyTorch's spectral norms keep it, with the leading vectors of the flattened matrix."""
    weight = parametrizations_of(layer, tensor).original.detach()
    flat = _flat(weight, _dim(layer)).to(compute_dtype(weight))
    left, _, right = torch.linalg.svd(flat, full_matrices=False)
    names = [f"{tensor}_orig", f"{tensor}_u", f"{tensor}_v"]
    if form == "parametrized":
        names = [f"parametrizations.{tensor}.{end}" for end in ("original", "0._u", "0._v")]
    values = weight, left[:, 0].to(weight.dtype, copy=True), right[0].to(weight.dtype, copy=True)
    return dict(zip(names, values, strict=True))


def _write(
    tensor: str, entries: dict[str, Tensor], _: nn.Module, state: dict[str, Any], prefix: str, *__: Any
) -> None:
    """Hook of `state_dict`: put the entries in place of the normalised tensor's own."""
    own = f"{prefix}parametrizations.{tensor}."
    for key in [key for key in state if key.startswith(own)]:
        del state[key]
    state.update({prefix + rest: value for rest, value in entries.items()})


# -- reading ------------------------------------------------------------------------------------------


def hook_up(layer: nn.Module, part: Normalization) -> None:
    """Let a normalised layer read checkpoints of other forms, and a folded BatchNorm count its passes."""
    holders = [layer]
    if isinstance(part, FoldedNormalization):
        layer.register_forward_hook(count_pass)
        holders.append(part.pair[0])
    for holder in holders:
        if not any(_ours(hook) for hook in holder._load_state_dict_pre_hooks.values()):
            holder.register_load_state_dict_pre_hook(_read)


def unhook(layer: nn.Module, part: Normalization) -> None:
    """Take the hooks off again."""
    for holder in (layer, *part.pair[:1]) if isinstance(part, FoldedNormalization) else (layer,):
        for hooks in (holder._forward_hooks, holder._load_state_dict_pre_hooks):
            for key in [key for key, hook in hooks.items() if _ours(hook)]:
                del cast("dict[int, Any]", hooks)[key]
        holder.__dict__.pop(LOADS, None)


def _ours(hook: Callable[..., Any]) -> bool:
    return getattr(hook, "hook", hook) in (_read, count_pass)


def _read(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook of `load_state_dict`: bring the keys of other forms to those that the layer has."""
    parts = dict(_parts(layer))
    for tensor, part in parts.items():
        own = f"{prefix}parametrizations.{tensor}.original"
        value = _take(layer, state, prefix, tensor, scaled=part.rule.mode == "soft")
        if value is None and own not in state and prefix + tensor in state:
            value = state.pop(prefix + tensor)
        if value is None and is_batchnorm(layer) and not layer.affine and prefix + "running_var" in state:
            state.setdefault(own, torch.ones_like(parametrizations_of(layer, tensor).original))
        if value is not None:
            state[own] = value
    if not parts:  # the layer before a folded BatchNorm
        value = _take(layer, state, prefix, "weight", scaled=True)
        if value is not None:
            state[prefix + "weight"] = value
        if prefix + "weight" in state:
            layer.__dict__[LOADS] = loads_of(layer) + 1


def _parts(layer: nn.Module) -> Iterator[tuple[str, Normalization]]:
    """The normalised tensors of a layer, and what scales them."""
    if parametrize.is_parametrized(layer):
        for tensor in cast("nn.ModuleDict", layer.parametrizations):
            for part in parametrizations_of(layer, tensor):
                if isinstance(part, Normalization):
                    yield tensor, part


def _take(layer: nn.Module, state: dict[str, Any], prefix: str, tensor: str, *, scaled: bool) -> Tensor | None:
    """Take a weight that one of PyTorch's spectral norms has kept out of a state dict.

    Args:
        layer: the layer it is for.
        state: the state dict.
        prefix: of the layer.
        tensor: name of the weight.
        scaled: whether to divide it by its flattened norm, as the model it comes from does.

    Returns:
        The weight, or None where there is none of these forms.
    """
    chain, old = f"{prefix}parametrizations.{tensor}.", prefix + tensor
    for original, left, right in (
        (chain + "original", chain + "0._u", chain + "0._v"),
        (old + "_orig", old + "_u", old + "_v"),
    ):
        if original in state and left in state:
            weight, u, v = (state.pop(key, None) for key in (original, left, right))
            state.pop(old, None)  # the oldest checkpoints hold the scaled weight too
            return _scaled(layer, weight, u, v) if scaled else weight
    return None


@torch.no_grad()
def _scaled(layer: nn.Module, weight: Tensor, u: Tensor, v: Tensor | None) -> Tensor:
    """A weight over the flattened norm that u and v stand for, as PyTorch's spectral norms compute it."""
    dims = [_dim(layer), *range(weight.ndim)]
    flat = _flat(weight, next((dim for dim in dims if weight.shape[dim] == u.numel()), 0))
    ahead = flat.mT.double() @ u.double()
    norm = ahead.norm() if v is None else ahead @ v.double()
    return weight if not norm else weight / norm.to(weight.dtype)


def _dim(layer: nn.Module) -> int:
    """The axis of a weight that PyTorch's spectral norms take for rows."""
    return int(isinstance(layer, _TRANSPOSED))


def _flat(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)
