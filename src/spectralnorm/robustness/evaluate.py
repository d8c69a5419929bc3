"""Accuracy of a classifier under attack: what it keeps, for each attack and against all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .attacks import (
    ATTACKS,
    Attack,
    check_batch,
    check_budget,
    check_choice,
    check_count,
    classify,
    eval_mode,
    project,
)

Batches = Iterable[tuple[Tensor, Tensor]]
OnBatch = Callable[[int, int | None], None]
DEFAULT_EPS: Mapping[str, Sequence[float]] = MappingProxyType(
    {"linf": (2 / 255, 4 / 255, 8 / 255), "l2": (0.25, 0.5, 1.0)}
)
WORST = "worst case"


@dataclass(frozen=True)
class AttackResult:
    """Share of examples that are classified right, clean and under one attack of one size.

    Attributes:
        attack: Name of the attack, or "worst case": of all of them, chosen for each example.
        norm: "linf" or "l2".
        eps: Largest perturbation of an example, in the units of the inputs.
        robust_accuracy: A number in [0, 1].
    """

    attack: str
    norm: str
    eps: float
    robust_accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Accuracy with and without attacks.

    Attributes:
        examples: How many examples were tried.
        clean_accuracy: Share of them classified right without attack.
        results: One entry per norm, eps and attack.
        worst_case: One entry per norm and eps: an example counts only if it withstands every attack.

    Example:
        >>> import torch, spectralnorm as sn
        >>> x, y = torch.rand(8, 4), torch.arange(8) % 2
        >>> found = sn.evaluate(torch.nn.Linear(4, 2), (x, y), ["fgsm"], {"l2": [0.1]})
        >>> found.examples, len(found.worst_case)
        (8, 1)
    """

    examples: int
    clean_accuracy: float
    results: list[AttackResult]
    worst_case: list[AttackResult]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as dictionaries, lists, strings and numbers, ready for JSON."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Batches,
    attacks: Sequence[str | Attack] = ("pgd",),
    eps: Mapping[str, Sequence[float]] = DEFAULT_EPS,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 256,
    on_batch: OnBatch | None = None,
) -> Evaluation:
    """Measure a classifier's accuracy on clean inputs and under attacks.

    The attacks' word is not taken: what they return is cut to eps and to the bounds, and classified again.
    Only examples that are classified right without attack are attacked. The model is evaluated in eval mode,
    and its modes are restored. Wrong arguments raise `TypeError` or `ValueError`.

    Args:
        model: Classifier from (N, ...) to logits, (N, classes).
        data: Inputs and labels, (N, ...) and (N,), or an iterable of such batches, as a `DataLoader` is.
        attacks: Names ("fgsm", "pgd": on the margin) or functions with the signature of `Attack`.
        eps: Sizes of the perturbations to try for each norm ("linf", "l2"), in the units of the inputs.
        bounds: Lowest and highest value of an input.
        seed: Seed of the attacks; batch number i gets seed + i.
        batch_size: Examples per batch, for a pair of tensors.
        on_batch: Called after each batch with the number of batches done, and their total (None if unknown).

    Returns:
        Clean and robust accuracies.

    Raises:
        ValueError: If there are no examples.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.4], [0.9, 0.1]]), torch.tensor([0, 0])
        >>> evaluate(nn.Identity(), (x, y), eps={"linf": [0.1]}).worst_case[0].robust_accuracy
        0.5
    """
    named = _named(attacks)
    budgets = _budgets(eps, len(named))
    batches, total = _batches(data, batch_size)
    examples = correct = 0
    with eval_mode(model):
        for done, (inputs, labels) in enumerate(batches):
            check_batch(inputs, labels, bounds)
            x, y = inputs.to(device_of(model, inputs)), labels.to(device_of(model, inputs))
            right = _right(model, x, y)
            examples, correct = examples + len(x), correct + int(right.sum())
            for budget in budgets if right.any() else []:
                budget.add(_held(model, x[right], y[right], budget, named, bounds, seed + done))
            if on_batch is not None:
                on_batch(done + 1, total)
    if examples == 0:
        raise ValueError("data: got no examples, expected at least one; pass (x, y) or an iterable of batches")
    return _summary(examples, correct, budgets, [name for name, _ in named])


@dataclass
class _Budget:
    """One norm and eps: how many examples withstood each attack, and how many withstood all."""

    norm: str
    eps: float
    withstood: Tensor  # (attacks,), int64
    withstood_all: int = 0

    def add(self, held: Tensor) -> None:
        """Count one batch: `held`, (attacks, N), bool."""
        self.withstood += held.sum(1).cpu()
        self.withstood_all += int(held.all(0).sum())


