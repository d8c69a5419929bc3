"""From a layer to its operator: one decorated function per layer type, open to users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from spectralnorm.operators.base import Operator, check_weight, compute_dtype
from spectralnorm.operators.conv import ConvOperator, Padding
from spectralnorm.operators.dense import DenseOperator

__all__ = ["as_operator", "has_operator", "register_operator"]

Maker = Callable[[Any], Operator]
_REGISTRY: dict[type[nn.Module], Maker] = {}


def register_operator(layer_type: type[nn.Module]) -> Callable[[Maker], Maker]:
    """Teach spectralnorm a layer type: decorate a function from the layer to its operator.

    Subclasses of the type are covered unless they are registered themselves.

    Args:
        layer_type: the class of the layer.

    Returns:
        The decorator.

    Raises:
        TypeError: when `layer_type` is not a class of modules.

    Example:
        >>> import torch, spectralnorm as sn
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.factor = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
        >>> @sn.register_operator(Scale)
        ... def scale_operator(layer):
        ...     return sn.as_operator(torch.diag(layer.factor))
        >>> round(float(sn.spectral_norm(Scale())), 4)
        3.0
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise TypeError(f"register_operator expected a subclass of torch.nn.Module, got {layer_type!r}.")

    def decorate(make: Maker) -> Maker:
        _REGISTRY[layer_type] = make
        return make

    return decorate


def _maker(layer: nn.Module) -> Maker | None:
    return next((_REGISTRY[cls] for cls in type(layer).__mro__ if cls in _REGISTRY), None)


def has_operator(layer: nn.Module) -> bool:
    """Whether the layer's type, or one it derives from, is registered."""
    return _maker(layer) is not None


def as_operator(layer: nn.Module | Tensor, **conv_args: Any) -> Operator:
    """The linear map of a layer, or of a raw weight.

    Args:
        layer: a registered layer, a matrix (outputs, inputs), or a kernel (c_out, c_in/groups, *k)
            of 1 to 3 spatial axes.
        **conv_args: for a raw kernel: `stride`, `padding`, `padding_mode`, `dilation`, `groups`, as in
            `torch.nn.Conv2d`.

    Returns:
        The operator; its weight keeps its autograd graph.

    Example:
        >>> import torch, spectralnorm as sn
        >>> operator = sn.as_operator(torch.nn.Conv2d(3, 8, 3, padding=1))
        >>> operator.apply(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 8, 32, 32])

    Raises:
        TypeError: for a layer type that is not registered, a dtype that is not real floating point, or
            arguments that the layer itself already holds.
        ValueError: for an empty, non-finite or misshapen weight, or wrong convolution arguments.
    """
    if isinstance(layer, Tensor):
        return _from_weight(layer, **conv_args)
    if not isinstance(layer, nn.Module):
        raise TypeError(f"Expected a layer (torch.nn.Module) or a weight (Tensor), got {type(layer).__name__}.")
    if conv_args:
        raise TypeError(
            f"{', '.join(conv_args)} given with a {type(layer).__name__}, which holds its own; "
            "expected them with a raw weight only. Leave them out."
        )
    make = _maker(layer)
    if make is None:
        raise TypeError(
            f"{type(layer).__name__} is not a layer spectralnorm knows; expected one of "
            f"{', '.join(sorted(cls.__name__ for cls in _REGISTRY))}. Register it: decorate a function from the "
            f"layer to its operator with @spectralnorm.register_operator({type(layer).__name__})."
        )
    return make(layer)


def _from_weight(weight: Tensor, **conv_args: Any) -> Operator:
    weight = check_weight(weight, "weight")
    weight = weight.to(compute_dtype(weight))
    if weight.ndim == 2 and not conv_args:
        return DenseOperator(weight)
    if weight.ndim not in (3, 4, 5):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected a matrix (outputs, inputs) without convolution "
            "arguments, or a kernel (c_out, c_in/groups, *k) with 1 to 3 spatial axes."
        )
    unknown = set(conv_args) - {"stride", "padding", "padding_mode", "dilation", "groups"}
    if unknown:
        raise TypeError(
            f"unknown argument {', '.join(sorted(unknown))}; a raw kernel takes stride, padding, padding_mode, "
            "dilation, groups."
        )
    return _conv_operator(weight, **conv_args)


def _conv_operator(
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    padding_mode: str = "zeros",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> ConvOperator:
    axes = weight.ndim - 2
    if padding_mode not in ("zeros", "circular"):
        raise ValueError(
            f"padding_mode={padding_mode!r} has no operator; expected 'zeros' or 'circular'. Use one of these, or "
            "register an operator for a layer type of your own."
        )
    if not _is_count(groups, 1) or weight.shape[0] % groups:
        raise ValueError(
            f"groups={groups!r} does not divide the {weight.shape[0]} output channels of weight; expected a whole "
            "number that does."
        )
    strides = _per_axis("stride", stride, axes, least=1)
    dilations = _per_axis("dilation", dilation, axes, least=1)
    if padding == "same" and set(strides) != {1}:
        raise ValueError(f"padding='same' with stride={stride!r} has no meaning; expected stride 1, or integers.")
    pads = _pads(padding, tuple(weight.shape[2:]), dilations)
    return ConvOperator(weight, strides, pads, padding_mode, dilations, groups)


def _per_axis(name: str, value: int | Sequence[int], axes: int, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes or not all(_is_count(v, least) for v in values):
        raise ValueError(
            f"{name}={value!r} does not fit {axes} spatial axes; expected integers of at least {least}, one "
            "for all axes or one each."
        )
    return tuple(values)  # type: ignore[arg-type]


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _pads(padding: int | str | Sequence[int], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Padding:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":  # an odd total puts the extra cell on the right, as PyTorch does
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r} is unknown; expected integers, 'same' or 'valid'.")
    return tuple((p, p) for p in _per_axis("padding", padding, len(kernel), least=0))


@register_operator(nn.Linear)
def _linear(layer: nn.Linear) -> Operator:
    return DenseOperator(_layer_weight(layer))


@register_operator(nn.Conv1d)
@register_operator(nn.Conv2d)
@register_operator(nn.Conv3d)
def _conv(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Operator:
    weight = _layer_weight(layer)
    mode, groups = layer.padding_mode, layer.groups
    return _conv_operator(weight, layer.stride, layer.padding, mode, layer.dilation, groups)


def _layer_weight(layer: nn.Module) -> Tensor:
    name = type(layer).__name__
    weight = layer.weight
    if isinstance(weight, UninitializedParameter):
        raise ValueError(f"{name}.weight is not initialised yet; run one batch through the model first.")
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"{name}.weight is {type(weight).__name__}, expected a Tensor: not a floating-point layer."
        )
    weight = check_weight(weight, f"{name}.weight")
    return weight.to(compute_dtype(weight))
