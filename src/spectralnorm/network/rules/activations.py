"""Activations: their largest slope, or why they have none.

The constants are suprema of the derivative, rounded up; `MATHS.md`, section 5. PyTorch's hard sigmoid and hard
swish multiply by 1/6 in float32, in float64 too, which is 3e-8 more than a sixth.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import nn
from torch.nn import functional as F

from spectralnorm.network.outward import root_up, up
from spectralnorm.network.rules.axes import check_axes
from spectralnorm.network.rules.call import Call
from spectralnorm.network.rules.registry import Constant, Target, names_of, refuse, register_lipschitz_rule

__all__: list[str] = []

_FIXED: dict[float, tuple[Target, ...]] = {
    1.0: (
        *names_of(nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, methods="relu relu_"),
        *names_of(nn.ReLU6, F.relu6),
        *names_of(nn.Tanh, F.tanh, torch.tanh, methods="tanh tanh_"),
        *names_of(nn.Hardtanh, F.hardtanh, F.hardtanh_),
        *names_of(nn.Softsign, F.softsign),
        *names_of(nn.Softshrink, F.softshrink),
        *names_of(nn.Tanhshrink, F.tanhshrink),
        *names_of(nn.LogSigmoid, F.logsigmoid),
        *(operator.abs, torch.abs, "abs", operator.neg, torch.neg, "neg", operator.pos),
        *(torch.sin, "sin", torch.cos, "cos", torch.atan, "atan", torch.arctan, "arctan"),
    ),
    up(0.25): names_of(nn.Sigmoid, F.sigmoid, torch.sigmoid, methods="sigmoid sigmoid_"),
    0.16666668: names_of(nn.Hardsigmoid, F.hardsigmoid),
    1.500001: names_of(nn.Hardswish, F.hardswish),
    1.099840: names_of(nn.SiLU, F.silu),
    1.088500: names_of(nn.Mish, F.mish),
    1.758100: names_of(nn.SELU, F.selu, torch.selu),
}
_THRESHOLDS = (F.threshold, F.__dict__["_threshold"])  # torch.fx records the second
_LEAST_THRESHOLD = 20.0  # Softplus's default: the jump there, e^-20 / beta, is below float32's rounding

for _slope, _targets in _FIXED.items():

    @register_lipschitz_rule(*_targets)
    def _fixed(call: Call, slope: float = _slope) -> Constant:
        del call
        return slope


@register_lipschitz_rule(*names_of(nn.LeakyReLU, F.leaky_relu, F.leaky_relu_))
def _leaky_relu(call: Call) -> Constant:
    return _at_least_one(call, float(call.argument("negative_slope", 1, 0.01)))


@register_lipschitz_rule(*names_of(nn.PReLU, F.prelu, torch.prelu, methods="prelu"))
def _prelu(call: Call) -> Constant:
    weight = call.argument("weight", 1)
    if call.depends(weight):
        raise TypeError(f"{call} has a slope that depends on the input; expected a constant.")
    return _at_least_one(call, float(weight.abs().amax()))


@register_lipschitz_rule(*names_of(nn.RReLU, F.rrelu))
def _rrelu(call: Call) -> Constant:
    if call.argument("training", 3, default=False):
        raise TypeError(f"{call} draws its slope anew in training; expected training=False.")
    lower, upper = call.argument("lower", 1, 1 / 8), call.argument("upper", 2, 1 / 3)
    return _at_least_one(call, up(abs(lower + upper) / 2))


@register_lipschitz_rule(*names_of(nn.ELU, F.elu, F.elu_))
def _elu(call: Call) -> Constant:
    return _at_least_one(call, float(call.argument("alpha", 1, 1.0)))


@register_lipschitz_rule(*names_of(nn.CELU, F.celu, torch.celu))
def _celu(call: Call) -> Constant:
    alpha = call.argument("alpha", 1, 1.0)
    if not alpha > 0:
        raise ValueError(f"{call} has alpha={alpha}, with which its slope is unbounded; expected one above 0.")
    return 1.0


@register_lipschitz_rule(*names_of(nn.GELU, F.gelu))
def _gelu(call: Call) -> Constant:
    return 1.128905 if call.argument("approximate", 1, "none") == "none" else 1.128994


@register_lipschitz_rule(*names_of(nn.Softplus, F.softplus))
def _softplus(call: Call) -> Constant:
    """Taken as log(1 + e^(beta x)) / beta; above its threshold PyTorch returns x, a jump of e^-threshold."""
    beta, threshold = call.argument("beta", 1, 1.0), call.argument("threshold", 2, 20.0)
    if not threshold >= _LEAST_THRESHOLD or not 0 < abs(beta) < math.inf:
        raise ValueError(
            f"{call} has beta={beta} and threshold={threshold}, and jumps where beta x passes the threshold; "
            f"expected a beta other than 0 and a threshold of at least {_LEAST_THRESHOLD:g}."
        )
    return 1.0


def _at_least_one(call: Call, slope: float) -> Constant:
    """The larger of the slope on one side of 0, and of the 1 on the other."""
    if not math.isfinite(slope):
        raise ValueError(f"{call} has the slope {slope}; expected a finite number.")
    return max(1.0, abs(slope))


_SOFTMAX = (
    *names_of(nn.Softmax, F.softmax, torch.softmax, methods="softmax"),
    *names_of(nn.Softmin, F.softmin),
)
_LOG_SOFTMAX = names_of(nn.LogSoftmax, F.log_softmax, torch.log_softmax, methods="log_softmax")


@register_lipschitz_rule(nn.Softmax2d)
def _softmax2d(call: Call) -> Constant:
    del call
    return 0.5


@register_lipschitz_rule(*_SOFTMAX)
def _softmax(call: Call) -> Constant:
    _classes(call)
    return 0.5


@register_lipschitz_rule(*_LOG_SOFTMAX)
def _log_softmax(call: Call) -> Constant:
    return root_up(_classes(call))


def _classes(call: Call) -> int:
    """Entries along the axis of a softmax."""
    dim, ndim = call.argument("dim", 1), call.output.ndim
    if dim is None:  # PyTorch's old choice, with a warning
        dim = 0 if ndim in (0, 1, 3) else 1
    check_axes(call, dim, ndim)
    return int(call.output.shape[dim])


refuse(
    "jumps, so that no Lipschitz constant holds for it", *names_of(nn.Hardshrink, F.hardshrink, torch.hardshrink)
)
refuse("jumps, so that no Lipschitz constant holds for it", *names_of(nn.Threshold, *_THRESHOLDS))
refuse("multiplies two parts of its input, so that its slope is unbounded", *names_of(nn.GLU, F.glu))
