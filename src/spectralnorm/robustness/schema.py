"""The JSON of an evaluation, "spectralnorm.evaluation/1" (docs/evaluate.md): written, read and validated."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .checks import NORMS
from .record import Condition, Probe, Record, Setup

SCHEMA = "spectralnorm.evaluation/1"
HEX = re.compile(r"[0-9a-f]{32}")
T = TypeVar("T")


def read(path: str | Path) -> Any:
    """Read a file of JSON.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of the length of a number
        raise ValueError(
            f"{path}: got no JSON ({error}), expected an evaluation; delete it to start again"
        ) from error


def setup_to_dict(setup: Setup) -> dict[str, Any]:
    """Return a setup, ready for JSON."""
    return {
        "model": setup.model,
        "conditions": [vars(at) for at in setup.conditions],
        "kinds": setup.kinds,
        "controls": [{"name": name, "severity": severity} for name, severity in setup.controls],
        "bounds": list(setup.bounds),
        "seed": setup.seed,
        "probes": setup.probes,
        "versions": setup.versions,
    }


def to_dict(record: Record) -> dict[str, Any]:
    """Return a batch, ready for JSON."""
    probes = [{**vars(probe), "counts": list(probe.counts)} for probe in record.probes]
    lists = {name: list(getattr(record, name)) for name in ("held", "broken_by", "seconds", "controls")}
    return {"index": record.index, "data": record.data, "right": record.right, **lists, "probes": probes}


def setup_of(content: Any, where: str) -> Setup:
    """Make the setup of what `to_dict` of an evaluation gave.

    Args:
        content: Anything.
        where: What to call it in errors.

    Returns:
        The setup.

    Raises:
        ValueError: If it is no evaluation.
    """
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        got = content.get("schema") if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f'{where}: got {got!r}, expected an evaluation, "schema": "{SCHEMA}"; give another file')
    return _valid(_setup, content.get("setup"), where, "setup")


def records_of(content: Any, where: str) -> tuple[tuple[Record, ...], int | None, str]:
    """Make the batches, their total number and the fingerprint of all of what `to_dict` of an evaluation gave.

    Args:
        content: Of this schema.
        where: What to call it in errors.

    Returns:
        The batches in order, how many the data has, and its fingerprint, "" where there is none.

    Raises:
        ValueError: If they are not as expected.
    """
    setup = setup_of(content, where)
    return _valid(lambda batches: _records(batches, setup), content.get("batches"), where, "batches")


def _valid(make: Callable[[Any], T], content: Any, where: str, name: str) -> T:
    try:
        return make(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(
            f'{where}: its "{name}" is damaged ({type(error).__name__}: {error}), expected {SCHEMA}; delete it to '
            "start again"
        ) from error


def _setup(content: Any) -> Setup:
    conditions = tuple(
        Condition(str(at["attack"]), str(at["norm"]), _number(at["eps"])) for at in content["conditions"]
    )
    kinds = {str(name): str(kind) for name, kind in content["kinds"].items()}
    _require(all(at.norm in NORMS and at.attack in kinds and at.eps >= 0 for at in conditions), "conditions")
    low, high = map(_number, content["bounds"])
    _require(low < high, "bounds")
    return Setup(
        model=_text(content["model"]),
        conditions=conditions,
        kinds=kinds,
        controls=tuple((str(each["name"]), _count(each["severity"])) for each in content["controls"]),
        bounds=(low, high),
        seed=_count(content["seed"]),
        probes=_count(content["probes"]),
        versions={str(name): str(each) for name, each in content["versions"].items()},
    )


def _records(content: Any, setup: Setup) -> tuple[tuple[Record, ...], int | None, str]:
    records = tuple(_record(each, setup) for each in content["done"])
    indices = [record.index for record in records]
    probed = [record.index == 0 and setup.probes > 0 and "1" in record.right for record in records]
    total = None if content["total"] is None else _count(content["total"])
    _require(indices == sorted(set(indices)), "order of the batches")
    _require(probed == [bool(record.probes) for record in records], "probes")
    _require(total is None or all(index < total for index in indices), "number of batches")
    return records, total, _text(content["data"]) if content.get("data", "") != "" else ""


def _record(content: Any, setup: Setup) -> Record:
    right, held = str(content["right"]), tuple(map(str, content["held"]))
    controls = tuple(map(str, content["controls"]))
    broken = tuple({str(part): _count(n) for part, n in each.items()} for each in content["broken_by"])
    seconds = tuple(map(_number, content["seconds"]))
    _require(len(held) == len(broken) == len(seconds) == len(setup.conditions), "number of conditions")
    _require(len(controls) == len(setup.controls), "number of controls")
    marks = (right, *held, *controls)
    _require(
        all(len(each) == len(right) and not set(each) - {"0", "1"} for each in marks), "marks of the examples"
    )
    _require(all(int(f"0{each}", 2) & ~int(f"0{right}", 2) == 0 for each in held), "marks: held though wrong")
    probes = tuple(
        Probe(
            str(each["kind"]),
            str(each["attack"]),
            str(each["norm"]),
            _count(each["examples"]),
            tuple(map(_count, each["counts"])),
        )
        for each in content["probes"]
    )
    _require(all(_plausible(probe, setup) for probe in probes), "probes")
    return Record(_count(content["index"]), _text(content["data"]), right, held, broken, seconds, controls, probes)


def _plausible(probe: Probe, setup: Setup) -> bool:
    """Whether a probe is of one of the attacks, with the counts of its kind: of examples, or of classes."""
    if probe.examples > setup.probes:
        return False
    if probe.kind == "gradients":
        return len(probe.counts) == 1 and probe.counts[0] <= probe.examples and not probe.attack + probe.norm
    if probe.kind not in ("unbounded", "steps") or len(probe.counts) != 2:
        return False
    if (probe.attack, probe.norm) not in {(at.attack, at.norm) for at in setup.conditions}:
        return False
    first, second = probe.counts
    if probe.kind == "unbounded":
        return first <= probe.examples and second >= 2
    return first + second <= probe.examples


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"wrong {what}")


def _count(value: Any) -> int:
    _require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, f"number {value!r}")
    return int(value)


def _number(value: Any) -> float:
    _require(isinstance(value, (int, float)) and math.isfinite(value), f"number {value!r}")
    return float(value)


def _text(value: Any) -> str:
    _require(isinstance(value, str) and bool(HEX.fullmatch(value)), f"fingerprint {value!r}")
    return str(value)
