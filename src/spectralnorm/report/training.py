"""The result of a training run as a table of its layers, and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

__all__ = ["training_summary", "training_table"]


def training_table(result: Mapping[str, Any]) -> Table:
    """Build the table: a row per layer.

    Args:
        result: what `spectralnorm.training.conduct.conduct` returns.

    Returns:
        The table of targets and size-free norms, with their proven upper ends where they were proven.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer")
    for heading in ("target", "true norm", "proven below"):
        table.add_column(heading, justify="right")
    for layer in result["layers"]:
        name = layer["name"] + (f" + {layer['batchnorm']}" if layer["batchnorm"] else "")
        table.add_row(name, _number(layer["target"]), _number(layer["norm"]), _number(layer["upper"]))
    return table


def training_summary(result: Mapping[str, Any], out: Path) -> list[str]:
    """Say what came out, and where it is.

    Args:
        result: what `spectralnorm.training.conduct.conduct` returns.
        out: folder of the run.

    Returns:
        Sentences.
    """
    settings, found = result["settings"], [f"Accuracy on the test images: {100 * result['test_accuracy']:.2f} %"]
    if "proven_accuracy" in result:
        others = f", except those of {', '.join(result['unmeasured'])}" if result["unmeasured"] else ""
        found[0] += f", and {100 * result['proven_accuracy']:.2f} % with every layer's norm proven{others}"
    targets = [layer["target"] for layer in result["layers"]]
    if targets and None not in targets:
        product = math.prod(targets)
        found.append(f"Product of the layers' targets: {product:.4g}.")
    if "certification" in result:
        found.append(_certified(result))
    processes = "" if result["processes"] == 1 else f" on {result['processes']} processes"
    if _by_chance(result):
        found.append(
            "No more than guessing would get: the network has not learnt. Lower lr, by as much as the temperature "
            "is below 1; or take --optimizer adam --lr 0.001, more steps, a larger target, or --init orthogonal."
        )
    return [
        f"{found[0]}.",
        *found[1:],
        f"{result['steps']} step{'s' * (result['steps'] > 1)} in {result['seconds']:.0f} s{processes}.",
        f"Logits were divided by a temperature of {result['temperature']:.3g}.",
        f"{out}: model.pt (a plain {settings['arch']}'s state_dict), result.json, log.jsonl, checkpoint.pt.",
    ]


def _certified(result: Mapping[str, Any]) -> str:
    """Say what was certified, or why nothing was."""
    proven = result["certification"]
    if proven is None:
        return f"No certified accuracy: {result['certification_reason']}."
    shares = ", ".join(f"{100 * each['certified_accuracy']:.2f} % at {each['eps']:g}" for each in proven["sizes"])
    bound = f"the network's Lipschitz bound is {proven['lipschitz']:.4g}"
    return f"Certified accuracy, proven, under every change of an L2 size: {shares}; {bound}."


def _by_chance(result: Mapping[str, Any]) -> bool:
    """Whether the accuracy is within two standard deviations of guessing, or below."""
    chance = 1 / result["classes"]
    spread = math.sqrt(chance * (1 - chance) / result["test_images"])
    return bool(result["test_accuracy"] <= chance + 2 * spread)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
