"""A plain training loop: cross-entropy, Adam or SGD, repeatable by its seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spectralnorm.robustness.attacks import check_choice, check_count, check_number, classify, eval_mode
from spectralnorm.robustness.evaluate import device_of

from .data import Dataset

OnBatch = Callable[[int, int, float], None]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}


@dataclass
class TrainingLog:
    """What happened during training.

    Attributes:
        seconds: Time taken, in seconds.
        losses: Mean training loss of each epoch.
        accuracies: Accuracy on the training batches of each epoch, as they were seen.
    """

    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def train(
    model: nn.Module,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float = 2e-3,
    optimizer: str = "adam",
    seed: int = 0,
    logit_scale: float = 1.0,
    on_batch: OnBatch | None = None,
) -> TrainingLog:
    """Train a classifier in place on the training part of the data; it ends in eval mode.

    Torch's global generators are left as they were. Wrong arguments raise `TypeError` or `ValueError`; a loss
    that is not finite raises `FloatingPointError`.

    Args:
        model: Network from (N, C, H, W) to logits, (N, classes).
        data: Images and labels.
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Learning rate, constant.
        optimizer: "adam", or "sgd" (momentum 0.9).
        seed: Seed of the order of the images, and of random layers such as dropout.
        logit_scale: Factor of the logits, in the loss alone; networks normalised to norm 1 need 10 to 30.
        on_batch: Called after each step with the number of steps done, their total, and the loss.

    Returns:
        Time, losses and accuracies.

    Example:
        >>> from spectralnorm.training.data import digits
        >>> from spectralnorm.training.models import small_cnn
        >>> log = train(small_cnn((1, 8, 8), 10, width=4), digits(), epochs=2, lr=5e-3)
        >>> log.losses[1] < log.losses[0]
        True
    """
    _check(data, epochs, batch_size, lr, optimizer, logit_scale)
    step = partial(_step, model, OPTIMIZERS[optimizer](model.parameters(), lr=lr), data.classes, logit_scale)
    order = torch.Generator().manual_seed(seed)
    count, total = len(data.train_x), epochs * math.ceil(len(data.train_x) / batch_size)
    log, started, done = TrainingLog(), time.perf_counter(), 0
    with _training(model, seed):
        for _ in range(epochs):
            loss_sum, hits = 0.0, 0
            shuffled = torch.randperm(count, generator=order)
            for start in range(0, count, batch_size):
                rows = shuffled[start : start + batch_size]
                loss, hit = step(data.train_x[rows], data.train_y[rows])
                loss_sum, hits, done = loss_sum + loss * len(rows), hits + hit, done + 1
                if on_batch is not None:
                    on_batch(done, total, loss)
            log.losses.append(loss_sum / count)
            log.accuracies.append(hits / count)
    log.seconds = time.perf_counter() - started
    return log


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256) -> float:
    """Return the share of images that the model, in eval mode, classifies right; its modes are restored.

    Args:
        model: Network from (N, C, H, W) to logits, (N, classes).
        x: Images, (N, C, H, W), at least one.
        y: Labels, (N,), int64.
        batch_size: Images per forward pass.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If there are no images, or not one label per image.

    Example:
        >>> accuracy(nn.Identity(), torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([0, 0]))
        0.5
    """
    if len(x) == 0 or y.shape != (len(x),):
        raise ValueError(
            f"x, y: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (N, ...) and (N,), N >= 1; "
            "give one label per image"
        )
    hits = 0
    with eval_mode(model), torch.no_grad():
        device = device_of(model, x)
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            images, labels = x[rows].to(device), y[rows].to(device)
            hits += int((classify(model, images, labels).argmax(1) == labels).sum())
    return hits / len(x)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, classes: int, logit_scale: float, x: Tensor, y: Tensor
) -> tuple[float, int]:
    """Take one step; return the batch's mean loss and how many of its images were classified right."""
    device = device_of(model, x)
    x, y = x.to(device), y.to(device)
    logits = model(x)
    if logits.shape != (len(x), classes):
        raise ValueError(
            f"model: got logits of shape {tuple(logits.shape)}, expected {(len(x), classes)}; "
            "change its last layer to the data's classes"
        )
    loss = cross_entropy(logit_scale * logits, y)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"loss: got {value}, expected a finite number; lower lr or logit_scale")
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return value, int((logits.argmax(1) == y).sum())


@contextmanager
def _training(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed torch and set train mode; afterwards restore torch's generators and set eval mode."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model.train()
        try:
            yield
        finally:
            model.eval()


def _check(data: Dataset, epochs: int, batch_size: int, lr: float, optimizer: str, logit_scale: float) -> None:
    """Check the arguments of `train`."""
    data.check()
    for name, count in [("epochs", epochs), ("batch_size", batch_size)]:
        check_count(name, count)
    for name, value in [("lr", lr), ("logit_scale", logit_scale)]:
        check_number(name, value, positive=True)
    check_choice("optimizer", optimizer, OPTIMIZERS)
