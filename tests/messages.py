"""What every error for bad input must be: of one exact type, on one line, with the parts that help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def complaint(error: type[Exception], call: Callable[[], Any]) -> str:
    """The message of the error that the call raises: exactly this type, on one line, not too long."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def check_says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is missing from: {message}"
