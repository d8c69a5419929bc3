"""Changes that no adversary made, to compare attacks with: noise, blur, and less contrast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import Bounds, check_batch, check_choice

SEVERITIES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {  # of severities 1 to 5
        "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, as a share of the inputs' range
        "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation, in pixels
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance from each channel's mean
    }
)


def control(name: str, x: Tensor, severity: int, *, bounds: Bounds = (0.0, 1.0), seed: int = 0) -> Tensor:
    """Change inputs without an adversary.

    Args:
        name: "noise" (Gaussian), "blur" (Gaussian, over the last two axes) or "contrast".
        x: Clean inputs within the bounds, (N, ...); (N, C, H, W) for blur.
        severity: From 1 to 5; `SEVERITIES` says what that means.
        bounds: Lowest and highest value of an input.
        seed: Of the noise.

    Returns:
        Inputs within the bounds, shaped as x.

    Raises:
        ValueError: If there is no such change or severity, or inputs to blur are no images.

    Reference:
        Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019, arXiv 1903.12261; the severities are those of its CIFAR-10-C.

    Example:
        >>> control("contrast", torch.tensor([[0.0, 1.0]]), 2)
        tensor([[0.2500, 0.7500]])
    """
    check_choice("controls", name, SEVERITIES)
    if isinstance(severity, bool) or not isinstance(severity, int) or not 1 <= severity <= 5:
        raise ValueError(f"severity: got {severity!r}, expected 1 to 5; choose one of these")
    check_batch(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), bounds)
    if len(x) == 0:
        return x.clone()
    amount = SEVERITIES[name][severity - 1]
    if name == "noise":
        generator = torch.Generator(device=x.device).manual_seed(seed)
        gauss = torch.empty_like(x).normal_(generator=generator)
        return (x + amount * (bounds[1] - bounds[0]) * gauss).clamp(*bounds)
    changed: Callable[[Tensor, float], Tensor] = _blurred if name == "blur" else _flattened
    return changed(x, amount).clamp(*bounds)


def _blurred(x: Tensor, deviation: float) -> Tensor:
    """Convolve with a Gaussian, cut at four deviations, the edges repeated."""
    if x.ndim != 4:
        raise ValueError(f"controls: got blur for inputs of shape {tuple(x.shape)}, expected images; leave it out")
    radius = math.ceil(4 * deviation)
    weights = torch.exp(-((torch.arange(-radius, radius + 1).to(x) / deviation) ** 2) / 2)
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)  # (C, 1, 1, taps)
    wide = F.conv2d(F.pad(x, (radius, radius, 0, 0), "replicate"), weights, groups=x.shape[1])
    tall = F.pad(wide, (0, 0, radius, radius), "replicate")
    return F.conv2d(tall, weights.transpose(2, 3), groups=x.shape[1])


def _flattened(x: Tensor, factor: float) -> Tensor:
    """Move each channel's values toward their mean; all features of an input without channels are one."""
    axes = tuple(range(2, x.ndim)) or (1,)
    mean = x.mean(axes, keepdim=True)
    return mean + factor * (x - mean)
