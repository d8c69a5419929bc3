"""The sum of squared norms as a term of the loss."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from messages import check_says, complaint
from reference import size_free_norm
from spectralnorm.normalize import penalty


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(4 * 25, 3))


def truth(model: nn.Module) -> float:
    return sum(size_free_norm(layer) ** 2 for layer in model if hasattr(layer, "weight"))


def value(model: nn.Module) -> float:
    return float(sn.spectral_penalty(model).detach())


def test_it_is_the_sum_of_the_squared_true_norms() -> None:
    model = net()
    assert value(model) == pytest.approx(truth(model), rel=1e-3)
    assert value(model[0]) == pytest.approx(size_free_norm(model[0]) ** 2, rel=1e-3)


def test_its_gradient_is_twice_the_norm_times_the_norms() -> None:
    model = net().double()
    sn.spectral_penalty(model).backward()
    for layer in (model[0], model[2], model[4]):
        weight = layer.weight.detach().clone().requires_grad_()
        args = {"stride": 2} if layer is model[0] else {"transposed": True} if layer is model[2] else {}
        sn.spectral_norm(weight, rtol=1e-9, **args).value.square().backward()
        torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=0.02, atol=0.02)


@pytest.mark.small_models
def test_it_follows_training_and_drives_the_norms_down() -> None:
    model, x = net(), torch.randn(8, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    before = truth(model)
    for _ in range(60):
        optimizer.zero_grad()
        (model(x).square().mean() + 0.5 * sn.spectral_penalty(model)).backward()
        optimizer.step()
    assert truth(model) < 0.2 * before
    assert value(model) == pytest.approx(truth(model), rel=2e-2)


def test_asking_twice_changes_nothing() -> None:
    model = net()
    assert value(model) == value(model)
    model.eval()
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert value(model) == value(model)


def test_the_model_is_left_as_it_is() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sn.spectral_penalty(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    copy.deepcopy(model)


def test_a_layer_added_later_counts_and_a_shared_one_counts_once() -> None:
    model = net()
    sn.spectral_penalty(model)
    model.append(nn.Linear(3, 3))
    model.append(model[5])
    assert value(model) == pytest.approx(truth(model[:6]), rel=1e-3)


def test_the_state_goes_with_the_model() -> None:
    for make in (net, lambda: nn.Linear(3, 3)):
        model = make()
        gc.collect()
        count = len(penalty._TRACKERS)
        sn.spectral_penalty(model)
        assert len(penalty._TRACKERS) == count + 1
        del model
        gc.collect()
        assert len(penalty._TRACKERS) == count


def test_a_zero_layer_adds_nothing() -> None:
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    total: Tensor = sn.spectral_penalty(layer)
    total.backward()
    assert float(total.detach()) == 0
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


def test_bad_input() -> None:
    check_says(complaint(TypeError, lambda: sn.spectral_penalty(3)), "torch.nn.Module", "int")
    check_says(complaint(ValueError, lambda: sn.spectral_penalty(nn.ReLU())), "ReLU", "expected one at least")
    normalised = sn.spectral_normalize(net())
    check_says(
        complaint(ValueError, lambda: sn.spectral_penalty(normalised)), "is normalised", "remove_spectral_norm"
    )
