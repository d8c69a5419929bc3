"""Fashion-MNIST, from its IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dataset import Dataset
from .arrays import scaled
from .published import folder_of

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CURE = (
    "install Debian's package dataset-fashion-mnist, "
    "or pass data_dir, a folder that holds the four IDX files of https://github.com/zalandoresearch/fashion-mnist"
)


def fashion_mnist(data_dir: str | Path | None = None) -> Dataset:
    """Load Fashion-MNIST, 70,000 grey images of 28 x 28 pixels, from its IDX files, gzipped or not.

    A missing file raises `FileNotFoundError`; a truncated or wrong one raises `ValueError`.

    Args:
        data_dir: Folder of the files; by default the one of Debian's package dataset-fashion-mnist, or ./data
            where that is not installed.

    Returns:
        The data in its own split (60,000 training, 10,000 test images), pixels divided by 255.

    Reference:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017, arXiv 1708.07747.

    Example:
        >>> fashion_mnist("no-such-folder")
        Traceback (most recent call last):
        FileNotFoundError: data_dir: found neither train-images-idx3-ubyte nor ...
    """
    folder = DEBIAN_FASHION_MNIST if data_dir is None and DEBIAN_FASHION_MNIST.is_dir() else folder_of(data_dir)
    train_x, train_y = _read_part(folder, "train")
    test_x, test_y = _read_part(folder, "t10k")
    return Dataset("fashion-mnist", train_x, train_y, test_x, test_y, classes=10)


def _read_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Read the images and labels of "train" or "t10k"."""
    images_file = _find(folder, f"{part}-images-idx3-ubyte")
    labels_file = _find(folder, f"{part}-labels-idx1-ubyte")
    images, labels = _read_idx(images_file, 3), _read_idx(labels_file, 1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise ValueError(
            f"{images_file}: got {len(images)} images of shape {images.shape[1:]} for {len(labels)} labels, "
            f"expected one image of shape (28, 28) per label; {FASHION_MNIST_CURE}"
        )
    return scaled(images[:, None]), torch.from_numpy(labels.astype(np.int64))


def _find(folder: Path, name: str) -> Path:
    """Return the path of a file, plain or gzipped."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"data_dir: found neither {name} nor {name}.gz in {folder}; {FASHION_MNIST_CURE}")


def _read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes with `dims` axes, by the format's own header."""
    raw = _read_bytes(path)
    magic, header = bytes((0, 0, 8, dims)), 4 + 4 * dims  # 8: unsigned bytes
    if raw[:4] != magic or len(raw) < header:
        raise ValueError(
            f"{path}: got a header of {raw[:4].hex()!r}, expected {magic.hex()!r} and {dims} sizes "
            f"(IDX, {dims} axes of unsigned bytes); {FASHION_MNIST_CURE}"
        )
    shape = tuple(np.frombuffer(raw, ">u4", dims, offset=4).tolist())
    if len(raw) - header != math.prod(shape):
        raise ValueError(
            f"{path}: got {len(raw) - header} bytes of data, expected {math.prod(shape)} for shape {shape}; "
            f"the file is truncated or damaged: {FASHION_MNIST_CURE}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    """Read a file, decompressed if it starts as gzip does."""
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: got damaged gzip data ({error}), expected a whole file; {FASHION_MNIST_CURE}"
        ) from error
