"""From a raw weight and the arguments of a convolution to an operator."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from spectralnorm.operators.base import Operator, check_weight, compute_dtype
from spectralnorm.operators.conv import ConvOperator
from spectralnorm.operators.dense import DenseOperator
from spectralnorm.operators.padding import MODES, Padding
from spectralnorm.operators.transposed import TransposedConvOperator

__all__ = ["conv_operator", "transposed_operator", "weight_operator"]

_ARGUMENTS = ("stride", "padding", "padding_mode", "dilation", "groups", "transposed")


def weight_operator(weight: Tensor, **conv_args: Any) -> Operator:
    """The operator of a matrix, or of a kernel with the arguments of its convolution."""
    weight = check_weight(weight, "weight")
    weight = weight.to(compute_dtype(weight))
    if weight.ndim == 2 and not conv_args:
        return DenseOperator(weight)
    if weight.ndim not in (3, 4, 5):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected a matrix (outputs, inputs) without convolution "
            "arguments, or a kernel (c_out, c_in/groups, *k) with 1 to 3 spatial axes."
        )
    transposed = conv_args.pop("transposed", False)
    if not isinstance(transposed, bool):
        raise ValueError(f"transposed={transposed!r} is neither True nor False; expected one of them.")
    unknown = set(conv_args) - {*_ARGUMENTS, *(["output_padding"] if transposed else [])}
    if unknown:
        raise TypeError(
            f"unknown argument {', '.join(sorted(unknown))}; a raw kernel takes {', '.join(_ARGUMENTS)}, and "
            "output_padding if it is transposed."
        )
    return transposed_operator(weight, **conv_args) if transposed else conv_operator(weight, **conv_args)


def conv_operator(
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> ConvOperator:
    """The operator of a convolution kernel (c_out, c_in/groups, *k); arguments as in `torch.nn.Conv2d`."""
    axes = weight.ndim - 2
    if padding_mode not in MODES:
        raise ValueError(
            f"padding_mode={padding_mode!r} is unknown; expected one of {', '.join(MODES)}. Use one of these, "
            "or register an operator for a layer type of your own."
        )
    _check_groups(groups, weight.shape[0], "output")
    strides = _per_axis("stride", stride, axes, least=1)
    dilations = _per_axis("dilation", dilation, axes, least=1)
    if padding == "same" and set(strides) != {1}:
        raise ValueError(f"padding='same' with stride={stride!r} has no meaning; expected stride 1, or integers.")
    pads = _pads(padding, tuple(weight.shape[2:]), dilations)
    return ConvOperator(weight, strides, pads, padding_mode, dilations, int(groups))


def transposed_operator(
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    output_padding: int | Sequence[int] = 0,
) -> TransposedConvOperator:
    """The operator of a transposed kernel (c_in, c_out/groups, *k); arguments as in `torch.nn.ConvTranspose2d`."""
    axes = weight.ndim - 2
    if padding_mode != "zeros":
        raise ValueError(
            f"padding_mode={padding_mode!r} has no meaning for a transposed convolution; expected 'zeros', the "
            "only one PyTorch has."
        )
    _check_groups(groups, weight.shape[0], "input")
    strides = _per_axis("stride", stride, axes, least=1)
    dilations = _per_axis("dilation", dilation, axes, least=1)
    pads = _per_axis("padding", padding, axes, least=0)
    more = _per_axis("output_padding", output_padding, axes, least=0)
    if any(m >= max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        raise ValueError(
            f"output_padding={output_padding!r} reaches both stride {strides} and dilation {dilations}; expected "
            "less than one of them, as PyTorch does. Lower it, or raise the stride."
        )
    return TransposedConvOperator(weight, strides, pads, dilations, int(groups), more)


def _check_groups(groups: int, channels: int, side: str) -> None:
    if not _is_count(groups, 1) or channels % groups:
        raise ValueError(
            f"groups={groups!r} does not divide the {channels} {side} channels of weight; expected a whole number "
            "that does."
        )


def _per_axis(name: str, value: int | Sequence[int], axes: int, least: int) -> tuple[int, ...]:
    values: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes or not all(_is_count(v, least) for v in values):
        raise ValueError(
            f"{name}={value!r} does not fit {axes} spatial axes; expected integers of at least {least}, one "
            "for all axes or one each."
        )
    return tuple(map(int, values))


def _is_count(value: Any, least: int) -> bool:
    """Whether this is a whole number, NumPy's included, of at least so much."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _pads(padding: int | str | Sequence[int], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Padding:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":  # an odd total puts the extra cell on the right, as PyTorch does
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r} is unknown; expected integers, 'same' or 'valid'.")
    return tuple((p, p) for p in _per_axis("padding", padding, len(kernel), least=0))
