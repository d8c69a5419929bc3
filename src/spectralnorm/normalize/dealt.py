"""Weights that are dealt out over processes, and when they change.

Foreach and fused optimisers write into the shards of a `DTensor` without a trace in its version, so that steps of
optimisers are counted here as well.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spectralnorm.normalize.steps import each_step
from spectralnorm.operators.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Dealt"]

_ALL: weakref.WeakSet[Dealt] = weakref.WeakSet()


class Dealt:
    """A weight that is dealt out over processes, as it is between forward passes.

    Attributes:
        weight: its shard; held strongly, since PyTorch does not swap tensors that are held weakly.
        beside: a layer whose weight belongs to the same map.
        steps: of optimisers that train one of these.
    """

    def __init__(self, weight: DTensor) -> None:
        self.weight = weight
        self.beside: nn.Module | None = None
        self.steps = 0
        _ALL.add(self)
        each_step(_count)

    def mark(self) -> tuple[tuple[int, int], ...]:
        """What changes when an optimiser steps, PyTorch writes to the shard or another takes its place."""
        with torch.no_grad():
            local = self.weight.to_local()
        versions = self.steps, self.weight._version, 0 if local.is_inference() else local._version
        place = local.data_ptr() or -1  # a process may hold no row
        return tuple((version, place) for version in versions)

    def trained(self) -> list[Tensor]:
        """The shards that optimisers hold."""
        other = None if self.beside is None else self.beside.weight
        return [self.weight, other] if is_sharded(other) else [self.weight]


def _count(optimizer: Optimizer) -> None:
    """Note a step for the shards the optimizer holds."""
    if not _ALL:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for dealt in list(_ALL):
        if any(id(shard) in stepped for shard in dealt.trained()):
            dealt.steps += 1
