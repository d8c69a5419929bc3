"""What once slipped past the bound of a network: maps that look like others, hooks, writes, edge numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spectralnorm as sn
from messages import check_says, complaint
from spectralnorm.operators.base import Operator


class Function(nn.Module):
    """A forward, with layers that it may use."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.layers)


def identity() -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    nn.init.eye_(layer.weight)
    return layer


@pytest.mark.parametrize(("factor", "size"), [(2.1, 5), (1.27525, 3), (3.0, 2), (0.4, 5)])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_neighbours_at_any_scale(factor: float, size: int, mode: str) -> None:
    """PyTorch's backward pass is not the transpose of its forward pass here."""
    net = nn.Upsample(scale_factor=factor, mode=mode)
    matrix = torch.stack([net(row.reshape(1, 1, -1)).flatten() for row in torch.eye(size)], 1)
    true = float(torch.linalg.matrix_norm(matrix, 2))
    assert true * (1 - 1e-6) <= sn.lipschitz(nn.Sequential(net), (1, size)).upper <= true * (1 + 1e-6)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"scale_factor": 37 / 6, "mode": "nearest-exact"}, 4), ({"size": 82}, 2), ({"size": 118}, 41)],
)
def test_nearest_neighbours_of_float32_are_not_those_of_float64(options: dict[str, Any], size: int) -> None:
    net = nn.Upsample(**options)
    for dtype in (torch.float32, torch.float64):
        matrix = torch.stack([net(row.reshape(1, 1, -1)).flatten() for row in torch.eye(size, dtype=dtype)], 1)
        true = float(torch.linalg.matrix_norm(matrix.double(), 2))
        assert true <= sn.lipschitz(nn.Sequential(net), (1, size)).upper * (1 + 1e-12)


@pytest.mark.parametrize("places", [(-1, 1), (-1, 1, -1, 1), (2, 4), (4, 2), 3, (0, 9)])
def test_parts_that_overlap(places: Any) -> None:
    def cut(x: Tensor) -> Tensor:
        return torch.cat(torch.tensor_split(x, places, 1), 1)

    true = float(torch.linalg.matrix_norm(cut(torch.eye(6)), 2))
    assert sn.lipschitz(Function(cut), (6,)).upper == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("affine", [False, True])
def test_what_rmsnorm_adds_by_default(dtype: torch.dtype, affine: bool) -> None:
    net = nn.Sequential(nn.RMSNorm(2, elementwise_affine=affine), nn.Linear(2, 2, bias=False)).to(dtype)
    nn.init.eye_(net[1].weight)
    bound = sn.lipschitz(net, (2,), min_variance=0.0)
    x = torch.full((1, 2), 2.0**-16, dtype=dtype)  # where the slope is largest, to 2e-3
    with torch.no_grad():
        slope = float((net(x) - net(0 * x)).double().norm() / x.double().norm())
    assert slope <= bound.upper * (1 + 2 * torch.finfo(dtype).eps)
    if dtype != torch.float64:
        assert slope >= bound.upper * 0.98


