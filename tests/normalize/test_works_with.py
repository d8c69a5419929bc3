"""Normalised models with the rest of PyTorch: precision, optimizers, torch.func, export, tied weights."""

from __future__ import annotations

import copy
import importlib.util
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

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


# ---------------------------------------------------------------------- torch.func

jit_warning = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # of PyTorch's


def parameters_of(net: nn.Module, seed: int | None = None) -> dict[str, Tensor]:
    """Detached, or others in their place."""
    other = dict(
        net.named_parameters() if seed is None else sn.spectral_normalize(conv_net(seed)).named_parameters()
    )
    return {name: parameter.detach().clone() for name, parameter in other.items()}


@jit_warning
def test_functional_call_with_other_weights() -> None:
    """pytorch#113415: as if they were the model's own, which goes on with its own afterwards."""
    net = trained().eval()
    expected = net(images())
    near = {name: 3.0 * (p + 0.01) if name.endswith("original") else p for name, p in parameters_of(net).items()}
    assigned = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in assigned.named_parameters():
            parameter.copy_(near[name])
    before = snapshot(net)
    torch.testing.assert_close(torch.func.functional_call(net, near, (images(),)), assigned(images()))
    assert_same(snapshot(net), before)
    assert torch.equal(net(images()), expected)


def test_functional_call_with_other_weights_in_training() -> None:
    """As meta-learning does; the gradient reaches the weights that were given."""
    net, weights = trained().train(), {name: p.requires_grad_() for name, p in parameters_of(trained(), 9).items()}
    outputs = [torch.func.functional_call(net, weights, (images(),)) for _ in range(2)]
    assert torch.equal(*outputs)
    grads = torch.autograd.grad(outputs[0].square().sum(), list(weights.values()))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
    net(images())
    for _ in range(20):
        with torch.no_grad():
            for i in LAYERS:
                original(net[i]).mul_(1.0)
        net(images())
    assert true_norms(net) == pytest.approx([1.0] * 3, rel=1e-2)


@jit_warning
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("through_norm", [True, False])
def test_gradients_by_torch_func(train: bool, fold: bool, through_norm: bool) -> None:
    """pytorch#102981: the same as those of backward."""
    options = {"fold_batchnorm": fold, "through_norm": through_norm}
    net = sn.spectral_normalize(batchnorm_net() if fold else conv_net(), **options).train(train)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # torch.func cannot write to their statistics
    expected = gradients(net, net(images()).square().sum())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, weights, (images(),)).square().sum()

    found = torch.func.grad(loss)(parameters_of(net))
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@jit_warning
def test_gradients_of_each_sample() -> None:
    net = trained().eval()

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, weights, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters_of(net), images())
    for found, total in zip(each.values(), gradients(net, net(images()).square().sum()), strict=True):
        torch.testing.assert_close(found.sum(0), total, rtol=1e-4, atol=1e-5)


@jit_warning
@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("train", [True, False])
def test_jacobians_of_the_model(jacobian: Callable[..., Any], train: bool) -> None:
    """LNets#6: its norm at a point is at most the product of the layers' norms."""
    net = sn.spectral_normalize(conv_net(), target=0.9).train(train)
    matrix = jacobian(lambda x: net(x[None])[0])(images()[0]).flatten(1)
    assert 0 < float(torch.linalg.matrix_norm(matrix.detach(), 2)) <= 0.9**3 * (1 + 1e-3)


@jit_warning
def test_hessian_vector_products() -> None:
    net, weights = trained().eval(), parameters_of(trained())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, weights, (images(),)).square().sum()

    _, found = torch.func.jvp(torch.func.grad(loss), (weights,), (weights,))
    leaves = list(net.parameters())
    grads = torch.autograd.grad(net(images()).square().sum(), leaves, create_graph=True)
    along = sum((g * w).sum() for g, w in zip(grads, weights.values(), strict=True))
    for one, other in zip(found.values(), torch.autograd.grad(along, leaves), strict=True):
        torch.testing.assert_close(one.to(other), other, rtol=1e-3, atol=1e-3)


