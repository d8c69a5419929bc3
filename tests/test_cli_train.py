"""`spectralnorm train`: its files, what it refuses before it trains, and going on after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from messages import check_says
from spectralnorm.training.models import build
from test_cli import complaint, run

QUICK = ("--epochs", "2", "--batch-size", "64", "--images", "192", "--lr", "0.02", "--device", "cpu")


def result_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


def test_a_run_leaves_a_plain_network_a_log_and_a_result(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run("train", *QUICK, "--out", out, "--log-every", "2", "--json", tmp_path / "copy.json")
    assert done.exit_code == 0, done.output
    for part in ("conv1", "proven below", "Accuracy on the test images", "Product of the layers' targets: 1."):
        assert part in done.stdout
    result = result_of(out)
    assert result == json.loads((tmp_path / "copy.json").read_text())
    assert (result["steps"], result["processes"], result["settings"]["epochs"]) == (6, 1, 2)
    assert all(layer["upper"] <= layer["target"] == 1 for layer in result["layers"])
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 6]
    assert lines[-1]["test_accuracy"] == pytest.approx(result["test_accuracy"], abs=2 / 400)
    net = build("small-cnn", (1, 8, 8), 10)
    net.load_state_dict(torch.load(out / "model.pt", weights_only=True)["state_dict"])
    audited = run("audit", out / "model.pt", "--arch", "small-cnn", "--input-shape", "1,8,8", "--certified")
    assert audited.exit_code == 0, audited.output


@pytest.mark.parametrize("method", ["none", "pytorch", "penalty", "power", "exact"])
def test_other_normalisations(tmp_path: Path, method: str) -> None:
    done = run("train", *QUICK, "--epochs", "1", "--normalize", method, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert all(layer["target"] is None for layer in result_of(tmp_path)["layers"])
    assert "parametrizations" not in str(list(torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]))


@pytest.mark.parametrize(("capability", "said"), [("AVX2", True), ("AVX512", False)])
def test_emulated_precision_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str, said: bool
) -> None:
    monkeypatch.setattr("spectralnorm.commands.train.get_cpu_capability", lambda: capability)
    done = run("train", *QUICK, "--amp", "bf16", "--epochs", "1", "--images", "64", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert ("emulates bf16" in done.stderr) == said


def test_a_network_that_has_not_learnt_is_called_so(tmp_path: Path) -> None:
    """A temperature of 0.01 makes gradients a hundred times larger."""
    done = run("train", *QUICK, "--temperature", "0.001", "--lr", "0.1", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert result_of(tmp_path)["test_accuracy"] < 0.15
    check_says(done.stdout, "guessing", "Lower lr", "--optimizer adam")


def test_folded_layers_are_listed_with_their_batchnorm(tmp_path: Path) -> None:
    done = run("train", *QUICK, "--batch-norm", "--target", "1.5", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    layers = {layer["name"]: layer for layer in result_of(tmp_path)["layers"]}
    assert layers["conv1"]["batchnorm"] == "bn1"
    assert all(layer["upper"] <= layer["target"] == 1.5 for layer in layers.values())
    assert "conv1 + bn1" in done.stdout


def test_a_toml_file(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('epochs = 1\nbatch_size = 64\nimages = 64\n[targets]\n"conv*" = 2.0\n')
    done = run("train", "--config", config, "--images", "128", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    result = result_of(tmp_path / "run")
    assert [layer["target"] for layer in result["layers"]] == [2.0, 2.0, 2.0, 1.0, 1.0]
    assert result["steps"] == 2


def test_a_run_is_not_overwritten_and_not_mixed_up(tmp_path: Path) -> None:
    assert run("train", *QUICK, "--out", tmp_path).exit_code == 0
    check_says(complaint_after("train", *QUICK, "--out", tmp_path), "holds a run already", "--resume")
    again = run("train", "--resume", "--out", tmp_path)  # settings are the run's own
    assert again.exit_code == 0, again.output
    said = complaint_after("train", "--resume", "--lr", "0.5", "--out", tmp_path)
    check_says(said, "other settings", "lr is 0.02, not 0.5")
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    check_says(complaint_after("train", "--resume", "--out", tmp_path), "checkpoint.pt", "delete it")


def complaint_after(*arguments: object) -> str:
    """The last line on stderr of a command that ends with exit code 2, after what it has announced."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr.splitlines()[-1]


def folder_with(path: Path, **changed: Any) -> Path:
    """A folder of arrays that is right but for what is changed."""
    arrays = {
        "train_x": np.full((20, 1, 8, 8), 0.5, np.float32),
        "train_y": np.arange(20) % 2,
        "test_x": np.full((4, 1, 8, 8), 0.5, np.float32),
        "test_y": np.arange(4) % 2,
    }
    path.mkdir()
    for name, array in {**arrays, **changed}.items():
        np.save(path / f"{name}.npy", array)
    return path


