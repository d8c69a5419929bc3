"""BatchNorm in eval mode, alone and folded into the layer before it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import spectralnorm as sn
from messages import check_says, complaint
from reference import dense_matrix, dense_norm, size_free_norm

NORMS = {(): nn.BatchNorm1d, (7,): nn.BatchNorm1d, (4, 5): nn.BatchNorm2d, (2, 3, 2): nn.BatchNorm3d}


def batchnorm(size: tuple[int, ...], channels: int, affine: bool = True) -> nn.Module:
    """One that has seen data: statistics and factors of both signs at random."""
    norm, generator = NORMS[size](channels, affine=affine), torch.Generator().manual_seed(channels)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.2, 3.0, generator=generator)
    if affine:
        with torch.no_grad():
            norm.weight.normal_(generator=generator)
            norm.bias.normal_(generator=generator)
    return norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("size", [size for size in NORMS if size], ids=str)
def test_alone_it_is_its_map_in_eval_mode(size: tuple[int, ...], affine: bool) -> None:
    norm = batchnorm(size, 4, affine)  # in training mode, which does not matter
    expected = dense_norm(norm, size)
    for options in ({"method": "exact"}, {"method": "exact", "input_shape": size}, {"input_shape": size}):
        bound = sn.spectral_norm(norm, **options)
        assert bound.lower <= expected * (1 + 1e-12)
        assert expected * (1 - 1e-12) <= bound.upper
        assert float(bound) == pytest.approx(expected, rel=1e-12)
    assert float(sn.spectral_norm(norm)) == pytest.approx(size_free_norm(norm), rel=1e-6)
    assert expected == pytest.approx(size_free_norm(norm), rel=1e-12)


def test_by_hand() -> None:
    norm = nn.BatchNorm2d(2, eps=1.0)
    norm.running_var.copy_(torch.tensor([3.0, 8.0]))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -6.0]))
    assert float(sn.spectral_norm(norm)) == pytest.approx(2)


BEFORE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 6), ()),
    "conv1d": (lambda: nn.Conv1d(3, 6, 3, stride=2, padding=1), (7,)),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), (4, 5)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5)),
    "conv2d-depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="circular"), (4, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 6, 2), (2, 3, 2)),
    "tconv2d": (lambda: nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1), (4, 5)),
    "tconv2d-groups": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (4, 5)),
    "tconv1d-depthwise": (lambda: nn.ConvTranspose1d(3, 6, 3, groups=3), (7,)),
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", BEFORE)
def test_folded_it_is_the_sequential_in_eval_mode_minus_its_offset(kind: str, affine: bool) -> None:
    make, size = BEFORE[kind]
    pair = nn.Sequential(make(), batchnorm(size, 6, affine))
    operator, dense = sn.as_operator(pair), dense_matrix(pair, size)
    shape = operator.input_shape(size)
    with torch.no_grad():
        basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        torch.testing.assert_close(operator.apply(basis).flatten(1).T, dense)
    norm = float(torch.linalg.matrix_norm(dense, 2))
    assert float(sn.spectral_norm(pair, input_shape=size or None)) == pytest.approx(norm, rel=1e-3)
    assert float(sn.spectral_norm(pair)) == pytest.approx(size_free_norm(pair), rel=1e-3)
    assert norm <= sn.as_operator(pair).padding_factor(None) * size_free_norm(pair) * (1 + 1e-12)


def test_the_folded_norm_is_not_the_product() -> None:
    """The channel that the BatchNorm raises is one the layer hardly uses."""
    linear, norm = nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, eps=0.0)
    with torch.no_grad():
        linear.weight.copy_(torch.diag(torch.tensor([1.0, 0.1])))
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    product = float(sn.spectral_norm(linear)) * float(sn.spectral_norm(norm))
    assert product == pytest.approx(10)
    assert float(sn.spectral_norm(nn.Sequential(linear, norm))) == pytest.approx(1)


@pytest.mark.parametrize("folded", [False, True])
def test_the_gradient_reaches_gamma(folded: bool) -> None:
    norm = batchnorm((4, 5), 6).double()
    layer = nn.Sequential(nn.Conv2d(3, 6, 3, dtype=torch.float64), norm) if folded else norm
    sn.spectral_norm(layer, method="exact").value.backward()
    grad, step, values = norm.weight.grad, torch.linspace(-1, 1, 6, dtype=torch.float64), []
    for shift in (1e-6, -2e-6):
        norm.weight.data += shift * step
        values.append(float(sn.spectral_norm(layer, method="exact")))
    slope = (values[0] - values[1]) / 2e-6
    assert grad.any()
    assert float(grad @ step) == pytest.approx(slope, rel=1e-4)
    if folded:
        assert layer[0].weight.grad.any()


def test_a_wrong_number_of_channels() -> None:
    for layer in (nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 2, 3), nn.ConvTranspose2d(4, 4, 3, groups=2)):
        pair = nn.Sequential(layer, nn.BatchNorm2d(3))
        message = complaint(ValueError, lambda pair=pair: sn.spectral_norm(pair))
        check_says(message, "BatchNorm2d has 3 channels", f"{layer.out_channels} outputs", "Pair each BatchNorm")


@pytest.mark.parametrize("folded", [False, True])
def test_without_running_statistics_it_is_not_linear(folded: bool) -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), norm) if folded else norm
    message = complaint(ValueError, lambda: sn.spectral_norm(layer))
    check_says(message, "BatchNorm2d(track_running_stats=False)", "not linear", "track_running_stats=True")


@pytest.mark.parametrize("name", ["running_var", "weight"])
def test_values_that_are_not_finite_are_named(name: str) -> None:
    norm = nn.BatchNorm2d(4)
    getattr(norm, name).data[1] = math.nan
    message = complaint(ValueError, lambda: sn.spectral_norm(norm))
    check_says(message, f"BatchNorm2d.{name}", "1 NaN or infinite entries of 4")


def test_a_batchnorm_behind_a_users_layer_is_not_folded() -> None:
    message = complaint(TypeError, lambda: sn.as_operator(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())))
    check_says(message, "Sequential is not a layer spectralnorm knows")


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm3d(4)),
        (nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm2d(4)),
        (nn.Linear(3, 4), nn.BatchNorm2d(4)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_batchnorm_of_another_dimension_is_refused_as_pytorch_does(layer: nn.Module, norm: nn.Module) -> None:
    pair = nn.Sequential(layer, norm)
    operator = sn.as_operator(layer)
    with pytest.raises(ValueError, match=r"expected .*D"):
        pair(torch.zeros(1, *operator.input_shape((5,) * operator.axes)))
    message = complaint(ValueError, lambda: sn.spectral_norm(pair))
    check_says(message, f"{type(norm).__name__} follows a layer of {operator.axes} spatial axes")
    check_says(message, f"expected BatchNorm{max(1, operator.axes)}d", "Pair each BatchNorm")


class Activated(nn.BatchNorm2d):
    """A BatchNorm that does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).clamp_min(0)


def test_a_batchnorm_with_a_forward_of_its_own_is_not_folded() -> None:
    pair = nn.Sequential(nn.Conv2d(1, 2, 3), Activated(2))
    check_says(complaint(TypeError, lambda: sn.as_operator(pair)), "Sequential is not a layer spectralnorm knows")


def test_synchronised_statistics_fold_whatever_the_dimension() -> None:
    norm = nn.SyncBatchNorm(2)
    norm.running_var.copy_(torch.tensor([0.25, 4.0]))
    for layer in (nn.Linear(3, 2), nn.Conv1d(3, 2, 1), nn.Conv3d(3, 2, 1)):
        kernel = layer.weight.detach().flatten(1) / (norm.running_var + norm.eps).sqrt()[:, None]
        expected = float(torch.linalg.matrix_norm(kernel, 2))
        assert float(sn.spectral_norm(nn.Sequential(layer, norm))) == pytest.approx(expected, rel=1e-5)
