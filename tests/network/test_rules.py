"""Lipschitz rules of single operations: against dense matrices where linear, sampled secants where not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectralnorm.network.lipschitz import analyse

IMAGE = (2, 6, 6)


class Function(nn.Module):
    """A module that calls a function of its input."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def bound_of(model: nn.Module | Callable[..., Tensor], shape: tuple[int, ...] = IMAGE) -> float:
    return analyse(model if isinstance(model, nn.Module) else Function(model), shape).bound


def matrix_norm(model: nn.Module | Callable[..., Tensor], shape: tuple[int, ...] = IMAGE) -> float:
    """Of the affine map's matrix, in float64, column by column."""
    model = model.double().eval() if isinstance(model, nn.Module) else model
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    columns = torch.stack([model(column[None])[0].flatten() for column in basis])
    offset = model(torch.zeros(1, *shape, dtype=torch.float64))[0].flatten()
    return float(torch.linalg.matrix_norm(columns - offset, 2))


def largest_secant(model: Callable[..., Tensor], shape: tuple[int, ...], scale: float = 1.0) -> float:
    """Of many pairs of inputs, near and far, then climbed by gradient steps."""
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(64, *shape, generator=generator, dtype=torch.float64)
    near = 10 ** -torch.linspace(0, 4, 64, dtype=torch.float64).reshape(-1, *(1,) * len(shape))
    y = x + near * torch.randn(64, *shape, generator=generator, dtype=torch.float64)
    best = 0.0
    x, y = x.requires_grad_(), y.requires_grad_()
    climber = torch.optim.Adam([x, y], lr=0.02 * scale)
    for _ in range(60):
        apart = (x - y).flatten(1).norm(dim=1)
        outputs = [torch.cat([model(each[i : i + 1]).flatten(1) for i in range(64)]) for each in (x, y)]
        slopes = (outputs[0] - outputs[1]).norm(dim=1) / apart
        kept = slopes[apart > 1e-6]
        best = max(best, float(kept.detach().nan_to_num(0).max()))
        climber.zero_grad()
        (-kept.clamp_min(1e-9).log().sum()).backward()
        climber.step()
    return best


