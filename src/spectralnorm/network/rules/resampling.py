"""Padding, upsampling, means and sums over axes, repetition: linear maps without negative weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from spectralnorm.network.rules.axes import check_axes
from spectralnorm.network.rules.call import Call
from spectralnorm.network.rules.nonnegative import copies_norm, nonnegative_norm
from spectralnorm.network.rules.registry import Constant, register_lipschitz_rule

__all__: list[str] = []

_POSITIVE_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")


@register_lipschitz_rule(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
@register_lipschitz_rule(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
def _constant_padding(call: Call) -> Constant:
    del call
    return 1.0


@register_lipschitz_rule(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
@register_lipschitz_rule(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
@register_lipschitz_rule(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
@register_lipschitz_rule(nn.Unfold, F.unfold, nn.Fold, F.fold)
@register_lipschitz_rule("expand", "repeat", torch.tile, "tile")
def _copies(call: Call) -> Constant:
    return nonnegative_norm(call)


@register_lipschitz_rule(F.pad)
def _pad(call: Call) -> Constant:
    return 1.0 if call.argument("mode", 2, "constant") == "constant" else nonnegative_norm(call)


@register_lipschitz_rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate, F.upsample)
def _resize(call: Call) -> Constant:
    mode = call.argument("mode", 3, "nearest")
    if mode not in _POSITIVE_MODES:
        raise ValueError(
            f"{call} has mode={mode!r}, with negative weights; expected one of {', '.join(_POSITIVE_MODES)}."
        )
    return copies_norm(call) if mode.startswith("nearest") else nonnegative_norm(call)


@register_lipschitz_rule(torch.mean, "mean", torch.sum, "sum")
def _over_axes(call: Call) -> Constant:
    check_axes(call, call.argument("dim", 1), call.inputs[0].ndim)
    return nonnegative_norm(call)
