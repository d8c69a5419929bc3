"""Puts `tests/` on the import path, so that every test file can use `cases` and `reference`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers with thread pools would fight for the cores

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors, but for the note on speed that PyTorch gives once on an even kernel with "same"."""
    config.addinivalue_line("filterwarnings", "ignore:Using padding='same' with even kernel:UserWarning")
