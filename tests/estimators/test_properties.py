"""What must hold for every convolution, over hyper-parameters that nobody thought of."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spectralnorm as sn
from reference import dense_matrix, dense_norm, size_free_norm

ROUNDING = 1e-12  # relative, of the float64 references
COLUMNS = 1200
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

quickly = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much],
)


@dataclass(frozen=True)
class Setup:
    """A convolution and a size that PyTorch accepts."""

    channels: tuple[int, int]
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    options: dict[str, Any]
    seed: int
    pattern: str = "normal"

    @property
    def transposed(self) -> bool:
        return "output_padding" in self.options

    def layer(self) -> nn.Module:
        conv = (_TRANSPOSED if self.transposed else _CONV)[len(self.kernel)]
        layer = conv(*self.channels, self.kernel, bias=False, **self.options)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            layer.weight.copy_(PATTERNS[self.pattern](torch.randn(layer.weight.shape, generator=generator)))
        return layer


def _sparse(w: Tensor) -> Tensor:
    return w * (w.abs() > 1)


PATTERNS = {
    "normal": lambda w: w,
    "integer": torch.round,  # ties, zeros
    "positive": torch.abs,
    "signs": lambda w: w.sign(),
    "sparse": _sparse,
    "one channel dominates": lambda w: w * 1e3 ** (torch.arange(len(w)) == 0).view(-1, *[1] * (w.ndim - 1)),
    "tiny": lambda w: 1e-9 * w,
}


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """Any convolution over 1 to 3 axes, transposed or not, whose matrix at the size has at most 1,200 columns."""
    axes = draw(st.integers(1, 3))
    largest = {1: 5, 2: 5, 3: 3}[axes]

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    kernel, stride, dilation = each(1, largest), each(1, 4), each(1, 3)
    groups = draw(st.integers(1, 3))
    most = {1: 4, 2: 3, 3: 2}[axes]
    channels = groups * draw(st.integers(1, most)), groups * draw(st.integers(1, most))
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate", "transposed"]))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    same = set(stride) == {1} and mode != "transposed" and draw(st.booleans())
    padding = tuple(draw(st.integers(0, e + 1)) for e in extent)
    right = [e // 2 for e in extent] if same else padding
    total = [e - 1 for e in extent] if same else [2 * p for p in padding]
    size = []
    for e, pad, both, s in zip(extent, right, total, stride, strict=True):
        least = max(1, e - both, {"circular": pad, "reflect": pad + 1}.get(mode, 1))
        if mode == "transposed":  # some output is left
            least = 1 + max(0, math.ceil((1 + both - e) / s))
        size.append(least + draw(st.integers(0, {1: 30, 2: 8, 3: 3}[axes])))
    assume(channels[0] * math.prod(size) <= COLUMNS)
    options = {"stride": stride, "dilation": dilation, "groups": groups, "padding": "same" if same else padding}
    if mode == "transposed":
        most_more = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        options["output_padding"] = tuple(draw(st.integers(0, m)) for m in most_more)
    else:
        options["padding_mode"] = mode
    pattern = draw(st.sampled_from(sorted(PATTERNS)))
    return Setup(channels, kernel, tuple(size), options, draw(st.integers(0, 99)), pattern)


TRAP = Setup((1, 1), (3,), (20,), {"padding": 1}, 0)
# The residual of the second singular value comes to lie below the tolerance before the first one's shows.
SECOND_FIRST = Setup(
    (3, 3), (5,), (16,), {"stride": 3, "dilation": 3, "padding": 13, "padding_mode": "circular"}, 1, "signs"
)


@quickly
@given(setups())
@example(TRAP)
def test_tracked_is_the_supremum_from_below(setup: Setup) -> None:
    layer = setup.layer()
    norm = size_free_norm(layer)
    bound = sn.spectral_norm(layer, method="tracked")
    assert (1 - 1e-3) * norm <= bound.lower <= norm * (1 + ROUNDING)
    assert float(bound) <= norm * (1 + ROUNDING)
    assert bound.upper == math.inf


@quickly
@given(setups())
@example(TRAP)
def test_auto_is_the_norm_at_the_size(setup: Setup) -> None:
    layer = setup.layer()
    norm = dense_norm(layer, setup.size)
    bound = sn.spectral_norm(layer, input_shape=setup.size)
    assert (1 - 1e-3) * norm <= float(bound) <= norm * (1 + 1e-6)
    assert bound.lower <= norm * (1 + ROUNDING)
    assert norm * (1 - ROUNDING) <= bound.upper


@quickly
@given(setups())
@example(TRAP)
def test_exact_encloses_the_norm_at_the_size(setup: Setup) -> None:
    layer = setup.layer()
    norm = dense_norm(layer, setup.size)
    for dtype in (torch.float64, torch.float32):
        bound = sn.spectral_norm(layer, input_shape=setup.size, method=sn.Exact(dtype=dtype))
        assert bound.lower <= norm * (1 + ROUNDING)
        assert norm * (1 - ROUNDING) <= bound.upper
        assert bound.certified or dtype == torch.float32


@quickly
@given(setups())
@example(TRAP)
@example(SECOND_FIRST)
def test_matrix_free_stays_below_the_norm_at_the_size(setup: Setup) -> None:
    layer = setup.layer()
    norm = dense_norm(layer, setup.size)
    bound = sn.spectral_norm(layer, input_shape=setup.size, method=sn.estimators.MatrixFree())
    assert (1 - 1e-3) * norm <= bound.lower <= norm * (1 + ROUNDING)


@quickly
@given(setups())
@example(TRAP)
def test_no_size_exceeds_the_size_free_norm_times_its_factor(setup: Setup) -> None:
    layer = setup.layer()
    factor = sn.as_operator(layer).padding_factor(None)
    assert dense_norm(layer, setup.size) <= factor * size_free_norm(layer) * (1 + ROUNDING)
    if setup.options.get("padding_mode", "zeros") == "zeros":
        assert factor == 1


@quickly
@given(setups())
@example(TRAP)
def test_the_norm_at_the_size_stays_below_every_ceiling(setup: Setup) -> None:
    """The first ceiling is a factor times the supremum of the symbol, the second times that of stride 1."""
    layer = setup.layer()
    operator, norm = sn.as_operator(layer), dense_norm(layer, setup.size)
    unstrided = copy.copy(layer)
    unstrided.stride = (1,) * len(setup.kernel)
    suprema = size_free_norm(layer), size_free_norm(unstrided)
    for size in (setup.size, None):
        ceilings = operator.ceilings(size)
        for (_, factor), supremum in zip(ceilings, suprema, strict=False):
            assert norm <= factor * supremum * (1 + ROUNDING)
        assert len(ceilings) == 1 or setup.options["padding_mode"] == "circular"


@quickly
@given(setups())
@example(TRAP)
def test_closed_forms_have_exactly_the_singular_value_of_the_matrix(setup: Setup) -> None:
    layer = setup.layer()
    closed = sn.as_operator(layer).grid(setup.size)
    assume(closed is not None)
    norm = dense_norm(layer, setup.size)
    bound = sn.spectral_norm(layer, input_shape=setup.size, method="tracked")
    assert (1 - 1e-3) * norm <= bound.lower <= norm * (1 + ROUNDING)


@quickly
@given(setups())
@example(TRAP)
def test_the_map_and_its_adjoint(setup: Setup) -> None:
    layer = setup.layer()
    operator = sn.as_operator(layer.double())
    matrix = dense_matrix(layer, setup.size)
    x = torch.randn(1, *operator.input_shape(setup.size), dtype=torch.float64)
    with torch.no_grad():
        image = operator.apply(x)
        torch.testing.assert_close(image.flatten(), matrix @ x.flatten())
        back = operator.adjoint(image, setup.size).flatten()
    torch.testing.assert_close(back, matrix.T @ image.flatten())


@quickly
@given(setups())
@example(TRAP)
def test_flattened_stays_below_the_norm_at_the_size(setup: Setup) -> None:
    layer = setup.layer()
    bound = sn.spectral_norm(layer, input_shape=setup.size, method="flattened")
    assert bound.lower <= dense_norm(layer, setup.size) * (1 + ROUNDING)
