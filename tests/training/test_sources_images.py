"""Folders of images, one a class, good and bad."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from messages import check_says, complaint
from spectralnorm.training.data import load

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4  # (H, W, C)


def save(path: Path, pixels: np.ndarray = RGB, mode: str | None = None, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A short path, as messages may name two files."""
    path = tmp_path / "pets"
    for part in ("train", "test"):
        save(path / part / "dog" / "b.png", RGB)
        save(path / part / "cat" / "a.png", RGB[::-1])
    save(path / "train" / "dog" / "a.bmp", RGB // 2)
    return path


def test_images_by_class(folder: Path) -> None:
    data = load(str(folder))
    assert (data.name, data.classes, data.input_shape) == ("pets", 2, (3, 4, 5))
    assert data.train_y.tolist() == [0, 1, 1]  # cat, dog
    assert data.test_y.tolist() == [0, 1]
    expected = np.stack([RGB[::-1], RGB // 2, RGB]).transpose(0, 3, 1, 2)
    assert torch.equal(data.train_x, torch.from_numpy(expected).float() / 255)


def test_grey_images(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "0" / "a.png", RGB[..., 0])
        save(tmp_path / part / "1" / "a.png", RGB[..., 0] // 128 * 255, mode="1")
    data = load(str(tmp_path))
    assert data.input_shape == (1, 4, 5)
    assert torch.equal(data.train_x[0, 0], torch.from_numpy(RGB[..., 0]).float() / 255)
    assert torch.equal(data.train_x[1, 0], torch.from_numpy(RGB[..., 0] // 128).float())


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.PNG", "a.bmp"])
def test_formats(folder: Path, name: str) -> None:
    shutil.rmtree(folder / "test" / "cat")
    save(folder / "test" / "cat" / name)
    assert (load(str(folder)).test_x[0] - torch.tensor(RGB / 255).permute(2, 0, 1)).abs().max() < 0.2


def test_palettes_are_read_as_rgb(folder: Path) -> None:
    save(folder / "test" / "cat" / "a.png", np.full((4, 5, 3), (255, 0, 51), dtype=np.uint8), mode="P")
    assert load(str(folder)).test_x[0].amax((1, 2)).tolist() == pytest.approx([1, 0, 0.2], abs=0.03)


def test_what_else_lies_there_is_left_out(folder: Path) -> None:
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / "._a.png").write_text("no image")
    (folder / "train" / ".thumbnails").mkdir()
    (folder / "train" / "labels.csv").write_text("no folder")
    save(folder / "train" / "cat" / "deeper" / "a.png")
    assert load(str(folder)).train_y.tolist() == [0, 1, 1]


def test_missing_folders(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    message = complaint(FileNotFoundError, lambda: load(str(folder)))
    check_says(
        message, f"{folder / 'test'}: found no such folder, expected one with a folder for each class; make"
    )
    (folder / "test").mkdir()
    message = complaint(ValueError, lambda: load(str(folder)))
    check_says(
        message, f"{folder / 'test'}: got no folders, expected one for each class; sort the images into them"
    )


def test_classes_of_one_part_only(folder: Path) -> None:
    for number in range(5):
        save(folder / "test" / f"pet{number}" / "a.png")
    message = complaint(ValueError, lambda: load(str(folder)))
    check_says(
        message, f"{folder}: got pet0, pet1, pet2 and more in one of train and test only, expected the same"
    )
    for number in range(5):
        shutil.rmtree(folder / "test" / f"pet{number}")
    (folder / "train" / "dog").rename(folder / "train" / "Dog")
    check_says(complaint(ValueError, lambda: load(str(folder))), "got Dog, dog in one of train and test only")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_without_images(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part / "cat")
    (folder / part / "cat").mkdir()
    (folder / part / "cat" / "a.tiff").write_bytes(b"")
    message = complaint(ValueError, lambda: load(str(folder)))
    check_says(message, f"{folder / part / 'cat'}: got no images, expected png, jpg, jpeg or bmp files; add some")


@pytest.mark.parametrize(
    ("pixels", "shape"), [(RGB[1:], "(3, 3, 5)"), (RGB[:, 1:], "(3, 4, 4)"), (RGB[..., 0], "(1, 4, 5)")]
)
def test_images_of_different_shapes_name_two_files(folder: Path, pixels: np.ndarray, shape: str) -> None:
    odd, first = folder / "train" / "dog" / "c.png", folder / "train" / "cat" / "a.png"
    save(odd, pixels)
    message = complaint(ValueError, lambda: load(str(folder)))
    check_says(
        message, f"{odd}: got an image of shape {shape}, expected (3, 4, 5) (channels, height, width) as in"
    )
    check_says(message, f"{first}; resize or convert")


def test_parts_of_different_shapes(folder: Path) -> None:
    for name in ("cat/a.png", "dog/b.png"):
        save(folder / "test" / name, RGB[1:])
    check_says(complaint(ValueError, lambda: load(str(folder))), "test_x: got images of shape (3, 3, 5)")


def test_damaged_images(folder: Path) -> None:
    path = folder / "test" / "dog" / "b.png"
    whole = path.read_bytes()
    for raw in (b"", b"<html>", whole[:50], whole[:20], whole[:45] + bytes(9) + whole[54:]):
        path.write_bytes(raw)
        message = complaint(ValueError, lambda: load(str(folder)))
        check_says(
            message, f"{path}: got a file that Pillow cannot read (", "expected a whole image; save it again"
        )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "CMYK"])
def test_modes_that_would_lose_something(folder: Path, mode: str) -> None:
    path = folder / "train" / "cat" / ("a.jpg" if mode == "CMYK" else "b.png")
    if mode == "I;16":
        save(path, RGB[..., 0].astype(np.uint16))
    else:
        save(path, mode=mode)
    message = complaint(ValueError, lambda: load(str(folder)))
    check_says(
        message, f"{path}: got an image of mode {mode}, expected grey or RGB of 8 bits without transparency"
    )


def test_transparent_colours(folder: Path) -> None:
    save(folder / "train" / "cat" / "b.png", mode="P", transparency=0)
    check_says(
        complaint(ValueError, lambda: load(str(folder))), "got an image of mode P with transparency, expected"
    )


def test_without_pillow_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = complaint(ImportError, lambda: load(str(folder)))
    assert message == 'image files need Pillow: pip install "spectralnorm[data]"'
