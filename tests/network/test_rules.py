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


@torch.no_grad()
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
    "turned": lambda x: torch.roll(x.flip(-1, 2), (1, -2), dims=(1, 3)).movedim(1, 3),
    "parts": lambda x: torch.cat([x.narrow(2, 1, 3), x.select(3, 2).unsqueeze(3).expand(-1, -1, -1, 6)], dim=2),
    "chosen": lambda x: x.index_select(2, torch.tensor([4, 0, 4, 2, 4])),
    "chosen-none": lambda x: x.sum(3) + torch.index_select(x, 3, torch.tensor([], dtype=torch.int64)).sum(3),
    "dropout": lambda x: torch.dropout(x, p=0.5, train=False),
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


# name: operation, and the constant expected of it
SLOPES: dict[str, tuple[nn.Module, float]] = {
    "relu": (nn.ReLU(inplace=True), 1),
    "relu6": (nn.ReLU6(), 1),
    "leaky-relu": (nn.LeakyReLU(0.2), 1),
    "leaky-relu-steep": (nn.LeakyReLU(-1.5), 1.5),
    "prelu": (nn.PReLU(2, init=1.75), 1.75),
    "rrelu": (nn.RReLU(1.0, 2.0), 1.5),
    "elu": (nn.ELU(0.5), 1),
    "elu-steep": (nn.ELU(1.5), 1.5),
    "celu": (nn.CELU(3.0), 1),
    "selu": (nn.SELU(), 1.758100),
    "gelu": (nn.GELU(), 1.128905),
    "gelu-tanh": (nn.GELU("tanh"), 1.128994),
    "silu": (nn.SiLU(), 1.099840),
    "mish": (nn.Mish(), 1.088500),
    "hardswish": (nn.Hardswish(), 1.500001),
    "hardsigmoid": (nn.Hardsigmoid(), 0.16666668),
    "sigmoid": (nn.Sigmoid(), 0.25),
    "tanh": (nn.Tanh(), 1),
    "hardtanh": (nn.Hardtanh(-0.5, 2.0), 1),
    "softplus": (nn.Softplus(beta=2.0), 1),
    "logsigmoid": (nn.LogSigmoid(), 1),
    "softsign": (nn.Softsign(), 1),
    "softshrink": (nn.Softshrink(0.3), 1),
    "tanhshrink": (nn.Tanhshrink(), 1),
}


@pytest.mark.parametrize("name", SLOPES)
def test_activations_have_their_largest_slope(name: str) -> None:
    activation, constant = SLOPES[name]
    found = bound_of(activation, (2, 3))
    assert constant <= found <= constant * (1 + 1e-12)
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).requires_grad_()
    with torch.enable_grad():
        y = activation.double().eval()(torch.stack([x, x])[None] * 1.0)
        (slopes,) = torch.autograd.grad(y[0, 0].sum(), x)
    steepest = float(slopes.abs().max())
    assert steepest <= found + 1e-12
    assert steepest >= 0.999 * found  # the constant is a supremum: attained, or nearly, within the grid


FORMS: dict[str, tuple[Callable[..., Tensor], float]] = {
    "relu-method": (lambda x: x.relu(), 1),
    "relu-torch": (torch.relu, 1),
    "leaky": (lambda x: F.leaky_relu(x, 3.0), 3),
    "elu": (lambda x: F.elu(x, alpha=2.0), 2),
    "gelu": (F.gelu, 1.128905),
    "gelu-tanh": (lambda x: F.gelu(x, approximate="tanh"), 1.128994),
    "sigmoid": (lambda x: x.sigmoid(), 0.25),
    "softplus": (F.softplus, 1),
    "prelu": (lambda x: F.prelu(x, torch.tensor([4.0])), 4),
    "clamp": (lambda x: x.clamp(0, 1), 1),
    "abs": (lambda x: -abs(x), 1),
    "softmax": (lambda x: x.softmax(1), 0.5),
    "softmin": (lambda x: F.softmin(x, dim=-1), 0.5),
    "log-softmax": (lambda x: F.log_softmax(x, dim=1), math.sqrt(2)),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), 1),
    "float64": (lambda x: x.double(), 1),
    "largest": (lambda x: x.amax(1), 1),
    "constant-of-input": (lambda x: x + torch.zeros_like(x) + x.new_ones(()).reshape(1, 1, 1, 1).to(x), 1),
}


@pytest.mark.parametrize("name", FORMS)
def test_functions_and_methods_have_the_same_constants(name: str) -> None:
    function, constant = FORMS[name]
    found = bound_of(function)
    assert constant * (1 - 1e-15) <= found <= constant * (1 + 1e-12)
    assert largest_secant(as_float64(function), (2, 3, 3)) <= found * (1 + 1e-9)