LINEAR: dict[str, Callable[..., Tensor] | nn.Module] = {
    "avg": nn.AvgPool2d(2),
    "avg-overlap": nn.AvgPool2d(3, stride=2, padding=1),
    "avg-not-counted": nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "avg-ceil": nn.AvgPool2d(4, stride=3, ceil_mode=True),
    "avg-ceil-not-counted": nn.AvgPool2d((2, 3), stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    "avg-divisor": nn.AvgPool2d(2, divisor_override=1),
    "avg-function": lambda x: F.avg_pool2d(x, 3, 1),
    "avg-adaptive": nn.AdaptiveAvgPool2d((4, 5)),
    "avg-adaptive-more": nn.AdaptiveAvgPool2d(9),
    "avg-global": lambda x: F.adaptive_avg_pool2d(x, 1),
    "lp-1": nn.LPPool2d(1, 3, stride=1),
    "pad-zero": nn.ZeroPad2d((1, 2, 0, 3)),
    "pad-constant": nn.ConstantPad2d(1, 7.0),
    "pad-crop": lambda x: F.pad(x, (-1, 0, 2, -3)),
    "pad-reflect": nn.ReflectionPad2d((1, 2, 3, 1)),
    "pad-reflect-most": nn.ReflectionPad2d(5),
    "pad-replicate": nn.ReplicationPad2d((3, 0, 2, 2)),
    "pad-circular": nn.CircularPad2d((6, 2, 1, 0)),
    "pad-function": lambda x: F.pad(x, (4, 4, 0, 1), mode="circular"),
    "up-nearest": nn.Upsample(scale_factor=2),
    "up-nearest-uneven": nn.Upsample(size=(9, 7)),
    "up-exact": nn.Upsample(size=(11, 6), mode="nearest-exact"),
    "up-bilinear": nn.UpsamplingBilinear2d(scale_factor=2),
    "up-bilinear-half": nn.Upsample(scale_factor=3, mode="bilinear"),
    "down-area": lambda x: F.interpolate(x, size=(4, 3), mode="area"),
    "down-antialias": lambda x: F.interpolate(x, size=(4, 3), mode="bilinear", antialias=True),
    "mean": lambda x: x.mean((2, 3)),
    "mean-kept": lambda x: torch.mean(x, dim=-1, keepdim=True),
    "sum": lambda x: x.sum(1),
    "unfold": nn.Unfold(3, padding=1, stride=2),
    "repeat": lambda x: x.repeat(1, 3, 1, 2),
    "expand": lambda x: x[:, :, None].expand(-1, -1, 4, -1, -1),
    "shuffle": nn.Sequential(nn.PixelUnshuffle(3), nn.PixelShuffle(3), nn.ChannelShuffle(2)),
    "reshape": lambda x: x.view(x.size(0), -1).reshape(-1, 8, 9).transpose(1, 2).permute(0, 2, 1).contiguous(),
    "ones": lambda x: x.unsqueeze(1).squeeze(1).flatten(2).unflatten(2, (6, 6)).clone(),
    "cut": lambda x: x[:, 1:, ::2, None, 3:],
    "last": lambda x: x[..., 2],
    "twice": lambda x: x + x,
    "sub": lambda x: 3 - x,
    "sub-alpha": lambda x: torch.sub(x, -x, alpha=0.5),
    "scaled": lambda x: -2.5 * x / 2,
    "normalised": lambda x: (x - torch.tensor([0.1, 0.2]).reshape(2, 1, 1)) / torch.tensor([[[0.5]], [[2.0]]]),
    "broadcast-up": lambda x: x[:, :, :1] + torch.ones(1, 1, 6, 6),
    "broadcast-times": lambda x: x[:, :1] * torch.tensor([3.0, -2.0, 1.0]).reshape(1, 3, 1, 1),
    "linear": lambda x: F.linear(x, torch.arange(18.0).reshape(3, 6), torch.ones(3)),
    "matmul": lambda x: x @ torch.arange(12.0).reshape(6, 2),
    "matmul-left": lambda x: torch.arange(12.0).reshape(2, 6).to(x) @ x,
    "conv": lambda x: F.conv2d(x, torch.arange(12.0).reshape(2, 1, 3, 2).to(x) - 5, stride=2, padding=1, groups=2),
    "conv-transposed": lambda x: F.conv_transpose2d(x, torch.arange(24.0).reshape(2, 3, 2, 2).to(x) - 9, stride=2),
    "conv-circular": nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
    "conv-replicate": nn.Conv2d(2, 3, 3, padding=2, padding_mode="replicate"),
    "conv-same": nn.Conv2d(2, 3, 3, padding="same"),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations_against_their_matrix(name: str) -> None:
    operation = LINEAR[name]
    torch.manual_seed(0)
    if isinstance(operation, nn.Module):
        for parameter in operation.parameters():
            nn.init.normal_(parameter)
    found = bound_of(operation)
    exact = matrix_norm(as_float64(operation) if not isinstance(operation, nn.Module) else operation)
    assert exact <= found * (1 + 1e-12)


def as_float64(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Constants that a function makes itself follow its input."""

    def call(x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        try:
            return function(x)
        finally:
            torch.set_default_dtype(torch.float32)

    return call


EXACT = [name for name in LINEAR if name.startswith(("avg", "pad", "up", "down", "mean", "sum", "unfold", "lp"))]


@pytest.mark.parametrize("name", EXACT)
def test_linear_operations_without_negative_weights_have_their_exact_norm(name: str) -> None:
    operation = LINEAR[name]
    assert bound_of(operation) <= matrix_norm(operation) * (1 + 1e-6) + 1e-12
