"""`spectralnorm train` where a folder is not as it was left: damaged, in use, without settings; and odd input."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from messages import check_says
from test_cli import run
from test_cli_train import QUICK, complaint_after, folder_with, result_of, torchrun


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept other options than the defaults."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = run("train", *QUICK, "--out", out, "--log-every", "1", "--no-prove", "--certify-eps", "0.5")
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def left(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "left"))


def test_a_flipped_bit_in_a_checkpoint_is_seen(left: Path) -> None:
    raw = bytearray((left / "checkpoint.pt").read_bytes())
    raw[len(raw) // 2] ^= 4
    (left / "checkpoint.pt").write_bytes(raw)
    check_says(complaint_after("train", "--resume", "--out", left), "checkpoint.pt", "checksum", "delete it")


def test_a_resumed_run_keeps_its_options(left: Path) -> None:
    (left / "checkpoint.pt").unlink()
    (left / "log.jsonl").unlink()
    done = run("train", "--resume", "--out", left)
    assert done.exit_code == 0, done.output
    assert "proven_accuracy" not in result_of(left)
    records = [json.loads(line) for line in (left / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert list(records[-1]["certified_unproven"]) == ["0.5"]
    again = run("train", "--resume", "--prove", "--certify-eps", "none", "--out", left)
    assert again.exit_code == 0, again.output
    assert "proven_accuracy" in result_of(left)


def test_settings_are_found_in_the_checkpoint_too(left: Path) -> None:
    (left / "settings.json").unlink()
    assert run("train", "--resume", "--out", left).exit_code == 0
    assert (left / "settings.json").is_file()
    for content in ("{", "[]", '{"optimiser": "sgd"}'):
        (left / "settings.json").write_text(content)
        check_says(complaint_after("train", "--resume", "--out", left), "settings.json")


def test_one_run_at_a_time_writes_to_a_folder(left: Path) -> None:
    with (left / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        check_says(complaint_after("train", "--resume", "--out", left), "another process is writing there")
    assert run("train", "--resume", "--out", left).exit_code == 0


def test_all_processes_say_what_is_wrong(finished: Path) -> None:
    """The second one advised to resume, while the first had refused the folder."""
    refused = torchrun(2, finished, *QUICK)
    assert refused.returncode != 0
    assert "the run was stopped" not in refused.stderr
    assert "holds a run already" in refused.stderr


def test_a_diverged_run_is_not_told_to_go_on(tmp_path: Path) -> None:
    diverged = run("train", *QUICK, "--normalize", "none", "--lr", "1e30", "--warmup", "0", "--out", tmp_path)
    last = diverged.stderr.splitlines()[-1]
    check_says(last, "another --out")
    assert "--resume" not in last


def test_settings_that_nothing_reads_are_named(tmp_path: Path) -> None:
    done = run("train", *QUICK, "--normalize", "none", "--mode", "soft", "--margin", "1", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    check_says(done.stderr, "mode is 'soft'", "normalize 'none'", "margin is 1.0", "loss 'ce'")
    check_says(complaint_after("train", "--budget", "2", "--target", "2", "--out", tmp_path), "beside budget")


class Branching(nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x if x.sum() < 1e9 else 2 * x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_networks_that_cannot_be_trained_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    here, out = "test_cli_train_resume", ("--out", tmp_path / "run", *QUICK)
    check_says(
        complaint_after("train", "--arch", f"{here}:Branching", *out), "cannot trace", "--no-fold-batchnorm"
    )
    assert run("train", "--arch", f"{here}:Branching", "--no-fold-batchnorm", *out).exit_code == 0
    said = complaint_after("train", "--arch", f"{here}:made_in_inference_mode", "--out", tmp_path / "other")
    check_says(said, "inference_mode")


def test_too_few_images_or_classes(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    check_says(complaint_after("train", "--images", "5", *out), "images: got 5", "take more")
    check_says(complaint_after("train", "--arch", "foo", "--data", "none", *out), "'foo'")  # before the data
    from numpy import zeros

    one = folder_with(tmp_path / "one", train_y=zeros(20, int), test_y=zeros(4, int))
    check_says(complaint_after("train", "--data", one, *out), "classes: got 1")


def test_an_audit_takes_a_finished_network_in_eval_mode(tmp_path: Path) -> None:
    done = run("train", *QUICK, "--batch-norm", "--no-prove", "--certify-eps", "none", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    audited = run("audit", tmp_path, "--input-shape", "1,8,8")
    assert audited.exit_code == 0, audited.output
    assert "train mode" not in audited.output
