"""The classifier under attack: its mode, its logits, and what it gets right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set every module to eval mode, and restore each one's own mode afterwards."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module; wrap it in one")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the model's logits, (N, classes), checked against x, (N, ...), and the labels y, (N,)."""
    logits: Tensor = model(x.clone())  # a model may write to its input
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = f"{logits.dtype}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise TypeError(
            f"model: got {got}, expected logits, floating point of shape (N, classes); wrap it in a "
            "module that returns them"
        )
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(
            f"model: got logits of shape {tuple(logits.shape)}, expected ({len(x)}, classes) with at least "
            "2 classes; pass a classifier"
        )
    if len(y) > 0 and int(y.max()) >= logits.shape[1]:
        raise ValueError(f"y: got {int(y.max())}, expected less than the {logits.shape[1]} logits; relabel")
    if not torch.isfinite(logits).all():
        raise FloatingPointError("model: got logits that are not finite, expected numbers; find the NaN")
    return logits


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep the parameters out of the graph, so that no attack leaves gradients in them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def classified_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which examples the model classifies right in eval mode, (N,), bool."""
    if len(x) == 0:
        return torch.zeros_like(y, dtype=torch.bool)
    with eval_mode(model), torch.no_grad():
        return classify(model, x, y).argmax(1) == y


def device_of(model: nn.Module, default: Tensor) -> torch.device:
    """Return the device of the model's first parameter, or that of `default` where there is none."""
    return next(iter(model.parameters()), default).device
