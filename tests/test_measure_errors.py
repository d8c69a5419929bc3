"""Bad input to `spectral_norm`: one clear error that names the argument, its value and the cure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import spectralnorm as sn
from messages import check_says, complaint

WEIGHT = torch.ones(4, 3, 3, 3)


# ---------------------------------------------------------------------- method


def test_unknown_method() -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, method="svd"))
    check_says(message, "method='svd'", "unknown", "auto", "tracked", "exact", "power", "flattened")


@pytest.mark.parametrize("method", [3, None, sn.Tracked, ["exact"]])
def test_method_of_a_wrong_type(method: Any) -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(WEIGHT, method=method))
    check_says(message, f"method={method!r}", "name", "Estimator")


# ---------------------------------------------------------------------- weight


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (3, 0), (3, 3, 0)])
def test_empty_kernel(shape: tuple[int, ...]) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(torch.zeros(shape)))
    check_says(message, "weight", "empty", str(shape), "at least one entry")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integer_weight(dtype: torch.dtype) -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(torch.ones(3, 3, dtype=dtype)))
    check_says(message, "weight", str(dtype), "real floating-point", ".float()")


def test_complex_weight() -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(torch.ones(3, 3, dtype=torch.complex64)))
    check_says(message, "weight", "torch.complex64", "real floating-point")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["auto", "exact", "flattened"])
def test_weight_that_is_not_finite(value: float, method: str) -> None:
    layer = nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        layer.weight[1, 0, 2, 2] = value
    message = complaint(ValueError, lambda: sn.spectral_norm(layer, method=method))
    check_says(message, "Conv2d.weight", "1 NaN or infinite", "of 54", "expected finite", "checkpoint")


@pytest.mark.parametrize("shape", [(), (3,), (1, 1, 1, 1, 1, 1)])
def test_weight_of_a_wrong_rank(shape: tuple[int, ...]) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(torch.ones(shape)))
    check_says(message, "weight", str(shape), "matrix (outputs, inputs)", "kernel (c_out, c_in/groups, *k)")


# ---------------------------------------------------------------------- input_shape


@pytest.mark.parametrize("size", [(8, 8, 8), (8,), (), (3, 8, 8, 8), (-1, 8), (0, 8)])
def test_size_that_does_not_fit_the_axes(size: tuple[int, ...]) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, input_shape=size))
    check_says(message, f"input_shape={size}", "2-dimensional", "2 spatial sizes", "at least 1", "(32, 32)")


@pytest.mark.parametrize(
    "size", [(2.5, 8), "88", "large", ("8", "8"), 8.5, (None, 8), (math.nan, 8), (12.0, 8), object]
)
def test_size_that_is_not_whole_numbers(size: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, input_shape=size))
    check_says(message, f"input_shape={size!r}", "not a spatial size", "whole numbers", "(32, 32)")


@pytest.mark.parametrize("size", [(math.inf, 8), (8, -math.inf)])
def test_infinite_size(size: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, input_shape=size))
    check_says(message, f"input_shape={size!r}", "whole numbers")


def test_size_too_small_for_the_kernel() -> None:
    message = complaint(
        ValueError, lambda: sn.spectral_norm(WEIGHT, input_shape=(8, 4), dilation=2, method="exact")
    )
    check_says(message, "input_shape=(8, 4)", "too small", "kernel's extent of 5", "at least 5")


@pytest.mark.parametrize(("mode", "least"), [("circular", 4), ("reflect", 5)])
def test_size_too_small_for_the_padding(mode: str, least: int) -> None:
    layer = nn.Conv1d(1, 1, 3, padding=4, padding_mode=mode)
    message = complaint(ValueError, lambda: sn.spectral_norm(layer, input_shape=least - 1))
    check_says(message, f"input_shape=({least - 1},)", "too small", f"{mode} padding (4, 4)", f"at least {least}")
    assert sn.spectral_norm(layer, input_shape=least).lower > 0


def test_size_that_leaves_a_transposed_layer_no_output() -> None:
    layer = nn.ConvTranspose2d(1, 1, 3, padding=(4, 1), stride=(2, 1))
    message = complaint(ValueError, lambda: sn.spectral_norm(layer, input_shape=(3, 2)))
    check_says(message, "input_shape=(3, 2)", "too small", "padding=(4, 1)", "(-1, 2)", "at least (4, 2)")
    assert sn.spectral_norm(layer, input_shape=(4, 2)).lower > 0


@pytest.mark.parametrize("size", [8, (8,), (8, 8), 0])
def test_size_given_to_a_dense_layer(size: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(nn.Linear(8, 8), input_shape=size))
    check_says(message, "input_shape=", str(size), "dense layer", "expected None", "Leave input_shape out")


# ---------------------------------------------------------------------- rtol


@pytest.mark.parametrize("rtol", [0, -1, 2, 1, math.nan, math.inf, "a", None, True, (1e-3,)])
def test_tolerance(rtol: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, rtol=rtol))
    check_says(message, f"rtol={rtol!r}", "relative tolerance", "between 0 and 1")


# ---------------------------------------------------------------------- arguments of a convolution


@pytest.mark.parametrize("name", ["strides", "output_padding", "kernel_size"])
def test_unknown_argument(name: str) -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(WEIGHT, **{name: 2}))
    check_says(message, "unknown argument", name, "stride, padding, padding_mode, dilation, groups")


def test_arguments_given_beside_a_layer() -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(nn.Conv2d(1, 1, 1), stride=2, padding=1))
    check_says(message, "stride, padding", "Conv2d, which holds its own", "Leave them out")


def test_arguments_of_a_convolution_given_beside_a_matrix() -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(torch.ones(3, 4), stride=2))
    check_says(message, "(3, 4)", "without convolution arguments")


@pytest.mark.parametrize("groups", [3, 0, -1, 8, 2.0, "2", None, True])
def test_groups_that_do_not_divide(groups: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, groups=groups))
    check_says(message, f"groups={groups!r}", "4 output channels")


@pytest.mark.parametrize("name", ["stride", "dilation", "padding"])
@pytest.mark.parametrize("value", [-1, (1,), (1, 1, 1), (1.5, 1), "two", 1.5, None, (1, None)])
def test_values_that_do_not_fit_the_axes(name: str, value: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, **{name: value}))
    check_says(message, f"{name}={value!r}", "expected integers")


@pytest.mark.parametrize("name", ["stride", "dilation"])
def test_zero_stride_or_dilation(name: str) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, **{name: (1, 0)}))
    check_says(message, f"{name}=(1, 0)", "2 spatial axes", "at least 1")


def test_same_padding_with_a_stride() -> None:
    """PyTorch refuses it as well."""
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, padding="same", stride=2))
    check_says(message, "padding='same'", "stride")


@pytest.mark.parametrize("mode", ["reflection", "zero", None, 0])
def test_padding_mode_without_an_operator(mode: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, padding=1, padding_mode=mode))
    modes = "zeros, circular, reflect, replicate"
    check_says(message, f"padding_mode={mode!r}", f"expected one of {modes}", "register an operator")


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate", None])
def test_padding_mode_of_a_transposed_kernel(mode: Any) -> None:
    """PyTorch has zeros only."""
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, transposed=True, padding_mode=mode))
    check_says(message, f"padding_mode={mode!r}", "transposed", "expected 'zeros'")


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_of_a_transposed_kernel(padding: str) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, transposed=True, padding=padding))
    check_says(message, f"padding={padding!r}", "expected integers")


def test_groups_that_do_not_divide_the_inputs_of_a_transposed_kernel() -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, transposed=True, groups=3))
    check_says(message, "groups=3", "4 input channels")


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_transposed_is_true_or_false(value: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(WEIGHT, transposed=value))
    check_says(message, f"transposed={value!r}", "True nor False")


# ---------------------------------------------------------------------- layers


class Doubled(nn.Linear):
    """Another map than a Linear's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "cure"),
    [
        (nn.ReLU(), "it has no weight; .*Leave it out; .*register_operator(ReLU)"),
        (nn.Sequential(nn.Linear(2, 2)), "holds layers; .*Use spectralnorm.audit"),
        (nn.ModuleList(), "holds layers; .*Use spectralnorm.audit"),
        (nn.TransformerEncoderLayer(2, 1, 2), "holds layers; .*Use spectralnorm.audit"),
        (nn.LSTM(2, 2), "@spectralnorm.register_operator(LSTM), or measure a weight of it, .*layer.weight_ih_l0"),
        (Doubled(2, 2), "its forward is not that of Linear; .*@spectralnorm.register_operator(Doubled)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unknown_layer(layer: nn.Module, cure: str) -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(layer))
    known = "Linear, Conv1d-3d, ConvTranspose1d-3d, BatchNorm1d-3d"
    check_says(message, type(layer).__name__, "not a layer spectralnorm knows", known, *cure.split(".*"))


@pytest.mark.parametrize(
    ("layer", "reason"), [(nn.Embedding(3, 3), "measure its weight"), (nn.LayerNorm(3), "not linear")]
)
def test_layer_that_is_not_linear_in_its_input(layer: nn.Module, reason: str) -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(layer))
    check_says(message, type(layer).__name__, reason, "has no norm")


@pytest.mark.parametrize("thing", ["conv", None, 3, [[1.0]], nn.Linear])
def test_not_a_layer_at_all(thing: Any) -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(thing))
    check_says(message, "layer (torch.nn.Module)", "weight (Tensor)", f"got {type(thing).__name__}")


