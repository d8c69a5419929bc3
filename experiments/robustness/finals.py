"""The finals: each method's chosen configuration on all 60,000 images for 15 epochs, attacked and certified.

    python finals.py [--nets small-cnn resnet20] [--methods "ours, hard" ...] [--numbers 2 ...]

Attacked by standard AutoAttack at L2 0.5, 1.0 and 1.5 on the first 200 test images, the same for all; certified on
all test images where the bound of the network is finite. A run that was interrupted goes on from where it was;
what is there is not done again. `--numbers` takes these configurations in place of the chosen one, for the
trade-off curve.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from grid import COMMON, GRID
from rich.console import Console
from study import DEVICE, EPS, RUNS, asked, certified, chosen, load_net, slug
from torch import nn

import spectralnorm as sn
from spectralnorm.files import write_atomically
from spectralnorm.training.conduct import CHECKPOINT, Options, conduct, load_data
from spectralnorm.training.dataset import Dataset
from spectralnorm.training.settings import Settings
from spectralnorm.training.team import Team

ATTACKED = 200  # the first test images
BATCH = 200 if DEVICE.type == "cuda" else 100  # of attacked images: what is done when the script is stopped
MACHINES = ("amp", "data_dir")  # settings that follow from the machine
CONSOLE = Console(stderr=True)


def trained(settings: Settings, folder: Path, data: Dataset) -> tuple[nn.Module, dict[str, Any]]:
    """The plain network of a run that is made, or gone on with, here; and the run's result."""
    if all((folder / name).is_file() for name in ("result.json", "model.pt")):
        known = json.loads((folder / "settings.json").read_text())
        asked = json.loads(json.dumps(asdict(settings)))
        others = [name for name in asked if name not in MACHINES and known.get(name) != asked[name]]
        if others:
            raise ValueError(f"{folder}: was trained with other settings ({', '.join(others)}); delete it")
    else:
        options = Options(folder, resume=True, checkpoint_every=100, log_every=469, certify_eps=())
        last = [""]

        def note(what: str, _: float) -> None:
            if what != last[0]:
                CONSOLE.print(f"  {time.strftime('%H:%M')} {what}", highlight=False)
                last[0] = what

        conduct(settings, options, data, Team(0, 1, DEVICE), note)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return load_net(settings, folder), json.loads((folder / "result.json").read_text())


def final(net: str, method: str, number: int, folder: Path) -> None:
    """Train, attack, certify, and write it down."""
    settings = Settings(**(COMMON | GRID[net][method][number]), epochs=15, seed=0)
    data = load_data(settings)
    model, result = trained(settings, folder, data)
    attacked = (data.test_x[:ATTACKED], data.test_y[:ATTACKED])
    evaluation = sn.evaluate(
        model, attacked, ["autoattack"], {"l2": EPS}, batch_size=BATCH, resume=folder / "evaluation.json"
    )
    worst = {str(entry.eps): entry.robust_accuracy for entry in evaluation.worst_case}
    names = ("test_accuracy", "proven_accuracy", "device", "seconds", "layers")
    kept = {name: result[name] for name in names if name in result}
    summary = {
        "net": net,
        "method": method,
        "number": number,
        "amp": json.loads((folder / "settings.json").read_text())["amp"],
        "settings": GRID[net][method][number],
        **kept,
        "attacked": {"examples": evaluation.examples, "clean": evaluation.clean_accuracy, "worst_case": worst},
        "alarms": [vars(alarm) for alarm in evaluation.alarms],
        "certified": certified(model, data),
    }
    write_atomically(folder / "final.json", json.dumps(summary, indent=2) + "\n")
    CONSOLE.print(
        f"{net}, {method}, {number}: clean {result['test_accuracy']:.4f}, AutoAttack {worst}", highlight=False
    )


def main() -> None:
    """Run what is missing."""
    torch.set_num_threads(1)
    for net, method, numbers in asked(__doc__):
        best = chosen(net, method)
        if best is None and not numbers:
            CONSOLE.print(f"{net}, {method}: its search has not ended; run search.py", highlight=False)
            continue
        for number in numbers or [best]:
            folder = RUNS / "finals" / net / f"{slug(method)}-{number}"
            if not (folder / "final.json").is_file():
                CONSOLE.print(f"{net}, {method}, {number}", highlight=False)
                final(net, method, number, folder)


if __name__ == "__main__":
    main()
