"""`Bound`: what every measurement returns."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import spectralnorm as sn


def bound(value: float = 2.0, lower: float = 2.0, upper: float = 2.5, **fields: object) -> sn.Bound:
    return sn.Bound(torch.tensor(value), lower, upper, "tracked", **fields)


def test_float_is_the_value_without_its_graph() -> None:
    value = torch.tensor(1.5, requires_grad=True)
    result = sn.Bound(2 * value, 3.0, math.inf, "tracked")
    assert float(result) == 3.0  # and no warning on a tensor that requires a gradient
    result.value.backward()
    assert float(value.grad) == 2.0


def test_repr_reads_as_a_sentence() -> None:
    assert repr(bound()) == "Bound(2, norm in [2, 2.5], method='tracked')"
    assert repr(bound(upper=math.inf)) == "Bound(2, norm in [2, inf], method='tracked')"
    assert "1.23457" in repr(bound(value=1.23456789))


def test_a_format_is_of_the_value() -> None:
    assert f"{bound(value=1.23456789):.3f}" == "1.235"
    assert f"{bound():>6.1e}|" == "2.0e+00|"
    assert f"{bound()}" == str(bound()) == repr(bound())


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("method", ["tracked", "exact", "certified", "gram", "flattened_bound", "separated"])
def test_copies_hold_the_value_without_its_graph(again: Callable[[sn.Bound], sn.Bound], method: str) -> None:
    original = sn.spectral_norm(nn.Conv2d(2, 2, 3), method=method, rtol=0.1)
    assert original.value.grad_fn is not None
    same = again(original)
    assert type(same) is sn.Bound
    assert not same.value.requires_grad
    assert float(same) == float(original)
    assert same.value.data_ptr() != original.value.data_ptr()
    assert (same.lower, same.upper, same.method) == (original.lower, original.upper, original.method)
    assert repr(same) == repr(original)
    assert same.stats.keys() == original.stats.keys()
    original.value.backward()  # whose graph is still there


def test_a_shallow_copy_keeps_the_graph() -> None:
    original = sn.spectral_norm(nn.Linear(2, 2))
    same = copy.copy(original)
    assert same is not original
    assert same.value is original.value
    assert same.stats is original.stats


@pytest.mark.parametrize(
    ("lower", "upper", "certified"),
    [
        (1.0, 2.0, True),
        (2.0, 2.0, True),
        (0.0, 0.0, True),  # a zero layer
        (0.0, 2.0, False),  # zero below is no guarantee
        (1.0, math.inf, False),
        (0.0, math.inf, False),
    ],
)
def test_certified_means_that_both_ends_are_proven(lower: float, upper: float, certified: bool) -> None:
    assert bound(lower=lower, upper=upper).certified is certified


def test_a_bound_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound().lower = 3.0


def test_stats_are_empty_unless_given() -> None:
    assert dict(bound().stats) == {}
    assert bound(stats={"sweeps": 3}).stats["sweeps"] == 3


def test_bounds_are_told_apart_by_identity() -> None:
    one = bound()
    assert one == one
    assert one != bound()
    assert len({one, bound()}) == 2


@pytest.mark.parametrize(("method", "certified"), [("tracked", False), ("exact", True), ("flattened", False)])
def test_certified_of_a_measurement(method: str, certified: bool) -> None:
    result = sn.spectral_norm(nn.Conv2d(2, 2, 3), method=method, rtol=0.1)
    assert result.certified is certified
    assert result.method == method
    assert result.lower <= result.upper
    assert result.value.shape == ()


def test_the_flattened_kernel_proves_nothing_below_with_groups() -> None:
    result = sn.spectral_norm(nn.Conv2d(4, 4, 3, groups=2), method="flattened")
    assert (result.lower, result.upper) == (0.0, math.inf)


def test_the_flattened_norm_of_a_dense_layer_is_its_norm() -> None:
    layer = nn.Linear(5, 4)
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    result = sn.spectral_norm(layer, method="flattened")
    assert result.certified
    assert result.lower <= norm <= result.upper
