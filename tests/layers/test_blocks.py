"""The 1-Lipschitz blocks: what they compute, and that they stretch nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import spectralnorm as sn
from messages import check_says, complaint

BLOCKS = [sn.GroupSort(3), sn.MaxMin(), sn.InvertibleDownsampling(2), sn.L2NormPool(2)]


@given(seed=st.integers(0, 1000), block=st.sampled_from(BLOCKS), axes=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_no_two_inputs_get_further_apart(seed: int, block: nn.Module, axes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 6, *(4,) * axes)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    y = x + 10.0 ** (-seed % 5) * torch.randn(shape, generator=generator, dtype=torch.float64)
    assert float((block(x) - block(y)).norm()) <= float((x - y).norm()) * (1 + 1e-12)
    assert float(block(x).norm()) == pytest.approx(float(x.norm()), rel=1e-12)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_gradients_keep_their_length(block: nn.Module) -> None:
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    y = block(x)
    if isinstance(block, sn.L2NormPool):
        (gradient,) = torch.autograd.grad(y.square().sum() / 2, x)
        assert torch.allclose(gradient, x)
    else:
        seed = torch.randn_like(y)
        (gradient,) = torch.autograd.grad(y, x, seed)
        assert float(gradient.norm()) == pytest.approx(float(seed.norm()), rel=1e-12)


def test_sorting_keeps_groups_apart() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 9.0, 8.0, 7.0]])
    assert sn.GroupSort(3)(x).tolist() == [[1, 2, 3, 7, 8, 9]]
    assert sn.MaxMin()(x).tolist() == [[1, 3, 2, 9, 7, 8]]
    assert sn.MaxMin()(x.reshape(1, 6, 1, 1)).shape == (1, 6, 1, 1)


def test_downsampling_is_pixel_unshuffle_and_inverts() -> None:
    x, down = torch.randn(2, 3, 6, 4), sn.InvertibleDownsampling(2)
    assert torch.equal(down(x), nn.PixelUnshuffle(2)(x))
    for axes in (1, 2, 3):
        x = torch.randn(2, 3, *(6,) * axes)
        assert down(x).shape == (2, 3 * 2**axes, *(3,) * axes)
        assert torch.equal(down.inverse(down(x)), x)


def test_the_gradient_of_an_l2_pool_at_zero_is_finite() -> None:
    x = torch.zeros(1, 1, 4, requires_grad=True)
    sn.L2NormPool(2)(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 1, 4))


def test_empty_batches() -> None:
    for block in BLOCKS:
        assert block(torch.zeros(0, 6, 4, 4)).shape[0] == 0


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_networks_of_blocks_have_the_bound_1(block: nn.Module) -> None:
    bound = sn.lipschitz(nn.Sequential(block, nn.Flatten()), (6, 4, 4))
    assert bound.upper == 1
    assert bound.lower == pytest.approx(1, abs=1e-6)


def test_wrong_options_and_inputs() -> None:
    check_says(complaint(ValueError, lambda: sn.GroupSort(1)), "group_size=1", "at least 2")
    check_says(complaint(TypeError, lambda: sn.L2NormPool(2.0)), "kernel_size=2.0", "whole number")
    check_says(complaint(TypeError, lambda: sn.InvertibleDownsampling(True)), "factor=True")
    check_says(complaint(ValueError, lambda: sn.MaxMin()(torch.ones(1, 3))), "MaxMin", "(1, 3)", "multiple of 2")
    check_says(complaint(ValueError, lambda: sn.L2NormPool(2)(torch.ones(1, 1, 3))), "(1, 1, 3)", "multiple of 2")
    down = sn.InvertibleDownsampling(2)
    check_says(complaint(ValueError, lambda: down.inverse(torch.ones(1, 3, 2, 2))), "inverse", "2^2")
    assert (str(sn.GroupSort(4)), str(sn.MaxMin()), str(down)) == (
        "GroupSort(4)",
        "MaxMin()",
        "InvertibleDownsampling(2)",
    )
