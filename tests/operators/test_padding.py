"""Padding as a linear map: against PyTorch's own, its autograd, and brute force over small sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spectralnorm as sn
from reference import dense_norm
from spectralnorm.operators.conv import ConvOperator
from spectralnorm.operators.padding import MODES, Padding, least_size, most_copies, most_copies_ever, pad, unpad

SIDES = list(itertools.product(range(5), repeat=2))  # (left, right)
each_mode = pytest.mark.parametrize("mode", MODES)


def torch_pad(x: Tensor, padding: Padding, mode: str) -> Tensor:
    cells = [cells for both in reversed(padding) for cells in both]
    return F.pad(x, cells, mode="constant" if mode == "zeros" else mode)


def copies(n: int, left: int, right: int, mode: str) -> Tensor:
    """The padding of one axis as a matrix (padded cells, n), from PyTorch."""
    return torch_pad(torch.eye(n)[:, None], ((left, right),), mode)[:, 0].T


def sizes(left: int, right: int, mode: str) -> range:
    """Small sizes that PyTorch pads so."""
    return range(least_size(left, right, mode), 9)


@each_mode
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pad_is_pytorchs_and_unpad_its_adjoint(axes: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for padding in (((1, 1), (2, 0), (0, 0)), ((0, 3), (1, 2), (2, 1)), ((3, 2), (3, 3), (0, 1))):
        padding, size = padding[:axes], (4, 5, 6)[:axes]
        x = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator, requires_grad=True)
        padded = torch_pad(x, padding, mode)
        assert torch.equal(pad(x, padding, mode), padded)
        y = torch.randn(padded.shape, dtype=torch.float64, generator=generator)
        (adjoint,) = torch.autograd.grad(padded, x, y)
        torch.testing.assert_close(unpad(y, size, padding, mode), adjoint)


@each_mode
def test_the_least_size_is_the_least_that_pytorch_pads(mode: str) -> None:
    for left, right in SIDES:
        for n in range(1, 8):
            try:
                copies(n, left, right, mode)
                accepted = True
            except RuntimeError:
                accepted = False
            assert accepted == (n >= least_size(left, right, mode)), (n, left, right)


@each_mode
def test_most_copies_by_counting(mode: str) -> None:
    for left, right in SIDES:
        for n in sizes(left, right, mode):
            matrix = copies(n, left, right, mode)
            for reads in (len(matrix), 1 + n // 2, 1):
                assert most_copies(n, left, right, mode, reads) == max(1, int(matrix[:reads].sum(0).max()))


@each_mode
def test_most_copies_ever_is_the_worst_size(mode: str) -> None:
    for left, right in SIDES:
        every = [most_copies(n, left, right, mode, n + left + right) for n in sizes(left, right, mode)]
        assert most_copies_ever(left, right, mode) == max(every), (left, right)


@each_mode
def test_the_factor_is_the_norm_of_the_padding_where_every_cell_is_read(mode: str) -> None:
    """Behind a kernel of one tap the layer is the padding itself."""
    for left, right in SIDES:
        operator = ConvOperator(torch.ones(1, 1, 1), (1,), ((left, right),), mode, (1,), 1)
        for n in sizes(left, right, mode):
            norm = float(torch.linalg.matrix_norm(copies(n, left, right, mode), 2))
            assert operator.padding_factor((n,)) == pytest.approx(norm, rel=1e-6)
            assert norm <= operator.padding_factor(None) * (1 + 1e-6)


@each_mode
def test_axes_multiply(mode: str) -> None:
    options = {"padding": (2, 1), "padding_mode": mode}
    layer = nn.Conv2d(1, 1, 1, bias=False, **options)
    nn.init.ones_(layer.weight)
    for size in itertools.product((3, 4, 5), (2, 3, 4)):
        assert sn.as_operator(layer).padding_factor(size) == pytest.approx(dense_norm(layer, size), rel=1e-12)


@pytest.mark.parametrize(
    ("mode", "p", "n", "copies"),
    [
        ("reflect", 1, 4, 2),
        ("reflect", 2, 3, 3),
        ("replicate", 2, 5, 3),
        ("replicate", 2, 1, 5),
        ("circular", 3, 3, 3),
    ],
)
def test_the_factor_of_known_paddings(mode: str, p: int, n: int, copies: int) -> None:
    layer = nn.Conv1d(1, 1, 1, padding=p, padding_mode=mode)
    assert sn.as_operator(layer).padding_factor((n,)) == math.sqrt(copies)


def test_copies_that_a_stride_leaves_unread_do_not_count() -> None:
    """Outputs start left of the input and stop before its right end."""
    layer = nn.Conv1d(1, 1, 2, padding=1, padding_mode="replicate", stride=3)
    assert sn.as_operator(layer).padding_factor((3,)) == math.sqrt(2)  # the last of five cells is not read
    every = nn.Conv1d(1, 1, 2, padding=1, padding_mode="replicate")
    assert sn.as_operator(every).padding_factor((1,)) == math.sqrt(3)
