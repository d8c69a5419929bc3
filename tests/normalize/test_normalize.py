"""Every layer gets the norm asked for: single layers, whole models; and baking it in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import spectralnorm as sn
from cases import CASES, Case
from nets import LAYERS, conv_net, decoder, images, normalisation, original, sgd, train_step
from reference import size_free_norm

SLOW = (  # the reference takes a third of a second or more
    "conv1d-64-channels",
    "conv2d-3x3-64-to-8",
    "conv2d-depthwise-64",
    "conv3d-3x3x3",
    "conv3d-stride",
    "conv3d-circular",
)
KINDS = (
    "linear-wide",
    "linear-tall",
    "conv1d-k4-same-asymmetric",
    "conv1d-stride3-dilation2",
    "conv1d-depthwise",
    "conv1d-circular",
    "conv2d-1x1",
    "conv2d-3x3-same",
    "conv2d-stride2",
    "conv2d-groups",
    "conv2d-depthwise",
    "conv2d-dilation2",
    "conv2d-stride-groups",
    "conv2d-circular-5x3-same",
    "conv2d-circular-stride-divides",
    "conv2d-reflect-smooth",
    "conv3d-2x3x1",
    "tconv1d-output-padding",
    "tconv2d-3x3-same",
    "tconv2d-depthwise-multiplier",
)
PLAIN = [c for c in CASES if str(c) not in (*SLOW, *KINDS) and "zero" not in str(c)]
each_kind = pytest.mark.parametrize("case", [c for c in CASES if str(c) in KINDS], ids=str)
each_mode = pytest.mark.parametrize("mode", ["hard", "soft"])


def scaled_to(case: Case, norm: float) -> nn.Module:
    """The layer of a case with its weight scaled to this norm."""
    layer = case.layer()
    with torch.no_grad():
        layer.weight.mul_(norm / case.size_free_norm())
    return layer


# ---------------------------------------------------------------------- one layer


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_every_layer_gets_the_norm_asked_for(case: Case) -> None:
    """pytorch#99149, pytorch#13505: the norm of the convolution, not of its flattened kernel."""
    layer = sn.remove_spectral_norm(sn.spectral_normalize(case.layer()))
    assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-3)


@each_kind
@each_mode
@pytest.mark.parametrize("target", [1.0, 0.5, 3.0])
def test_every_target_is_reached(case: Case, mode: str, target: float) -> None:
    """The weight is multiplied by one number, which makes its norm the target."""
    layer = scaled_to(case, 2.0 * target)
    weight = layer.weight.detach().clone()
    sn.remove_spectral_norm(sn.spectral_normalize(layer, target=target, mode=mode))
    at = weight.abs().argmax()
    factor = float(layer.weight.detach().flatten()[at] / weight.flatten()[at])
    torch.testing.assert_close(layer.weight.detach(), factor * weight)
    assert 2.0 * target * factor == pytest.approx(target, rel=1e-3)


@each_kind
def test_soft_leaves_a_layer_below_the_target_bit_for_bit(case: Case) -> None:
    layer = scaled_to(case, 0.9)
    weight = layer.weight.detach().clone()
    sn.spectral_normalize(layer, mode="soft")
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.eval().weight, weight)
    assert torch.equal(sn.remove_spectral_norm(layer).weight, weight)


@each_kind
def test_hard_raises_a_layer_below_the_target(case: Case) -> None:
    layer = sn.spectral_normalize(scaled_to(case, 0.01))
    ratio = layer.weight.detach().norm() / original(layer).detach().norm()
    assert float(ratio) == pytest.approx(100.0, rel=1e-3)


def test_a_whole_number_is_a_target() -> None:
    layer = sn.spectral_normalize(nn.Linear(5, 4), target=2)
    assert size_free_norm(layer) == pytest.approx(2.0, rel=1e-3)


def test_the_trained_tensor_is_the_parameter_it_was() -> None:
    layer = nn.Conv2d(3, 4, 3)
    parameter, value = layer.weight, layer.weight.detach().clone()
    assert sn.spectral_normalize(layer) is layer
    assert original(layer) is parameter
    assert torch.equal(parameter, value)
    assert isinstance(layer, nn.Conv2d)


