"""What processes do with models in `distributed_checks.py`, and what one process does in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from nets import LAYERS, sgd
from spectralnorm.normalize.tracker import Tracker

WORLD = 2


def batch(step: int) -> tuple[Tensor, Tensor]:
    """All processes' inputs and goals together."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randn(8, 5, generator=generator)


def share(tensor: Tensor) -> Tensor:
    """This process's part of a batch; all of it where there is one process."""
    return tensor.chunk(WORLD)[distributed.get_rank()] if distributed.is_initialized() else tensor


def train(net: nn.Module, steps: range, optimizer: torch.optim.Optimizer | None = None) -> list[float]:
    """Losses over all processes, before each step."""
    optimizer = optimizer or sgd(net)
    losses = []
    for step in steps:
        x, goal = map(share, batch(step))
        optimizer.zero_grad()
        loss = (net(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
        total = loss.detach().float()
        if distributed.is_initialized():
            distributed.all_reduce(total)
            total /= WORLD
        losses.append(float(total))
    return losses


def ddp_of(net: nn.Module, *, buffers: bool) -> nn.Module:
    with mock.patch("warnings.warn"):  # PyTorch announces another name for the option
        return DistributedDataParallel(net, broadcast_buffers=buffers)


def shard(net: nn.Sequential, *, layers: bool = True, **options: Any) -> nn.Sequential:
    """FSDP2 on each layer, if asked for, and on the root."""
    for layer in net if layers else ():
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, **options)
    return fully_shard(net, **options)


def state(net: nn.Module) -> dict[str, Tensor]:
    """Buffers, and how often each state has moved."""
    turns = {f"{n}.turn": torch.tensor(m.turn) for n, m in net.named_modules() if isinstance(m, Tracker)}
    return {**{name: buffer.clone() for name, buffer in net.named_buffers()}, **turns}


def gathered(net: nn.Module) -> list[Tensor]:
    """The weights as the layers use them."""
    return [net[i].weight.detach().full_tensor() for i in LAYERS]


@contextmanager
def nothing_gathered() -> Iterator[None]:
    """Fails where a sharded weight is put together; single numbers may be."""

    def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(tensor: DTensor, *args: Any, **kwargs: Any) -> Any:
            assert tensor.numel() == 1, "a weight was gathered"
            return method(tensor, *args, **kwargs)

        return refuse

    names = ("full_tensor", "redistribute")
    with mock.patch.multiple(DTensor, **{name: refusing(getattr(DTensor, name)) for name in names}):
        yield


def said(function: Callable[[], Any]) -> str:
    """The message of the error that this raises."""
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
