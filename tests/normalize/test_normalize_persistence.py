"""Copies, checkpoints and replaced weights: the state goes with the weights, or is found anew."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import spectralnorm as sn
from nets import (
    LAYERS,
    assert_same,
    conv_net,
    images,
    normalisation,
    original,
    sgd,
    snapshot,
    train_step,
    trained,
)
from reference import size_free_norm

STATE = ("u", "v", "w", "heights", "_extra_state")


def assert_normalised(net: nn.Module, rel: float = 1e-3) -> None:
    for i in LAYERS:
        assert size_free_norm(net[i]) == pytest.approx(1.0, rel=rel)


def assert_train_alike(one: nn.Module, other: nn.Module, steps: int = 4) -> None:
    """The next steps of both agree bit for bit, losses and states."""
    optimizers = sgd(one.train()), sgd(other.train())
    for _ in range(steps):
        assert train_step(one, optimizers[0]) == train_step(other, optimizers[1])
    assert_same(one.state_dict(), other.state_dict())


def scale(net: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for i in LAYERS:
            original(net[i]).mul_(factor)


def without_state(net: nn.Module) -> dict[str, Any]:
    """The state dict, weights and biases only."""
    return {name: value for name, value in net.state_dict().items() if name.rsplit(".", 1)[1] not in STATE}


def through_torch(value: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": lambda net: through_torch(net, weights_only=False),
}
each_copy = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
moments = pytest.mark.parametrize("forward", [True, False], ids=["after a forward pass", "after a step"])

# ---------------------------------------------------------------------- state dicts


def reloaded(net: nn.Module, **options: Any) -> nn.Module:
    """Another model with its state dict, which has been through a file."""
    other = sn.spectral_normalize(conv_net(seed=9))
    result = other.load_state_dict(through_torch(net.state_dict(), weights_only=True), **options)
    assert not result.missing_keys
    assert not result.unexpected_keys
    return other


@moments
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_brings_everything_back_bit_for_bit(forward: bool, assign: bool) -> None:
    net = trained(5)
    if forward:
        net(images())
    other = reloaded(net, assign=assign)
    assert_same(snapshot(other), snapshot(net))
    assert torch.equal(other.eval()(images()), net.eval()(images()))
    assert_train_alike(other, net)


@moments
def test_training_resumes_bit_for_bit(forward: bool) -> None:
    """A checkpoint is mostly written right after a step: the state must know that it lags behind."""
    net = trained(5)
    if forward:
        net(images())
    assert_train_alike(reloaded(net), net)


@pytest.mark.parametrize("train", [True, False])
def test_weights_changed_between_loading_and_their_first_use(train: bool) -> None:
    net = sn.spectral_normalize(conv_net())
    net(images())
    other = reloaded(net).train(train)
    scale(other, 3.0)
    other(images())
    assert_normalised(other)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("assign", [False, True])
def test_weights_without_state_are_normalised_right_after_loading(train: bool, assign: bool) -> None:
    source, net = trained(5), trained().train(train)
    net.load_state_dict(without_state(source), strict=True, assign=assign)
    assert torch.equal(original(net[2]), original(source[2]))
    net(images())
    assert_normalised(net)


def test_a_state_dict_holds_copies_of_what_training_changes() -> None:
    net = trained()
    saved = copy.deepcopy(net.state_dict())
    for _ in range(3):
        train_step(net, sgd(net))
    net.load_state_dict(saved)
    assert_same(net.state_dict(), saved)


def test_strict_loading_still_names_missing_weights() -> None:
    net = trained()
    partial = net.state_dict()
    del partial["2.parametrizations.weight.original"]
    with pytest.raises(RuntimeError, match=r"2\.parametrizations\.weight\.original"):
        net.load_state_dict(partial)


def test_the_state_of_one_layer_may_be_missing() -> None:
    source, net = trained(5), trained()
    partial = source.state_dict()
    del partial["2.parametrizations.weight.0.u"]
    net.load_state_dict(partial)
    net.eval()(images())
    assert size_free_norm(net[2]) == pytest.approx(1.0, rel=1e-3)
    assert_same(snapshot(net[0]), snapshot(source[0]))


def test_loading_into_a_removed_model() -> None:
    """pytorch#51800: what is baked in is a plain checkpoint."""
    net = trained().eval()
    expected = net(images())
    plain = conv_net(seed=9).eval()
    plain.load_state_dict(sn.remove_spectral_norm(net).state_dict())
    assert torch.equal(plain(images()), expected)


# ---------------------------------------------------------------------- copies


@moments
@each_copy
def test_copies_go_on_as_the_original_would(duplicate: Callable[[Any], Any], forward: bool) -> None:
    """pytorch#28594, deel-torchlip#19; plain `parametrize` refuses to pickle."""
    net = trained()
    if forward:
        net(images())
    other = duplicate(net)
    assert isinstance(other[0], nn.Conv2d)
    assert_same(other.state_dict(), net.state_dict())
    assert torch.equal(other.eval()(images()), net.eval()(images()))
    assert_train_alike(other, net)


@each_copy
@pytest.mark.parametrize("which", ["copy", "original"])
def test_training_one_leaves_the_other_alone(duplicate: Callable[[Any], Any], which: str) -> None:
    net = trained()
    other = duplicate(net)
    moved, still = (other, net) if which == "copy" else (net, other)
    still.eval()
    before, output = snapshot(still), still(images())
    optimizer = sgd(moved)
    for _ in range(4):
        train_step(moved, optimizer)
    still.train()  # as the moving one was all along: states are moved for whole models
    moved(images())
    assert_same(snapshot(still), before)
    assert torch.equal(still.eval()(images()), output)
    assert normalisation(moved[2]).turn == normalisation(still[2]).turn + 5


