"""The value of every method is differentiable, and measuring leaves no trace."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from cases import CASES, Case
from spectralnorm.estimators import METHODS, MatrixFree

GENERIC = (  # the norm stands clear of the singular values that follow, up to ties: power iteration converges
    "linear-wide",
    "linear-tall",
    "conv1d-k5-beyond-same",
    "conv1d-stride3-dilation2",
    "conv1d-circular-stride-does-not-divide",
    "conv2d-3x3-same",
    "conv2d-stride-groups",
    "conv2d-circular-5x3-same",
    "conv2d-circular-stride-divides",
    "conv2d-circular-n-below-kernel",
    "conv2d-reflect-stride-groups",
    "conv2d-replicate-dilation-stride",
    "conv3d-3x3x3",
    "tconv1d-stride2-dilation3-output-padding",
    "tconv2d-non-square",
    "tconv2d-groups-dominate",
)
ZERO = ("linear-zero", "conv1d-zero", "conv2d-zero", "conv2d-zero-groups", "conv2d-reflect-zero", "tconv2d-zero")
AT_A_SIZE = {"exact": sn.Exact(), "power": sn.Power(iterations=10_000), "matrix-free": MatrixFree()}
SIZE_FREE = {
    "tracked": sn.Tracked(),
    "certified": sn.Certified(),
    "flattened": sn.Flattened(),
    "exact-size-free": sn.Exact(),
}
ESTIMATORS = {**AT_A_SIZE, **SIZE_FREE}

generic = pytest.mark.parametrize("case", [c for c in CASES if str(c) in GENERIC], ids=str)
every_method = pytest.mark.parametrize("method", ESTIMATORS)


def arguments(case: Case, method: str, rtol: float) -> dict[str, Any]:
    size = case.size if method in AT_A_SIZE else None
    coarse = method == "exact-size-free"  # its value is the maximum over a grid, whichever
    return {"method": ESTIMATORS[method], "input_shape": size, "rtol": 0.1 if coarse else rtol}


def gradient(layer: nn.Module, **kwargs: Any) -> Tensor:
    value = sn.spectral_norm(layer, **kwargs).value
    assert value.ndim == 0
    assert value.dtype == layer.weight.dtype
    (grad,) = torch.autograd.grad(value, layer.weight)
    return grad


@generic
@every_method
def test_gradient_equals_finite_differences(case: Case, method: str) -> None:
    layer = case.layer().double()
    kwargs = arguments(case, method, rtol=1e-12 if method == "tracked" else 1e-8)
    grad = gradient(layer, **kwargs)
    weight = layer.weight.detach().clone()
    generator = torch.Generator().manual_seed(1)
    step = 1e-5
    for _ in range(2):
        direction = torch.randn(weight.shape, dtype=weight.dtype, generator=generator)
        values = []
        for shift in (step, -step):
            layer.weight.data = weight + shift * direction
            values.append(float(sn.spectral_norm(layer, **kwargs)))
        slope = (values[0] - values[1]) / (2 * step)
        assert float((grad * direction).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@generic
@every_method
def test_value_is_homogeneous_so_the_weight_times_its_gradient_is_the_value(case: Case, method: str) -> None:
    layer = case.layer().double()
    kwargs = arguments(case, method, rtol=1e-12 if method == "tracked" else 1e-8)
    product = float((gradient(layer, **kwargs) * layer.weight.detach()).sum())
    assert product == pytest.approx(float(sn.spectral_norm(layer, **kwargs)), rel=1e-9)


@generic
@every_method
def test_float32_gradient_is_the_float64_one(case: Case, method: str) -> None:
    kwargs = arguments(case, method, rtol=1e-6)
    single = gradient(case.layer(), **kwargs)
    double = gradient(case.layer().double(), **kwargs)
    assert single.dtype == torch.float32
    assert torch.linalg.vector_norm(single - double) <= 3e-3 * torch.linalg.vector_norm(double)


@pytest.mark.parametrize("method", ["tracked", "exact", "power", "flattened", "auto"])
def test_gradient_of_a_linear_layer_is_u_vt(method: str) -> None:
    layer = nn.Linear(7, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.arange(1.0, 8))[:5] + 0.1 * torch.arange(35.0).sin().reshape(5, 7))
    u, _, vh = torch.linalg.svd(layer.weight.detach())
    shape = () if method == "power" else None
    found = gradient(layer, method=method, input_shape=shape, rtol=1e-10)
    torch.testing.assert_close(found, torch.outer(u[:, 0], vh[0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["tracked", "exact"])
@pytest.mark.parametrize("name", ["conv1d-k7-wide", "conv2d-3x3-same", "conv2d-2x5-asymmetric", "conv3d-3x3x3"])
def test_gradient_of_a_convolution_is_an_outer_product_of_waves(name: str, method: str) -> None:
    """Re(conj(u) v^T exp(-i w.p)), u and v singular vectors of the symbol at the frequency it reports."""
    layer = next(c for c in CASES if str(c) == name).layer().double()
    rtol = 1e-10 if method == "tracked" else 0.1
    bound = sn.spectral_norm(layer, method=method, rtol=rtol)
    (found,) = torch.autograd.grad(bound.value, layer.weight)
    weight = layer.weight.detach()
    axes = [torch.arange(k, dtype=torch.float64) - (k - 1) / 2 for k in layer.kernel_size]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    wave = torch.exp(-1j * (positions @ torch.tensor(bound.stats["frequency"], dtype=torch.float64)))
    u, s, vh = torch.linalg.svd((weight * wave).flatten(2).sum(2))
    outer = torch.outer(u[:, 0].conj(), vh[0].conj())
    expected = (outer.reshape(*outer.shape, *(1,) * len(axes)) * wave).real
    assert float(s[0]) == pytest.approx(float(bound), rel=1e-9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@every_method
@pytest.mark.parametrize("case", [c for c in CASES if str(c) in ZERO], ids=str)
def test_a_zero_kernel_has_value_zero_and_a_finite_gradient(case: Case, method: str) -> None:
    layer = case.layer()
    kwargs = arguments(case, method, rtol=1e-3)
    bound = sn.spectral_norm(layer, **kwargs)
    assert float(bound) == bound.lower == 0
    assert bound.upper >= 0
    assert gradient(layer, **kwargs).isfinite().all()


@every_method
def test_a_zero_group_beside_another(method: str) -> None:
    case = next(c for c in CASES if str(c) == "conv2d-groups")
    layer = case.layer()
    with torch.no_grad():
        layer.weight[:3] = 0
    grad = gradient(layer, **arguments(case, method, rtol=1e-3))
    assert grad.isfinite().all()
    if method != "flattened":  # PyTorch's flattened kernel knows no groups
        assert grad[:3].abs().max() <= 1e-6 * grad.abs().max()


@every_method
def test_gradient_reaches_what_the_weight_was_made_from(method: str) -> None:
    case = next(c for c in CASES if str(c) == "conv2d-3x3-same")
    if method in AT_A_SIZE:
        shape: tuple[int, ...] | None = case.size
    else:
        shape = None
    scale = torch.tensor(2.0, requires_grad=True)
    weight = scale * case.layer().weight.detach()
    bound = sn.spectral_norm(weight, padding=1, method=ESTIMATORS[method], input_shape=shape)
    bound.value.backward()
    assert float(scale.grad) == pytest.approx(float(bound) / 2, rel=1e-4)


def test_half_precision_weights_get_half_precision_gradients() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        layer = nn.Conv2d(3, 4, 3).to(dtype)
        sn.spectral_norm(layer).value.backward()
        assert layer.weight.grad.dtype == dtype
        assert layer.weight.grad.isfinite().all()


# ---------------------------------------------------------------------- no trace


def snapshot(layer: nn.Module) -> dict[str, Any]:
    return {
        "state": copy.deepcopy(layer.state_dict()),
        "versions": [p._version for p in layer.parameters()],
        "addresses": [p.data_ptr() for p in layer.parameters()],
        "flags": [p.requires_grad for p in layer.parameters()],
        "training": layer.training,
    }


@every_method
@pytest.mark.parametrize("name", ["linear-wide", "conv2d-groups", "conv2d-circular", "conv1d-stride2"])
def test_a_measurement_leaves_the_layer_alone(name: str, method: str) -> None:
    case = next(c for c in CASES if str(c) == name)
    layer = case.layer()
    layer.bias.grad = torch.ones_like(layer.bias)
    before = snapshot(layer)
    bound = sn.spectral_norm(layer, **arguments(case, method, rtol=1e-3))
    after = snapshot(layer)
    assert all(torch.equal(v, after["state"][k]) for k, v in before.pop("state").items())
    del after["state"]
    assert before == after
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.ones_like(layer.bias))
    assert bound.value.requires_grad


@every_method
def test_a_measurement_leaves_the_random_states_alone(method: str) -> None:
    case = next(c for c in CASES if str(c) == "conv2d-3x3-same")
    layer = case.layer()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    sn.spectral_norm(layer, **arguments(case, method, rtol=1e-3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tobytes())  # noqa: NPY002


@every_method
@generic
def test_two_calls_give_the_same_result(case: Case, method: str) -> None:
    results = []
    for seed in (1, 2):  # whatever the global random state
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            bound = sn.spectral_norm(case.layer(), **arguments(case, method, rtol=1e-3))
        results.append((float(bound), bound.lower, bound.upper, bound.method))
    assert results[0] == results[1]


@every_method
def test_frozen_weights_and_no_grad(method: str) -> None:
    case = next(c for c in CASES if str(c) == "conv2d-circular-stride-divides")
    layer = case.layer()
    kwargs = arguments(case, method, rtol=1e-3)
    expected = sn.spectral_norm(layer, **kwargs)
    with torch.no_grad():
        assert not sn.spectral_norm(layer, **kwargs).value.requires_grad
    frozen = sn.spectral_norm(layer.requires_grad_(False), **kwargs)
    assert not frozen.value.requires_grad
    assert float(frozen) == float(expected)


@every_method
def test_a_measurement_in_inference_mode_does_not_spoil_later_gradients(method: str) -> None:
    """What is cached of a kernel's shape must not be an inference tensor; the shape here is used nowhere else."""
    layer = nn.Conv2d(2, 3, (2, 4), stride=2, dilation=(1, 3))
    shape = (9, 14) if method in AT_A_SIZE else None
    with torch.inference_mode():
        sn.spectral_norm(layer, method=ESTIMATORS[method], input_shape=shape, rtol=0.1)
    sn.spectral_norm(layer, method=ESTIMATORS[method], input_shape=shape, rtol=0.1).value.backward()
    assert layer.weight.grad.isfinite().all()