# ---------------------------------------------------------------------- whole models


class Nested(nn.Module):
    """Blocks in blocks, one module used twice, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()), nn.ModuleDict())
        self.body[1]["again"] = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.same = self.body[1]["again"]
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.body[1]["again"](self.body[0](x)))
        return self.second(self.first(x.mean((2, 3))))


def test_nested_shared_and_tied_layers() -> None:
    model = Nested()
    shared, tied = model.same, model.first.weight
    assert sn.spectral_normalize(model) is model
    for layer in (model.body[0][0], model.same, model.first, model.second):
        assert len(layer.parametrizations.weight) == 1
        assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-3)
    assert model.same is model.body[1]["again"] is shared
    assert original(model.first) is original(model.second) is tied


def test_shared_and_tied_layers_train() -> None:
    model = sn.spectral_normalize(Nested())
    x, layers = torch.ones(2, 2, 5, 5), (model.same, model.first, model.second)
    model(x)
    start = [normalisation(layer).turn for layer in layers]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        (model(x) - torch.arange(4.0)).square().mean().backward()
        optimizer.step()
    model(x)
    assert original(model.first) is original(model.second)
    assert [normalisation(layer).turn for layer in layers] == [turn + 10 for turn in start]
    for layer in layers:
        assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-2)


def test_tied_layers_stay_tied_and_normalised_when_baked() -> None:
    model = sn.spectral_normalize(Nested()).eval()
    x = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    before = model(x)
    sn.remove_spectral_norm(model)
    assert model.first.weight is model.second.weight
    torch.testing.assert_close(model(x), before)
    assert size_free_norm(model.first) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("again", ["the model", "a layer", "a model around it"])
def test_a_second_call_raises(again: str) -> None:
    net = sn.spectral_normalize(conv_net())
    module = {"the model": net, "a layer": net[2], "a model around it": nn.Sequential(net, nn.Linear(5, 5))}[again]
    with pytest.raises(ValueError, match=r"already carries a spectral normalisation.*remove_spectral_norm"):
        sn.spectral_normalize(module)
    assert all(len(net[i].parametrizations.weight) == 1 for i in LAYERS)


def test_other_modules_with_weights_are_named_in_one_warning() -> None:
    """deel-torchlip#47: a layer that is left out is never left out silently."""
    others = {
        "norm": nn.BatchNorm2d(3),
        "untracked": nn.BatchNorm2d(3, track_running_stats=False),
        "memory": nn.LSTM(3, 4),
        "words": nn.Embedding(7, 3),
    }
    model = nn.ModuleDict({"known": nn.Linear(3, 3), "act": nn.ReLU(), "plain": nn.BatchNorm2d(3, affine=False)})
    model.update(others)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="left the weights of") as record:
        sn.spectral_normalize(model)
    assert len(record) == 1
    message = str(record[0].message)
    for name, module in others.items():
        assert f"{name} ({type(module).__name__})" in message
    assert not any(f"{name} (" in message for name in ("known", "act", "plain"))
    assert record[0].filename == __file__
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != "known.weight")


def test_a_batchnorm_between_layers_is_left_as_it_is_and_named() -> None:
    with pytest.warns(UserWarning, match=r"left the weights of 1 \(BatchNorm2d\) as they are") as record:
        net = sn.spectral_normalize(decoder())
    assert len(record) == 1
    for i in (0, 3):
        assert size_free_norm(net[i]) == pytest.approx(1.0, rel=1e-3)
    assert not parametrize.is_parametrized(net[1])
    sn.remove_spectral_norm(net)
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


