"""BatchNorm in eval mode: a factor for each channel, alone or folded into the layer before it."""

from __future__ import annotations

import dataclasses
from typing import TypeGuard

from torch import Tensor, nn

from spectralnorm.operators.base import Operator, check_weight
from spectralnorm.operators.conv import ConvOperator
from spectralnorm.operators.dense import DenseOperator
from spectralnorm.operators.transposed import TransposedConvOperator

__all__ = ["BATCHNORM_AXES", "BatchNorm", "batchnorm_operator", "fold_batchnorm", "folds", "is_batchnorm"]

BATCHNORM_AXES: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.SyncBatchNorm: 2,
}
_FOLLOWS: dict[type[nn.Module], tuple[int, ...]] = {  # layers of so many spatial axes; SyncBatchNorm any
    nn.BatchNorm1d: (0, 1),
    nn.BatchNorm2d: (2,),
    nn.BatchNorm3d: (3,),
}
BatchNorm = nn.modules.batchnorm._BatchNorm


def is_batchnorm(layer: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether a layer is a BatchNorm of any dimension."""
    return isinstance(layer, BatchNorm)


def folds(layer: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether a layer is a BatchNorm that computes what PyTorch's do: a forward of its own may do more."""
    return is_batchnorm(layer) and type(layer).forward in (BatchNorm.forward, nn.SyncBatchNorm.forward)


def batchnorm_scale(layer: BatchNorm) -> Tensor:
    """What a BatchNorm in eval mode multiplies each channel by: gamma / sqrt(var + eps).

    Returns:
        (c,) float64, with the graph of gamma.

    Raises:
        ValueError: when the layer has no running statistics, so that its map is not linear.
    """
    name = type(layer).__name__
    if layer.running_var is None:
        raise ValueError(
            f"{name}(track_running_stats=False) divides by the statistics of each batch, which is not linear and "
            "has no norm; expected running statistics. Train with track_running_stats=True."
        )
    variance = check_weight(layer.running_var, f"{name}.running_var").double()
    bad = int((variance + layer.eps <= 0).sum())
    if bad:
        raise ValueError(
            f"{name} has {bad} channels whose running_var plus eps is not above 0, so that it divides by nothing; "
            "expected variances. Look for a damaged checkpoint."
        )
    scale = (variance + layer.eps).rsqrt()
    return scale if layer.weight is None else check_weight(layer.weight, f"{name}.weight").double() * scale


def batchnorm_operator(layer: BatchNorm, axes: int) -> Operator:
    """X -> gamma / sqrt(var + eps) x, channel by channel: a pointwise convolution with a group for each."""
    scale = batchnorm_scale(layer)
    one = (1,) * axes
    return ConvOperator(scale.reshape(-1, 1, *one), one, ((0, 0),) * axes, "zeros", one, scale.numel())


def fold_batchnorm(operator: Operator, layer: BatchNorm) -> Operator:
    """The map of a linear layer followed by a BatchNorm in eval mode: its output channels scaled.

    The norm of this one map is at most the product of the two norms, and commonly far smaller.

    Args:
        operator: of a dense layer, a convolution, or a transposed one.
        layer: the BatchNorm that reads its output.

    Returns:
        The operator of both, in float64.

    Raises:
        TypeError: for an operator of another type.
        ValueError: when the channels or the spatial axes do not match, or the BatchNorm is not linear.
    """
    scale, weight = batchnorm_scale(layer), operator.weight.double()
    transposed = isinstance(operator, TransposedConvOperator)
    if not isinstance(operator, (DenseOperator, ConvOperator, TransposedConvOperator)):
        raise TypeError(
            f"{type(layer).__name__} follows a {type(operator).__name__}; expected the operator of a Linear, Conv "
            "or ConvTranspose layer to fold it into. Measure the two apart."
        )
    _check_axes(operator, layer)
    groups = operator.groups if isinstance(operator, TransposedConvOperator) else 1
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    if channels != scale.numel():
        raise ValueError(
            f"{type(layer).__name__} has {scale.numel()} channels, the layer before it {channels} outputs; "
            "expected as many. Pair each BatchNorm with the layer whose output it reads."
        )
    blocks = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])  # (groups, c_in/g, c_out/g, *k)
    shape = (groups, 1, -1) if transposed else (1, -1, 1)
    folded = blocks * scale.reshape(*shape, *(1,) * (weight.ndim - 2))
    return dataclasses.replace(operator, weight=folded.reshape(weight.shape))


def _check_axes(operator: Operator, layer: BatchNorm) -> None:
    """Raise a ValueError where PyTorch would refuse the layer's output as the BatchNorm's input."""
    accepted = next((axes for cls, axes in _FOLLOWS.items() if isinstance(layer, cls)), (operator.axes,))
    if operator.axes not in accepted:
        raise ValueError(
            f"{type(layer).__name__} follows a layer of {operator.axes} spatial axes, whose output PyTorch does "
            f"not let it read; expected BatchNorm{max(1, operator.axes)}d. Pair each BatchNorm with the layer "
            "whose output it reads."
        )
