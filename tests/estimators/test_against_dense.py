"""Every estimator on the whole table of cases, against the dense matrix and the brute-force supremum."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import spectralnorm as sn
from cases import CASES, Case
from reference import dense_matrix, dense_norm

ROUNDING = 1e-12  # relative, of the float64 references


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Cases in turn, so that each one's reference is computed once."""
    return request.param


def encloses(bound: sn.Bound, norm: float) -> bool:
    return bound.lower <= norm * (1 + ROUNDING) and norm * (1 - ROUNDING) <= bound.upper


def test_exact_at_the_size(case: Case) -> None:
    bound = sn.spectral_norm(case.layer(), input_shape=case.size, method="exact")
    assert float(bound) == pytest.approx(case.dense_norm(), rel=1e-6, abs=0)
    assert encloses(bound, case.dense_norm())
    assert bound.certified
    assert bound.lower <= float(bound) * (1 + 1e-6) <= bound.upper * (1 + 2e-6)


def test_exact_in_float32_states_its_rounding(case: Case) -> None:
    bound = sn.spectral_norm(case.layer(), input_shape=case.size, method=sn.Exact(dtype=torch.float32))
    assert float(bound) == pytest.approx(case.dense_norm(), rel=1e-5, abs=0)
    assert encloses(bound, case.dense_norm())


def columns(case: Case, factor: int = 1) -> int:
    """Columns of the dense matrix at `factor` times the size."""
    return math.prod(sn.as_operator(case.layer()).input_shape(tuple(factor * n for n in case.size)))


def taps(case: Case) -> int:
    return math.prod(case.layer().weight.shape[2:])


QUICK = [c for c in CASES if columns(c) < 500 and taps(c) <= 20 and len(c.size) < 3]  # of a coarse grid
SMALL = [c for c in CASES if c.size and columns(c, factor=2) <= 600]


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_exact_size_free_encloses_the_supremum(case: Case) -> None:
    layer = case.layer()
    bound = sn.spectral_norm(layer, method="exact", rtol=1e-2)
    norm, factor = case.size_free_norm(), sn.as_operator(layer).padding_factor(None)
    assert encloses(bound, norm)
    assert bound.upper <= 1.01 * factor * norm
    assert float(bound) == pytest.approx(norm, rel=1e-2, abs=0)


def test_tracked_size_free(case: Case) -> None:
    bound = sn.spectral_norm(case.layer(), method="tracked")
    norm = case.size_free_norm()
    assert (1 - 1e-3) * norm <= bound.lower <= norm * (1 + ROUNDING)
    assert (1 - 1e-3) * norm <= float(bound) <= norm * (1 + ROUNDING)
    assert bound.upper == math.inf


@pytest.mark.parametrize("seed", [0, 9, 131])
def test_tracked_finds_the_highest_of_several_maxima(seed: int) -> None:
    """Random flat kernels with many local maxima; the grid of the exact method visits them all."""
    weight = torch.randn(32, 32, 7, generator=torch.Generator().manual_seed(seed))
    norm = sn.spectral_norm(weight, method="exact", rtol=1e-3).lower
    assert sn.spectral_norm(weight, method="tracked").lower >= (1 - 1e-3) * norm


def test_tracked_at_the_size_where_there_is_a_closed_form(case: Case) -> None:
    layer, norm = case.layer(), case.dense_norm()
    if sn.as_operator(layer).grid(case.size) is None:
        with pytest.raises(ValueError, match=r"method='tracked'.*no closed form.*input_shape=.*method='auto'"):
            sn.spectral_norm(layer, input_shape=case.size, method="tracked")
        return
    bound = sn.spectral_norm(layer, input_shape=case.size, method="tracked")
    assert (1 - 1e-3) * norm <= bound.lower <= norm * (1 + ROUNDING)
    assert float(bound) <= norm * (1 + ROUNDING)


def test_auto(case: Case) -> None:
    layer = case.layer()
    at_size = sn.spectral_norm(layer, input_shape=case.size)
    assert float(at_size) == pytest.approx(case.dense_norm(), rel=1e-3, abs=0)
    assert encloses(at_size, case.dense_norm())
    size_free = sn.spectral_norm(layer)
    assert float(size_free) == pytest.approx(case.size_free_norm(), rel=1e-3, abs=0)
    assert encloses(size_free, case.size_free_norm())


