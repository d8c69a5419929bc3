"""The traps other libraries fell into when they measured a norm (DESIGN, section 2), one test each.

Those of training are tested with the normalisation, in `tests/normalize`:

- reading `.weight` changes state: `test_normalize_state.test_reading_a_weight_again_changes_nothing`,
  `test_the_state_moves_once_per_change_of_the_weights`, `test_eval_never_moves_the_state`;
- two forwards before one backward: `test_normalize_state.test_two_forward_passes_before_one_backward`,
  `test_a_second_batch_does_not_spoil_the_graph_of_the_first`;
- backward, step, backward: `test_normalize_state.test_backward_step_backward`, and through a whole model;
- deepcopy: `test_normalize_persistence.test_copies_go_on_as_the_original_would`, `test_copies_of_copies`;
- load_state_dict then export: `test_normalize_persistence.test_loading_into_a_removed_model`,
  `test_a_state_dict_brings_everything_back_bit_for_bit`, and the last test here.
"""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from nets import conv_net, images, trained
from reference import dense_norm, size_free_norm

ONES = torch.ones(1, 1, 3)


def norm(weight: Tensor, **options: Any) -> float:
    """At a size: to rounding, by the dense matrix or every frequency."""
    return float(sn.spectral_norm(weight, method="exact", **options))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["tracked", "exact", "power", "flattened"])
def test_a_zero_kernel_gives_zero_and_a_finite_gradient(method: str) -> None:
    weight = torch.zeros(2, 3, 3, 3, requires_grad=True)
    size = (5, 5) if method == "power" else None
    bound = sn.spectral_norm(weight, padding=1, method=method, input_shape=size)
    bound.value.backward()
    assert float(bound) == bound.lower == 0
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("method", ["tracked", "exact", "power", "auto"])
def test_a_frequency_without_response_gives_no_nan(method: str) -> None:
    """x_i - x_{i+1} answers a constant with zero; on one cell, that is all there is."""
    weight = torch.tensor([[[1.0, -1.0]]], requires_grad=True)
    options = {"padding": "same", "padding_mode": "circular", "method": method}
    for size, expected in ((4, 2.0), (1, 0.0)):
        value = sn.spectral_norm(weight, input_shape=size, **options).value
        (grad,) = torch.autograd.grad(value, weight)
        assert value.item() == pytest.approx(expected, rel=1e-6)
        assert grad.isfinite().all()


def test_groups_take_the_maximum_and_not_the_product() -> None:
    weight = torch.tensor([2.0, 3.0, 1.5]).reshape(3, 1, 1)
    assert float(sn.spectral_norm(weight, groups=3)) == pytest.approx(3)
    assert norm(weight, groups=3, input_shape=4) == pytest.approx(3)
    assert float(sn.spectral_norm(weight, groups=3, transposed=True)) == pytest.approx(3)


def test_a_stride_is_not_ignored() -> None:
    """Windows that do not overlap: the norm of one window, not the sum of its taps."""
    assert float(sn.spectral_norm(ONES)) == pytest.approx(3)
    assert float(sn.spectral_norm(ONES, stride=3)) == pytest.approx(math.sqrt(3))
    assert norm(ONES, stride=3, input_shape=9) == pytest.approx(math.sqrt(3))


def test_a_dilation_is_not_ignored() -> None:
    """Around a circle of four, four steps further is the cell itself."""
    weight, options = torch.tensor([[[1.0, -1.0]]]), {"padding": "same", "padding_mode": "circular"}
    assert norm(weight, input_shape=4, **options) == pytest.approx(2)
    assert norm(weight, input_shape=4, dilation=4, **options) == pytest.approx(0, abs=1e-6)


def test_a_stride_does_not_part_the_taps_of_a_dilation_it_divides() -> None:
    """Every second cell is read, by every output alike: the map of stride 1 and dilation 1 on them."""
    assert float(sn.spectral_norm(ONES, stride=2)) == pytest.approx(math.sqrt(5))
    assert float(sn.spectral_norm(ONES, stride=2, dilation=2)) == pytest.approx(3)
    assert norm(ONES, stride=2, dilation=2, input_shape=200) == pytest.approx(3, rel=1e-3)


def test_a_circular_stride_that_does_not_divide_the_size_has_no_closed_form() -> None:
    layer = nn.Conv1d(1, 1, 3, padding=1, stride=2, padding_mode="circular", bias=False)
    nn.init.ones_(layer.weight)
    for n in (4, 5, 6, 7):
        assert norm(layer, input_shape=n) == pytest.approx(dense_norm(layer, (n,)))
    assert dense_norm(layer, (5,)) > size_free_norm(layer) * 1.05  # the seam is read more often


def test_padding_beyond_same_adds_outputs() -> None:
    """One cell, seen through each of the three taps."""
    assert norm(ONES, input_shape=1, padding=1) == pytest.approx(1)
    assert norm(ONES, input_shape=1, padding=2) == pytest.approx(math.sqrt(3))
    assert norm(ONES, input_shape=1, padding=9) == pytest.approx(math.sqrt(3))


