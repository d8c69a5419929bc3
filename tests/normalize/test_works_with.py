"""Normalised models with mixed precision, all kinds of optimizers, activation checkpointing, several passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters
from torch.utils.checkpoint import checkpoint

import spectralnorm as sn
from nets import (
    LAYERS,
    assert_same,
    batchnorm_net,
    conv_net,
    images,
    normalisation,
    original,
    settle,
    sgd,
    snapshot,
    train_step,
    trained,
)
from reference import size_free_norm
from spectralnorm.normalize.folding import FoldedNormalization

GOAL = torch.tensor([2.0, -1.0, 2.0, -1.0, 2.0])


def turns(net: nn.Module) -> list[int]:
    return [normalisation(net[i]).turn for i in LAYERS]


def true_norms(net: nn.Module) -> list[float]:
    return [size_free_norm(net[i]) for i in LAYERS]


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


# ---------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fold", [False, True])
def test_training_under_autocast_with_scaled_losses(dtype: torch.dtype, fold: bool) -> None:
    """apex#181, tensorflow/addons#2398, pytorch#70664: weights, states and norms stay in full precision."""
    net = sn.spectral_normalize(batchnorm_net() if fold else conv_net(), fold_batchnorm=fold)
    optimizer, scaler = sgd(net, lr=0.003, momentum=0.0), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = (net(images()).float() - GOAL).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    parts = (net[0:2], net[3:5], net[7]) if fold else [net[i] for i in LAYERS]
    for part in parts:
        assert size_free_norm(part) == pytest.approx(1.0, rel=0.05 if fold else 1e-2)
    floats = [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} <= {torch.float32, torch.float64}


def test_a_step_that_the_scaler_skips_moves_no_state() -> None:
    """pytorch#117844: infinite gradients make GradScaler leave the weights as they are."""
    net = trained()
    net(images())
    before, optimizer = snapshot(net), sgd(net)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(net(images()).sum() * 1e38 * 1e38).backward()
    scaler.step(optimizer)
    scaler.update()
    net(images())
    assert_same(snapshot(net), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("before", [True, False], ids=["converted first", "converted after"])
def test_folded_models_in_other_dtypes(dtype: torch.dtype, before: bool) -> None:
    """apex#181, pytorch#70664."""
    net = batchnorm_net().to(dtype) if before else batchnorm_net()
    net = sn.spectral_normalize(net, fold_batchnorm=True).to(dtype)
    optimizer = sgd(net, lr=0.003, momentum=0.0)
    losses = [train_step(net, optimizer) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert net[1].weight.dtype == net(images().to(dtype)).dtype == dtype
    for part in (net[0:2], net[3:5], net[7]):
        assert size_free_norm(part.eval()) == pytest.approx(1.0, rel=0.05)


def test_channels_last() -> None:
    """Kernels in this layout cannot be read in place: a copy that served two steps let norms grow to 13.

    In float64: steps this large make differences of float32's rounding some per cent of a norm.
    """
    plain = sn.spectral_normalize(conv_net().double())
    net = sn.spectral_normalize(conv_net().double().to(memory_format=torch.channels_last))
    optimizers = sgd(plain), sgd(net)
    for seed in range(6):
        train_step(plain, optimizers[0], seed), train_step(net, optimizers[1], seed)
        assert true_norms(net) == pytest.approx(true_norms(plain), rel=1e-6)


@pytest.mark.small_models
@pytest.mark.parametrize("fold", [False, True])
def test_channels_last_after_normalising(fold: bool) -> None:
    net = batchnorm_net() if fold else conv_net()
    sn.spectral_normalize(net, fold_batchnorm=fold).to(memory_format=torch.channels_last)
    optimizer = sgd(net, lr=0.003, momentum=0.0)
    for seed in range(4):
        train_step(net, optimizer, seed)
    parts = (net[0:2], net[3:5], net[7]) if fold else [net[i] for i in LAYERS]
    assert [size_free_norm(part) for part in parts] == pytest.approx([1.0] * 3, rel=5e-2 if fold else 1e-2)


# ---------------------------------------------------------------------- optimizers


class Unseen(torch.optim.Optimizer):
    """Of a user's own, in the old way: it writes to `.data`."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, *_: Any) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=0.01)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD, one by one": lambda p: torch.optim.SGD(p, lr=0.01, foreach=False),
    "SGD, foreach": lambda p: torch.optim.SGD(p, lr=0.01, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.01, fused=True),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.003, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.003, fused=True),
    "Adagrad, fused": lambda p: torch.optim.Adagrad(p, lr=0.003, fused=True),
    "by .data": Unseen,
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_kind_of_optimizer_is_seen(kind: str) -> None:
    """pytorch#13350. A step that left no trace in the version of the weights would leave the state behind."""
    net = sn.spectral_normalize(conv_net())
    optimizer = OPTIMIZERS[kind](net.parameters())
    for expected in (1, 2, 3):
        train_step(net, optimizer)
        net(images())
        assert turns(net) == [expected] * 3
    assert true_norms(net) == pytest.approx([1.0] * 3, rel=2e-2)


def test_fused_steps_with_a_closure() -> None:
    """The closure runs the model within the step."""
    net = sn.spectral_normalize(conv_net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(images()) - GOAL).square().mean()
        loss.backward()
        return loss

    for expected in (1, 2, 3):
        optimizer.step(closure)
        net(images())
        assert turns(net) == [expected] * 3


def test_lbfgs() -> None:
    net = sn.spectral_normalize(conv_net())
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(images()) - GOAL).square().mean()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(4)]
    assert losses[-1] < losses[0]
    net(images())
    assert true_norms(net) == pytest.approx([1.0] * 3, rel=0.1)


