"""Whatever device and dtype new tensors get by default, a CPU weight is measured alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import spectralnorm as sn
from spectralnorm.operators import fourier, lags

CACHES = (fourier._moved, fourier._minus_positions, fourier._one_hot, fourier.tap_layout, lags.lags_of)
METHODS = ("certified", "tracked", "exact", "gram", "flattened", "flattened_bound", "separated", "power", "auto")
CIRCULAR = {"padding": "same", "padding_mode": "circular"}
CALLS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "linear": ((5, 7), {}),
    "size-free": ((6, 4, 3, 3), {}),
    "depthwise": ((6, 1, 3, 3), {"groups": 6}),
    "one-axis": ((4, 4, 5), {"stride": 2}),
    "three-axes": ((2, 2, 3, 1, 2), {}),
    "small-grid": ((4, 4, 3, 3), {**CIRCULAR, "input_shape": (8, 8)}),
    "large-grid": ((4, 4, 3, 3), {**CIRCULAR, "input_shape": (40, 40)}),
    "zeros": ((4, 4, 3, 3), {"padding": 1, "input_shape": (6, 6)}),
    "reflect": ((4, 4, 3, 3), {"padding": 1, "padding_mode": "reflect", "input_shape": (6, 6)}),
    "circular-stride": (
        (4, 4, 3, 3),
        {"padding": 1, "stride": 2, "padding_mode": "circular", "input_shape": (9, 9)},
    ),
    "transposed": ((4, 4, 3, 3), {"stride": 2, "transposed": True, "input_shape": (4, 4)}),
}


@pytest.fixture
def no_caches() -> Iterator[None]:
    """Layouts are made once, so that only the first call would notice."""
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


def measured(weight: Tensor, method: str, options: dict[str, Any]) -> tuple[float, float, float] | str:
    try:
        bound = sn.spectral_norm(weight, method=method, rtol=1e-1, **options)
    except ValueError:  # no such norm at this size, or without one
        return "refused"
    return bound.lower, bound.upper, float(bound)


@pytest.mark.usefixtures("no_caches")
@pytest.mark.parametrize("name", CALLS)
def test_a_default_device_changes_nothing(name: str) -> None:
    """The meta device stands for any that the weight is not on."""
    shape, options = CALLS[name]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    usual = [measured(weight, method, options) for method in METHODS]
    for cache in CACHES:
        cache.cache_clear()
    with torch.device("meta"):
        assert [measured(weight, method, options) for method in METHODS] == usual


@pytest.mark.usefixtures("no_caches")
@pytest.mark.parametrize("name", CALLS)
def test_a_default_dtype_changes_nothing(name: str) -> None:
    shape, options = CALLS[name]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    usual = [measured(weight, method, options) for method in METHODS]
    for cache in CACHES:
        cache.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert [measured(weight, method, options) for method in METHODS] == usual
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("no_caches")
@pytest.mark.parametrize("name", [name for name, (_, options) in CALLS.items() if "input_shape" in options])
def test_singular_values_do_not_mind_a_default_device(name: str) -> None:
    shape, options = CALLS[name]
    weight, size = torch.randn(shape, generator=torch.Generator().manual_seed(0)), options["input_shape"]
    rest = {key: value for key, value in options.items() if key != "input_shape"}
    usual = sn.singular_values(weight, size, **rest)
    with torch.device("meta"):
        assert torch.equal(sn.singular_values(weight, size, **rest), usual)


@pytest.mark.usefixtures("no_caches")
def test_a_lower_bound_is_raised_under_a_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the search beats what the tracks have found, and they climb on."""
    monkeypatch.setattr(
        "spectralnorm.estimators.certified.Tracked",
        lambda seed: sn.Tracked(screening=1, tracks=1, max_sweeps=4, seed=seed),
    )
    for seed in range(6):
        weight = torch.randn(12, 12, 5, generator=torch.Generator().manual_seed(seed))
        with torch.device("meta"):
            bound = sn.spectral_norm(weight, certified=True)
        assert bound.upper <= (1 + 1e-3) * (1 + 1e-12) * bound.lower
