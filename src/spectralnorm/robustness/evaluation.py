"""The result of an evaluation: accuracies with their intervals, alarms, and the batches they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectralnorm.files import write_atomically

from .chance import wilson
from .evaluation_table import rich_page, rich_table, text_table
from .masking import Alarm, alarms
from .record import Record, Setup
from .schema import SCHEMA, read, records_of, setup_of, setup_to_dict, to_dict

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

WORST = "worst case"


@dataclass(frozen=True)
class Accuracy:
    """How many examples are classified right.

    Attributes:
        right: How many.
        examples: Of how many.
    """

    right: int
    examples: int

    @property
    def share(self) -> float:
        """The accuracy, in [0, 1]."""
        return self.right / self.examples if self.examples else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Its Wilson interval, 95 %, for examples drawn at random."""
        return wilson(self.right, self.examples)


@dataclass(frozen=True)
class AttackResult(Accuracy):
    """Examples that are classified right clean and under one attack of one size.

    Attributes:
        right: How many.
        examples: Of how many, those included that are wrong without attack.
        attack: Name of the attack, or "worst case": of all of them, chosen for each example.
        norm: "linf" or "l2".
        eps: Largest perturbation of an example, in the units of the inputs.
        seconds: Time it took, summed over processes.
        broken_by: Of an ensemble: how many examples each of its parts broke, in their order.
    """

    attack: str
    norm: str
    eps: float
    seconds: float
    broken_by: dict[str, int]

    @property
    def robust_accuracy(self) -> float:
        """The accuracy under this attack, in [0, 1]."""
        return self.share


@dataclass(frozen=True)
class ControlResult(Accuracy):
    """Examples that are classified right after a change that no adversary made.

    Attributes:
        right: How many.
        examples: Of how many.
        name: "noise", "blur" or "contrast".
        severity: From 1 to 5.
    """

    name: str
    severity: int


