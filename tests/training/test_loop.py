"""Training: it learns, repeats itself, and leaves no trace but the weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from spectralnorm.training.data import Dataset, digits
from spectralnorm.training.loop import accuracy, train
from spectralnorm.training.models import small_cnn


def blobs(classes: int = 2) -> Dataset:
    """Images that are bright at the pixel of their class: linearly separable."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % classes
    x = 0.4 * torch.rand(60, 1, 2, 2, generator=generator)
    x.flatten(1)[torch.arange(60), y] += 0.5
    return Dataset("blobs", x[:40], y[:40], x[40:], y[40:], classes)


def linear(classes: int = 2, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 0.05), ("sgd", 0.1)])
def test_training_learns(optimizer: str, lr: float) -> None:
    model, data = linear(), blobs()
    log = train(model, data, epochs=30, batch_size=16, lr=lr, optimizer=optimizer)
    assert accuracy(model, data.test_x, data.test_y) == 1
    assert log.losses[-1] < log.losses[0]
    assert log.accuracies[-1] == 1
    assert len(log.losses) == len(log.accuracies) == 30
    assert log.seconds > 0


def test_small_cnn_learns_digits() -> None:
    torch.manual_seed(0)
    data = digits()
    model = small_cnn(data.input_shape, data.classes, width=16)
    train(model, data, epochs=6, lr=3e-3)
    assert accuracy(model, data.test_x, data.test_y) > 0.9


def test_same_seed_same_weights_and_global_generator_untouched() -> None:
    before = torch.random.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        model = linear()
        model.append(nn.Dropout())
        train(model, blobs(), epochs=2, batch_size=7, seed=seed)
        weights.append(model[1].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_logit_scale_scales_the_loss_only() -> None:
    logs = []
    for scale, temperature in [(10.0, 1.0), (1.0, 10.0)]:
        model = linear()
        with torch.no_grad():
            model[1].weight.mul_(temperature)
            model[1].bias.mul_(temperature)
        logs.append(train(model, blobs(), epochs=1, batch_size=40, logit_scale=scale))
    assert logs[0].losses == pytest.approx(logs[1].losses, rel=1e-5)


def test_progress_is_reported() -> None:
    calls: list[tuple[int, int, float]] = []
    log = train(linear(), blobs(), epochs=2, batch_size=16, on_batch=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(step, 6) for step in range(1, 7)]
    weighted = sum(loss * size for (_, _, loss), size in zip(calls[:3], (16, 16, 8), strict=True)) / 40
    assert weighted == pytest.approx(log.losses[0])


def test_eval_mode_after_training_and_after_an_error() -> None:
    model = linear()
    train(model, blobs(), epochs=1)
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        model[1].weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="loss: got nan, expected a finite number; lower lr"):
        train(model, blobs(), epochs=1)
    assert not any(module.training for module in model.modules())


def test_accuracy_restores_the_modes_and_uses_eval_mode() -> None:
    x, y = torch.eye(4).view(4, 1, 2, 2), torch.arange(4)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.BatchNorm1d(4).eval())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert accuracy(model, x, y, batch_size=3) == 1
    assert [module.training for module in model] == [True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"epochs": 0}, ValueError, "epochs: got 0, expected at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs: got 1.5, expected an int"),
        ({"epochs": 1, "batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"epochs": 1, "lr": 0.0}, ValueError, "lr: got 0.0, expected a finite number above 0"),
        ({"epochs": 1, "lr": "fast"}, TypeError, "lr: got 'fast', expected a number"),
        ({"epochs": 1, "logit_scale": -1.0}, ValueError, "logit_scale: got -1.0"),
        (
            {"epochs": 1, "optimizer": "lbfgs"},
            ValueError,
            "optimizer: got 'lbfgs', expected one of adam, sgd",
        ),
    ],
)
def test_bad_options(options: dict[str, object], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        train(linear(), blobs(), **options)  # type: ignore[arg-type]


def test_data_is_checked_first() -> None:
    data = blobs()
    data.train_x[3, 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="train_x: got pixels from nan"):
        train(linear(), data, epochs=1)


def test_wrong_number_of_logits() -> None:
    with pytest.raises(ValueError, match=r"model: got logits of shape \(40, 2\), expected \(40, 3\)"):
        train(linear(2), blobs(3), epochs=1)
    with pytest.raises(ValueError, match="y: got 2, expected less than the 2 logits"):
        accuracy(linear(2), blobs(3).test_x, blobs(3).test_y)


def test_accuracy_needs_images_and_as_many_labels() -> None:
    data = dataclasses.asdict(blobs())
    with pytest.raises(ValueError, match="N >= 1"):
        accuracy(linear(), data["test_x"][:0], data["test_y"][:0])
    with pytest.raises(ValueError, match="one label per image"):
        accuracy(linear(), data["test_x"], data["test_y"][:3])
