"""Files of evaluations whose numbers cannot be, or contradict each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_files import run

from messages import check_says, complaint
from spectralnorm.robustness.evaluation import Evaluation


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"counts": [3, 0]}, "probes"),
        ({"counts": [999, 10]}, "probes"),
        ({"examples": int("9" * 400)}, "probes"),
        ({"counts": [1, True]}, "batches"),
    ],
)
def test_probes_that_cannot_be(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    run(resume=path)
    content = json.loads(path.read_text())
    probe = next(each for each in content["batches"]["done"][0]["probes"] if each["kind"] == "unbounded")
    probe |= change
    path.write_text(json.dumps(content))
    check_says(complaint(ValueError, lambda: Evaluation.load(path)), str(path), part)


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000])
def test_numbers_too_long_for_a_float(number: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    run(resume=path)
    path.write_text(path.read_text().replace('"eps": 0.', f'"eps": {number}, "was": 0.', 1))
    check_says(complaint(ValueError, lambda: Evaluation.load(path)), str(path))


@pytest.mark.parametrize(
    ("where", "value", "part"),
    [
        ("setup.bounds", [5, -5], "setup"),
        ("setup.bounds", [1, 1], "setup"),
        ("setup.seed", -3, "setup"),
        ("batches.done.0.probes", [], "probes"),
        ("batches.done.0.probes.1.kind", "step", "probes"),
        ("batches.done.0.probes.1.norm", "l7", "probes"),
        ("batches.done.0.probes.1.attack", "zzz", "probes"),
    ],
)
def test_contradictions(where: str, value: Any, part: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    run(resume=path)
    content = json.loads(path.read_text())
    *outer, last = [int(name) if name.isdigit() else name for name in where.split(".")]
    place = content
    for name in outer:
        place = place[name]
    place[last] = value
    path.write_text(json.dumps(content))
    check_says(complaint(ValueError, lambda: Evaluation.load(path)), str(path), part)
