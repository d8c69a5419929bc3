"""The layer types of PyTorch: their operators, and why some have none."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from spectralnorm.operators.base import Operator, check_weight, compute_dtype
from spectralnorm.operators.batchnorm import BATCHNORM_AXES, batchnorm_operator
from spectralnorm.operators.conv import ConvOperator
from spectralnorm.operators.dense import DenseOperator
from spectralnorm.operators.raw import conv_operator, transposed_operator
from spectralnorm.operators.registry import register_operator

__all__: list[str] = []


@register_operator(nn.Linear)
def _linear(layer: nn.Linear) -> Operator:
    return DenseOperator(_layer_weight(layer))


@register_operator(nn.Conv1d)
@register_operator(nn.Conv2d)
@register_operator(nn.Conv3d)
def _conv(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Operator:
    weight = _layer_weight(layer)
    mode, groups = layer.padding_mode, layer.groups
    operator = conv_operator(weight, layer.stride, layer.padding, mode, layer.dilation, groups)
    _check_padding(layer, operator)
    return operator


@register_operator(nn.ConvTranspose1d)
@register_operator(nn.ConvTranspose2d)
@register_operator(nn.ConvTranspose3d)
def _transposed(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> Operator:
    weight, more = _layer_weight(layer), layer.output_padding
    padding = cast("tuple[int, ...]", layer.padding)  # never a string here
    mode, groups = layer.padding_mode, layer.groups
    return transposed_operator(weight, layer.stride, padding, mode, layer.dilation, groups, more)


def _batchnorm(layer: nn.modules.batchnorm._BatchNorm) -> Operator:
    axes = next(axes for cls, axes in BATCHNORM_AXES.items() if isinstance(layer, cls))
    return batchnorm_operator(layer, axes)


for _cls in BATCHNORM_AXES:
    register_operator(_cls)(_batchnorm)


def _check_padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, operator: ConvOperator) -> None:
    """Raise a ValueError where padding was changed after the layer was made, which its forward does not see."""
    pads = [side for sides in reversed(operator.padding) for side in sides]
    used = list(getattr(layer, "_reversed_padding_repeated_twice", pads))
    if layer.padding_mode != "zeros" and used != pads:
        name = type(layer).__name__
        raise ValueError(
            f"{name}.padding is {layer.padding}, but the layer pads by {used} (last axis first), as it was made; "
            f"expected the same. With padding_mode={layer.padding_mode!r}, make a new layer to change the padding"
        )


def _layer_weight(layer: nn.Module) -> Tensor:
    name = type(layer).__name__
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"{name}.weight is {type(weight).__name__}, expected a Tensor: not a floating-point layer."
        )
    weight = check_weight(weight, f"{name}.weight")
    return weight.to(compute_dtype(weight))
