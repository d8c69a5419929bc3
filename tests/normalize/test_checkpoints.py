"""Checkpoints of plain models and of PyTorch's own spectral norms, into normalised models and back."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torchs
from torch.nn.utils import parametrize

import spectralnorm as sn
from messages import check_says, complaint
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

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")


def wrapped(net: nn.Module, form: str) -> nn.Module:
    """The model with one of PyTorch's spectral norms on each layer, a few passes into training."""
    for layer in [layer for layer in net.modules() if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))]:
        if form == "parametrized":
            torchs.spectral_norm(layer)
        elif form == "legacy":
            nn.utils.spectral_norm(layer)
    with torch.no_grad():
        for _ in range(20):
            net(images())
    return net


FORMS = ("plain", "parametrized", "legacy")
TRAINED = {"plain": "weight", "parametrized": "parametrizations.weight.original", "legacy": "weight_orig"}
each_form = pytest.mark.parametrize("form", FORMS)
each_wrapped = pytest.mark.parametrize("form", FORMS[1:])


def through_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load(net: nn.Module, state: dict[str, Any], **options: Any) -> nn.Module:
    """Strictly, through a file."""
    result = net.load_state_dict(through_file(state), strict=True, **options)
    assert not result.missing_keys
    assert not result.unexpected_keys
    return net


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


# ---------------------------------------------------------------------- and back


class Tied(nn.Module):
    """Two layers with one weight, one module in two places, an Embedding tied to a decoder, and attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.words.weight
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.blocks = nn.ModuleList([nn.MultiheadAttention(4, 2, batch_first=True)] * 2)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        for block in self.blocks:
            x = x + block(x, x, x, need_weights=False)[0]
        return self.out(self.second(torch.tanh(self.first(x))))


def spoken() -> Tensor:
    return torch.arange(6).reshape(2, 3)


def quietly(net: nn.Module, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sn.spectral_normalize(net, **options)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "plain": (conv_net, images, {}),
    "soft": (conv_net, images, {"mode": "soft", "target": 0.7}),
    "folded": (batchnorm_net, images, {"fold_batchnorm": True}),
    "transposed": (decoder, images, {}),
    "tied": (Tied, spoken, {}),
    "half": (lambda: conv_net().bfloat16(), lambda: images().bfloat16(), {}),
}
each_net = pytest.mark.parametrize("kind", NETS)


def stale(kind: str) -> tuple[nn.Module, Tensor]:
    """A normalised model right after a step, and an input."""
    make, data, options = NETS[kind]
    net, x = quietly(make(), **options), data()
    optimizer = sgd(net)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).float().square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return net, x


@each_net
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("forward", [True, False])
def test_the_plain_state_dict_is_that_of_the_removed_model(kind: str, train: bool, forward: bool) -> None:
    """pytorch#51800. Bit for bit, and the model trains on as if nothing had been asked."""
    net, x = stale(kind)
    if forward:
        net(x)
    twin, removed = copy.deepcopy(net), sn.remove_spectral_norm(copy.deepcopy(net).eval())
    net.train(train)
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    assert_same(dict(sorted(sn.plain_state_dict(net).items())), dict(sorted(removed.state_dict().items())))
    assert_same(net.state_dict(), before)
    assert [module.training for module in net.modules()] == modes
    for model in (net.train(), twin.train()):
        optimizer = sgd(model)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).float().square().mean().backward()
            optimizer.step()
    assert_same(net.state_dict(), twin.state_dict())


@each_net
def test_the_plain_twin_loads_it_and_computes_the_same(kind: str) -> None:
    net, x = stale(kind)
    make = NETS[kind][0]
    twin = make()
    if kind == "tied":  # its decoder is scaled, its Embedding is not
        twin.out.weight = nn.Parameter(twin.out.weight.detach().clone())
    load(twin, sn.plain_state_dict(net))
    rtol = 1e-3 if kind == "tied" else 1e-5  # of two trackers of one weight, one decides
    torch.testing.assert_close(twin.eval()(x), net.eval()(x), rtol=rtol, atol=0.1 * rtol)


