"""What an estimator is, and how every one of them makes its value differentiable."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from spectralnorm.bound import Bound
from spectralnorm.estimators.rounding import frobenius_norm
from spectralnorm.operators.base import Operator, Size

__all__ = [
    "Estimator",
    "attach_gradient",
    "check_counts",
    "check_seed",
    "layer_bound",
    "random_input",
]


class Estimator(ABC):
    """A method with its options; stateless, so one object serves any number of layers.

    Attributes:
        name: what `method=` calls it and what `Bound.method` says.
    """

    name: ClassVar[str]

    @abstractmethod
    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Measure the operator's norm, at a spatial size or size-free, to a relative tolerance."""


def check_counts(**options: int) -> None:
    """Raise a ValueError that names the first option that is not a whole number of at least 1."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is no count; expected a whole number of at least 1.")


def check_seed(seed: int) -> None:
    """Raise a ValueError unless this is a seed that PyTorch's generators take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed={seed!r} is no seed; expected a whole number of at most 64 bits.")


class _Value(torch.autograd.Function):
    """(value, bilinear) -> value, with the derivative of bilinear; a second derivative raises."""

    @staticmethod
    def forward(value: Tensor, bilinear: Tensor) -> Tensor:
        del bilinear
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004 - as torch calls it
        return None, _apply(_Once, grad) if grad.requires_grad else grad


class _Once(torch.autograd.Function):
    """The identity, not to be differentiated: u and v depend on the weight, and their derivative is not known."""

    @staticmethod
    def forward(grad: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        raise RuntimeError(
            "The value of a Bound has a first derivative only, and a second was asked for; expected one backward "
            "pass through it. Where you need more, use singular_values(layer, input_shape)[0]."
        )


def _apply(function: type[torch.autograd.Function], *tensors: Tensor) -> Tensor:
    return cast("Callable[..., Tensor]", function.apply)(*tensors)


def attach_gradient(value: float, bilinear: Tensor, *, up: bool = False) -> Tensor:
    """A 0-dim tensor equal to `value`, never above it, with the gradient of `bilinear`.

    `bilinear` is u^H A v at fixed unit maximisers u and v. Rounding the value up to the tensor's dtype
    would turn a lower bound into one that is not, so it is rounded down.

    Args:
        value: the norm, computed in float64.
        bilinear: 0-dim tensor, linear in the weight.
        up: never below `value` instead, for an upper bound.

    Returns:
        The value, in the dtype of `bilinear`; once differentiable.
    """
    rounded = torch.tensor(value, dtype=bilinear.dtype, device=bilinear.device)
    if up and float(rounded) < value:
        rounded = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    if not up and float(rounded) > value:
        rounded = torch.nextafter(rounded, torch.zeros_like(rounded))
    return _apply(_Value, rounded, bilinear) if bilinear.requires_grad else rounded


def random_input(operator: Operator, size: Size, generator: torch.Generator) -> Tensor:
    """A random input (1, *input_shape), in float64 where squares of the weights would leave float32's range.

    Args:
        operator: the layer's map.
        size: the spatial size.
        generator: a CPU generator, so that every device starts alike.

    Returns:
        Normal numbers, on the weight's device.
    """
    weight = operator.weight.detach()
    largest = float(weight.abs().max())
    dtype = weight.dtype if 1e-10 < largest < 1e10 else torch.float64
    shape = (1, *operator.input_shape(size))
    v = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return v.to(weight.device, dtype)


def layer_bound(operator: Operator, v: Tensor, method: str, stats: dict[str, Any]) -> Bound:
    """The bound from below that one input vector proves: ||A v|| / ||v||, recomputed in float64.

    Each output sums at most max(c_out, c_in) * taps products, so the computed image is within
    (terms + 8) u || |A| || ||v|| of the true one, and || |A| || <= sqrt(taps) ||W||_F times the padding factor.
    The lengths of the input and of the image, summed in any order, add half their numbers of entries times u.

    Args:
        operator: the layer's map A.
        v: (*input_shape,) the input, any scale.
        method: for `Bound.method`.
        stats: for `Bound.stats`.

    Returns:
        A bound with `upper = inf`; its value differentiates through the map at fixed unit vectors.
    """
    weight = operator.weight
    with torch.no_grad():
        v = v.double() / torch.linalg.vector_norm(v.double()).clamp_min(1e-300)
        image = operator.apply(v[None])[0]
        sigma = float(torch.linalg.vector_norm(image))
        u = (image / max(sigma, 1e-300)).to(weight)
        taps = math.prod(weight.shape[2:])
        terms = max(weight.shape[:2]) * taps
        scale = math.sqrt(taps) * frobenius_norm(weight)
    slack = (terms + 8) * 2.0**-53 * scale * operator.padding_factor(None)
    slack += ((v.numel() + image.numel()) / 2 + 8) * 2.0**-53 * sigma
    lower = max(0.0, sigma - slack)
    bilinear = (operator.apply(v[None].to(weight))[0] * u).sum()
    return Bound(attach_gradient(lower, bilinear), lower, math.inf, method, stats)