def test_reflect_and_replicate_are_not_zeros() -> None:
    ends = torch.tensor([[[1.0, 0.0, 1.0]]])
    assert norm(ends, input_shape=2, padding=1) == pytest.approx(1)
    assert norm(ends, input_shape=2, padding=1, padding_mode="reflect") == pytest.approx(2)
    assert norm(ONES, input_shape=1, padding=1) == pytest.approx(1)
    assert norm(ONES, input_shape=1, padding=1, padding_mode="replicate") == pytest.approx(3)
    for mode in ("reflect", "replicate"):
        layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
        assert norm(layer, input_shape=(5, 4)) == pytest.approx(dense_norm(layer, (5, 4)))


def test_a_kernel_wider_than_the_circle_is_wrapped_and_not_cropped() -> None:
    options = {"padding": 3, "padding_mode": "circular"}
    assert norm(torch.ones(1, 1, 7), input_shape=4, **options) == pytest.approx(7)
    layer = nn.Conv1d(2, 3, 7, **options)
    assert norm(layer, input_shape=4) == pytest.approx(dense_norm(layer, (4,)))


def test_the_smaller_channel_side_is_as_good_as_the_larger() -> None:
    wide, tall = drawn(2, 24, 3, 3), drawn(2, 24, 3, 3).transpose(0, 1)
    for options in ({}, {"certified": True}, {"method": "exact", "rtol": 1e-2}):
        one, other = (sn.spectral_norm(w, **options) for w in (wide, tall))
        assert one.lower <= other.upper
        assert other.lower <= one.upper
        assert float(one) == pytest.approx(float(other), rel=1e-2)


def test_a_kernel_that_is_not_square_keeps_its_stride_per_axis() -> None:
    layer = nn.Conv2d(2, 3, (5, 2), stride=(1, 3))
    assert norm(layer, input_shape=(9, 8)) == pytest.approx(dense_norm(layer, (9, 8)))
    assert float(sn.spectral_norm(layer)) == pytest.approx(size_free_norm(layer), rel=1e-3)
    column = torch.ones(1, 1, 3, 1)
    assert float(sn.spectral_norm(column, stride=(1, 3))) == pytest.approx(3)
    assert float(sn.spectral_norm(column, stride=(3, 1))) == pytest.approx(math.sqrt(3))


def test_a_proven_bound_does_not_hang_on_a_fixed_number_of_power_iterations() -> None:
    weight, options = drawn(12, 12, 3, 3), {"padding": 1, "padding_mode": "circular", "input_shape": (12, 12)}
    truth = norm(weight, **options)
    few = sn.spectral_norm(weight, method=sn.Power(iterations=5), **options)
    assert few.upper == math.inf  # it claims nothing from above
    assert float(few) < 0.95 * truth
    for where in (options, {"padding": 1}):  # at the size, and over all sizes
        proven = sn.spectral_norm(weight, certified=True, **where)
        assert proven.certified
        assert truth * (1 - 1e-12) <= proven.upper <= (1 + 1e-3) * proven.lower


def test_a_checkpoint_loaded_and_baked_in_at_once_gives_the_same_outputs() -> None:
    """pytorch#51800: the state that the weights were saved with counts, not that of a first forward pass."""
    net, file = trained().eval(), io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = sn.spectral_normalize(conv_net(seed=9)).eval()
    other.load_state_dict(torch.load(file))
    sn.remove_spectral_norm(other)
    assert torch.equal(other(images()), net(images()))
    exported = torch.export.export(other, (images(),)).module()
    torch.testing.assert_close(exported(images()), net(images()))


class Residual(nn.Sequential):
    """Not the map of its parts."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Standardised(nn.Conv2d):
    """Uses another weight than it holds."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, 10 * self.weight, padding=1)


def test_a_subclass_that_computes_something_else_is_not_taken_for_its_parent() -> None:
    for layer in (Residual(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)), Standardised(2, 2, 3)):
        with pytest.raises(TypeError, match="register_operator"):
            sn.spectral_norm(layer)


def test_a_batchnorm_behind_a_linear_layer_is_not_folded_in_an_audit() -> None:
    """On inputs (N, C, L) it scales another axis than the Linear writes."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)).eval()
    model[0].weight.data = torch.diag(torch.tensor([1.0, 10.0]))
    model[1].weight.data = torch.tensor([10.0, 1.0])
    assert sn.audit(model, (2, 2)).product == pytest.approx(100, rel=1e-3)


def test_a_batchnorm_that_divides_by_nothing_is_no_layer_of_norm_zero() -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_var.fill_(-1)
    with pytest.raises(ValueError, match=r"3 channels whose running_var plus eps is not above 0"):
        sn.spectral_norm(nn.Sequential(nn.Conv2d(2, 3, 3), norm), certified=True)


def test_a_batchnorm_without_statistics_does_not_end_an_audit() -> None:
    found = sn.audit(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)))
    assert [module.type for module in found.skipped] == ["BatchNorm2d"]
