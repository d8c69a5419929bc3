"""`spectralnorm certify`: what it loads, prints, writes and refuses, and certified accuracy in runs of `train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import spectralnorm as sn
from messages import check_says
from spectralnorm.commands import certify as command
from spectralnorm.training.data import load
from spectralnorm.training.models import build
from test_cli import run

TRAIN = ("--epochs", "12", "--images", "512", "--batch-size", "64", "--device", "cpu", "--seed", "3")
TRAIN += ("--arch", "lenet", "--activation", "maxmin", "--pool", "max", "--init", "orthogonal")
TRAIN += (
    "--loss",
    "hinge",
    "--margin",
    "0.3",
    "--optimizer",
    "adam",
    "--lr",
    "0.005",
    "--certify-eps",
    "0.05,0.1",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    done = run("train", *TRAIN, "--out", out)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    check_says(said, "Certified accuracy, proven, under every change of an L2 size", "at 0.05", "at 0.1")
    return out


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_run_certifies_its_network(trained: Path) -> None:
    result = content(trained / "result.json")
    found = result["certification"]
    assert [size["eps"] for size in found["sizes"]] == [0.05, 0.1]
    assert found["images"] == result["test_images"]
    assert found["clean_accuracy"] == pytest.approx(result["proven_accuracy"], abs=2 / 400)
    shares = [found["clean_accuracy"], *(size["certified_accuracy"] for size in found["sizes"])]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6
    assert shares[1] > 0.3
    last = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])
    assert last["certified_unproven"]["0.05"] == pytest.approx(shares[1], abs=0.05)
    assert found["lipschitz"] <= last["lipschitz_held"] * (1 + 1e-6)


def test_the_folder_of_a_run_is_certified_as_it_was_trained(trained: Path, tmp_path: Path) -> None:
    """With its activation, its pool and its split of the data, which the weights do not tell."""
    json_file = tmp_path / "certified.json"
    done = run("certify", trained, "--eps", "0.05,0.1", "--linf-eps", "1/255", "--json", json_file)
    assert done.exit_code == 0, done.output
    check_says(
        done.stdout, "none (clean accuracy)", "L2 0.05", "L∞ 0.00392157", "Lipschitz bound", "400 test images"
    )
    found, result = sn.Certification.load(json_file), content(trained / "result.json")
    assert found.lipschitz == result["certification"]["lipschitz"]
    for mine, size in zip(found.results, result["certification"]["sizes"], strict=False):
        assert (mine.eps, mine.certified_accuracy) == (size["eps"], size["certified_accuracy"])
    net = build("lenet", (1, 8, 8), 10, activation="maxmin", pool="max")
    net.load_state_dict(torch.load(trained / "model.pt", weights_only=True)["state_dict"])
    data = load("digits", seed=3)
    assert found.radii == tuple(sn.certified_radius(net, data.test_x, data.test_y).tolist())
    by_file = run("certify", trained / "model.pt", "--images", "40", "--eps", "0.05")
    assert by_file.exit_code == 0, by_file.output
    check_says(by_file.stdout, "40 test images")


def test_what_is_done_is_not_done_again(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("certify", trained, "--images", "20", "--json", tmp_path / "certified.json")
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    before = (tmp_path / "certified.json").read_bytes()

    def proves(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(command, "certify", proves)
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    check_says(" ".join(again.stdout.split()), "done before", first.stdout.split()[-1])
    assert (tmp_path / "certified.json").read_bytes() == before
    check_says(complaint(*arguments, "--eps", "0.3"), "other inputs (eps)", "another --json")
    check_says(complaint(*arguments, "--images", "10"), "other inputs (images)")


def test_a_module_of_ones_own_and_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "certify_zoo.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def normed():\n    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = run("certify", "certify_zoo:net", "--eps", "none", "--linf-eps", "0.001")
    assert own.exit_code == 0, own.output
    assert "L2" not in own.stdout.split("test images")[0]
    check_says(complaint("certify", "certify_zoo:normed"), "LayerNorm")
    torch.save(build("small-cnn", (1, 8, 8), 10, width=4).state_dict(), "narrow.pt")
    check_says(complaint("certify", "narrow.pt"), "--arch: got none", "small-cnn")
    check_says(complaint("certify", "narrow.pt", "--arch", "small-cnn"), "does not fit")


def complaint(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--eps", "wide"), ("--eps: got 'wide'", "0.1")),
        (("--eps", "-1"), ("eps: got -1.0", "at least 0")),
        (("--eps", "none"), ("--eps", "no size")),
        (("--data", "mnist"), ("data: got 'mnist'", "digits")),
        (("--json", "/dev/null/found.json"), ("/dev/null",)),
        (("--arch", "resnet20"), ("does not fit --arch resnet20",)),
    ],
)
def test_wrong_flags(trained: Path, flags: tuple[str, ...], parts: tuple[str, ...]) -> None:
    check_says(complaint("certify", trained, *flags), *parts)


def test_folders_that_are_no_finished_run(trained: Path, tmp_path: Path) -> None:
    check_says(complaint("certify", tmp_path), "without model.pt", "--resume")
    check_says(complaint("certify", tmp_path / "none"), "no such file")
    (tmp_path / "model.pt").write_bytes((trained / "model.pt").read_bytes())
    (tmp_path / "settings.json").write_text("{")
    check_says(complaint("certify", tmp_path), "settings.json: cannot read it")


def test_an_audit_takes_the_folder_of_a_run(trained: Path) -> None:
    done = run("audit", trained, "--input-shape", "1,8,8")
    assert done.exit_code == 0, done.output
    assert "fc3" in done.stdout


def test_runs_without_a_bound_say_why(tmp_path: Path) -> None:
    (quick := ["--epochs", "1", "--images", "64", "--batch-size", "64", "--device", "cpu", "--arch", "lenet"])
    done = run("train", *quick, "--no-prove", "--out", tmp_path / "unproven")
    assert done.exit_code == 0, done.output
    result = content(tmp_path / "unproven" / "result.json")
    assert result["certification"] is None
    check_says(result["certification_reason"], "--no-prove")
    done = run("train", *quick, "--normalize", "none", "--certify-eps", "none", "--out", tmp_path / "none")
    assert done.exit_code == 0, done.output
    assert content(tmp_path / "none" / "result.json")["certification"] is None
    done = run("train", *quick, "--normalize", "none", "--out", tmp_path / "plain")
    assert done.exit_code == 0, done.output
    log = json.loads((tmp_path / "plain" / "log.jsonl").read_text().splitlines()[-1])
    assert log["certified_unproven"] is None
    check_says(log["reason"], "normalize is 'none'")
    assert content(tmp_path / "plain" / "result.json")["certification"]["sizes"][-1]["certified_accuracy"] == 0


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--loss", "lmt", "--normalize", "none"), ("'lmt'", "normalize is 'none'")),
        (("--certify-eps", "-1"), ("certify_eps", "above 0")),
        (("--certify-eps", "some"), ("--certify-eps", "'some'")),
        (("--arch", "resnet20", "--activation", "maxmin"), ("resnet20", "activation='maxmin'")),
    ],
)
def test_wrong_flags_of_train(tmp_path: Path, flags: tuple[str, ...], parts: tuple[str, ...]) -> None:
    done = run("train", "--out", tmp_path, "--images", "64", *flags)
    assert done.exit_code == 2, done.output
    check_says(done.stderr.splitlines()[-1], *parts)


def test_a_run_is_attacked_as_it_was_trained(trained: Path) -> None:
    """By `evaluate`, which builds the same network, its activation and pool included."""
    done = run("evaluate", trained, "--images", "100", "--l2", "0.05", "--json", trained / "attacked.json")
    assert done.exit_code == 0, done.output
    attacked = sn.Evaluation.load(trained / "attacked.json")
    data = load("digits", seed=3)
    net = build("lenet", (1, 8, 8), 10, activation="maxmin", pool="max")
    net.load_state_dict(torch.load(trained / "model.pt", weights_only=True)["state_dict"])
    proven = sn.certify(net, (data.test_x[:100], data.test_y[:100]), {"l2": [0.05]})
    assert attacked.clean_accuracy == proven.clean_accuracy
    assert attacked.worst_case[0].robust_accuracy >= proven.results[0].certified_accuracy


def test_a_checkpoint_of_a_run_is_its_network_as_far_as_it_is_trained(trained: Path) -> None:
    for arguments in (
        ("audit", trained / "checkpoint.pt", "--input-shape", "1,8,8"),
        ("certify", trained / "checkpoint.pt"),
    ):
        done = run(*arguments)
        assert done.exit_code == 0, done.output
