"""What normalising costs a training step: ours against PyTorch's, power iteration on the layer, and exact norms.

    python benchmarks/training_step.py [--networks resnet18-bn vgg16] [--threads 1 all] [--device cpu] [--quick]

ResNet-18 with the stem for small images and VGG16 at 32x32, random images. Every method, once a round, in turn:
the whole step (forward, loss, backward, SGD), and its own part (read every scaled weight after a change of all of
them, and the gradients back to the trained ones; for the penalty, its value and gradient). Medians and means over
rounds, and the median of what a step takes beyond one without normalisation in the same round; ratios within one
run are the claim. `exact` is timed on its own part only, once for each distinct layer.

Methods: `pytorch` normalises the kernel flattened to a matrix, which is not the norm of the convolution; `power`
is Farnia et al. (2019), three convolutions a step at the size the layer meets, `power-lean` the same iteration
for two; `penalty` is 0.01 / 2 times the sum of our squared norms; `ours`, and `ours-folded` with each BatchNorm
in the norm of the convolution before it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common import RESULTS, machine, save
from training_step_methods import CLASSES, INPUT, METHODS, NETWORKS, Subject, exact_layers, network, subject

PROGRESS = Console(stderr=True)
RIVALS = ("none", "pytorch", "power", "power-lean", "exact")
Times = dict[str, dict[str, float | None]]


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one run; on a GPU between two events of its stream, nothing else waiting."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end)


def interleaved(
    subjects: Sequence[Subject], run: Callable[[Subject], object], rounds: int, drop: int, title: str, seed: int
) -> dict[str, list[float]]:
    """Milliseconds of every method in each round but the first few."""
    device = subjects[0].originals[0].device
    times: dict[str, list[float]] = {one.method: [] for one in subjects}
    for number in track(range(rounds + drop), title, console=PROGRESS):
        for one in subjects:
            one.nudge(seed + number)
            times[one.method].append(milliseconds(lambda one=one: run(one), device))
    return {method: values[drop:] for method, values in times.items()}


def measured(name: str, device: torch.device, args: argparse.Namespace) -> Times:
    """The whole step and the own part of every method on one network."""
    label = f"{name}, {device.type}, threads {torch.get_num_threads()}"
    subjects = [
        subject(m, name, args.seed, device) for m in track(args.methods, f"{label}: cold", console=PROGRESS)
    ]
    torch.manual_seed(args.seed)
    x = torch.rand(args.batch, *INPUT).to(device)
    y = torch.randint(CLASSES, (args.batch,)).to(device)
    parts = interleaved(subjects, Subject.part, args.rounds, args.drop, f"{label}: part", args.seed)
    few = max(3, args.rounds // 2)
    steps = interleaved(subjects, lambda one: one.step(x, y), few, 2, f"{label}: step", args.seed + 1000)
    found: Times = {}
    for method in args.methods:
        step, part = steps[method], parts[method]
        found[method] = {"step_ms": statistics.median(step), "step_mean_ms": statistics.fmean(step)}
        if method != "none" and "none" in steps:  # in pairs: what disturbs one round disturbs both
            added = [with_it - without for with_it, without in zip(step, steps["none"], strict=True)]
            found[method]["added_ms"] = statistics.median(added)
        if method != "none":
            found[method] |= {"part_ms": statistics.median(part), "part_mean_ms": statistics.fmean(part)}
    return found


def exact(name: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Sedghi's method on every distinct layer, once; a sum only if none was beyond the limit."""
    rows = []
    for one in track(list(exact_layers(network(name, args.seed).to(device))), f"{name}: exact", console=PROGRESS):
        row: dict[str, Any] = {"layer": one.name, "size": one.size, "count": one.count, "work": one.work}
        row["ms"] = milliseconds(one.part, device) if one.work <= args.exact_limit else None
        rows.append(row)
        took = "beyond the limit" if row["ms"] is None else f"{row['ms']:.0f} ms, {one.count} times"
        PROGRESS.print(f"  {row['layer']} at {one.size}: {took}", highlight=False)
    complete = all(row["ms"] is not None for row in rows)
    return {"part_ms": sum(row["ms"] * row["count"] for row in rows) if complete else None, "layers": rows}


