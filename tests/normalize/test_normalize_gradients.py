"""Gradients through the scaled weight, against W target / sigma with sigma differentiated the slow way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectralnorm as sn
from cases import CASES, Case
from nets import LAYERS, conv_net, images, normalisation, original, settle, sgd, train_step
from reference import size_free_norm

KINDS = (  # the norm stands clear of the singular values that follow
    "linear-wide",
    "conv1d-stride3-dilation2",
    "conv2d-3x3-same",
    "conv2d-groups",
    "conv2d-stride-groups",
    "conv2d-circular-5x3-same",
)
each_kind = pytest.mark.parametrize("case", [c for c in CASES if str(c) in KINDS], ids=str)
cases = {str(c): c for c in CASES}
OPTIONS = {
    "hard": {"mode": "hard", "target": 0.7},
    "soft and active": {"mode": "soft", "target": 0.3},
    "soft and inactive": {"mode": "soft", "target": 9.0},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def settled(case: Case, **options: Any) -> nn.Module:
    """The layer in float64, normalised, its state fully converged."""
    return settle(sn.spectral_normalize(case.layer().double(), **options))


def noise_like(tensor: Tensor, seed: int) -> Tensor:
    return torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(seed))


def slow(weight: Tensor, layer: nn.Module, target: float, mode: str) -> Tensor:
    """W target / sigma, or W min(1, target / sigma), all of it differentiated by autograd."""
    if weight.ndim == 2:
        sigma = torch.linalg.matrix_norm(weight, 2)
    else:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        args = {name: getattr(layer, name) for name in names}
        sigma = sn.spectral_norm(weight, rtol=1e-12, **args).value
    return weight * (target / sigma if mode == "hard" or float(sigma.detach()) > target else 1.0)


# ---------------------------------------------------------------------- first order


@each_kind
@each_option
def test_gradient_equals_the_slow_reference(case: Case, options: dict[str, Any]) -> None:
    layer = settled(case, **options)
    weight = original(layer)
    direction = noise_like(weight, seed=1)
    (fast,) = torch.autograd.grad((layer.weight * direction).sum(), weight)
    expected = slow(weight, layer, **options)
    torch.testing.assert_close(layer.weight, expected, rtol=1e-7, atol=1e-9)
    (reference,) = torch.autograd.grad((expected * direction).sum(), weight)
    torch.testing.assert_close(fast, reference, rtol=1e-5, atol=1e-6)


@each_kind
def test_gradient_equals_finite_differences(case: Case) -> None:
    """The norm at the shifted weights comes from the definition, without the library."""
    layer = settled(case, target=2.0)
    weight, plain = original(layer).detach().clone(), case.layer().double()
    direction, step = noise_like(weight, seed=1), noise_like(weight, seed=2)
    (grad,) = torch.autograd.grad((layer.weight * direction).sum(), original(layer))
    values = []
    for shift in (1e-5, -1e-5):
        plain.weight.data = weight + shift * step
        values.append(float((plain.weight * direction).sum().detach()) * 2.0 / size_free_norm(plain))
    slope = (values[0] - values[1]) / 2e-5
    assert float((grad * step).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_a_layer_left_alone_by_soft_has_the_plain_gradient() -> None:
    layer = sn.spectral_normalize(cases["conv2d-3x3-same"].layer(), mode="soft", target=9.0)
    direction = noise_like(layer.weight, seed=1)
    (grad,) = torch.autograd.grad((layer.weight * direction).sum(), original(layer))
    assert torch.equal(grad, direction)


def test_the_scaled_weight_has_no_gradient_along_the_weight() -> None:
    """Scaling W changes nothing in hard mode: pytorch#8049 asks what the constraint does to training."""
    layer = settled(cases["conv2d-stride-groups"])
    (grad,) = torch.autograd.grad((layer.weight * noise_like(layer.weight, seed=1)).sum(), original(layer))
    cosine = (grad * original(layer)).sum() / (grad.norm() * original(layer).norm())
    assert abs(float(cosine.detach())) < 1e-9


@pytest.mark.parametrize("name", ["conv2d-groups", "conv2d-stride-groups", "conv1d-depthwise"])
def test_only_the_leading_group_takes_the_gradient_of_the_norm(name: str) -> None:
    layer = settled(cases[name])
    weight = original(layer)
    direction = noise_like(weight, seed=1)
    (grad,) = torch.autograd.grad((layer.weight * direction).sum(), weight)
    scale = 1.0 / float(sn.spectral_norm(case_of(layer, weight), rtol=1e-12).value.detach())
    rest = (grad - scale * direction).chunk(layer.groups)
    alone = [float(sn.spectral_norm(block, stride=layer.stride)) for block in weight.detach().chunk(layer.groups)]
    leader = alone.index(max(alone))
    for group, block in enumerate(rest):
        assert (float(block.norm()) > 1e-2) == (group == leader)
        assert group == leader or float(block.abs().max()) < 1e-9


def case_of(layer: nn.Module, weight: Tensor) -> nn.Module:
    """The layer as it was before it was normalised."""
    plain = type(layer).__mro__[1](
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, groups=layer.groups
    )
    plain.weight = nn.Parameter(weight.detach())
    return plain


# ---------------------------------------------------------------------- second order


