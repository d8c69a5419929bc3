"""`spectralnorm evaluate`: what it takes, prints, writes, skips and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from messages import check_says
from spectralnorm.commands import evaluate as command
from spectralnorm.robustness.evaluation import Evaluation
from spectralnorm.training.models import build
from test_cli import complaint, run

FEW = ("--images", "24", "--batch-size", "8", "--probes", "8", "--device", "cpu")
PGD = ("--attacks", "fgsm,pgd", "--linf", "0.1,51/255", "--l2", "0.5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `spectralnorm train`."""
    out = tmp_path_factory.mktemp("trained") / "run"
    flags = ("--epochs", "3", "--optimizer", "adam", "--lr", "0.005", "--batch-size", "64", "--target", "2")
    done = run("train", *flags, "--batch-norm", "--no-prove", "--device", "cpu", "--out", out)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "evaluate_me.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def huge():\n    model = net()\n    nn.init.constant_(model[1].weight, float('nan'))\n    return model\n"
        "class Pair(nn.Module):\n    def forward(self, x): return x, x\n"
        "def colour(): return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())\n"
        "class Flags(nn.Module):\n    def forward(self, x): return x.flatten(1)[:, :10] > 0\n"
        "class Late(nn.Module):\n    def forward(self, x):\n"
        "        if torch.is_grad_enabled(): raise RuntimeError('no')\n        return x.flatten(1)[:, :10]\n"
        "def double(): return net().double()\n"
        "def half(): return net().bfloat16()\n"
        "def few(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "evaluate_me"
    sys.modules.pop("evaluate_me", None)


def test_a_run_is_evaluated_written_and_not_done_twice(trained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "new" / "found.json"
    first = run("evaluate", trained, *FEW, *PGD, "--controls", "noise:5,blur:1", "--json", path)
    assert first.exit_code == 0, first.output
    for part in ("clean", "worst case", "0.2", "95 % interval", "severity 5", "24 examples"):
        assert part in first.stdout
    content = json.loads(path.read_text())
    assert content["complete"]
    assert content["examples"] == 24
    assert content["clean_accuracy"] > 0.5
    assert len(content["results"]) == 6
    assert [entry["eps"] for entry in content["worst_case"]] == [0.1, 0.2, 0.5]
    monkeypatch.setattr("spectralnorm.robustness.running.Run.record", None)  # what is done is not done again
    again = run("evaluate", trained, *FEW, *PGD, "--controls", "noise:5,blur:1", "--json", path)
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith(first.stdout)
    assert "this was done before" in " ".join(again.stdout.removeprefix(first.stdout).split())
    said = complaint("evaluate", trained, *FEW, *PGD, "--seed", "1", "--json", path)
    check_says(said, str(path), "seed", "give another file")


def test_the_same_network_however_it_is_named(trained: Path) -> None:
    """By its folder, its file, its checkpoint (weights not baked in yet), or as any state_dict."""
    flags = (*FEW, "--attacks", "fgsm", "--linf", "0.05")
    named = [(trained,), (trained / "model.pt",), (trained / "model.pt", "--arch", "small-cnn")]
    whole = [run("evaluate", *each, *flags) for each in named]
    assert all(each.exit_code == 0 for each in whole), [each.output for each in whole]
    assert len({table(each.stdout) for each in whole}) == 1
    checkpoint = run("evaluate", trained / "checkpoint.pt", *flags)
    assert checkpoint.exit_code == 0, checkpoint.output
    assert table(checkpoint.stdout)[0] == table(whole[0].stdout)[0]  # clean


def table(printed: str) -> tuple[str, ...]:
    """The lines with results, without their last column, seconds."""
    lines = [line for line in printed.splitlines() if " to " in line and "%" not in line]
    return tuple(" ".join(line.split()[:8] if "clean" not in line else line.split()) for line in lines)


def test_import_strings_take_digits_by_default(importable: str) -> None:
    done = run("evaluate", f"{importable}:net", *FEW)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("pgd") >= 6


def test_alarms_are_printed(importable: str) -> None:
    Path("evaluate_me.py").write_text(
        Path("evaluate_me.py").read_text() + "class Round(nn.Module):\n"
        "    def forward(self, x): return (x.round() - x).detach() * 1e6 + 1e6 * x.detach() + 0 * x\n"
        "def masked(): return nn.Sequential(Round(), *net())\n"
    )
    flags = ("--images", "200", "--device", "cpu", "--attacks", "pgd-ce", "--l2", "0.5")
    done = run("evaluate", f"{importable}:masked", *flags)
    assert done.exit_code == 0, done.output
    assert "ALARM: the gradient of the cross-entropy vanishes" in done.stdout


def test_bad_input_is_one_line(trained: Path, importable: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "bad.json").write_text("{")
    state = tmp_path / "state.pt"
    torch.save(build("small-cnn", (1, 8, 8), 10).state_dict(), state)
    cases: list[tuple[tuple[Any, ...], tuple[str, ...]]] = [
        ((empty,), (str(empty), "model.pt")),
        ((tmp_path / "none.pt",), ("none.pt", "no such file")),
        ((state,), ("--arch", "none")),
        ((trained, "--attacks", "pgd,jsma"), ("'jsma'", "autoattack")),
        ((trained, "--attacks", "pgd,pgd"), ("pgd more than once",)),
        ((trained, "--attacks", "cw", "--linf", "0.1"), ("cw", "l2")),
        ((trained, "--linf", "a"), ("--linf", "'a'", "8/255")),
        ((trained, "--l2", "1/0"), ("--l2", "'1/0'")),
        ((trained, "--l2", "-1"), ("eps", "-1")),
        ((trained, "--l2", "1,1"), ("1.0 more than once",)),
        ((trained, "--controls", "fog"), ("'fog'", "noise")),
        ((trained, "--controls", "noise:x"), ("'noise:x'",)),
        ((trained, "--data", "mnist"), ("'mnist'", "fashion-mnist")),
        ((trained, "--device", "tpu"), ("'tpu'",)),
        ((trained, "--json", tmp_path / "bad.json"), ("bad.json", "no JSON")),
        ((trained, "--json", "/dev/null/a.json"), ("/dev/null",)),
        ((f"{importable}:few",), ("y: got", "3 logits")),
        ((f"{importable}:missing",), ("missing",)),
        ((f"{importable}:Pair",), ("model: got a tuple", "wrap it")),
        ((f"{importable}:Flags",), ("model: got torch.bool", "wrap it")),
        ((f"{importable}:colour",), ("does not run on images of shape (1, 8, 8)", "--data")),
        ((trained, "--linf", "1e400"), ("--linf", "1e400")),
    ]
    for flags, parts in cases:
        check_says(complaint("evaluate", *FEW, *flags), *parts)


def test_a_network_that_fails_later_ends_with_code_1(importable: str) -> None:
    ended = run("evaluate", f"{importable}:Late", *FEW, "--attacks", "fgsm", "--l2", "1")
    assert ended.exit_code == 1
    check_says(ended.stderr, "the network does not run: RuntimeError: no")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["double", "half"])
