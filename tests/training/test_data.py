"""The checks of a data set, scikit-learn's digits, and finding data by name."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from messages import check_says, complaint
from spectralnorm.training import data as names
from spectralnorm.training.data import Dataset, digits, load


def noise(**changes: object) -> Dataset:
    x, y = torch.rand(6, 1, 4, 5), torch.arange(6) % 3
    parts: dict[str, object] = {"train_x": x, "train_y": y, "test_x": x, "test_y": y, "classes": 3}
    return Dataset(name="noise", **(parts | changes))  # type: ignore[arg-type]


def test_digits_are_scaled_stratified_and_whole() -> None:
    data = digits()
    assert data.train_x.shape == (1397, 1, 8, 8)
    assert data.test_x.shape == (400, 1, 8, 8)
    assert data.input_shape == (1, 8, 8)
    assert data.train_x.dtype == torch.float32
    assert data.train_y.dtype == torch.int64
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)
    shares = [torch.bincount(y, minlength=10) / len(y) for y in (data.train_y, data.test_y)]
    torch.testing.assert_close(shares[0], shares[1], atol=0.003, rtol=0)


def test_digits_split_follows_the_seed() -> None:
    assert torch.equal(digits(3).test_x, digits(3).test_x)
    assert not torch.equal(digits(3).test_x, digits(4).test_x)


def test_digits_without_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "spectralnorm\[data\]"'):
        digits()


@pytest.mark.parametrize("name", ["cifar", "", "no/such/folder", "no-such-module:function", "data.npz"])
def test_unknown_name_lists_the_known(name: str) -> None:
    message = complaint(ValueError, lambda: load(name))
    check_says(
        message, f"got {name!r}, expected one of digits, fashion-mnist, cifar10, cifar100, svhn, or a folder"
    )
    check_says(message, "or package.module:function; choose one of these")


def test_names_lead_to_their_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in ("digits", "fashion_mnist", "cifar10", "cifar100", "svhn", "folder", "imported"):
        monkeypatch.setattr(names, reader, lambda argument, reader=reader: (reader, argument))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "svhn").mkdir()  # the name comes first
    assert load("digits", "elsewhere", 3) == ("digits", 3)
    assert load("fashion-mnist", "elsewhere") == ("fashion_mnist", "elsewhere")
    for name in ("cifar10", "cifar100", "svhn"):
        assert load(name) == (name, None)
        assert load(name, "elsewhere") == (name, "elsewhere")
    assert load("./svhn") == ("folder", "./svhn")
    assert load(str(tmp_path)) == ("folder", str(tmp_path))
    assert load("package.module:Class.method") == ("imported", "package.module:Class.method")


@pytest.mark.parametrize("name", [".", "package.module:function"])
def test_data_dir_goes_with_a_named_set_only(name: str) -> None:
    message = complaint(ValueError, lambda: load(name, "elsewhere"))
    assert message == f"data_dir: got elsewhere with {name}, expected it with a named set only; leave it out"


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        (
            {"train_x": torch.rand(6, 1, 4, 5).double()},
            TypeError,
            "train_x.*torch.float64.*expected torch.float32",
        ),
        ({"test_y": torch.zeros(6)}, TypeError, "test_y.*expected torch.float32 and torch.int64"),
        ({"train_x": torch.rand(6, 20)}, ValueError, r"train_x: got shape \(6, 20\)"),
        ({"test_x": torch.rand(0, 1, 4, 5)}, ValueError, "test_x: .*non-empty"),
        ({"test_x": torch.rand(6, 1, 4, 4)}, ValueError, r"test_x: .*\(1, 4, 4\).*expected \(1, 4, 5\)"),
        ({"train_y": torch.zeros(5, dtype=torch.int64)}, ValueError, "one label per image"),
        (
            {"train_x": torch.full((6, 1, 4, 5), torch.nan)},
            ValueError,
            "train_x: got pixels from nan.*remove NaN",
        ),
        ({"train_x": torch.full((6, 1, 4, 5), 255.0)}, ValueError, "train_x: got pixels from 255"),
        ({"train_y": torch.full((6,), -1)}, ValueError, "train_y: got labels from -1"),
        ({"classes": 2}, ValueError, r"train_y: got labels from 0 to 2, expected \[0, 2\)"),
        ({"classes": 4}, ValueError, r"train_y: got no image of class 3 \(1 of 4 classes are empty\)"),
        (
            {"train_y": torch.tensor([5, 1, 1, 4, 1, 4]), "classes": 10**9},
            ValueError,
            r"train_y: got no image of class 0 \(999999997 of 1000000000 classes are empty\), expected every",
        ),
        ({"train_y": torch.tensor([0, 2, 0, 2, 0, 0])}, ValueError, "no image of class 1 .*; relabel, or pass"),
    ],
)
def test_bad_dataset(changes: dict[str, object], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        noise(**changes)


def test_the_test_part_may_lack_classes() -> None:
    assert noise(test_y=torch.zeros(6, dtype=torch.int64)).classes == 3


def test_dataset_is_frozen_and_gives_the_shape() -> None:
    data = noise()
    assert data.input_shape == (1, 4, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]
