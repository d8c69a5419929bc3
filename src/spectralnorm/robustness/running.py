"""One batch of an evaluation: attacked under every condition, each point re-checked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .attacks.base import NamedAttack
from .batches import outline
from .checks import check_batch
from .controls import control
from .fingerprint import of_tensors
from .geometry import confined, reach
from .model import classified_right, classify, device_of
from .probes import Scene, probes
from .record import Condition, Probe, Record, Setup

OnAttack = Callable[[str, str, float], None]


@dataclass
class Run:
    """An evaluation under way.

    Attributes:
        model: The classifier.
        attacks: By name.
        setup: What is evaluated.
        on_attack: Called before each attack with its name, its norm and eps.
    """

    model: nn.Module
    attacks: dict[str, NamedAttack]
    setup: Setup
    on_attack: OnAttack | None = None

    def record(self, index: int, inputs: Tensor, labels: Tensor) -> Record:
        """Evaluate one batch: inputs, (N, ...), and labels, (N,), on any device."""
        check_batch(inputs, labels, self.setup.bounds)
        device, seed = device_of(self.model, inputs), self.setup.seed + index
        x, y = inputs.to(device), labels.to(device)
        right = classified_right(self.model, x, y)
        batch = _Batch(self, x[right], y[right], seed)
        outcomes = [batch.outcome(at) for at in self.setup.conditions]
        return Record(
            index=index,
            data=of_tensors(inputs, labels),
            right=_marks(right),
            held=tuple(_marks(_spread(outcome.held, right)) for outcome in outcomes),
            broken_by=tuple(outcome.broken_by for outcome in outcomes),
            seconds=tuple(outcome.seconds for outcome in outcomes),
            controls=tuple(_marks(self._controlled(x, y, *each, seed)) for each in self.setup.controls),
            probes=self._probed(batch) if index == 0 else (),
        )

    def _controlled(self, x: Tensor, y: Tensor, name: str, severity: int, seed: int) -> Tensor:
        return classified_right(self.model, control(name, x, severity, bounds=self.setup.bounds, seed=seed), y)

    def _probed(self, batch: _Batch) -> tuple[Probe, ...]:
        few = slice(self.setup.probes)
        if self.setup.probes == 0 or len(batch.x) == 0:
            return ()
        scene = Scene(self.model, batch.x[few], batch.y[few], self.setup.bounds, batch.seed)
        sizes: dict[str, list[float]] = {}
        for at in self.setup.conditions:
            sizes.setdefault(at.norm, []).append(at.eps)
        return probes(
            scene, tuple(self.attacks.values()), {norm: sorted(set(each)) for norm, each in sizes.items()}
        )


@dataclass(frozen=True)
class _Outcome:
    """Which examples withstand a condition, (N,)."""

    held: Tensor
    seconds: float = 0.0
    broken_by: dict[str, int] = field(default_factory=dict)


@dataclass
class _Batch:
    """The examples of a batch that are classified right, and what attacks have found that serves every eps."""

    run: Run
    x: Tensor  # (N, ...)
    y: Tensor  # (N,)
    seed: int
    smallest: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    def outcome(self, at: Condition) -> _Outcome:
        """Attack under one condition."""
        attack, started = self.run.attacks[at.attack], time.perf_counter()
        held = torch.ones_like(self.y, dtype=torch.bool)
        broken: dict[str, int] = {}
        if len(self.x) == 0:
            return _Outcome(held)
        for part in self._parts(attack, at.norm):
            rows = held.nonzero().squeeze(1)
            if len(rows) > 0:
                point = self._point(part, at, rows)
                held[rows] = classified_right(self.run.model, point, self.y[rows])
            if attack.parts is not None:
                broken[part.name] = len(rows) - int(held.sum())
        return _Outcome(held, time.perf_counter() - started, broken)

    def _parts(self, attack: NamedAttack, norm: str) -> tuple[NamedAttack, ...]:
        if attack.parts is None:
            return (attack,)
        with torch.no_grad():
            classes = classify(self.run.model, self.x[:1], self.y[:1]).shape[1]
        return attack.parts(classes, norm)

    def _point(self, attack: NamedAttack, at: Condition, rows: Tensor) -> Tensor:
        """What the attack returns for some rows, cut to eps and the bounds."""
        if attack.smallest:
            key = (attack.name, at.norm)
            if key not in self.smallest:
                self.smallest[key] = self._called(attack, at, math.inf, self.x, self.y)
            point = self.smallest[key][rows]
        else:
            point = self._called(attack, at, at.eps, self.x[rows], self.y[rows])
        return confined(point, self.x[rows], at.eps, at.norm, self.run.setup.bounds)

    def _called(self, attack: NamedAttack, at: Condition, eps: float, x: Tensor, y: Tensor) -> Tensor:
        if self.run.on_attack is not None:
            self.run.on_attack(attack.name, at.norm, at.eps)
        bounds = self.run.setup.bounds
        eps = min(eps, reach(x, at.norm, bounds))
        point = attack.run(self.run.model, x, y, eps, norm=at.norm, bounds=bounds, seed=self.seed)
        if not isinstance(point, Tensor) or point.shape != x.shape or not torch.isfinite(point).all():
            raise ValueError(
                f"attacks: got {outline(point)} from {attack.name}, expected finite numbers in a tensor of shape "
                f"{tuple(x.shape)}; return the adversarial inputs alone"
            )
        return point.detach().to(x)


def _spread(held: Tensor, right: Tensor) -> Tensor:
    """Put the outcomes of the right examples where they are in the batch; the others do not hold."""
    whole = torch.zeros_like(right)
    whole[right] = held
    return whole


def _marks(outcomes: Tensor) -> str:
    return "".join("1" if each else "0" for each in outcomes.tolist())
