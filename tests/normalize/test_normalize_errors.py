"""Bad calls of the normalisation: one clear error, and a model that is just as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import spectralnorm as sn
from messages import check_says, complaint
from nets import assert_same, conv_net, images

# ---------------------------------------------------------------------- options


@pytest.mark.parametrize("target", [0, 0.0, -1.0, math.nan, math.inf, -math.inf, "1", True, None, (1.0,), 1j])
def test_target(target: Any) -> None:
    net = conv_net()
    message = complaint(ValueError, lambda: sn.spectral_normalize(net, target=target))
    check_says(message, f"target={target!r}", "finite number above 0", "1.0")
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


def test_target_beyond_every_float() -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), target=10**400))
    check_says(message, "target=", "finite")


@pytest.mark.parametrize("target", [np.float64(2.0), 2])
def test_other_numbers_are_targets(target: Any) -> None:
    layer = sn.spectral_normalize(nn.Linear(3, 3), target=target)
    assert float(sn.spectral_norm(layer)) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("target", "dtype"),
    [(1e39, torch.float32), (1e-46, torch.float32), (1e6, torch.float16), ({"0": 1.0, "*": 1e-30}, torch.float16)],
)
def test_a_target_that_the_weights_cannot_have(target: Any, dtype: torch.dtype) -> None:
    net = conv_net().to(dtype)
    message = complaint(ValueError, lambda: sn.spectral_normalize(net, target=target))
    check_says(message, "target=1e", "beyond float", "expected")
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


@pytest.mark.parametrize("name", ["fold_batchnorm", "through_norm"])
@pytest.mark.parametrize("value", ["no", 1, None])
def test_switches_are_true_or_false(name: str, value: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), **{name: value}))
    check_says(message, f"{name}={value!r}", "True or False")


@pytest.mark.parametrize("mode", ["Hard", "clip", "", None, 1, ["hard"]])
def test_unknown_mode(mode: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), mode=mode))
    check_says(message, f"mode={mode!r}", "unknown", "hard", "soft")


@pytest.mark.parametrize("method", ["svd", "", "Tracked"])
def test_unknown_method(method: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), method=method))
    check_says(message, f"method={method!r}", "expected", "tracked")


@pytest.mark.parametrize("method", ["auto", "exact", "power", "flattened"])
def test_method_that_only_measures(method: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), method=method))
    check_says(message, f"method={method!r}", "training", "tracked")


def test_options_are_named() -> None:
    with pytest.raises(TypeError):
        sn.spectral_normalize(nn.Linear(3, 3), 2.0)


# ---------------------------------------------------------------------- what to normalise


@pytest.mark.parametrize("thing", [torch.ones(3, 3), "net", None, nn.Linear, [nn.Linear(3, 3)]])
def test_not_a_module(thing: Any) -> None:
    message = complaint(TypeError, lambda: sn.spectral_normalize(thing))
    check_says(message, "spectral_normalize expected a torch.nn.Module", type(thing).__name__)


@pytest.mark.parametrize("call", [sn.remove_spectral_norm, sn.refresh])
@pytest.mark.parametrize("thing", [torch.ones(3, 3), "net", None])
def test_other_verbs_on_something_that_is_not_a_module(call: Callable[[Any], Any], thing: Any) -> None:
    check_says(complaint(TypeError, lambda: call(thing)), "torch.nn.Module", type(thing).__name__)


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Sequential(), nn.ModuleList()])
def test_model_without_layers(model: nn.Module) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(model))
    check_says(message, type(model).__name__, "no Linear or convolution layer", "register_operator")


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.LSTM(3, 3)])
def test_layer_of_a_type_that_is_not_known(layer: nn.Module) -> None:
    message = complaint(TypeError, lambda: sn.spectral_normalize(layer))
    check_says(
        message,
        type(layer).__name__,
        "not a layer spectralnorm knows",
        "Linear",
        "@spectralnorm.register_operator",
    )


@pytest.mark.parametrize(
    ("layer", "reason"), [(nn.LayerNorm(3), "not linear"), (nn.Embedding(3, 3), "no linear map")]
)
def test_layer_without_a_norm(layer: nn.Module, reason: str) -> None:
    message = complaint(TypeError, lambda: sn.spectral_normalize(layer))
    check_says(message, type(layer).__name__, reason, "has no norm")


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_a_batchnorm_alone_has_no_weight_to_normalise(options: dict[str, Any]) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(nn.BatchNorm2d(3, **options)))
    check_says(message, "BatchNorm2d", "no Linear or convolution layer")


class Derived(nn.Module):
    """A registered type whose operator's weight is not a parameter of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))


