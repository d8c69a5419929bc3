"""Looks for masked gradients on a few examples; `masking` judges what they count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .attacks.base import NamedAttack
from .checks import Bounds
from .geometry import confined, reach
from .model import classified_right, classify, eval_mode
from .record import Probe

MORE = 5  # times as many steps


@dataclass(frozen=True)
class Scene:
    """What is probed.

    Attributes:
        model: The classifier.
        x: Inputs that it classifies right, (N, ...).
        y: Their labels, (N,).
        bounds: Lowest and highest value of an input.
        seed: Of the attacks.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    bounds: Bounds
    seed: int

    def held(self, attack: NamedAttack, eps: float, norm: str, steps: int = 0) -> Tensor:
        """Which examples withstand an attack, (N,)."""
        options = {"steps": steps} if steps else {}
        point = attack.run(
            self.model, self.x, self.y, eps, norm=norm, bounds=self.bounds, seed=self.seed, **options
        )
        return classified_right(self.model, confined(point, self.x, eps, norm, self.bounds), self.y)


def probes(scene: Scene, attacks: Sequence[NamedAttack], sizes: dict[str, Sequence[float]]) -> tuple[Probe, ...]:
    """Probe with every attack that takes a number of steps.

    Args:
        scene: Model and examples, at least one.
        attacks: Those of the evaluation.
        sizes: Their sizes by norm.

    Returns:
        What was counted: for each attack and norm with the range of the inputs for eps, and with more steps at
        the middle one of its sizes; and once the gradients that vanish.
    """
    found = [vanished_gradients(scene)]
    for attack in attacks:
        if attack.steps:
            for norm in sizes:
                found.extend(_of_attack(scene, attack, norm, sorted(sizes[norm])))
    return tuple(found)


def vanished_gradients(scene: Scene) -> Probe:
    """Count the examples whose gradient of the cross-entropy is zero, or below the smallest normal number.

    Args:
        scene: Model and examples.

    Returns:
        The count.
    """
    point = scene.x.detach().clone().requires_grad_()
    with eval_mode(scene.model), torch.enable_grad():
        loss = cross_entropy(classify(scene.model, point, scene.y), scene.y, reduction="sum")
        gradient = torch.autograd.grad(loss, point, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        return Probe("gradients", "", "", len(point), (len(point),))
    zero = gradient.flatten(1).abs().amax(1) < torch.finfo(gradient.dtype).tiny
    return Probe("gradients", "", "", len(point), (int(zero.sum()),))


def _of_attack(scene: Scene, attack: NamedAttack, norm: str, sizes: Sequence[float]) -> Iterator[Probe]:
    with torch.no_grad():
        classes = classify(scene.model, scene.x[:1], scene.y[:1]).shape[1]
    withstood = int(scene.held(attack, reach(scene.x, norm, scene.bounds), norm).sum())
    yield Probe("unbounded", attack.name, norm, len(scene.x), (withstood, classes))
    eps = sizes[len(sizes) // 2]
    few, many = scene.held(attack, eps, norm), scene.held(attack, eps, norm, MORE * attack.steps)
    counts = int((~few & many).sum()), int((few & ~many).sum())
    yield Probe("steps", attack.name, norm, len(scene.x), counts)
