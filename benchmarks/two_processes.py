"""The same training run by one process and by two: its final accuracy, and its time.

    python benchmarks/two_processes.py [--images 12000] [--epochs 3] [--runs plain folded]

The small CNN on Fashion-MNIST where it is installed, else on scikit-learn's digits, by `spectralnorm train`
on the CPU, one thread a process; `plain` without BatchNorm, `folded` with each folded, whose statistics are
each process's own. Asked: the same accuracy within 0.3 point.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common import RESULTS, machine, save
from spectralnorm.training.data import DEBIAN_FASHION_MNIST

RUNS = {"plain": ("--no-batch-norm",), "folded": ("--batch-norm",)}
PARALLEL = {"1": (1, "ddp"), "2, DDP": (2, "ddp"), "2, FSDP2": (2, "fsdp")}


def run(flags: tuple[str, ...], processes: int) -> dict[str, Any]:
    """One run; its result."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as out:
        command = [*launch, "-m", "spectralnorm", "train", "--out", out, "--device", "cpu", *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        result: dict[str, Any] = json.loads(Path(out, "result.json").read_text())
    return result


def main() -> None:
    """Run, compare, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, default=RESULTS / "two_processes.json")
    args = parser.parse_args()
    data = "fashion-mnist" if DEBIAN_FASHION_MNIST.is_dir() else "digits"
    shared = ("--data", data, "--images", str(args.images), "--epochs", str(args.epochs), "--optimizer", "adam")
    shared += ("--lr", "0.003", "--weight-decay", "0", "--temperature", "0.1", "--no-prove")
    table = Table(title=f"{data}, {args.images} images, {args.epochs} epochs: one process and two")
    for heading in ("run", "processes", "accuracy, %", "points", "training, s"):
        table.add_column(heading, justify="right")
    rows = []
    for name in args.runs:
        alone = None
        for label, (count, parallel) in PARALLEL.items():
            result = run((*shared, *RUNS[name], "--parallel", parallel), count)
            found = 100 * result["test_accuracy"]
            alone = found if alone is None else alone
            rows.append(
                {"run": name, "processes": label, "accuracy": found, "points": found - alone}
                | {"s": result["seconds"]}
            )
            table.add_row(name, label, f"{found:.2f}", f"{found - alone:+.2f}", f"{result['seconds']:.1f}")
    Console(width=100).print(table)
    options = {"data": data, "images": args.images, "epochs": args.epochs}
    save(args.out, {"machine": machine(), **options, "rows": rows})


if __name__ == "__main__":
    main()
