"""The study's tables and curves, from what its runs have left in `runs/`.

    python table.py

Prints a table of the search and one of the finals; writes `curves.png`, clean accuracy against accuracy under
attack. A final's gain is the ratio of its mean worst-case accuracy to that of PyTorch's `spectral_norm` on the
same images, at a clean accuracy within 2 points: of PyTorch's finals that close, the most robust. With a 95 %
bootstrap interval over the images, for that pair of networks; beside it by how many points the clean accuracy is
above PyTorch's, since what is less accurate is more robust by that alone. Below it, where PyTorch's finals lie on
both sides, the gain at equal clean accuracy: over the line between the two finals of PyTorch's next to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from grid import GRID
from rich.console import Console
from rich.table import Table
from study import EPS, RUNS, chosen, found
from torch import Tensor

import spectralnorm as sn
from spectralnorm.report.plots import figure_class

PYTORCHS = ("pytorch", "pytorch without BatchNorm")
RESAMPLES = 10_000
CLOSE = 0.02  # clean accuracies that are compared
CONSOLE = Console(width=150)


def finals(net: str) -> Iterator[tuple[dict[str, Any], Path]]:
    """The finals of a network, in the order of the grid."""
    results = [
        (json.loads(path.read_text()), path.parent) for path in (RUNS / "finals" / net).glob("*/final.json")
    ]
    order = list(GRID[net])
    yield from sorted(results, key=lambda each: (order.index(each[0]["method"]), each[0]["number"]))


def withstood(folder: Path) -> Tensor:
    """Share of the sizes that each image withstands, (images,), from the evaluation's records."""
    evaluation = sn.Evaluation.load(folder / "evaluation.json")
    held = ["".join(record.held[i] for record in evaluation.records) for i in range(len(EPS))]
    each = torch.tensor([[mark == "1" for mark in row] for row in held])
    return each.cummin(0).values.double().mean(0)  # what is fooled at a smaller size is at a larger one


def gain(ours: Tensor, theirs: Tensor) -> str:
    """The ratio of two means over the same images, with its bootstrap interval; of nothing, there is none."""
    if not theirs.any():
        return "theirs: 0"
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(ours), (RESAMPLES, len(ours)), generator=generator)
    below = theirs[rows].mean(1)
    ratios = torch.where(below > 0, ours[rows].mean(1) / below, torch.inf)
    low, high = (float(ratios.quantile(share, interpolation="nearest")) for share in (0.025, 0.975))
    return f"{float(ours.mean() / theirs.mean()):.2f} ({low:.2f} to {high:.2f})"


def clean_of(result: dict[str, Any]) -> float:
    """Clean accuracy on all test images, of the network as it was attacked."""
    return float(result.get("proven_accuracy", result["test_accuracy"]))


def compared(clean: float, ours: Tensor, finals: list[tuple[float, Tensor]]) -> str:
    """The gain over the most robust of finals close in clean accuracy, and over their line at the same."""
    lines = []
    close = [final for final in finals if abs(final[0] - clean) <= CLOSE + 1e-9]  # counts of 10,000 images
    if close:
        other, theirs = max(close, key=lambda final: float(final[1].mean()))
        lines.append(f"{gain(ours, theirs)}, {100 * (clean - other):+.1f}")
    below = [final for final in finals if final[0] < clean]
    above = [final for final in finals if final[0] > clean]
    if below and above:
        (left, robust), (right, fragile) = max(below, key=itemgetter(0)), min(above, key=itemgetter(0))
        share = (right - clean) / (right - left)
        lines.append(f"equal: {gain(ours, share * robust + (1 - share) * fragile)}")
    return "\n".join(lines) or "-"


def varied(settings: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """The settings in which the configurations of a method differ."""
    names = [name for name in settings if len({str(each.get(name)) for each in others}) > 1]
    return ", ".join(f"{name} {settings[name]:g}" for name in names)


def search_table(net: str) -> Table:
    """Every configuration of every method; the one that goes into the final is marked."""
    table = Table(title=f"Search on {net}: 10,000 images, 5 epochs; 500 other images, PGD-20")
    for heading in ("method", "configuration", "clean, %", *(f"L2 {eps:g}" for eps in EPS), "mean", "final"):
        table.add_column(heading, justify="left" if heading in ("method", "configuration") else "right")
    for method, grid in GRID[net].items():
        best = chosen(net, method)
        for number, result in found(net, method).items():
            score = result["score"]
            shares = [score["clean"], *(score["robust"][str(eps)] for eps in EPS), score["mean"]]
            cells = [f"{100 * share:.1f}" for share in shares]
            table.add_row(method, varied(grid[number], grid), *cells, "x" if number == best else "")
    return table


def finals_table(net: str) -> Table | None:
    """The finals of a network; None where there is none."""
    results = list(finals(net))
    if not results:
        return None
    table = Table(title=f"Finals on {net}: 60,000 images, 15 epochs; AutoAttack on 200 test images")
    named = ("method", "configuration")
    gains = [name for name in PYTORCHS if name in GRID[net]]
    certified = "certified\nat 0.25, %"
    headings = (
        *named,
        "clean, %",
        *(f"L2 {eps:g}" for eps in EPS),
        "mean",
        *(f"gain over\n{g},\nclean; equal" for g in gains),
    )
    for heading in (*headings, certified):
        table.add_column(heading, justify="left" if heading in named else "right")
    rivals = {name: [(clean_of(r), withstood(f)) for r, f in results if r["method"] == name] for name in gains}
    for result, folder in results:
        each = withstood(folder)
        worst = [f"{100 * result['attacked']['worst_case'][str(eps)]:.1f}" for eps in EPS]
        clean = clean_of(result)
        ratios = [compared(clean, each, rivals[name]) for name in gains]
        proven = (result["certified"] or {}).get("certified", {}).get("0.25")
        table.add_row(
            result["method"],
            varied(result["settings"], GRID[net][result["method"]]),
            f"{100 * clean:.2f}",
            *worst,
            f"{100 * float(each.mean()):.1f}",
            *ratios,
            "-" if proven is None else f"{100 * proven:.1f}",
        )
    return table


def curves(path: Path) -> None:
    """Plot clean accuracy against the mean accuracy under attack: dots of the search, rings of the finals."""
    figure = figure_class()(figsize=(12, 5.8))
    for place, net in enumerate(GRID, start=1):
        axes = figure.add_subplot(1, len(GRID), place)
        ended = list(finals(net))
        for method in GRID[net]:
            points = sorted((r["score"]["clean"], r["score"]["mean"]) for r in found(net, method).values())
            if not points:
                continue
            (line,) = axes.plot(
                *([100 * value for value in row] for row in zip(*points, strict=True)), "o-", ms=3, label=method
            )
            rings = [(clean_of(r), float(withstood(f).mean())) for r, f in ended if r["method"] == method]
            for clean, mean in rings:
                axes.plot(100 * clean, 100 * mean, "o", ms=9, mfc="none", color=line.get_color())
        axes.set(
            title=f"{net}: search (dots, PGD) and finals (rings, AutoAttack)",
            xlabel="clean accuracy, %",
            ylabel="accuracy under attack, mean over L2 0.5, 1.0 and 1.5, %",
            xlim=(70, 95),
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))  # over no ring
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the tables and write the plot."""
    for net in GRID:
        CONSOLE.print(search_table(net))
        table = finals_table(net)
        if table is not None:
            CONSOLE.print(table)
    curves(Path(__file__).parent / "curves.png")


if __name__ == "__main__":
    main()
