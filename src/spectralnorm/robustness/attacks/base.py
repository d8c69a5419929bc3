"""What an attack is to an evaluation: a function with a name, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..checks import NORMS, Bounds


class Attack(Protocol):
    """What `evaluate` calls: a function that returns adversarial inputs, shaped as `x`."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, bounds: Bounds, seed: int
    ) -> Tensor:
        """Attack one batch."""
        ...


@dataclass(frozen=True)
class NamedAttack:
    """An attack, or several that are run in turn on the examples that still hold.

    Attributes:
        name: In results.
        run: The attack itself.
        norms: Those it is made for.
        kind: "white" (uses gradients), "black" (uses logits only) or "own" (a function of the user's).
        cross_entropy: Whether all it follows is the gradient of the cross-entropy.
        smallest: Whether it looks for the smallest perturbation, whatever eps is, so that one run serves all.
        steps: Gradient steps, where `run` takes them by that name; 0 elsewhere.
        parts: Of an ensemble: its attacks for a number of classes and a norm, in their order.
        library: Package that must be installed.
    """

    name: str
    run: Attack
    norms: tuple[str, ...] = NORMS
    kind: str = "white"
    cross_entropy: bool = False
    smallest: bool = False
    steps: int = 0
    parts: Callable[[int, str], tuple[NamedAttack, ...]] | None = None
    library: str = ""
