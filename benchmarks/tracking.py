"""How closely a norm followed by one sweep a step stays with the true one, in training from random weights.

    python benchmarks/tracking.py [--steps 100] [--lr 0.1] [--momentum 0.9 0] [--size 32] [--batch 128]

ResNet-20 with SGD on Fashion-MNIST where it is installed, else on scikit-learn's digits, resized to size x size:
`plain`, without BatchNorm, and `folded`, each BatchNorm in the norm of the convolution before it. Every tenth step
the weights are read as that step's forward pass uses them, and the norm of every normalised layer (of the fused
map where folded, with the running statistics of that moment) is certified: it should be the target. `eval`: after
the last step, in eval mode, where the state stands still; `end`: then in train mode, as the next step would use
them. A deviation is that of the farther end of the proven interval, which is 2e-4 wide; asked: 5e-3 on the way,
1e-3 at the end. `moved` says how much there was to follow: the largest relative change of a trained kernel in the
step before. A network of norm 1 without BatchNorm has small logits: its loss takes 10 times them.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import spectralnorm as sn
from common import RESULTS, machine, save
from spectralnorm.network.graph import batchnorm_pairs
from spectralnorm.training.data import DEBIAN_FASHION_MNIST, load
from spectralnorm.training.resnet import resnet20

PROGRESS = Console(stderr=True)
RTOL, ON_THE_WAY, AT_THE_END = 2e-4, 5e-3, 1e-3
LOGIT_SCALES = {"plain": 10.0, "folded": 1.0}


def batches(size: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches without end."""
    data = load("fashion-mnist" if DEBIAN_FASHION_MNIST.is_dir() else "digits", seed=seed)
    images = F.interpolate(data.train_x, (size, size), mode="bilinear", align_corners=False).clamp(0, 1)
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            if len(rows) == batch:
                yield images[rows], data.train_y[rows]


class Followed:
    """A normalised ResNet-20, and copies of its layers as they act at a given moment.

    Attributes:
        model: the network, normalised.
        plain: the same, not normalised.
        pairs: convolution to BatchNorm, where folded.
    """

    def __init__(self, size: int, seed: int, *, folded: bool) -> None:
        torch.manual_seed(seed)
        self.plain = resnet20((1, size, size), 10, batch_norm=folded).eval()
        self.pairs = batchnorm_pairs(self.plain) if folded else {}
        self.model = copy.deepcopy(self.plain).train()
        with warnings.catch_warnings():  # of weights that are left as they are
            warnings.simplefilter("ignore", UserWarning)
            if folded:
                sn.spectral_normalize(self.model, fold_batchnorm=True)
            else:
                sn.spectral_normalize(self.model)

    @torch.no_grad()
    def layers(self) -> dict[str, nn.Module]:
        """Plain copies of the layers, with the weights and statistics that the next forward pass uses."""
        found: dict[str, nn.Module] = {}
        for name, layer in self.plain.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                now = self._now(name)
                found[name] = nn.Sequential(now, self._now(self.pairs[name])) if name in self.pairs else now
        return found

    def _now(self, name: str) -> nn.Module:
        """A plain copy of one module as it is: parameters read as its forward pass reads them, and buffers."""
        module, now = self.model.get_submodule(name), copy.deepcopy(self.plain.get_submodule(name))
        for key, tensor in (*now.named_parameters(), *now.named_buffers()):
            tensor.copy_(getattr(module, key))
        return now


def deviations(followed: Followed) -> dict[str, float]:
    """Of every layer: how far its proven norm is from 1, the target; above it where the engine's was too small."""
    bounds = {
        name: sn.spectral_norm(layer, method="certified", rtol=RTOL) for name, layer in followed.layers().items()
    }
    return {name: max(bound.upper - 1, bound.lower - 1, key=abs) for name, bound in bounds.items()}