@jit_warning
def test_a_vmap_over_weights_says_what_to_do() -> None:
    net, x = trained().eval(), images()
    stacked = {name: torch.stack([p, p]) for name, p in parameters_of(net).items()}
    with pytest.raises(ValueError, match=r"vmap over the weights.*remove_spectral_norm"):
        torch.func.vmap(lambda w: torch.func.functional_call(net, w, (x,)))(stacked)


# ---------------------------------------------------------------------- export


def baked(fold: bool = True) -> nn.Module:
    """A model whose normalisation is removed, in eval."""
    return sn.remove_spectral_norm(sn.spectral_normalize(batchnorm_net(), fold_batchnorm=fold).eval())


def test_torch_export_after_removal(tmp_path: Any) -> None:
    """pytorch#167645, pytorch#113415: there is nothing but plain layers in the file."""
    net = baked()
    program = torch.export.export(net, (images(),))
    assert not any("spectralnorm" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(again(images()), net(images()))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # PyTorch's own, of functions
def test_torch_export_before_removal_runs_beside_the_model(strict: bool) -> None:
    """pytorch#167645. A program that outlives its model says what is missing."""
    net = trained().eval()
    expected = net(images())
    program = torch.export.export(net, (images(),), strict=strict).module()
    torch.testing.assert_close(program(images()), expected)
    sn.remove_spectral_norm(net)
    del net
    with pytest.raises(RuntimeError, match=r"exported from a normalised model.*Export after remove_spectral_norm"):
        program(images())


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of PyTorch's exporters
def test_onnx(dynamo: bool, removed: bool) -> None:
    """pytorch#27723, pytorch#59302, pytorch#49643: `aten::vdot` is unsupported with PyTorch's rule."""
    for package in ("onnx", "onnxscript") if dynamo else ("onnx",):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"torch.onnx.export(dynamo={dynamo}) needs {package}, which is not installed")
    if dynamo and not removed:
        pytest.skip("torch.export keeps the sweep as an operation of ours: remove the normalisation first")
    net = baked() if removed else sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True).eval()
    file = io.BytesIO()
    torch.onnx.export(net, (images(),), file, dynamo=dynamo)
    assert b"Conv" in file.getvalue()
    assert b"spectralnorm" not in file.getvalue()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript as a whole
def test_a_trace_holds_the_norms_as_numbers(train: bool) -> None:
    """pytorch#49643."""
    net = trained()
    net(images()), net.train(train)
    copied = torch.jit.trace(copy.deepcopy(net), images())
    torch.testing.assert_close(copied(images(2)), net(images(2)))


def test_symbolic_traces_and_flop_counts() -> None:
    net = trained().eval()
    assert torch.equal(torch.fx.symbolic_trace(net)(images()), net(images()))
    counts = []
    for model in (net, conv_net()):
        with FlopCounterMode(display=False) as counter:
            model(images())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


# ---------------------------------------------------------------------- devices


@pytest.mark.parametrize("fold", [True, False])
def test_shapes_on_the_meta_device(fold: bool) -> None:
    """A model can be moved there after it was normalised, to see its shapes; and back, to be loaded."""
    net = sn.spectral_normalize(batchnorm_net() if fold else conv_net(), fold_batchnorm=fold)
    optimizer = sgd(net)
    train_step(net, optimizer)
    shapes = copy.deepcopy(net).to("meta")
    output = shapes(images().to("meta"))
    assert output.shape == (4, 5)
    output.sum().backward()
    other = shapes.to_empty(device="cpu")
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(images()), net.eval()(images()))


# ---------------------------------------------------------------------- tied weights


class Language(nn.Module):
    """An Embedding, and a decoder with its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.hidden, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(self.words(words))))


def spoken() -> Tensor:
    return torch.arange(7)


def language() -> Language:
    with pytest.warns(UserWarning, match=r"words \(Embedding\)"):
        return sn.spectral_normalize(Language())


def test_a_decoder_tied_to_an_embedding_trains() -> None:
    """pytorch#28594: the shared tensor is trained by both, and scaled for the decoder only."""
    net = language()
    assert original(net.out) is net.words.weight
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(spoken()), spoken())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert original(net.out) is net.words.weight
    assert size_free_norm(net.out) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("certified", [True, False])
