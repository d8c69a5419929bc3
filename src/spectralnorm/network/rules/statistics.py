"""Layers that divide by statistics of their own input: a constant only by a lower bound on the variance."""

from __future__ import annotations

import math

from torch import Tensor, nn

from spectralnorm.network.outward import product_up, up
from spectralnorm.network.plain import default_eps
from spectralnorm.network.rules.call import Call
from spectralnorm.network.rules.registry import Constant, register_lipschitz_rule

__all__: list[str] = []

_InstanceNorm = nn.modules.instancenorm._InstanceNorm


@register_lipschitz_rule(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
def _own_statistics(call: Call) -> Constant:
    """The largest |gamma| / sqrt(v + eps), for variances (mean squares, of RMSNorm) of at least v.

    z / sqrt(max(|z|^2 / n, v) + eps) is a scaling of z, of slope at most 1 / sqrt(v + eps) in every direction, and
    is the layer wherever the variance is at least v; taking the mean away has norm 1.

    Returns:
        The constant.

    Raises:
        TypeError: when the user has said nothing of the variance.
        ValueError: when it may be 0, and eps is.
    """
    eps = call.argument("eps")
    if eps is None:  # RMSNorm's default
        eps = default_eps(call.inputs[0].dtype)
    if call.min_variance is None:
        raise TypeError(
            f"{call} divides by statistics of its own input, which leaves no constant better than |gamma| / "
            "sqrt(eps); expected min_variance=..., what you know the variance to be at least (0 for this)."
        )
    least = call.min_variance + eps
    if not least > 0:
        raise ValueError(f"{call} has a min_variance plus eps of {least}; expected it above 0.")
    return _largest_scale(call, up(1 / math.sqrt(least) * (1 + 2.0**-50)))


@register_lipschitz_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm(call: Call) -> Constant:
    """As above, unless it tracks running statistics: in eval mode it then divides by those."""
    variance = call.argument("running_var")
    if not call.argument("track_running_stats") or not isinstance(variance, Tensor):
        return _own_statistics(call)
    least = float(variance.double().amin()) + call.argument("eps")
    if not least > 0:
        raise ValueError(f"{call} has a running_var plus eps of {least}; expected it above 0.")
    return _largest_scale(call, up(1 / math.sqrt(least) * (1 + 2.0**-50)))


def _largest_scale(call: Call, factor: float) -> float:
    weight = call.argument("weight")
    return product_up([factor, float(weight.abs().amax()) if isinstance(weight, Tensor) else 1.0])
