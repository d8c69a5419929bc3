"""CIFAR-10 and CIFAR-100, from the files that their authors publish for Python."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dataset import Dataset
from .arrays import scaled
from .old_pickles import PickledArray, read_pickle
from .published import folder_of, read_verified

SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
MD5 = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}


@dataclass(frozen=True)
class _Version:
    """How one of the two sets is stored."""

    name: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes  # key
    classes: int


CIFAR10 = _Version(
    name="cifar10",
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    labels=b"labels",
    classes=10,
)
CIFAR100 = _Version(
    name="cifar100",
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    labels=b"fine_labels",
    classes=100,
)


def cifar10(data_dir: str | Path | None = None) -> Dataset:
    """Load CIFAR-10: 60,000 colour images of 32 x 32 pixels, ten classes.

    The files' checksums are compared with the published ones. The pickles in them are read, not run.

    Args:
        data_dir: Folder that holds the folder cifar-10-batches-py, or else cifar-10-python.tar.gz; by default
            ./data.

    Returns:
        The data in its own split (50,000 training, 10,000 test images), pixels divided by 255.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is another one, or damaged.

    Reference:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
        https://www.cs.toronto.edu/~kriz/cifar.html.

    Example:
        >>> cifar10("no-such-folder")
        Traceback (most recent call last):
        FileNotFoundError: data_dir: found neither cifar-10-batches-py nor cifar-10-python.tar.gz in ...
    """
    return _load(CIFAR10, folder_of(data_dir))


def cifar100(data_dir: str | Path | None = None) -> Dataset:
    """Load CIFAR-100: 60,000 colour images of 32 x 32 pixels, with its 100 fine labels.

    The files' checksums are compared with the published ones. The pickles in them are read, not run.

    Args:
        data_dir: Folder that holds the folder cifar-100-python, or else cifar-100-python.tar.gz; by default
            ./data.

    Returns:
        The data in its own split (50,000 training, 10,000 test images), pixels divided by 255.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is another one, or damaged.

    Reference:
        As for `cifar10`.

    Example:
        >>> cifar100("no-such-folder")
        Traceback (most recent call last):
        FileNotFoundError: data_dir: found neither cifar-100-python nor cifar-100-python.tar.gz in ...
    """
    return _load(CIFAR100, folder_of(data_dir))


def _load(version: _Version, folder: Path) -> Dataset:
    unpacked, archive = folder / version.folder, folder / version.archive
    if unpacked.is_dir():
        where, files = unpacked, {name: _read(unpacked / name) for name in version.train + version.test}
    elif archive.is_file():
        where, files = archive, _from_archive(archive, version)
    else:
        raise FileNotFoundError(
            f"data_dir: found neither {version.folder} nor {version.archive} in {folder}; get the latter from "
            f"{SOURCE}"
        )
    train_x, train_y = _part(version, where, {name: files[name] for name in version.train})
    test_x, test_y = _part(version, where, {name: files[name] for name in version.test})
    return Dataset(version.name, train_x, train_y, test_x, test_y, version.classes)


def _read(path: Path) -> bytes:
    return read_verified(path, MD5[path.name], SOURCE)


def _from_archive(path: Path, version: _Version) -> dict[str, bytes]:
    """Read the files in an archive, by name, in one pass; nothing is written to disk."""
    raw, files = _read(path), {}
    wanted = {f"{version.folder}/{name}": name for name in version.train + version.test}
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(raw)), mode="r:") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name in wanted and member.isfile() else None
                if content is not None:
                    files[wanted[member.name]] = content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: got a damaged archive ({error}), expected a whole .tar.gz; get it from {SOURCE}"
        ) from error
    missing = [member for member, name in wanted.items() if name not in files]
    if missing:
        raise ValueError(
            f"{path}: got an archive without {missing[0]}, expected that file in it; get the right one from "
            f"{SOURCE}"
        )
    return files


def _part(version: _Version, where: Path, files: dict[str, bytes]) -> tuple[Tensor, Tensor]:
    """Join the batches of one part: images (N, 3, 32, 32) and labels (N,)."""
    batches = [_batch(version, where / name, raw) for name, raw in files.items()]
    pixels = np.concatenate([pixels for pixels, _ in batches])  # (N, 3 * 32 * 32): a plane a colour, row by row
    labels = [label for _, labels in batches for label in labels]
    return scaled(pixels.reshape(-1, 3, 32, 32)), torch.tensor(labels, dtype=torch.int64)


def _batch(version: _Version, path: Path, raw: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """Read a batch's pixels, (N, 3072), and labels."""
    content = read_pickle(raw, path, SOURCE)
    batch = content if isinstance(content, dict) else {}
    array, labels = batch.get(b"data"), batch.get(version.labels)
    if not isinstance(array, PickledArray) or not isinstance(labels, list):
        raise ValueError(
            f"{path}: got a pickle without an array b'data' and a list {version.labels!r}, expected a dictionary "
            f"with both; get the right file from {SOURCE}"
        )
    try:
        pixels = array.to_bytes_array()
    except ValueError as error:
        raise ValueError(
            f"{path}: got {error}, expected one of unsigned bytes; get the right file from {SOURCE}"
        ) from error
    if pixels.shape != (len(labels), 3072):
        raise ValueError(
            f"{path}: got pixels of shape {pixels.shape} for {len(labels)} labels, expected ({len(labels)}, "
            f"3072); get the right file from {SOURCE}"
        )
    wrong = [label for label in labels if type(label) is not int or not 0 <= label < version.classes]
    if wrong:
        raise ValueError(
            f"{path}: got label {wrong[0]!r}, expected whole numbers in [0, {version.classes}); get the right "
            f"file from {SOURCE}"
        )
    return pixels, labels
