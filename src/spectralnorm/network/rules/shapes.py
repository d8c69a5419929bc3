"""Operations that move numbers and change none: reshaping, permuting, cutting, dropout in eval."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectralnorm.network.outward import root_up
from spectralnorm.network.rules.axes import check_axes
from spectralnorm.network.rules.call import Call
from spectralnorm.network.rules.registry import Constant, names_of, register_lipschitz_rule

__all__: list[str] = []

_SHUFFLES = (
    *names_of(nn.PixelShuffle, torch.pixel_shuffle),
    *names_of(nn.PixelUnshuffle, torch.pixel_unshuffle),
    *names_of(nn.ChannelShuffle, torch.channel_shuffle, F.channel_shuffle),
)


@register_lipschitz_rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
@register_lipschitz_rule(nn.AlphaDropout, nn.FeatureAlphaDropout)
@register_lipschitz_rule(*names_of(nn.Flatten, torch.flatten, methods="flatten"))
@register_lipschitz_rule(*names_of(nn.Unflatten, torch.unflatten, methods="unflatten"))
@register_lipschitz_rule(torch.reshape, "reshape", "contiguous", torch.clone, "clone", torch.detach, "detach")
@register_lipschitz_rule(*_SHUFFLES)
def _isometry(call: Call) -> Constant:
    """The same numbers within an input; that the batch stays first is checked of every output."""
    del call
    return 1.0


@register_lipschitz_rule("view", "to", "float", "double", "type")
def _cast(call: Call) -> Constant:
    """A view, or a conversion that keeps every digit."""
    before, after = call.inputs[0].dtype, call.output.dtype
    same = before == after
    wider = call.target != "view" and after.is_floating_point and torch.finfo(after).eps <= torch.finfo(before).eps
    if not (same or wider):
        raise TypeError(f"{call} turns {before} into {after}, which rounds; expected at least as many digits.")
    return 1.0


@register_lipschitz_rule(
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout
)
@register_lipschitz_rule(torch.dropout)
def _dropout(call: Call) -> Constant:
    always = call.target not in (F.alpha_dropout, F.feature_alpha_dropout)  # these default to training=False
    if call.argument("train" if call.target is torch.dropout else "training", 2, default=always):
        raise TypeError(
            f"{call} is called with training=True, also in eval mode; expected training=self.training."
        )
    return 1.0


@register_lipschitz_rule(torch.permute, "permute")
def _permute(call: Call) -> Constant:
    dims = call.argument("dims", 1)
    order = list(dims) if isinstance(dims, (tuple, list, torch.Size)) else list(call.args[1:])
    if order[0] % call.output.ndim != 0:
        raise ValueError(f"{call} moves axis 0, which holds the batch; expected it to stay the first.")
    return 1.0


@register_lipschitz_rule(torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.swapdims, "swapdims")
def _transpose(call: Call) -> Constant:
    axes = [call.argument(f"dim{i}", i + 1, call.argument(f"axis{i}")) for i in (0, 1)]  # swapaxes says "axis"
    check_axes(call, axes, call.output.ndim)
    return 1.0


@register_lipschitz_rule(torch.movedim, "movedim", torch.moveaxis, "moveaxis")
def _moved(call: Call) -> Constant:
    for name, position in (("source", 1), ("destination", 2)):
        check_axes(call, call.argument(name, position), call.output.ndim)
    return 1.0


@register_lipschitz_rule(torch.flip, "flip", torch.roll, "roll")
def _turned(call: Call) -> Constant:
    if call.target in (torch.flip, "flip"):
        dims = call.argument("dims", 1)
        axes = dims if isinstance(dims, (tuple, list)) else (dims, *call.args[2:])
    else:
        axes = call.argument("dims", 2)
    check_axes(call, axes, call.output.ndim)
    return 1.0


@register_lipschitz_rule(torch.index_select, "index_select")
def _chosen(call: Call) -> Constant:
    """A row that is chosen k times is longer by the root of k."""
    check_axes(call, call.argument("dim", 1), call.inputs[0].ndim)
    return _root_of_count(call.argument("index", 2).flatten())


@register_lipschitz_rule(torch.squeeze, "squeeze", torch.unsqueeze, "unsqueeze")
def _axes_of_one(call: Call) -> Constant:
    check_axes(call, call.argument("dim", 1), max(call.output.ndim, call.inputs[0].ndim))
    return 1.0


@register_lipschitz_rule(torch.chunk, "chunk")
@register_lipschitz_rule(torch.split, "split", torch.functional.split)
def _cut(call: Call) -> Constant:
    """The parts together are the input."""
    check_axes(call, call.argument("dim", 2, 0), call.inputs[0].ndim)
    return 1.0


_PLACES = (
    "indices_or_sections",
    "indices",
    "sections",
    "tensor_indices_or_sections",
)  # as PyTorch's overloads say


@register_lipschitz_rule(torch.tensor_split, "tensor_split")
def _cut_at(call: Call) -> Constant:
    """The parts together are the input, unless places that do not ascend make them overlap."""
    dim = call.argument("dim", 2, 0)
    check_axes(call, dim, call.inputs[0].ndim)
    places = next((call.kwargs[name] for name in _PLACES if name in call.kwargs), None)
    if places is None:
        places = call.args[1]
    numbers = torch.arange(call.inputs[0].shape[dim])
    return _root_of_count(torch.cat(torch.tensor_split(numbers, places)))


def _root_of_count(shown: Tensor) -> float:
    """The root of how often the number that is shown most is shown."""
    return root_up(float(shown.bincount().amax())) if shown.numel() else 0.0


@register_lipschitz_rule(torch.unbind, "unbind")
def _unbind(call: Call) -> Constant:
    check_axes(call, call.argument("dim", 1, 0), call.inputs[0].ndim)
    return 1.0


@register_lipschitz_rule(torch.amax, torch.amin, "amax", "amin")
@register_lipschitz_rule(torch.narrow, "narrow", torch.select, "select")
def _part(call: Call) -> Constant:
    """Numbers of the input along an axis, none twice: the largest ones, or those at given places."""
    check_axes(call, call.argument("dim", 1), call.inputs[0].ndim)
    return 1.0


@register_lipschitz_rule(operator.getitem)
def _index(call: Call) -> Constant:
    """A part of a list of parts, or a cut-out of a tensor that takes no number twice."""
    whole, index = call.args
    if not isinstance(whole, Tensor):
        return 1.0
    items: tuple[Any, ...] = index if isinstance(index, tuple) and index else (index,)
    plain = all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in items)
    if plain and items[0] is Ellipsis:  # the others count from the back
        keeps_batch = sum(item is not None for item in items[1:]) < whole.ndim
    else:
        keeps_batch = plain and items[0] == slice(None)
    if not keeps_batch:
        raise TypeError(
            f"{call} with index {index} has no rule; expected whole numbers, slices, None and ..., the batch's "
            "axis whole: x[:, ...]. Lists of numbers go through torch.index_select."
        )
    return 1.0