def test_networks_of_other_precision(importable: str, name: str) -> None:
    """Of the same accuracy, that near the boundary apart, and images rounded to bf16 stay in the ball."""
    found = [
        run("evaluate", f"{importable}:{each}", *FEW, "--attacks", "pgd", "--linf", "0.1")
        for each in ("net", name)
    ]
    assert [each.exit_code for each in found] == [0, 0], found[1].output
    assert "pgd" in found[1].stdout


def test_damaged_settings_of_a_run(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes((trained / "model.pt").read_bytes())
    (tmp_path / "settings.json").write_text("{")
    check_says(complaint("evaluate", tmp_path, *FEW), "settings.json", "repair it")


def test_logits_that_are_not_finite_end_with_code_1(importable: str, tmp_path: Path) -> None:
    ended = run("evaluate", f"{importable}:huge", *FEW, "--json", tmp_path / "a.json")
    assert ended.exit_code == 1
    check_says(ended.stderr, "logits that are not finite", "the same command goes on")


def test_an_interrupted_evaluation_says_how_to_go_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flags = tmp_path / "found.json", (trained, *FEW, "--attacks", "pgd", "--l2", "0.5")

    def interrupt(watch: Any, done: int, _: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(command._Watch, "batch", interrupt)
        stopped = run("evaluate", *flags, "--json", path)
    assert stopped.exit_code == 130
    check_says(stopped.stderr, "was stopped", "the same command goes on")
    assert len(Evaluation.load(path).records) == 2
    assert run("evaluate", *flags, "--json", path).exit_code == 0
    assert run("evaluate", *flags, "--json", tmp_path / "whole.json").exit_code == 0
    assert Evaluation.load(path) == Evaluation.load(tmp_path / "whole.json")


def test_two_processes_give_what_one_gives(trained: Path, tmp_path: Path) -> None:
    flags = (str(trained), *FEW, "--attacks", "pgd", "--l2", "0.5")
    assert run("evaluate", *flags, "--json", tmp_path / "one.json").exit_code == 0
    command_line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command_line += ["-m", "spectralnorm", "evaluate", *flags, "--json", str(tmp_path / "two.json")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command_line, capture_output=True, text=True, env=variables, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("95 % interval") == 1
    assert Evaluation.load(tmp_path / "two.json") == Evaluation.load(tmp_path / "one.json")
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == ["one.json", "two.json"]
