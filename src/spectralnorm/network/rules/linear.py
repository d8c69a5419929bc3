"""Linear layers, by the norm of their map: modules that have an operator, and functions with a constant weight."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectralnorm.network.rules.call import Call
from spectralnorm.network.rules.registry import Constant, register_lipschitz_rule

__all__ = ["operator_rule"]

_CONV = {1: (F.conv1d,), 2: (F.conv2d,), 3: (F.conv3d,)}
_SIZED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # by an argument of the call
_TRANSPOSED = {1: (F.conv_transpose1d,), 2: (F.conv_transpose2d,), 3: (F.conv_transpose3d,)}


def operator_rule(call: Call, axes: int) -> Constant:
    """The norm of a layer that has an operator, at the spatial size it is called at.

    A transposed convolution that is given an `output_size` has its norm over all sizes, which bounds it with any.

    Args:
        call: of a module.
        axes: spatial axes of its operator.

    Returns:
        The constant.

    Raises:
        TypeError: when it is given more than its input, of which nothing is known.
    """
    assert isinstance(call.target, nn.Module)  # noqa: S101 - the caller's promise
    if len(call.args) + len(call.kwargs) == 1:
        return call.measure(call.target, _size(call, axes))
    if isinstance(call.target, _SIZED):
        return call.measure(call.target, None)
    raise TypeError(
        f"{call} is called with more than its input; expected that alone, for which its norm is known."
    )


@register_lipschitz_rule(F.linear)
def _linear(call: Call) -> Constant:
    return call.measure(_weight(call))


for _axes in (1, 2, 3):

    @register_lipschitz_rule(*_CONV[_axes])
    def _conv(call: Call, axes: int = _axes) -> Constant:
        return call.measure(
            _weight(call),
            _size(call, axes),
            stride=call.argument("stride", 3, 1),
            padding=call.argument("padding", 4, 0),
            dilation=call.argument("dilation", 5, 1),
            groups=call.argument("groups", 6, 1),
        )

    @register_lipschitz_rule(*_TRANSPOSED[_axes])
    def _transposed(call: Call, axes: int = _axes) -> Constant:
        return call.measure(
            _weight(call),
            _size(call, axes),
            transposed=True,
            stride=call.argument("stride", 3, 1),
            padding=call.argument("padding", 4, 0),
            output_padding=call.argument("output_padding", 5, 0),
            groups=call.argument("groups", 6, 1),
            dilation=call.argument("dilation", 7, 1),
        )


@register_lipschitz_rule(operator.matmul, torch.matmul, "matmul", torch.mm, "mm")
def _matmul(call: Call) -> Constant:
    """A constant matrix on one side, along axes other than the batch's."""
    left, right = call.argument("input", 0), call.argument("other", 1)
    if call.depends(left) and left.ndim >= 2:
        weight = _constant(call, right)
        if weight.ndim <= 2:
            return call.measure(weight.reshape(len(weight), -1))
    elif call.depends(right) and right.ndim >= 3 and left.ndim == 2:
        return call.measure(_constant(call, left))
    raise TypeError(
        f"{call} of tensors of shapes {tuple(left.shape)} and {tuple(right.shape)} has no rule; expected one "
        "constant matrix, and the batch on an axis that is not summed over."
    )


def _size(call: Call, axes: int) -> tuple[int, ...] | None:
    """The spatial size of the input."""
    shape = tuple(call.inputs[0].shape)
    return shape[len(shape) - axes :]


def _weight(call: Call) -> Tensor:
    """That of a function, if nothing but what it is applied to depends on the input."""
    applied = call.depends(call.argument("input", 0))
    return _constant(call, call.argument("weight", 1) if applied else None)


def _constant(call: Call, weight: Any) -> Tensor:
    """The weight, if it does not depend on the input."""
    if len(call.inputs) != 1 or not isinstance(weight, Tensor) or call.depends(weight):
        raise TypeError(
            f"{call} has a weight, bias or second factor that depends on the input: its slope is unbounded; "
            "expected constants."
        )
    return weight