def run(folded: bool, momentum: float, args: argparse.Namespace) -> dict[str, Any]:
    """Train one network; its checkpoints."""
    followed, name = Followed(args.size, args.seed, folded=folded), "folded" if folded else "plain"
    model, data, checkpoints = followed.model, batches(args.size, args.batch, args.seed), []
    optimiser = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=momentum)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    scale = LOGIT_SCALES[name] if args.logit_scale is None else args.logit_scale
    loss, before = torch.tensor(float("nan")), [p.detach().clone() for p in kernels]
    for step in track(range(1, args.steps + 1), f"{name}, momentum {momentum:g}", console=PROGRESS):
        if step % args.every == 0:
            moved = change(before, kernels)
            checkpoints.append(checkpoint(str(step), loss.item(), moved, deviations(followed)))
        before = [p.detach().clone() for p in kernels]
        x, y = next(data)
        optimiser.zero_grad()
        loss = F.cross_entropy(scale * model(x), y)
        loss.backward()
        optimiser.step()
    moved = change(before, kernels)
    for last in ("eval", "end"):
        model.train(last == "end")
        checkpoints.append(checkpoint(last, loss.item(), moved, deviations(followed)))
    *way, _, end = (found["largest"] for found in checkpoints)
    met = {"on_the_way": max(way, default=0.0) <= ON_THE_WAY, "at_the_end": end <= AT_THE_END}
    return {"network": name, "momentum": momentum, "met": met, "checkpoints": checkpoints}


@torch.no_grad()
def change(before: list[Tensor], after: list[nn.Parameter]) -> float:
    """The largest relative change of a tensor."""
    return max(float((new - old).norm() / old.norm()) for old, new in zip(before, after, strict=True))


def checkpoint(step: str, loss: float, moved: float, found: dict[str, float]) -> dict[str, Any]:
    """One row of the report."""
    worst = max(found, key=lambda name: abs(found[name]))
    PROGRESS.print(
        f"  step {step}: loss {loss:.3f}, moved {moved:.1e}, deviation {found[worst]:.1e} ({worst})",
        highlight=False,
    )
    row = {"step": step, "loss": loss, "moved": moved, "largest": abs(found[worst]), "layer": worst}
    return {**row, "layers": found}


def show(runs: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="Largest relative deviation of a norm from the target, over all layers")
    table.add_column("step", justify="right")
    for found in runs:
        table.add_column(f"{found['network']}, momentum {found['momentum']:g}", justify="right")
    for rows in zip(*(found["checkpoints"] for found in runs), strict=True):
        table.add_row(rows[0]["step"], *(f"{row['largest']:.1e}" for row in rows))
    console = Console(width=160)
    console.print(table)
    for found in runs:
        met = found["met"]
        console.print(
            f"{found['network']}, momentum {found['momentum']:g}: {ON_THE_WAY:g} on the way "
            f"{'met' if met['on_the_way'] else 'missed'}, {AT_THE_END:g} at the end "
            f"{'met' if met['at_the_end'] else 'missed'}"
        )


def main() -> None:
    """Train, certify, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=100)
    add("--lr", type=float, default=0.1)
    add("--momentum", type=float, nargs="+", default=[0.9, 0.0])
    add("--networks", nargs="+", choices=["plain", "folded"], default=["plain", "folded"])
    add("--size", type=int, default=32, help="height and width of the images")
    add("--batch", type=int, default=128)
    add("--logit-scale", type=float, help="factor of the logits in the loss; default: 10 for plain, 1 for folded")
    add("--every", type=int, default=10, help="steps between checkpoints")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=RESULTS / "tracking.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run(name == "folded", m, args) for name in args.networks for m in args.momentum]
    show(runs)
    data = "fashion-mnist" if DEBIAN_FASHION_MNIST.is_dir() else "digits"
    options = {key: value for key, value in vars(args).items() if key != "out"} | {"data": data}
    asked = {"on_the_way": ON_THE_WAY, "at_the_end": AT_THE_END, "certified_rtol": RTOL}
    save(args.out, {"machine": machine(), "options": options, "asked": asked, "runs": runs})


if __name__ == "__main__":
    main()
