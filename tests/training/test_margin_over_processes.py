"""Lipschitz-margin training over processes: what one computes, two do; sharded weights are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from messages import check_says
from test_cli import run
from test_cli_train import TOGETHER, torchrun

MARGIN = (
    "--epochs",
    "1",
    "--log-every",
    "5",
    "--loss",
    "lmt",
    "--margin",
    "0.1",
    "--activation",
    "maxmin",
    "--certify-eps",
    "0.05",
)


def records(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    alone = run("train", *TOGETHER, *MARGIN, "--device", "cpu", "--out", tmp_path / "one")
    assert alone.exit_code == 0, alone.output
    together = torchrun(2, tmp_path / "two", *TOGETHER, *MARGIN)
    assert together.returncode == 0, together.stderr
    for mine, other in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        for name in ("train_loss", "loss"):
            assert other.get(name, 0.0) == pytest.approx(mine.get(name, 0.0), rel=1e-3)
        if "certified_unproven" in mine:
            assert other["certified_unproven"]["0.05"] == pytest.approx(
                mine["certified_unproven"]["0.05"], abs=0.02
            )


def test_sharded_weights_have_no_constants(tmp_path: Path) -> None:
    refused = torchrun(2, tmp_path / "lmt", *TOGETHER, *MARGIN, "--parallel", "fsdp")
    assert refused.returncode != 0
    said = next(line for line in refused.stderr.splitlines() if line.startswith("spectralnorm: loss"))
    check_says(said, "'lmt'", "dealt out over processes", "'fsdp'")
    hinge = torchrun(2, tmp_path / "hinge", *TOGETHER, *MARGIN, "--loss", "hinge", "--parallel", "fsdp")
    assert hinge.returncode == 0, hinge.stderr
    last = records(tmp_path / "hinge")[-1]
    assert last["certified_unproven"] is None
    check_says(str(last["reason"]), "dealt out")
