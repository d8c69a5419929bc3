"""The file of an evaluation under way: read at the start, written after each batch, so that none is done twice."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from spectralnorm.files import write_atomically

from .evaluation import Evaluation, in_order
from .record import Record, Setup


class Ledger:
    """The batches that are done, in memory and in a file.

    Args:
        path: The file; None for none.
        setup: What is evaluated; a file of anything else is refused.
        part: Number of the process that keeps a file of its own beside it until all are done; None alone.

    Example:
        >>> Ledger(None, Setup("", (), {}, (), (0.0, 1.0), 0, 0, {})).before()
        {}
    """

    def __init__(self, path: str | Path | None, setup: Setup, part: int | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.setup, self.part = setup, part
        self._own: dict[int, Record] = {}

    def before(self) -> dict[int, Record]:
        """The batches that were done before, by number.

        Returns:
            Those of the file, and of the parts that an interrupted run has left beside it.

        Raises:
            ValueError: If a file is damaged, or of another evaluation.
        """
        found: dict[int, Record] = {}
        if self.path is None:
            return found
        for path in [self.path, *self._parts()]:
            if path.is_file():
                found |= {record.index: record for record in self._checked(path).records}
        return found

    def keep(self, done: dict[int, Record]) -> None:
        """Take over what was done before."""
        if self.part is None:
            self._own |= done

    def add(self, record: Record) -> None:
        """Write down one more batch."""
        self._own[record.index] = record
        if self.path is not None:
            path = self.path if self.part is None else self._part(self.part)
            self._write(path, in_order(self.setup, self._own.values()))

    def close(self, whole: Evaluation) -> None:
        """Write the whole evaluation, and remove the parts."""
        if self.path is not None:
            self._write(self.path, whole)
            for path in self._parts():
                path.unlink()

    def _write(self, path: Path, found: Evaluation) -> None:
        write_atomically(path, json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n")

    def _part(self, part: int) -> Path:
        assert self.path is not None  # noqa: S101
        return self.path.with_name(f"{self.path.name}.part{part}")

    def _parts(self) -> list[Path]:
        assert self.path is not None  # noqa: S101
        names = self.path.name + ".part"
        beside = self.path.parent.iterdir() if self.path.parent.is_dir() else iter(())
        return sorted(path for path in beside if path.name.startswith(names) and path.name[len(names) :].isdigit())

    def _checked(self, path: Path) -> Evaluation:
        found = Evaluation.load(path)
        names = [
            each.name
            for each in fields(Setup)
            if getattr(found.setup, each.name) != getattr(self.setup, each.name)
        ]
        if names:
            raise ValueError(
                f"{path}: holds another evaluation ({', '.join(names)} not the same); evaluate the same again, or "
                "give another file"
            )
        return found
