"""The state moves once per change of the weights, in training only, and nothing else ever moves it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import spectralnorm as sn
from nets import (
    LAYERS,
    assert_same,
    conv_net,
    images,
    normalisation,
    nudge,
    original,
    sgd,
    snapshot,
    train_step,
    trained,
)
from reference import size_free_norm


def turns(net: nn.Module) -> list[int]:
    return [normalisation(net[i]).turn for i in LAYERS]


def gradients(net: nn.Module) -> list[Tensor]:
    """Those of the parameters since the last call."""
    grads = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    return grads


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize("train", [True, False])
def test_reading_a_weight_again_changes_nothing(train: bool) -> None:
    net = trained().train(train)
    first = net[2].weight
    before = snapshot(net)
    for _ in range(3):
        assert torch.equal(net[2].weight, first)
        assert torch.equal(net[2](torch.ones(1, 6, 8, 8)), net[2](torch.ones(1, 6, 8, 8)))
    assert_same(snapshot(net), before)


def test_the_state_moves_once_per_change_of_the_weights() -> None:
    net = sn.spectral_normalize(conv_net())
    net(images())
    assert turns(net) == [0, 0, 0]  # registration has converged it
    optimizer = sgd(net)
    for expected in (1, 2, 3):
        train_step(net, optimizer)
        for _ in range(3):
            net(images())
            _ = net[0].weight, net[5].weight
        assert turns(net) == [expected] * 3


def test_one_changed_layer_moves_alone() -> None:
    net = sn.spectral_normalize(conv_net())
    net(images())
    before = snapshot(net[0]), snapshot(net[5])
    with torch.no_grad():
        original(net[2]).mul_(1.5)
    net(images())
    assert turns(net) == [0, 1, 0]
    assert_same(snapshot(net[0]), before[0])
    assert_same(snapshot(net[5]), before[1])


def test_layers_in_eval_inside_a_model_in_training_stand_still() -> None:
    net = trained()
    net[2].eval()
    before, start = snapshot(net[2]), turns(net)
    nudge(net, 0.05)
    net(images())
    assert turns(net) == [start[0] + 1, start[1], start[2] + 1]
    assert_same(snapshot(net[2]), before)


def test_cached_parametrizations_give_the_same_outputs() -> None:
    net = trained()
    expected = net(images())
    with parametrize.cached():
        assert torch.equal(net(images()), expected)
        assert net[0].weight is net[0].weight


# ---------------------------------------------------------------------- forward and backward in unusual orders


def test_two_forward_passes_before_one_backward() -> None:
    """pytorch#8160, #11476, #12671, #13350, #22095: a GAN's discriminator sees two batches a step."""
    net = trained()
    (net(images()).sum() + net(images()).sum()).backward()
    two = gradients(net)
    (2 * net(images()).sum()).backward()
    for one, other in zip(two, gradients(net), strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_batch_does_not_spoil_the_graph_of_the_first() -> None:
    """pytorch#8160: "one of the variables needed for gradient computation has been modified"."""
    net = trained()
    net(images(1)).square().sum().backward()
    expected = gradients(net)
    first, second = net(images(1)).square().sum(), net(images(2)).square().sum()
    second.backward()
    gradients(net)
    first.backward()
    assert all(map(torch.equal, gradients(net), expected))


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("forward_between", [False, True])
def test_backward_step_backward(mode: str, forward_between: bool) -> None:
    """pytorch#55368, pytorch#62293, pytorch#66363: stepping between two backward passes of one graph."""
    net = trained(mode=mode, target=0.5)
    optimizer = sgd(net)
    loss = net[0](images()).square().sum()  # nothing but the normalised weight stands in the way
    loss.backward(retain_graph=True)
    first = original(net[0]).grad.clone()
    optimizer.step()
    if forward_between:
        net(images())
    optimizer.zero_grad()
    loss.backward()
    assert torch.equal(original(net[0]).grad, first)


def test_backward_step_backward_through_a_whole_model() -> None:
    """pytorch#55368: every layer's saved tensors survive the step."""
    net = trained()
    optimizer = sgd(net)
    loss = net(images()).square().mean()
    loss.backward(retain_graph=True)
    first = [parameter.grad.clone() for parameter in net.parameters()]
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    assert all(map(torch.equal, gradients(net), first))


# ---------------------------------------------------------------------- eval


def test_eval_never_moves_the_state() -> None:
    """pytorch#8208, pytorch#51800; whatever happens to the weights."""
    net = trained().eval()
    before = snapshot(net)
    net(images()).sum().backward()
    assert_same(snapshot(net), before)
    nudge(net, 0.05)
    net(images())
    net(images())
    assert_same(snapshot(net), before)


@pytest.mark.parametrize("size", [0.02, 0.3])
def test_weights_changed_in_eval_are_normalised_all_the_same(size: float) -> None:
    """As after a step that no forward pass in training followed: the norm is found from the state, unstored."""
    net = sn.spectral_normalize(conv_net()).eval()
    before = [net[i].weight for i in LAYERS]
    nudge(net, size)
    for i, weight in zip(LAYERS, before, strict=True):
        assert not torch.equal(net[i].weight, weight)
        assert size_free_norm(net[i]) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_weights_scaled_in_eval_are_scaled_back(factor: float) -> None:
    net = sn.spectral_normalize(conv_net()).eval()
    expected = net(images())
    with torch.no_grad():
        for i in LAYERS:
            original(net[i]).mul_(factor)
    torch.testing.assert_close(net(images()), expected)


def test_switching_between_train_and_eval_changes_nothing() -> None:
    """pytorch#12737, pytorch#51800: outputs jumped when a model was switched."""
    net = trained()
    expected = net(images())
    before = snapshot(net)
    for train in (False, True, False, True):
        assert torch.equal(net.train(train)(images()), expected)
    assert_same(snapshot(net), before)


def test_evaluating_between_steps_leaves_training_as_it_is() -> None:
    """A run with an evaluation after every step ends bit for bit where one without ends."""
    ends = []
    for evaluate in (False, True):
        net = sn.spectral_normalize(conv_net())
        optimizer = sgd(net)
        for _ in range(4):
            train_step(net, optimizer)
            if evaluate:
                with torch.no_grad():
                    net.eval()(images(2))
                net.train()
        ends.append(net.state_dict())
    assert_same(*ends)


# ---------------------------------------------------------------------- without gradients


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("stale", [True, False])
def test_forward_without_gradients(guard: Callable[[], Any], train: bool, stale: bool) -> None:
    """The outputs are the same with and without gradients, and training goes on afterwards."""
    net, twin = (trained() for _ in range(2))
    if not stale:
        net(images()), twin(images())
    net.train(train), twin.train(train)
    with guard():
        output = net(images())
    assert torch.equal(output.clone(), twin(images()))
    net.train(), twin.train()
    optimizers = sgd(net), sgd(twin)
    for _ in range(2):
        assert train_step(net, optimizers[0]) == train_step(twin, optimizers[1])
    assert_same(snapshot(net), snapshot(twin))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_registration_without_gradients(guard: Callable[[], Any]) -> None:
    net = conv_net()
    with guard():
        sn.spectral_normalize(net)
    optimizer = sgd(net)
    losses = [train_step(net, optimizer) for _ in range(3)]
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------------- determinism


def test_two_identical_runs_agree_bit_for_bit() -> None:
    assert_same(trained(6).state_dict(), trained(6).state_dict())


def test_global_random_states_stay_as_they_are() -> None:
    """Adding the normalisation to a script changes nothing else in it."""
    net = conv_net()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    sn.spectral_normalize(net)
    optimizer = sgd(net)
    for _ in range(3):
        train_step(net, optimizer)
    sn.refresh(net.eval())
    copy.deepcopy(net)(images())
    sn.remove_spectral_norm(net)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_the_global_seed_does_not_matter() -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(trained().state_dict())
    assert_same(*states)


def test_layers_of_a_model_move_as_they_would_alone() -> None:
    """Sweeping layers together is a matter of speed only."""
    net = sn.spectral_normalize(conv_net(), target=2.0)
    alone = conv_net()
    for place, i in enumerate(LAYERS):
        sn.spectral_normalize(alone[i], target=2.0)
        normalisation(alone[i]).place = place  # surveys of large layers take turns by it
    optimizers = sgd(net), sgd(alone)
    for _ in range(5):
        assert train_step(net, optimizers[0]) == pytest.approx(train_step(alone, optimizers[1]), rel=1e-4)
    for one, other in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_weights_that_were_not_finite_for_a_while_are_held_again(bad: float) -> None:
    net = sn.spectral_normalize(conv_net())
    kept = [original(net[i]).detach().clone() for i in LAYERS]
    for weights in (bad, None):
        for _ in range(12):
            with torch.no_grad():
                for i, before in zip(LAYERS, kept, strict=True):
                    original(net[i]).copy_(before) if weights is None else original(net[i]).fill_(weights)
            net(images())
    assert [size_free_norm(net[i]) for i in LAYERS] == pytest.approx([1.0] * 3, rel=1e-2)


def test_a_state_that_is_not_finite_is_found_anew_when_it_is_loaded() -> None:
    state = trained().state_dict()
    for name, value in state.items():
        if name.endswith((".u", ".v", ".heights", ".grid")):
            value.fill_(float("nan"))
    net = sn.spectral_normalize(conv_net(seed=9))
    net.load_state_dict(state)
    for mode in (True, False):
        assert [size_free_norm(net.train(mode)[i]) for i in LAYERS] == pytest.approx([1.0] * 3, rel=1e-3)
