"""What an evaluation writes down: what is evaluated, and for each batch which examples held."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Condition:
    """One attack of one size.

    Attributes:
        attack: Its name.
        norm: "linf" or "l2".
        eps: Largest perturbation of an example, in the units of the inputs.
    """

    attack: str
    norm: str
    eps: float


@dataclass(frozen=True)
class Setup:
    """All that decides an evaluation's numbers, but for the data.

    Attributes:
        model: Fingerprint of the model's structure and weights.
        conditions: Attacks and their sizes.
        kinds: Of each attack by name: "white", "black" or "own", with ", cross-entropy" where that is all it
            follows.
        controls: Names and severities of the changes without an adversary.
        bounds: Lowest and highest value of an input.
        seed: Of batch 0; batch i gets seed + i.
        probes: Examples of batch 0 on which masking is probed.
        versions: Of the packages that took part.
    """

    model: str
    conditions: tuple[Condition, ...]
    kinds: dict[str, str]
    controls: tuple[tuple[str, int], ...]
    bounds: tuple[float, float]
    seed: int
    probes: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Probe:
    """A look for masked gradients on a few examples.

    Attributes:
        kind: "unbounded" (eps is the range of the inputs), "steps" (five times as many) or "gradients" (that
            of the cross-entropy).
        attack: Name of the attack; "" for gradients.
        norm: "linf" or "l2"; "" for gradients.
        examples: How many were tried.
        counts: Unbounded: those that withstood, and the number of classes. Steps: those broken with fewer steps
            only, and with more steps only. Gradients: those that are zero or underflow.
    """

    kind: str
    attack: str
    norm: str
    examples: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """One batch.

    Attributes:
        index: Its number in the data.
        data: Fingerprint of its inputs and labels.
        right: "1" for each example that is classified right without attack, else "0".
        held: The same under each condition of the setup.
        broken_by: For each condition, how many examples each part of an ensemble broke; empty elsewhere.
        seconds: Time that each condition took.
        controls: The same as `right`, under each change without an adversary.
        probes: Of the first batch.
    """

    index: int
    data: str
    right: str
    held: tuple[str, ...]
    broken_by: tuple[dict[str, int], ...]
    seconds: tuple[float, ...] = field(compare=False)
    controls: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()
