"""Checkpoints of plain models and of PyTorch's own spectral norms, into normalised models."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torchs
from torch.nn.utils import parametrize

import spectralnorm as sn
from nets import (
    LAYERS,
    assert_same,
    batchnorm_net,
    conv_net,
    decoder,
    images,
    normalisation,
    original,
    sgd,
    snapshot,
    train_step,
    trained,
)
from reference import size_free_norm
from state_dicts import each_form, each_wrapped, load, wrapped

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")


TRAINED = {"plain": "weight", "parametrized": "parametrizations.weight.original", "legacy": "weight_orig"}


# ---------------------------------------------------------------------- into a normalised model


@each_form
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_checkpoints_of_all_forms_load_strictly(form: str, train: bool, assign: bool) -> None:
    """pytorch#51800, pytorch#28594: plain, parametrised and legacy checkpoints do not load into each other."""
    source = wrapped(conv_net(seed=9), form)
    net = load(trained().train(train), source.state_dict(), assign=assign)
    for i in LAYERS:
        assert torch.equal(original(net[i]), source[i].get_parameter(TRAINED[form]))
        assert isinstance(original(net[i]), nn.Parameter)
    net(images())
    for i in LAYERS:
        assert size_free_norm(net[i]) == pytest.approx(1.0, rel=1e-3)
        assert normalisation(net[i]).turn == 0  # found from cold
    losses = [train_step(net, optimizer) for optimizer in [sgd(net, lr=0.01)] for _ in range(3)]
    assert losses[-1] < losses[0]


@each_form
def test_loading_leaves_the_checkpoint_as_it_is(form: str) -> None:
    state = wrapped(conv_net(seed=9), form).state_dict()
    before = copy.deepcopy(state)
    trained().load_state_dict(state)
    trained()[2].load_state_dict({key[2:]: value for key, value in state.items() if key.startswith("2.")})
    assert_same(state, before)


@each_form
def test_a_single_layer_and_a_model_inside_another(form: str) -> None:
    state = wrapped(conv_net(seed=9), form).state_dict()
    layer = load(trained()[5], {key[2:]: value for key, value in state.items() if key.startswith("5.")})
    outer = nn.ModuleDict({"body": nn.Sequential(trained())})
    load(outer, {f"body.0.{key}": value for key, value in state.items()})
    assert torch.equal(original(outer["body"][0][5]), original(layer))
    assert torch.equal(original(layer), state["5." + TRAINED[form]])


@each_wrapped
def test_a_linear_layer_computes_what_it_computed_under_pytorchs_rule(form: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    source = nn.Linear(6, 4)
    source = torchs.spectral_norm(source) if form == "parametrized" else nn.utils.spectral_norm(source)
    for _ in range(60):
        source(x)
    layer = load(sn.spectral_normalize(nn.Linear(6, 4)), source.state_dict())
    torch.testing.assert_close(layer.eval()(x), source.eval()(x), rtol=1e-3, atol=1e-4)


@each_wrapped
@pytest.mark.parametrize("make", [conv_net, decoder, batchnorm_net])
@pytest.mark.filterwarnings("ignore:spectral_normalize left")
def test_soft_starts_from_the_weights_that_the_model_had(form: str, make: Callable[[], nn.Module]) -> None:
    """Below the target nothing is scaled, so that the model computes just what it computed."""
    source = wrapped(make(), form)
    net = sn.spectral_normalize(make(), mode="soft", target=100.0, fold_batchnorm=True)
    load(net, source.state_dict())
    torch.testing.assert_close(net.eval()(images()), source.eval()(images()), rtol=1e-4, atol=1e-5)


@each_form
def test_a_folded_model_reads_layers_and_gammas(form: str) -> None:
    """deel-torchlip#47: the layer before a folded BatchNorm is plain, and takes the weight it had."""
    source = wrapped(batchnorm_net(seed=9), form)
    with torch.no_grad():
        source[1].weight.uniform_(-2, 2)
    net = load(sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True), source.state_dict()).eval()
    torch.testing.assert_close(net[0].weight, source.eval()[0].weight)
    assert torch.equal(original(net[1]), source[1].weight)
    for part in (net[0:2], net[3:5], net[7]):
        assert size_free_norm(part) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("train", [True, False])
