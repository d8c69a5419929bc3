"""Other packages' spectral norms of convolutions beside ours, on 30 layers, one thread.

What a peer returns is compared with the norm it claims to bound or to estimate: at its own padding and size where
it has them. Ratios within one run are the claim; seconds belong to the machine, which the JSON describes.

    pip install -c constraints.txt -e ".[bench]"
    OMP_NUM_THREADS=1 python benchmarks/peers.py [--out benchmarks/results/peers.json] [--docs docs/peers.md]

A missing peer is skipped with a line that names the cure. `--docs ""` leaves the documentation as it is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from common import machine
from peers_layers import ANY, LAYERS, layer_of, true_norm
from peers_methods import OURS, PEERS, Method, NotRunError, RefusesError

LONG_RUN = 10.0  # seconds; a longer run is not repeated
OFF = 0.01  # a value further than this from its own claim is called wrong
ROUNDING = 1e-5  # a bound below the norm by less than this is below by float32's rounding only

# -------------------------------------------------------------------------------------------------- measuring


def measure(method: Method, index: int) -> dict[str, Any]:
    """Value, its ratio to the norm claimed, best seconds of three runs, and what is to be said of it."""
    layer = layer_of(index)
    entry: dict[str, Any] = {"value": None, "seconds": None}
    try:
        run = method.prepare(layer)
        value, entry["seconds"] = timed(run)
    except NotRunError as reason:
        return entry | {"status": "not run", "note": str(reason)}
    except RefusesError as reason:
        return entry | {"status": "refuses", "note": str(reason)}
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        return entry | {"status": "refuses", "note": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    norm = method.norm(layer)
    claimed, any_size = true_norm(index, norm), true_norm(index, ANY)
    entry |= {"value": value if math.isfinite(value) else str(value), "claimed_norm": claimed}
    entry |= {"ratio": quotient(value, claimed), "ratio_any_size": quotient(value, any_size)}
    return entry | {"status": status(method.claim, entry["ratio"]), "note": f"claims: {norm}"}


def quotient(value: float, norm: float) -> float | None:
    """Their quotient; 1 where both are zero, None where there is none."""
    if value == norm:
        return 1.0
    return value / norm if math.isfinite(value) and norm else None


def status(claim: str, ratio: float | None) -> str:
    """Is the value within 1 % of its own claim?"""
    if ratio is None or (claim != "neither" and ratio < 1 - OFF) or (claim == "estimate" and ratio > 1 + OFF):
        return "wrong"
    return "right"


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """Its value at a fixed seed, and the best of three runs; one run where that takes long."""
    best, value = math.inf, math.nan
    for _ in range(3):
        torch.manual_seed(0)
        start = time.perf_counter()
        value = run()
        best = min(best, time.perf_counter() - start)
        if best > LONG_RUN:
            break
    return value, best


def summary(methods: list[Method], layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The main table: one row a method, over the layers it answers."""
    rows = []
    for method in methods:
        pairs = [(layer["methods"][method.name], layer["methods"]["tracked"]) for layer in layers]
        answered = [(entry, ours) for entry, ours in pairs if entry["seconds"] is not None]
        defined = [entry for entry, _ in answered if entry["ratio"] is not None]
        ratios = [entry["ratio"] for entry in defined]
        row: dict[str, Any] = {"method": method.name, "package": method.package, "claim": method.claim}
        row |= {"answered": len(answered), "right": sum(entry["status"] == "right" for entry, _ in answered)}
        row |= {"undefined": len(answered) - len(defined), "worst": farthest(ratios)}
        row["median"] = statistics.median(ratios)
        row["worst_any_size"] = farthest([entry["ratio_any_size"] for entry in defined])
        row["below"] = sum(r < 1 - ROUNDING for r in ratios) if method.claim == "bound" else None
        row["total_time"] = sum(e["seconds"] for e, _ in answered) / sum(o["seconds"] for _, o in answered)
        row["median_time"] = statistics.median(e["seconds"] / o["seconds"] for e, o in answered)
        rows.append(row)
    return rows


def farthest(ratios: list[float]) -> float:
    """The one farthest from 1, as a factor."""
    return max(ratios, key=lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf)


# ----------------------------------------------------------------------------------------------------- tables

