"""The state follows the truth through training: small steps, large steps, frequencies that overtake."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import spectralnorm as sn
from cases import CASES, Case
from nets import LAYERS, conv_net, decoder, images, normalisation, original, settle, sgd, train_step
from reference import size_free_norm


def errors(net: nn.Module) -> list[float]:
    """How far the norm each state holds lies from the truth, relative."""
    norms = [size_free_norm(net[i]) for i in LAYERS]
    return [abs(norm / normalisation(net[i]).target - 1) for i, norm in zip(LAYERS, norms, strict=True)]


def follow(net: nn.Module, optimizer: torch.optim.Optimizer, every: int, within: float = 1e-2) -> list[float]:
    """The losses of 30 steps. Every so often, the norms held must be right to `within`."""
    losses = []
    for turn in range(30):
        losses.append(train_step(net, optimizer, seed=turn))
        net(images())
        assert turn % every or max(errors(net)) < within
        assert all(value.isfinite().all() for value in (*net.parameters(), *net.buffers()))
    return losses


@pytest.mark.small_models
@pytest.mark.parametrize("options", [{}, {"mode": "soft", "target": 0.4}], ids=["hard", "soft"])
def test_the_state_follows_the_truth_through_training(options: dict[str, Any]) -> None:
    net = sn.spectral_normalize(conv_net(), **options)
    losses = follow(net, sgd(net, lr=0.003, momentum=0.0), every=10 if options else 3)
    assert losses[-1] < losses[0]
    assert max(errors(net)) < 1e-3


TRANSPOSED = [c for c in CASES if str(c) in ("tconv1d-output-padding", "tconv2d-non-square", "tconv1d-groups")]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_a_transposed_layer_has_the_gradient_of_finite_differences(case: Case) -> None:
    layer = settle(sn.spectral_normalize(case.layer().double(), target=2.0))
    weight, plain = original(layer).detach().clone(), case.layer().double()
    direction, step = (torch.linspace(a, b, weight.numel()).sin().view_as(weight) for a, b in ((0, 9), (1, 20)))
    (grad,) = torch.autograd.grad((layer.weight * direction).sum(), original(layer))
    values = []
    for shift in (1e-5, -1e-5):
        plain.weight.data = weight + shift * step
        values.append(float((plain.weight * direction).sum().detach()) * 2.0 / size_free_norm(plain))
    assert float((grad * step).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-5)


@pytest.mark.filterwarnings("ignore:spectral_normalize left")
def test_the_state_of_a_transposed_layer_follows_through_training() -> None:
    net = sn.spectral_normalize(decoder())
    optimizer, goal = sgd(net, lr=0.02, momentum=0.0), torch.ones(4, 3, 16, 16)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (net(images()) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    net(images())
    assert losses[-1] < losses[0]
    assert normalisation(net[3]).turn == 20
    for i in (0, 3):
        assert size_free_norm(net[i]) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.small_models
def test_the_state_follows_weights_that_move_by_several_percent_a_step() -> None:
    """It lags by a few percent while they run, and has caught up soon after they stop."""
    net = sn.spectral_normalize(conv_net())
    start = [original(net[i]).detach().clone() for i in LAYERS]
    losses = follow(net, sgd(net), every=3, within=0.1)
    for _ in range(30):
        with torch.no_grad():
            for i in LAYERS:
                original(net[i]).mul_(1.0)
        net(images())
    assert max(errors(net)) < 1e-3
    assert losses[-1] < 0.1 * losses[0]
    for i, before in zip(LAYERS, start, strict=True):
        assert float((original(net[i]).detach() - before).norm() / before.norm()) > 0.2


@pytest.mark.small_models
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d])
def test_another_frequency_that_overtakes_is_found(conv: type[nn.Module], seed: int) -> None:
    """One random kernel turns into another, by a percent a step, and then stands still: scouts find the new peak.

    Small models only: large ones have no scouts while weights move slowly (README, "Limits").
    """
    torch.manual_seed(seed)
    layer, last = conv(4, 4, 3, bias=False), conv(4, 4, 3, bias=False).weight.detach()
    first = layer.weight.detach().clone()
    sn.spectral_normalize(layer)
    for turn in range(220):
        angle = min(1.0, (turn + 1) / 150) * math.pi / 2
        with torch.no_grad():
            original(layer).copy_(math.cos(angle) * first + math.sin(angle) * last)
            _ = layer.weight
    assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-3)


def test_a_large_model_is_followed_through_drift_by_half_a_sweep_a_step() -> None:
    """Each step moves the weights by 0.3 % in much the direction of the last, as momentum does."""
    torch.manual_seed(0)
    net = sn.spectral_normalize(nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, stride=2)))
    velocity = [torch.zeros_like(original(layer)) for layer in net]
    for turn in range(42):
        for layer, direction in zip(net, velocity, strict=True):
            weight = original(layer).detach()
            direction.mul_(0.9).add_(torch.randn_like(weight), alpha=0.43)
            weight.add_(direction, alpha=3e-3 * float(weight.std()))
            _ = layer.weight
        if turn > 20 and turn % 3 == 0:  # all halves of a sweep come by
            assert [float(sn.spectral_norm(layer)) for layer in net] == pytest.approx([1.0, 1.0], rel=5e-3)
