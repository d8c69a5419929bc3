"""`spectral_norm`: arguments, dtypes, tolerances, and how the norm moves with the weight."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from cases import CASES, Case
from reference import dense_norm, is_transposed
from spectralnorm.estimators import MatrixFree

CONV_ARGS = ("stride", "padding", "padding_mode", "dilation", "groups")


def named(*names: str) -> list[Case]:
    found = [case for case in CASES if str(case) in names]
    assert len(found) == len(names)
    return found


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------- what can be measured


RAW = [c for c in CASES if not any(getattr(c.layer(), "output_padding", ()))]  # which a raw weight does not take


@pytest.mark.parametrize("case", RAW, ids=str)
def test_a_raw_weight_with_its_arguments_is_the_layer(case: Case) -> None:
    layer = case.layer()
    options = {} if isinstance(layer, nn.Linear) else {name: getattr(layer, name) for name in CONV_ARGS}
    if is_transposed(layer):
        options["transposed"] = True
    for kwargs in ({"method": "flattened"}, {"input_shape": case.size or None, "method": "exact"}):
        raw, whole = (sn.spectral_norm(w, **kwargs, **o) for w, o in ((layer.weight, options), (layer, {})))
        assert (float(raw), raw.lower, raw.upper) == (float(whole), whole.lower, whole.upper)


def test_one_number_stands_for_every_axis() -> None:
    weight = drawn(3, 2, 3, 3)
    one = sn.spectral_norm(weight, stride=2, padding=1, dilation=3, input_shape=(9, 9))
    each = sn.spectral_norm(weight, stride=(2, 2), padding=[1, 1], dilation=(3, 3), input_shape=(9, 9))
    assert float(one) == float(each)


@pytest.mark.parametrize(("padding", "same_as"), [("valid", 0), ("same", 2), ((2, 2), 2)])
def test_padding_by_name(padding: Any, same_as: int) -> None:
    weight = drawn(3, 2, 5, 5)
    for mode in ("zeros", "circular", "reflect", "replicate"):
        found = sn.spectral_norm(weight, padding=padding, padding_mode=mode, input_shape=(6, 7))
        expected = sn.spectral_norm(weight, padding=same_as, padding_mode=mode, input_shape=(6, 7))
        assert float(found) == float(expected)


@pytest.mark.parametrize("input_shape", [None, ()])
@pytest.mark.parametrize("method", ["auto", "tracked", "exact", "flattened"])
def test_a_dense_layer_has_no_size(method: str, input_shape: tuple[()] | None) -> None:
    layer = named("linear-wide")[0].layer()
    found = float(sn.spectral_norm(layer, method=method, input_shape=input_shape))
    assert found == pytest.approx(dense_norm(layer, ()), rel=1e-3)


@pytest.mark.parametrize("input_shape", [(12,), [12], 12, torch.Size([12])])
def test_spellings_of_a_size(input_shape: Any) -> None:
    layer = named("conv1d-stride2")[0].layer()
    found = sn.spectral_norm(layer, input_shape=input_shape)
    assert float(found) == float(sn.spectral_norm(layer, input_shape=(12,)))
    assert float(found) == pytest.approx(dense_norm(layer, (12,)), rel=1e-3)


def test_a_size_is_not_mistaken_for_its_transpose() -> None:
    layer = nn.Conv2d(1, 1, (1, 5), padding=(0, 2))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1, 1, -1, 1]).reshape(1, 1, 1, 5))
    for size in ((2, 15), (15, 2)):
        assert float(sn.spectral_norm(layer, input_shape=size)) == pytest.approx(dense_norm(layer, size), rel=1e-3)
    assert dense_norm(layer, (2, 15)) > 1.5 * dense_norm(layer, (15, 2))


def test_a_layer_on_a_large_grid_is_quick() -> None:
    """A size without closed form never builds the matrix; a closed form never visits every frequency."""
    layer = nn.Conv2d(4, 8, 3, padding=1)
    at_size = float(sn.spectral_norm(layer, input_shape=(128, 128)))
    assert at_size <= float(sn.spectral_norm(layer, rtol=1e-6)) * (1 + 1e-6)
    circular = nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular")
    norm = float(sn.spectral_norm(circular, rtol=1e-6))
    assert float(sn.spectral_norm(circular, input_shape=(256, 256))) == pytest.approx(norm, rel=2e-3)


def test_a_parametrised_weight_is_measured_as_it_is_used() -> None:
    layer = nn.Linear(6, 4)
    nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data *= 3
    bound = sn.spectral_norm(layer, method="exact")
    assert float(bound) == pytest.approx(float(torch.linalg.matrix_norm(layer.weight.detach(), 2)), rel=1e-6)
    bound.value.backward()
    assert layer.parametrizations.weight.original0.grad.isfinite().all()


# ---------------------------------------------------------------------- methods


def test_auto_picks_by_the_size() -> None:
    zeros, circular = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    assert sn.spectral_norm(zeros).method == "tracked"
    assert sn.spectral_norm(circular).method == "tracked"
    assert sn.spectral_norm(circular, input_shape=(8, 8)).method == "exact"
    assert sn.spectral_norm(zeros, input_shape=(8, 8)).method == "exact"  # 128 columns
    assert sn.spectral_norm(zeros, input_shape=(40, 40)).method == "matrix-free"


@pytest.mark.parametrize("name", ["tracked", "exact", "power", "flattened"])
def test_a_name_is_its_estimator_with_default_options(name: str) -> None:
    layer = named("conv2d-circular")[0].layer()
    estimator = {"tracked": sn.Tracked, "exact": sn.Exact, "power": sn.Power, "flattened": sn.Flattened}[name]
    by_name = sn.spectral_norm(layer, method=name, input_shape=(8, 8))
    by_object = sn.spectral_norm(layer, method=estimator(), input_shape=(8, 8))
    assert (float(by_name), by_name.method) == (float(by_object), name)


def test_options_of_an_estimator_are_used() -> None:
    layer = named("conv2d-3x3-same")[0].layer()
    size = (9, 9)
    assert sn.spectral_norm(layer, method=sn.Power(iterations=3), input_shape=size).stats["iterations"] == 3
    short = sn.spectral_norm(layer, method=sn.Tracked(screening=1, tracks=1, max_sweeps=4), rtol=1e-9)
    assert short.stats["sweeps"] <= 8
    assert sn.spectral_norm(layer, method=MatrixFree(max_steps=5), input_shape=size).stats["steps"] <= 5
    with pytest.raises(ValueError, match="324 columns; expected at most 100"):
        sn.spectral_norm(layer, method=sn.Exact(max_columns=100), input_shape=size)


def test_power_keeps_its_history() -> None:
    layer = named("conv2d-3x3-same")[0].layer()
    history = sn.spectral_norm(layer, method="power", input_shape=(9, 9)).stats["history"]
    assert all(a <= b * (1 + 1e-6) for a, b in itertools.pairwise(history))


def test_a_users_estimator() -> None:
    class Frobenius(sn.Estimator):
        name = "frobenius"

        def estimate(self, operator: Any, size: Any, rtol: float) -> sn.Bound:
            assert (size, rtol) == ((4, 5), 0.25)
            value = torch.linalg.vector_norm(operator.weight)
            return sn.Bound(value, 0.0, math.inf, self.name)

    bound = sn.spectral_norm(torch.ones(1, 1, 2, 2), method=Frobenius(), input_shape=(4, 5), rtol=0.25)
    assert (float(bound), bound.method) == (2.0, "frobenius")


# ---------------------------------------------------------------------- dtypes and tolerances


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["auto", "tracked", "exact", "power", "flattened"])
def test_half_precision_weights_are_computed_in_float32(method: str, dtype: torch.dtype) -> None:
    layer = named("conv2d-circular")[0].layer().to(dtype)
    half = sn.spectral_norm(layer, method=method, input_shape=(8, 8))
    single = sn.spectral_norm(layer.float(), method=method, input_shape=(8, 8))
    assert half.value.dtype == torch.float32
    assert float(half) == float(single)


@pytest.mark.parametrize("method", ["auto", "tracked", "exact", "power", "flattened"])
def test_double_precision_stays_double(method: str) -> None:
    layer = named("conv2d-circular")[0].layer().double()
    assert sn.spectral_norm(layer, method=method, input_shape=(8, 8)).value.dtype == torch.float64


@pytest.mark.parametrize("method", ["auto", "tracked", "exact", "power", "flattened", MatrixFree()], ids=str)
@pytest.mark.parametrize("case", named("conv2d-circular", "linear-wide"), ids=str)
def test_autocast_does_not_touch_a_measurement(case: Case, method: Any) -> None:
    layer = case.layer()
    plain = sn.spectral_norm(layer, method=method, input_shape=case.size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sn.spectral_norm(layer, method=method, input_shape=case.size)
    assert (float(mixed), mixed.lower, mixed.value.dtype) == (float(plain), plain.lower, torch.float32)


def test_a_default_dtype_or_device_of_the_user_changes_nothing() -> None:
    """What is cached of a kernel's shape must not depend on them; the shape here is used nowhere else."""
    weight = drawn(3, 2, 1, 9)
    torch.set_default_dtype(torch.float64)
    try:
        double = float(sn.spectral_norm(weight, dilation=(1, 2)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(sn.spectral_norm(weight, dilation=(1, 2))) == pytest.approx(double, rel=1e-5)
    with torch.device("meta"):
        elsewhere = float(sn.spectral_norm(weight, dilation=(1, 3), stride=2))
    assert float(sn.spectral_norm(weight, dilation=(1, 3), stride=2)) == elsewhere


def test_a_float32_value_from_below_is_never_rounded_up() -> None:
    for seed in range(20):
        weight = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(seed))
        for bound in (sn.spectral_norm(weight), sn.spectral_norm(weight, method=MatrixFree(), input_shape=9)):
            assert float(bound) <= bound.lower


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tracked_honours_a_small_tolerance(case: Case) -> None:
    norm = case.size_free_norm()
    bound = sn.spectral_norm(case.layer(), rtol=1e-6)
    assert (1 - 1e-6) * norm <= bound.lower <= norm * (1 + 1e-12)
    assert float(bound) == pytest.approx(norm, rel=1.2e-6, abs=0)  # a float32 value, rounded down


@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-4])
def test_auto_honours_the_tolerance_at_a_size(rtol: float) -> None:
    for case in named("conv2d-3x3-wide", "conv2d-7x7-same", "conv2d-circular-beyond-same", "conv3d-3x3x3"):
        bound = sn.spectral_norm(case.layer(), input_shape=case.size, rtol=rtol)
        assert float(bound) == pytest.approx(case.dense_norm(), rel=rtol)


