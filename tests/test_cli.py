"""The command line: results on stdout, one line on stderr and exit code 2 for bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress
from torch import nn
from torch.nn.utils import parametrizations
from typer.testing import CliRunner, Result

import spectralnorm
from spectralnorm import cli
from spectralnorm.commands import demo
from spectralnorm.commands.app import app
from spectralnorm.training.models import small_cnn

SHAPE = ("--input-shape", "1,8,8")
ARCH = ("--arch", "small-cnn", *SHAPE)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def complaint(*arguments: object) -> str:
    """The line a command ends with when its input is bad."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("spectralnorm: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(small_cnn((1, 8, 8), 7).state_dict(), path)
    return path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current folder."""
    source = """
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 3))
def huge():
    layers = [nn.Linear(1, 1) for _ in range(9)]
    for layer in layers: nn.init.constant_(layer.weight, 1e37)
    return nn.Sequential(*layers)
def factory(): return nn.Linear(3, 2)
def tiny(): return nn.Sequential(nn.Conv2d(1, 1, 3))
def sized(size): return nn.Linear(size, 2)
def nothing(): return None
def failing(): raise KeyError("deep inside")
class Zoo: best = model
"""
    (tmp_path / "cli_test_models.py").write_text(source)
    (tmp_path / "cli_test_needy.py").write_text("import package_that_is_missing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "cli_test_models"
    for name in ("cli_test_models", "cli_test_needy"):
        sys.modules.pop(name, None)


# -- audit --------------------------------------------------------------------------------------------


def test_audit_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    report = tmp_path / "new" / "audit.json"
    result = run("audit", checkpoint, *ARCH, "--json", report)
    assert result.exit_code == 0, result.output
    assert "fc2" in result.stdout
    assert "product of the layers' norms" in result.stdout
    assert result.stderr == ""
    content = json.loads(report.read_text())
    assert content["schema"] == "spectralnorm/audit/1"
    assert [layer["name"] for layer in content["layers"]] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert content["layers"][-1]["weight_shape"] == [7, 128]
    assert content["layers"][2]["size"] == [4, 4]


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_audit_of_a_nested_state_dict(tmp_path: Path, key: str) -> None:
    torch.save({key: small_cnn((1, 8, 8), 3).state_dict(), "epoch": 4}, tmp_path / "nested.pt")
    assert run("audit", tmp_path / "nested.pt", *ARCH).exit_code == 0


@pytest.mark.parametrize("name", ["model", "factory", "tiny", "Zoo.best"])
def test_audit_of_an_import_string(module: str, name: str) -> None:
    result = run("audit", f"{module}:{name}")
    assert result.exit_code == 0, result.output
    assert "True norm" in result.stdout


def test_audit_of_a_checkpoint_with_an_imported_architecture(module: str) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), "linear.pt")
    assert run("audit", "linear.pt", "--arch", f"{module}:factory", "--input-shape", "3").exit_code == 0


def test_missing_file(tmp_path: Path) -> None:
    assert "missing.pt: got no such file, expected a saved state_dict" in complaint(
        "audit", tmp_path / "missing.pt", *ARCH
    )
    assert "got a folder without model.pt" in complaint("audit", tmp_path, *ARCH)


DAMAGED = {
    "empty": lambda _: b"",
    "truncated": lambda raw: raw[: len(raw) // 2],
    "text": lambda _: b"epoch 1, loss 0.5\n",
    "noise": lambda _: bytes(range(256)) * 4,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_file(checkpoint: Path, damage: str) -> None:
    checkpoint.write_bytes(DAMAGED[damage](checkpoint.read_bytes()))
    said = complaint("audit", checkpoint, *ARCH)
    assert "got a file that is damaged or no checkpoint" in said
    assert "torch.save(model.state_dict(), path)" in said


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_could_run_code(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": nn.Linear(2, 2)}, path, _use_new_zipfile_serialization=not legacy)
    said = complaint("audit", path, *ARCH)
    assert "an object of class torch.nn.modules.linear.Linear, which could run code and is not loaded" in said


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, {}, {"state_dict": {"a": 1}}])
def test_file_without_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert "that is no state_dict" in complaint("audit", tmp_path / "other.pt", *ARCH)


def test_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_cnn((1, 8, 8), 10, width=4).state_dict(), path)
    said = complaint("audit", path, *ARCH)
    assert "conv1.weight has shape (4, 1, 3, 3), expected (32, 1, 3, 3)" in said
    assert "and 6 more differences" in said
    torch.save(nn.Sequential(nn.Linear(3, 2)).state_dict(), path)
    assert "got no conv1.weight" in complaint("audit", path, *ARCH)
    torch.save({"scale": torch.ones(3)}, path)
    assert "got no matrix" in complaint("audit", path, *ARCH)


def test_parametrised_checkpoint(tmp_path: Path) -> None:
    model = small_cnn((1, 8, 8), 10)
    parametrizations.spectral_norm(model.conv1)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    said = complaint("audit", tmp_path / "model.pt", *ARCH)
    assert "got parametrised weights (conv1)" in said
    assert "remove_parametrizations" in said


def test_architecture(checkpoint: Path) -> None:
    assert "--arch: got none, expected small-cnn" in complaint("audit", checkpoint)
    assert "--arch: got resnet, expected small-cnn" in complaint("audit", checkpoint, "--arch", "resnet", *SHAPE)
    assert "--input-shape: got none" in complaint("audit", checkpoint, "--arch", "small-cnn")
    assert "input_shape: got (8, 8)" in complaint(
        "audit", checkpoint, "--arch", "small-cnn", "--input-shape", "8,8"
    )


IMPORTS = [
    ("no_such_module:model", "cannot import no_such_module"),
    ("cli_test_needy:model", "No module named 'package_that_is_missing'"),
    ("cli_test_models:other", "got no other in cli_test_models"),
    ("cli_test_models:sized", "got a function, expected .* that needs no argument"),
    ("cli_test_models:nn", "got a module, expected a torch.nn.Module"),
    ("cli_test_models:nothing", "it returned NoneType"),
    ("cli_test_models", "got no such file, expected a saved state_dict or package.module:factory"),
    ("cli_test_models:", "got no such file"),
]


@pytest.mark.parametrize(("target", "expected"), IMPORTS)
@pytest.mark.usefixtures("module")
def test_bad_import_string(target: str, expected: str) -> None:
    assert re.search(expected, complaint("audit", target))


def test_errors_of_the_users_own_code_keep_their_traceback(module: str) -> None:
    result = run("audit", f"{module}:failing")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)
    assert isinstance(result.exception.__cause__, KeyError)


def test_architecture_with_an_import_string(module: str) -> None:
    assert "expected it with a checkpoint only" in complaint("audit", f"{module}:model", "--arch", "small-cnn")


@pytest.mark.parametrize("shape", ["", "8;8", "0,3", "-1", "a"])
def test_bad_input_shape(module: str, shape: str) -> None:
    assert f"--input-shape: got {shape!r}" in complaint("audit", f"{module}:factory", f"--input-shape={shape}")


def test_model_that_does_not_run_on_the_shape(module: str) -> None:
    said = complaint("audit", f"{module}:factory", "--input-shape", "4")
    assert "input_shape=(4,): the model does not run" in said


def test_the_table_is_not_lost_where_the_file_cannot_be_written(module: str) -> None:
    Path("audit.json").mkdir()
    result = run("audit", f"{module}:model", "--json", "audit.json")
    assert result.exit_code == 2
    assert "True norm" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "audit.json: cannot write it" in result.stderr


def test_a_product_that_overflows_is_null_in_the_file(module: str) -> None:
    result = run("audit", f"{module}:huge", "--json", "audit.json")
    assert result.exit_code == 0, result.output
    assert "product of the layers' norms: inf" in result.stdout
    assert json.loads(Path("audit.json").read_text())["product_of_layer_norms"] is None


@pytest.mark.parametrize("certified", [False, True])
def test_progress_on_a_terminal(module: str, certified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading, every layer, and how far a proof has come."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the test's stream for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    said: list[tuple[str, float]] = []
    update = Progress.update

    def spy(bar: Progress, *args: Any, **told: Any) -> None:
        said.append((told["description"], told["completed"]))
        update(bar, *args, **told)

    monkeypatch.setattr(Progress, "update", spy)
    result = run("audit", f"{module}:model", *(["--certified"] if certified else []))
    assert result.exit_code == 0, result.output
    assert said[0] == ("loading the model", 0)
    assert said[1] == ("measuring layer 1 of 2", 0)
    assert said[-1] == ("measuring layer 2 of 2", 1)
    assert any(0 < share < 0.5 for _, share in said) is certified
    assert "measuring layer 2 of 2" in result.stderr


def test_json_in_an_impossible_folder(module: str) -> None:
    Path("file").touch()
    assert "expected a folder to write to" in complaint("audit", f"{module}:model", "--json", "file/audit.json")


# -- demo ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the demonstration small."""
    settings = demo.Settings(
        epochs=2,
        train_images=64,
        test_images=20,
        logit_scale=20.0,
        eps={"linf": (0.1,), "l2": (0.5,)},
        table_eps={"linf": (0.1,), "l2": (0.5,)},
        width=4,
    )
    monkeypatch.setattr(demo, "PRESETS", {"digits": settings})


