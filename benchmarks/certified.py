"""What a proven norm costs: `certified` against `exact` and Gram iteration at 32x32, for 3x3 kernels, one thread.

    python benchmarks/certified.py [--out benchmarks/results/certified.json] [--channels 64 128 256 512]

Kernels: random (He-initialised), trained (the middle layer of a small net on scikit-learn's digits), orthogonal
(flat: every singular value at every frequency is 1). `exact` and Gram iteration take as long for one kernel as for
another, so they are run on the random ones. Their float32 is the faster precision; ours and `exact` in float64 are
proofs to rounding. Also: peak memory, each in a process of its own, and how a warm sweep's time grows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import spectralnorm as sn
from common import RESULTS, machine, save, seconds
from spectralnorm.estimators import Exact, Gram, gram
from spectralnorm.estimators.ascent import power_sweep
from spectralnorm.estimators.tracked import frequency_step

SIZE = (32, 32)
STEPS = 6  # of Gram iteration
GROWTH = [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]  # channels of the warm sweep


def random_kernel(channels: int) -> Tensor:
    """He-initialised."""
    torch.manual_seed(channels)
    return nn.init.kaiming_normal_(torch.empty(channels, channels, 3, 3))


def trained_kernel(channels: int, steps: int = 100) -> Tensor:
    """The middle convolution of a small net after some training on digits."""
    torch.manual_seed(channels)
    pixels, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = (pixels.float() / 16).reshape(-1, 1, 8, 8)
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    net = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), conv, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * channels, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        batch = torch.randint(len(images), (32,))
        optimiser.zero_grad()
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimiser.step()
    return conv.weight.detach()


def orthogonal_kernel(channels: int) -> Tensor:
    """An orthogonal 3x3 convolution, a product of projectors along the axes (Li et al. 2019): all values are 1."""
    torch.manual_seed(channels)
    kernel = torch.eye(channels)[:, :, None, None]
    for shape in ((2, 1), (1, 2), (2, 1), (1, 2)):
        basis = nn.init.orthogonal_(torch.empty(channels, channels // 2))
        p = basis @ basis.T
        factor = torch.stack([p, torch.eye(channels) - p], -1).reshape(channels, channels, *shape)
        kernel = F.conv2d(
            kernel.transpose(0, 1), factor.flip(2, 3), padding=(shape[0] - 1, shape[1] - 1)
        ).transpose(0, 1)
    return kernel


KERNELS = {"random": random_kernel, "trained": trained_kernel, "orthogonal": orthogonal_kernel}
CIRCULAR = {"input_shape": SIZE, "padding": 1, "padding_mode": "circular"}


def at_once(run: object) -> float:
    """Seconds of Gram iteration with all frequencies at once, as it is published; ours goes in chunks."""
    chunk, gram._CHUNK = gram._CHUNK, 2**40
    try:
        return seconds(run, 1)  # type: ignore[arg-type]
    finally:
        gram._CHUNK = chunk


def baselines(weight: Tensor) -> dict[str, float]:
    """Seconds of the methods whose time does not depend on the kernel."""
    exact = lambda dtype: sn.spectral_norm(weight, method=Exact(dtype=dtype), **CIRCULAR)  # noqa: E731
    power = lambda dtype: sn.spectral_norm(weight, method=Gram(steps=STEPS, dtype=dtype), **CIRCULAR)  # noqa: E731
    return {
        "exact_float64_s": seconds(lambda: exact(torch.float64), 1),
        "exact_float32_s": seconds(lambda: exact(torch.float32), 1),
        "gram_float64_s": seconds(lambda: power(torch.float64), 1),
        "gram_float32_s": seconds(lambda: power(torch.float32), 1),
        "gram_float32_at_once_s": at_once(lambda: power(torch.float32)),
    }


def certify(weight: Tensor, rtol: float) -> dict[str, float]:
    """One certificate, size-free."""
    bound = sn.spectral_norm(weight, certified=True, rtol=rtol)
    took = [bound.stats["seconds"], sn.spectral_norm(weight, certified=True, rtol=rtol).stats["seconds"]]
    return {"seconds": min(took), "tests": bound.stats["factorisations"], "width": bound.upper / bound.lower - 1}


def peak_memory(method: str, channels: int) -> float:
    """MiB that a method adds to a process that already holds the kernel."""
    here = [sys.executable, __file__, "--memory", method, "--channels", str(channels)]
    return float(subprocess.run(here, capture_output=True, text=True, check=True).stdout)


def resident(kind: str) -> float:
    """MiB this process holds now (VmRSS), or has held at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))