# ---------------------------------------------------------------------- how the norm moves with the weight

BASE = drawn(4, 6, 3, 5)


@pytest.mark.parametrize("factor", [-1.0, 3.0, -0.5, 1e-10, 1e10, 1e-18, 1e18])
@pytest.mark.parametrize("kwargs", [{}, {"input_shape": (6, 7)}, {"input_shape": (6, 7), "method": "power"}])
def test_scaling(factor: float, kwargs: dict[str, Any]) -> None:
    norm = float(sn.spectral_norm(BASE, padding=(1, 2), **kwargs))
    scaled = float(sn.spectral_norm(factor * BASE, padding=(1, 2), **kwargs))
    assert scaled == pytest.approx(abs(factor) * norm, rel=2e-3, abs=0)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("method", ["tracked", "exact", "power", "flattened", MatrixFree()], ids=str)
def test_scales_whose_square_no_float32_holds(method: Any, factor: float) -> None:
    size = {"tracked": None, "flattened": None}.get(method, (6, 7))
    norm, scaled = (sn.spectral_norm(w, method=method, input_shape=size) for w in (BASE, factor * BASE))
    assert float(scaled) == pytest.approx(factor * float(norm), rel=2e-3, abs=0)


ORTHOGONAL = torch.linalg.qr(drawn(6, 6)).Q
SAME_NORM = {
    "adjoint: channels transposed, taps reversed": lambda w: w.transpose(0, 1).flip(2, 3),
    "channels transposed": lambda w: w.transpose(0, 1),
    "taps reversed along one axis": lambda w: w.flip(3),
    "axes transposed": lambda w: w.transpose(2, 3),
    "output channels permuted": lambda w: w[[2, 0, 3, 1]],
    "input channels permuted": lambda w: w.flip(1),
    "signs of output channels": lambda w: w * torch.tensor([1.0, -1, -1, 1])[:, None, None, None],
    "signs alternating over taps": lambda w: w * torch.tensor([1.0, -1, 1, -1, 1]),
    "input channels rotated": lambda w: torch.einsum("oihw,ij->ojhw", w, ORTHOGONAL),
    "a zero channel more": lambda w: torch.cat([w, torch.zeros(1, *w.shape[1:])]),
    "a ring of zero taps": lambda w: nn.functional.pad(w, (1, 1, 1, 1)),
    "shifted by a zero tap": lambda w: nn.functional.pad(w, (0, 2)),
}