SHOWN = {
    "tracked": "tracked",
    "certified": "certified",
    "SpectralConv2d's bound": "torchlip bound",
    "evaluate_lip_const": "torchlip Jacobian",
    "get_conv_sv": "orthogonium `get_conv_sv`",
    "conv_singular_values_numpy": "orthogonium FFT",
    "InducedNormConv2d, 200 steps": "normflows, 200 steps",
}


def main_table(report: dict[str, Any]) -> list[str]:
    """Markdown: a row per method."""
    headings = "answers | right | worst | median | worst, size-free | bounds below | time | time, median layer"
    lines = [f"| package | method | claim | {headings} |", "|---|---|---|" + "--:|" * 8]
    for row in report["summary"]:
        worst = number(row["worst"]) + (f" and {row['undefined']} NaN" if row["undefined"] else "")
        below = "" if row["below"] is None else f"{row['below']}"
        ratios = f"{worst} | {number(row['median'])} | {number(row['worst_any_size'])}"
        times = f"{row['total_time']:.2g} | {row['median_time']:.2g}"
        figures = f"{row['answered']} | {row['right']} | {ratios} | {below} | {times}"
        lines.append(f"| {row['package']} | {row['method']} | {row['claim']} | {figures} |")
    return lines


def claim_table(report: dict[str, Any]) -> list[str]:
    """Markdown: what each method claims."""
    says = {method.name: method.says for method in sum(PEERS.values(), OURS)}
    rows = [f"| {row['method']} | {says[row['method']]} |" for row in report["summary"]]
    return ["| method | what it says it computes |", "|---|---|", *rows]


def number(ratio: float) -> str:
    """Three decimals while that reads well."""
    return f"{ratio:.3f}" if 1e-3 <= ratio < 1e3 else f"{ratio:.1e}"


def layer_table(report: dict[str, Any]) -> list[str]:
    """Markdown: a row per layer, a column per method shown."""
    names = [name for name in SHOWN if name in report["layers"][0]["methods"]]
    lines = ["| layer | norm | " + " | ".join(SHOWN[name] for name in names) + " |"]
    lines.append("|---|--:|" + "--:|" * len(names))
    for layer in report["layers"]:
        cells = " | ".join(cell(layer["methods"][name]) for name in names)
        lines.append(f"| {layer['layer']} | {layer['norm']:.4f} | {cells} |")
    return lines


def cell(entry: dict[str, Any]) -> str:
    """A ratio, in bold where it is wrong."""
    if entry["status"] in {"refuses", "not run"}:
        return entry["status"]
    text = str(entry["value"]) if entry["ratio"] is None else number(entry["ratio"])
    return f"**{text}**" if entry["status"] == "wrong" else text


def document(report: dict[str, Any], path: Path) -> None:
    """Put the tables between their markers."""
    text = path.read_text(encoding="utf-8")
    for name, table in (("main", main_table), ("claims", claim_table), ("layers", layer_table)):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        block = "\n".join([begin, "", *table(report), "", end])
        text = re.sub(f"{begin}.*{end}", lambda _, block=block: block, text, flags=re.DOTALL)
    save(path, text)


def save(path: Path, text: str) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# ------------------------------------------------------------------------------------------------------- main


def installed(console: Console) -> tuple[list[Method], dict[str, str]]:
    """Our methods and those of the peers that are there, with the peers' versions."""
    methods, versions = list(OURS), {"numpy": np.__version__}
    for package, found in PEERS.items():
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            console.print(f"{package} is missing and left out; cure: pip install -c constraints.txt {package}")
            continue
        methods += found
    return methods, versions


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).parents[1]
    parser.add_argument("--out", type=Path, default=root / "benchmarks" / "results" / "peers.json")
    parser.add_argument("--docs", default=str(root / "docs" / "peers.md"))
    args = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("numpy would use every core; expected OMP_NUM_THREADS=1 in the environment")
    torch.set_num_threads(1)
    console = Console(width=130)
    methods, versions = installed(console)
    layers = []
    for index, (name, _) in enumerate(track(LAYERS, "layers", console=console)):
        found = {method.name: measure(method, index) for method in methods}
        layers.append({"layer": name, "norm": true_norm(index, ANY), "methods": found})
    report = {"machine": machine(), "versions": versions, "summary": summary(methods, layers), "layers": layers}
    save(args.out, json.dumps(report, indent=2) + "\n")
    for lines in (main_table(report), layer_table(report)):
        console.print("\n".join(lines), soft_wrap=True)
    if args.docs:
        document(report, Path(args.docs))
    console.print(f"saved {args.out}")


if __name__ == "__main__":
    main()
