"""Reading a model without changing it: its layers in eval mode, and the shapes of what they are given."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spectralnorm.operators.base import Size

__all__ = ["check_input_shape", "reading", "shapes_seen"]


# Modes and hooks are the model's own, torch's generators and torch.fx's tracing the whole process's: one reader at
# a time, or the second would take the first one's eval mode for the user's. Re-entrant: a callback may audit too.
_READING = threading.RLock()


@contextmanager
def reading(model: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """Set eval mode, and restore each module's own mode and torch's generators afterwards.

    Modes are set directly: `model.eval()` may do more where a model overrides `train`. Threads take turns.

    Args:
        model: any module.

    Yields:
        Each module's own mode: whether it was in training.
    """
    with _READING, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        modes = {module: module.training for module in model.modules()}
        try:
            for module in modes:
                module.training = False
            yield modes
        finally:
            for module, training in modes.items():
                module.training = training


def check_input_shape(input_shape: Sequence[int]) -> Size:
    """Return one input's shape as a tuple.

    Args:
        input_shape: without batch, such as `(3, 32, 32)`.

    Returns:
        The same as a tuple.

    Raises:
        ValueError: when it is not a sequence of positive whole numbers.

    Example:
        >>> check_input_shape([3, 32, 32])
        (3, 32, 32)
    """
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if not shape or not all(isinstance(n, int) and n >= 1 for n in shape):
        raise ValueError(
            f"input_shape={input_shape!r} is not a shape; expected one input's shape without batch, as positive "
            "whole numbers, such as (3, 32, 32)"
        )
    return shape


def shapes_seen(model: nn.Module, layers: Mapping[str, nn.Module], shape: Size) -> dict[str, list[Size]]:
    """Run the model on one input of zeros, and record what each layer is given.

    Args:
        model: in the mode to run it in.
        layers: modules of the model, by name.
        shape: one input's shape without batch.

    Returns:
        Per name the shapes of the layer's inputs, batch included, one per call.

    Raises:
        ValueError: when the model does not run on such an input.

    Example:
        >>> conv, linear = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)
        >>> shapes_seen(nn.Sequential(conv, nn.Flatten(), linear), {"linear": linear}, (1, 3, 3))
        {'linear': [(1, 2)]}
    """
    seen: dict[str, list[Size]] = {name: [] for name in layers}
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    hooks = [_record(layer, seen[name]) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(torch.zeros((1, *shape), dtype=weight.dtype, device=weight.device))
    except Exception as error:
        raise ValueError(
            f"input_shape={shape}: the model does not run on a batch of one such input "
            f"({type(error).__name__}: {error}); expected one input's shape without batch, such as (3, 32, 32)"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _record(layer: nn.Module, shapes: list[Size]) -> RemovableHandle:
    """Append the shape of the layer's first input at each call."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs: Tensor = next(iter((*args, *kwargs.values())))
        shapes.append(tuple(inputs.shape))

    return layer.register_forward_pre_hook(hook, with_kwargs=True)
