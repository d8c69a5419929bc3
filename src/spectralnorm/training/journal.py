"""What a run writes down: a line of JSON for each record, and TensorBoard's events where asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spectralnorm.files import write_atomically

__all__ = ["Journal", "records"]


class Journal:
    """The log of one run.

    Opened at a step, as a resumed run does, it drops what was written of later steps: those are done again.

    Args:
        folder: of the run; the log is its `log.jsonl`.
        step: steps that are done.
        tensorboard: whether to write events too, in the subfolder `tensorboard`.

    Raises:
        ImportError: when TensorBoard is asked for and not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     journal = Journal(Path(folder), 0)
        ...     journal.write({"step": 1, "loss": 2.5})
        ...     journal.close()
        ...     records(Path(folder) / "log.jsonl")
        [{'step': 1, 'loss': 2.5}]
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        writer = _summary_writer() if tensorboard else None
        path = folder / "log.jsonl"
        kept = [record for record in records(path) if record["step"] <= step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._events = None if writer is None else writer(str(folder / "tensorboard"), purge_step=step + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Add a record, with its step; it is in the file when this returns."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._events.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('--tensorboard needs TensorBoard: pip install "spectralnorm[train]"') from error
    return SummaryWriter


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a log; none where there is no file, and without a last line that was cut off.

    Args:
        path: of a log.jsonl.

    Returns:
        Dictionaries, in order.

    Raises:
        ValueError: when a line before the last is no JSON.
    """
    found: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is no JSON ({error}); repair or delete it") from error
    return found
