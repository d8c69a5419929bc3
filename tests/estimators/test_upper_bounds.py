"""The methods that give proven upper bounds: never below the norm, sensibly loose, differentiable."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from test_properties import TRAP, Setup, quickly, setups
from torch import Tensor, nn

import spectralnorm as sn
from cases import CASES, Case
from messages import check_says, complaint
from reference import dense_norm, is_transposed, size_free_norm
from spectralnorm.estimators import METHODS, gram, separated

ROUNDING = 1e-12  # relative, of the float64 references
ESTIMATORS = {
    "gram": sn.Gram(),
    "gram-coarse": sn.Gram(steps=1, points=1),
    "gram-float32": sn.Gram(steps=10, dtype=torch.float32),
    "flattened_bound": sn.FlattenedBound(),
    "separated": sn.Separated(),
    "separated-coarse": sn.Separated(points=1),
}
GENERIC = (  # the bound is smooth there
    "linear-wide",
    "conv1d-stride3-dilation2",
    "conv1d-circular-stride-does-not-divide",
    "conv2d-3x3-same",
    "conv2d-2x5-asymmetric",
    "conv2d-stride-groups",
    "conv2d-circular-stride-divides",
    "conv2d-circular-n-below-kernel",
    "conv2d-replicate-dilation-stride",
    "conv3d-3x3x3",
    "tconv2d-non-square",
)

every_method = pytest.mark.parametrize("method", ESTIMATORS)
main_methods = pytest.mark.parametrize("method", ["gram", "flattened_bound", "separated"])


def named(*names: str) -> list[Case]:
    found = [c for c in CASES if str(c) in names]
    assert len(found) == len(names)
    return found


generic = pytest.mark.parametrize("case", named(*GENERIC), ids=str)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Cases in turn, so that each one's reference is computed once."""
    return request.param


def measured(layer: nn.Module, method: str, size: tuple[int, ...] | None = None) -> sn.Bound:
    bound = sn.spectral_norm(layer, method=ESTIMATORS[method], input_shape=size)
    assert bound.lower == 0
    assert bound.upper <= float(bound) <= bound.upper * (1 + 1e-6)
    assert bound.value.dtype == layer.weight.dtype
    return bound


# ---------------------------------------------------------------------- above the norm


@every_method
def test_above_the_norm_at_the_size(case: Case, method: str) -> None:
    bound = measured(case.layer(), method, case.size)
    assert bound.upper >= case.dense_norm() * (1 - ROUNDING)
    assert bound.method == ESTIMATORS[method].name


@every_method
def test_above_the_size_free_norm(case: Case, method: str) -> None:
    bound = measured(case.layer(), method)
    assert bound.upper >= case.size_free_norm() * (1 - ROUNDING)
    assert bound.upper >= case.dense_norm() * (1 - ROUNDING)  # which is one of the sizes


@quickly
@given(setups())
@example(TRAP)
def test_above_the_norm_of_every_convolution(setup: Setup) -> None:
    layer = setup.layer()
    norm, supremum = dense_norm(layer, setup.size), size_free_norm(layer)
    for method in ESTIMATORS:
        assert measured(layer, method, setup.size).upper >= norm * (1 - ROUNDING)
        assert measured(layer, method).upper >= max(norm, supremum) * (1 - ROUNDING)


@every_method
@pytest.mark.parametrize("seed", range(3))
def test_above_the_norm_of_a_long_kernel(seed: int, method: str) -> None:
    """One channel and 255 taps, a wave: what lies between the points and the rounding of the phases count."""
    frequency = 0.1 + 3 * torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = (frequency * torch.arange(255)).cos().float()
    norm = float(torch.fft.fft(weight.double(), 2**16).abs().max())
    bound = sn.spectral_norm(weight[None, None], method=ESTIMATORS[method])
    assert norm <= bound.upper <= (20 if method == "flattened_bound" else 1.1) * norm


@every_method
@pytest.mark.parametrize("name", ["linear-zero", "conv1d-zero", "conv2d-zero-groups", "tconv2d-zero"])
def test_a_zero_kernel_has_norm_zero(name: str, method: str) -> None:
    (case,) = named(name)
    for size in (case.size, None):
        layer = case.layer()
        bound = measured(layer, method, size)
        assert float(bound) == bound.upper == 0
        bound.value.backward()
        assert layer.weight.grad.isfinite().all()


@every_method
def test_a_symbol_that_vanishes_on_the_whole_grid(method: str) -> None:
    """The two taps meet in the one cell: norm 0 at this size, sqrt(2) over all."""
    layer = nn.Conv1d(1, 1, 2, padding="same", padding_mode="circular")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0, -1.0]]]))
    bound = measured(layer, method, (1,))
    bound.value.backward()
    assert layer.weight.grad.isfinite().all()
    assert 0 <= bound.upper <= (1e-12 if method.startswith("gram") else 3)


@every_method
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_extreme_scales(scale: float, method: str) -> None:
    for case in named("conv2d-stride-groups", "linear-wide"):
        layer = case.layer()
        plain = measured(layer, method)
        with torch.no_grad():
            layer.weight *= scale
        scaled = measured(layer, method)
        assert scaled.upper == pytest.approx(scale * plain.upper, rel=1e-6)
        assert torch.autograd.grad(scaled.value, layer.weight)[0].isfinite().all()


