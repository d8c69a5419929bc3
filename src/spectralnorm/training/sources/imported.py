"""Data from a function of the user's own, named by an import string."""

from __future__ import annotations

from ..dataset import Dataset
from ..imports import accepts, import_attribute
from .arrays import PARTS, from_arrays


def imported(text: str) -> Dataset:
    """Import a function and call it; modules in the current folder are found, too.

    Args:
        text: "package.module:function". The function needs no argument, and returns a `Dataset`, or the tuple
            (train_x, train_y, test_x, test_y) of tensors or arrays in the layouts of `from_arrays`.

    Returns:
        The data; what a tuple holds gets the import string as its name.

    Raises:
        RuntimeError: If the function raises.
        ValueError: If it cannot be found or called, or returns something else.

    Example:
        >>> imported("spectralnorm.training.data:digits").name
        'digits'
    """
    function = import_attribute(text, "package.module:function", "a function that returns data")
    if not callable(function) or not accepts(function):
        raise ValueError(
            f"{text}: got a {type(function).__name__}, expected a function that needs no argument and returns a "
            "Dataset or a tuple; write such a function"
        )
    try:
        found = function()
    except Exception as error:  # the user's own code: its traceback is of use
        raise RuntimeError(f"{text}: it raised {type(error).__name__}") from error
    if isinstance(found, Dataset):
        return found
    if not isinstance(found, tuple) or len(found) != len(PARTS):
        got = f"a tuple of {len(found)}" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise ValueError(
            f"{text}: it returned {got}, expected a Dataset, or the tuple ({', '.join(PARTS)}); return one"
        )
    try:
        return from_arrays(text, dict(zip(PARTS, found, strict=True)))
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error