@each_wrapped
@pytest.mark.parametrize("kind", ["plain", "soft", "transposed"])
def test_pytorchs_twins_load_the_other_forms(form: str, kind: str) -> None:
    """pytorch#51800. They divide by the flattened norm, which u and v make exact from the first pass on."""
    net, _ = stale(kind)
    twin = load(wrapped(NETS[kind][0](), form), sn.plain_state_dict(net, form=form)).eval()
    for name, layer in twin.named_modules():
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            trained_tensor = original(net.get_submodule(name))
            if form == "legacy":  # computes its weight in a forward pass
                layer(torch.ones(1, *((layer.in_channels, 9, 9) if hasattr(layer, "stride") else (48,))))
            flat = layer.weight.movedim(int(isinstance(layer, nn.ConvTranspose2d)), 0).flatten(1)
            assert float(torch.linalg.matrix_norm(flat.detach(), 2)) == pytest.approx(1.0, rel=1e-5)
            cosine = torch.cosine_similarity(layer.weight.flatten(), trained_tensor.flatten(), dim=0)
            assert float(cosine.detach()) == pytest.approx(1.0, rel=1e-5)


@each_wrapped
def test_linear_layers_of_target_one_compute_the_same_there(form: str) -> None:
    torch.manual_seed(0)
    net = sn.spectral_normalize(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))).eval()
    twin, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(3, 5)
    for i in (0, 2):
        torchs.spectral_norm(twin[i]) if form == "parametrized" else nn.utils.spectral_norm(twin[i])
    load(twin, sn.plain_state_dict(net, form=form))
    torch.testing.assert_close(twin.eval()(x), net(x), rtol=1e-3, atol=1e-4)


@each_wrapped
def test_attention_in_the_other_forms(form: str) -> None:
    torch.manual_seed(0)
    net, twin = sn.spectral_normalize(nn.MultiheadAttention(8, 2)), nn.MultiheadAttention(8, 2)
    wrap = torchs.spectral_norm if form == "parametrized" else nn.utils.spectral_norm
    wrap(twin, "in_proj_weight"), wrap(twin.out_proj)
    load(twin, sn.plain_state_dict(net, form=form))


@each_wrapped
def test_folded_pairs_are_plain_in_every_form(form: str) -> None:
    """PyTorch's rule before a BatchNorm constrains nothing: the twin leaves those layers alone."""
    net, x = stale("folded")
    twin = batchnorm_net()
    torchs.spectral_norm(twin[7]) if form == "parametrized" else nn.utils.spectral_norm(twin[7])
    load(twin, sn.plain_state_dict(net, form=form))
    torch.testing.assert_close(twin.eval()(x), net.eval()(x), rtol=1e-3, atol=1e-4)


@each_form
@pytest.mark.parametrize("kind", ["plain", "folded"])
def test_round_trips(form: str, kind: str) -> None:
    """Into another normalised model: the same function; but for the plain form, the trained tensors too."""
    net, x = stale(kind)
    make, _, options = NETS[kind]
    other = load(sn.spectral_normalize(make(seed=9), **options), sn.plain_state_dict(net, form=form))
    torch.testing.assert_close(other.eval()(x), sn.refresh(net).eval()(x), rtol=1e-2, atol=1e-3)
    if form != "plain":
        last = 7 if kind == "folded" else 5
        assert torch.equal(original(other[last]), original(net[last]))


def test_what_is_not_normalised_is_the_models_own() -> None:
    net = trained()
    state = sn.plain_state_dict(net)
    assert state["2.bias"].data_ptr() == net[2].bias.data_ptr()
    with torch.no_grad():
        state["2.weight"].zero_()
    assert net[2].weight.any()
    assert not any(value.requires_grad for value in state.values())


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("form", ["torch", "", None, "Plain"])
def test_unknown_forms(form: Any) -> None:
    message = complaint(ValueError, lambda: sn.plain_state_dict(trained(), form=form))
    check_says(message, f"form={form!r}", "plain, parametrized, legacy")


def test_nothing_is_normalised() -> None:
    message = complaint(ValueError, lambda: sn.plain_state_dict(conv_net()))
    check_says(message, "Sequential carries no spectral normalisation", "state_dict() is plain")


@pytest.mark.parametrize("thing", [torch.ones(3), "net", None])
def test_not_a_module(thing: Any) -> None:
    check_says(complaint(TypeError, lambda: sn.plain_state_dict(thing)), "torch.nn.Module", type(thing).__name__)


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_further_parametrizations_are_named() -> None:
    net = trained()
    parametrize.register_parametrization(net[5], "weight", Double())
    before = copy.deepcopy(net.state_dict())
    check_says(complaint(ValueError, lambda: sn.plain_state_dict(net)), "5.weight", "further", "Remove the others")
    assert_same(net.state_dict(), before)
    assert not any(module._state_dict_hooks for module in net.modules())