def test_lazy_layer() -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(nn.LazyConv2d(3, 3)))
    check_says(message, "LazyConv2d.weight", "not initialised", "run one batch")


def test_meta_layer() -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(nn.Linear(3, 3, device="meta")))
    check_says(message, "Linear.weight", "meta")


def test_sparse_weight() -> None:
    message = complaint(TypeError, lambda: sn.spectral_norm(torch.eye(3).to_sparse()))
    check_says(message, "weight", "sparse", "to_dense()")


# ---------------------------------------------------------------------- options of the methods


@pytest.mark.parametrize(
    "options",
    [
        lambda: sn.Tracked(tracks=0),
        lambda: sn.Tracked(max_sweeps=0),
        lambda: sn.Power(iterations=0),
        lambda: sn.Exact(dtype=torch.float16),
    ],
    ids=["tracks", "max_sweeps", "iterations", "dtype"],
)
def test_options_without_sense(options: Callable[[], sn.Estimator]) -> None:
    """Refused where they are given, or at the latest when they are used."""
    with pytest.raises((TypeError, ValueError)):
        sn.spectral_norm(WEIGHT, method=options(), input_shape=(8, 8), padding=1, padding_mode="circular")


def test_certified_is_true_or_false_and_goes_with_a_certified_object() -> None:
    weight = torch.eye(2)
    check_says(complaint(TypeError, lambda: sn.spectral_norm(weight, certified="yes")), "certified='yes'")
    assert sn.spectral_norm(weight, method=sn.Certified(), certified=True).certified
    check_says(complaint(ValueError, lambda: sn.spectral_norm(weight, method=sn.Exact(), certified=True)), "Exact")