@main_methods
@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**1000])
def test_extreme_scales_in_float64(scale: float, method: str) -> None:
    layer = named("conv2d-3x3-same")[0].layer().double()
    plain = measured(layer, method)
    with torch.no_grad():
        layer.weight *= scale
    assert measured(layer, method).upper == pytest.approx(scale * plain.upper, rel=1e-15)


# ---------------------------------------------------------------------- not far above


CLOSED = [c for c in CASES if sn.as_operator(c.layer()).grid(c.size) is not None]


@pytest.mark.parametrize("case", CLOSED, ids=str)
def test_gram_is_close_where_there_is_a_closed_form(case: Case) -> None:
    layer = case.layer()
    for method, most in ((sn.Gram(steps=10), 1.01), (sn.Gram(), 1.05)):
        bound = sn.spectral_norm(layer, method=method, input_shape=case.size)
        assert bound.upper <= most * case.dense_norm()


QUICK = [c for c in CASES if len(c.size) < 3 and math.prod(c.layer().weight.shape) < 2000]


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_gram_is_close_size_free(case: Case) -> None:
    layer = case.layer()
    bound = sn.spectral_norm(layer, method=sn.Gram(steps=10, points=100))
    assert bound.upper <= 1.03 * sn.as_operator(layer).padding_factor(None) * case.size_free_norm()


def test_more_steps_of_gram_are_never_looser() -> None:
    layer = named("conv2d-3x3-same")[0].layer()
    uppers = [sn.spectral_norm(layer, method=sn.Gram(steps=steps)).upper for steps in range(1, 9)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(uppers))
    assert uppers[0] > 1.05 * uppers[-1]


def test_gram_in_float32_states_its_rounding(case: Case) -> None:
    double, single = (sn.spectral_norm(case.layer(), method=sn.Gram(dtype=d)) for d in gram._ROUNDOFF)
    low, high = sorted((double.upper, single.upper))
    assert high <= low * (1 + 3e-4)


@pytest.mark.parametrize("case", [c for c in CASES if c.size and not is_transposed(c.layer())], ids=str)
def test_flattened_bound_is_within_sqrt_taps_of_the_flattened_norm(case: Case) -> None:
    layer = case.layer()
    kernel = math.prod(layer.kernel_size)
    factor = sn.as_operator(layer).padding_factor(None) * math.sqrt(kernel)
    flattened = float(sn.spectral_norm(layer, method="flattened"))
    assert measured(layer, "flattened_bound").upper <= factor * flattened * (1 + 1e-6)


def test_flattened_bound_takes_the_smallest_flattening() -> None:
    """u_o v_p and u_p v_c: one kernel is small with its taps along the rows, the other along the columns."""
    wave = torch.eye(4)
    by_row, by_column = wave[:, None, :].repeat(1, 3, 1), wave[None].repeat(3, 1, 1)
    for weight in (by_row, by_column):  # norms of the flattenings 3^(1/2) and 12^(1/2), or the other way round
        matrices = weight.flatten(1), weight.permute(0, 2, 1).flatten(0, 1)
        smallest = min(float(torch.linalg.matrix_norm(m, 2)) for m in matrices)
        bound = sn.spectral_norm(weight, method="flattened_bound")
        assert float(bound) == pytest.approx(2 * smallest, rel=1e-6)


@pytest.mark.parametrize("name", ["linear-wide", "linear-orthogonal", "conv2d-1x1", "conv1d-k1", "tconv2d-1x1"])
def test_flattened_bound_of_a_pointwise_layer_is_its_norm(name: str) -> None:
    (case,) = named(name)
    for size in (case.size, None):
        assert measured(case.layer(), "flattened_bound", size).upper <= case.dense_norm() * (1 + 1e-9)


@pytest.mark.parametrize("name", ["conv1d-depthwise", "conv2d-depthwise", "conv2d-depthwise-64", "conv2d-trap"])
def test_separated_is_close_for_depthwise_layers(name: str) -> None:
    (case,) = named(name)
    assert measured(case.layer(), "separated").upper <= 1.02 * case.size_free_norm()


def test_separated_is_close_for_kernels_that_are_not_negative() -> None:
    """Every pair's maximum lies at frequency zero."""
    layer = nn.Conv2d(5, 6, 3)
    with torch.no_grad():
        layer.weight.abs_()
    assert measured(layer, "separated").upper <= 1.02 * size_free_norm(layer)


@generic
def test_separated_is_within_the_matrix_of_absolute_sums(case: Case) -> None:
    layer = case.layer()
    operator = sn.as_operator(layer)
    weight = operator.symbol().weight.detach().double().abs()
    scatter = operator.symbol().layout.scatter(weight)
    most = torch.linalg.matrix_norm((weight @ scatter).flatten(2), 2).max()
    assert measured(layer, "separated").upper <= 1.1**3 * operator.padding_factor(None) * float(most)


# ---------------------------------------------------------------------- gradient


