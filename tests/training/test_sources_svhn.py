"""SVHN: small MATLAB files, good and bad."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat

from messages import check_says, complaint
from spectralnorm.training.data import load
from spectralnorm.training.sources import svhn as module
from spectralnorm.training.sources.svhn import svhn

SITE = "http://ufldl.stanford.edu/housenumbers/"


def pixels(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)


def column(*labels: int) -> NDArray[Any]:
    return np.array(labels, dtype=np.uint8 if max(labels) < 256 else np.float64)[:, None]


def write(path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes | None = None, **content: Any) -> None:
    """Write a file that passes for the published one."""
    if raw is None:
        savemat(path, content, do_compression=True)
    else:
        path.write_bytes(raw)
    monkeypatch.setitem(module.MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "train_32x32.mat", monkeypatch, X=pixels(11), y=column(*range(10, 0, -1), 10))
    write(tmp_path / "test_32x32.mat", monkeypatch, X=pixels(2), y=column(3, 10))
    return tmp_path


def test_svhn(folder: Path) -> None:
    data = load("svhn", folder)
    assert (data.name, data.classes, data.input_shape) == ("svhn", 10, (3, 32, 32))
    assert data.train_y.tolist() == [0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]  # 10 stands for the digit 0
    assert data.test_y.tolist() == [3, 0]
    assert data.train_x.is_contiguous()
    assert data.train_x[7, 2, 5, 9] == torch.tensor(pixels(11)[5, 9, 2, 7]).float() / 255


def test_without_data_dir_the_folder_data_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    check_says(complaint(FileNotFoundError, svhn), "data_dir: found no train_32x32.mat in data", SITE)
    (folder / "data").mkdir()
    for path in folder.glob("*.mat"):
        path.rename(folder / "data" / path.name)
    assert len(svhn().test_x) == 2


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "test_32x32.mat").unlink()
    message = complaint(FileNotFoundError, lambda: svhn(folder))
    check_says(message, f"data_dir: found no test_32x32.mat in {folder}; get it from {SITE}")


def test_a_wrong_checksum_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the files are whole, but not the published ones
    message = complaint(ValueError, lambda: svhn(folder))
    check_says(message, f"{folder / 'train_32x32.mat'}: got a file of ", "expected md5 e26dedcc434d2e4c", SITE)


def test_damaged_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "test_32x32.mat"
    whole = path.read_bytes()
    for raw in (b"", b"<html>", whole[:100], whole[:1000], whole[:-1], whole[:400] + bytes(99) + whole[499:]):
        write(path, monkeypatch, raw)
        message = complaint(ValueError, lambda: svhn(folder))
        check_says(message, f"{path}: got a damaged file", "expected a MATLAB file of X and y", SITE)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"X": pixels(2)}, "got a damaged file (KeyError)"),
        ({"y": column(1, 2)}, "got a damaged file (KeyError)"),
        (
            {"X": pixels(3), "y": column(1, 2)},
            "shape (32, 32, 3, 3) for 2 labels, expected uint8 and (32, 32, 3, 2)",
        ),
        ({"X": pixels(2).astype(float), "y": column(1, 2)}, "X of dtype float64"),
        ({"X": pixels(32).transpose(3, 2, 0, 1), "y": column(1, 2)}, "shape (32, 3, 32, 32) for 2 labels"),
        ({"X": pixels(2), "y": column(0, 2)}, "got label 0, expected 1 to 10 (10 for the digit 0)"),
        ({"X": pixels(2), "y": column(11, 2)}, "got label 11"),
        ({"X": pixels(2), "y": column(1, 2) + 0.5}, "got label 1.5"),
    ],
)
def test_other_content(folder: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any], part: str) -> None:
    path = folder / "test_32x32.mat"
    write(path, monkeypatch, **content)
    check_says(complaint(ValueError, lambda: svhn(folder)), f"{path}: got ", part, SITE)


def test_a_class_without_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "train_32x32.mat", monkeypatch, X=pixels(9), y=column(*range(1, 10)))
    check_says(complaint(ValueError, lambda: svhn(folder)), "train_y: got no image of class 0 (1 of 10")


def test_without_scipy_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert complaint(ImportError, lambda: svhn(folder)) == 'svhn needs SciPy: pip install "spectralnorm[data]"'
