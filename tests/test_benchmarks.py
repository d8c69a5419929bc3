"""What the benchmarks measured can be read, and the documentation shows just that."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PEERS = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text(encoding="utf-8"))
DOCS = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")


def table(name: str) -> list[list[str]]:
    """The cells of a table between its markers, without its two heading lines."""
    block = re.search(f"<!-- {name}: begin -->(.*)<!-- {name}: end -->", DOCS, re.DOTALL)
    assert block, f"docs/peers.md lacks the table {name!r}"
    lines = block[1].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(ratio: float) -> str:
    return f"{ratio:.3f}" if 1e-3 <= ratio < 1e3 else f"{ratio:.1e}"


def farthest(ratios: list[float]) -> float:
    return max(ratios, key=lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf)


def expected_row(summary: dict[str, Any]) -> list[str]:
    """A row of the main table, from the figures of the single layers."""
    methods = [layer["methods"] for layer in PEERS["layers"]]
    pairs = [(found[summary["method"]], found["tracked"]) for found in methods]
    pairs = [(entry, ours) for entry, ours in pairs if entry["seconds"] is not None]
    entries = [entry for entry, _ in pairs]
    defined = [entry for entry in entries if entry["ratio"] is not None]
    ratios = [entry["ratio"] for entry in defined]
    missing = len(entries) - len(defined)
    return [
        *(summary["package"], summary["method"], summary["claim"]),
        *(str(len(entries)), str(sum(entry["status"] == "right" for entry in entries))),
        number(farthest(ratios)) + (f" and {missing} NaN" if missing else ""),
        number(statistics.median(ratios)),
        number(farthest([entry["ratio_any_size"] for entry in defined])),
        str(sum(ratio < 1 - 1e-5 for ratio in ratios)) if summary["claim"] == "bound" else "",
        f"{sum(entry['seconds'] for entry in entries) / sum(ours['seconds'] for _, ours in pairs):.2g}",
        f"{statistics.median(entry['seconds'] / ours['seconds'] for entry, ours in pairs):.2g}",
    ]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_describe_their_machine(path: Path) -> None:
    machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
    assert {"cpu", "threads", "python", "torch", "spectralnorm"} <= machine.keys()


def test_the_main_table_shows_the_results() -> None:
    assert table("main") == [expected_row(summary) for summary in PEERS["summary"]]


def test_the_layer_table_shows_the_norms() -> None:
    shown = [row[:2] for row in table("layers")]
    assert shown == [[layer["layer"], f"{layer['norm']:.4f}"] for layer in PEERS["layers"]]
    assert len(shown) == 30


def test_every_method_of_the_results_has_its_claim_written_out() -> None:
    assert [row[0] for row in table("claims")] == [summary["method"] for summary in PEERS["summary"]]


def test_our_bounds_hold_and_our_estimates_meet_their_tolerance() -> None:
    for layer in PEERS["layers"]:
        assert 1 - 1e-3 <= layer["methods"]["tracked"]["ratio"] <= 1 + 1e-6
        assert 1 <= layer["methods"]["certified"]["ratio"] <= 1 + 1e-2 + 1e-6
        for name in ("gram", "separated", "flattened_bound"):
            assert layer["methods"][name]["ratio"] >= 1


README = (ROOT / "README.md").read_text(encoding="utf-8")


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def share(ratio: float) -> str:
    """A ratio as the README writes it: 1/6.0, 1/15."""
    return f"1/{1 / ratio:.0f}" if ratio < 0.1 else f"1/{1 / ratio:.1f}"


def test_the_readme_shows_what_the_estimators_benchmark_measured() -> None:
    found = results("estimators")["ratios"]
    assert f"in float64) | {found['worst_tracked_error']:.1e} |" in README
    assert f"of its own limit | {share(found['tracked_over_power'])} |" in README
    assert f"256 channels) | {share(found['tracked_over_exact'])} |" in README
    reads = f"{found['read_over_pytorch_median']:.2f}, {found['read_over_pytorch_mean']:.2f}"
    assert f"(median, mean) | {reads} |" in README


def test_the_readme_shows_what_the_certified_benchmark_measured() -> None:
    found = results("certified")["ratios"]
    rows = {
        "| rtol 1e-2, over `exact` at 32x32 in float64 (float32)": ("1e-2", "exact"),
        "| rtol 1e-3, over the same": ("1e-3", "exact"),
        "| rtol 1e-2, over Gram iteration at 32x32, 6 steps, in float64 (float32)": ("1e-2", "gram"),
    }
    for start, (rtol, method) in rows.items():
        cells = [
            [share(found[f"{n}: {rtol} over {method}_{dtype}"]) for dtype in ("float64", "float32")]
            for n in (256, 512)
        ]
        assert start + "".join(f" | {double} ({single})" for double, single in cells) + " |" in README
    assert f"| {share(found['memory over gram at once'])} ({share(found['memory over gram'])}) |" in README


@pytest.mark.parametrize(("network", "title"), [("resnet18-bn", "ResNet-18"), ("vgg16", "VGG16")])
def test_the_readme_shows_what_the_training_step_benchmark_measured(network: str, title: str) -> None:
    path = ROOT / "benchmarks" / "results" / "training_step.json"
    found = json.loads(path.read_text(encoding="utf-8"))["networks"][network]
    part = found["settings"]["threads 1"]["ratios"]["part"]
    cells = f"{part['ours/pytorch']:.2f} | {part['ours/power']:.2f} | {share(part['ours/exact'])}"
    assert f"| {title}, every layer, one thread | {cells} |" in README