def gradient(layer: nn.Module, method: str, size: tuple[int, ...] | None) -> Tensor:
    (grad,) = torch.autograd.grad(measured(layer, method, size).value, layer.weight)
    return grad


@generic
@main_methods
@pytest.mark.parametrize("sized", [False, True], ids=["size-free", "sized"])
def test_gradient_equals_finite_differences(case: Case, method: str, sized: bool) -> None:
    layer, size = case.layer().double(), case.size if sized else None
    grad = gradient(layer, method, size)
    weight, step = layer.weight.detach().clone(), 1e-6
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(1))
    values = []
    for shift in (step, -step):
        layer.weight.data = weight + shift * direction
        values.append(float(measured(layer, method, size)))
    slope = (values[0] - values[1]) / (2 * step)
    assert float((grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@generic
@main_methods
def test_value_is_homogeneous_so_the_weight_times_its_gradient_is_the_value(case: Case, method: str) -> None:
    layer = case.layer().double()
    product = float((gradient(layer, method, None) * layer.weight.detach()).sum())
    assert product == pytest.approx(float(measured(layer, method)), rel=1e-9)


@generic
@every_method
def test_gradient_in_float32_is_the_one_in_float64(case: Case, method: str) -> None:
    single, double = gradient(case.layer(), method, case.size), gradient(case.layer().double(), method, case.size)
    assert single.dtype == torch.float32
    assert torch.linalg.vector_norm(single - double) <= 1e-5 * torch.linalg.vector_norm(double)


@main_methods
def test_only_the_group_with_the_norm_has_a_gradient(method: str) -> None:
    (case,) = named("conv2d-last-group-dominates")
    grad = gradient(case.layer(), method, None)
    assert not grad[:-2].any()
    assert grad[-2:].any()


@every_method
def test_frozen_weights_and_no_grad(method: str) -> None:
    layer = named("conv2d-stride2")[0].layer()
    with torch.no_grad():
        assert not measured(layer, method).value.requires_grad
    with torch.inference_mode():
        measured(layer, method)
    measured(layer, method).value.backward()
    assert layer.weight.grad.isfinite().all()
    assert not measured(layer.requires_grad_(False), method).value.requires_grad


# ---------------------------------------------------------------------- options


def test_names() -> None:
    assert {
        "gram": sn.Gram,
        "flattened_bound": sn.FlattenedBound,
        "separated": sn.Separated,
    }.items() <= METHODS.items()


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "32", None])
@pytest.mark.parametrize(
    ("estimator", "name"), [(sn.Gram, "steps"), (sn.Gram, "points"), (sn.Separated, "points")]
)
def test_counts_that_are_none(estimator: Any, name: str, value: Any) -> None:
    message = complaint(ValueError, lambda: estimator(**{name: value}))
    check_says(message, f"{name}={value!r}", "whole number", "at least 1")


def test_steps_of_gram_beyond_all_gain() -> None:
    check_says(complaint(ValueError, lambda: sn.Gram(steps=51)), "steps=51", "at most 50", "default of 6")
    for name in ("linear-wide", "conv2d-stride-groups", "linear-zero"):
        (case,) = named(name)
        layer = case.layer()
        bound = sn.spectral_norm(layer, method=sn.Gram(steps=50), input_shape=case.size)
        assert case.dense_norm() * (1 - ROUNDING) <= bound.upper
        bound.value.backward()
        assert layer.weight.grad.isfinite().all()
    exact = sn.spectral_norm(named("linear-wide")[0].layer(), method="exact")
    assert sn.spectral_norm(named("linear-wide")[0].layer(), method=sn.Gram(steps=50)).upper < exact.upper * 1.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64, torch.int64, "float32"])
def test_a_dtype_that_gram_does_not_offer(dtype: Any) -> None:
    check_says(complaint(ValueError, lambda: sn.Gram(dtype=dtype)), f"dtype={dtype}", "torch.float32")


def test_the_points_are_an_option() -> None:
    layer = named("conv2d-3x3-same")[0].layer()
    for method in (sn.Gram, sn.Separated):
        coarse, fine = (sn.spectral_norm(layer, method=method(points=n)) for n in (8, 64))
        assert (coarse.stats["points"], fine.stats["points"]) == (5 * 8, 33 * 64)
        assert fine.upper < coarse.upper


def test_blocks_in_small_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in named("conv2d-stride-groups", "conv1d-depthwise"):
        whole = [measured(case.layer(), method).upper for method in ESTIMATORS]
        for module in (gram, separated):
            monkeypatch.setattr(module, "_CHUNK", 40)
        pieces = [measured(case.layer(), method).upper for method in ESTIMATORS]
        monkeypatch.undo()
        assert pieces == pytest.approx(whole, rel=1e-12)


def test_reduced_float32_products_are_not_relied_on() -> None:
    layer = named("conv2d-3x3-same")[0].layer()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        reduced = sn.spectral_norm(layer, method=sn.Gram(dtype=torch.float32)).upper
    finally:
        torch.set_float32_matmul_precision(before)
    assert reduced == sn.spectral_norm(layer, method=sn.Gram()).upper
