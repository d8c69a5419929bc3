"""Clipping singular values, and scaling until a norm is proven."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import spectralnorm as sn
from messages import check_says, complaint
from reference import dense_matrix, dense_norm

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(9, 7), ()),
    "conv1d-even": (lambda: nn.Conv1d(3, 4, 4, padding="same"), (12,)),
    "conv2d": (lambda: nn.Conv2d(4, 5, 3, padding=1), (8, 8)),
    "stride": (lambda: nn.Conv2d(3, 6, 3, padding=1, stride=2), (9, 8)),
    "groups-dilation": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), (9, 9)),
    "circular": (lambda: nn.Conv2d(3, 3, (3, 5), padding="same", padding_mode="circular"), (8, 7)),
    "reflect": (lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), (7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), (5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 3, padding=1), (4, 4, 4)),
}


@pytest.fixture(params=LAYERS)
def made(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    make, size = LAYERS[request.param]
    return make(), size


def test_clipping_ends_proven_below_the_maximum(made: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, size = made
    maximum = 0.6 * dense_norm(layer, size)
    assert sn.clip_singular_values(layer, maximum, size or None) is layer
    assert dense_norm(layer, size) <= maximum * (1 + 1e-12)
    assert sn.spectral_norm(layer, certified=True, rtol=1e-4).upper <= maximum * (1 + 1e-4)


def test_clipping_changes_less_than_scaling(made: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, size = made
    before = layer.weight.detach().clone()
    bound = sn.spectral_norm(layer, certified=True)
    maximum = 0.6 * bound.upper
    sn.clip_singular_values(layer, maximum, size or None)
    assert (layer.weight - before).norm() < (maximum / bound.upper * before - before).norm()


def test_a_dense_layer_is_clipped_exactly() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 7)
    before = torch.linalg.svdvals(layer.weight.detach())
    sn.clip_singular_values(layer, 0.5)
    torch.testing.assert_close(sn.singular_values(layer).detach(), before.clamp(max=0.5), rtol=2e-3, atol=0)


def test_a_circular_layer_is_clipped_at_its_own_frequencies() -> None:
    """With as many taps as the grid has points nothing is cut off: one projection is exact."""
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 3, 5, padding=2, padding_mode="circular")
    sn.clip_singular_values(layer, 0.4, 40, iterations=200)
    values = sn.singular_values(layer, 40)
    assert 0.4 * (1 - 0.01) <= float(values.detach()[0]) <= 0.4


def test_a_layer_below_the_maximum_is_left_alone(made: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, size = made
    before, version = layer.weight.detach().clone(), layer.weight._version
    sn.clip_singular_values(layer, 100.0, size or None)
    assert torch.equal(layer.weight, before)
    assert layer.weight._version == version


def test_more_iterations_keep_more_of_the_kernel() -> None:
    """The projections come from above: what they leave over, the closing scaling takes (MATHS, section 6)."""
    kept = []
    for iterations in (1, 20):
        torch.manual_seed(0)
        layer = nn.Conv2d(8, 8, 3, padding=1)
        sn.clip_singular_values(layer, 0.5 * float(sn.spectral_norm(layer)), (16, 16), iterations=iterations)
        kept.append(float(layer.weight.detach().norm()))
    assert kept[1] > 1.1 * kept[0]


def test_a_zero_layer_stays_zero() -> None:
    layer = nn.Conv2d(2, 2, 3)
    nn.init.zeros_(layer.weight)
    sn.clip_singular_values(layer, 1.0)
    assert not layer.weight.any()


@pytest.mark.parametrize("maximum", [0, -1.0, math.inf, math.nan, "1", None, True])
def test_a_maximum_that_is_none(maximum: Any) -> None:
    message = complaint(ValueError, lambda: sn.clip_singular_values(nn.Linear(2, 2), maximum))
    check_says(message, "maximum=", "finite number above 0")


@pytest.mark.parametrize("rtol", [0, 2, -1, "x", None])
def test_a_wrong_tolerance_is_found_before_anything_is_written(rtol: Any) -> None:
    layer = nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    check_says(complaint(ValueError, lambda: sn.clip_singular_values(layer, 0.1, rtol=rtol)), "rtol=")
    assert torch.equal(layer.weight, before)


def test_other_bad_input() -> None:
    check_says(
        complaint(ValueError, lambda: sn.clip_singular_values(nn.Linear(2, 2), 1.0, iterations=0)), "iterations=0"
    )
    normalised = sn.spectral_normalize(nn.Linear(2, 2))
    check_says(complaint(ValueError, lambda: sn.clip_singular_values(normalised, 1.0)), "already parametrised")
    check_says(complaint(TypeError, lambda: sn.clip_singular_values(nn.ReLU(), 1.0)), "ReLU")
    check_says(complaint(ValueError, lambda: sn.clip_singular_values(nn.Linear(2, 2), 1.0, (4,))), "input_shape=")


# ---------------------------------------------------------------------- remove_spectral_norm(certified=True)


def net() -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*parts, nn.ConvTranspose2d(8, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 49, 5))


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("target", [1.0, 0.3, 4.0])
def test_every_layer_is_proven_and_the_outputs_hardly_move(mode: str, target: float) -> None:
    model = sn.spectral_normalize(net(), target=target, mode=mode)
    x = torch.randn(4, 3, 8, 8)
    before = model(x).detach()
    sn.remove_spectral_norm(model, certified=True)
    for row in sn.audit(model, certified=True).rows:
        assert row.norm.upper <= target * (1 + 1e-12)
    assert (model(x) - before).norm() <= 0.01 * before.norm()


def test_a_stale_state_is_no_excuse() -> None:
    """Weights written behind PyTorch's back leave a norm far above the target; the proof takes no one's word."""
    model = sn.spectral_normalize(nn.Conv2d(3, 4, 3))
    model.parametrizations.weight.original.data *= 3
    sn.remove_spectral_norm(model.eval(), certified=True)
    assert dense_norm(model, (8, 8)) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_proven_as_they_are(dtype: torch.dtype) -> None:
    model = sn.spectral_normalize(nn.Conv2d(3, 4, 3)).to(dtype)
    sn.remove_spectral_norm(model, certified=True)
    assert model.weight.dtype == dtype
    assert float(torch.linalg.matrix_norm(dense_matrix(model.float(), (9, 9)), 2)) <= 1


# ---------------------------------------------------------------------- models, and clipping while training


def test_every_layer_of_a_model_is_clipped() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    )
    assert sn.clip_singular_values(net, 0.4) is net
    for layer in (net[0], net[4]):
        assert 0.39 < sn.spectral_norm(layer, certified=True).upper <= 0.4 * (1 + 1e-3)


def test_clipping_every_few_steps_without_a_proof_holds_the_norm() -> None:
    """pytorch#12760, BigGAN-PyTorch#57."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))
    optimizer, x = torch.optim.SGD(net.parameters(), lr=0.3), torch.randn(8, 3, 6, 6)
    for step in range(20):
        loss = (net(x) - 2 * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            sn.clip_singular_values(net, 1.0, iterations=1, certified=False)
    for layer in (net[0], net[2]):
        assert 0.9 < float(sn.spectral_norm(layer)) <= 1 + 2e-3


@pytest.mark.small_models
def test_a_size_belongs_to_a_layer_not_to_a_model() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3))
    check_says(complaint(ValueError, lambda: sn.clip_singular_values(net, 1.0, (8, 8))), "input_shape")