def test_every_method_is_tested_here() -> None:
    """But for the upper bounds, which `test_upper_bounds.py` tests."""
    upper_bounds = {METHODS[name] for name in ("gram", "flattened_bound", "separated")}
    assert {type(e) for e in ESTIMATORS.values()} >= set(METHODS.values()) - upper_bounds


def test_angle_of_the_trap() -> None:
    """K = (1, 1, -1): 1 at frequency zero, where a real start stays; the norm is sqrt(5)."""
    weight = torch.tensor([[[1.0, 1.0, -1.0]]])
    for rtol in (1e-2, 1e-3, 1e-6):
        assert float(sn.spectral_norm(weight, rtol=rtol)) == pytest.approx(math.sqrt(5), rel=rtol)


@pytest.mark.parametrize("method", ["tracked", "certified", "exact", "power", "gram", "flattened"])
def test_a_second_derivative_is_refused_and_names_what_has_one(method: str) -> None:
    """The vectors are held fixed, so that a Hessian through the value would be wrong without a word."""
    weight = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    bound = sn.spectral_norm(weight, method=method, input_shape=6, padding=1, padding_mode="circular")
    (grad,) = torch.autograd.grad(bound.value.square(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="singular_values"):
        torch.autograd.grad(grad.square().sum(), weight)


def test_a_float32_norm_near_overflow_has_a_value_and_a_gradient() -> None:
    weight = torch.full((2, 2, 3), 3e37, requires_grad=True)
    bound = sn.spectral_norm(weight, method="tracked")
    bound.value.backward()
    assert float(bound) == pytest.approx(6 * 3e37, rel=1e-6)
    assert bool(weight.grad.isfinite().all())


def test_the_hessian_through_singular_values_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    weight, step = torch.randn(2, 2, 3, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)

    def gradient(at: torch.Tensor, *, graph: bool = False) -> torch.Tensor:
        norm = sn.singular_values(at, 5, padding=1, padding_mode="circular")[0]
        return torch.autograd.grad(norm.square(), at, create_graph=graph)[0]

    at = weight.clone().requires_grad_()
    (product,) = torch.autograd.grad((gradient(at, graph=True) * step).sum(), at)
    ends = [gradient((weight + shift * step).requires_grad_()) for shift in (1e-5, -1e-5)]
    torch.testing.assert_close(product, (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-5)
