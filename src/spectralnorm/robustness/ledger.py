"""The file of an evaluation under way: read at the start, written after each batch, so that none is done twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from spectralnorm.files import check_folder, in_turn

from .evaluation import Evaluation, in_order
from .record import Record, Setup


class Ledger:
    """The batches that are done, in memory and in a file.

    Args:
        path: The file; None for none.
        setup: What is evaluated; a file of anything else is refused.
        part: Number of the process that keeps a file of its own beside it until all are done; None alone.
        data: Fingerprint of the data, if they are a pair.

    Example:
        >>> Ledger(None, Setup("", (), {}, (), (0.0, 1.0), 0, 0, {})).before()
        {}
    """

    def __init__(self, path: str | Path | None, setup: Setup, part: int | None = None, data: str = "") -> None:
        self.path = None if path is None else Path(path)
        self.setup, self.part, self.data = setup, part, data
        self._own: dict[int, Record] = {}
        self.seen: dict[int, str] = {}  # fingerprints of the batches, of other shards' too

    def before(self) -> dict[int, Record]:
        """The batches that were done before, by number.

        Returns:
            Those of the file, and of the parts that an interrupted run has left beside it.

        Raises:
            OSError: If no file can be written there.
            ValueError: If a file is damaged, or of another evaluation.
        """
        found: dict[int, Record] = {}
        if self.path is None:
            return found
        if self.path.is_dir():
            raise OSError(f"resume: got the folder {self.path}, expected a file; add a name to it")
        check_folder(self.path.parent)
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
            own = in_order(self.setup, self._own.values(), data=self.data)
            if self.part is None:
                self._share(self.path, own)
            else:
                own.save(self._part(self.part))

    def close(self, whole: Evaluation) -> None:
        """Write the whole evaluation, and remove the parts."""
        if self.path is not None:
            self._share(self.path, whole)
            for path in self._parts():
                path.unlink()

    def _share(self, path: Path, found: Evaluation) -> None:
        """Write to a file, beside what shards that run at the same time have written there."""
        with in_turn(path.parent):
            others = self._checked(path) if path.is_file() else Evaluation(self.setup, ())
            if others.data and self.data and others.data != self.data:
                raise ValueError(
                    f"{path}: holds an evaluation of other data or batch_size, expected the same; give another "
                    "file"
                )
            records = {record.index: record for record in (*others.records, *found.records)}
            self._check_others(path, others.records, found.batches)
            in_order(self.setup, records.values(), found.batches, self.data).save(path)

    def _check_others(self, path: Path, others: Iterable[Record], total: int | None) -> None:
        """Check that what other shards wrote is of this data, once all of it has been seen."""
        for record in others:
            if total is not None and self.seen.get(record.index) != record.data:
                raise ValueError(
                    f"{path}: holds a batch {record.index} of other data, expected the same; give another file"
                )

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
