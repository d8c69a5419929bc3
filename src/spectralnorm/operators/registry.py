"""From a layer to its operator: one decorated function per layer type, open to users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from spectralnorm.operators.base import Operator
from spectralnorm.operators.batchnorm import fold_batchnorm, folds
from spectralnorm.operators.raw import weight_operator

__all__ = ["as_operator", "computes_as", "has_operator", "register_operator"]

Maker = Callable[[Any], Operator]
_REGISTRY: dict[type[nn.Module], Maker] = {}

_KNOWN = "Linear, Conv1d-3d, ConvTranspose1d-3d, BatchNorm1d-3d, or a type you registered"
_LOOKS_UP = (
    "looks rows up by number, which is no linear map and has no norm; its table has one: measure its weight"
)
_STATISTICS = "divides by statistics of its own input, which is not linear and has no norm; leave it out"
_NOT_LINEAR: dict[type[nn.Module], str] = {  # layers with weights that people ask for, and why they are refused
    nn.Embedding: _LOOKS_UP,
    nn.EmbeddingBag: _LOOKS_UP,
    nn.LayerNorm: _STATISTICS,
    nn.GroupNorm: _STATISTICS,
    nn.RMSNorm: _STATISTICS,
    nn.modules.instancenorm._InstanceNorm: _STATISTICS,
}
_COMPUTE = {"forward", "_conv_forward"}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def register_operator(layer_type: type[nn.Module]) -> Callable[[Maker], Maker]:
    """Teach spectralnorm a layer type: decorate a function from the layer to its operator.

    Subclasses of the type are covered unless they override `forward`, or are registered themselves.

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
    cls = next((cls for cls in type(layer).__mro__ if cls in _REGISTRY), None)
    return _REGISTRY[cls] if cls is not None and computes_as(layer, cls) else None


def computes_as(layer: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether a layer's forward is that of a class it derives from; else it is a map that only its author knows.

    Args:
        layer: the layer.
        cls: the class.

    Returns:
        False where the layer, or its class, has a `forward` or a `_conv_forward` of its own.

    Example:
        >>> computes_as(nn.Conv2d(1, 1, 1), nn.Conv2d)
        True
    """
    own = vars(layer).keys() & _COMPUTE
    return not own and all(getattr(type(layer), name, None) is getattr(cls, name, None) for name in _COMPUTE)


def has_operator(layer: nn.Module) -> bool:
    """Whether the layer's type, or one it derives from, is registered."""
    return _maker(layer) is not None


def as_operator(layer: nn.Module | Tensor, **conv_args: Any) -> Operator:
    """The linear map of a layer, or of a raw weight.

    A BatchNorm is taken as it acts in eval mode, by its running statistics, whatever mode it is in: in train mode
    it divides by the statistics of each batch, which is no linear map.

    Args:
        layer: a registered layer, a `Sequential` of one and the BatchNorm that follows it (one map, in eval
            mode), a matrix (outputs, inputs), or a kernel (c_out, c_in/groups, *k) of 1 to 3 spatial axes.
        **conv_args: for a raw kernel: `stride`, `padding`, `padding_mode`, `dilation`, `groups`, as in
            `torch.nn.Conv2d`, and `transposed` for a kernel (c_in, c_out/groups, *k) of a `ConvTranspose2d`.

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
        return weight_operator(layer, **conv_args)
    if not isinstance(layer, nn.Module):
        raise TypeError(f"Expected a layer (torch.nn.Module) or a weight (Tensor), got {type(layer).__name__}.")
    if conv_args:
        raise TypeError(
            f"{', '.join(conv_args)} given with a {type(layer).__name__}, which holds its own; "
            "expected them with a raw weight only. Leave them out."
        )
    for part in layer.modules():
        if isinstance(part, LazyModuleMixin) and part.has_uninitialized_params():
            raise ValueError(
                f"{type(part).__name__}.weight is not initialised yet; run one batch through the model first."
            )
    plain = isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward
    if isinstance(layer, nn.Sequential) and plain and len(layer) == 2 and folds(layer[1]):
        return fold_batchnorm(as_operator(layer[0]), layer[1])
    make = _maker(layer)
    if make is None:
        raise TypeError(_unknown(layer))
    return make(layer)


def _unknown(layer: nn.Module) -> str:
    """Why a layer has no operator, and what to do."""
    name = type(layer).__name__
    reason = next((why for cls, why in _NOT_LINEAR.items() if isinstance(layer, cls)), None)
    if reason is None and "quantized" in type(layer).__module__:
        reason = "holds integers with scales instead of a weight; measure its weight().dequantize()"
    if reason is not None:
        return f"{name} {reason}."
    unknown, register = f"{name} is not a layer spectralnorm knows", f"@spectralnorm.register_operator({name})"
    base = next((cls.__name__ for cls in type(layer).__mro__ if cls in _REGISTRY), None)
    if base is not None:
        reason, cure = f": its forward is not that of {base}", f"Register it with {register}"
    elif type(layer) in _CONTAINERS:
        reason, cure = ", but holds layers", "Use spectralnorm.audit for a model, or measure one of its layers"
    elif any(part != "parametrizations" for part, _ in layer.named_children()):
        reason = ", but holds layers"
        cure = f"Use spectralnorm.audit for a model; register it with {register} if it is one linear map"
    elif next(layer.parameters(), None) is None and next(layer.buffers(), None) is None:
        reason, cure = ": it has no weight", f"Leave it out; register it with {register} if it is linear"
    else:
        matrix = next((name for name, weight in layer.named_parameters(recurse=False) if weight.ndim == 2), None)
        part = f", or measure a weight of it, such as layer.{matrix}" if matrix else ""
        reason, cure = "", f"Decorate a function from the layer to its operator with {register}{part}"
    return f"{unknown}{reason}; expected {_KNOWN}. {cure}."
