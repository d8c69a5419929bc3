"""The certified interval: it holds the norm, it is as narrow as asked, and it says what it took."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from test_properties import TRAP, Setup, quickly, setups
from torch import Tensor, multiprocessing, nn

import spectralnorm as sn
from cases import CASES, Case
from reference import dense_norm, size_free_norm, symbol_norms
from spectralnorm.estimators.cells import Cover
from spectralnorm.operators.gram_polynomial import gram_polynomial

ROUNDING = 1e-12  # relative, of the float64 references


def encloses(bound: sn.Bound, norm: float) -> bool:
    return bound.lower <= norm * (1 + ROUNDING) and norm * (1 - ROUNDING) <= bound.upper


def narrow(bound: sn.Bound, rtol: float) -> bool:
    return bound.upper <= (1 + rtol) * (1 + 1e-12) * bound.lower


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Cases in turn, so that each one's reference is computed once."""
    return request.param


def rtol_of(case: Case) -> float:
    return 1e-1 if len(case.size) == 3 else 1e-3


# ---------------------------------------------------------------------- on the table of cases


def test_size_free(case: Case) -> None:
    layer, rtol = case.layer(), rtol_of(case)
    bound = sn.spectral_norm(layer, certified=True, rtol=rtol)
    supremum, factor = case.size_free_norm(), sn.as_operator(layer).ceilings(None)[0][1]
    assert encloses(bound, supremum)
    assert bound.upper >= case.dense_norm() * (1 - ROUNDING)
    assert bound.upper <= factor * (1 + rtol) * bound.lower * (1 + ROUNDING)
    assert bound.lower >= (1 - rtol) * supremum
    assert bound.certified
    assert bound.method == "certified"
    assert float(bound) <= bound.lower


def test_at_the_size(case: Case) -> None:
    layer, rtol = case.layer(), rtol_of(case)
    bound = sn.spectral_norm(layer, input_shape=case.size, method="certified", rtol=rtol)
    assert encloses(bound, case.dense_norm())
    assert bound.lower >= (1 - rtol) * case.dense_norm()
    if sn.as_operator(layer).grid(case.size) is not None:
        assert narrow(bound, rtol)


def test_auto_proves_both_ends_at_a_small_size(case: Case) -> None:
    bound = sn.spectral_norm(case.layer(), input_shape=case.size, certified=True, rtol=rtol_of(case))
    assert encloses(bound, case.dense_norm())
    if math.prod(sn.as_operator(case.layer()).input_shape(case.size)) <= 1024:
        assert narrow(bound, rtol_of(case))


# ---------------------------------------------------------------------- over all hyper-parameters


@quickly
@given(setups(), st.sampled_from([3e-1, 1e-2, 1e-4]))
@example(TRAP, 1e-6)
def test_no_interval_misses_the_norm(setup: Setup, rtol: float) -> None:
    layer = setup.layer()
    rtol = max(rtol, 1e-1) if len(setup.size) == 3 else rtol
    norm, operator = dense_norm(layer, setup.size), sn.as_operator(layer)
    at_size = sn.spectral_norm(layer, input_shape=setup.size, method="certified", rtol=rtol)
    free = sn.spectral_norm(layer, method="certified", rtol=rtol)
    assert encloses(at_size, norm)
    assert free.upper >= norm * (1 - ROUNDING)
    assert encloses(free, size_free_norm(layer))
    assert narrow(at_size, rtol) or operator.grid(setup.size) is None
    assert narrow(free, rtol) or operator.ceilings(None)[0][1] > 1


# ---------------------------------------------------------------------- any tolerance


def flat_kernel(channels: int, k: int) -> Tensor:
    """An orthogonal convolution: every singular value at every frequency is 1."""
    weight = torch.zeros(channels, channels, k, k, dtype=torch.float64)
    weight[:, :, k // 2, k // 2] = nn.init.orthogonal_(torch.empty(channels, channels, dtype=torch.float64))
    return weight


@pytest.mark.parametrize("rtol", [0.5, 1e-1, 1e-3, 1e-5, 1e-7, 1e-9])
def test_any_tolerance(rtol: float) -> None:
    for seed in range(4):
        weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed)).double()
        bound = sn.spectral_norm(weight, certified=True, rtol=rtol)
        assert narrow(bound, rtol)
        assert encloses(bound, size_free_norm(layer_of(weight)))


