"""Small training runs, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectralnorm.training.conduct import Options, conduct
from spectralnorm.training.data import load
from spectralnorm.training.dataset import Dataset
from spectralnorm.training.settings import Settings
from spectralnorm.training.team import Team
from spectralnorm.training.trainer import Trainer

ALONE = Team(0, 1, torch.device("cpu"))


def few(images: int = 96) -> Dataset:
    """The first digits."""
    whole = load("digits")
    parts = (whole.train_x[:images], whole.train_y[:images], whole.test_x[:50], whole.test_y[:50])
    return Dataset("digits", *parts, classes=10)


def settings(**given: Any) -> Settings:
    """Of a run of 9 steps."""
    return Settings(**{"epochs": 3, "batch_size": 32, "lr": 0.02, "temperature": 0.2, "warmup": 1.0, **given})


def trainer(**given: Any) -> Trainer:
    return Trainer(settings(**given), few(), ALONE)


def steps(run: Trainer, count: int) -> list[float]:
    """The losses of the next steps."""
    return [loss for _, loss in zip(range(count), run.run(), strict=False)]


def weights(run: Trainer) -> dict[str, Tensor]:
    """Everything in the network's state that is a tensor, copied."""
    state = run.classifier.state_dict()
    return {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}


def finished(out: Path, **given: Any) -> dict[str, Any]:
    """The result of a whole run."""
    options = Options(out, **{name: given.pop(name) for name in ("resume", "checkpoint_every") if name in given})
    return conduct(settings(**given), options, few(), ALONE, lambda *_: None)
