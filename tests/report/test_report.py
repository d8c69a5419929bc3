"""Tables, plots and files."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spectralnorm.files import check_folder, write_atomically
from spectralnorm.report.plots import robust_accuracy_plot
from spectralnorm.report.tables import demo_notes, demo_summary, demo_table

EPS = {"linf": (0.05, 0.1), "l2": (0.5, 1.0)}


def method(label: str, norm: float, clean: float, robust: tuple[float, ...]) -> dict[str, Any]:
    sizes = [(name, eps) for name, chosen in EPS.items() for eps in chosen]
    return {
        "key": label,
        "label": label,
        "logit_scale": 1.0 if label == "plain" else 20.0,
        "training": {"seconds": 12.34},
        "audit": {
            "layers": [{"norm": {"value": norm}}, {"norm": {"value": 0.5}}],
            "product_of_layer_norms": norm / 2,
        },
        "evaluation": {
            "clean_accuracy": clean,
            "worst_case": [
                {"norm": name, "eps": eps, "robust_accuracy": share}
                for (name, eps), share in zip(sizes, robust, strict=True)
            ],
        },
    }


def result(*last: float) -> dict[str, Any]:
    return {
        "data": {"name": "digits", "train_images": 1397, "test_images": 400},
        "settings": {
            "eps": EPS,
            "table_eps": {"linf": (0.1,), "l2": EPS["l2"]},
            "epochs": 20,
            "attacks": ("fgsm", "pgd"),
        },
        "methods": [
            method("plain", 7.0, 0.975, (0.5, 0.25, 0.5, 0.25)),
            method("PyTorch's spectral_norm", 2.5, 0.97, (0.6, 0.3, 0.6, 0.3)),
            method("spectralnorm, hard", 1.0, 0.95, last or (0.8, 0.4, 0.8, 0.4)),
            method("spectralnorm, soft", 1.0, 0.96, (0.7, 0.3, 0.7, 0.3)),
        ],
    }


def lines(width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(demo_table(result()))
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]


@pytest.mark.parametrize("width", [90, 120])
def test_table_has_a_row_per_method_and_fits(width: int) -> None:
    shown = lines(width)
    assert shown[-4:] == [
        "plain 7.00 3.50 97.5 25.0 50.0 25.0 12.3",
        "PyTorch's spectral_norm 2.50 1.25 97.0 30.0 60.0 30.0 12.3",
        "spectralnorm, hard 1.00 0.50 95.0 40.0 80.0 40.0 12.3",
        "spectralnorm, soft 1.00 0.50 96.0 30.0 70.0 30.0 12.3",
    ]
    assert "0.1 0.5 1" in " ".join(shown[:3])


def test_notes_say_how_it_was_done() -> None:
    said = " ".join(demo_notes(result()))
    for words in (
        "digits, 1397 images, 20 epochs",
        "by 1 (plain), 20 (PyTorch's",
        "400 test images",
        "(FGSM, PGD;",
    ):
        assert words in said


def test_summary_follows_the_numbers() -> None:
    said = " ".join(demo_summary(result()))
    assert "2.50 (PyTorch's spectral_norm), 1.00 (spectralnorm, hard)" in said
    assert "untouched, 7.00" in said
    assert "60.0 % (spectralnorm, hard)" in said
    assert (
        "The highest is spectralnorm, hard, 10.0 points above spectralnorm, soft; its clean accuracy is -2.5"
        in said
    )
    assert "differences below 7 points" in said


def test_summary_says_so_when_another_method_is_best() -> None:
    assert "The highest is spectralnorm, soft" in " ".join(demo_summary(result(0.0, 0.0, 0.0, 0.0)))
    plain_wins = result(0.0, 0.0, 0.0, 0.0)
    for other in plain_wins["methods"][1:]:
        for entry in other["evaluation"]["worst_case"]:
            entry["robust_accuracy"] = 0.0
    assert "The highest is plain, 37.5 points above" in " ".join(demo_summary(plain_wins))


def test_norms_that_json_has_no_number_for_are_infinite() -> None:
    large = result()
    large["methods"][0]["audit"] = {"layers": [{"norm": {"value": None}}], "product_of_layer_norms": None}
    console = Console(width=120)
    with console.capture() as capture:
        console.print(demo_table(large))
    assert "plain inf inf 97.5" in " ".join(capture.get().split())
    assert "untouched, inf." in demo_summary(large)[0]


def test_plot_is_a_png() -> None:
    picture = robust_accuracy_plot(result())
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width > height > 400


def test_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "spectralnorm\[plot\]"'):
        robust_accuracy_plot(result())


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"result.json: cannot write it in .* \(No space left on device\)"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_what_is_no_file_is_written_to_not_replaced() -> None:
    write_atomically("/dev/null", "gone")
    assert not Path("/dev/null").is_file()


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file: expected a folder to write to, got \"File exists\""):
        check_folder(tmp_path / "file")
    with pytest.raises(OSError, match="expected a folder to write to"):
        write_atomically(tmp_path / "file" / "result.json", "")


def test_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write it in .* \(Is a directory\)"):
        write_atomically(tmp_path, "")


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(OSError, match=r"got \"Permission denied\"; give another one"):
        check_folder(tmp_path)