class Lookalike(nn.Module):
    """A layer of a user's own, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def test_a_registered_layer_type_is_normalised() -> None:
    sn.register_operator(Lookalike)(lambda layer: sn.as_operator(layer.weight))
    model = sn.spectral_normalize(nn.Sequential(Lookalike(), nn.ReLU()))
    assert size_free_norm(model[0]) == pytest.approx(1.0, rel=1e-3)


# ---------------------------------------------------------------------- zero kernels


ZERO_LAYERS = {
    "linear": lambda: nn.Linear(6, 5),
    "conv": lambda: nn.Conv2d(2, 3, 3, padding=1),
    "strided": lambda: nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2),
}


def zero_layer(kind: str) -> tuple[nn.Module, Tensor]:
    """A layer of zeros, and inputs for it."""
    torch.manual_seed(0)
    layer = ZERO_LAYERS[kind]()
    nn.init.zeros_(layer.weight)
    return layer, torch.randn(8, 6) if kind == "linear" else torch.randn(8, 2, 6, 6)


@each_mode
@pytest.mark.parametrize("kind", ZERO_LAYERS)
def test_zero_stays_zero_and_has_a_finite_gradient(kind: str, mode: str) -> None:
    """pytorch#20192: NaN in PyTorch's spectral_norm."""
    layer, x = zero_layer(kind)
    sn.spectral_normalize(layer, mode=mode)
    layer(x).square().sum().backward()
    assert not layer.weight.any()
    assert original(layer).grad.isfinite().all()
    assert original(layer).grad.any()
    assert not layer.eval().weight.any()
    assert all(buffer.isfinite().all() for buffer in layer.buffers())


@pytest.mark.parametrize("kind", ZERO_LAYERS)
def test_zero_becomes_normalised_once_training_has_moved_it(kind: str) -> None:
    layer, x = zero_layer(kind)
    sn.spectral_normalize(layer)
    goal = torch.randn(layer(x).shape)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (layer(x) - goal).square().mean().backward()
        optimizer.step()
    layer(x)
    assert original(layer).any()
    assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-2)


# ---------------------------------------------------------------------- baking it in


def test_removal_bakes_the_weights_in_bit_for_bit() -> None:
    net, plain = sn.spectral_normalize(conv_net()), conv_net()
    optimizer = sgd(net)
    for _ in range(3):
        train_step(net, optimizer)
    net.eval()
    before, parameters = net(images()), [original(net[i]) for i in LAYERS]
    assert sn.remove_spectral_norm(net) is net
    assert torch.equal(net(images()), before)
    assert [type(module) for module in net.modules()] == [type(module) for module in plain.modules()]
    assert sorted(net.state_dict()) == sorted(plain.state_dict())
    for i, parameter in zip(LAYERS, parameters, strict=True):
        assert net[i].weight is parameter
        assert isinstance(parameter, nn.Parameter)
        assert not parametrize.is_parametrized(net[i])
    train_step(net.train(), optimizer)  # the optimiser still holds the parameters
    assert not torch.equal(net(images()), before)


def test_removal_restores_subclasses() -> None:
    class Mine(nn.Linear):
        pass

    assert type(sn.remove_spectral_norm(sn.spectral_normalize(Mine(3, 3)))) is Mine


def test_after_removal_a_model_can_be_normalised_again() -> None:
    net = sn.remove_spectral_norm(sn.spectral_normalize(conv_net()))
    sn.spectral_normalize(net, target=0.5)
    assert size_free_norm(net[2]) == pytest.approx(0.5, rel=1e-3)


def test_removal_keeps_frozen_weights_frozen() -> None:
    net = conv_net().requires_grad_(False)
    sn.spectral_normalize(net)
    net(images())
    assert size_free_norm(net[0]) == pytest.approx(1.0, rel=1e-3)
    assert not any(parameter.requires_grad for parameter in sn.remove_spectral_norm(net).parameters())


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.ReLU(), conv_net()], ids=["layer", "no layer", "model"])
def test_nothing_to_remove(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"{type(model).__name__} carries no spectral norm.*nothing to remove"):
        sn.remove_spectral_norm(model)


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_removal_touches_nothing_when_one_layer_carries_more() -> None:
    net = sn.spectral_normalize(conv_net()).eval()
    parametrize.register_parametrization(net[5], "weight", Double())
    before = net(images())
    with pytest.raises(ValueError, match=r"5\.weight carries further parametrizations.*Remove the others"):
        sn.remove_spectral_norm(net)
    assert all(isinstance(net[i].parametrizations.weight[0], type(normalisation(net[0]))) for i in LAYERS)
    assert torch.equal(net(images()), before)
