"""Gradient attacks on a classifier, FGSM and PGD, and what every attack and evaluation shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Bounds = tuple[float, float]


class Attack(Protocol):
    """What `evaluate` calls: a function that returns adversarial inputs, shaped as `x`."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, bounds: Bounds, seed: int
    ) -> Tensor:
        """Attack one batch."""
        ...


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return max over j != y of f_j - f_y, (N,), positive where misclassified.

    Unlike cross-entropy, its gradient does not vanish when the logits are scaled up.

    Args:
        logits: (N, classes).
        y: Labels, (N,), int64.

    Returns:
        One value per example, (N,).

    Reference:
        Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017, arXiv 1608.04644.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None]).squeeze(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": partial(cross_entropy, reduction="none"),
    "margin": margin,
}
NORMS = ("linf", "l2")


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: str = "linf",
    loss: str = "ce",
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """Attack with one step of length eps along the gradient's sign ("linf") or along the gradient ("l2").

    The model is attacked in eval mode, and left as it was, modes and gradients included. Wrong arguments
    raise `TypeError` or `ValueError`; logits or gradients that are not finite raise `FloatingPointError`.

    Args:
        model: Classifier from (N, ...) to logits, (N, classes).
        x: Clean inputs within the bounds, (N, ...), floating point.
        y: True labels, (N,), int64.
        eps: Largest perturbation of an example, in the units of x.
        norm: "linf" or "l2".
        loss: What to raise: "ce" (cross-entropy) or "margin".
        bounds: Lowest and highest value of an input.

    Returns:
        Inputs within eps of x (up to rounding) and within the bounds, shaped as x.

    Reference:
        Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015,
        arXiv 1412.6572.

    Example:
        >>> x = torch.tensor([[0.5, 0.4]])
        >>> fgsm(nn.Identity(), x, torch.tensor([0]), eps=0.1)
        tensor([[0.4000, 0.5000]])
    """
    clean = _checked(x, y, eps, norm, loss, bounds)
    if eps == 0 or len(clean) == 0:
        return clean
    with eval_mode(model), torch.enable_grad():
        point = clean.clone().requires_grad_()
        gradient = _gradient(LOSSES[loss](classify(model, point, y), y), point)
    return project(clean + eps * direction(gradient, norm), clean, eps, norm, bounds)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
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
        eps: Largest perturbation of an example, in the units of x.
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
    clean = _checked(x, y, eps, norm, loss, bounds)
    check_count("steps", steps)
    check_count("restarts", restarts)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts: got {restarts}, expected 1 with random_start=False; pass random_start=True")
    if step_size is None:
        step_size = 2.5 * eps / steps
    else:
        check_number("step_size", step_size, positive=True)
    if eps == 0 or len(clean) == 0:
        return clean
    confine = partial(project, eps=eps, norm=norm, bounds=bounds)
    climb = _Climb(model, clean, y, LOSSES[loss], partial(direction, norm=norm), step_size, confine)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    with eval_mode(model), torch.enable_grad():
        for _ in range(restarts):
            start = clean + noise(clean, eps, norm, generator) if random_start else clean
            climb.run(confine(start, clean), steps)
    return climb.best


def _named_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, bounds: Bounds, seed: int
) -> Tensor:
    """FGSM on cross-entropy; it draws nothing, so that the seed is unused."""
    del seed
    return fgsm(model, x, y, eps, norm=norm, bounds=bounds)


ATTACKS: dict[str, Attack] = {"fgsm": _named_fgsm, "pgd": partial(pgd, loss="margin")}


def project(candidate: Tensor, x: Tensor, eps: float, norm: str, bounds: Bounds) -> Tensor:
    """Bring each candidate within eps of its clean input, then within the bounds.

    Args:
        candidate: Points to move, (N, ...).
        x: Clean inputs within the bounds, shaped as `candidate`.
        eps: Largest perturbation of an example.
        norm: "linf" or "l2".
        bounds: Lowest and highest value of an input.

    Returns:
        Points within eps of x, up to rounding, and within the bounds, shaped as x.

    Example:
        >>> project(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), 1.0, "l2", (0.0, 0.7))
        tensor([[0.6000, 0.7000]])
    """
    delta = candidate - x
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        length = _lengths(delta)
        delta = torch.where(length > eps, delta * (eps / length), delta)
    return (x + delta).clamp(*bounds)


@dataclass
class _Climb:
    """The ascent of one batch, and the best point so far of each example."""

    model: nn.Module
    clean: Tensor  # (N, ...)
    y: Tensor  # (N,)
    loss: Callable[[Tensor, Tensor], Tensor]
    direction: Callable[[Tensor], Tensor]
    step_size: float
    confine: Callable[[Tensor, Tensor], Tensor]

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
                move = self.step_size * self.direction(_gradient(losses, trial))
                point[rows] = self.confine(trial.detach() + move, self.clean[rows])

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


