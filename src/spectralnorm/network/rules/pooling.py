"""Pools: average ones are linear; the others are bounded by how many windows read one cell."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from spectralnorm.network.outward import product_up, root_up, up
from spectralnorm.network.rules.axes import per_axis
from spectralnorm.network.rules.call import Call
from spectralnorm.network.rules.nonnegative import nonnegative_norm
from spectralnorm.network.rules.registry import Constant, Target, register_lipschitz_rule

__all__: list[str] = []

_MAX: dict[int, tuple[Target, ...]] = {
    1: (nn.MaxPool1d, F.max_pool1d, torch.max_pool1d),
    2: (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d),
    3: (nn.MaxPool3d, F.max_pool3d, torch.max_pool3d),
}
_ADAPTIVE_MAX: dict[int, tuple[Target, ...]] = {
    1: (nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d),
    2: (nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d),
    3: (nn.AdaptiveMaxPool3d, F.adaptive_max_pool3d),
}
_POWER: dict[int, tuple[Target, ...]] = {
    1: (nn.LPPool1d, F.lp_pool1d),
    2: (nn.LPPool2d, F.lp_pool2d),
    3: (nn.LPPool3d, F.lp_pool3d),
}
_AVERAGE: tuple[Target, ...] = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
)


@register_lipschitz_rule(*_AVERAGE)
def _average(call: Call) -> Constant:
    return nonnegative_norm(call)


for _axes in (1, 2, 3):

    @register_lipschitz_rule(*_MAX[_axes])
    def _max(call: Call, axes: int = _axes) -> Constant:
        """Each output moves by no more than its window's longest entry, which so many windows share."""
        kernel = per_axis(call.argument("kernel_size", 1), axes)
        stride = per_axis(call.argument("stride", 2) or kernel, axes)
        dilation = per_axis(call.argument("dilation", 4, 1), axes)
        return _root_of_overlap(call, kernel, stride, dilation)

    @register_lipschitz_rule(*_ADAPTIVE_MAX[_axes])
    def _adaptive_max(call: Call, axes: int = _axes) -> Constant:
        sizes = zip(call.inputs[0].shape[-axes:], call.output.shape[-axes:], strict=True)
        return root_up(math.prod(_windows_at_most(n, m) for n, m in sizes))

    @register_lipschitz_rule(*_POWER[_axes])
    def _power(call: Call, axes: int = _axes) -> Constant:
        """A window's p-norm moves by at most the length of the move, for p >= 2; p = 1 sums, which is linear."""
        p = call.argument("norm_type", 1)
        if p == 1:
            return nonnegative_norm(call)
        if p % 2 or not 2 <= p < math.inf:
            raise ValueError(
                f"{call} has norm_type={p}, a root of sums of both signs; expected 1 or an even number."
            )
        kernel = per_axis(call.argument("kernel_size", 2), axes)
        stride = per_axis(call.argument("stride", 3) or kernel, axes)
        return product_up(
            [_root_of_overlap(call, kernel, stride, (1,) * axes), _cut_windows(call, kernel, stride, p)]
        )


def _root_of_overlap(
    call: Call, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> float:
    """The root of the number of windows that read one cell, at most."""
    outputs = call.output.shape[-len(kernel) :]
    axes = zip(kernel, stride, dilation, outputs, strict=True)
    return root_up(math.prod(min(-(-k * math.gcd(s, d) // s), m) for k, s, d, m in axes))


def _windows_at_most(n: int, m: int) -> int:
    """The number of windows of an adaptive pool from n cells to m that read one cell, at most."""
    count = [0] * n
    for i in range(m):
        for cell in range(i * n // m, -(-(i + 1) * n // m)):
            count[cell] += 1
    return max(count)


def _cut_windows(call: Call, kernel: tuple[int, ...], stride: tuple[int, ...], p: float) -> float:
    """What ceil_mode does to windows that are cut off at the edge: their mean counts as if they were whole."""
    factor = 1.0
    sizes = (call.inputs[0].shape[-len(kernel) :], call.output.shape[-len(kernel) :])
    for k, s, n, m in zip(kernel, stride, *sizes, strict=True):
        cells = n - (m - 1) * s  # of the last window
        if cells < k:
            factor = product_up([factor, up(up(k / cells) ** (1 / p))])
    return factor
