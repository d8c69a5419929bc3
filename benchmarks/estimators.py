"""Speed of the estimators and of normalised training on the 20 convolutions of ResNet-18, one thread.

Ratios within one run are the claim; seconds belong to the machine, which the JSON describes.

    python benchmarks/estimators.py [--out benchmarks/results/estimators.json] [--seed 0]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn.utils import parametrizations as torch_parametrizations

import spectralnorm as sn
from common import RESULTS, machine, save, seconds
from spectralnorm.estimators import Exact, Power, Tracked

# c_out, c_in, kernel, stride, how often: the 20 convolutions of ResNet-18 (He et al. 2016)
SHAPES = [
    (64, 3, 7, 2, 1),
    (64, 64, 3, 1, 4),
    (128, 64, 3, 2, 1),
    (128, 128, 3, 1, 3),
    (128, 64, 1, 2, 1),
    (256, 128, 3, 2, 1),
    (256, 256, 3, 1, 3),
    (256, 128, 1, 2, 1),
    (512, 256, 3, 2, 1),
    (512, 512, 3, 1, 3),
    (512, 256, 1, 2, 1),
]
SIZE = (32, 32)
LARGEST_FOR_EXACT = 256  # of the larger channel side; beyond it `exact` takes minutes


def layer(c_out: int, c_in: int, k: int, stride: int, padding_mode: str = "zeros") -> nn.Conv2d:
    """One He-initialised convolution."""
    conv = nn.Conv2d(c_in, c_out, k, stride, padding=k // 2, bias=False, padding_mode=padding_mode)
    nn.init.kaiming_normal_(conv.weight)
    return conv


def reference(conv: nn.Conv2d) -> float:
    """The size-free norm, from far more seeds, tracks and sweeps than any default, in float64, from below."""
    searched = Tracked(screening=12, tracks=32, max_sweeps=400, seed=1)
    other = Tracked(screening=8, tracks=32, max_sweeps=400, seed=2)
    double = copy.deepcopy(conv).double()
    return max(sn.spectral_norm(double, method=m, rtol=1e-7).lower for m in (searched, other))


def power_time(conv: nn.Conv2d) -> tuple[float, int]:
    """Seconds and steps `power` takes at 32x32 to come within 1e-3 of its own converged value."""
    history = sn.spectral_norm(conv, input_shape=SIZE, method=Power(iterations=3000), rtol=1e-4).stats["history"]
    enough = 1 + next(i for i, value in enumerate(history) if value >= (1 - 1e-3) * history[-1])
    run = lambda: sn.spectral_norm(conv, input_shape=SIZE, method=Power(iterations=enough), rtol=1e-9)  # noqa: E731
    return seconds(run, 1), enough


def cold(seed: int) -> list[dict[str, float]]:
    """`tracked` from cold, `power` and `exact` on every distinct shape."""
    rows = []
    for index, (c_out, c_in, k, stride, count) in enumerate(track(SHAPES, "cold estimates")):
        torch.manual_seed(seed + index)
        conv = layer(c_out, c_in, k, stride)
        tracked = sn.spectral_norm(conv)
        row = {"c_out": c_out, "c_in": c_in, "kernel": k, "stride": stride, "count": count}
        row["tracked_s"] = seconds(lambda conv=conv: sn.spectral_norm(conv), 3)
        row["tracked_error"] = 1 - tracked.lower / reference(conv)
        row["power_s"], row["power_steps"] = power_time(conv)
        if max(c_out, c_in) <= LARGEST_FOR_EXACT:
            circular = layer(c_out, c_in, k, stride, "circular")
            circular.weight.data = conv.weight.data
            exact = Exact(dtype=torch.float32)  # its faster precision
            row["exact_s"] = seconds(
                lambda c=circular, e=exact: sn.spectral_norm(c, input_shape=SIZE, method=e), 1
            )
        rows.append(row)
    return rows


def warm(seed: int, repeats: int = 70) -> dict[str, float]:
    """Milliseconds to read all 20 normalised weights after a change of the weights, in train mode.

    Ours and PyTorch's alternate, so that both meet the same machine; `repeats` covers whole rotations.
    """
    torch.manual_seed(seed)
    layers = nn.ModuleList(layer(*shape) for *shape, count in SHAPES for _ in range(count))
    ours, theirs = sn.spectral_normalize(copy.deepcopy(layers)), layers
    for conv in theirs:
        torch_parametrizations.spectral_norm(conv)
    times: dict[str, list[float]] = {"pytorch": [], "ours": []}
    for _ in track(range(repeats + 7), "warm reads"):
        for name, net in (("pytorch", theirs), ("ours", ours)):
            with torch.no_grad():
                for conv in net:
                    original = conv.parametrizations.weight.original
                    original.add_(torch.randn_like(original), alpha=1e-3 * float(original.std()))
            start = time.perf_counter()
            for conv in net:
                conv.weight  # noqa: B018 - reading it is what is measured
            times[name].append(1e3 * (time.perf_counter() - start))
    steady = {name: values[7:] for name, values in times.items()}
    result = {f"{name}_median_ms": statistics.median(v) for name, v in steady.items()}
    result |= {f"{name}_mean_ms": statistics.fmean(v) for name, v in steady.items()}
    result |= {f"{name}_best_ms": min(v) for name, v in steady.items()}
    return result


def summary(rows: list[dict[str, float]], reads: dict[str, float]) -> dict[str, float]:
    """The ratios that are claimed."""
    small = [row for row in rows if "exact_s" in row]
    total = lambda key, chosen: sum(row[key] * row["count"] for row in chosen)  # noqa: E731
    return {
        "worst_tracked_error": max(row["tracked_error"] for row in rows),
        "tracked_over_power": total("tracked_s", rows) / total("power_s", rows),
        "tracked_over_exact": total("tracked_s", small) / total("exact_s", small),
        "read_over_pytorch_median": reads["ours_median_ms"] / reads["pytorch_median_ms"],
        "read_over_pytorch_mean": reads["ours_mean_ms"] / reads["pytorch_mean_ms"],
        "read_over_pytorch_best": reads["ours_best_ms"] / reads["pytorch_best_ms"],
    }


def show(rows: list[dict[str, float]], reads: dict[str, float], ratios: dict[str, float]) -> None:
    """Print the tables."""
    console = Console(width=110)
    table = Table(title="From cold, one thread (seconds); error of tracked against the reference")
    for heading in ("layer", "tracked", "power 32x32", "steps", "exact 32x32", "tracked error"):
        table.add_column(heading, justify="right")
    for row in rows:
        shape = (
            f"{row['c_in']} -> {row['c_out']}, {row['kernel']}x{row['kernel']} / {row['stride']} (x{row['count']})"
        )
        exact = f"{row['exact_s']:.2f}" if "exact_s" in row else "not run"
        cells = (f"{row['tracked_s']:.3f}", f"{row['power_s']:.2f}", str(row["power_steps"]), exact)
        table.add_row(shape, *cells, f"{row['tracked_error']:.1e}")
    console.print(table)
    warm_table = Table(title="Reading 20 normalised weights after a change, train mode (ms)")
    for heading in ("", "median", "mean", "best"):
        warm_table.add_column(heading, justify="right")
    for name in ("pytorch", "ours"):
        warm_table.add_row(name, *(f"{reads[f'{name}_{kind}_ms']:.1f}" for kind in ("median", "mean", "best")))
    console.print(warm_table)
    for name, value in ratios.items():
        console.print(f"{name}: {value:.3g}")


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "estimators.json")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    reads = warm(args.seed)
    rows = cold(args.seed)
    ratios = summary(rows, reads)
    show(rows, reads, ratios)
    save(args.out, {"machine": machine(), "seed": args.seed, "ratios": ratios, "warm": reads, "cold": rows})


if __name__ == "__main__":
    main()
