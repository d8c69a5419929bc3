"""CIFAR-10 and CIFAR-100: small files as Python 2 wrote them, by themselves and in archives, good and bad."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from python2 import dumps

from messages import check_says, complaint
from spectralnorm.training.data import Dataset, cifar10, cifar100, load
from spectralnorm.training.sources import cifar

SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"
BATCHES = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"


def pixels(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def batch(labels: list[int], seed: int, key: bytes = b"labels", **changes: Any) -> bytes:
    content = {b"batch_label": b"a batch", key: labels, b"data": pixels(len(labels), seed)}
    return dumps(content | {name.encode(): value for name, value in changes.items()})


def write(path: Path, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a file that passes for the published one."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    monkeypatch.setitem(cifar.MD5, path.name, hashlib.md5(raw).hexdigest())


def pack(folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Move a folder into an archive."""
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write(archive, archive.read_bytes(), monkeypatch)
    return archive.read_bytes()


@pytest.fixture
def ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(1, 6):
        labels = [2 * number - 2, 2 * number - 1]
        write(tmp_path / BATCHES / f"data_batch_{number}", batch(labels, number), monkeypatch)
    write(tmp_path / BATCHES / "test_batch", batch([9, 0, 9], 6), monkeypatch)
    return tmp_path


def check_ten(data: Dataset) -> None:
    assert (data.name, data.classes, data.input_shape) == ("cifar10", 10, (3, 32, 32))
    assert data.train_y.tolist() == list(range(10))
    assert data.test_y.tolist() == [9, 0, 9]
    expected = torch.from_numpy(np.concatenate([pixels(2, number) for number in range(1, 6)])).float() / 255
    assert torch.equal(data.train_x.flatten(1), expected)
    assert data.train_x[3, 2, 5, 7] == expected[3, 2 * 1024 + 5 * 32 + 7]  # red, then green, then blue; row by row


def test_the_pickles_are_as_python_2_wrote_them(ten: Path) -> None:
    raw = (ten / BATCHES / "test_batch").read_bytes()
    assert raw.startswith(b"\x80\x02}")
    assert b"U\x04data" in raw
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in raw
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, on the old name
        assert pickle.loads(raw, encoding="bytes")[b"data"].tolist() == pixels(3, 6).tolist()


def test_cifar10_from_its_folder_and_its_archive(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_ten(cifar10(ten))
    pack(ten / BATCHES, ten / ARCHIVE, monkeypatch)
    check_ten(cifar10(str(ten)))
    assert sorted(path.name for path in ten.iterdir()) == [ARCHIVE]  # nothing is unpacked there


def test_cifar100_has_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    for name, labels in (("train", list(range(99, -1, -1))), ("test", [42])):
        raw = batch(labels, 0, key=b"fine_labels", coarse_labels=[0] * len(labels))
        write(folder / name, raw, monkeypatch)
    data = load("cifar100", tmp_path)
    assert (data.name, data.classes, data.input_shape) == ("cifar100", 100, (3, 32, 32))
    assert data.train_y.tolist() == list(range(99, -1, -1))
    assert data.test_y.tolist() == [42]
    pack(folder, tmp_path / "cifar-100-python.tar.gz", monkeypatch)
    assert torch.equal(cifar100(tmp_path).train_x, data.train_x)


def test_without_data_dir_the_folder_data_is_read(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ten)
    for name, stem in (("cifar10", "cifar-10"), ("cifar100", "cifar-100")):
        message = complaint(FileNotFoundError, lambda name=name: load(name))
        check_says(message, f"{stem}-python.tar.gz in data; get the latter from {SITE}")
    (ten / "data").mkdir()
    (ten / BATCHES).rename(ten / "data" / BATCHES)
    check_ten(load("cifar10"))


def test_arrays_in_fortrans_order(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = batch([9, 0, 9], 6, data=np.asfortranarray(pixels(3, 6)))
    write(ten / BATCHES / "test_batch", raw, monkeypatch)
    data = cifar10(ten)
    assert torch.equal(data.test_x.flatten(1), torch.from_numpy(pixels(3, 6)).float() / 255)


# -- files that are missing, others, or damaged -------------------------------------------------------


def test_a_missing_batch_is_named(ten: Path) -> None:
    (ten / BATCHES / "data_batch_3").unlink()
    message = complaint(FileNotFoundError, lambda: cifar10(ten))
    check_says(message, "data_dir: found no data_batch_3 in", BATCHES, SITE)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b" ", lambda raw: raw[:0]])
