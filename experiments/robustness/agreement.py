"""Our attacks against other libraries', on the same networks and images.

    python agreement.py

FGSM and PGD against foolbox 3.3.4 on 1,000 test images of Fashion-MNIST; AutoAttack through our adapter against
what its own `run_standard_evaluation` finds on 200; on a plain network and a normalised one. Writes
`runs/agreement.json` after each network; those that it holds are not done again.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from typing import Any

import torch
from grid import COMMON
from rich.console import Console
from rich.table import Table
from study import DEVICE, RUNS, short_run
from torch import Tensor, nn

import spectralnorm as sn
from spectralnorm.files import write_atomically
from spectralnorm.training.data import fashion_mnist

NETS: dict[str, dict[str, Any]] = {
    "plain": {"normalize": "none"},
    "norms 1": {"init": "orthogonal", "temperature": 0.1},
}
SIZES = {"l2": (0.25, 0.5, 1.0), "linf": (2 / 255, 4 / 255, 8 / 255)}
FOOLBOX = {
    ("fgsm", "linf"): ("FGSM", {}),
    ("fgsm", "l2"): ("FGM", {}),
    ("pgd-ce", "linf"): ("LinfPGD", {"steps": 20, "rel_stepsize": 2.5 / 20}),
    ("pgd-ce", "l2"): ("L2PGD", {"steps": 20, "rel_stepsize": 2.5 / 20}),
}
IMAGES, FEW = 1000, 200
CONSOLE = Console()


def right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images are classified right."""
    with torch.no_grad():
        return net(x).argmax(1) == y


def by_foolbox(net: nn.Module, x: Tensor, y: Tensor, attack: str, norm: str, eps: float) -> float:
    """Accuracy under foolbox's attack."""
    import foolbox

    name, options = FOOLBOX[attack, norm]
    torch.manual_seed(0)
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device=DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        points = getattr(foolbox.attacks, name)(**options)(wrapped, x, y, epsilons=eps)[1]
    return float((right(net, x, y) & right(net, points, y)).double().mean())


def by_autoattack(net: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> float:
    """Accuracy under the standard version, by the attack's own report."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(
        net, norm={"l2": "L2", "linf": "Linf"}[norm], eps=eps, seed=0, version="standard", device=DEVICE
    )
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        points, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return float(right(net, points, y).double().mean())


def compared(name: str, net: nn.Module) -> list[dict[str, Any]]:
    """Both figures of every attack, norm and size."""
    data, rows = fashion_mnist(), []
    x, y = data.test_x[:IMAGES].to(DEVICE), data.test_y[:IMAGES].to(DEVICE)
    ours = sn.evaluate(net, (x, y), ["fgsm", "pgd-ce"], SIZES)
    for at in ours.results:
        theirs = by_foolbox(net, x, y, at.attack, at.norm, at.eps)
        rows.append({**vars_of(at), "net": name, "images": IMAGES, "other": "foolbox", "theirs": theirs})
    x, y = x[:FEW], y[:FEW]
    sizes = {norm: [each[1]] for norm, each in SIZES.items()}
    for at in sn.evaluate(net, (x, y), ["autoattack"], sizes, probes=0).results:
        theirs = by_autoattack(net, x, y, at.norm, at.eps)
        rows.append({**vars_of(at), "net": name, "images": FEW, "other": "its own report", "theirs": theirs})
    return rows


def vars_of(at: Any) -> dict[str, Any]:
    """What was attacked how, and our figure."""
    return {"attack": at.attack, "norm": at.norm, "eps": at.eps, "ours": at.robust_accuracy}


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Both figures of every attack."""
    table = Table(title="Accuracy under attack, %")
    for heading in ("network", "attack", "norm", "eps", "images", "ours", "theirs", "other"):
        table.add_column(heading, justify="left" if heading in ("network", "attack", "other") else "right")
    for row in rows:
        shares = (f"{100 * row['ours']:.1f}", f"{100 * row['theirs']:.1f}")
        table.add_row(
            row["net"], row["attack"], row["norm"], f"{row['eps']:.3g}", str(row["images"]), *shares, row["other"]
        )
    return table


def main() -> None:
    """Compare on each network that is missing, write it down, and print the table."""
    torch.set_num_threads(1)
    path = RUNS / "agreement.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    for name, chosen in NETS.items():
        if all(row["net"] != name for row in rows):
            CONSOLE.print(f"{name}: training, attacking", highlight=False)
            rows += compared(name, short_run({**COMMON, "arch": "small-cnn", "epochs": 5, **chosen})[0])
            write_atomically(path, json.dumps(rows, indent=2) + "\n")
    CONSOLE.print(table_of(rows))
    CONSOLE.print(f"Largest difference: {100 * max(abs(row['ours'] - row['theirs']) for row in rows):.2f} points")


if __name__ == "__main__":
    main()
