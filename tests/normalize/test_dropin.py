"""`sn.parametrizations.spectral_norm` in place of `torch.nn.utils.parametrizations.spectral_norm`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torchs
from torch.nn.utils import parametrize

import spectralnorm as sn
from cases import CASES, Case
from nets import assert_same, conv_net, images, normalisation, sgd, snapshot, train_step
from reference import size_free_norm

KINDS = (
    "linear-wide",
    "conv1d-k4-same-asymmetric",
    "conv1d-stride3-dilation2",
    "conv2d-3x3-smooth",
    "conv2d-groups",
    "conv2d-stride2",
    "conv2d-circular-5x3-same",
    "conv3d-2x3x1",
)
each_kind = pytest.mark.parametrize("case", [c for c in CASES if str(c) in KINDS], ids=str)


def test_the_signature_is_pytorchs() -> None:
    def parts(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]

    assert parts(sn.parametrizations.spectral_norm) == parts(torchs.spectral_norm)


# ---------------------------------------------------------------------- layers with an operator


@each_kind
def test_the_true_norm_is_one(case: Case) -> None:
    """pytorch#99149, pytorch#13505, sngan_projection#37, sngan_projection#55."""
    layer = case.layer()
    assert sn.parametrizations.spectral_norm(layer) is layer
    assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-3)
    assert size_free_norm(sn.remove_spectral_norm(layer)) == pytest.approx(1.0, rel=1e-3)


def test_pytorchs_rule_would_not_do() -> None:
    """pytorch#99149: the flattened norm understates a smooth kernel's."""
    case = next(c for c in CASES if str(c) == "conv2d-3x3-smooth")
    assert size_free_norm(torchs.spectral_norm(case.layer()).eval()) > 1.5


def test_a_linear_layer_gets_what_pytorch_gives() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 5)
    theirs = torchs.spectral_norm(copy.deepcopy(layer), n_power_iterations=40)
    ours = sn.parametrizations.spectral_norm(layer)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("args", [("weight", 3), ("weight", 3, 1e-6), ("weight", 1, 1e-12, 0)])
def test_positional_arguments(args: tuple[Any, ...]) -> None:
    layer = sn.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3), *args)
    assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-3)


def test_more_iterations_follow_the_weights_more_closely() -> None:
    """Three sweeps a change, which still counts as one move of the state."""
    errors = {}
    for iterations in (1, 3):
        torch.manual_seed(0)
        layer = sn.parametrizations.spectral_norm(nn.Linear(40, 30), n_power_iterations=iterations)
        with torch.no_grad():
            layer.parametrizations.weight.original.add_(0.05 * torch.randn(30, 40))
        errors[iterations] = size_free_norm(layer) - 1.0
        assert normalisation(layer).turn == 1
    assert -1e-6 < errors[3] < max(errors[1], 1e-5)


def test_a_model_of_layers_normalised_one_by_one_trains() -> None:
    net = conv_net()
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            sn.parametrizations.spectral_norm(layer)
    optimizer = sgd(net)
    losses = [train_step(net, optimizer) for _ in range(10)]
    assert losses[-1] < losses[0]
    other = copy.deepcopy(net)
    assert_same(snapshot(other), snapshot(net))
    assert torch.equal(other.eval()(images()), net.eval()(images()))


def test_zero_weights_stay_zero() -> None:
    """pytorch#20192: NaN there."""
    layer = nn.Conv2d(2, 3, 3)
    nn.init.zeros_(layer.weight)
    assert not sn.parametrizations.spectral_norm(layer).weight.any()


def test_pytorchs_removal_works_as_well() -> None:
    layer = sn.parametrizations.spectral_norm(nn.Linear(4, 3)).eval()
    expected = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, expected)


# ---------------------------------------------------------------------- errors


def error_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever PyTorch raises
        call(*args, **kwargs)
    return caught.value


WRONG = {
    "unknown name": {"name": "wait"},
    "not a tensor": {"name": "in_features"},
    "no iterations": {"n_power_iterations": 0},
    "negative iterations": {"n_power_iterations": -3},
}


@pytest.mark.parametrize("kwargs", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: nn.Bilinear(2, 3, 3)], ids=["own", "fallback"])
def test_errors_are_pytorchs(make: Callable[[], nn.Module], kwargs: dict[str, Any]) -> None:
    layer = make()
    ours, theirs = (
        error_of(f, layer, **kwargs) for f in (sn.parametrizations.spectral_norm, torchs.spectral_norm)
    )
    assert type(ours) is type(theirs) is ValueError
    assert str(ours) == str(theirs)
    assert not parametrize.is_parametrized(layer)


@pytest.mark.parametrize("wrap", [sn.parametrizations.spectral_norm, torchs.weight_norm, torchs.orthogonal])
def test_a_parametrised_weight_is_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer = wrap(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"Linear\.weight is already parametrised by .*first with .*remove_"):
        sn.parametrizations.spectral_norm(layer)
    assert len(layer.parametrizations.weight) == 1


# ---------------------------------------------------------------------- fallback


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 4.0))


FALLBACKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LSTM": (lambda: nn.LSTM(3, 4), "weight_hh_l0"),
    "Embedding": (lambda: nn.Embedding(7, 3), "weight"),
    "vector": (Vector, "weight"),
    "LayerNorm": (lambda: nn.LayerNorm(5), "weight"),
    "BatchNorm": (lambda: nn.BatchNorm1d(5), "weight"),
    "bias of a Linear": (lambda: nn.Linear(3, 4), "bias"),
    "Bilinear": (lambda: nn.Bilinear(2, 3, 4), "weight"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "in_proj_weight"),
}


@pytest.mark.parametrize("kind", FALLBACKS)
@pytest.mark.parametrize(
    "kwargs", [{}, {"n_power_iterations": 4, "eps": 1e-6, "dim": -1}], ids=["plain", "options"]
)
def test_other_parameters_fall_back_to_pytorchs_rule(kind: str, kwargs: dict[str, Any]) -> None:
    """The same numbers, bit for bit, from the same seed; through training steps and eval."""
    make, name = FALLBACKS[kind]
    values = []
    for function in (sn.parametrizations.spectral_norm, torchs.spectral_norm):
        torch.manual_seed(0)
        module = make()
        assert function(module, name, **kwargs) is module
        assert type(module.parametrizations[name][0]).__name__ == "_SpectralNorm"
        values.append([*(getattr(module, name) for _ in range(3)), getattr(module.eval(), name)])
    assert all(map(torch.equal, *values))
    assert values[0][0].isfinite().all()


def test_the_dimension_of_a_fallback_is_checked_by_pytorch() -> None:
    with pytest.raises(IndexError, match="Dimension out of range"):
        sn.parametrizations.spectral_norm(nn.Embedding(7, 3), dim=5)


def test_an_lstm_with_a_normalised_matrix_runs() -> None:
    torch.manual_seed(0)
    memory = sn.parametrizations.spectral_norm(nn.LSTM(3, 4), "weight_hh_l0")
    output, _ = memory(torch.randn(5, 2, 3))
    output.sum().backward()
    assert memory.parametrizations.weight_hh_l0.original.grad.isfinite().all()
    assert float(torch.linalg.matrix_norm(memory.eval().weight_hh_l0.detach(), 2)) == pytest.approx(1.0, rel=0.1)


def test_fallbacks_are_not_ours_to_remove() -> None:
    module = sn.parametrizations.spectral_norm(nn.Embedding(7, 3))
    with pytest.raises(ValueError, match="nothing to remove"):
        sn.remove_spectral_norm(module)
