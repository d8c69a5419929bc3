"""The search: every configuration of every method on 10,000 images for 5 epochs, scored on images it has not seen.

    python search.py [--nets small-cnn resnet20] [--methods "ours, hard" ...] [--numbers 0 1 ...]

Scores: clean accuracy, and accuracy under PGD (20 steps, margin loss) at L2 0.5, 1.0 and 1.5, on 500 training
images that no run of the search trains on. Each result is a file in `runs/search`; what is there is not run again.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from grid import COMMON, GRID
from rich.console import Console
from study import DEVICE, EPS, asked, path_of, short_run
from torch import nn

from spectralnorm.files import write_atomically
from spectralnorm.robustness.attacks import pgd
from spectralnorm.training.data import fashion_mnist

SCORED = 500  # the last training images
CONSOLE = Console(stderr=True)


def scored(net: nn.Module) -> dict[str, Any]:
    """Clean accuracy, and under PGD by eps, on the images kept for it."""
    data = fashion_mnist()
    x, y = data.train_x[-SCORED:].to(DEVICE), data.train_y[-SCORED:].to(DEVICE)
    with torch.no_grad():
        right = net(x).argmax(1) == y
    kept, robust = right.clone(), {}
    for eps in EPS:  # what is fooled at a smaller size is at a larger one
        rows = kept.nonzero()[:, 0]
        if len(rows):
            attacked = pgd(net, x[rows], y[rows], eps, norm="l2", steps=20, loss="margin")
            with torch.no_grad():
                kept[rows] = net(attacked).argmax(1) == y[rows]
        robust[str(eps)] = float(kept.float().mean())
    return {"clean": float(right.float().mean()), "robust": robust, "mean": sum(robust.values()) / len(EPS)}


def searched(net: str, method: str, number: int) -> dict[str, Any]:
    """Train and score one configuration."""
    chosen = {**COMMON, **GRID[net][method][number]}
    try:
        model, result = short_run({**chosen, "epochs": 5})
    except FloatingPointError as error:  # a configuration that diverges is a result
        return {"net": net, "method": method, "settings": chosen, "diverged": str(error)}
    kept = {key: result[key] for key in ("test_accuracy", "device", "seconds", "layers")}
    return {"net": net, "method": method, "settings": chosen, **kept, "score": scored(model)}


def main() -> None:
    """Run what is missing."""
    torch.set_num_threads(1)
    for net, method, numbers in asked(__doc__):
        for number in numbers or range(len(GRID[net][method])):
            path = path_of(net, method, number)
            if path.is_file():
                continue
            start = time.perf_counter()
            found = searched(net, method, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(found, indent=2) + "\n")
            score = found.get("score", {"clean": 0.0, "mean": 0.0})
            CONSOLE.print(
                f"{net}, {method}, {number}: clean {score['clean']:.3f}, PGD {score['mean']:.3f}, "
                f"{time.perf_counter() - start:.0f} s",
                highlight=False,
            )


if __name__ == "__main__":
    main()