def _held(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    budget: _Budget,
    named: list[tuple[str, Attack]],
    bounds: tuple[float, float],
    seed: int,
) -> Tensor:
    """Return which examples withstand each attack, (attacks, N), judged on points cut to eps and bounds."""
    held = []
    for name, attack in named:
        point = attack(model, x, y, budget.eps, norm=budget.norm, bounds=bounds, seed=seed)
        if not isinstance(point, Tensor) or point.shape != x.shape or not torch.isfinite(point).all():
            raise ValueError(
                f"attacks: got {_outline(point)} from {name}, expected finite numbers in a tensor of shape "
                f"{tuple(x.shape)}; return the adversarial inputs alone"
            )
        held.append(_right(model, project(point.detach().to(x), x, budget.eps, budget.norm, bounds), y))
    return torch.stack(held)


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which examples the model classifies right in eval mode, (N,)."""
    if len(x) == 0:
        return torch.zeros_like(y, dtype=torch.bool)
    with eval_mode(model), torch.no_grad():
        return classify(model, x, y).argmax(1) == y


def _summary(examples: int, correct: int, budgets: list[_Budget], names: list[str]) -> Evaluation:
    """Turn counts into accuracies."""
    results = [
        AttackResult(name, budget.norm, budget.eps, count / examples)
        for budget in budgets
        for name, count in zip(names, budget.withstood.tolist(), strict=True)
    ]
    worst = [AttackResult(WORST, budget.norm, budget.eps, budget.withstood_all / examples) for budget in budgets]
    return Evaluation(examples, correct / examples, results, worst)


def _named(attacks: Sequence[str | Attack]) -> list[tuple[str, Attack]]:
    """Return the attacks with their names."""
    if isinstance(attacks, str) or not attacks:
        raise ValueError(f"attacks: got {attacks!r}, expected a list of at least one; pass for example ['pgd']")
    named: list[tuple[str, Attack]] = []
    for attack in attacks:
        if isinstance(attack, str):
            check_choice("attacks", attack, ATTACKS)
            named.append((attack, ATTACKS[attack]))
        elif callable(attack):
            named.append((getattr(attack, "__name__", type(attack).__name__), attack))
        else:
            raise TypeError(
                f"attacks: got {attack!r}, expected a name or a function; pass one of {', '.join(ATTACKS)}"
            )
    return named


def _budgets(eps: Mapping[str, Sequence[float]], attacks: int) -> list[_Budget]:
    """Return one budget per norm and eps, with nothing counted yet."""
    if not isinstance(eps, Mapping) or any(not isinstance(sizes, Sequence) for sizes in eps.values()):
        raise TypeError(
            f"eps: got {eps!r}, expected a list of sizes per norm; pass for example {{'linf': [0.03]}}"
        )
    pairs = [(norm, size) for norm, sizes in eps.items() for size in sizes]
    if not pairs:
        raise ValueError(f"eps: got {eps!r}, expected at least one size; pass for example {{'linf': [0.03]}}")
    for norm, size in pairs:
        check_budget(size, norm)
    return [_Budget(norm, size, torch.zeros(attacks, dtype=torch.int64)) for norm, size in pairs]


def _batches(data: tuple[Tensor, Tensor] | Batches, batch_size: int) -> tuple[Batches, int | None]:
    """Return the batches, and how many there are if that is known."""
    check_count("batch_size", batch_size)
    if isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = data
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return _cut(x, y, batch_size), math.ceil(len(x) / batch_size)
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(f"data: got {_outline(data)}, expected (x, y) or an iterable of such batches; pass a pair")
    return map(_pair, data), len(data) if isinstance(data, Sized) else None


def _cut(x: Tensor, y: Tensor, batch_size: int) -> Batches:
    """Cut a pair of tensors into batches."""
    if len(x) != len(y):
        raise ValueError(f"data: got {len(x)} inputs and {len(y)} labels, expected one label per input; cut one")
    starts = range(0, len(x), batch_size)
    return [(x[start : start + batch_size], y[start : start + batch_size]) for start in starts]


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Check that a batch is a pair."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"data: got a batch that is {_outline(batch)}, expected a pair (x, y) of tensors")
    return batch[0], batch[1]


def _outline(value: object) -> str:
    """Describe a value in a few words."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def device_of(model: nn.Module, default: Tensor) -> torch.device:
    """Return the device of the model's first parameter, or that of `default` where there is none."""
    return next(iter(model.parameters()), default).device
