"""Certified accuracy of a network that is trained for it: every test image, by proof.

    python certified.py

`lipschitz-cnn` (MaxMin, invertible downsampling, orthogonal start), trained on 10,000 images for 5 epochs by
Lipschitz-margin training, its norms proven at most 1. Writes `runs/certified.json`, unless it is there.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from grid import COMMON
from rich.console import Console
from rich.table import Table
from study import CERTIFIED_EPS, RUNS, certified, short_run

from spectralnorm.files import write_atomically
from spectralnorm.training.data import fashion_mnist

CHOSEN: dict[str, Any] = {
    "arch": "lipschitz-cnn",
    "init": "orthogonal",
    "loss": "lmt",
    "margin": 0.25,
    "temperature": 0.1,
    "lr": 0.002,
    "warmup": 0.5,
    "epochs": 5,
}
CONSOLE = Console()


def table_of(found: dict[str, Any]) -> Table:
    """The row of the network."""
    table = Table(title="Certified accuracy on the 10,000 test images of Fashion-MNIST, %")
    for heading in ("Lipschitz bound", "clean", *(f"L2 {eps:g}" for eps in CERTIFIED_EPS)):
        table.add_column(heading, justify="right")
    shares = [found["clean"], *(found["certified"][str(eps)] for eps in CERTIFIED_EPS)]
    table.add_row(f"{found['lipschitz']:.3g}", *(f"{100 * share:.1f}" for share in shares))
    return table


def main() -> None:
    """Train and certify if that is missing, and print the table."""
    torch.set_num_threads(1)
    path = RUNS / "certified.json"
    if not path.is_file():
        settings = COMMON | CHOSEN
        net, result = short_run(settings, prove=True)
        proven = certified(net, fashion_mnist())
        if proven is None or "refused" in proven:
            raise RuntimeError(f"got no finite bound, expected one of a network of normalised layers: {proven}")
        found = {"settings": settings, "seconds": result["seconds"], **proven}
        write_atomically(path, json.dumps(found, indent=2) + "\n")
    CONSOLE.print(table_of(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
