"""Audit of a model: right norms, nothing dropped, nothing changed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from known import batch_norm, blur
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from reference import dense_norm
from spectralnorm.bound import Bound
from spectralnorm.measure import spectral_norm
from spectralnorm.network.audit import Audit, audit
from spectralnorm.training.models import small_cnn


def by_name(found: Audit) -> dict[str, Any]:
    return {row.name: row for row in found.rows}


def test_norms_of_known_layers() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.diag(torch.tensor([3.0, 0.5]))
    found = audit(nn.Sequential(blur(padding=1), nn.Flatten(), linear))
    conv, dense = found.rows
    assert (conv.name, conv.type, conv.weight_shape) == ("0", "Conv2d", (1, 1, 3, 3))
    assert float(conv.norm) == pytest.approx(1, rel=1e-3)
    assert conv.norm.lower <= 1 + 1e-6 <= conv.norm.upper
    assert conv.pytorch == pytest.approx(1 / 3)
    assert conv.ratio == pytest.approx(3, rel=1e-3)
    assert dense.ratio == pytest.approx(1)
    assert found.product == pytest.approx(3, rel=1e-3)
    assert conv.norm_at_size is None
    assert found.skipped == ()


def test_sizes_are_those_the_layers_see() -> None:
    model = small_cnn((1, 28, 28), 10, width=2)
    rows = by_name(audit(model, (1, 28, 28)))
    assert [rows[f"conv{i}"].size for i in (1, 2, 3)] == [(28, 28), (28, 28), (14, 14)]
    assert rows["fc1"].size == ()
    for row in rows.values():
        assert 0 < float(row.norm_at_size) <= float(row.norm) * (1 + 2e-3)


def test_norm_at_a_small_size_is_smaller() -> None:
    row = audit(blur(padding=1), (1, 2, 2)).rows[0]
    matrix = torch.full((4, 4), 1 / 9)  # on 2 x 2 pixels every output is the sum of all four
    assert row.name == ""
    assert float(row.norm_at_size) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-3)


class Twice(nn.Module):
    """Calls one layer at two sizes, by keyword, and holds another that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = blur(padding=1), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        small: Tensor = self.conv(input=x[..., ::4, ::4])
        return self.conv(input=x).mean() + small.mean()


def test_a_layer_called_twice_takes_the_largest_norm_and_one_never_called_has_none() -> None:
    found = audit(Twice(), (1, 8, 8))
    conv, unused = found.rows
    assert conv.size == (8, 8)
    assert unused.size is None
    assert unused.norm_at_size is None
    assert "unused" in str(found)


def test_nothing_is_dropped_silently() -> None:
    parts: list[nn.Module] = [nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.LSTM(4, 4)]
    found = audit(nn.Sequential(*parts, nn.ConvTranspose2d(1, 1, 3), nn.BatchNorm2d(1)))
    names = [(module.name, module.type) for module in found.skipped]
    assert names == [("1", "LayerNorm"), ("3", "LSTM")]
    assert [(row.name, row.batchnorm) for row in found.rows] == [("0", None), ("4", "5")]
    assert "Not measured, no operator: 1 (LayerNorm), 3 (LSTM)" in str(found)


def test_a_shared_module_appears_once_under_its_first_name() -> None:
    shared = nn.Linear(3, 3)
    assert [row.name for row in audit(nn.Sequential(shared, nn.ReLU(), shared)).rows] == ["0"]


@pytest.mark.parametrize("training", [True, False])
def test_parametrised_layers_are_read_and_not_changed(training: bool) -> None:
    model = nn.Sequential(parametrizations.spectral_norm(blur(padding=1)), nn.BatchNorm2d(1), nn.Dropout())
    model.train(training)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.random.get_rng_state()
    found = audit(model, (1, 6, 6))
    assert [(row.name, row.type) for row in found.rows] == [("0", "Conv2d + BN")]
    assert found.skipped == ()
    assert float(found.rows[0].norm) == pytest.approx(3, rel=1e-2)  # PyTorch scales the kernel to 1
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), generator)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_parametrised_module_without_operator_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), parametrizations.spectral_norm(nn.Embedding(3, 2)))
    assert parametrize.is_parametrized(model[1])
    assert [(module.name, module.type) for module in audit(model).skipped] == [("1", "Embedding")]


