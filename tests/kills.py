"""Runs killed at random moments and resumed, against one that was not: `python tests/kills.py [--kills 20]`.

`spectralnorm train` on digits, BatchNorms folded, augmentation, Adam, a learnt temperature. Each trial starts a
run in a process of its own, sends it SIGKILL after a random time, resumes it, and compares every tensor of the
last checkpoint bit for bit. Prints the seed and a line for each trial; exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLAGS = [
    *("--data", "digits", "--arch", "small-cnn", "--batch-norm", "--epochs", "8", "--batch-size", "64"),
    *("--optimizer", "adam", "--lr", "0.003", "--temperature", "0.1", "--learn-temperature"),
    *("--augment", "crop", "--checkpoint-every", "3", "--log-every", "5", "--device", "cpu", "--no-prove"),
]


def start(out: Path, *flags: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "spectralnorm", "train", "--out", str(out), *FLAGS, *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(out: Path, *flags: str) -> None:
    """A run to its end."""
    process = start(out, *flags)
    if process.wait() != 0:
        raise RuntimeError(f"the run in {out} ended with exit code {process.returncode}")


def outcome(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last checkpoint but for its clock, and the log but for its clock."""
    content = torch.load(out / "checkpoint.pt", weights_only=True)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for timed in (content, *lines):
        timed.pop("seconds", None)
    return content, lines


def same(one: Any, other: Any) -> bool:
    """Whether two nested values agree bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def trial(folder: Path, delay: float | None, reference: tuple[Any, Any], *flags: str) -> tuple[bool, int]:
    """Kill a run after so many seconds, or at its first checkpoint, and resume it.

    Returns:
        Whether it ends alike, and the step it was resumed from.
    """
    process, path = start(folder, *flags), folder / "checkpoint.pt"
    if delay is None:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
    else:
        time.sleep(delay)
    process.kill()
    process.wait()
    done = torch.load(path, weights_only=True)["done"] if path.exists() else 0
    finish(folder, "--resume", *flags)
    return same(outcome(folder), reference), done


def main() -> int:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    drawn, alike = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        began = time.perf_counter()
        finish(whole)
        seconds, reference = time.perf_counter() - began, outcome(whole)
        for number in range(1, args.kills + 1):
            delay = drawn.uniform(0.25, 0.95) * seconds
            equal, done = trial(Path(folder, str(number)), delay, reference)
            alike += equal
            verdict = "same" if equal else "DIFFERENT"
            print(f"{number}: killed after {delay:.1f} s, resumed from step {done}: {verdict}")
    print(f"seed {args.seed}: {alike} of {args.kills} resumed runs of {reference[0]['done']} steps are identical")
    return 0 if alike == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
