"""`tracked` on finite circular grids: it ends on the highest of their points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn

CIRCULAR = {"padding": "same", "padding_mode": "circular"}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shortfall(weight: Tensor, size: tuple[int, ...], **options: object) -> float:
    """By how much the tracked norm at the size lies below the exact one, relatively."""
    found, exact = (
        sn.spectral_norm(weight, method=method, input_shape=size, **CIRCULAR, **options)
        for method in ("tracked", "exact")
    )
    assert found.lower <= exact.upper
    return 1 - float(found) / float(exact)


@pytest.mark.parametrize("seed", range(50))
def test_random_kernels_on_a_small_grid(seed: int) -> None:
    """Six of fifty were up to 1 % low when tracks could only jump from point to point."""
    assert shortfall(drawn(seed, 32, 32, 3, 3), (16, 16)) < 1e-3


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((16, 16, 9), (200,)),
        ((4, 4, 31), (500,)),  # every point
        ((4, 4, 31), (1001,)),  # around the peaks of the torus
        ((64, 64, 5, 5), (16, 16)),
        ((16, 16, 7, 7), (32, 32)),
        ((64, 64, 3, 3), (32, 32)),
        ((32, 32, 3, 3), (64, 48)),
        ((8, 8, 3, 3, 3), (12, 12, 12)),
        ((12, 12, 3, 1), (20, 30)),
        ((12, 12, 1, 1), (20, 30)),
        ((3, 3, 3, 3), (1, 300)),  # on a line that no peak of the torus need lie near
        ((6, 6, 3, 7), (2, 100)),
        ((6, 6, 7, 7), (8, 8)),
    ],
    ids=str,
)
def test_other_kernels_and_grids(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    for seed in range(4):
        assert shortfall(drawn(seed, *shape), size) < 1e-3


def test_groups_and_strides() -> None:
    for seed in range(4):
        assert shortfall(drawn(seed, 24, 8, 3, 3), (16, 16), groups=3) < 1e-3
        layer = nn.Conv2d(8, 8, 4, stride=2, padding=1, padding_mode="circular", bias=False)
        layer.weight.data = drawn(seed, 8, 8, 4, 4)
        tracked, exact = (sn.spectral_norm(layer, input_shape=(44, 44), method=m) for m in ("tracked", "exact"))
        assert exact.lower * (1 - 1e-3) <= float(tracked) <= exact.upper


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (40, 40)])
def test_the_frequency_is_one_of_the_grid(size: tuple[int, int]) -> None:
    bound = sn.spectral_norm(drawn(0, 8, 8, 3, 3), method="tracked", input_shape=size, **CIRCULAR)
    steps = [w * n / (2 * math.pi) for w, n in zip(bound.stats["frequency"], size, strict=True)]
    assert steps == pytest.approx([round(step) for step in steps], abs=1e-9)
    assert bound.stats["sweeps"] > 0


@pytest.mark.parametrize("tracks", [1, 2, 40])
def test_few_and_many_tracks(tracks: int) -> None:
    for size in ((12, 12), (40, 40)):
        weight = drawn(1, 8, 8, 3, 3)
        exact = sn.spectral_norm(weight, method="exact", input_shape=size, **CIRCULAR)
        found = sn.spectral_norm(weight, method=sn.Tracked(tracks=tracks), input_shape=size, **CIRCULAR)
        assert exact.lower * (1 - 1e-2) <= float(found) <= exact.upper
