"""Steps of optimisers that leave no trace in the version of a weight: fused ones, and those that write to `.data`.

PyTorch's fused kernels (`torch.optim.AdamW(..., fused=True)`) do not count their writes. A state that goes by
versions would stand still, and the norms would run away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

__all__ = ["each_step", "watch_optimizers"]


@cache
def each_step(note: Callable[[torch.optim.Optimizer], None]) -> None:
    """From now on call this at each step of every optimizer of the process, before the model reads the result.

    Args:
        note: is given the optimizer. It is called before a step, since hooks of the optimizer itself, such as
            `step`, run before the process's afterwards; of a step with a closure, in which the model runs, after.
    """

    def before(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        if not _evaluates(*arguments):
            note(optimizer)

    def after(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        if _evaluates(*arguments):
            note(optimizer)

    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)


@cache
def watch_optimizers(addresses: Callable[[], Iterable[int]]) -> None:
    """Count the steps of every optimizer of the process from now on.

    Args:
        addresses: gives the addresses of the weights that matter; others are let be.
    """

    def note(optimizer: torch.optim.Optimizer) -> None:
        if _counts(optimizer):
            return
        watched = set(addresses())
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.data_ptr() in watched:
                    torch.autograd.graph.increment_version(parameter)

    each_step(note)


def _evaluates(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a step is given a closure, in which the model runs."""
    return any(callable(value) for value in (*args[1:], kwargs.get("closure")))


def _counts(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's own writes are counted."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return type(optimizer).__module__.startswith("torch.optim.") and not fused