def test_matrix_free(case: Case) -> None:
    norm = case.dense_norm()
    bound = sn.spectral_norm(case.layer(), input_shape=case.size, method=sn.estimators.MatrixFree())
    assert (1 - 1e-3) * norm <= float(bound) <= norm * (1 + ROUNDING)
    assert encloses(bound, norm)
    assert bound.stats["converged"]


def test_power(case: Case) -> None:
    bound = sn.spectral_norm(case.layer(), input_shape=case.size, method="power")
    norm = case.dense_norm()
    values = torch.linalg.svdvals(dense_matrix(case.layer(), case.size))
    crowded = len(values) > 1 and values[1] > 0.99 * values[0]
    assert (1 - (1e-2 if crowded else 1e-3)) * norm <= float(bound) <= norm * (1 + ROUNDING)
    assert encloses(bound, norm)


def pytorch_spectral_norm(layer: nn.Module) -> float:
    """What PyTorch's parametrization divides the weight by, converged, for a kernel of about unit size."""
    layer = copy.deepcopy(layer).double()
    scale = float(layer.weight.detach().abs().max())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer.weight /= scale  # its eps of 1e-12 is absolute
        before = layer.weight.norm().item()
        nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=1000)
        return scale * before / layer.weight.norm().item()


def test_flattened_is_what_pytorch_divides_by(case: Case) -> None:
    layer = case.layer()
    bound = sn.spectral_norm(layer, input_shape=case.size, method="flattened")
    expected = pytorch_spectral_norm(layer) if layer.weight.any() else 0.0
    assert float(bound) == pytest.approx(expected, rel=1e-6, abs=0)
    assert encloses(bound, case.dense_norm())
    size_free = sn.spectral_norm(layer, method="flattened")
    assert float(size_free) == float(bound)
    assert size_free.lower <= case.size_free_norm() * (1 + ROUNDING)
    assert size_free.upper >= case.size_free_norm() * (1 - ROUNDING)


def test_the_size_free_norm_bounds_every_size(case: Case) -> None:
    operator = sn.as_operator(case.layer())
    factor = operator.padding_factor(None)
    cells = [1 + sum(p) for p in operator.padding] if getattr(operator, "padding_mode", "") == "replicate" else []
    assert 1 <= factor <= math.prod(cells or [3] * len(case.size)) ** 0.5
    assert case.dense_norm() <= factor * case.size_free_norm() * (1 + ROUNDING)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_size_free_norm_bounds_twice_the_size_too(case: Case) -> None:
    layer, size = case.layer(), tuple(2 * n for n in case.size)
    factor = sn.as_operator(layer).padding_factor(None)
    assert dense_norm(layer, size) <= factor * case.size_free_norm() * (1 + ROUNDING)


@pytest.mark.parametrize("seed", range(10))
def test_exact_encloses_the_norm_of_a_long_kernel(seed: int) -> None:
    """One channel and 255 taps: the rounding of the phases outweighs that of the SVD."""
    n, k = 300, 255
    frequency = 2 * math.pi * (torch.randint(1, 150, (), generator=torch.Generator().manual_seed(seed)) + 0.5) / n
    weight = (frequency * torch.arange(k, dtype=torch.float64)).cos().float()
    norm = float(torch.fft.fft(nn.functional.pad(weight.double(), (0, n - k))).abs().max())
    options = {"padding": k // 2, "padding_mode": "circular", "input_shape": n}
    bound = sn.spectral_norm(weight[None, None], method=sn.Exact(dtype=torch.float32), **options)
    assert encloses(bound, norm)


@pytest.mark.parametrize("method", ["power", sn.estimators.MatrixFree()], ids=["power", "matrix-free"])
def test_iterations_on_the_layer_need_a_size(method: str | sn.Estimator) -> None:
    with pytest.raises(ValueError, match=r"input_shape, got None.*such as \(32, 32\)"):
        sn.spectral_norm(nn.Conv2d(1, 1, 3), method=method)


def test_exact_says_when_the_matrix_is_too_large() -> None:
    with pytest.raises(
        ValueError, match=r"'exact' has no closed form at input_shape=\(40, 40\).*4800.*4096.*auto"
    ):
        sn.spectral_norm(nn.Conv2d(3, 3, 3), input_shape=(40, 40), method="exact")