@pytest.mark.parametrize("change", SAME_NORM)
def test_changes_that_keep_the_size_free_norm(change: str) -> None:
    norm = float(sn.spectral_norm(BASE, rtol=1e-6))
    assert float(sn.spectral_norm(SAME_NORM[change](BASE), rtol=1e-6)) == pytest.approx(norm, rel=3e-6)


def test_the_parts_of_a_norm() -> None:
    """Groups take the maximum, a part of a layer has no larger norm, and a sum no larger one than the sum."""
    one, two = drawn(3, 2, 3), 3 * drawn(6, 2, 3)[3:]
    norms = [float(sn.spectral_norm(w, rtol=1e-6)) for w in (one, two)]
    grouped = float(sn.spectral_norm(torch.cat([one, two]), groups=2, rtol=1e-6))
    assert grouped == pytest.approx(max(norms), rel=3e-6)
    assert float(sn.spectral_norm(one[:2], rtol=1e-6)) <= norms[0] * (1 + 3e-6)
    assert float(sn.spectral_norm(one[..., :2], stride=2, rtol=1e-6)) <= norms[0] * (1 + 3e-6)
    assert float(sn.spectral_norm(one + two, rtol=1e-6)) <= sum(norms) * (1 + 3e-6)


def test_a_stride_never_raises_the_norm() -> None:
    norms = [float(sn.spectral_norm(BASE, stride=s, rtol=1e-6)) for s in (1, 2, 4, 8)]
    assert all(fine >= coarse * (1 - 3e-6) for fine, coarse in itertools.pairwise(norms))
    flat = float(sn.spectral_norm(BASE, method="flattened"))
    assert norms[-1] == pytest.approx(flat, rel=3e-6)  # strides past the kernel: one output, one patch


def test_dilation_keeps_the_size_free_norm() -> None:
    norms = [float(sn.spectral_norm(BASE, dilation=d, rtol=1e-6)) for d in (1, 2, (3, 5))]
    assert norms == pytest.approx([norms[0]] * 3, rel=3e-6)