POOLS: dict[str, tuple[Callable[..., Tensor] | nn.Module, float]] = {
    "max": (nn.MaxPool2d(2), 1),
    "max-resnet": (nn.MaxPool2d(3, 2, 1), 2),
    "max-dense": (nn.MaxPool2d(3, 1, 1), 3),
    "max-dilated": (nn.MaxPool2d(2, 1, dilation=2), 2),
    "max-dilated-stride": (nn.MaxPool2d((2, 1), 2, dilation=2), math.sqrt(2)),
    "max-one-window": (nn.MaxPool2d((3, 1), 2, dilation=2), 1),
    "max-ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), 2),
    "max-function": (lambda x: F.max_pool2d(x, 3, stride=2), 2),
    "max-global": (nn.AdaptiveMaxPool2d(1), 1),
    "max-adaptive": (nn.AdaptiveMaxPool2d((4, 3)), math.sqrt(2)),
    "max-adaptive-more": (lambda x: F.adaptive_max_pool2d(x, 12), 2),
    "l2": (nn.LPPool2d(2, 2), 1),
    "l2-overlap": (nn.LPPool2d(2, 3, 1), 3),
    "l4": (nn.LPPool2d(4, 3, 3), 1),
    "l2-ceil": (nn.LPPool2d(2, 4, 4, ceil_mode=True), 2),
    "l2-function": (lambda x: F.lp_pool2d(x, 2, 2, stride=1), 2),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_that_are_not_linear(name: str) -> None:
    pool, constant = POOLS[name]
    found = bound_of(pool)
    assert constant * (1 - 1e-15) <= found <= constant * (1 + 1e-12)
    steepest = largest_secant(pool, IMAGE)
    assert steepest <= found * (1 + 1e-9)


def test_one_dimensional_and_three_dimensional_pools() -> None:
    assert bound_of(nn.MaxPool1d(3, 1), (2, 9)) == pytest.approx(math.sqrt(3))
    assert bound_of(nn.MaxPool3d(2, 1), (1, 4, 4, 4)) == pytest.approx(math.sqrt(8))
    assert bound_of(nn.LPPool1d(2, 2), (2, 9)) == 1
    shape = (1, 5, 4, 3)
    average = nn.AvgPool3d(2, 1, 1)
    assert bound_of(average, shape) == pytest.approx(matrix_norm(average, shape), rel=1e-6)
    average = nn.AvgPool1d(3, 2)
    assert bound_of(average, (1, 9)) == pytest.approx(matrix_norm(average, (1, 9)), rel=1e-6)


def test_an_average_pool_on_a_large_image_meets_the_product_of_its_axes() -> None:
    matrix = nn.functional.avg_pool1d(torch.eye(40, dtype=torch.float64)[:, None], 3, 2)[:, 0]
    axis = float(torch.linalg.matrix_norm(matrix, 2))
    found = bound_of(nn.AvgPool2d(3, 2), (3, 40, 40))
    assert axis**2 <= found <= axis**2 * (1 + 1e-3)


def test_two_inputs() -> None:
    two, cat = (lambda x: torch.cat([2 * x, 3 * x], dim=1)), lambda x: torch.stack([x, x], dim=2)
    assert bound_of(two) == pytest.approx(math.sqrt(13))
    assert bound_of(cat) == pytest.approx(math.sqrt(2))
    assert bound_of(lambda x: torch.maximum(3 * x, 4 * x)) == pytest.approx(5)
    assert bound_of(lambda x: torch.add(x, 2 * x, alpha=-3)) == pytest.approx(7)
    assert bound_of(lambda x: x.chunk(2, dim=1)[0] + x.split(1, 1)[1]) == pytest.approx(2)
    assert bound_of(lambda x: x + x[:, :1]) == pytest.approx(1 + math.sqrt(2))  # one channel shown twice
    assert bound_of(lambda x: 0 * x + torch.ones(1, 2, 6, 6)) == 0


def test_statistics_of_the_input_need_a_bound_on_the_variance() -> None:
    norms = [nn.LayerNorm(IMAGE), nn.GroupNorm(1, 2), nn.RMSNorm(6, eps=0.5), nn.InstanceNorm2d(2, affine=True)]
    for norm in norms:
        nn.init.constant_(norm.weight, -2.0)
        for least in (0.0, 0.5):
            found = analyse(norm, IMAGE, min_variance=least).bound
            assert found == pytest.approx(2 / math.sqrt(least + norm.eps), rel=1e-9)
        at_all = analyse(norm, IMAGE, min_variance=0.0).bound
        assert largest_secant(norm.double(), IMAGE, scale=0.01) <= at_all
    tracked = nn.InstanceNorm2d(2, affine=True, track_running_stats=True).eval()
    tracked.running_var.data = torch.tensor([4.0, 0.25])
    assert bound_of(tracked) == pytest.approx(2, rel=1e-4)


def test_batchnorm_alone_has_its_largest_factor() -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_var.data, norm.weight.data = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([1.0, -5.0, 6.0])
    assert 2.5 * (1 - 1e-5) <= bound_of(norm, (3, 4, 4)) <= 2.5
    flat = nn.BatchNorm1d(3).eval()
    assert bound_of(flat, (3,)) == pytest.approx(1, rel=1e-4)
    assert bound_of(flat, (3, 7)) == pytest.approx(1, rel=1e-4)
