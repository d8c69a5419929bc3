"""What the steps of the study share: where results lie, how a run is made, and which configuration is chosen."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from grid import GRID
from torch import nn

import spectralnorm as sn
from spectralnorm.training.conduct import Options, conduct, load_data
from spectralnorm.training.dataset import Dataset
from spectralnorm.training.models import build
from spectralnorm.training.settings import Settings
from spectralnorm.training.team import Team

__all__ = [
    "CERTIFIED_EPS",
    "DEVICE",
    "EPS",
    "FLOOR",
    "RUNS",
    "asked",
    "certified",
    "chosen",
    "found",
    "load_net",
    "path_of",
    "short_run",
    "slug",
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUNS = Path(__file__).parent / "runs"
EPS = (0.5, 1.0, 1.5)  # L2, in pixels from 0 to 1
CERTIFIED_EPS = (0.1, 0.25, 0.5, 1.0)
FLOOR = 0.84  # clean accuracy in the search; 18 times the training adds some points


def asked(description: str | None) -> Iterator[tuple[str, str, list[int] | None]]:
    """What the command line asks for: networks with methods, in the grid's order, and numbers where named."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=list(GRID), default=list(GRID))
    methods = list(dict.fromkeys(method for methods in GRID.values() for method in methods))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="METHOD")
    parser.add_argument("--numbers", nargs="+", type=int, choices=range(6), metavar="NUMBER")
    args = parser.parse_args()
    yield from ((net, name, args.numbers) for net in args.nets for name in args.methods if name in GRID[net])


def slug(method: str) -> str:
    """A method's name as that of a file."""
    return method.replace(", ", "-").replace(" ", "-")


def path_of(net: str, method: str, number: int) -> Path:
    """Where the search's result of one configuration is."""
    return RUNS / "search" / net / f"{slug(method)}-{number}.json"


def found(net: str, method: str) -> dict[int, dict[str, Any]]:
    """The search's results of a method, by number; those that diverged left out."""
    paths = {number: path_of(net, method, number) for number in range(len(GRID[net][method]))}
    read = {number: json.loads(path.read_text()) for number, path in paths.items() if path.is_file()}
    return {number: result for number, result in read.items() if "score" in result}


def chosen(net: str, method: str) -> int | None:
    """The configuration that a method goes into its final with.

    Returns:
        Of those of at least `FLOOR` clean accuracy the one of the highest mean accuracy under PGD; where there is
        none, that of the highest clean accuracy. None while the method's search has not ended.
    """
    numbers = range(len(GRID[net][method]))
    if not all(path_of(net, method, number).is_file() for number in numbers):
        return None
    scores = {number: result["score"] for number, result in found(net, method).items()}
    good = [number for number, score in scores.items() if score["clean"] >= FLOOR]
    if good:
        return max(good, key=lambda number: scores[number]["mean"])
    return max(scores, key=lambda number: scores[number]["clean"], default=None)


def load_net(settings: Settings, folder: Path) -> nn.Module:
    """The plain network that a run has left, on the device that attacks it."""
    net = build(settings.arch, (1, 28, 28), 10, **settings.architecture)
    net.load_state_dict(torch.load(folder / "model.pt", weights_only=True)["state_dict"])
    return net.eval().to(DEVICE)


def short_run(chosen: dict[str, Any], *, prove: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """Train on 10,000 images, and keep nothing of the run but the plain network and its result."""
    settings = Settings(**chosen, images=10_000, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        options = Options(Path(folder), prove=prove, checkpoint_every=10**9, certify_eps=())
        result = conduct(settings, options, load_data(settings), Team(0, 1, DEVICE), lambda *_: None)
        return load_net(settings, Path(folder)), result


def certified(net: nn.Module, data: Dataset) -> dict[str, Any] | None:
    """Certified accuracy on the test images; None without a finite bound."""
    try:
        proven = sn.certify(net, (data.test_x, data.test_y), {"l2": CERTIFIED_EPS})
    except ValueError as error:
        return {"refused": str(error)}
    if not math.isfinite(proven.lipschitz):
        return None
    accuracy = {str(entry.eps): entry.certified_accuracy for entry in proven.results}
    return {"lipschitz": proven.lipschitz, "clean": proven.clean_accuracy, "certified": accuracy}
