"""Image files sorted into one folder a class, as torchvision's ImageFolder has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dataset import Dataset
from .arrays import scaled

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}
MODES = {
    "1": "L",
    "L": "L",
    "P": "RGB",
    "RGB": "RGB",
}  # Pillow's name of how pixels are stored: what it is read as


def from_images(path: Path) -> Dataset:
    """Load train/<class>/ and test/<class>/ of a folder; the classes are numbered in the order of their names.

    Args:
        path: The folder, whose name is the data set's.

    Returns:
        The data, (N, 1, H, W) if the images are grey and (N, 3, H, W) if they are RGB, pixels divided by 255.

    Raises:
        FileNotFoundError: If there is no folder for a part.
        ImportError: If Pillow is not installed.
        ValueError: If the parts have different classes, a class is empty, or images are damaged, of another kind,
            or of different shapes.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as name:
        ...     for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        ...         Path(name, folder).mkdir(parents=True)
        ...         Image.new("RGB", (16, 8)).save(f"{name}/{folder}/1.png")
        ...     data = from_images(Path(name))
        >>> data.input_shape, data.classes
        ((3, 8, 16), 2)
    """
    classes = _classes(path / "train")
    found = _classes(path / "test")
    if classes != found:
        differing = sorted(set(classes) ^ set(found))
        raise ValueError(
            f"{path}: got {', '.join(differing[:3])}{' and more' if len(differing) > 3 else ''} in one of train "
            "and test only, expected the same classes in both; add or remove folders"
        )
    train_x, train_y = _part(path / "train", classes)
    test_x, test_y = _part(path / "test", classes)
    return Dataset(path.resolve().name, train_x, train_y, test_x, test_y, len(classes))


def _classes(part: Path) -> list[str]:
    """List the names of the folders in a folder."""
    if not part.is_dir():
        raise FileNotFoundError(
            f"{part}: found no such folder, expected one with a folder for each class; make it"
        )
    names = sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{part}: got no folders, expected one for each class; sort the images into them")
    return names


def _part(part: Path, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Read the images of "train" or "test", and number them by class."""
    files, labels = [], []
    for label, name in enumerate(classes):
        of_class = _files(part / name)
        files += of_class
        labels += [label] * len(of_class)
    first = _pixels(files[0])
    pixels = np.empty((len(files), *first.shape), dtype=np.uint8)
    for index, file in enumerate(files):
        image = _pixels(file)
        if image.shape != first.shape:
            raise ValueError(
                f"{file}: got an image of shape {image.shape}, expected {first.shape} (channels, height, width) "
                f"as in {files[0]}; resize or convert one of them"
            )
        pixels[index] = image
    return scaled(pixels), torch.tensor(labels)


def _files(folder: Path) -> list[Path]:
    """List the image files of a class, by name."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{folder}: got no images, expected png, jpg, jpeg or bmp files; add some to the class")
    return files


def _pixels(path: Path) -> NDArray[np.uint8]:
    """Read an image, (1, H, W) or (3, H, W)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('image files need Pillow: pip install "spectralnorm[data]"') from error
    try:
        with Image.open(path) as image:
            image.load()
            mode, transparent = image.mode, "transparency" in image.info
            known = mode in MODES and not transparent
            pixels = np.asarray(image.convert(MODES[mode])) if known else None
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(
            f"{path}: got a file that Pillow cannot read ({type(error).__name__}), expected a whole image; save "
            "it again"
        ) from error
    if pixels is None:
        raise ValueError(
            f"{path}: got an image of mode {mode}{' with transparency' * transparent}, expected grey or RGB of 8 "
            "bits without transparency; convert it, such as by Pillow's image.convert"
        )
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