class Noisy(nn.Module):
    """Draws random numbers even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.randn_like(x))


def test_random_forward_leaves_the_generator() -> None:
    model = Noisy()
    generator = torch.random.get_rng_state()
    audit(model, [2])
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_progress_counts_the_layers() -> None:
    calls: list[tuple[float, int]] = []
    audit(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), on_layer=lambda *call: calls.append(call))
    assert calls == [(0, 2), (1, 2), (2, 2)]


def test_progress_of_a_proof_goes_on_within_a_layer() -> None:
    """A BatchNorm folded in makes two proofs of a layer: of it alone, and of both."""
    calls: list[tuple[float, int]] = []
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    audit(model, certified=True, on_layer=lambda *call: calls.append(call))
    done = [share for share, _ in calls]
    assert done == sorted(done)
    assert {total for _, total in calls} == {2}
    assert (done[0], done[-1]) == (0, 2)
    assert any(0 < share < 0.5 for share in done)
    assert any(0.5 < share < 1 for share in done)
    assert any(1 < share < 2 for share in done)


def broken(layer: nn.Linear) -> nn.Linear:
    nn.init.constant_(layer.weight, math.nan)
    return layer


BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (torch.relu, None, TypeError, "model: got builtin_function_or_method, expected a torch.nn.Module"),
    (nn.Sequential(), None, ValueError, "model: Sequential has no weight; expected a layer at least, such as"),
    (nn.ReLU(), None, ValueError, "model: ReLU has no weight; expected a layer at least, such as"),
    (nn.LayerNorm(3), None, ValueError, "model: LayerNorm divides by statistics"),
    (nn.LSTM(3, 3), None, ValueError, "model: LSTM is not a layer .*register_operator.*layer.weight_ih_l0"),
    (
        nn.Sequential(nn.LayerNorm(3), nn.LSTM(3, 3)),
        None,
        ValueError,
        r"has no layer that spectralnorm knows \(it holds LSTM, LayerNorm\); .*register_operator",
    ),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm1d(2)), None, ValueError, "layer '0': BatchNorm1d follows"),
    (broken(nn.Linear(3, 2)), None, ValueError, r"layer '\(model\)': .*NaN"),
    (nn.Linear(3, 2), (4,), ValueError, r"input_shape=\(4,\): the model does not run .*RuntimeError: mat1"),
    (nn.Linear(3, 2), 3, ValueError, "input_shape=3 is not a shape"),
    (nn.Linear(3, 2), (), ValueError, r"input_shape=\(\) is not a shape"),
    (nn.Linear(3, 2), (0,), ValueError, r"input_shape=\(0,\) is not a shape"),
    (nn.Linear(3, 2), (3.0,), ValueError, r"input_shape=\(3.0,\) is not a shape"),
    (nn.Sequential(broken(nn.Linear(3, 2))), None, ValueError, "layer '0': .*NaN"),
]


@pytest.mark.parametrize(("model", "shape", "error", "complaint"), BAD)
def test_bad_input(model: Any, shape: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        audit(model, shape)
    if isinstance(model, nn.Module):
        assert all(module.training for module in model.modules())
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_batchnorm_is_folded_into_the_layer_that_it_alone_reads() -> None:
    """The norm of the one map, not the product of two (deel-torchlip#47)."""
    conv, norm = nn.Conv2d(2, 3, 3, padding=1, bias=False), batch_norm(3)
    (row,) = audit(nn.Sequential(conv, norm), (2, 5, 5)).rows
    dense = dense_norm(nn.Sequential(conv, norm), (5, 5))
    assert float(row.norm_at_size) == pytest.approx(dense, rel=1e-3)
    assert row.norm.lower >= dense * (1 - 1e-3)
    assert float(row.norm) < float(spectral_norm(conv)) * float(spectral_norm(norm))
    assert (row.batchnorm, row.type) == ("1", "Conv2d + BN")


def test_running_out_of_memory_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class ArrayMemoryError(MemoryError):
        """NumPy's takes more than a message."""

        def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
            super().__init__(f"unable to allocate {shape} of {dtype}")

    def fail(*_: Any, **__: Any) -> Bound:
        raise ArrayMemoryError((3, 2), "float64")

    monkeypatch.setattr("spectralnorm.network.audit.spectral_norm", fail)
    with pytest.raises(MemoryError, match=r"layer '0': unable to allocate \(3, 2\)"):
        audit(nn.Sequential(nn.Linear(3, 2)))


class Branches(nn.Module):
    """The output of `conv` goes to a BatchNorm and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), batch_norm(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + self.norm(y)


class Undecided(Branches):
    """What torch.fx cannot trace."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y if y.sum() > 0 else -y


@pytest.mark.parametrize("model", [Branches(), Undecided()], ids=["branches", "not traceable"])
def test_otherwise_a_batchnorm_is_a_row_of_its_own(model: nn.Module) -> None:
    conv, norm = audit(model, (2, 4, 4)).rows
    assert (conv.name, conv.type, norm.name, norm.type) == ("conv", "Conv2d", "norm", "BatchNorm2d")
    scale = (model.norm.running_var + model.norm.eps).rsqrt().max()
    assert float(norm.norm) == pytest.approx(float(scale), rel=1e-3)
    assert (norm.pytorch, norm.weight_shape) == (None, (2,))
    json.dumps(norm.to_dict(), allow_nan=False)


def test_a_batchnorm_without_running_statistics_is_named_as_not_measured() -> None:
    found = audit(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), batch_norm(2, track_running_stats=False)))
    assert [module.type for module in found.skipped] == ["BatchNorm2d"]


def test_certified_norms_are_proven_from_both_sides() -> None:
    model = small_cnn((1, 8, 8), 10, width=2, batch_norm=True)
    plain, found = audit(model), audit(model, certified=True)
    assert (plain.certified, found.certified) == (False, True)
    for row, tracked in zip(found.rows, plain.rows, strict=True):
        assert row.norm.upper <= 1.001 * row.norm.lower * (1 + 1e-12)
        assert row.norm.upper >= tracked.norm.lower
    assert "at most" in str(found)
    assert "at most" not in str(plain)
    assert found.to_dict()["certified"] is True


class Writes(nn.Module):
    """Its forward leaves something behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls, self.last = nn.Conv2d(1, 1, 1), 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, self.conv(x)
        return self.last


def test_tracing_leaves_nothing_in_the_model() -> None:
    model = Writes()
    audit(model)
    assert (model.calls, model.last) == (0, None)
