"""A folder of the user's own: NumPy arrays, or images sorted into one folder a class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import Dataset
from .arrays import PARTS, from_arrays
from .images import from_images

LAYOUTS = (
    "put data.npz there, or train_x.npy, train_y.npy, test_x.npy and test_y.npy, or train/<class>/*.png and "
    "test/<class>/*.png"
)


def folder(path: str | Path) -> Dataset:
    """Load a folder of arrays or images.

    The first of these that it holds:

    - data.npz with the arrays train_x, train_y, test_x and test_y, or the same four as .npy files. Images are
      (N, C, H, W), (N, H, W, C) with one or three channels, or (N, H, W); uint8 is divided by 255, floating-point
      pixels lie in [0, 1]; labels count from 0. Pickled objects in them are refused.
    - train/<class>/ and test/<class>/ with images (png, jpg, jpeg, bmp) of one shape, grey or RGB; the classes are
      numbered in the order of their names. Other files, and names that start with a dot, are left out.

    Args:
        path: The folder, whose name is the data set's.

    Returns:
        The data.

    Raises:
        FileNotFoundError: If it holds none of these, or a part is missing.
        ImportError: If images are to be read and Pillow is not installed.
        ValueError: If an array or an image is not as described, or a class is empty.

    Example:
        >>> import tempfile
        >>> x, y = np.zeros((4, 8, 8), dtype=np.uint8), np.array([0, 1, 0, 1])
        >>> with tempfile.TemporaryDirectory() as path:
        ...     np.savez(f"{path}/data.npz", train_x=x, train_y=y, test_x=x, test_y=y)
        ...     folder(path).input_shape
        (1, 8, 8)
    """
    path = Path(path)
    if (path / "data.npz").is_file():
        arrays = _from_npz(path / "data.npz")
    elif any((path / f"{part}.npy").is_file() for part in PARTS):
        arrays = _from_npy(path)
    elif (path / "train").is_dir():
        return from_images(path)
    else:
        raise FileNotFoundError(f"{path}: found no data there; {LAYOUTS}")
    try:
        return from_arrays(path.resolve().name, arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_npz(path: Path) -> Mapping[str, Any]:
    """Read the four arrays of an .npz file."""
    with _refusing_damage(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {part: archive[part] for part in PARTS if part in archive}
    missing = [part for part in PARTS if part not in arrays]
    if missing:
        raise ValueError(f"{path}: got no {', '.join(missing)}, expected {', '.join(PARTS)}; save all four")
    return arrays


def _from_npy(path: Path) -> Mapping[str, Any]:
    """Read the four .npy files of a folder."""
    arrays = {}
    for part in PARTS:
        file = path / f"{part}.npy"
        if not file.is_file():
            raise FileNotFoundError(f"{path}: found no {file.name} beside the others; save all four arrays")
        with _refusing_damage(file):
            arrays[part] = np.load(file, allow_pickle=False)
    return arrays


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    """Turn what NumPy says of a file into one line that names it."""
    try:
        yield
    except Exception as error:  # damaged files raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: NumPy cannot read it ({reason}), expected numeric arrays as numpy.save or numpy.savez write "
            "them; save them again"
        ) from error
