"""Arrays and tensors of the user's own: layouts and dtypes; .npz and .npy files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from messages import check_says, complaint
from spectralnorm.training.data import folder, load
from spectralnorm.training.sources.arrays import from_arrays

X = np.arange(4 * 3 * 6 * 5).reshape(4, 3, 6, 5).astype(np.uint8)  # (N, C, H, W)
Y = np.array([2, 0, 1, 0])
GREY = X[:, :1]


def parts(x: Any = X, y: Any = Y, **changes: Any) -> dict[str, Any]:
    return {"train_x": x, "train_y": y, "test_x": x[:2], "test_y": y[:2]} | changes


def save_npz(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path / "data.npz", **arrays)


def save_npy(path: Path, arrays: dict[str, Any]) -> None:
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


both = pytest.mark.parametrize("save", [save_npz, save_npy])


# -- layouts and dtypes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "channels"),
    [
        (X, 3),
        (X.transpose(0, 2, 3, 1), 3),
        (np.asfortranarray(X), 3),
        (X[:, :, ::-1, ::-1][:, :, ::-1, ::-1], 3),
        (GREY, 1),
        (GREY.transpose(0, 2, 3, 1), 1),
        (GREY[:, 0], 1),
        (X[:, [0, 1, 2, 0, 1]], 5),  # any number of channels, where they come first
    ],
)
@pytest.mark.parametrize("form", [np.asarray, lambda x: torch.tensor(x.copy())])
def test_layouts(x: Any, channels: int, form: Callable[[Any], Any]) -> None:
    data = from_arrays("mine", parts(form(x)))
    assert (data.name, data.classes, data.input_shape) == ("mine", 3, (channels, 6, 5))
    expected = torch.tensor(X).float()[:, [0, 1, 2, 0, 1][:channels]] / 255
    assert torch.equal(data.train_x, expected)
    assert torch.equal(data.test_x, expected[:2])
    assert data.train_x.is_contiguous()
    assert data.train_y.tolist() == Y.tolist()


def test_of_two_axes_that_could_be_channels_the_second_is() -> None:
    assert from_arrays("mine", parts(X[:, :, :, :3])).input_shape == (3, 6, 3)
    assert from_arrays("mine", parts(X[:, :1, :, :1])).input_shape == (1, 6, 1)


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float32, np.float64, np.longdouble, ">f8", torch.float16, torch.bfloat16, torch.float64],
)
def test_floating_point_pixels_stay(dtype: Any) -> None:
    x = X % 5 / 4  # exact in every format
    images = torch.tensor(x).to(dtype).requires_grad_() if isinstance(dtype, torch.dtype) else x.astype(dtype)
    assert torch.equal(from_arrays("mine", parts(images)).train_x, torch.tensor(x).float())


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.uint16, np.int32, ">i8", np.uint64, torch.uint8, torch.int32]
)
def test_labels_of_every_integer_dtype(dtype: Any) -> None:
    y = torch.tensor(Y).to(dtype) if isinstance(dtype, torch.dtype) else Y.astype(dtype)
    data = from_arrays("mine", parts(y=y))
    assert data.train_y.dtype == torch.int64
    assert data.train_y.tolist() == Y.tolist()


def test_what_is_given_is_copied() -> None:
    x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    before = x.clone()
    data = from_arrays("mine", parts(x, y))
    data.train_x.zero_()
    data.train_y.zero_()
    assert torch.equal(x, before)
    assert y.tolist() == [0, 1, 0, 1]


BAD = [
    (parts(X[:, 0, 0]), "train_x: got shape (4, 5), expected (N, C, H, W), (N, H, W, C) or (N, H, W); reshape"),
    (parts(X.astype(np.int32)), "train_x: got pixels of dtype int32, expected uint8, or floating-point in [0, 1]"),
    (parts(test_x=X > 9), "test_x: got pixels of dtype bool"),
    (parts(X.astype(np.float32)), "train_x: got pixels from 0.0 to 255.0, expected [0, 1]"),
    (
        parts(np.where(X > 3, np.nan, 0)),
        "train_x: got pixels from nan to nan, expected [0, 1]; rescale them, remove",
    ),
    (parts(test_x=X[:2] / 255 - 1), "test_x: got pixels from -1.0"),
    (parts(X[:0], Y[:0]), "train_x: got shape (0, 3, 6, 5), expected non-empty"),
    (parts(test_x=X[:2, :, :5]), "test_x: got images of shape (3, 5, 5), expected (3, 6, 5) as in train_x"),
    (parts(y=Y + 0.0), "train_y: got labels of dtype float64, expected integers; convert them"),
    (parts(test_y=Y[:2] > 0), "test_y: got labels of dtype bool"),
    (parts(y=Y[:, None]), "train_y: got shape (4, 1), expected (4,); give one label per image"),
    (parts(test_y=Y), "test_y: got shape (4,), expected (2,)"),
    (parts(y=Y - 1), "train_y: got labels from -1"),
    (parts(y=np.full(4, -7)), "train_y: got labels from -7 to -7, expected [0, 1)"),
    (parts(test_y=Y[:2] + 2), "train_y: got no image of class 3 (2 of 5 classes are empty)"),
    (parts(y=2 * Y), "train_y: got no image of class 1 (2 of 5 classes are empty)"),
]
bad = pytest.mark.parametrize(("arrays", "part"), BAD, ids=[part for _, part in BAD])


@bad
def test_bad_arrays(arrays: dict[str, Any], part: str) -> None:
    check_says(complaint(ValueError, lambda: from_arrays("mine", arrays)), part)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"train_x": X.tolist()}, "train_x: got a list, expected a tensor or a NumPy array; convert it"),
        ({"test_y": None}, "test_y: got a NoneType, expected a tensor or a NumPy array"),
        ({"train_x": torch.zeros(4, 1, 2, 2, dtype=torch.cfloat)}, "train_x: got pixels of dtype torch.complex64"),
        ({"train_y": torch.zeros(4)}, "train_y: got labels of dtype torch.float32"),
        ({"train_y": torch.zeros(4, dtype=torch.bool)}, "train_y: got labels of dtype torch.bool"),
    ],
)
def test_bad_tensors(changes: dict[str, Any], part: str) -> None:
    check_says(complaint(ValueError, lambda: from_arrays("mine", parts(**changes))), part)


# -- files --------------------------------------------------------------------------------------------


@both
def test_files_of_arrays(tmp_path: Path, save: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine"
    path.mkdir()
    save(path, parts())
    data = load(str(path))
    assert (data.name, data.input_shape) == ("mine", (3, 6, 5))
    assert torch.equal(data.train_x, torch.tensor(X).float() / 255)
    monkeypatch.chdir(path)
    assert load(".").name == "mine"


def test_the_npz_file_comes_first(tmp_path: Path) -> None:
    save_npy(tmp_path, parts())
    save_npz(tmp_path, parts(GREY) | {"notes": np.array("more arrays do no harm")})
    (tmp_path / "train").mkdir()
    assert folder(tmp_path).input_shape == (1, 6, 5)
    (tmp_path / "data.npz").unlink()
    assert folder(tmp_path).input_shape == (3, 6, 5)


@both
@bad
def test_bad_arrays_in_files_name_the_folder(
    tmp_path: Path, save: Callable[..., None], arrays: dict[str, Any], part: str
) -> None:
    save(tmp_path, arrays)
    check_says(complaint(ValueError, lambda: folder(tmp_path)), f"{tmp_path}: {part}")


def test_missing_arrays(tmp_path: Path) -> None:
    save_npy(tmp_path, {"test_y": Y})
    message = complaint(FileNotFoundError, lambda: folder(tmp_path))
    assert message == f"{tmp_path}: found no train_x.npy beside the others; save all four arrays"
    save_npz(tmp_path, {"train_x": X, "test_x": X})
    message = complaint(ValueError, lambda: folder(tmp_path))
    check_says(message, "data.npz: got no train_y, test_y, expected train_x, train_y, test_x, test_y; save all")


class Unsafe:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.trace), "w")


@both
def test_pickled_objects_are_refused(tmp_path: Path, save: Callable[..., None]) -> None:
    trace = tmp_path / "trace"
    save(tmp_path, parts(train_x=np.array([Unsafe(trace)], dtype=object)))
    message = complaint(ValueError, lambda: folder(tmp_path))
    check_says(message, ".np", "NumPy cannot read it (Object arrays cannot be loaded when allow_pickle=False)")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["data.npz", "train_x.npy"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    save_npy(tmp_path, parts())
    save_npz(tmp_path, parts())
    for other in {"data.npz"} - {name}:
        (tmp_path / other).unlink()
    path = tmp_path / name
    whole = path.read_bytes()
    for raw in (b"", b"<html>", whole[:20], whole[:-9], whole[:200], (tmp_path / "test_y.npy").read_bytes()[:-1]):
        path.write_bytes(raw)
        message = complaint(ValueError, lambda: folder(tmp_path))
        check_says(message, f"{path}: NumPy cannot read it (", "expected numeric arrays as numpy.save", "again")


def test_an_npz_file_that_holds_one_array(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", X)
    (tmp_path / "data.npy").rename(tmp_path / "data.npz")
    check_says(complaint(ValueError, lambda: folder(tmp_path)), "data.npz: NumPy cannot read it (")


def test_a_folder_without_data(tmp_path: Path) -> None:
    message = complaint(FileNotFoundError, lambda: folder(tmp_path))
    check_says(
        message, f"{tmp_path}: found no data there; put data.npz there, or train_x.npy", "train/<class>/*.png"
    )