def measure_memory(method: str, channels: int) -> None:
    """In a process of its own: print by how much the peak lies above what it held before."""
    weight = random_kernel(channels)
    sn.spectral_norm(random_kernel(8), certified=True)  # what libraries allocate once
    before = resident("VmRSS")
    if method == "certified":
        sn.spectral_norm(weight, certified=True, rtol=1e-2)
    else:
        gram._CHUNK = 2**40 if method == "gram at once" else gram._CHUNK
        sn.spectral_norm(weight, method=Gram(steps=1, dtype=torch.float32), **CIRCULAR)
    print(resident("VmHWM") - before)


def warm_sweep(channels: int) -> float:
    """Milliseconds of one warm sweep with its frequency step: the median of many."""
    symbol = sn.as_operator(random_kernel(channels)).symbol()
    x = torch.randn(1, 1, channels, dtype=torch.complex64)
    w, move = torch.rand(1, 1, 2), frequency_step(symbol, None, everywhere=False)
    times = []
    for _ in range(40):
        start = time.perf_counter()
        x, _, w, _, _ = power_sweep(symbol, x / x.norm(), w, move)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def growth() -> dict[str, object]:
    """Times of a warm sweep, and their slope against the number of weights on logarithmic axes."""
    times = [warm_sweep(channels) for channels in GROWTH]
    weights = [9 * channels**2 for channels in GROWTH]
    slope = float(np.polyfit(np.log(weights), np.log(times), 1)[0])
    steepest = max(
        math.log(t1 / t0) / math.log(n1 / n0)
        for (n0, t0), (n1, t1) in itertools.pairwise(zip(weights, times, strict=True))
    )
    return {"channels": GROWTH, "sweep_ms": times, "slope": slope, "steepest_step": steepest}


def run(sizes: list[int]) -> dict[str, object]:
    """All of it."""
    rows = []
    for channels, kind in track(list(itertools.product(sizes, KERNELS)), "certificates"):
        weight = KERNELS[kind](channels)
        row: dict[str, object] = {"channels": channels, "kernel": kind}
        row |= {f"rtol_{rtol:g}": certify(weight, rtol) for rtol in (1e-2, 1e-3)}
        if kind == "random":
            row |= baselines(weight)
        rows.append(row)
    memory = {m: peak_memory(m, max(sizes)) for m in ("certified", "gram", "gram at once")}
    return {"rows": rows, "memory_mib": memory, "growth": growth(), "ratios": ratios(rows, memory)}


def ratios(rows: list[dict], memory: dict[str, float]) -> dict[str, float]:
    """What is claimed: of the random kernels, per number of channels."""
    found = {}
    for row in rows:
        if row["kernel"] == "random":
            n, fine, finer = row["channels"], row["rtol_0.01"]["seconds"], row["rtol_0.001"]["seconds"]
            for name in ("exact_float64", "exact_float32", "gram_float64", "gram_float32"):
                found[f"{n}: 1e-2 over {name}"] = fine / row[f"{name}_s"]
                found[f"{n}: 1e-3 over {name}"] = finer / row[f"{name}_s"]
    for name in ("gram", "gram at once"):
        found[f"memory over {name}"] = memory["certified"] / memory[name]
    return found


def show(report: dict) -> None:
    """Print the tables."""
    console = Console(width=118)
    table = Table(title="Seconds, one thread; certified: size-free; exact and Gram iteration (6 steps): at 32x32")
    names = {"exact_float64_s": "exact f64", "exact_float32_s": "exact f32", "gram_float64_s": "gram f64",
             "gram_float32_s": "gram f32", "gram_float32_at_once_s": "gram f32 at once"}  # fmt: skip
    for heading in ("channels", "kernel", "1e-2", "tests", "1e-3", "tests", *names.values()):
        table.add_column(heading, justify="right")
    for row in report["rows"]:
        cells = [str(row["channels"]), row["kernel"]]
        for rtol in ("0.01", "0.001"):
            cells += [f"{row[f'rtol_{rtol}']['seconds']:.3f}", str(row[f"rtol_{rtol}"]["tests"])]
        table.add_row(*cells, *(f"{row[name]:.2f}" if name in row else "" for name in names))
    console.print(table)
    for name, value in report["ratios"].items():
        console.print(f"{name}: 1/{1 / value:.1f}")
    console.print("peak memory in MiB: " + ", ".join(f"{k} {v:.0f}" for k, v in report["memory_mib"].items()))
    grown = report["growth"]
    times = ", ".join(f"{c}: {t:.2f}" for c, t in zip(grown["channels"], grown["sweep_ms"], strict=True))
    console.print(f"warm sweep in ms by channels: {times}; log-log slope against the weights {grown['slope']:.2f}")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "certified.json")
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        measure_memory(args.memory, args.channels[0])
        return
    report = {"machine": machine(), **run(args.channels)}
    show(report)
    save(args.out, json.loads(json.dumps(report)))


if __name__ == "__main__":
    main()
