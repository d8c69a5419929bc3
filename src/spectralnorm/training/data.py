"""Image data sets that need no download: scikit-learn's digits, and Fashion-MNIST from its IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CURE = (
    "install Debian's package dataset-fashion-mnist, "
    "or pass data_dir, a folder that holds Fashion-MNIST's four IDX files"
)


@dataclass(frozen=True)
class Dataset:
    """Images and labels, split into a training and a test part, checked when made.

    Attributes:
        name: What to call it in tables.
        train_x: Training images, (N, C, H, W), float32 in [0, 1].
        train_y: Their labels, (N,), int64 in [0, classes).
        test_x: Test images, as `train_x`.
        test_y: Their labels, as `train_y`.
        classes: Number of classes.

    Example:
        >>> x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 2
        >>> Dataset("noise", x[:4], y[:4], x[4:], y[4:], classes=2).input_shape
        (1, 8, 8)
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    def __post_init__(self) -> None:
        self.check()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width

    def check(self) -> None:
        """Check dtypes, shapes, pixels and labels of both parts.

        Raises:
            ValueError: If the two parts hold images of different shapes, or a part is wrong in itself.
        """
        _check_part("train", self.train_x, self.train_y, self.classes)
        _check_part("test", self.test_x, self.test_y, self.classes)
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise ValueError(
                f"test_x: got images of shape {tuple(self.test_x.shape[1:])}, "
                f"expected {self.input_shape} as in train_x; resize one of them"
            )


def digits(seed: int = 0) -> Dataset:
    """Load scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, ten classes.

    Args:
        seed: Seed of the split into 1,397 training and 400 test images, stratified by class.

    Returns:
        The data, pixels divided by 16.

    Raises:
        ImportError: If scikit-learn is not installed.

    Reference:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.

    Example:
        >>> data = digits()
        >>> len(data.train_x), len(data.test_x), data.input_shape
        (1397, 400, (1, 8, 8))
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('digits needs scikit-learn: pip install "spectralnorm[data]"') from error
    pixels, labels = load_digits(return_X_y=True)
    x = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    y = labels.astype(np.int64)
    parts = train_test_split(x, y, test_size=400, random_state=seed, stratify=y)
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return Dataset("digits", train_x, train_y, test_x, test_y, classes=10)


def fashion_mnist(data_dir: str | Path | None = None) -> Dataset:
    """Load Fashion-MNIST, 70,000 grey images of 28 x 28 pixels, from its IDX files, gzipped or not.

    A missing file raises `FileNotFoundError`; a truncated or wrong one raises `ValueError`.

    Args:
        data_dir: Folder of the files; by default the one of Debian's package dataset-fashion-mnist.

    Returns:
        The data in its own split (60,000 training, 10,000 test images), pixels divided by 255.

    Reference:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017, arXiv 1708.07747.

    Example:
        >>> fashion_mnist("no-such-folder")
        Traceback (most recent call last):
        FileNotFoundError: data_dir: found neither train-images-idx3-ubyte nor ...
    """
    folder = DEBIAN_FASHION_MNIST if data_dir is None else Path(data_dir)
    train_x, train_y = _read_part(folder, "train")
    test_x, test_y = _read_part(folder, "t10k")
    return Dataset("fashion-mnist", train_x, train_y, test_x, test_y, classes=10)


def load(name: str, data_dir: str | Path | None = None, seed: int = 0) -> Dataset:
    """Load a data set by name.

    Args:
        name: "digits" or "fashion-mnist".
        data_dir: Folder of the files, for the sets that are read from files.
        seed: Seed of the split, for the sets that have none of their own.

    Returns:
        The data.

    Raises:
        ValueError: If there is no set of that name.

    Example:
        >>> load("digits").classes
        10
    """
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": lambda: digits(seed),
        "fashion-mnist": lambda: fashion_mnist(data_dir),
    }
    if name not in loaders:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(loaders)}; choose one of these")
    return loaders[name]()


def _check_part(part: str, x: Tensor, y: Tensor, classes: int) -> None:
    """Check one part's images and labels; `part` names them in errors."""
    if x.dtype != torch.float32 or y.dtype != torch.int64:
        raise TypeError(
            f"{part}_x, {part}_y: got {x.dtype} and {y.dtype}, expected torch.float32 and torch.int64; "
            "convert with x.float() / 255 and y.long()"
        )
    if x.ndim != 4 or x.numel() == 0:
        raise ValueError(
            f"{part}_x: got shape {tuple(x.shape)}, expected non-empty (N, C, H, W); reshape the images"
        )
    if y.shape != x.shape[:1]:
        raise ValueError(f"{part}_y: got shape {tuple(y.shape)}, expected ({len(x)},); give one label per image")
    low, high = x.min().item(), x.max().item()
    if not (low >= 0 and high <= 1):  # false for NaN, too
        raise ValueError(f"{part}_x: got pixels from {low} to {high}, expected [0, 1]; rescale them, remove NaN")
    first, last = int(y.min()), int(y.max())
    if first < 0 or last >= classes:
        raise ValueError(
            f"{part}_y: got labels from {first} to {last}, expected [0, {classes}); "
            "relabel, or pass the right number of classes"
        )


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
    x = torch.from_numpy(images.astype(np.float32)).div_(255).unsqueeze(1)
    return x, torch.from_numpy(labels.astype(np.int64))


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
