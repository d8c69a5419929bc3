"""What the benchmarks share: the machine's description, timing, results on disk."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cpuinfo
import torch

import spectralnorm as sn

__all__ = ["RESULTS", "machine", "save", "seconds"]

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "cpu": cpuinfo.get_cpu_info().get("brand_raw", platform.processor()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "spectralnorm": sn.__version__,
        "system": platform.system(),
    }


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Best of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def save(path: Path, report: Mapping[str, Any]) -> None:
    """Write JSON under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    temporary.replace(path)
    print(f"saved {path}")