def test_gradients_accumulated_over_batches_move_the_state_once() -> None:
    """pytorch#13350."""
    net = trained()
    start = turns(net)
    for seed in range(4):
        net(images(seed)).sum().backward()
    assert turns(net) == [turn + 1 for turn in start]


def test_weights_set_from_one_vector() -> None:
    """`vector_to_parameters` puts other memory under the parameters, by `.data`."""
    net, twin = (sn.spectral_normalize(conv_net()) for _ in range(2))
    net(images())
    vector_to_parameters(3.0 * parameters_to_vector(twin.parameters()).detach() + 0.01, net.parameters())
    net(images())
    assert turns(net) == [1, 1, 1]
    assert true_norms(sn.refresh(net)) == pytest.approx([1.0] * 3, rel=1e-3)


# ---------------------------------------------------------------------- activation checkpointing


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool) -> None:
    """pytorch#55368: the second forward pass, within the backward one, sees the same weights and moves nothing."""
    net, twin = trained(), trained()
    optimizers, x = (sgd(net), sgd(twin)), images().requires_grad_()
    for _ in range(3):
        start = turns(net)
        expected = gradients(twin, twin(x).square().sum())
        for optimizer in optimizers:
            optimizer.zero_grad()
        hidden = checkpoint(net[:4], x, use_reentrant=reentrant)
        checkpoint(net[4:], hidden, use_reentrant=reentrant).square().sum().backward()
        assert turns(net) == [turn + 1 for turn in start]
        for parameter, other, grad in zip(net.parameters(), twin.parameters(), expected, strict=True):
            assert torch.equal(parameter.grad, grad)
            other.grad = grad
        for optimizer in optimizers:
            optimizer.step()
    assert_same(snapshot(net), snapshot(twin))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_of_folded_batchnorms(reentrant: bool) -> None:
    """pytorch#55368: the statistics have moved when a BatchNorm runs again; gamma is that of the first pass."""
    net, twin = (sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True) for _ in range(2))
    with torch.no_grad():
        net(5.0 * images(7)), twin(5.0 * images(7))
    start = [part.turn for part in net.modules() if isinstance(part, FoldedNormalization)]
    x = images().requires_grad_()
    expected = gradients(twin, twin(x).square().sum())
    checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    for parameter, grad in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    turns = [part.turn for part in net.modules() if isinstance(part, FoldedNormalization)]
    assert turns == [turn + 1 for turn in start]


# ---------------------------------------------------------------------- twice through the same layers


def gan_step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """A discriminator's: real and fake batch, and the penalty on the gradient between them."""
    real, fake = images(seed), images(seed + 100)
    optimizer.zero_grad()
    between = (0.5 * (real + fake)).requires_grad_()
    (slope,) = torch.autograd.grad(net(between).sum(), between, create_graph=True)
    loss = net(fake).mean() - net(real).mean() + (slope.flatten(1).norm(dim=1) - 1).square().mean()
    loss.backward()
    optimizer.step()


def test_a_discriminator_with_three_passes_a_step() -> None:
    """pytorch#8160, #22095: one move of the state a step, however often the layers are run."""
    net = sn.spectral_normalize(conv_net())
    optimizer = sgd(net, lr=0.001, momentum=0.0)
    for seed in range(10):
        assert turns(net) == [max(0, seed - 1)] * 3
        gan_step(net, optimizer, seed)
    net(images())
    assert true_norms(net) == pytest.approx([1.0] * 3, rel=1e-2)


def test_the_gradient_of_a_gradient_penalty_equals_finite_differences() -> None:
    """pytorch#13350. At fixed weights elsewhere, with norms by the definition."""
    net, x = sn.spectral_normalize(conv_net().double(), target=2.0), images(dtype=torch.float64).requires_grad_()
    weights = [original(settle(net[i])) for i in LAYERS]
    plain = conv_net().double()

    def penalty(model: nn.Module) -> Tensor:
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    grads = torch.autograd.grad(penalty(net), weights)
    for place, i in enumerate(LAYERS):
        generator = torch.Generator().manual_seed(i)
        step, values = torch.randn(weights[place].shape, generator=generator, dtype=torch.float64), []
        for h in (1e-5, -1e-5):
            for j, weight in zip(LAYERS, weights, strict=True):
                plain[j].weight.data = weight.detach() + (h * step if j == i else 0.0)
                plain[j].weight.data *= 2.0 / size_free_norm(plain[j])
            values.append(float(penalty(plain).detach()))
        slope = (values[0] - values[1]) / 2e-5
        assert float((grads[place] * step).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_cached_weights_in_training() -> None:
    """pytorch#167645 names the cache; in training it saves the scaling of a second pass, and changes no number."""
    net, twin = trained(), trained()
    start = turns(net)
    with parametrize.cached():
        loss = net(images(1)).square().sum() + net(images(2)).square().sum()
        assert net[0].weight is net[0].weight
    expected = twin(images(1)).square().sum() + twin(images(2)).square().sum()
    for one, other in zip(gradients(net, loss), gradients(twin, expected), strict=True):
        torch.testing.assert_close(one, other)
    assert turns(net) == [turn + 1 for turn in start]
