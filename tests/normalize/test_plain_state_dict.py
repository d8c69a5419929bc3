"""`plain_state_dict`: checkpoints for plain models, and for those of PyTorch's own spectral norms."""

from __future__ import annotations

import copy
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
    assert_same,
    batchnorm_net,
    conv_net,
    decoder,
    images,
    original,
    sgd,
    trained,
)
from state_dicts import each_form, each_wrapped, load, wrapped

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The weights of out are shared with other layers"),  # an Embedding
]


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
    held = twin.parametrizations.in_proj_weight.original if form == "parametrized" else twin.in_proj_weight_orig
    assert torch.equal(held, net.parametrizations.in_proj_weight.original)
    other = twin.out_proj.parametrizations.weight.original if form == "parametrized" else twin.out_proj.weight_orig
    assert torch.equal(other, original(net.out_proj))


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