def test_padding_that_was_changed_later() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    layer.padding = (0, 0)
    with pytest.raises(ValueError, match=r"pads by \[1, 1, 1, 1\]"):
        sn.spectral_norm(layer)
    with pytest.raises(ValueError, match="make a new layer"):
        sn.lipschitz(nn.Sequential(layer), (1, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constants_that_a_forward_computes_do_not_put_lower_above_upper(dtype: torch.dtype) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.full((1, 5), 0.1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.c / (self.c.abs() + 0.3)

    bound = sn.lipschitz(Scaled().to(dtype), (5,))
    assert bound.lower <= bound.upper


def test_keywords_in_any_order() -> None:
    def add(x: Tensor) -> Tensor:
        return torch.add(other=2 * x, input=0.1 * x, alpha=3)

    def subtract(x: Tensor) -> Tensor:
        return torch.sub(other=10 * x, input=0.1 * x, alpha=3)

    assert sn.lipschitz(Function(add), (5,)).upper == pytest.approx(6.1, rel=1e-6)
    assert sn.lipschitz(Function(subtract), (5,)).upper == pytest.approx(30.1, rel=1e-6)


def test_running_statistics_that_are_not_used() -> None:
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    norm.track_running_stats = False  # in eval mode it divides by the input's own now
    with pytest.raises(TypeError, match="statistics of its own input"):
        sn.lipschitz(nn.Sequential(norm), (2, 5))


def test_no_variance_and_no_eps() -> None:
    with pytest.raises(ValueError, match=r"min_variance plus eps of 0\.0; expected it above 0"):
        sn.lipschitz(nn.Sequential(nn.LayerNorm(3, eps=0.0)), (3,), min_variance=0.0)


def test_a_forward_of_its_own_is_another_map() -> None:
    class Tenfold(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, 10 * weight, bias)

    kernel = Tenfold(1, 1, 1, bias=False)
    nn.init.ones_(kernel.weight)
    assert sn.lipschitz(nn.Sequential(kernel), (1, 2, 2)).upper == pytest.approx(10.0, rel=2e-3)  # traced through
    with pytest.raises(TypeError):
        sn.spectral_norm(kernel)


def test_a_forward_set_on_the_instance_is_refused() -> None:
    patched = identity()
    old = patched.forward
    patched.forward = lambda x: 10 * old(x)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="forward of its own"):
        sn.lipschitz(nn.Sequential(patched), (2,))
    with pytest.raises(TypeError):
        sn.spectral_norm(patched)


def test_hooks_that_may_change_values_are_refused() -> None:
    net = nn.Sequential(identity())
    net[0].register_forward_hook(lambda *call: call[2] + 50 * F.relu(call[2] - 5))  # nothing at the example
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2,))), "forward hook", "Remove it")
    plain = nn.Sequential(identity())
    handle = nn.modules.module.register_module_forward_hook(lambda *call: 3 * call[2])
    try:
        check_says(complaint(ValueError, lambda: sn.lipschitz(plain, (2,))), "forward hook")
    finally:
        handle.remove()


def test_writes_to_a_value_that_has_another_name_are_seen() -> None:
    def aliased(x: Tensor) -> Tensor:
        b = a = x * 1.0
        a += F.relu(100 * x - 200)  # nothing at the example
        return a + b

    message = complaint(ValueError, lambda: sn.lipschitz(Function(aliased), (3,)))
    check_says(message, "writes into a tensor that is used again")


