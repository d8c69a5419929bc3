"""What an import string, `package.module:attribute`, names; and calling what it names."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

IMPORT_STRING = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def import_attribute(
    text: str, form: str = "package.module:factory", wanted: str = "a model or a factory"
) -> object:
    """Import what an import string names; the current folder counts, too.

    Args:
        text: Such as "package.module:attribute".
        form: How such a string looks, for errors.
        wanted: What it should name, for errors.

    Returns:
        What it names.

    Raises:
        ValueError: If the module cannot be imported, or has no such attribute.

    Example:
        >>> import_attribute("torch.nn:Identity")
        <class 'torch.nn.modules.linear.Identity'>
    """
    module, _, path = text.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: object = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{text}: cannot import {module} ({error}), expected {form}; check the spelling, and "
            "run where Python finds the module"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{text}: got no {name} in {module}, expected {wanted}; check the spelling")
        found = getattr(found, name)
    return found


def accepts(function: object, *arguments: object, **options: object) -> bool:
    """Say whether something can be called with these arguments, as far as its signature tells.

    Args:
        function: Anything.
        arguments: Positional arguments.
        options: Keyword arguments.

    Returns:
        Whether it has a signature that takes them.

    Example:
        >>> accepts(len), accepts(len, []), accepts(3)
        (False, True, False)
    """
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*arguments, **options)
    except (TypeError, ValueError):  # ValueError: some built-in functions have no signature
        return False
    return True


def call_factory(text: str, factory: Callable[..., Any], *arguments: object, **options: object) -> nn.Module:
    """Call a factory of models.

    Args:
        text: The import string that names it, for errors.
        factory: What to call.
        arguments: Positional arguments.
        options: Keyword arguments.

    Returns:
        The model it returns.

    Raises:
        ValueError: If it returns anything else.
        RuntimeError: If it raises.

    Example:
        >>> call_factory("torch.nn:Identity", nn.Identity)
        Identity()
    """
    try:
        model = factory(*arguments, **options)
    except Exception as error:  # the user's own code: its traceback is of use
        raise RuntimeError(f"{text}: it raised {type(error).__name__}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{text}: it returned {type(model).__name__}, expected a torch.nn.Module; return one")
    return model