def test_the_layer_before_a_folded_batchnorm_loaded_alone(train: bool) -> None:
    """Fine-tuning from a backbone."""
    net = sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True).train(train)
    net[0].load_state_dict(batchnorm_net(seed=9)[0].state_dict())
    net(images())
    assert size_free_norm(net.eval()[0:2]) == pytest.approx(1.0, rel=2e-2 if train else 1e-3)


def test_a_gamma_that_folding_has_added_is_filled_with_ones() -> None:
    """orthogonium#16: checkpoints of a BatchNorm with `affine=False` lack it."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU())

    source, net = make(), sn.spectral_normalize(make(), fold_batchnorm=True)
    source(3.0 * images())
    with torch.no_grad():
        original(net[1]).mul_(2.0)
    load(net, source.state_dict())
    assert torch.equal(original(net[1]), torch.ones(4))
    assert not original(net[1]).requires_grad
    assert size_free_norm(net.eval()[:2]) == pytest.approx(1.0, rel=1e-3)


def test_a_gamma_that_is_missing_is_named() -> None:
    net, state = sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True), batchnorm_net().state_dict()
    del state["1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing.*1\.parametrizations\.weight\.original"):
        net.load_state_dict(state)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}], ids=["one matrix", "three matrices"])
@each_form
def test_attention(form: str, sizes: dict[str, int]) -> None:
    """LipsFormer#3: the projections of attention, in one tensor or in three."""
    torch.manual_seed(0)
    source, net = nn.MultiheadAttention(8, 2, **sizes), sn.spectral_normalize(nn.MultiheadAttention(8, 2, **sizes))
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight") if sizes else ("in_proj_weight",)
    expected = [getattr(source, name).detach().clone() for name in names]
    for name in names if form != "plain" else ():
        torchs.spectral_norm(source, name) if form == "parametrized" else nn.utils.spectral_norm(source, name)
    load(net, source.state_dict())
    for name, weight in zip(names, expected, strict=True):
        assert torch.equal(net.parametrizations[name].original, weight)
        parts = getattr(net, name).detach().split(8)
        assert max(float(torch.linalg.matrix_norm(part, 2)) for part in parts) == pytest.approx(1.0, rel=1e-3)


def test_legacy_checkpoints_of_early_releases() -> None:
    """Before PyTorch 1.1: no v, but the scaled weight beside the trained one."""
    source = wrapped(conv_net(seed=9), "legacy")
    state = source.state_dict()
    for i in LAYERS:
        del state[f"{i}.weight_v"]
        state[f"{i}.weight"] = source[i].weight
    net = load(sn.spectral_normalize(conv_net()), state)
    assert torch.equal(original(net[2]), source[2].weight_orig)
    soft = load(sn.spectral_normalize(conv_net(), mode="soft", target=100.0), state)
    torch.testing.assert_close(soft.eval()(images()), source.eval()(images()), rtol=1e-2, atol=1e-3)


def test_layers_of_the_drop_in_read_them_too() -> None:
    source = wrapped(conv_net(seed=9), "parametrized")
    layer = sn.parametrizations.spectral_norm(conv_net()[0])
    load(layer, source[0].state_dict())
    assert torch.equal(original(layer), original(source[0]))
    assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-3)


