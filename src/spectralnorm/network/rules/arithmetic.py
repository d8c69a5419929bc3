"""Sums, products with constants, concatenation, and the larger of two."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from spectralnorm.network.outward import product_up, up
from spectralnorm.network.rules.axes import broadcast_factor, check_axes
from spectralnorm.network.rules.call import Call
from spectralnorm.network.rules.registry import Constant, register_lipschitz_rule

__all__: list[str] = []


@register_lipschitz_rule(operator.add, operator.iadd, torch.add, "add", "add_")
@register_lipschitz_rule(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _sum(call: Call) -> Constant:
    """A sum's bound is the sum of its terms'; a constant adds nothing."""
    first, second = _operands(call)
    alpha = call.argument("alpha", None, 1)
    terms = [(term, factor) for term, factor in ((first, 1.0), (second, abs(float(alpha)))) if call.depends(term)]
    if [name for name in call.kwargs if name in ("input", "other")] == ["other", "input"]:
        terms.reverse()  # as the inputs stand in the call
    return tuple(product_up([factor, broadcast_factor(call, term)]) for term, factor in terms)


@register_lipschitz_rule(operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
def _product(call: Call) -> Constant:
    first, second = _operands(call)
    if call.depends(first) and call.depends(second):
        raise TypeError(
            f"{call} multiplies two values that both depend on the input, which is not Lipschitz on unbounded "
            "inputs; expected a constant factor."
        )
    x, factor = (first, second) if call.depends(first) else (second, first)
    return product_up([_largest(call, factor), broadcast_factor(call, x)])


@register_lipschitz_rule(operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_")
def _quotient(call: Call) -> Constant:
    x, divisor = _operands(call)
    if call.depends(divisor) or call.argument("rounding_mode"):
        raise TypeError(
            f"{call} divides by a value that depends on the input, or rounds; expected a constant divisor and no "
            "rounding_mode."
        )
    smallest = float(divisor.abs().amin()) if isinstance(divisor, Tensor) else abs(float(divisor))
    if not smallest > 0:
        raise ValueError(f"{call} divides by a constant with {smallest} in it; expected none that is 0 or NaN.")
    return product_up([up(1 / smallest), broadcast_factor(call, x)])


@register_lipschitz_rule(torch.cat, torch.concat, torch.concatenate, torch.stack)
def _concatenation(call: Call) -> Constant:
    """Its length is the root of the parts' summed squares."""
    check_axes(call, call.argument("dim", 1, 0), call.output.ndim)
    return 1.0


@register_lipschitz_rule(torch.maximum, torch.minimum, "maximum", "minimum")
def _extreme(call: Call) -> Constant:
    """|max(a, b) - max(a', b')| <= max(|a - a'|, |b - b'|), which is at most the length of both."""
    return max(broadcast_factor(call, x) for x in call.inputs)


@register_lipschitz_rule(torch.clamp, torch.clip, torch.clamp_min, torch.clamp_max)
@register_lipschitz_rule("clamp", "clip", "clamp_min", "clamp_max", "clamp_")
def _clamp(call: Call) -> Constant:
    if len(call.inputs) > 1:
        raise TypeError(f"{call} has limits that depend on the input; expected constants, or torch.maximum.")
    return broadcast_factor(call, call.inputs[0])


def _operands(call: Call) -> tuple[Any, Any]:
    """Both sides of a binary operation.

    Returns:
        Left and right.

    Raises:
        TypeError: when they are not tensors and numbers.
    """
    first, second = call.argument("input", 0), call.argument("other", 1)
    if len(call.args) > 2 or any(isinstance(side, (tuple, list)) for side in (first, second)):
        raise TypeError(
            f"{call} joins tuples, or is given alpha by position; expected two tensors, or a tensor and a number, "
            "and alpha by its name."
        )
    return first, second


def _largest(call: Call, factor: Any) -> float:
    """The largest absolute value in a constant factor."""
    if isinstance(factor, Tensor):
        value = float(factor.double().abs().amax()) if factor.numel() else 0.0
    else:
        value = abs(float(factor))
    if value != value:  # NaN
        raise ValueError(f"{call} multiplies by a constant with NaN in it; expected finite numbers.")
    return value
