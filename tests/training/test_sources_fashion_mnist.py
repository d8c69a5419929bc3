"""Fashion-MNIST: IDX files, good and bad."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from messages import check_says, complaint
from spectralnorm.training.data import DEBIAN_FASHION_MNIST, fashion_mnist, load
from spectralnorm.training.sources import fashion_mnist as module


def idx(shape: tuple[int, ...], data: bytes, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + data


def write_fashion_mnist(folder: Path, count: int = 10, zipped: bool = False) -> None:
    for part in ("train", "t10k"):
        pixels = bytes(range(256))[-1:] + bytes(28 * 28 * count - 1)  # the first pixel is white, the rest black
        files = {
            f"{part}-images-idx3-ubyte": idx((count, 28, 28), pixels),
            f"{part}-labels-idx1-ubyte": idx((count,), bytes(range(count))),
        }
        for name, raw in files.items():
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_fashion_mnist(tmp_path)
    return tmp_path


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_reads_idx_files(tmp_path: Path, zipped: bool) -> None:
    write_fashion_mnist(tmp_path, zipped=zipped)
    data = fashion_mnist(tmp_path)
    assert data.train_x.shape == (10, 1, 28, 28)
    assert data.train_x[0, 0, 0, 0] == 1
    assert data.train_x.sum() == 1
    assert data.test_y.tolist() == list(range(10))
    assert load("fashion-mnist", data_dir=str(tmp_path)).classes == 10


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian() -> None:
    data = fashion_mnist()
    assert data.train_x.shape == (60000, 1, 28, 28)
    assert torch.bincount(data.test_y).tolist() == [1000] * 10


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_missing_file_says_what_to_install(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}.*dataset-fashion-mnist.*data_dir"):
        fashion_mnist(folder)


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (idx((10, 28, 28), bytes(28 * 28 * 10 - 1)), "got 7839 bytes of data, expected 7840"),
        (idx((10, 28, 28), bytes(28 * 28 * 10 + 1)), "got 7841 bytes of data, expected 7840"),
        (idx((10,), bytes(10)), "got a header of '00000801', expected '00000803'"),
        (idx((10, 28, 28), bytes(28 * 28 * 10), kind=13), "got a header of '00000d03'"),
        (idx((10, 28, 28), b"")[:-1], "3 sizes"),
        (b"", "got a header of ''"),
        (b"<html>not found</html>", "got a header of '3c68746d'"),
        (gzip.compress(idx((10, 28, 28), bytes(28 * 28 * 10)), mtime=0)[:-9], "damaged gzip"),
        (b"\x1f\x8b rest", "damaged gzip"),
        (idx((10, 8, 8), bytes(8 * 8 * 10)), r"shape \(8, 8\)"),
        (idx((2, 28, 28), bytes(28 * 28 * 2)), "2 images .* 10 labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_bad_image_file_is_named(folder: Path, raw: bytes, complaint: str) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte: .*{complaint}.*dataset-fashion-mnist"):
        fashion_mnist(folder)


def test_labels_out_of_range(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx((10,), bytes(range(1, 11))))
    with pytest.raises(ValueError, match=r"train_y: got labels from 1 to 10, expected \[0, 10\)"):
        fashion_mnist(folder)


def test_a_class_without_images(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx((10,), bytes((0, 1, 2, 2, 4, 5, 6, 7, 8, 9))))
    check_says(complaint(ValueError, lambda: fashion_mnist(folder)), "train_y: got no image of class 3 (1 of 10")


def test_without_debians_package_the_folder_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path / "missing")
    message = complaint(FileNotFoundError, lambda: load("fashion-mnist"))
    check_says(message, "in data;", "dataset-fashion-mnist", "https://github.com/zalandoresearch/fashion-mnist")
    (tmp_path / "data").mkdir()
    write_fashion_mnist(tmp_path / "data")
    assert len(load("fashion-mnist").train_x) == 10
    monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path)
    assert complaint(FileNotFoundError, lambda: load("fashion-mnist")).startswith("data_dir: found neither train-")
