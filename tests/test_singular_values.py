"""All singular values, against the dense matrix; and methods that say when they do not fit in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from cases import CASES, Case
from messages import check_says, complaint
from reference import dense_matrix
from spectralnorm.estimators.spectrum import spectrum
from spectralnorm.operators.dense import DenseOperator


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_of_them_descending(case: Case) -> None:
    expected = torch.linalg.svdvals(dense_matrix(case.layer(), case.size))
    found = sn.singular_values(case.layer(), case.size or None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().detach(), expected, rtol=0, atol=1e-6 * float(expected[0]))


def test_they_differentiate() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular").double()
    sn.singular_values(layer, (4, 4)).square().sum().backward()  # the squared Frobenius norm: each tap 16 times
    torch.testing.assert_close(layer.weight.grad, 2 * 16 * layer.weight.detach())


def test_the_largest_is_the_norm() -> None:
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    values = sn.singular_values(layer, (8, 8)).detach()
    assert float(values[0]) == pytest.approx(float(sn.spectral_norm(layer, input_shape=(8, 8))), rel=1e-3)


def test_a_convolution_needs_a_size() -> None:
    message = complaint(ValueError, lambda: sn.singular_values(nn.Conv2d(1, 1, 3)))
    check_says(message, "input_shape=None", "depend on the size", "(32, 32)")


# ---------------------------------------------------------------------- memory


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectralnorm.estimators.memory._free", lambda _: 2**20)


@pytest.mark.usefixtures("little_memory")
def test_a_method_that_does_not_fit_says_so_and_names_one_that_does() -> None:
    layer = nn.Conv2d(64, 64, 3)
    message = complaint(MemoryError, lambda: sn.spectral_norm(layer, certified=True))
    check_says(message, "method='certified' on 1 x 64 x 64 channels", "GiB", "are free on cpu", "method='tracked'")
    message = complaint(MemoryError, lambda: sn.singular_values(layer, (16, 16)))
    check_says(message, "matrix of 12544 x 16384", "GiB", "smaller input_shape", "spectral_norm")
    sn.spectral_norm(layer)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("method", [sn.Gram(points=300), sn.Separated(points=300), "exact"])
def test_a_grid_that_does_not_fit_says_so(method: Any) -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    size = (300, 300) if method == "exact" else None
    name = method if isinstance(method, str) else method.name
    message = complaint(MemoryError, lambda: sn.spectral_norm(layer, method=method, input_shape=size))
    check_says(message, f"method='{name}' at 45001 frequencies", "GiB", "Lower points", "method='tracked'")


def test_so_many_points_that_no_machine_holds_them_are_refused_before_they_are_made() -> None:
    for method in (sn.Gram(points=10**7), sn.Separated(points=10**7)):
        check_says(
            complaint(MemoryError, lambda m=method: sn.spectral_norm(torch.ones(1, 1, 3, 3), method=m)), "GiB"
        )


@pytest.mark.usefixtures("little_memory")
def test_the_outputs_are_counted_without_making_any() -> None:
    """An input of 2,000 x 2,000 took 16 MB to be told that it was too large."""
    message = complaint(MemoryError, lambda: sn.singular_values(nn.Conv2d(1, 1, 3), (2000, 2000)))
    check_says(message, f"{1998 * 1998} singular values", "GiB", "smaller input_shape")
    pointwise = nn.Conv2d(1, 1, 1, stride=2, padding=1)
    check_says(complaint(MemoryError, lambda: sn.singular_values(pointwise, (2000, 2000))), "singular values")


def test_an_operator_that_computes_where_its_weight_is_is_counted_too() -> None:
    class Fixed(DenseOperator):
        def apply(self, x: Tensor) -> Tensor:
            return x @ self.weight.T.to(x.dtype)

    assert spectrum(Fixed(torch.diag(torch.tensor([3.0, 4.0]))), ()).tolist() == [4, 3]


def test_a_size_free_grid_beyond_all_patience_is_refused() -> None:
    message = complaint(ValueError, lambda: sn.spectral_norm(torch.randn(2, 2, 3, 3), method="exact", rtol=1e-7))
    check_says(message, "frequencies for rtol=1e-07", "max_points=", "method='certified'")


def test_a_large_kernel_is_tracked_in_bounded_memory() -> None:
    """Pairs of taps times seeds once took gigabytes."""
    kernel = torch.outer(torch.hann_window(31), torch.hann_window(31))[None, None].repeat(2, 2, 1, 1)
    assert float(sn.spectral_norm(kernel)) == pytest.approx(2 * float(kernel[0, 0].sum()), rel=1e-5)