def test_a_wrong_checksum_is_an_error(ten: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    path = ten / BATCHES / "data_batch_2"
    raw, right = change(path.read_bytes()), cifar.MD5["data_batch_2"]
    path.write_bytes(raw)
    message = complaint(ValueError, lambda: cifar10(ten))
    check_says(message, f"{path}: got a file of {len(raw)} bytes with md5 {hashlib.md5(raw).hexdigest()}", SITE)
    check_says(message, f"expected md5 {right}")


def test_the_published_checksums_are_asked_for(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(ten / BATCHES, ten / ARCHIVE, monkeypatch)
    monkeypatch.undo()
    check_says(complaint(ValueError, lambda: cifar10(ten)), ARCHIVE, "c58f30108f718f92721af3b95e74349a", SITE)


def test_damaged_archives(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack(ten / BATCHES, ten / ARCHIVE, monkeypatch)
    for raw in (whole[:2000], whole[:-9], b"<html>", b"", whole[:1000] + bytes(50) + whole[1050:]):
        write(ten / ARCHIVE, raw, monkeypatch)
        check_says(complaint(ValueError, lambda: cifar10(ten)), f"{ten / ARCHIVE}: got ", "archive", SITE)


def test_an_archive_without_a_batch(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (ten / BATCHES / "test_batch").unlink()
    (ten / BATCHES / "test_batch").mkdir()  # a folder of that name is no file
    with tarfile.open(ten / ARCHIVE, "w:gz") as file:
        file.add(ten / BATCHES, BATCHES)
    (ten / BATCHES).rename(ten / "away")
    write(ten / ARCHIVE, (ten / ARCHIVE).read_bytes(), monkeypatch)
    check_says(complaint(ValueError, lambda: cifar10(ten)), f"got an archive without {BATCHES}/test_batch", SITE)


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (b"", ["damaged pickle (EOFError)"]),
        (b"<html>", ["damaged pickle (UnpicklingError)"]),
        (batch([0, 1], 0)[:-1], ["damaged pickle"]),
        (batch([0, 1], 0)[:300], ["damaged pickle"]),
        (dumps([1, 2]), ["without an array b'data' and a list b'labels'"]),
        (dumps({b"labels": [0, 1]}), ["without an array b'data'"]),
        (batch([0, 1], 0, key=b"fine_labels"), ["a list b'labels', expected a dictionary with both"]),
        (batch([0, 1], 0, data=b"bytes"), ["without an array b'data'"]),
        (batch([0, 1], 0, data=pixels(3, 0)), ["pixels of shape (3, 3072) for 2 labels, expected (2, 3072)"]),
        (batch([0, 1], 0, data=pixels(2, 0)[:, 1:]), ["pixels of shape (2, 3071)"]),
        (
            batch([0, 1], 0, data=pixels(2, 0).view(np.int8)),
            ["of another kind (dtype i1), expected one of unsigned bytes"],
        ),
        (
            batch([0, 1], 0, data=pixels(2, 0).astype(object)),
            ["an array that is damaged or of another kind (dtype O8)"],
        ),
        (
            batch([0, 1], 0).replace(b"K\x02M\x00\x0c", b"K\x03M\x00\x0c"),
            ["(cannot reshape array of size 6144 into"],
        ),
        (batch([0, 1], 0, data=np.arange(2.0)), ["an array that is damaged or of another kind (dtype f8)"]),
        (batch([0, 10], 0), ["got label 10, expected whole numbers in [0, 10)"]),
        (batch([0, -1], 0), ["got label -1"]),
        (batch([0, True], 0), ["got label True"]),
        (batch([0, 10**30], 0), ["got label 1000000000000000000000000000000"]),
        (b"\x80\x02cnumpy\nndarray\n)R.", ["without an array"]),
        (b"\x80\x02}U\x04datacnumpy\nndarray\n)RsU\x06labels]s.", ["an array that is damaged"]),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) else value[0][:24],
)
def test_bad_batches(ten: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes, parts: list[str]) -> None:
    path = ten / BATCHES / "data_batch_4"
    write(path, raw, monkeypatch)
    check_says(complaint(ValueError, lambda: cifar10(ten)), f"{path}: got ", SITE, *parts)


def test_a_class_without_images(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ten / BATCHES / "data_batch_4", batch([6, 6], 4), monkeypatch)
    check_says(complaint(ValueError, lambda: cifar10(ten)), "train_y: got no image of class 7")


# -- pickles that would run code ----------------------------------------------------------------------


class Command:
    """Pickled, it is a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_that_would_run_a_command(
    ten: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, packed: bool
) -> None:
    trace = ten / "trace"
    raw = pickle.dumps(["data", Command(f"echo > {trace}")], protocol)
    write(ten / BATCHES / "data_batch_1", raw, monkeypatch)
    if packed:
        pack(ten / BATCHES, ten / ARCHIVE, monkeypatch)
    message = complaint(ValueError, lambda: cifar10(ten))
    check_says(message, f"data_batch_1: got a pickle that names {os.system.__module__}.system, which could", SITE)
    assert not trace.exists()
    pickle.loads(raw)
    assert trace.exists()  # it would have


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
        (b"cnumpy\ndtype.__new__\n.", "numpy.dtype.__new__"),
        (b"c_codecs\nencode\n.", "_codecs.encode"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "numpy.ndarray.__init__"),
    ],
)
def test_every_other_name_is_refused(ten: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes, name: str) -> None:
    write(ten / BATCHES / "test_batch", raw, monkeypatch)
    check_says(
        complaint(ValueError, lambda: cifar10(ten)), "test_batch: got a pickle that names ", f"{name}, which"
    )


def test_what_stands_in_for_arrays_stays_as_it_is(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle may try to set what belongs to a class it was given."""
    for name in (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"):
        write(ten / BATCHES / "test_batch", name + b"(dS'state'\nI1\nsb.", monkeypatch)
        check_says(complaint(ValueError, lambda: cifar10(ten)), "test_batch: got a damaged pickle")
