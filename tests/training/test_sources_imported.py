"""Data from functions of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from messages import check_says, complaint
from spectralnorm.training.data import Dataset, imported, load

SOURCE = """
import numpy as np, torch
from spectralnorm.training.data import Dataset
x, y = np.zeros((4, 6, 5), dtype=np.uint8), np.array([0, 1, 0, 1])
number = 3
def arrays(size=4): return x[:size], y[:size], x, y
def tensors(): return tuple(map(torch.tensor, arrays()))
def whole():
    pixels, labels = torch.zeros(4, 1, 2, 2), torch.tensor(y)
    return Dataset("own name", pixels, labels, pixels, labels, 2)
def needs(path): return arrays()
def nothing(): return None
def three(): return x, y, x
def listed(): return list(arrays())
def failing(): raise KeyError("deep inside")
def empty(): return x, 2 * y, x, y
class Source:
    @staticmethod
    def load(): return arrays()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "data_test_functions.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "data_test_functions"
    sys.modules.pop("data_test_functions", None)


@pytest.mark.parametrize("name", ["arrays", "tensors", "Source.load"])
def test_functions_that_return_arrays(module: str, name: str) -> None:
    data = load(f"{module}:{name}")
    assert (data.name, data.classes, data.input_shape) == (f"{module}:{name}", 2, (1, 6, 5))


def test_a_function_that_returns_a_dataset(module: str) -> None:
    data = imported(f"{module}:whole")
    assert isinstance(data, Dataset)
    assert data.name == "own name"


@pytest.mark.parametrize(
    ("name", "error", "part"),
    [
        (
            "missing",
            ValueError,
            "got no missing in data_test_functions, expected a function that returns data; check",
        ),
        ("number", ValueError, "got a int, expected a function that needs no argument and returns a Dataset or a"),
        ("needs", ValueError, "got a function, expected a function that needs no argument"),
        (
            "nothing",
            ValueError,
            "it returned a NoneType, expected a Dataset, or the tuple (train_x, train_y, test_x",
        ),
        ("three", ValueError, "it returned a tuple of 3, expected"),
        ("listed", ValueError, "it returned a list, expected"),
        ("failing", RuntimeError, "it raised KeyError"),
        ("empty", ValueError, "train_y: got no image of class 1 (1 of 3 classes are empty)"),
    ],
)
def test_bad_functions(module: str, name: str, error: type[Exception], part: str) -> None:
    check_says(complaint(error, lambda: load(f"{module}:{name}")), f"{module}:{name}: {part}")


def test_a_module_that_cannot_be_imported() -> None:
    message = complaint(ValueError, lambda: load("no_such_module:function"))
    check_says(
        message, "no_such_module:function: cannot import no_such_module (", "expected package.module:function"
    )
