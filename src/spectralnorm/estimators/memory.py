"""Saying that a method does not fit in memory before it allocates."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["check_memory"]

_GIB = 2**30


def check_memory(needed: int, device: torch.device, what: str, cure: str) -> None:
    """Raise a MemoryError when more bytes are needed than the device has free.

    Args:
        needed: bytes.
        device: where they are to be allocated.
        what: the start of the message, such as "method='certified' on 4096 channels".
        cure: what to do instead.

    Raises:
        MemoryError: when they do not fit.
    """
    free = _free(device)
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} needs about {needed / _GIB:.1f} GiB, and {free / _GIB:.1f} GiB are free on {device}. {cure}"
        )


def _free(device: torch.device) -> int | None:
    """Free bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
