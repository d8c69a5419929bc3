"""Copies, checkpoints and removal of models with folded BatchNorms."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import spectralnorm as sn
from nets import (
    assert_same,
    batchnorm_net,
    folded_net,
    folded_norms,
    images,
    original,
    sgd,
    train_folded,
    trained_folded,
)

# ---------------------------------------------------------------------- copies and checkpoints


def through_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": through_torch,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("forward", [True, False])
def test_copies_go_on_as_the_original_would(duplicate: Callable[[Any], Any], forward: bool) -> None:
    """pytorch#28594, deel-torchlip#19: a copy's BatchNorm goes by the copy's layer."""
    net = trained_folded()
    if forward:
        net(images())
    other = duplicate(net)
    assert_same(other.state_dict(), net.state_dict())
    assert train_folded(other, sgd(other)) == train_folded(net, sgd(net))
    assert_same(other.state_dict(), net.state_dict())
    with torch.no_grad():
        net[0].weight.mul_(100.0)
    assert folded_norms(other.eval()) == pytest.approx([1.0] * 3, rel=5e-2)


@pytest.mark.parametrize("which", [0, 1])
def test_removal_from_a_copy_leaves_the_other_alone(which: int) -> None:
    """pytorch#28594."""
    nets = [trained_folded().eval()]
    nets.append(copy.deepcopy(nets[0]))
    expected = nets[0](images())
    sn.remove_spectral_norm(nets[which])
    for net in nets:
        assert torch.equal(net(images()), expected)
    train_folded(nets[1 - which].train(), sgd(nets[1 - which]))
    assert torch.equal(nets[which](images()), expected)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_a_state_dict_brings_everything_back_bit_for_bit(forward: bool, assign: bool) -> None:
    net = trained_folded()
    if forward:
        net(images())
    other = sn.spectral_normalize(batchnorm_net(seed=5), fold_batchnorm=True)
    other.load_state_dict(through_torch(net.state_dict()), assign=assign)
    assert_same(other.state_dict(), net.state_dict())
    assert train_folded(other, sgd(other)) == train_folded(net, sgd(net))
    assert_same(other.state_dict(), net.state_dict())


def test_an_average_of_the_weights_is_normalised() -> None:
    """pytorch#28594, deel-torchlip#19."""
    net = folded_net()
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = sgd(net, lr=0.003, momentum=0.0)
    for _ in range(5):
        train_folded(net, optimizer, 2)
        ema.update_parameters(net)
    update_bn([images(seed) for seed in range(10)], ema)
    assert folded_norms(sn.refresh(ema).module.eval()) == pytest.approx([1.0] * 3, rel=1e-3)


# ---------------------------------------------------------------------- baking it in


def test_removal_gives_a_plain_model_with_the_same_outputs() -> None:
    net = trained_folded().eval()
    expected, gamma = net(images()), original(net[1])
    sn.remove_spectral_norm(net)
    assert torch.equal(net(images()), expected)
    assert [type(module) for module in net.modules()] == [type(module) for module in batchnorm_net().modules()]
    assert sorted(net.state_dict()) == sorted(batchnorm_net().state_dict())
    assert net[1].weight is gamma
    assert not any(module._forward_hooks or module._load_state_dict_pre_hooks for module in net.modules())
    train_folded(net.train(), sgd(net))


def test_certified_removal_from_a_whole_model() -> None:
    """deel-lip#93, LNets#6."""
    net = sn.remove_spectral_norm(trained_folded().eval(), certified=True)
    for part in (net[0:2], net[3:5], net[7]):
        assert sn.spectral_norm(part, method=sn.Certified()).upper <= 1.0
