"""Images and labels to train and test with, and the checks they pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Images and labels, split into a training and a test part, checked when made.

    Attributes:
        name: What to call it in tables.
        train_x: Training images, (N, C, H, W), float32 in [0, 1].
        train_y: Their labels, (N,), int64 in [0, classes), each of which occurs.
        test_x: Test images, as `train_x`.
        test_y: Their labels, as `train_y`; classes may be missing.
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
            TypeError: If a part's dtypes are wrong.
            ValueError: If the two parts hold images of different shapes, a part is wrong in itself, or a class has
                no training image.
        """
        _check_part("train", self.train_x, self.train_y, self.classes)
        _check_part("test", self.test_x, self.test_y, self.classes)
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise ValueError(
                f"test_x: got images of shape {tuple(self.test_x.shape[1:])}, "
                f"expected {self.input_shape} as in train_x; resize one of them"
            )
        if self.classes < 2:
            raise ValueError(f"classes: got {self.classes}, expected at least 2; add images of another class")
        _check_every_class_occurs(self.train_y, self.classes)


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


def _check_every_class_occurs(labels: Tensor, classes: int) -> None:
    """Check that every class has a training image; the labels are known to lie in [0, classes)."""
    present = torch.unique(labels)
    if len(present) == classes:
        return
    gaps = (present != torch.arange(len(present), device=present.device)).nonzero()
    first = int(gaps[0]) if len(gaps) else len(present)
    raise ValueError(
        f"train_y: got no image of class {first} ({classes - len(present)} of {classes} classes are empty), "
        f"expected every label in [0, {classes}) to occur; relabel, or pass the right number of classes"
    )
