"""Certified radii under attack: what is certified must hold, on three trained networks.

    python soundness.py [--nets 0 1 2]

Each network is trained on 10,000 images of Fashion-MNIST and certified. PGD (10 restarts, 20 steps, margin loss)
attacks 1,000 test images, each within 0.999 of its own certified radius; standard AutoAttack attacks 200 of them,
sorted by radius into ten bins, each within 0.999 of its bin's smallest radius. Every success would be a false
certificate. Writes `runs/soundness.json` after each network; those that it holds are not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from grid import COMMON
from rich.console import Console
from rich.table import Table
from study import DEVICE, RUNS, short_run
from torch import Tensor, nn

import spectralnorm as sn
from spectralnorm.files import write_atomically
from spectralnorm.robustness.attacks import pgd
from spectralnorm.training.data import fashion_mnist

NETS: dict[str, dict[str, Any]] = {
    "small CNN with MaxMin, margin-trained, no BatchNorm": {
        "arch": "small-cnn",
        "activation": "maxmin",
        "init": "orthogonal",
        "loss": "lmt",
        "margin": 0.25,
        "temperature": 0.1,
        "epochs": 5,
    },
    "small CNN, BatchNorm folded": {"arch": "small-cnn", "batch_norm": True, "temperature": 0.1, "epochs": 5},
    "ResNet-20, no BatchNorm": {"arch": "resnet20", "init": "orthogonal", "temperature": 0.03, "epochs": 2},
}
BELOW = 0.999  # of a certified radius
ATTACKED, BINNED, BINS = 1000, 200, 10
CONSOLE = Console()


def under_pgd(net: nn.Module, x: Tensor, y: Tensor, radii: Tensor) -> tuple[int, int]:
    """How many images with a certificate PGD fools, and how many there are."""
    rows = (radii > 0).nonzero()[:, 0]
    fooled = 0
    for part in rows.split(250):
        points = pgd(net, x[part], y[part], BELOW * radii[part], norm="l2", restarts=10, loss="margin")
        with torch.no_grad():
            fooled += int((net(points).argmax(1) != y[part]).sum())
    return fooled, len(rows)


def under_autoattack(net: nn.Module, x: Tensor, y: Tensor, radii: Tensor) -> tuple[int, int, list[float]]:
    """The same of AutoAttack on the first images that have a certificate, and the sizes of its bins."""
    rows = (radii > 0).nonzero()[:, 0][:BINNED]
    rows = rows[radii[rows].argsort()]
    fooled, sizes = 0, []
    for part in rows.tensor_split(BINS):
        sizes.append(BELOW * float(radii[part].min()))
        CONSOLE.print(f"  {time.strftime('%H:%M')} AutoAttack at {sizes[-1]:.3g}", highlight=False)
        found = sn.evaluate(net, (x[part], y[part]), ["autoattack"], {"l2": [sizes[-1]]}, probes=0)
        fooled += found.clean.right - found.worst_case[0].right
    return fooled, len(rows), sizes


def judged(chosen: dict[str, Any]) -> dict[str, Any]:
    """Train, certify and attack one network."""
    start, data = time.perf_counter(), fashion_mnist()
    net, _ = short_run({**COMMON, "lr": 0.002, **chosen}, prove=True)
    x, y = data.test_x[:ATTACKED].to(DEVICE), data.test_y[:ATTACKED].to(DEVICE)
    certifier = sn.Certifier(net, data.input_shape)
    radii, right = certifier.judge(x, y)
    by_pgd, of_pgd = under_pgd(net, x, y, radii)
    by_auto, of_auto, sizes = under_autoattack(net, x, y, radii)
    return {
        "settings": chosen,
        "lipschitz": certifier.lipschitz,
        "clean_accuracy": float(right.double().mean()),
        "median_radius": float(radii[radii > 0].median()),
        "largest_radius": float(radii.max()),
        "pgd": {"fooled": by_pgd, "attacked": of_pgd},
        "autoattack": {"fooled": by_auto, "attacked": of_auto, "sizes": sizes},
        "seconds": time.perf_counter() - start,
    }


def table_of(results: dict[str, dict[str, Any]]) -> Table:
    """A row for each network."""
    table = Table(title="Attacks at 0.999 of certified L2 radii: images fooled of those attacked")
    for heading in ("network", "clean, %", "Lipschitz bound", "median radius", "PGD", "AutoAttack"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, found in results.items():
        counts = [f"{found[kind]['fooled']} of {found[kind]['attacked']}" for kind in ("pgd", "autoattack")]
        numbers = (f"{100 * found['clean_accuracy']:.1f}", f"{found['lipschitz']:.3g}")
        table.add_row(name, *numbers, f"{found['median_radius']:.3g}", *counts)
    return table


def main() -> None:
    """Judge each network that is missing, write it down, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", type=int, choices=range(len(NETS)), default=list(range(len(NETS))))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RUNS / "soundness.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    for name in [list(NETS)[index] for index in args.nets]:
        if name not in results:
            CONSOLE.print(f"{name}: training, certifying, attacking", highlight=False)
            found = judged(NETS[name])
            results = (json.loads(path.read_text()) if path.is_file() else {}) | {name: found}
            write_atomically(path, json.dumps(results, indent=2) + "\n")
    CONSOLE.print(table_of(results))


if __name__ == "__main__":
    main()
