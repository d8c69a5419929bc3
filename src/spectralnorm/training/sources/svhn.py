"""Street View House Numbers, cropped digits, from its MATLAB files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..dataset import Dataset
from .arrays import scaled
from .published import folder_of, read_verified

SOURCE = "http://ufldl.stanford.edu/housenumbers/"
MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def svhn(data_dir: str | Path | None = None) -> Dataset:
    """Load SVHN's cropped digits: 99,289 colour images of 32 x 32 pixels, ten classes.

    The files' checksums are compared with the published ones. The file of extra images is not used.

    Args:
        data_dir: Folder of train_32x32.mat and test_32x32.mat; by default ./data.

    Returns:
        The data in its own split (73,257 training, 26,032 test images), pixels divided by 255; labels are the
        digits.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If SciPy is not installed.
        ValueError: If a file is another one, or damaged.

    Reference:
        Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", 2011;
        http://ufldl.stanford.edu/housenumbers/.

    Example:
        >>> svhn("no-such-folder")
        Traceback (most recent call last):
        FileNotFoundError: data_dir: found no train_32x32.mat in no-such-folder; get it from http://...
    """
    folder = folder_of(data_dir)
    train_x, train_y = _read(folder / "train_32x32.mat")
    test_x, test_y = _read(folder / "test_32x32.mat")
    return Dataset("svhn", train_x, train_y, test_x, test_y, classes=10)


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Read a file's images, (N, 3, 32, 32), and labels, (N,)."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError('svhn needs SciPy: pip install "spectralnorm[data]"') from error
    raw = read_verified(path, MD5[path.name], SOURCE)
    try:
        content = loadmat(io.BytesIO(raw), variable_names=("X", "y"))
        pixels, labels = content["X"], content["y"].ravel()
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(
            f"{path}: got a damaged file ({type(error).__name__}), expected a MATLAB file of X and y; get it from "
            f"{SOURCE}"
        ) from error
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
        raise ValueError(
            f"{path}: got X of dtype {pixels.dtype} and shape {pixels.shape} for {len(labels)} labels, expected "
            f"uint8 and (32, 32, 3, {len(labels)}); get the right file from {SOURCE}"
        )
    wrong = labels[~np.isin(labels, range(1, 11))]
    if len(wrong):
        raise ValueError(
            f"{path}: got label {wrong[0]}, expected 1 to 10 (10 for the digit 0); get the right file from "
            f"{SOURCE}"
        )
    digits = torch.from_numpy(labels.astype(np.int64)) % 10
    return scaled(pixels.transpose(3, 2, 0, 1)), digits