@pytest.mark.usefixtures("tiny")
def test_demo(tmp_path: Path) -> None:
    result = run("demo", "--out", tmp_path / "out", "--json", tmp_path / "all.json", "--epochs", 1, "--seed", 3)
    assert result.exit_code == 0, result.output
    for word in ("PyTorch's spectral_norm", "spectralnorm, soft", "product", "L∞", "One seed and 20 test images"):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120
    assert "spectralnorm, hard: training" in result.stderr
    assert (tmp_path / "out" / "robust_accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["robust_accuracy.png"]
    content = json.loads((tmp_path / "all.json").read_text())
    assert content["schema"] == "spectralnorm/demo/1"
    assert content["settings"]["seed"] == 3
    assert content["settings"]["epochs"] == 1
    assert content["versions"]["torch"] == torch.__version__
    methods = content["methods"]
    assert [method["key"] for method in methods] == ["plain", "pytorch", "hard", "soft"]
    assert [method["logit_scale"] for method in methods] == [1, 20, 20, 20]
    for method in methods:
        assert len(method["evaluation"]["results"]) == 4
        assert len(method["training"]["losses"]) == 1
        assert not any(".parametrizations" in layer["name"] for layer in method["audit"]["layers"])


@pytest.mark.usefixtures("tiny")
def test_demo_repeats_itself(tmp_path: Path) -> None:
    def scores(name: str) -> list[Any]:
        generator = torch.random.get_rng_state()
        assert run("demo", "--out", tmp_path / name).exit_code == 0
        assert torch.equal(torch.random.get_rng_state(), generator)
        content = json.loads((tmp_path / name / "demo.json").read_text())
        return [(method["audit"], method["evaluation"]["batches"]["done"]) for method in content["methods"]]

    one, two = scores("one"), scores("two")
    for _, batches in [*one, *two]:
        assert all(batch.pop("seconds") for batch in batches)  # which are not the same
    assert one == two


def test_demo_with_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert "got 'cifar', expected one of digits, fashion-mnist" in complaint("demo", "--data", "cifar")
    assert "found neither train-images" in complaint(
        "demo", "--out", tmp_path, "--data", "fashion-mnist", "--data-dir", tmp_path
    )
    assert "expected a folder to write to" in complaint("demo", "--out", tmp_path / "file" / "out")
    assert "expected a folder to write to" in complaint(
        "demo", "--out", tmp_path, "--json", tmp_path / "file" / "demo.json"
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "spectralnorm[plot]"' in complaint("demo", "--out", tmp_path)


@pytest.mark.parametrize(
    "arguments", [["demo", "--epochs", "0"], ["demo", "--seed", "-1"], ["audit"], ["nothing"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


# -- the entry point ----------------------------------------------------------------------------------


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"spectralnorm {spectralnorm.__version__}\n"
    assert version("spectralnorm") == spectralnorm.__version__


def test_python_with_the_name_of_the_package() -> None:
    asked = [sys.executable, "-m", "spectralnorm", "--version"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stdout == f"spectralnorm {spectralnorm.__version__}\n"


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_entry_point_without_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == 'spectralnorm needs typer and rich here: pip install "spectralnorm[cli]"\n'


def test_entry_point_and_light_import() -> None:
    code = """
import sys, spectralnorm, spectralnorm.network.audit, spectralnorm.cli
heavy = {"typer", "rich", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, heavy
sys.argv = ["spectralnorm", "--help"]
spectralnorm.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert "audit" in done.stdout
