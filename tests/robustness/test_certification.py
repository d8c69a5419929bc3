"""The JSON of a certification: there and back, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import spectralnorm as sn
from messages import check_says, complaint


def certification() -> sn.Certification:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 3))
    x = torch.rand(20, 3)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    return sn.certify(net, (x, y), {"l2": [0.0, 0.05], "linf": [0.01]})


def test_there_and_back(tmp_path: Path) -> None:
    found = certification()
    found.save(tmp_path / "found.json")
    assert sn.Certification.load(tmp_path / "found.json") == found
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["schema"] == "spectralnorm.certification/1"
    assert content["radii"][0] == 0


def test_radii_without_end(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(net.weight)
    net.bias.data = torch.tensor([1.0, 0.0])
    found = sn.certify(net, (torch.rand(2, 2), torch.tensor([0, 1])), {"l2": [9.0]})
    found.save(tmp_path / "found.json")
    assert sn.Certification.load(tmp_path / "found.json").radii == (math.inf, 0.0)


def damaged(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = certification().to_dict()
    change(content)
    return content


def grows(content: dict[str, Any]) -> None:
    """Certified accuracy that is larger at a larger size."""
    content["results"].append({**content["results"][2], "eps": 0.02})
    content["results"][2]["certified_accuracy"] = 0.0


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.pop("schema"), ("got None", "spectralnorm.certification/1")),
        (lambda c: c.update(schema="spectralnorm.evaluation/1"), ("spectralnorm.evaluation/1",)),
        (lambda c: c.pop("radii"), ("damaged", "radii")),
        (lambda c: c["radii"].pop(), ("20 examples and 19 radii",)),
        (lambda c: c["radii"].__setitem__(3, -1.0), ("damaged", "-1.0")),
        (lambda c: c["radii"].__setitem__(3, "far"), ("damaged", "'far'")),
        (lambda c: c.update(clean_accuracy=1.5), ("damaged", "1.5")),
        (lambda c: c["results"][1].update(certified_accuracy=0.0123), ("l2 0.05", "not that of the radii")),
        (lambda c: c["results"][2].update(certified_accuracy=1.0), ("linf 0.01",)),
        (lambda c: c["results"][2].update(norm="l7"), ("l7",)),
        (lambda c: c.update(lipschitz=True), ("damaged", "True")),
        (lambda c: c.update(inputs=3), ("damaged",)),
        (lambda c: c.update(inputs={"eps": {"l2": [0.0, 0.05]}}), ("damaged", "other sizes")),
        (lambda c: c.update(inputs={"eps": 3}), ("damaged",)),
        (lambda c: c.update(clean_accuracy=0.5), ("damaged", "clean_accuracy 0.5")),
        (lambda c: c.update(clean_accuracy=0.999), ("damaged", "clean_accuracy 0.999")),
        (lambda c: c["results"][2].update(certified_accuracy=0.0123), ("linf 0.01",)),
        (lambda c: c["results"][2].update(through="l2"), ("linf 0.01",)),
        (grows, ("linf 0.02",)),
        (lambda c: c["results"].append(c["results"][0]), ("two results",)),
        (lambda c: c.update(examples=True, radii=c["radii"][:1]), ("True examples",)),
        (lambda c: c["radii"].__setitem__(3, 10**400), ("damaged",)),
    ],
)
def test_damaged_files(tmp_path: Path, change: Callable[[dict[str, Any]], Any], parts: tuple[str, ...]) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps(damaged(change)))
    check_says(complaint(ValueError, lambda: sn.Certification.load(path)), str(path), *parts)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    for text in ("", "[1, 2]", "{", "3"):
        path.write_text(text)
        check_says(complaint(ValueError, lambda: sn.Certification.load(path)), "expected a certification")
    with pytest.raises(FileNotFoundError):
        sn.Certification.load(tmp_path / "none.json")


def test_batches_are_reported() -> None:
    net, x, y = torch.nn.Linear(3, 3), torch.rand(5, 3), torch.arange(5) % 3
    calls: list[tuple[int, int | None]] = []
    sn.certify(net, (x, y), {"l2": [0.1]}, batch_size=2, on_batch=lambda *call: calls.append(call))
    sn.certify(net, iter([(x, y)]), {"l2": [0.1]}, on_batch=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3), (1, None)]
