"""Tests shared out over the processes of `torch.distributed`, all of which hold the same weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

__all__ = ["Sharing"]


@dataclass(frozen=True)
class Sharing:
    """A part of the work for each process; alone, all of it.

    Attributes:
        rank: of this process.
        processes: how many take part.
        device: that the processes exchange tensors on.
    """

    rank: int = 0
    processes: int = 1
    device: str | torch.device = "cpu"

    @classmethod
    def over_processes(cls, device: torch.device) -> Sharing:
        """Over all processes where `torch.distributed` is initialised; `device` is that of the weight."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        meet = device if distributed.get_backend() == "nccl" else torch.device("cpu")
        return cls(distributed.get_rank(), distributed.get_world_size(), meet)

    def mine(self, count: int) -> Tensor:
        """Indices of this process's part of so many tests."""
        return torch.arange(self.rank, count, self.processes, device="cpu")

    def merged(self, passed: Tensor) -> Tensor:
        """What has passed in any process, from what has passed in each."""
        if self.processes == 1:
            return passed
        sums = passed.to(self.device, torch.uint8)
        distributed.all_reduce(sums, op=distributed.ReduceOp.MAX)
        return sums.cpu().bool()

    def agreed(self, value: float) -> float:
        """The largest of the processes' values: they find the same lower bound up to rounding."""
        if self.processes == 1:
            return value
        largest = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        return float(largest)
