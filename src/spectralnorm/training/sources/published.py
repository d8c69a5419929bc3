"""Files as their authors publish them: where they are looked for, and that they are the right ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

DEFAULT_FOLDER = Path("data")


def folder_of(data_dir: str | Path | None) -> Path:
    """Say where to look for the files of a data set.

    Args:
        data_dir: The folder that the user gave, if any.

    Returns:
        That folder, or ./data.

    Example:
        >>> folder_of(None) == Path("data")
        True
    """
    return DEFAULT_FOLDER if data_dir is None else Path(data_dir)


def read_verified(path: Path, md5: str, source: str) -> bytes:
    """Read a file whose checksum is known.

    Args:
        path: The file.
        md5: Its checksum as published, 32 hexadecimal digits. It tells a damaged file, not a forged one.
        source: Where to get the right file.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is another one, or damaged.

    Example:
        >>> read_verified(Path("no-such-folder", "train"), "0" * 32, "https://example.org")
        Traceback (most recent call last):
        FileNotFoundError: data_dir: found no train in no-such-folder; get it from https://example.org
    """
    if not path.is_file():
        raise FileNotFoundError(f"data_dir: found no {path.name} in {path.parent}; get it from {source}")
    raw = path.read_bytes()
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(
            f"{path}: got a file of {len(raw)} bytes with md5 {found}, expected md5 {md5}; it is truncated, "
            f"damaged or another one: get it from {source}"
        )
    return raw
