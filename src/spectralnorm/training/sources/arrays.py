"""From arrays and tensors, as users hold images and labels, to a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..dataset import Dataset

PARTS = ("train_x", "train_y", "test_x", "test_y")


def scaled(pixels: NDArray[np.uint8]) -> Tensor:
    """Turn bytes into brightness.

    Args:
        pixels: In [0, 255], of any shape.

    Returns:
        A copy, float32 in [0, 1].

    Example:
        >>> scaled(np.array([0, 51, 255], dtype=np.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    return torch.from_numpy(np.array(pixels, dtype=np.float32, order="C")).div_(255)


def from_arrays(name: str, arrays: Mapping[str, Any]) -> Dataset:
    """Make a data set of four arrays or tensors, which are copied.

    Images are (N, C, H, W), or (N, H, W, C) where C is 1 or 3, or grey (N, H, W). Where both the second and the
    last axis could be channels, the second is. Pixels are uint8, which are divided by 255, or floating-point in
    [0, 1]. Labels are integers, (N,). There are as many classes as the largest label says.

    Args:
        name: What to call the data.
        arrays: Images and labels under the keys "train_x", "train_y", "test_x" and "test_y".

    Returns:
        The data.

    Raises:
        ValueError: If one of them is not as described, or `Dataset` finds them wrong.

    Example:
        >>> x, y = np.zeros((4, 8, 8, 3), dtype=np.uint8), np.array([0, 1, 2, 0])
        >>> data = from_arrays("black", {"train_x": x, "train_y": y, "test_x": x, "test_y": y})
        >>> data.input_shape, data.classes
        ((3, 8, 8), 3)
    """
    train_x, test_x = (_channels_first(part, _pixels(part, arrays[part])) for part in PARTS[::2])
    train_y, test_y = (_labels(part, arrays[part]) for part in PARTS[1::2])
    labels = torch.cat([train_y.flatten(), test_y.flatten()])
    classes = max(int(labels.max()) + 1, 1) if len(labels) else 1
    return Dataset(name, train_x, train_y, test_x, test_y, classes)


def _pixels(part: str, values: Any) -> Tensor:
    """Copy images to float32."""
    kind = _kind(part, values)
    if kind not in {"uint8", "float"}:
        raise ValueError(
            f"{part}: got pixels of dtype {values.dtype}, expected uint8, or floating-point in [0, 1]; convert "
            "them"
        )
    if isinstance(values, Tensor):
        pixels = values.detach().to("cpu", torch.float32, copy=True)
    else:
        pixels = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    return pixels.div_(255) if kind == "uint8" else pixels


def _labels(part: str, values: Any) -> Tensor:
    """Copy labels to int64."""
    if _kind(part, values) not in {"uint8", "int"}:
        raise ValueError(f"{part}: got labels of dtype {values.dtype}, expected integers; convert them")
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.int64, copy=True)
    return torch.from_numpy(np.array(values, dtype=np.int64, order="C"))


def _kind(part: str, values: Any) -> str:
    """Return "uint8", "int" or "float", or "other" for dtypes that are none of these."""
    if isinstance(values, Tensor):
        dtype = values.dtype
        whole = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
        is_byte, is_float = dtype == torch.uint8, dtype.is_floating_point
    elif isinstance(values, np.ndarray):
        whole, is_float, is_byte = values.dtype.kind in "iu", values.dtype.kind == "f", values.dtype == np.uint8
    else:
        raise ValueError(f"{part}: got a {type(values).__name__}, expected a tensor or a NumPy array; convert it")
    return "uint8" if is_byte else "int" if whole else "float" if is_float else "other"


def _channels_first(part: str, x: Tensor) -> Tensor:
    """Return images as (N, C, H, W)."""
    if x.ndim == 3:  # grey: (N, H, W)
        return x.unsqueeze(1)
    if x.ndim != 4:
        raise ValueError(
            f"{part}: got shape {tuple(x.shape)}, expected (N, C, H, W), (N, H, W, C) or (N, H, W); reshape "
            "the images"
        )
    if x.shape[3] in {1, 3} and x.shape[1] not in {1, 3}:
        return x.permute(0, 3, 1, 2).contiguous()
    return x
