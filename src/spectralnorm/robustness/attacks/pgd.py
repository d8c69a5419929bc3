"""Projected gradient ascent, which keeps the best point on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..checks import Bounds, check_count, check_number, check_sizes
from ..geometry import direction, noise, project, reach
from ..model import classify, eval_mode
from .fgsm import checked, input_gradient
from .losses import LOSSES


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    *,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "ce",
    random_start: bool = True,
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
) -> Tensor:
    """Attack by projected gradient ascent, and return the best point met on the way.

    An example is left alone once it is misclassified; of the others the point of highest loss is returned.
    Random starts are uniform in the ball of radius eps, cut to the bounds. The model is attacked in eval
    mode, and left as it was, modes and gradients included; torch's global generator is not used. Errors as
    in `fgsm`.

    Args:
        model: Classifier from (N, ...) to logits, (N, classes).
        x: Clean inputs within the bounds, (N, ...), floating point.
        y: True labels, (N,), int64.
        eps: Largest perturbation of an example, in the units of x; (N,) for one of each, such as certified radii.
        norm: "linf" or "l2".
        steps: Gradient steps per restart.
        step_size: Length of a step in that norm; 2.5 eps / steps by default.
        restarts: Independent runs, at random starts.
        loss: What to raise: "ce" (cross-entropy) or "margin".
        random_start: Whether to start at random, else at x.
        bounds: Lowest and highest value of an input.
        seed: Seed of the random starts.

    Returns:
        Inputs within eps of x (up to rounding) and within the bounds, shaped as x.

    Raises:
        ValueError: If restarts are asked for without random starts: all would be the same.

    Reference:
        Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial
        Attacks", ICLR 2018, arXiv 1706.06083.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.4]]), torch.tensor([0])
        >>> pgd(nn.Identity(), x, y, eps=0.1).argmax(1)
        tensor([1])
    """
    clean = checked(x, y, check_sizes(eps, y) if isinstance(eps, Tensor) else eps, norm, loss, bounds)
    check_count("steps", steps)
    check_count("restarts", restarts)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts: got {restarts}, expected 1 with random_start=False; pass random_start=True")
    if step_size is not None:
        check_number("step_size", step_size, positive=True)
    if len(clean) == 0 or not torch.as_tensor(eps).any():
        return clean
    if isinstance(eps, Tensor):
        most = reach(clean, norm, bounds)
        precise = torch.promote_types(clean.dtype, torch.float32)  # half precision would round sizes up
        eps = eps.to(clean.device, precise).clamp_max(most).view(-1, *[1] * (clean.ndim - 1))
    else:
        eps = min(eps, reach(clean, norm, bounds))
    length = 2.5 * eps / steps if step_size is None else step_size
    confine = partial(project, norm=norm, bounds=bounds)
    climb = _Climb(model, clean, y, LOSSES[loss], partial(direction, norm=norm), eps, length, confine)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    with eval_mode(model), torch.enable_grad():
        for _ in range(restarts):
            start = clean + noise(clean, eps, norm, generator) if random_start else clean
            climb.run(confine(start, clean, eps), steps)
    return climb.best


@dataclass
class _Climb:
    """The ascent of one batch, and the best point so far of each example."""

    model: nn.Module
    clean: Tensor  # (N, ...)
    y: Tensor  # (N,)
    loss: Callable[[Tensor, Tensor], Tensor]
    direction: Callable[[Tensor], Tensor]
    eps: float | Tensor  # (N, 1, ...)
    step_size: float | Tensor  # (N, 1, ...)
    confine: Callable[[Tensor, Tensor, float | Tensor], Tensor]

    def __post_init__(self) -> None:
        self.best = self.clean.clone()
        self.best_loss = self.clean.new_full((len(self.clean),), -torch.inf)
        self.fooled = torch.zeros_like(self.y, dtype=torch.bool)

    def run(self, start: Tensor, steps: int) -> None:
        """Climb from `start`, (N, ...), with the examples that are not fooled yet."""
        point = start.clone()
        for step in range(steps + 1):
            rows = (~self.fooled).nonzero().squeeze(1)
            if len(rows) == 0:
                return
            trial = point[rows].requires_grad_()
            losses = self._record(trial, rows)
            if step < steps:
                move = _at(self.step_size, rows) * self.direction(input_gradient(losses, trial))
                point[rows] = self.confine(trial.detach() + move, self.clean[rows], _at(self.eps, rows))

    def _record(self, trial: Tensor, rows: Tensor) -> Tensor:
        """Return the losses at `trial`; keep its points that are misclassified or the best so far."""
        logits = classify(self.model, trial, self.y[rows])
        losses = self.loss(logits, self.y[rows])
        values = losses.detach().to(self.best_loss.dtype)
        wrong = logits.argmax(1) != self.y[rows]
        better = wrong | (values > self.best_loss[rows])
        self.best[rows[better]] = trial.detach()[better]
        self.best_loss[rows[better]] = values[better]
        self.fooled[rows] = wrong
        return losses


def _at(size: float | Tensor, rows: Tensor) -> float | Tensor:
    """The sizes of some examples."""
    return size[rows] if isinstance(size, Tensor) else size