def _checked(x: Tensor, y: Tensor, eps: float, norm: str, loss: str, bounds: Bounds) -> Tensor:
    """Check what every attack takes; return the clean inputs, cut off from any graph."""
    check_batch(x, y, bounds)
    check_budget(eps, norm)
    check_choice("loss", loss, LOSSES)
    return x.detach().clone()


def _gradient(losses: Tensor, point: Tensor) -> Tensor:
    """Return the gradient of each example's loss at its point, without touching the model's own gradients."""
    gradient = None
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "model: got logits with no gradient with respect to the input, expected differentiable ones; "
            "remove detach, no_grad or argmax from its forward, or use an attack without gradients"
        )
    if not torch.isfinite(gradient).all():
        raise FloatingPointError("model: got a gradient that is not finite, expected numbers; use float64")
    return gradient


def direction(gradient: Tensor, norm: str) -> Tensor:
    """Return the steepest step of length one in that norm; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    largest = gradient.abs().amax(tuple(range(1, gradient.ndim)), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, 1)  # squares of tiny gradients would underflow
    return scaled / _lengths(scaled).clamp_min(1)


def noise(x: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    """Draw perturbations uniformly from the ball of radius eps, shaped as x."""
    if norm == "linf":
        return torch.empty_like(x).uniform_(-eps, eps, generator=generator)
    gauss = torch.empty_like(x).normal_(generator=generator)
    uniform = torch.empty_like(_lengths(x)).uniform_(generator=generator)
    return eps * uniform.pow(1 / x[0].numel()) * direction(gauss, norm)  # volume grows as radius^d


def _lengths(delta: Tensor) -> Tensor:
    """Return the L2 norm of each example, (N, 1, ...)."""
    length: Tensor = torch.linalg.vector_norm(delta, dim=tuple(range(1, delta.ndim)), keepdim=True)
    return length


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set every module to eval mode, and restore each one's own mode afterwards."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module; wrap it in one")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the model's logits, (N, classes), checked against x, (N, ...), and the labels y, (N,)."""
    logits: Tensor = model(x)
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(
            f"model: got logits of shape {tuple(logits.shape)}, expected ({len(x)}, classes) with at least "
            "2 classes; pass a classifier"
        )
    if len(y) > 0 and int(y.max()) >= logits.shape[1]:
        raise ValueError(f"y: got {int(y.max())}, expected less than the {logits.shape[1]} logits; relabel")
    if not torch.isfinite(logits).all():
        raise FloatingPointError("model: got logits that are not finite, expected numbers; find the NaN")
    return logits


def check_batch(x: Tensor, y: Tensor, bounds: Bounds) -> None:
    """Check a batch: x, (N, ...), floating point within the bounds, and y, (N,), int64."""
    for name, value in [("x", x), ("y", y)]:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor; use torch.as_tensor")
    if not x.is_floating_point() or y.dtype != torch.int64:
        raise TypeError(
            f"x, y: got {x.dtype} and {y.dtype}, expected floating point and torch.int64; "
            "convert with x.float() / 255 and y.long()"
        )
    if x.ndim < 2 or y.shape != x.shape[:1]:
        raise ValueError(
            f"x, y: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (N, ...) and (N,); "
            "add a batch axis, and give one label per input"
        )
    _check_values(x, y, bounds)


def _check_values(x: Tensor, y: Tensor, bounds: Bounds) -> None:
    """Check that inputs lie within the bounds and that labels are not negative."""
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bounds: got {bounds}, expected finite low < high; give the range of x")
    if len(x) == 0:
        return
    lowest, highest = x.min().item(), x.max().item()
    if not (low <= lowest and highest <= high):  # true for NaN, too
        raise ValueError(
            f"x: got values from {lowest} to {highest}, expected them within bounds {bounds}; "
            "rescale x, or pass its own bounds"
        )
    if int(y.min()) < 0:
        raise ValueError(f"y: got label {int(y.min())}, expected class indices from 0; relabel")


def check_budget(eps: float, norm: str) -> None:
    """Check a perturbation's size and norm."""
    check_choice("norm", norm, NORMS)
    check_number("eps", eps, positive=False)


def check_number(name: str, value: float, *, positive: bool) -> None:
    """Check that an argument is a finite number, above zero or at least zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r}, expected a number; pass a float")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        expected = "above 0" if positive else "at least 0"
        raise ValueError(f"{name}: got {value}, expected a finite number {expected}; pass such a number")


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Check that an argument is an integer, and not below the minimum."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected an int; pass a whole number")
    if value < minimum:
        raise ValueError(f"{name}: got {value}, expected at least {minimum}; pass a larger number")


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Check that an argument is one of the allowed names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(allowed)}; choose one of these")