def test_removal_unties_a_decoder_from_its_embedding(certified: bool) -> None:
    """pytorch#28594: the Embedding's vectors must not be scaled along."""
    net = language().eval()
    words, expected = net.words.weight.detach().clone(), net(spoken())
    sn.remove_spectral_norm(net, certified=certified)
    torch.testing.assert_close(net(spoken()), expected, rtol=0.0, atol=1e-2 if certified else 0.0)
    assert torch.equal(net.words.weight, words)
    assert net.out.weight is not net.words.weight
    assert isinstance(net.out.weight, nn.Parameter)
    assert net.out.weight.requires_grad
    assert len(list(net.parameters())) == 4


@pytest.mark.parametrize("certified", [True, False])
def test_removal_unties_layers_of_different_targets(certified: bool) -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    net[2].weight = net[0].weight
    sn.spectral_normalize(net, target={"0": 0.5, "2": 3.0}).eval()
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    expected = net(x)
    sn.remove_spectral_norm(net, certified=certified)
    torch.testing.assert_close(
        net(x), expected, rtol=5e-3 if certified else 1e-6, atol=1e-2 if certified else 1e-6
    )
    assert [size_free_norm(net[i]) for i in (0, 2)] == pytest.approx([0.5, 3.0], rel=5e-3)


def test_certified_removal_keeps_layers_of_one_target_tied() -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    net[2].weight = net[0].weight
    sn.remove_spectral_norm(sn.spectral_normalize(net), certified=True)
    assert net[2].weight is net[0].weight
    assert sn.spectral_norm(net[0], method=sn.Certified()).upper <= 1.0


# ---------------------------------------------------------------------- attention


SIZES = {"one matrix": {}, "other widths": {"kdim": 6, "vdim": 10}, "keys alone": {"kdim": 8, "vdim": 10}}


def attention(kind: str) -> tuple[nn.MultiheadAttention, tuple[Tensor, Tensor, Tensor]]:
    """Normalised, with inputs."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True, **SIZES[kind])
    widths = (8, module.kdim, module.vdim)
    return sn.spectral_normalize(module), tuple(torch.randn(2, 5, width) for width in widths)


def projections(module: nn.MultiheadAttention) -> list[float]:
    """Norms of queries, keys, values and outputs."""
    parts = (
        module.in_proj_weight.split(module.embed_dim)
        if module._qkv_same_embed_dim
        else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    )
    return [float(torch.linalg.matrix_norm(part.detach(), 2)) for part in (*parts, module.out_proj.weight)]


@pytest.mark.parametrize("kind", SIZES)
def test_projections_of_attention(kind: str) -> None:
    """LipsFormer#3, sngan_projection#14. In one tensor, the largest of the three norms counts."""
    module, x = attention(kind)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        module(*x)[0].square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        optimizer.step()
    module(*x)
    *three, out = projections(module)
    assert max(three) == pytest.approx(1.0, rel=1e-2)
    assert min(three) > 0.3
    assert kind == "one matrix" or three == pytest.approx([1.0] * 3, rel=1e-2)
    assert out == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("certified", [True, False])
def test_removal_from_attention(kind: str, certified: bool) -> None:
    module, x = attention(kind)
    expected, plain = module.eval()(*x)[0], nn.MultiheadAttention(8, 2, batch_first=True, **SIZES[kind])
    other = copy.deepcopy(module)
    sn.remove_spectral_norm(module, certified=certified)
    torch.testing.assert_close(module(*x)[0], expected, rtol=1e-2 if certified else 1e-6, atol=5e-3 * certified)
    assert type(module) is nn.MultiheadAttention
    assert sorted(module.state_dict()) == sorted(plain.state_dict())
    assert not certified or max(projections(module)) <= 1.0
    torch.testing.assert_close(other(*x)[0], expected)


def test_the_fast_path_of_a_transformer_layer() -> None:
    """sngan_projection#14: in eval without gradients PyTorch reads the weights and skips the forward passes."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"norm1 \(LayerNorm\)"):
        layer = sn.spectral_normalize(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    x = torch.randn(2, 5, 8)
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        torch.testing.assert_close(encoder(x), layer(layer(x)))
