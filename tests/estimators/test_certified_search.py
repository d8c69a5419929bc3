"""The search behind `certified`: what excludes a cell, where it starts, and what it does without tests left."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from messages import check_says, complaint
from reference import size_free_norm
from spectralnorm.estimators import cells
from spectralnorm.estimators.cells import Cover, grid_points, one_of_pairs
from spectralnorm.estimators.certified import _Proof
from spectralnorm.estimators.search import Search
from spectralnorm.operators.gram_polynomial import gram_polynomial
from spectralnorm.operators.symbols import conv_symbol

ROUNDING = 1e-12  # relative, of the float64 references


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearly_flat(channels: int, noise: float, kernel: tuple[int, ...] = (3, 3), seed: int = 0) -> Tensor:
    """An orthogonal matrix in the middle, and noise: norms close to 1 at every frequency."""
    weight = noise * drawn(channels, channels, *kernel, seed=seed)
    middle = tuple(k // 2 for k in kernel)
    weight[(..., *middle)] += torch.linalg.qr(drawn(channels, channels, seed=seed)).Q
    return weight


def search_of(weight: Tensor) -> Search:
    axes = weight.ndim - 2
    return _Proof(sn.Certified(), conv_symbol(weight, 1, [1] * axes, [1] * axes), None, 1e-2).search


def width(bound: sn.Bound) -> float:
    return bound.upper / bound.lower - 1


# ---------------------------------------------------------------------- what excludes a cell


SMALL = {
    "random": drawn(5, 4, 3, 3),
    "even-kernel": drawn(3, 5, 2, 4),
    "one-axis": drawn(4, 4, 7),
    "three-axes": drawn(3, 3, 2, 3, 2),
    "nearly-flat": nearly_flat(6, 1e-2),
    "smooth": drawn(4, 4, 1, 1) * torch.hann_window(9, dtype=torch.float64)[1:-1, None],
    "scalar": drawn(1, 1, 5, 5),
    "two-taps": torch.tensor([[[1.0, 0.01]]], dtype=torch.float64),  # attains the second threshold in the limit
}


@pytest.mark.parametrize("weight", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("angle", [1.2, 0.6, 0.2, 0.01])
def test_no_threshold_excludes_the_cell_of_the_maximum(weight: Tensor, angle: float) -> None:
    """The norm itself as the bound: wherever the maximum lies in its cell, the centre is too high to exclude."""
    best = sn.spectral_norm(weight, rtol=1e-9)
    search, axes = search_of(weight), weight.ndim - 2
    scale = float(weight.abs().max())
    symbol = conv_symbol(weight / scale, 1, [1] * axes, [1] * axes)
    search.polynomial = gram_polynomial(symbol)
    bound = best.lower / scale * (1 - 1e-9)
    cover = Cover.of_angle(search.degrees, angle)
    level = float(search.squares(bound, cover))
    peak = torch.tensor(best.stats["frequency"], dtype=torch.float64)
    inside = torch.rand(200, len(cover.corners), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inside = 2 * inside - 1
    inside = inside / inside.abs().sum(1, keepdim=True).clamp_min(
        1
    )  # of the hull of the corners and their opposites
    centres = peak + torch.cat([inside @ cover.corners, cover.corners, -cover.corners])
    squares = torch.linalg.svdvals(symbol.at(centres))[:, 0, 0].square()
    assert float(squares.min()) >= level


def lag_norm(weight: Tensor, lag: list[int]) -> float:
    """Of T_q = sum_p K_p^T K_{p+q}, or sum_p K_p K_{p+q}^T where that is the smaller side."""
    total = torch.zeros(min(weight.shape[:2]), min(weight.shape[:2]), dtype=weight.dtype)
    for p in itertools.product(*map(range, weight.shape[2:])):
        other = [i + q for i, q in zip(p, lag, strict=True)]
        if all(0 <= i < k for i, k in zip(other, weight.shape[2:], strict=True)):
            one, two = weight[(..., *p)], weight[(..., *other)]
            total += one.T @ two if weight.shape[1] <= weight.shape[0] else one @ two.T
    return float(torch.linalg.matrix_norm(total, 2))


@pytest.mark.parametrize("weight", SMALL.values(), ids=SMALL)
def test_the_norms_of_the_lags_are_bounds(weight: Tensor) -> None:
    """Whether or not they were worth sharpening."""
    axes = weight.ndim - 2
    for kernel, most in ((weight, math.sqrt(5)), (nearly_flat(8, 1e-2, (3,) * axes), 1.3)):
        polynomial = gram_polynomial(conv_symbol(kernel, 1, [1] * axes, [1] * axes))
        for lag, norm in zip([[0] * axes, *polynomial.lags.long().tolist()], polynomial.norms[0], strict=True):
            true = lag_norm(kernel, lag)
            assert true * (1 - ROUNDING) <= float(norm) <= most * true * (1 + 1e-5)


@pytest.mark.parametrize(("noise", "rtol", "most"), [(1e-4, 1e-4, 700), (1e-3, 1e-3, 700), (1e-3, 1e-4, 1500)])
def test_nearly_flat_kernels_take_few_tests(noise: float, rtol: float, most: int) -> None:
    """They took 59,000 tests, 5,000 and 11,000 when a cell was only as wide as any symbol of its degree allows."""
    bound = sn.spectral_norm(nearly_flat(64, noise), certified=True, rtol=rtol)
    assert width(bound) <= rtol * (1 + 1e-9)
    assert bound.stats["factorisations"] < most


@pytest.mark.parametrize("seed", range(3))
def test_a_nearly_flat_kernel_lies_in_its_interval(seed: int) -> None:
    weight = nearly_flat(12, 3e-3, (3, 2), seed)
    layer = nn.Conv2d(12, 12, (3, 2), bias=False)
    layer.weight.data = weight
    norm = size_free_norm(layer)
    for rtol in (1e-2, 1e-4, 1e-6):
        bound = sn.spectral_norm(weight, certified=True, rtol=rtol)
        assert bound.lower <= norm * (1 + ROUNDING)
        assert norm * (1 - ROUNDING) <= bound.upper <= (1 + rtol) * (1 + ROUNDING) * bound.lower


# ---------------------------------------------------------------------- when the tests are spent


KERNELS = {
    "random": drawn(8, 8, 3, 3),
    "larger": drawn(8, 8, 5, 5),
    "nearly-flat": nearly_flat(16, 1e-2),
    "one-axis": drawn(8, 8, 9),
    "three-axes": drawn(3, 3, 3, 3, 3),
}
TOLERANCES = (0.5, 1e-1, 1e-2, 1e-3, 1e-5, 1e-8)


@pytest.mark.parametrize("max_cells", [1, 30, 200, 1000])
def test_a_tight_tolerance_ends_little_wider_than_a_loose_one(max_cells: int) -> None:
    """As a rule: 2.5 times at most. Luck decides which cells are left when so few tests are spent."""
    ratios = []
    for weight in KERNELS.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            method = sn.Certified(max_cells=max_cells)
            bounds = [sn.spectral_norm(weight, method=method, rtol=rtol) for rtol in TOLERANCES]
        truth = sn.spectral_norm(weight, certified=True, rtol=1e-6)
        for bound in bounds:
            assert bound.lower <= truth.upper
            assert truth.lower <= bound.upper
        ratios += [width(tight) / width(loose) for loose, tight in itertools.pairwise(bounds)]
    assert sum(ratio <= 2.5 for ratio in ratios) >= 0.9 * len(ratios)
    assert max(ratios) <= 13  # the largest that was met at 180 other kernels


def test_an_interval_as_narrow_as_asked_is_not_warned_of() -> None:
    """Even where the last of its tests were more than asked for."""
    weight = drawn(8, 8, 3, 3)
    needed = sn.spectral_norm(weight, certified=True).stats["factorisations"]
    bound = sn.spectral_norm(weight, method=sn.Certified(max_cells=needed - 1))  # a warning would be an error
    assert width(bound) <= 1e-3 * (1 + 1e-9)


def test_the_points_of_a_grid_are_no_reason_to_warn() -> None:
    options = {"padding": 1, "padding_mode": "circular", "input_shape": (16, 16)}
    bound = sn.spectral_norm(drawn(4, 4, 3, 3), method=sn.Certified(max_cells=1), **options)
    assert width(bound) <= 1e-3 * (1 + 1e-9)


# ---------------------------------------------------------------------- covers


DEGREES = [(), (0.0,), (1.0,), (0.5,), (1.0, 1.0), (2.0, 0.5), (0.0, 1.5), (0.5, 1.0, 2.0), (1.0, 0.0, 1.0)]


@pytest.mark.parametrize("degrees", DEGREES)
def test_the_size_of_a_cover_is_known_without_listing_it(degrees: tuple[float, ...]) -> None:
    for angle in (1.2, 0.5, 0.2):
        cover = Cover.of_angle(degrees, angle)
        assert (
            cover.size
            <= len(cover.cells())
            <= cover.size + 4 * max(1, *cover.counts, 1) ** max(0, len(cover.axes) - 1)
        )


def test_a_search_starts_from_no_more_cells_than_it_may_test() -> None:
    search = search_of(drawn(2, 2, 3, 3, 3))
    groups = torch.zeros(1, dtype=torch.long)
    tight = search.start(groups, 0.0, 10**9)  # nothing passes: the finest there is
    assert tight.size > 10**5
    assert search.start(groups, 0.0, 5000).size <= 5000
    assert search.start(groups, 0.0, 1).counts == Cover.of_angle(search.degrees, 1.2).counts


def test_a_cover_of_a_million_cells_is_listed_at_once() -> None:
    cover = Cover.of_angle((1.0, 1.0, 1.0), 0.059)
    assert 10**6 <= cover.size <= len(cover.cells()) < 1.1 * cover.size
    assert len(grid_points((1000, 1000))) == 1000 * 1000 // 2 + 2


def test_cells_too_small_for_64_bits_are_numbered_afresh() -> None:
    """As one number a cell they wrapped around: cells shared one, and all but one went untested."""
    period = torch.tensor([2**31, 2**31, 2**31])
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(2**31, (500, 3), generator=generator)
    group = torch.randint(3, (500,), generator=generator)
    alike = torch.cat([some, -some, some]), group.repeat(3)
    kept = one_of_pairs(alike[0], period, alike[1])
    assert kept.sort().values.tolist() == list(range(500))
    apart = torch.tensor([[0, 0, 1], [0, 4, 1], [8, 0, 1]])  # 2^62 k apart, as one number
    assert len(one_of_pairs(apart, torch.tensor([2**31] * 3), torch.zeros(3, dtype=torch.long))) == 3


def test_cells_that_cannot_be_told_apart_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_WHOLE", 2**20)
    weight = drawn(2, 2, 3, 3)
    message = complaint(OverflowError, lambda: sn.spectral_norm(weight, certified=True, rtol=1e-13))
    check_says(message, "certified: ", "64-bit", "larger rtol", "smaller max_cells")
