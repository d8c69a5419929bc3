"""Writing results: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_folder", "in_turn", "locked", "write_atomically"]


def write_atomically(path: str | Path, content: bytes | str, *, lasting: bool = False) -> None:
    """Write a file under a temporary name in its folder, then rename it; an old file is replaced at once.

    What exists and is no regular file, such as /dev/stdout, is written to directly.

    Args:
        path: the file; its folder is made if it is missing.
        content: bytes, or text to encode as UTF-8.
        lasting: whether to wait until the disk has it, so that it outlives a power cut.

    Raises:
        OSError: when the file cannot be written, naming it and its folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/new/result.txt", "done")
        ...     print(Path(folder, "new", "result.txt").read_text())
        done
    """
    path = Path(path)
    raw = content.encode() if isinstance(content, str) else content
    check_folder(path.parent)
    if path.exists() and not path.is_dir() and not path.is_file():
        path.write_bytes(raw)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot write it in {path.parent} ({error.strerror}); give another path") from error


def check_folder(folder: str | Path) -> None:
    """Make a folder if it is missing, and check that it can be written to.

    Args:
        folder: the folder.

    Raises:
        OSError: when it is not a folder, cannot be made, or cannot be written to.

    Example:
        >>> check_folder("/dev/null/results")
        Traceback (most recent call last):
        OSError: /dev/null/results: expected a folder to write to, got "Not a directory"; give another one
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f'{folder}: expected a folder to write to, got "{error.strerror}"; give another one'
        ) from error


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other processes that lock a folder out of it; the lock ends with the process, however that ends.

    Args:
        folder: exists; gets a file `.lock`, which stays.

    Yields:
        Nothing.

    Raises:
        ValueError: when another process holds it.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, locked(folder), locked(folder):
        ...     pass
        Traceback (most recent call last):
        ValueError: ...: another process is writing there; wait for it, or give another folder
    """
    with Path(folder, ".lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{folder}: another process is writing there; wait for it, or give another folder"
                ) from error
            except OSError:  # a file system without locks
                pass
        yield


@contextmanager
def in_turn(folder: str | Path) -> Iterator[None]:
    """Wait until no other process is within this for the same folder, where the file system has locks.

    Args:
        folder: exists; nothing is written to it.

    Yields:
        Nothing.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, in_turn(folder):
        ...     pass
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
