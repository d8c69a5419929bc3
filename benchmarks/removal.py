"""What a proof costs in accuracy: a normalised network before and after `remove_spectral_norm(certified=True)`.

    python benchmarks/removal.py [--images 12000] [--epochs 5] [--seed 0]

The small CNN on Fashion-MNIST where it is installed, else on scikit-learn's digits, hard and soft, without
BatchNorm and with each folded. The norms held in training are lower bounds; each weight (or gamma) is scaled down
until its layer's norm is proven to be at most its target. Asked: every layer proven, accuracy within 0.1 point.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import spectralnorm as sn
from common import RESULTS, machine, save
from spectralnorm.network.graph import batchnorm_pairs
from spectralnorm.training.data import Dataset, load
from spectralnorm.training.loop import accuracy, train
from spectralnorm.training.models import small_cnn


def data(images: int) -> Dataset:
    """Fashion-MNIST, the first so many images of it to train with, or digits."""
    try:
        whole = load("fashion-mnist")
    except (FileNotFoundError, OSError, ValueError):
        return load("digits")
    fields = {**vars(whole), "train_x": whole.train_x[:images], "train_y": whole.train_y[:images]}
    return type(whole)(**fields)


def proven(model: nn.Module) -> dict[str, float]:
    """The proven upper end of every layer's norm, of the fused map where a BatchNorm follows."""
    pairs, found = batchnorm_pairs(model), {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            whole = nn.Sequential(layer, model.get_submodule(pairs[name])) if name in pairs else layer
            found[name] = sn.spectral_norm(whole.eval(), certified=True, rtol=1e-4).upper
    return found


def run(dataset: Dataset, mode: str, folded: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Train, remove, compare."""
    torch.manual_seed(args.seed)
    model = small_cnn(dataset.input_shape, dataset.classes, batch_norm=folded)
    sn.spectral_normalize(model, target=1.0, mode=mode, fold_batchnorm=folded)
    train(model, dataset, epochs=args.epochs, seed=args.seed, logit_scale=10.0)
    model.eval()
    before = accuracy(model, dataset.test_x, dataset.test_y)
    sn.remove_spectral_norm(model, certified=True)
    after = accuracy(model, dataset.test_x, dataset.test_y)
    uppers = proven(model)
    row = {"mode": mode, "batch_norm": folded, "before": before, "after": after}
    return {**row, "points": 100 * (after - before), "largest_upper": max(uppers.values()), "uppers": uppers}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "removal.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = data(args.images)
    rows = [run(dataset, mode, folded, args) for folded in (False, True) for mode in ("hard", "soft")]
    table = Table(title=f"{dataset.name}, {len(dataset.test_x)} test images: before and after a proven removal")
    for heading in ("mode", "BatchNorm", "accuracy before, %", "after, %", "points", "largest proven norm"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (f"{100 * row['before']:.2f}", f"{100 * row['after']:.2f}", f"{row['points']:+.2f}")
        fold = "folded" if row["batch_norm"] else "none"
        table.add_row(row["mode"], fold, *numbers, f"{row['largest_upper']:.5f}")
    Console(width=110).print(table)
    options = {"data": dataset.name, "images": len(dataset.train_x), "epochs": args.epochs, "seed": args.seed}
    save(args.out, {"machine": machine(), **options, "rows": rows})


if __name__ == "__main__":
    main()
