"""The result of a certification, and its JSON, "spectralnorm.certification/1" (docs/lipschitz.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spectralnorm.files import write_atomically

__all__ = ["SCHEMA", "Certification", "CertifiedAccuracy"]

SCHEMA = "spectralnorm.certification/1"
THROUGH = {"l2": "l2", "linf": "l2 / sqrt(dimension)"}  # by norm: what the radii are compared with


@dataclass(frozen=True)
class CertifiedAccuracy:
    """Share of examples that are proven to be classified right under every perturbation of one size.

    Attributes:
        norm: "l2" or "linf".
        eps: largest perturbation of an example, in the units of the inputs.
        certified_accuracy: a number in [0, 1].
        through: "l2" where the L2 radius is compared with eps itself; "l2 / sqrt(dimension)" for L-infinity, where
            a ball of radius eps lies in the L2 ball of radius eps sqrt(dimension).
    """

    norm: str
    eps: float
    certified_accuracy: float
    through: str


@dataclass(frozen=True)
class Certification:
    """What is proven of a classifier on a data set.

    Attributes:
        examples: how many there were.
        clean_accuracy: share of them classified right, in float64 and as the model computes.
        results: one entry per norm and eps.
        radii: certified L2 radius of each example, in order; 0 where misclassified.
        lipschitz: upper bound on the L2 Lipschitz constant of all logits together.
        inputs: what was certified, as `spectralnorm certify` notes it; empty otherwise.

    Example:
        >>> import torch, spectralnorm as sn
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.eye(2)
        >>> found = sn.certify(net, (torch.tensor([[3.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1])), {"l2": [1.0]})
        >>> found.clean_accuracy, found.results[0].certified_accuracy
        (1.0, 0.5)
    """

    examples: int
    clean_accuracy: float
    results: tuple[CertifiedAccuracy, ...]
    radii: tuple[float, ...] = field(repr=False)
    lipschitz: float
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the same with its schema as dictionaries, lists, numbers and strings; None is infinite."""
        return {
            "schema": SCHEMA,
            "inputs": dict(self.inputs),
            "examples": self.examples,
            "clean_accuracy": self.clean_accuracy,
            "lipschitz": _finite(self.lipschitz),
            "results": [asdict(result) for result in self.results],
            "radii": [_finite(radius) for radius in self.radii],
        }

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all.

        Args:
            path: the file.

        Raises:
            OSError: when it cannot be written.
        """
        write_atomically(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Certification:
        """Read what `save` wrote, and check it.

        Args:
            path: the file.

        Returns:
            An equal certification.

        Raises:
            OSError: when it cannot be read.
            ValueError: when it is no certification, or its numbers do not go together.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of the length of a number
            raise ValueError(
                f"{path}: got no JSON ({error}), expected a certification; give another file"
            ) from error
        if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
            got = content.get("schema") if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(
                f'{path}: got {got!r}, expected a certification, "schema": "{SCHEMA}"; give another file'
            )
        try:
            return _validated(content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{path}: it is damaged ({type(error).__name__}: {error}), expected {SCHEMA}; delete it to start "
                "again"
            ) from error


def _validated(content: Mapping[str, Any]) -> Certification:
    """Make the certification that a file's content says.

    Returns:
        The certification.

    Raises:
        ValueError: when its parts contradict each other.
    """
    radii = tuple(math.inf if radius is None else _number(radius) for radius in content["radii"])
    clean = _share(content["clean_accuracy"])
    results = tuple(
        CertifiedAccuracy(
            str(each["norm"]), _number(each["eps"]), _share(each["certified_accuracy"]), str(each["through"])
        )
        for each in content["results"]
    )
    lipschitz = math.inf if content["lipschitz"] is None else _number(content["lipschitz"])
    if not radii or isinstance(content["examples"], bool) or content["examples"] != len(radii):
        raise ValueError(f"{content['examples']!r} examples and {len(radii)} radii")
    found = Certification(len(radii), clean, results, radii, lipschitz, dict(content["inputs"]))
    _check_accuracies(found)
    return found


def _check_accuracies(found: Certification) -> None:
    """Check that accuracies follow from the radii, as far as a file tells.

    Those in L-infinity are not above those in L2, and fall with eps: the dimension of an input is not there.

    Raises:
        ValueError: when they do not.
    """
    certified = sum(radius > 0 for radius in found.radii) / found.examples
    if found.clean_accuracy < certified or not _counts(found.clean_accuracy, found.examples):
        raise ValueError(f"clean_accuracy {found.clean_accuracy}, where {certified} have a radius")
    before: dict[str, float] = {}  # by norm, at smaller sizes
    for each in sorted(found.results, key=lambda result: result.eps):
        held = sum(radius > each.eps for radius in found.radii) / found.examples
        share, through = each.certified_accuracy, THROUGH.get(each.norm)
        fits = share == held if each.norm == "l2" else share <= held and _counts(share, found.examples)
        if not fits or each.through != through or share > before.get(each.norm, 1.0):
            raise ValueError(f"the result at {each.norm} {each.eps}, {share}, is not that of the radii")
        before[each.norm] = share
    asked = found.inputs.get("eps")
    sizes = sorted((each.norm, each.eps) for each in found.results)
    if len(set(sizes)) < len(sizes):
        raise ValueError("two results at one size")
    if asked is not None and sorted((norm, float(eps)) for norm, all_ in asked.items() for eps in all_) != sizes:
        raise ValueError("results at other sizes than its inputs say")


def _counts(share: float, examples: int) -> bool:
    """Whether a share is that of a whole number of examples."""
    return share == round(share * examples) / examples


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"the number {value!r}")
    return float(value)


def _share(value: Any) -> float:
    if _number(value) > 1:
        raise ValueError(f"the share {value!r}")
    return float(value)
