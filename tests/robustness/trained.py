"""A small network trained on digits, for the tests of attacks."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from spectralnorm.training.data import digits
from spectralnorm.training.loop import train
from spectralnorm.training.models import small_cnn


@cache
def trained_on_digits() -> tuple[nn.Module, Tensor, Tensor]:
    """The network in eval mode, and the test images that it classifies right."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_cnn((1, 8, 8), 10, width=8)
    data = digits()
    train(model, data, epochs=8, lr=5e-3)
    with torch.no_grad():
        right = model(data.test_x).argmax(1) == data.test_y
    assert right.sum() > 350
    model.zero_grad(set_to_none=True)
    return model, data.test_x[right], data.test_y[right]


class Scale(nn.Module):
    """Logits times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor}"


def linear(classes: int, features: int = 6, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A linear classifier, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(features, classes, dtype=dtype)


def closed_form(model: nn.Linear, x: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Labels as predicted, and each example's smallest perturbation that changes them, without bounds."""
    logits = model(x).detach()
    y = logits.argmax(1)
    difference = model.weight.detach()[y][:, None] - model.weight.detach()[None]  # (N, classes, features)
    dual = difference.norm(dim=2) if norm == "l2" else difference.abs().sum(2)
    gaps = (logits.gather(1, y[:, None]) - logits) / dual
    return y, gaps.scatter(1, y[:, None], torch.inf).amin(1)
