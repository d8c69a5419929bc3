"""The demonstration's results as one table, and what it shows in plain sentences computed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

__all__ = ["demo_notes", "demo_summary", "demo_table"]

NORM_NAMES = {"linf": "L∞", "l2": "L2"}


def demo_table(result: Mapping[str, Any]) -> Table:
    """Build the table: a row per training method.

    Args:
        result: what `spectralnorm.commands.demo.run` returns.

    Returns:
        The table; robust accuracies are the worst case over all attacks, taken for each image.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("training", no_wrap=True)
    sizes = [(norm, eps) for norm, chosen in result["settings"]["table_eps"].items() for eps in chosen]
    attacked = [f"{NORM_NAMES[norm]}\n{eps:g}" for norm, eps in sizes]
    headings = ["worst layer's\ntrue norm", "product\nof norms", "clean\n%", *attacked, "training\ns"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for method in result["methods"]:
        accuracy = _worst_case(method)
        table.add_row(
            method["label"],
            f"{_worst_norm(method):.2f}",
            f"{_number(method['audit']['product_of_layer_norms']):.2f}",
            f"{accuracy['clean', 0.0]:.1f}",
            *(f"{accuracy[size]:.1f}" for size in sizes),
            f"{method['training']['seconds']:.1f}",
        )
    return table


def demo_notes(result: Mapping[str, Any]) -> list[str]:
    """Say how the table was made.

    Args:
        result: what `spectralnorm.commands.demo.run` returns.

    Returns:
        Sentences: on the training, and on the columns.
    """
    data, settings, methods = result["data"], result["settings"], result["methods"]
    scales = ", ".join(f"{method['logit_scale']:g} ({method['label']})" for method in methods)
    attacks = ", ".join(settings["attacks"]).upper()
    return [
        "One small CNN (3 convolutions, 2 linear layers), from the same initial weights and on the same batches, "
        f"trained {len(methods)} ways: {data['name']}, {data['train_images']} images, {settings['epochs']} epochs."
        f" Layers of norm 1 give small logits, so the loss multiplies them by {scales}.",
        "Norms are of the trained layers, over all input sizes. Accuracy is on "
        f"{data['test_images']} test images: clean, and under attack ({attacks}; the worst for each image) by "
        "changes of at most the L∞ or L2 size in the heading, pixels being in [0, 1].",
    ]


def demo_summary(result: Mapping[str, Any]) -> list[str]:
    """Say what the table shows.

    Args:
        result: what `spectralnorm.commands.demo.run` returns.

    Returns:
        Sentences: on the norms, on the accuracy under attack, and on chance.
    """
    methods = result["methods"]
    plain, others = methods[0], methods[1:]
    norms = ", ".join(f"{_worst_norm(method):.2f} ({method['label']})" for method in others)
    images = result["data"]["test_images"]
    best, second = sorted(methods, key=_mean_robust, reverse=True)[:2]
    lead = _mean_robust(best) - _mean_robust(second)
    means = ", ".join(f"{_mean_robust(method):.1f} % ({method['label']})" for method in methods)
    cost = _worst_case(best)["clean", 0.0] - _worst_case(plain)["clean", 0.0]
    against = "" if best is plain else f"; its clean accuracy is {cost:+.1f} points against {plain['label']}"
    return [
        f"Asked for norm 1, the worst layer has a true norm of {norms}; untouched, {_worst_norm(plain):.2f}.",
        f"Accuracy under attack, averaged over all {len(plain['evaluation']['worst_case'])} norms and sizes: "
        f"{means}. The highest is {best['label']}, {lead:.1f} points above {second['label']}{against}.",
        f"One seed and {images} test images: differences below {_chance(images):.0f} points can be chance.",
    ]


def _worst_case(method: Mapping[str, Any]) -> dict[tuple[str, float], float]:
    """Accuracies in percent by norm and size, and the clean one."""
    evaluation = method["evaluation"]
    attacked = {
        (entry["norm"], entry["eps"]): 100 * entry["robust_accuracy"] for entry in evaluation["worst_case"]
    }
    return {("clean", 0.0): 100 * evaluation["clean_accuracy"], **attacked}


def _worst_norm(method: Mapping[str, Any]) -> float:
    return max(_number(layer["norm"]["value"]) for layer in method["audit"]["layers"])


def _number(value: float | None) -> float:
    """Null stands for a number that is not finite, which of norms means one too large."""
    return math.inf if value is None else value


def _mean_robust(method: Mapping[str, Any]) -> float:
    entries = method["evaluation"]["worst_case"]
    return 100 * math.fsum(entry["robust_accuracy"] for entry in entries) / len(entries)


def _chance(images: int) -> float:
    """Two standard errors of the difference of two shares of so many images, in points, at most."""
    return 200 * math.sqrt(0.5 / images)
