"""Forwards that write to weights, buffers and options, that misplace their input, or ask what it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from test_lipschitz_traps import Function, identity
from torch import Tensor, nn
from torch.nn import functional as F

import spectralnorm as sn
from messages import check_says, complaint


def test_a_constant_that_is_written_to_between_two_uses() -> None:
    def forward(x: Tensor, layer: nn.Module) -> Tensor:
        weight = layer.weight * 1.0
        first = F.linear(x, weight)
        weight.mul_(100)
        return F.linear(first, weight)

    net = Function(forward, layer=identity())
    assert sn.lipschitz(net, (2,)).upper >= 100


@pytest.mark.parametrize(
    "forward",
    [
        lambda x, layer: F.linear(torch.ones_like(x), layer.weight, bias=x),
        lambda x, layer: F.linear(torch.ones_like(x), layer.weight, x),
    ],
)
def test_an_input_that_is_a_bias_is_refused(forward: Callable[..., Tensor]) -> None:
    net = Function(forward, layer=identity())
    check_says(complaint(TypeError, lambda: sn.lipschitz(net, (2,))), "weight, bias or second factor")


@pytest.mark.parametrize(
    "layer",
    [
        nn.LeakyReLU(math.nan),
        nn.ELU(math.nan),
        nn.ELU(math.inf),
        nn.CELU(math.nan),
        nn.PReLU(init=math.nan),
        nn.Softplus(math.nan),
        nn.Softplus(1.0, math.nan),
        nn.Softplus(math.inf),
    ],
)
def test_options_that_are_no_numbers_are_refused(layer: nn.Module) -> None:
    net = nn.Sequential(identity(), layer)
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2,))), type(layer).__name__, "expected")


def test_a_bias_that_is_no_number_is_refused() -> None:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.bias, math.nan)
    check_says(complaint(ValueError, lambda: sn.lipschitz(layer, (2,))), "not finite", "NaN")


def test_backward_hooks_do_not_change_the_lower_end() -> None:
    net = nn.Sequential(identity(), nn.ReLU())
    net[0].register_full_backward_hook(lambda _, inputs, __: (1000 * inputs[0],))
    net[1].register_full_backward_pre_hook(lambda _, outputs: (1000 * outputs[0],))
    bound = sn.lipschitz(net, (2,))
    assert bound.lower == pytest.approx(1.0, rel=1e-3)


def written_weight(x: Tensor, layer: nn.Module) -> Tensor:
    first = layer(x)
    layer.weight.mul_(10.0)
    second = layer(first)
    layer.weight.div_(10.0)
    return second


def written_data(x: Tensor, layer: nn.Module) -> Tensor:
    first = F.linear(x, layer.weight)
    layer.weight.data.mul_(10.0)
    second = F.linear(first, layer.weight)
    layer.weight.data.div_(10.0)
    return second


@pytest.mark.parametrize("forward", [written_weight, written_data])
def test_a_weight_that_is_written_to_between_two_uses(forward: Callable[..., Tensor]) -> None:
    net = Function(forward, layer=identity()).requires_grad_(False)
    assert sn.lipschitz(net, (2,)).upper >= 10


def test_a_layer_that_is_written_to_before_its_batchnorm_is_refused() -> None:
    def forward(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
        first = layer(x)
        layer.weight.div_(100.0)
        second = norm(first)
        layer.weight.mul_(100.0)
        return second

    net = Function(forward, layer=nn.Conv1d(2, 2, 1), norm=nn.BatchNorm1d(2)).requires_grad_(False).eval()
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2, 3))), "written to before")


def test_options_that_a_forward_sets_are_refused() -> None:
    def forward(x: Tensor, act: nn.Module) -> Tensor:
        act.negative_slope = 100.0
        first = act(x)
        act.negative_slope = 0.01
        return first

    check_says(
        complaint(ValueError, lambda: sn.lipschitz(Function(forward, act=nn.LeakyReLU()), (2,))), "LeakyReLU"
    )


def test_buffers_that_a_forward_writes_to_are_refused() -> None:
    net = Function(lambda x, holder: F.prelu(x, holder.slope.fill_(40.0)), holder=nn.Identity())
    net.layers["holder"].register_buffer("slope", torch.tensor([0.1]))
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2,))), "holder.slope")


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: F.leaky_relu(x, 30.0) if type(x) is Tensor else F.leaky_relu(x, 0.1),
        lambda x: F.leaky_relu(x, 0.1) if hasattr(x, "foo") else F.leaky_relu(x, 50.0),
    ],
)
def test_a_forward_that_asks_what_its_input_is(forward: Callable[..., Tensor]) -> None:
    check_says(complaint(ValueError, lambda: sn.lipschitz(Function(forward), (2,))), "another output")
