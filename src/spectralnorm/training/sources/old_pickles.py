"""Python 2's pickles of NumPy arrays, read without running any code that they name.

A pickle is a program: it may call whatever it finds by name. Here it finds the three names that an array needs,
and even for these it gets stand-ins that only take notes, so that what it hands over is data.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE = {"u1", "uint8"}


class _DType:
    """Stands in for `numpy.dtype`: notes the code, ignores byte order and the like."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, _: object) -> None: ...


class PickledArray:
    """Stands in for `numpy.ndarray`: notes what a pickle says of an array.

    Attributes:
        state: (version of the format, shape, dtype, whether in Fortran's order, the elements' bytes).
    """

    state: Any = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_bytes_array(self) -> NDArray[np.uint8]:
        """Make the array, checked.

        Returns:
            The array, of unsigned bytes.

        Raises:
            ValueError: If what was noted is no such array.
        """
        try:
            _, shape, dtype, fortran, data = self.state
            if dtype.code not in BYTE:
                raise ValueError(f"dtype {dtype.code}")
            return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"an array that is damaged or of another kind ({error})") from error


class _Forbidden(pickle.UnpicklingError):
    """A pickle names something that is no part of an array."""


class _ArraysOnly(pickle.Unpickler):  # noqa: S301 - finds stand-ins only
    def find_class(self, module: str, name: str) -> Any:
        """Look up a name: the only way by which a pickle comes to anything that can be called."""
        found = ALLOWED.get((module, name))
        if found is None:
            raise _Forbidden(f"{module}.{name}")
        return found


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,  # as NumPy 2 calls it
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _DType,
}


def read_pickle(raw: bytes, path: Path, source: str) -> object:
    r"""Read a pickle of plain Python objects and NumPy arrays.

    Args:
        raw: The pickle. Strings of Python 2 are read as bytes.
        path: The file it comes from, for errors.
        source: Where to get the right file, for errors.

    Returns:
        What it holds, with a `PickledArray` for each array.

    Raises:
        ValueError: If it is damaged, or names anything else. Nothing has been run then.

    Example:
        >>> read_pickle(b"(dp0\nS'a'\nI1\ns.", Path("file"), "https://example.org")
        {b'a': 1}
        >>> read_pickle(b"cos\nsystem\n(S'ls'\ntR.", Path("file"), "https://example.org")
        Traceback (most recent call last):
        ValueError: file: got a pickle that names os.system, which could run code, ...
    """
    try:
        return _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
    except _Forbidden as error:
        raise ValueError(
            f"{path}: got a pickle that names {error}, which could run code, expected one of NumPy arrays only; "
            f"it was not run: get the right file from {source}"
        ) from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise ValueError(
            f"{path}: got a damaged pickle ({type(error).__name__}), expected a whole one; get it from {source}"
        ) from error