def with_nan() -> np.ndarray:
    pixels = np.full((20, 1, 8, 8), 0.5, np.float32)
    pixels[3, 0, 1, 1] = np.nan
    return pixels


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "other shapes": ({"test_x": np.zeros((4, 1, 9, 9), np.float32)}, ("test_x", "(1, 9, 9)", "(1, 8, 8)")),
    "a label too many": ({"train_y": np.arange(21) % 2}, ("train", "20", "21")),
    "labels out of range": ({"test_y": np.array([0, 1, 5, 1])}, ("train_y", "class 2", "[0, 6)")),
    "negative labels": ({"train_y": np.arange(20) % 2 - 1}, ("train_y", "-1")),
    "NaN": ({"train_x": with_nan()}, ("train_x", "nan")),
    "pixels too large": ({"train_x": np.full((20, 1, 8, 8), 255.0, np.float32)}, ("train_x", "255", "[0, 1]")),
    "an empty class": ({"train_y": np.arange(20) % 2 * 2}, ("train_y", "class 1")),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_ends_the_run_before_it_trains(tmp_path: Path, kind: str) -> None:
    changed, parts = BAD[kind]
    data = folder_with(tmp_path / "data", **changed)
    said = complaint_after("train", *QUICK, "--data", data, "--out", tmp_path / "run")
    check_says(said, *parts)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_more_bad_data(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    check_says(complaint_after("train", "--data", tmp_path / "none", *out), "none", "digits", "folder")
    check_says(
        complaint_after("train", "--data", "cifar10", "--data-dir", tmp_path, *out), "cifar-10", "toronto.edu"
    )
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b no archive")
    check_says(
        complaint_after("train", "--data", "cifar10", "--data-dir", tmp_path, *out), "cifar-10-python.tar.gz"
    )
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    check_says(complaint_after("train", "--data", "svhn", "--data-dir", tmp_path, *out), "train_32x32.mat")
    damaged = folder_with(tmp_path / "damaged")
    (damaged / "train_x.npy").write_bytes(b"\x93NUMPY")
    check_says(complaint_after("train", "--data", damaged, *out), "train_x.npy")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--arch", "resnet"), ("'resnet'", "resnet20")),
        (("--arch", "torch.nn:Identity"), ("logits", "(2, 10)")),
        (("--normalize", "spectral"), ("normalize", "tracked")),
        (("--config", "none.toml"), ("--config: got none.toml", "no file")),
        (("--out", "/dev/null/run"), ("/dev/null/run", "folder")),
        (("--device", "tpu"), ("device", "'tpu'")),
        (("--budget", "2", "--normalize", "tracked", "--target", "-1"), ("target",)),
    ],
)
def test_wrong_flags(tmp_path: Path, flags: tuple[str, ...], parts: tuple[str, ...]) -> None:
    check_says(complaint_after("train", "--out", tmp_path, *QUICK, *flags), *parts)


def test_unknown_patterns_of_targets(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[targets]\n"layer*" = 2.0\n')
    said = complaint_after("train", "--config", config, "--out", tmp_path / "run", *QUICK)
    check_says(said, "'layer*'", "fits no layer", "conv1")


def test_wrong_usage_says_nothing_twice() -> None:
    assert "expected one of sgd" in complaint("train", "--optimizer", "lbfgs")


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """`make kills` does this twenty times."""
    from kills import finish, outcome, trial

    finish(tmp_path / "whole", "--images", "400")
    whole = outcome(tmp_path / "whole")
    same, resumed_from = trial(tmp_path / "killed", None, whole, "--images", "400")
    assert same
    assert 0 < resumed_from < whole[0]["done"]  # it was killed in between, however fast the machine


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectralnorm.training import conduct

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conduct.Trainer, "tested", interrupt)
    stopped = run("train", *QUICK, "--checkpoint-every", "2", "--out", tmp_path)
    assert stopped.exit_code == 130
    check_says(stopped.stderr.splitlines()[-1], "was stopped", "checkpoint.pt", f"--resume --out {tmp_path}")


def test_a_diverging_run_says_so(tmp_path: Path) -> None:
    diverged = run("train", *QUICK, "--normalize", "none", "--lr", "1e30", "--warmup", "0", "--out", tmp_path)
    assert diverged.exit_code == 1
    check_says(diverged.stderr.splitlines()[-1], "loss", "lower lr")


# ---------------------------------------------------------------------- several processes


def torchrun(count: int, out: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "spectralnorm", "train", "--out", str(out), "--device", "cpu", *flags]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300, check=False)


TOGETHER = ("--epochs", "3", "--batch-size", "64", "--lr", "0.02", "--temperature", "0.2", "--no-prove")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_compute_what_one_does(tmp_path: Path, parallel: str) -> None:
    """And a run of two goes on from a checkpoint of one, and the other way round."""
    alone = run("train", *TOGETHER, "--parallel", parallel, "--device", "cpu", "--out", tmp_path / "one")
    assert alone.exit_code == 0, alone.output
    together = torchrun(2, tmp_path / "two", *TOGETHER, "--parallel", parallel, "--checkpoint-every", "30")
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("Accuracy on the test images") == 1
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for mine, other in zip(one, two, strict=True):
        for name in ("train_loss", "loss"):
            assert other.get(name, 0.0) == pytest.approx(mine.get(name, 0.0), rel=1e-3)
    assert result_of(tmp_path / "two")["processes"] == 2
    for name in ("one", "two"):
        kept = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        assert kept["done"] == 63
    assert run("train", "--resume", "--device", "cpu", "--out", tmp_path / "two").exit_code == 0
    assert torchrun(2, tmp_path / "one", "--resume").returncode == 0


def test_a_lost_process_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "losing.py").write_text(
        "import os, signal\n"
        "from spectralnorm.training import trainer\n"
        "from spectralnorm.cli import main\n"
        "step = trainer.Trainer._step\n"
        "def lose(self, rows):\n"
        "    if self.team.rank == 1 and self.done == 25:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, rows)\n"
        "trainer.Trainer._step = lose\n"
        "main()\n"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "losing.py"), "train", "--out", str(out), "--device", "cpu", *TOGETHER]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if line.startswith("spectralnorm:")]
    assert said, ended.stderr
    check_says(said[0], f"--resume --out {out}")
    assert torch.load(out / "checkpoint.pt", weights_only=True)["done"] == 21
    assert run("train", "--resume", "--device", "cpu", "--out", out).exit_code == 0