@dataclass(frozen=True)
class Evaluation:
    """Accuracy with and without attacks.

    Attributes:
        setup: What was evaluated, and how.
        records: The batches, in order, with what each example did.
        batches: How many batches the data has; None where that is not known yet.
        data: Fingerprint of inputs and labels that were given as a pair, and of the size they are cut to; "" where
            they came as batches, or where an older version wrote the file.

    Example:
        >>> import torch, spectralnorm as sn
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 2
        >>> found = sn.evaluate(torch.nn.Linear(4, 2), (x, y), ["fgsm"], {"l2": [0.1]})
        >>> found.examples, len(found.worst_case), found.complete
        (8, 1, True)
    """

    setup: Setup
    records: tuple[Record, ...]
    batches: int | None = None
    data: str = field(default="", compare=False)

    @property
    def examples(self) -> int:
        """How many examples were tried."""
        return sum(len(record.right) for record in self.records)

    @property
    def clean(self) -> Accuracy:
        """How many are classified right without attack."""
        return Accuracy(sum(record.right.count("1") for record in self.records), self.examples)

    @property
    def clean_accuracy(self) -> float:
        """The share that is classified right without attack."""
        return self.clean.share

    @property
    def complete(self) -> bool:
        """Whether all batches of the data are there, which one shard alone does not have."""
        return self.batches == len(self.records)

    @property
    def seconds(self) -> float:
        """Time the attacks took, summed over batches and processes."""
        return sum(sum(record.seconds) for record in self.records)

    @cached_property
    def results(self) -> list[AttackResult]:
        """One entry per norm, eps and attack."""
        return [
            AttackResult(
                right=sum(record.held[i].count("1") for record in self.records),
                examples=self.examples,
                attack=at.attack,
                norm=at.norm,
                eps=at.eps,
                seconds=sum(record.seconds[i] for record in self.records),
                broken_by=self._broken_by(i),
            )
            for i, at in enumerate(self.setup.conditions)
        ]

    @cached_property
    def worst_case(self) -> list[AttackResult]:
        """One entry per norm and eps: an example counts only if it withstands every attack."""
        found: dict[tuple[str, float], list[int]] = {}
        for i, at in enumerate(self.setup.conditions):
            found.setdefault((at.norm, at.eps), []).append(i)
        return [
            AttackResult(self._withstood(rows), self.examples, WORST, norm, eps, self._seconds(rows), {})
            for (norm, eps), rows in found.items()
        ]

    @cached_property
    def controls(self) -> list[ControlResult]:
        """One entry per change that no adversary made, and severity."""
        return [
            ControlResult(sum(record.controls[i].count("1") for record in self.records), self.examples, *control)
            for i, control in enumerate(self.setup.controls)
        ]

    @cached_property
    def alarms(self) -> tuple[Alarm, ...]:
        """Signs that gradients are masked, so that the accuracies under attack say little."""
        return alarms(self.setup, self.records)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as dictionaries, lists, strings and numbers, ready for JSON (docs/evaluate.md)."""
        return {
            "schema": SCHEMA,
            "setup": setup_to_dict(self.setup),
            "complete": self.complete,
            "examples": self.examples,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": list(self.clean.interval),
            "results": [_result_to_dict(entry) for entry in self.results],
            "worst_case": [_result_to_dict(entry) for entry in self.worst_case],
            "controls": [
                {"name": entry.name, "severity": entry.severity, **_accuracy_to_dict(entry, "accuracy")}
                for entry in self.controls
            ],
            "alarms": [vars(alarm) for alarm in self.alarms],
            "seconds": self.seconds,
            "batches": {
                "total": self.batches,
                **({"data": self.data} if self.data else {}),
                "done": [to_dict(record) for record in self.records],
            },
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        write_atomically(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_dict(cls, content: Any, where: str = "content") -> Evaluation:
        """Make an evaluation of what `to_dict` gave.

        Args:
            content: Dictionaries, lists, strings and numbers.
            where: What to call it in errors.

        Returns:
            The evaluation.

        Raises:
            ValueError: If it is something else, or its figures do not follow from its batches.
        """
        found = cls(setup_of(content, where), *records_of(content, where))
        again = found.to_dict()
        judged = [name for name in again if name != "alarms"]  # their rules may change from release to release
        if differing := [name for name in judged if again[name] != content.get(name)]:
            raise ValueError(
                f"{where}: its {', '.join(differing)} do not follow from its batches; it was changed or damaged: "
                "evaluate again"
            )
        return found

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read an evaluation from a file that `evaluate(resume=...)` or the command line has written.

        Args:
            path: The file.

        Returns:
            The evaluation.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is damaged, or something else.
        """
        return cls.from_dict(read(path), str(path))

    @classmethod
    def merge(cls, parts: Iterable[Evaluation]) -> Evaluation:
        """Put the shards of one evaluation together.

        Args:
            parts: Evaluations of different batches of the same data, under one setup.

        Returns:
            The evaluation of all their batches.

        Raises:
            TypeError: If one is no evaluation.
            ValueError: If there are none, they have different setups, or they contradict each other.
        """
        found = _evaluations(parts)
        if not found:
            raise ValueError("parts: got none, expected at least one evaluation; pass the shards")
        first, records = found[0], dict[int, Record]()
        totals = {part.batches for part in found if part.batches is not None}
        data = {part.data for part in found if part.data}
        for part in found:
            if part.setup != first.setup:
                raise ValueError(
                    "parts: got evaluations of different setups, expected one; pass shards of one run"
                )
            for record in part.records:
                if records.setdefault(record.index, record) != record:
                    raise ValueError(
                        f"parts: got two different batches {record.index}, expected one; pass it once"
                    )
        if len(totals) > 1 or (totals and max(records, default=-1) >= min(totals)):
            seen = sorted({*totals, max(records) + 1})
            raise ValueError(f"parts: got data of {seen} batches, expected one number; pass shards of one run")
        if len(data) > 1:
            raise ValueError(
                "parts: got evaluations of different data or batch_size, expected one; pass shards of one run"
            )
        ordered = tuple(records[index] for index in sorted(records))
        return cls(first.setup, ordered, totals.pop() if totals else None, data.pop() if data else "")

    def table(self) -> Table:
        """Build the table of accuracies for rich, without the notes and alarms that `print` adds."""
        return rich_table(self)

    def __str__(self) -> str:
        return text_table(self)

    def __rich__(self) -> Group:
        return rich_page(self)

    def _withstood(self, rows: list[int]) -> int:
        return sum(
            all(mark == "1" for mark in marks)
            for record in self.records
            for marks in zip(*(record.held[i] for i in rows), strict=True)
        )

    def _seconds(self, rows: list[int]) -> float:
        return sum(record.seconds[i] for record in self.records for i in rows)

    def _broken_by(self, row: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for record in self.records:
            for part, count in record.broken_by[row].items():
                found[part] = found.get(part, 0) + count
        return found


def _evaluations(parts: Iterable[Evaluation]) -> list[Evaluation]:
    """Check that parts are evaluations."""
    found = list(parts)
    for part in found:
        if not isinstance(part, Evaluation):
            raise TypeError(f"parts: got a {type(part).__name__}, expected evaluations; pass the shards")
    return found


def _accuracy_to_dict(entry: Accuracy, name: str) -> dict[str, Any]:
    return {"right": entry.right, name: entry.share, "interval": list(entry.interval)}


def _result_to_dict(entry: AttackResult) -> dict[str, Any]:
    return {
        "attack": entry.attack,
        "norm": entry.norm,
        "eps": entry.eps,
        **_accuracy_to_dict(entry, "robust_accuracy"),
        "broken_by": entry.broken_by,
        "seconds": entry.seconds,
    }


def in_order(setup: Setup, records: Iterable[Record], batches: int | None = None, data: str = "") -> Evaluation:
    """Make an evaluation of batches, in the order of their numbers.

    Args:
        setup: What was evaluated.
        records: The batches.
        batches: How many the data has, if that is known.
        data: Fingerprint of the data, if they are a pair.

    Returns:
        The evaluation.
    """
    return Evaluation(setup, tuple(sorted(records, key=lambda record: record.index)), batches, data)
