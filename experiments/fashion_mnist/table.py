"""The study's table, from the results that its runs have left in `runs/`.

    python experiments/fashion_mnist/table.py

The Lipschitz bound of a ResNet-20 is worked out here from its layers' proven norms: the stem, times
(shortcut + conv1 conv2) of each block, times the mean over the last maps (1 / sqrt of their pixels), times
the last layer; ReLU has 1. It is that of the logits before they are divided by the temperature, in L2 norms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RUNS = Path(__file__).parent / "runs"
PIXELS = 7 * 7  # of the last maps, of a 28x28 image


def lipschitz_bound(layers: Mapping[str, float]) -> float:
    """From the layers' norms by name."""
    bound = layers["conv"] * layers["fc"] / math.sqrt(PIXELS)
    for name in layers:
        if name.endswith("branch.conv1"):
            block = name.removesuffix("branch.conv1")
            branch = layers[f"{block}branch.conv1"] * layers[f"{block}branch.conv2"]
            bound *= layers.get(f"{block}shortcut.conv", 1.0) + branch
    return bound


def row(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    """One run."""
    settings, layers = result["settings"], result["layers"]
    norms = {layer["name"]: layer["upper"] or layer["norm"] for layer in layers}
    targets = {layer["target"] for layer in layers}
    held = "none" if targets == {None} else f"{settings['mode']}, {', '.join(f'{t:g}' for t in sorted(targets))}"
    budget = "-" if targets == {None} else f"{math.prod(layer['target'] for layer in layers):.3g}"
    clean = 100 * result.get("proven_accuracy", result["test_accuracy"])
    bound = f"{lipschitz_bound(norms):.3g}" + ("" if result["layers"][0]["upper"] else " (from below)")
    largest = f"{max(norms.values()):.3f}"
    minutes = f"{result['seconds'] / 60:.0f}"
    temperature = f"{result['temperature']:g}"
    return name, f"{clean:.2f}", held, budget, largest, bound, temperature, str(settings["epochs"]), minutes


def main() -> None:
    """Print the table."""
    table = Table(title="ResNet-20 on Fashion-MNIST, 60,000 training images")
    headings = ("run", "clean, %", "targets", "product of\ntargets", "largest\nnorm", "Lipschitz\nbound")
    for heading in (*headings, "temperature", "epochs", "minutes"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for path in sorted(RUNS.glob("*/result.json")):
        table.add_row(*row(path.parent.name, json.loads(path.read_text())))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
