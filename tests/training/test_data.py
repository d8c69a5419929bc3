"""Loading data: scikit-learn's digits, and IDX files, good and bad."""

from __future__ import annotations

import dataclasses
import gzip
import struct
import sys
from pathlib import Path

import pytest
import torch

from spectralnorm.training.data import DEBIAN_FASHION_MNIST, Dataset, digits, fashion_mnist, load


def idx(shape: tuple[int, ...], data: bytes, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + data


def write_fashion_mnist(folder: Path, count: int = 3, zipped: bool = False) -> None:
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


def noise(**changes: object) -> Dataset:
    x, y = torch.rand(6, 1, 4, 5), torch.arange(6) % 3
    parts: dict[str, object] = {"train_x": x, "train_y": y, "test_x": x, "test_y": y, "classes": 3}
    return Dataset(name="noise", **(parts | changes))  # type: ignore[arg-type]


def test_digits_are_scaled_stratified_and_whole() -> None:
    data = digits()
    assert data.train_x.shape == (1397, 1, 8, 8)
    assert data.test_x.shape == (400, 1, 8, 8)
    assert data.input_shape == (1, 8, 8)
    assert data.train_x.dtype == torch.float32
    assert data.train_y.dtype == torch.int64
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)
    shares = [torch.bincount(y, minlength=10) / len(y) for y in (data.train_y, data.test_y)]
    torch.testing.assert_close(shares[0], shares[1], atol=0.003, rtol=0)


def test_digits_split_follows_the_seed() -> None:
    assert torch.equal(digits(3).test_x, digits(3).test_x)
    assert not torch.equal(digits(3).test_x, digits(4).test_x)


def test_digits_without_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "spectralnorm\[data\]"'):
        digits()


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_reads_idx_files(tmp_path: Path, zipped: bool) -> None:
    write_fashion_mnist(tmp_path, zipped=zipped)
    data = fashion_mnist(tmp_path)
    assert data.train_x.shape == (3, 1, 28, 28)
    assert data.train_x[0, 0, 0, 0] == 1
    assert data.train_x.sum() == 1
    assert data.test_y.tolist() == [0, 1, 2]
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
        (idx((3, 28, 28), bytes(28 * 28 * 3 - 1)), "got 2351 bytes of data, expected 2352"),
        (idx((3, 28, 28), bytes(28 * 28 * 3 + 1)), "got 2353 bytes of data, expected 2352"),
        (idx((3,), bytes(3)), "got a header of '00000801', expected '00000803'"),
        (idx((3, 28, 28), bytes(28 * 28 * 3), kind=13), "got a header of '00000d03'"),
        (idx((3, 28, 28), b"")[:-1], "3 sizes"),
        (b"", "got a header of ''"),
        (b"<html>not found</html>", "got a header of '3c68746d'"),
        (gzip.compress(idx((3, 28, 28), bytes(28 * 28 * 3)), mtime=0)[:-9], "damaged gzip"),
        (b"\x1f\x8b rest", "damaged gzip"),
        (idx((3, 8, 8), bytes(8 * 8 * 3)), r"shape \(8, 8\)"),
        (idx((2, 28, 28), bytes(28 * 28 * 2)), "2 images .* 3 labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_bad_image_file_is_named(folder: Path, raw: bytes, complaint: str) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte: .*{complaint}.*dataset-fashion-mnist"):
        fashion_mnist(folder)


def test_labels_out_of_range(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx((3,), bytes((0, 1, 10))))
    with pytest.raises(ValueError, match=r"train_y: got labels from 0 to 10, expected \[0, 10\)"):
        fashion_mnist(folder)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="got 'cifar', expected one of digits, fashion-mnist"):
        load("cifar")


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        (
            {"train_x": torch.rand(6, 1, 4, 5).double()},
            TypeError,
            "train_x.*torch.float64.*expected torch.float32",
        ),
        ({"test_y": torch.zeros(6)}, TypeError, "test_y.*expected torch.float32 and torch.int64"),
        ({"train_x": torch.rand(6, 20)}, ValueError, r"train_x: got shape \(6, 20\)"),
        ({"test_x": torch.rand(0, 1, 4, 5)}, ValueError, "test_x: .*non-empty"),
        ({"test_x": torch.rand(6, 1, 4, 4)}, ValueError, r"test_x: .*\(1, 4, 4\).*expected \(1, 4, 5\)"),
        ({"train_y": torch.zeros(5, dtype=torch.int64)}, ValueError, "one label per image"),
        (
            {"train_x": torch.full((6, 1, 4, 5), torch.nan)},
            ValueError,
            "train_x: got pixels from nan.*remove NaN",
        ),
        ({"train_x": torch.full((6, 1, 4, 5), 255.0)}, ValueError, "train_x: got pixels from 255"),
        ({"train_y": torch.full((6,), -1)}, ValueError, "train_y: got labels from -1"),
        ({"classes": 2}, ValueError, r"train_y: got labels from 0 to 2, expected \[0, 2\)"),
    ],
)
def test_bad_dataset(changes: dict[str, object], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        noise(**changes)


def test_dataset_is_frozen_and_gives_the_shape() -> None:
    data = noise()
    assert data.input_shape == (1, 4, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]