def ratios(found: Times) -> dict[str, dict[str, float]]:
    """Of our methods to each of the others, for the whole step and for the own part."""
    result: dict[str, dict[str, float]] = {}
    for kind in ("step", "step_mean", "part", "part_mean"):
        pairs = [(ours, other) for ours in ("ours", "ours-folded", "penalty") for other in RIVALS]
        value = lambda method, kind=kind: found.get(method, {}).get(f"{kind}_ms")  # noqa: E731
        result[kind] = {f"{a}/{b}": value(a) / value(b) for a, b in pairs if value(a) and value(b)}
    return result


def show(name: str, setting: str, found: Times) -> None:
    """Print one table."""
    table = Table(title=f"{name}, {setting}: milliseconds")
    for heading in ("method", "step, median", "mean", "added, median", "own part, median", "mean"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, times in found.items():
        keys = ("step_ms", "step_mean_ms", "added_ms", "part_ms", "part_mean_ms")
        cells = (f"{times[key]:.1f}" if times.get(key) is not None else "" for key in keys)
        table.add_row(method, *cells)
    Console(width=110).print(table)


def settings(device: torch.device, threads: Sequence[str]) -> dict[str, int]:
    """Name and number of threads of each setting; a GPU has one."""
    every = os.cpu_count() or 1  # OMP_NUM_THREADS may say less
    if device.type == "cuda":
        return {torch.cuda.get_device_name(device): every}
    return {f"threads {t}": every if t == "all" else int(t) for t in threads}


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=["resnet18-bn", "vgg16"])
    add("--methods", nargs="+", choices=[*METHODS, "exact"], default=[*METHODS, "exact"])
    add("--threads", nargs="+", default=["1", "all"], help="numbers, or all")
    add("--device", default="cpu")
    add("--batch", type=int, default=32, help="images a step")
    add("--rounds", type=int, default=21, help="of the own part (whole rotations are of 7); half as many steps")
    add("--drop", type=int, default=7, help="first rounds that are not counted")
    add("--exact-limit", type=float, default=2.0**35, help="frequencies x c^3 beyond which exact is not run")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="default: benchmarks/results/training_step.json; with --quick, none")
    add("--quick", action="store_true", help="ResNet-20, few rounds, one thread: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.networks, args.threads, args.batch, args.rounds, args.drop = ["resnet20-bn"], ["1"], 4, 7, 2
    elif args.out is None:
        args.out = RESULTS / "training_step.json"
    args.exact = "exact" in args.methods
    args.methods = [method for method in METHODS if method in args.methods]
    return args


def main() -> None:
    """Measure, print, save."""
    args = parsed()
    device, networks = torch.device(args.device), {}
    for name in args.networks:
        report = networks[name] = {"batch_norm": NETWORKS[name][1], "settings": {}}
        for setting, threads in settings(device, args.threads).items():
            torch.set_num_threads(threads)
            found = measured(name, device, args)
            entry: dict[str, Any] = {"threads": threads, "methods": found}
            if args.exact:
                entry["exact_layers"] = (slow := exact(name, device, args))["layers"]
                found["exact"] = {"part_ms": slow["part_ms"]}
            report["settings"][setting] = entry | {"ratios": ratios(found)}
    for name, report in networks.items():
        for setting, entry in report["settings"].items():
            show(name, setting, entry["methods"])
            for kind, found in entry["ratios"].items():
                Console(width=110).print(f"{kind}: " + ", ".join(f"{k} {v:.3g}" for k, v in found.items()))
    if args.out is not None:
        options = {key: getattr(args, key) for key in ("batch", "rounds", "drop", "exact_limit", "seed", "device")}
        gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
        save(args.out, {"machine": machine() | gpu, "options": options, "networks": networks})


if __name__ == "__main__":
    main()