def test_registered_layer_without_a_weight_of_its_own() -> None:
    sn.register_operator(Derived)(lambda layer: sn.as_operator(torch.diag(layer.factor)))
    message = complaint(ValueError, lambda: sn.spectral_normalize(nn.Sequential(Derived())))
    check_says(message, "0", "'weight'")


# ---------------------------------------------------------------------- all or nothing


def with_nan() -> nn.Module:
    layer = nn.Conv2d(3, 3, 3)
    layer.weight.data[0, 1, 2, 2] = math.nan
    return layer


def with_integers() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    return layer


def empty() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.empty(0, 3))
    return layer


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(3, 3), "weight", 2)


BAD: dict[str, tuple[Callable[[], nn.Module], type[Exception], tuple[str, ...]]] = {
    "NaN": (with_nan, ValueError, ("Conv2d.weight", "1 NaN or infinite", "checkpoint")),
    "integers": (with_integers, TypeError, ("Linear.weight", "torch.int64", ".float()")),
    "empty": (empty, ValueError, ("Linear.weight", "empty", "(0, 3)")),
    "lazy": (lambda: nn.LazyLinear(3), ValueError, ("LazyLinear.weight", "not initialised", "batch")),
    "meta": (lambda: nn.Linear(3, 3, device="meta"), ValueError, ("Linear.weight", "meta")),
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
        ValueError,
        ("1.weight", "already parametrised by _WeightNorm", "remove_parametrizations"),
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
        ValueError,
        ("1.weight", "already parametrised by _Orthogonal", "remove_parametrizations"),
    ),
    "torch's spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Conv2d(3, 3, 3)),
        ValueError,
        ("1.weight", "already parametrised by _SpectralNorm", "remove_parametrizations"),
    ),
    "hooked spectral_norm": (lambda: nn.utils.spectral_norm(nn.Conv2d(3, 3, 3)), ValueError, ("1", "weight")),
    "pruned": (pruned, ValueError, ("1", "weight")),
}


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning")
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_layer_leaves_the_whole_model_as_it_was(bad: str) -> None:
    """pytorch#8049: constraints that hold for part of a model only are worse than none."""
    make, error, parts = BAD[bad]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make(), nn.Linear(5, 4))
    before = [(type(module), list(module._modules)) for module in model.modules()]
    plain = [copy.deepcopy(model[i].state_dict()) for i in (0, 2)]
    check_says(complaint(error, lambda: sn.spectral_normalize(model)), *parts)
    assert [(type(module), list(module._modules)) for module in model.modules()] == before
    for i, expected in zip((0, 2), plain, strict=True):
        assert_same(model[i].state_dict(), expected)
    sn.spectral_normalize(nn.Sequential(model[0], model[2]))  # and nothing stands in the way of a better call


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_single_parametrised_layer(wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer = wrap(nn.Linear(3, 3))
    weight = layer.weight.detach().clone()
    message = complaint(ValueError, lambda: sn.spectral_normalize(layer))
    check_says(message, "Linear.weight", "already parametrised", "remove_parametrizations")
    assert torch.equal(layer.weight, weight)


def test_a_second_call_names_what_is_taken() -> None:
    net = sn.spectral_normalize(conv_net())
    message = complaint(ValueError, lambda: sn.spectral_normalize(net))
    check_says(message, "0, 2, 5", "already", "remove_spectral_norm")
    check_says(complaint(ValueError, lambda: sn.spectral_normalize(net[0])), "the layer itself", "already")


def test_weights_that_turn_to_nan_in_training_do_not_spoil_other_layers() -> None:
    net = sn.spectral_normalize(conv_net())
    with torch.no_grad():
        net[2].parametrizations.weight.original.fill_(math.nan)
    assert net(images()).isnan().all()
    for i in (0, 5):
        assert net[i].weight.isfinite().all()
        assert all(buffer.isfinite().all() for buffer in net[i].buffers())


def test_refresh_recovers_from_weights_that_were_nan() -> None:
    """As after a diverged step, once a user has put the weights back."""
    net = sn.spectral_normalize(conv_net())
    weight = net[2].weight.detach().clone()
    with torch.no_grad():
        net[2].parametrizations.weight.original.fill_(math.nan)
        net(images())
        net[2].parametrizations.weight.original.copy_(7.0 * weight)
    sn.refresh(net)(images())
    torch.testing.assert_close(net[2].weight.detach(), weight, rtol=1e-3, atol=1e-4)


def test_data_parallel_is_refused_when_it_replicates() -> None:
    """pytorch#22095, #13350: replicas of a spectral norm lost their state in each pass."""
    layer = sn.spectral_normalize(nn.Linear(3, 3))
    message = complaint(RuntimeError, layer.parametrizations.weight[0]._replicate_for_data_parallel)
    check_says(message, "DataParallel", "DistributedDataParallel")
