"""Normalised models under `torch.func`, exported, traced, and on the meta device."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import spectralnorm as sn
from nets import (
    LAYERS,
    assert_same,
    batchnorm_net,
    conv_net,
    images,
    original,
    sgd,
    snapshot,
    train_step,
    trained,
)
from reference import size_free_norm


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


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
    assert [size_free_norm(net[i]) for i in LAYERS] == pytest.approx([1.0] * 3, rel=1e-2)


@jit_warning
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("through_norm", [True, False])
def test_gradients_by_torch_func(train: bool, fold: bool, through_norm: bool) -> None:
    """pytorch#102981: the same as those of backward."""
    options = {"fold_batchnorm": fold, "through_norm": through_norm}
    net = sn.spectral_normalize((batchnorm_net() if fold else conv_net()).double(), **options).train(train)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # torch.func cannot write to their statistics
    x = images().double()  # in float32 the two ways' sums differ by processor in what cancels
    expected = gradients(net, net(x).square().sum())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, weights, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters_of(net))
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # what a sweep in between moves


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


@pytest.mark.parametrize(
    ("dynamo", "removed"),
    [(True, True), (False, True), (False, False)],  # torch.export keeps the sweep as an operation of ours
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of PyTorch's exporters
def test_onnx(dynamo: bool, removed: bool) -> None:
    """pytorch#27723, pytorch#59302, pytorch#49643: `aten::vdot` is unsupported with PyTorch's rule."""
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
