"""States of weights of any size, damaged or missing ones, and threads that share them."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import spectralnorm as sn
from nets import LAYERS, assert_same, conv_net, images, nudge, original, snapshot, trained
from reference import size_free_norm


def norms(net: nn.Module) -> list[float]:
    """True norms of the scaled weights."""
    return [size_free_norm(net[i]) for i in LAYERS]


@pytest.mark.parametrize("counters", [[], [1.0], [float("nan")] * 3])
def test_counters_that_are_damaged_do_not_stop_a_load(counters: list[float]) -> None:
    state = trained().state_dict()
    for name in state:
        if name.endswith("_extra_state"):
            state[name] = torch.tensor(counters, dtype=torch.float64)
    net = sn.spectral_normalize(conv_net(seed=9))
    net.load_state_dict(state)
    net(images())
    assert norms(net) == pytest.approx([1.0] * 3, rel=1e-3)


def test_a_model_made_from_its_outline_on_the_meta_device_finds_its_state() -> None:
    net = copy.deepcopy(trained()).to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    net(images())
    assert norms(net) == pytest.approx([1.0] * 3, rel=1e-3)


# ---------------------------------------------------------------------- weights of any size


@pytest.mark.parametrize("size", [1e-28, 1e-20, 1e-11, 1e9, 1e25])
def test_weights_may_be_tiny_or_huge(size: float) -> None:
    """A layer that starts at zero has weights of 1e-10 after its first step, if the signal is weak."""
    net = conv_net()
    with torch.no_grad():
        for i in LAYERS:
            net[i].weight.mul_(size)
    net = sn.spectral_normalize(net)
    for _ in range(12):
        nudge(net, 0.02)
        net(images())
    assert norms(net) == pytest.approx([1.0] * 3, rel=1e-3)


@pytest.mark.parametrize("factor", [1e-24, 1e-10, 1e10, 1e24])
@pytest.mark.parametrize("train", [True, False])
def test_weights_may_grow_and_shrink_by_any_factor_in_one_step(factor: float, train: bool) -> None:
    net = trained().train(train)
    with torch.no_grad():
        for i in LAYERS:
            original(net[i]).mul_(factor)
    net(images())
    assert norms(net) == pytest.approx([1.0] * 3, rel=1e-3)


def test_tiny_weights_resume_bit_for_bit() -> None:
    net = trained()
    with torch.no_grad():
        for i in LAYERS:
            original(net[i]).mul_(1e-13)
    net(images())
    again = sn.spectral_normalize(conv_net(seed=9))
    again.load_state_dict(net.state_dict())
    for one in (net, again):
        for _ in range(12):
            nudge(one, 0.02)
            one(images())
    assert_same(snapshot(again), snapshot(net))


# ---------------------------------------------------------------------- threads


def test_threads_that_share_a_model_in_training_wait_for_each_other() -> None:
    net = trained()
    nudge(net, 0.05)
    alone = copy.deepcopy(net)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: net(images()).detach(), range(8)))
    expected = alone(images()).detach()
    assert all(torch.equal(output, expected) for output in outputs)
    assert_same(snapshot(net), snapshot(alone))


@pytest.mark.parametrize("size", [3e-6, 1e-5, 1e-3, 1e3])
def test_half_precision_weights_whose_factor_it_cannot_hold(size: float) -> None:
    """1 / sigma is above 65,504 for the smallest."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    layer.weight.data.mul_(size)
    layer = sn.spectral_normalize(layer.half())
    assert float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2)) == pytest.approx(1.0, rel=2e-2)
