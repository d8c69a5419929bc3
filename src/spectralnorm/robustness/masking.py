"""Alarms: signs that gradients are masked, so that an accuracy under attack says little.

The signs are those of Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML
2018, arXiv 1802.00420, and of Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv 1902.06705.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce

from .chance import exceeds, more_than_chance
from .record import Condition, Probe, Record, Setup

FEWEST = 20  # examples that a share of them says something about
BITE = 0.05  # share that an attack must break before it can be called flat
FLAT = 0.05  # share of those left that twice the eps should break
BY_SQUARE = 0.002  # share broken by Square alone that Croce and Hein, 2020, warn of
VANISHED = 0.05  # share of vanished gradients


@dataclass(frozen=True)
class Alarm:
    """A sign that gradients are masked.

    Attributes:
        kind: "black box", "flat", "fewer steps", "more steps", "unbounded" or "gradients".
        attack: Name of the attack that it is about.
        norm: "linf" or "l2"; "" for gradients.
        message: What was seen, and what to do.
    """

    kind: str
    attack: str
    norm: str
    message: str


@dataclass(frozen=True)
class _Seen:
    """Examples as bits of whole numbers, one for each condition: those that held."""

    setup: Setup
    right: int
    held: dict[Condition, int]
    broken_by: dict[Condition, dict[str, int]] = field(default_factory=dict)

    def of_kind(self, kind: str, norm: str, eps: float) -> list[Condition]:
        return [
            at
            for at in self.held
            if (at.norm, at.eps) == (norm, eps) and self.setup.kinds[at.attack].startswith(kind)
        ]


def alarms(setup: Setup, records: Sequence[Record]) -> tuple[Alarm, ...]:
    """Find the signs of masked gradients in an evaluation's batches.

    Args:
        setup: What was evaluated.
        records: Its batches.

    Returns:
        At most one alarm for each kind, attack and norm.

    Example:
        >>> alarms(Setup("", (), {}, (), (0.0, 1.0), 0, 0, {}), [])
        ()
    """
    seen = _seen(setup, records)
    found: dict[tuple[str, str, str], Alarm] = {}
    judged = [alarm for record in records for probe in record.probes for alarm in _of_probe(probe, setup)]
    for alarm in [*_black_box(seen), *_ensembles(seen), *_sizes(seen), *_steps(seen), *judged]:
        found.setdefault((alarm.kind, alarm.attack, alarm.norm), alarm)
    return tuple(found.values())


def _seen(setup: Setup, records: Sequence[Record]) -> _Seen:
    def bits(texts: Iterator[str]) -> int:
        return int("0" + "".join(texts), 2)

    conditions = setup.conditions
    held = {at: bits(record.held[i] for record in records) for i, at in enumerate(conditions)}
    broken: dict[Condition, dict[str, int]] = {}
    for i, at in enumerate(conditions):
        for record in records:
            for part, count in record.broken_by[i].items():
                broken.setdefault(at, {}).setdefault(part, 0)
                broken[at][part] += count
    return _Seen(setup, bits(record.right for record in records), held, broken)


def _count(bits: int) -> int:
    return bits.bit_count()


def _black_box(seen: _Seen) -> Iterator[Alarm]:
    """An attack without gradients breaks more than all that use them."""
    for at in seen.held:
        white = seen.of_kind("white", at.norm, at.eps)
        if seen.setup.kinds[at.attack] != "black" or not white:
            continue
        by_box = seen.right & ~seen.held[at]
        by_gradients = seen.right & ~reduce(int.__and__, (seen.held[other] for other in white))
        only_box, only_gradients = _count(by_box & ~by_gradients), _count(by_gradients & ~by_box)
        if more_than_chance(only_box, only_gradients):
            names = ", ".join(other.attack for other in white)
            yield Alarm(
                "black box",
                at.attack,
                at.norm,
                f"{at.attack}, which sees no gradients, breaks {only_box} examples at {at.norm} {at.eps:g} that "
                f"{names} leave, and leaves {only_gradients} that they break: gradients mislead them; "
                "use an adaptive attack",
            )


def _ensembles(seen: _Seen) -> Iterator[Alarm]:
    """Square, the last part of AutoAttack, breaks what the parts with gradients left."""
    for at, parts in seen.broken_by.items():
        broken = parts.get("square", 0)
        tried = _count(seen.held[at]) + broken
        if exceeds(broken, tried, BY_SQUARE):
            yield Alarm(
                "black box",
                at.attack,
                at.norm,
                f"in {at.attack} at {at.norm} {at.eps:g}, Square, which sees no gradients, breaks {broken} of the "
                f"{tried} examples that the parts with gradients left: gradients mislead them; use an "
                "adaptive attack",
            )


def _sizes(seen: _Seen) -> Iterator[Alarm]:
    """A larger eps breaks no more, though the smaller one broke some and left some."""
    right = _count(seen.right)
    conditions = [at for at in seen.held if seen.setup.kinds[at.attack].startswith("white")]
    for small in conditions:
        for large in conditions:
            if (small.attack, small.norm) != (large.attack, large.norm) or large.eps <= small.eps:
                continue
            one, two = seen.held[small], seen.held[large]
            left, newly, regained = _count(one), _count(one & ~two), _count(two & ~one)
            flat = large.eps >= 2 * small.eps and left >= FEWEST and newly < FLAT * left
            if more_than_chance(regained, newly) or (flat and right - left > BITE * right):
                yield Alarm(
                    "flat",
                    small.attack,
                    small.norm,
                    f"{small.attack} in {small.norm}: of the {left} examples left at eps {small.eps:g}, only "
                    f"{newly} break at {large.eps:g} ({regained} of the broken hold again): the attack is stuck; "
                    "attack the margin (pgd), or run autoattack",
                )


def _steps(seen: _Seen) -> Iterator[Alarm]:
    """One step breaks more than many do."""
    for at in seen.held:
        one = Condition("fgsm", at.norm, at.eps)
        if not at.attack.startswith("pgd") or one not in seen.held:
            continue
        by_one, by_many = (seen.right & ~seen.held[other] for other in (one, at))
        fewer, more = _count(by_one & ~by_many), _count(by_many & ~by_one)
        if more_than_chance(fewer, more):
            yield Alarm("fewer steps", at.attack, at.norm, _fewer(at.attack, at.norm, fewer, more))


def _fewer(attack: str, norm: str, fewer: int, more: int) -> str:
    return (
        f"{attack} in {norm}: fewer steps break {fewer} examples that more steps do not, and {more} the other way "
        "round: its gradients mislead; use another loss, or run autoattack"
    )


def _of_probe(probe: Probe, setup: Setup) -> Iterator[Alarm]:
    first, *others = probe.counts
    if probe.kind == "gradients":
        relying = sorted(name for name, kind in setup.kinds.items() if kind.endswith("cross-entropy"))
        if relying and exceeds(first, probe.examples, VANISHED):
            yield Alarm(
                "gradients",
                ", ".join(relying),
                "",
                f"the gradient of the cross-entropy vanishes on {first} of {probe.examples} examples, where "
                f"{', '.join(relying)} cannot climb: the logits are saturated; attack the margin (pgd), or divide "
                "the logits",
            )
    elif probe.kind == "unbounded":
        chance = 1 / others[0]
        if exceeds(first, probe.examples, chance):
            yield Alarm(
                "unbounded",
                probe.attack,
                probe.norm,
                f"{probe.attack} in {probe.norm} with the whole range for eps leaves {first} of {probe.examples} "
                f"examples, more than chance ({chance:.0%}), though nothing could be robust to that: the attack "
                "is stuck; attack the margin (pgd), or run autoattack",
            )
    elif more_than_chance(first, others[0]):
        message = _fewer(probe.attack, probe.norm, first, others[0])
        yield Alarm("fewer steps", probe.attack, probe.norm, message)
    elif more_than_chance(others[0], first):
        yield Alarm(
            "more steps",
            probe.attack,
            probe.norm,
            f"{probe.attack} in {probe.norm}: five times the steps break {others[0]} of {probe.examples} more "
            f"examples, and {first} fewer: it has not converged; take more steps, or run autoattack",
        )