def plain_outputs(net: nn.Module, weights: list[Tensor], x: Tensor, **options: Any) -> Tensor:
    """What `conv_net` computes, with the slow rule in place of the parametrizations."""
    first, second, third = (slow(w, net[i], **options) for w, i in zip(weights, LAYERS, strict=True))
    x = torch.tanh(F.conv2d(x, first, net[0].bias, padding=1))
    x = torch.tanh(F.conv2d(x, second, net[2].bias, padding=1, stride=2))
    return F.linear(x.flatten(1), third, net[5].bias)


def penalty(outputs: Tensor, x: Tensor) -> Tensor:
    """The gradient penalty of Gulrajani et al. 2017."""
    (grad,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
    return (grad.flatten(1).norm(dim=1) - 1).square().mean()


@each_option
def test_gradient_penalty(options: dict[str, Any]) -> None:
    net = sn.spectral_normalize(conv_net().double(), **options)
    weights = [original(settle(net[i])) for i in LAYERS]
    x = images(dtype=torch.float64).requires_grad_()
    fast = penalty(net(x), x)
    reference = penalty(plain_outputs(net, weights, x, **options), x)
    torch.testing.assert_close(fast, reference, rtol=1e-6, atol=1e-9)
    grads = torch.autograd.grad(fast, weights), torch.autograd.grad(reference, weights)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["linear-wide", "conv1d-stride3-dilation2", "conv2d-stride-groups"])
@each_option
def test_second_derivative_in_the_weight_at_fixed_singular_vectors(name: str, options: dict[str, Any]) -> None:
    """As in PyTorch's rule, sigma is linear in W: u, v and w count as constants."""
    layer = settled(cases[name], **options)
    weight = original(layer)
    first, second = noise_like(weight, seed=1), noise_like(weight, seed=2)
    unscaled = slow(weight, layer, target=1.0, mode="hard")
    sigma = float((weight / unscaled).flatten()[0].detach())
    (slope,) = torch.autograd.grad((unscaled * first).sum(), weight)  # first / sigma - <W, first> D / sigma^2
    along = float((weight * first).sum().detach())
    derivative = (first / sigma - slope) * sigma**2 / along
    linear = (weight * derivative).sum()
    active = options["mode"] == "hard" or sigma > options["target"]
    frozen = weight * (options["target"] / linear) if active else weight * 1.0
    results = []
    for scaled in (layer.weight, frozen):
        (grad,) = torch.autograd.grad((scaled * first).sum(), weight, create_graph=True)
        loss = (grad * second).sum() + (scaled * second).square().sum()
        results.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- dtypes


def test_float64_stays_float64() -> None:
    net = sn.spectral_normalize(conv_net().double())
    optimizer = sgd(net, lr=0.003, momentum=0.0)
    for _ in range(3):
        train_step(net, optimizer)
    output = net(images(dtype=torch.float64))
    tensors = [*net.parameters(), *net.buffers(), *(net[i].weight for i in LAYERS), output]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert {parameter.grad.dtype for parameter in net.parameters()} == {torch.float64}


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("before", [True, False], ids=["converted first", "converted after"])
def test_half_precision(dtype: torch.dtype, before: bool) -> None:
    """apex#181, pytorch#70664, pytorch#117844: the weights are half, the state is not."""
    options = {"mode": "soft" if before else "hard", "target": 0.5}
    net = sn.spectral_normalize(conv_net().to(dtype), **options) if before else conv_net()
    net = net if before else sn.spectral_normalize(net, **options).to(dtype)
    assert {buffer.dtype for buffer in net.buffers()} == {torch.float32}
    optimizer = sgd(net, lr=0.003, momentum=0.0)
    losses = [train_step(net, optimizer) for _ in range(5)]
    output = net(images().to(dtype))
    assert output.dtype == net[0].weight.dtype == original(net[0]).grad.dtype == dtype
    assert {buffer.dtype for buffer in net.buffers()} == {torch.float32}
    assert losses[-1] < losses[0]
    for i in LAYERS:
        assert size_free_norm(net[i]) == pytest.approx(0.5, rel=1e-2)


def test_half_and_back() -> None:
    net = sn.spectral_normalize(conv_net())
    for change in (nn.Module.half, nn.Module.float, nn.Module.bfloat16, nn.Module.float, nn.Module.double):
        net = change(net)
        weight = net.eval()[2].weight
        assert weight.dtype == net[2].bias.dtype
        assert size_free_norm(net[2]) == pytest.approx(1.0, rel=1e-2)
        assert normalisation(net[2]).u.dtype == (torch.float64 if change is nn.Module.double else torch.float32)
    train_step(net.train(), sgd(net))


@pytest.mark.parametrize("train", [True, False])
def test_autocast(train: bool) -> None:
    """pytorch#70664, tensorflow/addons#2398: the norm is computed in full precision all the same."""
    net, twin = (sn.spectral_normalize(conv_net()) for _ in range(2))
    for model in (net, twin):
        model.train(train)
        with torch.no_grad():
            original(model[2]).add_(0.02 * noise_like(original(model[2]), seed=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(images()).float().square().sum().backward()
        weight = net[2].weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, twin[2].weight)
    assert original(net[2]).grad.isfinite().all()


def test_normalising_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net = sn.spectral_normalize(conv_net())
    assert size_free_norm(net[2]) == pytest.approx(1.0, rel=1e-3)
