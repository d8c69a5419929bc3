"""The processes that train together: one alone, or those that torchrun has started."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

__all__ = ["LostProcessError", "Team", "joined"]

_SILENCE = timedelta(minutes=10)  # after which a process that says nothing counts as lost
_LOST = re.compile(r"gloo|nccl|connection (closed|reset)|timed out|broken pipe|peer", re.IGNORECASE)


class LostProcessError(RuntimeError):
    """Another process of the run is gone."""


@dataclass(frozen=True)
class Team:
    """This process among those that train together.

    Attributes:
        rank: of this process; 0 writes.
        size: how many there are.
        device: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the rows of a batch, whose number the team's size divides."""
        return rows[self.rank * len(rows) // self.size : (self.rank + 1) * len(rows) // self.size]

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over the processes."""
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return [float(each) for each in sums.tolist()]

    def first(self, work: Callable[[], Any]) -> Any:
        """What the first process gets by some work, in all of them; what it raises, all raise."""
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.writes:
            try:
                box[0] = work()
            except Exception as error:  # told to the others, then raised
                box[1] = error
        distributed.broadcast_object_list(box, device=self.device)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def over_processes(self, model: nn.Module, parallel: str) -> nn.Module:
        """The model as the team trains it: "ddp" keeps it whole in each process, "fsdp" deals its weights out."""
        if self.size == 1:
            return model
        if parallel == "fsdp":
            from torch.distributed.fsdp import fully_shard

            fully_shard(model)
            return model
        from torch.nn.parallel import DistributedDataParallel

        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def leave(self) -> None:
        """Go separate ways once all have come here: what is left to do, one does alone."""
        if self.size > 1 and distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """Join the processes of torchrun, if it has started this one; leave them in the end.

    Args:
        device: "auto", "cpu" or "cuda", the same in all processes.

    Yields:
        This process's place among them.

    Raises:
        ValueError: when there is no such device.
        LostProcessError: when another process is gone.
        RuntimeError: what else goes wrong among them.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = _device(device, local)
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Team(0, 1, place)
        return
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_SILENCE)
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size(), place)
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise LostProcessError(f"a process of the run was lost ({str(error).splitlines()[0]})") from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    """The device of the process that is the local-th on its machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda" or not torch.cuda.is_available() or local >= torch.cuda.device_count():
        raise ValueError(
            f"device: got {name!r} for process {local} of {torch.cuda.device_count()} GPUs, expected auto, cpu "
            "or cuda with a GPU for each process; choose another device"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