@each_copy
@pytest.mark.parametrize("which", ["copy", "original"])
def test_removal_from_one_leaves_the_other_alone(duplicate: Callable[[Any], Any], which: str) -> None:
    """pytorch#28594: copies made by `parametrize` share one class, and removal breaks the other."""
    net = trained().eval()
    expected = net(images())
    other = duplicate(net)
    plain, kept = (other, net) if which == "copy" else (net, other)
    sn.remove_spectral_norm(plain)
    assert type(plain[0]) is nn.Conv2d
    for model in (plain, kept):
        assert torch.equal(model(images()), expected)
    optimizer = sgd(kept.train())
    for _ in range(2):
        train_step(kept, optimizer)
    assert torch.equal(plain(images()), expected)
    sn.remove_spectral_norm(kept)


def test_copies_of_copies() -> None:
    net = trained()
    last = through_pickle(copy.deepcopy(through_torch(net, weights_only=False)))
    assert_train_alike(last, net)
    assert sorted(sn.remove_spectral_norm(last).state_dict()) == sorted(conv_net().state_dict())


@each_copy
def test_a_copied_layer_brings_no_other_layer_along(duplicate: Callable[[Any], Any]) -> None:
    net = sn.spectral_normalize(nn.Sequential(nn.Linear(4, 4), nn.Linear(1000, 300)))
    x = torch.ones(2, 4)
    net[0](x), net[1](torch.ones(2, 1000))
    assert len(pickle.dumps(net[0])) < 20_000
    layer = duplicate(net[0])
    before = snapshot(net)
    with torch.no_grad():
        original(net[1]).mul_(2.0)
    layer(x)
    with torch.no_grad():
        original(layer).mul_(2.0)
    layer(x)
    assert_same(snapshot(net), before)
    assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-3)


@each_copy
@pytest.mark.parametrize("train", [True, False])
def test_a_copy_changed_before_its_first_use(duplicate: Callable[[Any], Any], train: bool) -> None:
    """As the target networks of reinforcement learning are, and averages of weights."""
    net = sn.spectral_normalize(conv_net())
    net(images())
    other = duplicate(net).train(train)
    scale(other, 3.0)
    other(images())
    assert_normalised(other)


@each_copy
def test_a_copy_with_shuffled_weights_moves(duplicate: Callable[[Any], Any]) -> None:
    """The same numbers in another order are a change like any other."""
    net = sn.spectral_normalize(conv_net())
    net(images())
    other = duplicate(net)
    with torch.no_grad():
        original(other[2]).copy_(original(net[2]).flatten().flip(0).view_as(original(net[2])))
    other(images())
    assert normalisation(other[2]).turn == normalisation(net[2]).turn + 1


def test_a_copied_layer_can_take_another_place() -> None:
    net = trained()
    net[2] = copy.deepcopy(net[2])
    optimizer = sgd(net)
    for _ in range(2):
        train_step(net, optimizer)
    net(images())
    assert [normalisation(net[i]).turn for i in LAYERS] == [normalisation(net[0]).turn] * 3


# ---------------------------------------------------------------------- averaged models


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_of_the_weights_is_normalised(use_buffers: bool) -> None:
    """pytorch#28594, deel-torchlip#19: keeping an EMA must not disturb the model, and is itself normalised."""
    net, twin = (sn.spectral_normalize(conv_net()) for _ in range(2))
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    optimizers = sgd(net, lr=0.003, momentum=0.0), sgd(twin, lr=0.003, momentum=0.0)
    for turn in range(10):
        assert train_step(net, optimizers[0], seed=turn) == train_step(twin, optimizers[1], seed=turn)
        ema.update_parameters(net)
    assert_same(snapshot(net), snapshot(twin))
    before = snapshot(net)
    ema.eval()(images())
    assert_normalised(ema.module, rel=0.03)
    sn.refresh(ema)(images())
    assert_normalised(ema.module)
    assert_same(snapshot(net), before)


# ---------------------------------------------------------------------- replaced weights


@pytest.mark.parametrize("train", [True, False])
def test_an_assigned_weight_is_normalised_from_a_fresh_state(train: bool) -> None:
    net = trained().train(train)
    new = conv_net(seed=9)[2].weight.detach().clone()
    net[2].weight = new
    assert torch.equal(original(net[2]), new)
    assert isinstance(original(net[2]), nn.Parameter)
    assert size_free_norm(net[2]) == pytest.approx(1.0, rel=1e-3)
    assert normalisation(net[2]).turn == 0


def test_an_assigned_weight_trains() -> None:
    net = trained()
    net[2].weight = conv_net(seed=9)[2].weight.detach().clone()
    twin = copy.deepcopy(net)
    assert_train_alike(twin, net)


def test_assigning_its_own_weight_keeps_the_norm() -> None:
    net = trained()
    net[2].weight = net[2].weight.detach()
    assert size_free_norm(net[2]) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("train", [True, False])
def test_refresh_after_writes_that_cannot_be_seen(train: bool) -> None:
    net = trained().train(train)
    for i in LAYERS:
        original(net[i]).data.copy_(conv_net(seed=9)[i].weight.data).mul_(7.0)
    assert sn.refresh(net) is net
    before = snapshot(net)
    net(images())
    assert_normalised(net)
    assert_same(snapshot(net), before)
    assert net.training == train


def test_refresh_without_anything_to_refresh() -> None:
    with pytest.raises(ValueError, match="Sequential carries no spectral normalisation"):
        sn.refresh(conv_net())


def test_initialisation_after_normalising() -> None:
    """`nn.init` on the trained tensor is a change of the weights like any other."""
    net = sn.spectral_normalize(conv_net())
    for i in LAYERS:
        nn.init.constant_(original(net[i]), 0.3)
    net(images())
    assert_normalised(sn.refresh(net))
