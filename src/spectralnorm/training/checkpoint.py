"""Checkpoints of a run: whole or not at all, and loaded without executing anything."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from spectralnorm.files import write_atomically

__all__ = ["VERSION", "load_checkpoint", "save_checkpoint"]

VERSION = 1  # of the format


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; the one before stays until this one is whole.

    Args:
        path: the file.
        content: tensors, numbers, text, lists and dictionaries.

    Raises:
        OSError: when the disk is full or the folder cannot be written to, naming both.
    """
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **content}, buffer)
    write_atomically(path, buffer.getvalue(), lasting=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, on the CPU.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        ValueError: when the file is damaged, or is something else.
    """
    raw = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as parts:  # torch.load does not read the checksums
            damaged = parts.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} has another checksum than when it was written")
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: got a damaged file ({reason}), expected a checkpoint of "
            "spectralnorm train; delete it to start again"
        ) from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(
            f"{path}: expected a checkpoint of spectralnorm train, version {VERSION}; it is something else, or of "
            "another release. Give another --out"
        )
    return content