def test_a_residual_that_is_added_in_place_is_a_sum() -> None:
    def residual(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        out = second(torch.relu(first(x)))
        out += x
        return torch.relu(out)

    assert sn.lipschitz(Function(residual, first=identity(), second=identity()), (2,)).upper == pytest.approx(2.0)


@pytest.mark.parametrize("size", [1e-170, 1.6e-162, 1e-100, 1.0, 1e100])
def test_radii_of_rows_of_any_size(size: float) -> None:
    net = identity().double()
    net.weight.data.mul_(size)
    radius = sn.certified_radius(net, torch.tensor([[3.0, 1.0]]).double(), torch.tensor([0]))
    assert float(radius) == pytest.approx(2**0.5, rel=1e-5)


@pytest.mark.parametrize("scale", [torch.mul, torch.div])
def test_logits_scaled_by_a_vector_that_is_passed_by_name(scale: Callable[..., Tensor]) -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data.fill_(1.0), layer.bias.data.copy_(torch.tensor([0.0, 1.0]))
    factors = torch.tensor([[1.0, 2.0]] if scale is torch.mul else [[1.0, 0.5]])
    net = Function(lambda x, fc: scale(fc(x), other=factors), fc=layer)
    radius = float(sn.certified_radius(net, torch.ones(1, 2), torch.tensor([1])))
    assert 0 < radius <= 8**0.5  # a tie at (-1, -1)


def test_a_last_layer_named_like_an_operation() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mul = identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.mul(x) * 2

    radius = sn.certified_radius(Net(), torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
    assert float(radius) == pytest.approx(2**0.5, rel=1e-4)


def test_sums_in_fewer_digits_are_refused() -> None:
    net = Function(lambda x: x.mean(1, keepdim=True, dtype=torch.float16))
    check_says(complaint(TypeError, lambda: sn.lipschitz(net, (3,))), "float16", "rounds")


def test_a_mask_is_a_factor() -> None:
    mask = torch.tensor([[True, False]])
    assert sn.lipschitz(Function(lambda x: x * mask), (2,)).upper == 1.0


@pytest.mark.parametrize(("layer", "least"), [(nn.LayerNorm(4), 0.5), (nn.RMSNorm(4), 0.0)])
def test_the_lower_end_is_never_above_the_upper(layer: nn.Module, least: float) -> None:
    net = Function(lambda x, norm: norm(x * 1e-6), norm=layer)
    bound = sn.lipschitz(net, (4,), min_variance=least)
    assert bound.lower <= bound.upper


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch, as torch.compile is imported
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net))])
def test_wrappers_are_looked_into(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert sn.lipschitz(wrap(net), (3,)).upper == sn.lipschitz(net, (3,)).upper
    x, y = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    assert torch.equal(sn.certified_radius(wrap(net), x, y), sn.certified_radius(net, x, y))


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.rand(1, 3)), lambda net: Scripted(net)]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    net = make(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    check_says(complaint(TypeError, lambda: sn.lipschitz(net, (3,))), "TorchScript", "made from")


class Scripted(nn.Module):
    """A part in TorchScript."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = torch.jit.script(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_an_empty_output_is_refused() -> None:
    net = Function(lambda x: F.interpolate(x, scale_factor=0.05, mode="area").flatten(1))
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (1, 8, 8))), "empty", "real inputs")


def test_radii_are_not_given_under_autocast() -> None:
    certifier = sn.Certifier(identity(), (2,))
    with torch.autocast("cpu", torch.bfloat16):
        message = complaint(ValueError, lambda: certifier.radius(torch.ones(1, 2), torch.tensor([0])))
    check_says(message, "autocast", ".to(dtype)")


@pytest.mark.parametrize("size", [(14,), (15,), None])
@pytest.mark.parametrize("norm", [False, True])
def test_a_transposed_convolution_that_is_told_its_output_size(size: tuple[int] | None, norm: bool) -> None:
    """A further cell of output reads a tap that no other does."""
    layer = nn.ConvTranspose1d(1, 1, 2, stride=2, padding=1, bias=False)
    scale = nn.BatchNorm1d(1) if norm else nn.Identity()
    net = Function(lambda x, up, bn: bn(up(x, output_size=size)), up=layer, bn=scale).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[0.1, 10.0]]]))
        matrix = torch.stack([net(row.reshape(1, 1, -1)).flatten() for row in torch.eye(8)], 1)
    true = float(torch.linalg.matrix_norm(matrix, 2))
    assert true <= sn.lipschitz(net, (1, 8)).upper <= true * 1.01
    assert sn.lipschitz(net, (1, 8), certified=False).value >= true * 0.99


def test_a_registered_layer_that_takes_more_than_its_input_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(2))

        def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
            return factor * F.linear(x, self.weight)

    @sn.register_operator(Scaled)
    def _scaled(layer: Scaled) -> Operator:
        return sn.as_operator(layer.weight)

    assert sn.lipschitz(Function(lambda x, layer: layer(x), layer=Scaled()), (2,)).upper == pytest.approx(1.0)
    net = Function(lambda x, layer: layer(x, 3.0), layer=Scaled())
    check_says(complaint(TypeError, lambda: sn.lipschitz(net, (2,))), "Scaled is called with more than its input")