@pytest.mark.parametrize("rtol", [1e-13, 1e-15])
def test_a_tolerance_below_rounding_still_ends_with_a_proof(rtol: float) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    bound = sn.spectral_norm(weight, certified=True, rtol=rtol)
    assert encloses(bound, size_free_norm(layer_of(weight)))
    assert narrow(bound, 1e-10)


def layer_of(weight: Tensor) -> nn.Module:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)
    layer.weight.data = weight
    return layer


def test_a_flat_kernel_costs_no_search() -> None:
    bound = sn.spectral_norm(flat_kernel(16, 3), certified=True, rtol=1e-3)
    assert encloses(bound, 1.0)
    assert narrow(bound, 1e-3)
    assert bound.stats["factorisations"] <= 1


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-12, 1e12, 1e30, 1e150])
def test_scales(scale: float) -> None:
    weight = torch.randn(3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, scaled = (sn.spectral_norm(w, certified=True) for w in (weight, scale * weight))
    assert scaled.upper == pytest.approx(scale * plain.upper, rel=1e-3)
    assert narrow(scaled, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    bound = sn.spectral_norm(weight, certified=True)
    assert encloses(bound, size_free_norm(layer_of(weight.double())))
    assert bound.value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# ---------------------------------------------------------------------- a lower bound that is beaten


def test_a_track_that_stopped_short_is_restarted_where_a_cell_beats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracks with one seed and no screening end on a lower peak; the search must find the higher ones."""
    monkeypatch.setattr(
        "spectralnorm.estimators.certified.Tracked",
        lambda seed: sn.Tracked(screening=1, tracks=1, max_sweeps=4, seed=seed),
    )
    for seed in range(6):
        weight = torch.randn(12, 12, 5, generator=torch.Generator().manual_seed(seed))
        exact = sn.spectral_norm(weight, method="exact", rtol=1e-4)
        bound = sn.spectral_norm(weight, certified=True, rtol=1e-3)
        assert bound.lower <= exact.upper
        assert exact.lower <= bound.upper
        assert narrow(bound, 1e-3)


def test_the_value_differentiates_through_the_peak() -> None:
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    sn.spectral_norm(weight, certified=True).value.backward()
    tracked = weight.detach().clone().requires_grad_()
    sn.spectral_norm(tracked, rtol=1e-9).value.backward()
    torch.testing.assert_close(weight.grad, tracked.grad, rtol=0, atol=0.05)
    assert float((weight.grad * weight).sum().detach()) == pytest.approx(float(sn.spectral_norm(weight)), rel=2e-3)


# ---------------------------------------------------------------------- options and what is told


def test_stats() -> None:
    stats = sn.spectral_norm(torch.randn(4, 4, 3, 3), certified=True).stats
    assert stats["factorisations"] > 0
    assert stats["levels"] >= 0
    assert stats["seconds"] > 0


def test_progress_rises_to_one() -> None:
    seen: list[float] = []
    sn.spectral_norm(torch.randn(8, 8, 3, 3), method=sn.Certified(on_progress=seen.append))
    assert seen == sorted(seen)
    assert 0.9 < seen[-1] <= 1


def test_too_few_cells_widen_the_interval_with_a_warning() -> None:
    weight = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"max_cells=20 tests do not suffice for rtol=0\.001.*wider"):
        bound = sn.spectral_norm(weight, method=sn.Certified(max_cells=20))
    assert encloses(bound, size_free_norm(layer_of(weight)))
    assert not narrow(bound, 1e-3)
    assert bound.upper < 3 * bound.lower


@pytest.mark.parametrize("max_cells", [0, -1, 1.5, True, "many"])
def test_max_cells_is_a_count(max_cells: Any) -> None:
    with pytest.raises(ValueError, match="max_cells="):
        sn.Certified(max_cells=max_cells)


@pytest.mark.parametrize("estimator", [sn.Certified, sn.Tracked, sn.Power])
@pytest.mark.parametrize("seed", [1.5, "0", None, True, 2**64, -(2**63) - 1])
def test_a_seed_is_a_whole_number(estimator: Any, seed: Any) -> None:
    with pytest.raises(ValueError, match=r"seed=.* is no seed; expected a whole number of at most 64 bits"):
        estimator(seed=seed)


@pytest.mark.parametrize("seed", [-1, 2**64 - 1])
def test_every_seed_of_64_bits_works(seed: int) -> None:
    assert sn.spectral_norm(torch.ones(1, 1, 3), method=sn.Certified(seed=seed)).certified


def test_progress_and_sharing_are_checked() -> None:
    with pytest.raises(ValueError, match=r"on_progress=3 cannot be called; expected a function"):
        sn.Certified(on_progress=3)
    with pytest.raises(ValueError, match=r"distributed='no' is neither True nor False"):
        sn.Certified(distributed="no")


@pytest.mark.parametrize("method", ["tracked", "exact", sn.Tracked()])
def test_certified_with_another_method_is_refused(method: Any) -> None:
    with pytest.raises(ValueError, match=r"certified=True was given with method=.*expected 'auto' or 'certified'"):
        sn.spectral_norm(torch.ones(2, 2), method=method, certified=True)


# ---------------------------------------------------------------------- several processes


def _measure(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    bounds = [sn.spectral_norm(weight, certified=True) for weight in WEIGHTS]
    torch.save([(b.lower, b.upper, b.stats["factorisations"]) for b in bounds], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


WEIGHTS = [torch.randn(20, 24, 3, 3, generator=torch.Generator().manual_seed(s)) for s in range(3)]


def test_two_processes_find_the_interval_of_one(tmp_path: Path) -> None:
    alone = [sn.spectral_norm(weight, certified=True) for weight in WEIGHTS]
    multiprocessing.start_processes(_measure, (str(tmp_path),), nprocs=2, start_method="spawn")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == [(b.lower, b.upper, b.stats["factorisations"]) for b in alone]


# ---------------------------------------------------------------------- the parts


@pytest.mark.parametrize(
    "degrees", [(), (0.0,), (1.0,), (0.5,), (1.0, 1.0), (2.0, 0.5), (0.0, 1.5), (0.5, 1.0, 2.0)]
)
@pytest.mark.parametrize("angle", [1.2, 0.7])
def test_cells_cover_the_torus_at_every_level(degrees: tuple[float, ...], angle: float) -> None:
    cover = Cover.of_angle(degrees, angle)
    cells, group = cover.cells(), torch.zeros(0)
    w = (
        2
        * math.pi
        * torch.rand(500, len(degrees), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    for level in range(2):
        assert cover.angle <= angle / 2**level * (1 + 1e-9)
        centres = cover.frequencies(cells)
        apart = torch.stack(
            [((sign * w[:, None] - centres + math.pi) % (2 * math.pi) - math.pi) for sign in (1, -1)]
        )
        reach = (apart.abs() * torch.tensor(degrees, dtype=torch.float64)).sum(-1)
        assert reach.amin((0, 2)).max() <= cover.angle
        group, cells = cover.children(torch.zeros(len(cells), dtype=torch.long), cells)
        cover = cover.finer()
    assert len(group) == len(cells)


@pytest.mark.parametrize("case", [c for c in CASES if c.size], ids=str)
def test_the_gram_polynomial_is_the_symbols(case: Case) -> None:
    symbol = sn.as_operator(case.layer()).symbol().to(torch.float64)
    largest = float(symbol.weight.abs().max()) or 1.0
    symbol = type(symbol)(symbol.weight / largest, symbol.layout)
    polynomial, n = gram_polynomial(symbol), min(symbol.rows, symbol.columns)
    w = 2 * math.pi * torch.rand(3, len(case.size), dtype=torch.float64)
    squares = torch.linalg.svdvals(symbol.at(w)).square()  # (m, g, n)
    for group in range(symbol.groups):
        lower = torch.zeros(3, n, n, dtype=torch.complex128)
        start = 0
        for panel in polynomial.negative(group, w):
            lower[:, start:, start : start + panel.shape[2]] = -panel
            start += panel.shape[2]
        values = torch.linalg.eigvalsh(lower).flip(-1)
        atol = float(polynomial.rounding[group]) + 1e-12 * float(squares.max())
        torch.testing.assert_close(values, squares[:, group], rtol=0, atol=atol)


def test_the_symbol_reference_agrees_with_the_library() -> None:
    layer = nn.Conv2d(6, 4, 3, stride=2, groups=2)
    w = torch.rand(5, 2, dtype=torch.float64)
    ours = torch.linalg.svdvals(sn.as_operator(layer).symbol().to(torch.float64).at(w))[..., 0].amax(1)
    assert symbol_norms(layer, w.numpy()) == pytest.approx(ours.tolist(), rel=1e-12)


# ---------------------------------------------------------------------- found by a check of the proofs


def touching_kernel(seed: int, blocks: int = 31) -> Tensor:
    """Blocks (R exp(-iw/2) + R^T exp(iw/2)) / 2, which attain the cosine of the proof, peaks side by side."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.zeros(2 * blocks, 2 * blocks, 2, dtype=torch.float64)
    for i in range(blocks):
        turn = math.pi * (i + 0.5 + 0.1 * float(torch.rand((), generator=generator))) / 64
        size = 1 + 2e-9 * float(torch.rand((), generator=generator))
        c, s = math.cos(turn), math.sin(turn)
        rotation = size / 2 * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        kernel[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.stack([rotation, rotation.T], -1)
    return kernel


@pytest.mark.parametrize("seed", range(6))
def test_points_of_a_grid_are_tested_where_they_are(seed: int) -> None:
    """Frequencies in float32 once put the upper end 4e-10 below the norm, and intervals 1.8e-7 wide for 1e-9."""
    kernel = touching_kernel(seed)
    w = 2 * math.pi * torch.arange(64, dtype=torch.float64)[:, None, None] / 64
    blocks = kernel[..., 0] * torch.exp(1j * w / 2) + kernel[..., 1] * torch.exp(-1j * w / 2)
    norm = float(torch.linalg.svdvals(blocks)[:, 0].max())
    options = {"padding": "same", "padding_mode": "circular", "input_shape": 64}
    for rtol in (1e-9, 1e-10):
        bound = sn.spectral_norm(kernel, method="certified", rtol=rtol, **options)
        assert encloses(bound, norm)
        assert narrow(bound, rtol) or rtol < 1e-9


@pytest.mark.parametrize(("n", "value"), [(1000, 1 / 3), (2048, 0.123), (10_000, 0.9), (1_000_000, 0.9)])
def test_the_lower_end_counts_the_rounding_of_long_sums(n: int, value: float) -> None:
    weight = torch.full((1, n), value, dtype=torch.float64)
    entry = Fraction(float(weight[0, 0]))
    for bound in (sn.spectral_norm(weight), sn.spectral_norm(weight, certified=True)):
        assert (
            Fraction(bound.lower) ** 2 <= n * entry**2 <= Fraction(bound.upper if bound.certified else 1e300) ** 2
        )


@pytest.mark.parametrize(("k", "n", "value"), [(2, 400_000, 1 / 3), (7, 40_000, 0.7)])
def test_the_lower_end_at_a_size_counts_it_too(k: int, n: int, value: float) -> None:
    weight = torch.full((1, 1, k), value, dtype=torch.float64)
    bound = sn.spectral_norm(weight, stride=k, input_shape=k * n, method="power")
    assert Fraction(bound.lower) ** 2 <= k * Fraction(float(weight[0, 0, 0])) ** 2