def test_strict_loading_stays_strict() -> None:
    net, state = trained(), conv_net(seed=9).state_dict()
    wrong = {**state, "2.weight_g": torch.ones(3)}
    with pytest.raises(RuntimeError, match=r"Unexpected.*2\.weight_g"):
        net.load_state_dict(wrong)
    twice = {**net.state_dict(), "2.weight": torch.ones(3, 6, 3, 3)}
    with pytest.raises(RuntimeError, match=r"Unexpected.*2\.weight"):
        net.load_state_dict(twice)
    del state["2.weight"]
    with pytest.raises(RuntimeError, match=r"Missing.*2\.parametrizations\.weight\.original"):
        net.load_state_dict(state)
    state["2.weight"] = torch.ones(1, 1, 3, 3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        net.load_state_dict(state)


def test_weights_of_some_layers_only() -> None:
    """Fine-tuning from a backbone: the rest stays, with its state."""
    net, state = trained(), conv_net(seed=9).state_dict()
    net(images()), net.eval()
    before = snapshot(net[5])
    result = net.load_state_dict({"2.weight": state["2.weight"]}, strict=False)
    assert not result.unexpected_keys
    net(images())
    assert size_free_norm(net[2]) == pytest.approx(1.0, rel=1e-3)
    assert torch.equal(original(net[2]), state["2.weight"])
    assert_same(snapshot(net[5]), before)


def test_a_state_of_other_shapes_is_found_anew() -> None:
    """As after a release that tracks more, or less."""
    source, net = trained(5), trained()
    state = source.state_dict()
    for name in ("u", "w", "heights"):
        state[f"2.parametrizations.weight.0.{name}"] = state[f"2.parametrizations.weight.0.{name}"][:, :2]
    load(net, state).eval()(images())
    assert size_free_norm(net[2]) == pytest.approx(1.0, rel=1e-3)
    assert_same(snapshot(net[0]), snapshot(source[0]))


# ---------------------------------------------------------------------- the hooks that do this

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "twice": lambda net: copy.deepcopy(pickle.loads(pickle.dumps(net))),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("fold", [True, False])
def test_copies_read_checkpoints_for_themselves(duplicate: Callable[[Any], Any], fold: bool) -> None:
    """pytorch#28594."""
    make = batchnorm_net if fold else conv_net
    net = sn.spectral_normalize(make(), fold_batchnorm=fold)
    other, source = duplicate(net), wrapped(make(seed=9), "legacy")
    before = copy.deepcopy(net.state_dict())
    load(other, source.state_dict())
    last = 7 if fold else 5
    assert torch.equal(original(other[last]), source[last].weight_orig)
    assert_same(net.state_dict(), before)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(
    "removal", [sn.remove_spectral_norm, lambda net: sn.remove_spectral_norm(net, certified=True)]
)
def test_removal_takes_them_off(removal: Callable[[nn.Module], nn.Module], fold: bool) -> None:
    net = sn.spectral_normalize(batchnorm_net() if fold else conv_net(), fold_batchnorm=fold)
    other = copy.deepcopy(net)
    for _ in range(2):
        removal(net)
        assert not any(m._load_state_dict_pre_hooks or m._forward_hooks for m in net.modules())
        with pytest.raises(RuntimeError, match="weight_orig"):
            net.load_state_dict(wrapped(batchnorm_net() if fold else conv_net(), "legacy").state_dict())
        sn.spectral_normalize(net, fold_batchnorm=fold)
    load(other, wrapped(batchnorm_net() if fold else conv_net(), "legacy").state_dict())


def test_hooks_of_users_stay() -> None:
    net, seen = conv_net(), []
    net[0].register_load_state_dict_pre_hook(lambda *_: seen.append("load"))
    net[0].register_forward_hook(lambda *_: seen.append("forward"))
    sn.remove_spectral_norm(sn.spectral_normalize(net))
    net(images()), net.load_state_dict(conv_net().state_dict())
    assert seen == ["forward", "load"]


def test_after_pytorchs_own_removal_plain_checkpoints_load() -> None:
    layer = sn.spectral_normalize(nn.Linear(4, 3))
    parametrize.remove_parametrizations(layer, "weight")
    state = nn.Linear(4, 3).state_dict()
    assert torch.equal(load(layer, state).weight, state["weight"])
