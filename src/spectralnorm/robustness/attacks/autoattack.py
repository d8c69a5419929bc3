"""AutoAttack's parts through pyautoattack, Square among them, one at a time."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import Bounds, check_choice, check_count
from ..geometry import reach
from ..model import classified_right, classify
from .libraries import attacked, library

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
NORM_NAMES = {"linf": "Linf", "l2": "L2"}
QUERIES = 5000  # of Square in the standard version
_SILENT = logging.getLogger("spectralnorm.pyautoattack")  # it warns of zero gradients, which `masking` counts
_SILENT.disabled = True


def parts_for(classes: int) -> tuple[str, ...]:
    """Name the attacks of standard AutoAttack; without APGD-T below 4 classes, which its loss needs.

    Args:
        classes: How many the classifier tells apart.

    Returns:
        Names, in the order in which they are run.

    Example:
        >>> parts_for(10), parts_for(3)
        (('apgd-ce', 'apgd-t', 'fab-t', 'square'), ('apgd-ce', 'fab-t', 'square'))
    """
    return PARTS if classes >= 4 else tuple(part for part in PARTS if part != "apgd-t")


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
    queries: int = QUERIES,
) -> Tensor:
    """Run standard AutoAttack: each part on the examples that withstood those before it.

    Args:
        model: Classifier from (N, ...) to logits, (N, classes).
        x: Clean inputs within the bounds, (N, ...), floating point.
        y: True labels, (N,), int64.
        eps: Largest perturbation of an example, in the units of x.
        norm: "linf" or "l2".
        bounds: Lowest and highest value of an input.
        seed: Of each part.
        queries: Of Square, per example.

    Returns:
        Inputs within eps of x and within the bounds, shaped as x; x itself for examples that withstand all.

    Raises:
        ImportError: If pyautoattack is not installed.

    Reference:
        Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", ICML 2020, arXiv 2003.01690.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.4], [0.9, 0.1]]), torch.tensor([0, 0])
        >>> autoattack(nn.Identity(), x, y, 0.1, queries=20).argmax(1)
        tensor([1, 0])
    """
    best = x.detach().clone()
    if len(best) == 0:
        return best
    for part in parts_for(_classes(model, best, y)):
        rows = classified_right(model, best, y).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        point = autoattack_part(
            model, best[rows], y[rows], eps, part=part, norm=norm, bounds=bounds, seed=seed, queries=queries
        )
        fooled = ~classified_right(model, point, y[rows])
        best[rows[fooled]] = point[fooled]
    return best


def autoattack_part(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    part: str,
    norm: str = "linf",
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
    queries: int = QUERIES,
) -> Tensor:
    """Run one attack of AutoAttack with its standard settings.

    Inputs are mapped to [0, 1], to which the library clips, and back. Square moves squares of an image: other
    inputs are laid out as a square, padded with values that the model never sees.

    Args:
        model: Classifier from (N, ...) to logits, (N, classes).
        x: Clean inputs within the bounds, (N, ...), floating point.
        y: True labels, (N,), int64.
        eps: Largest perturbation of an example, in the units of x.
        part: "apgd-ce", "apgd-t", "fab-t" or "square" (Andriushchenko et al. 2020, arXiv 1912.00049).
        norm: "linf" or "l2".
        bounds: Lowest and highest value of an input.
        seed: Of what is random.
        queries: Of Square, per example.

    Returns:
        Inputs within eps of x and within the bounds, shaped as x.

    Raises:
        ImportError: If pyautoattack is not installed.
        ValueError: If the part does not exist, or is APGD-T with fewer than 4 classes.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.4]]), torch.tensor([0])
        >>> autoattack_part(nn.Identity(), x, y, 0.1, part="square", queries=20).argmax(1)
        tensor([1])
    """
    check_choice("part", part, PARTS)
    check_count("queries", queries)
    package = library("pyautoattack")

    def found(clean: Tensor) -> Tensor:
        classes = _classes(model, clean, y)
        if part not in parts_for(classes):
            raise ValueError(
                f"{part}: got {classes} classes, expected at least 4; run autoattack, which leaves it out"
            )
        unit = _UnitInputs(model, y, clean, bounds, norm)
        size = min(eps, reach(clean, norm, bounds)) / (bounds[1] - bounds[0])
        attack = _configured(package, unit, part, size, norm, seed, min(9, classes - 1), queries, clean.device)
        point: Tensor = attack.perturb(unit.of(clean), y)
        return unit.back(point)

    return attacked(found, model, x, y, eps, norm, bounds, seed)


def _configured(
    package: Any,
    model: nn.Module,
    part: str,
    eps: float,
    norm: str,
    seed: int,
    targets: int,
    queries: int,
    device: torch.device,
) -> Any:
    """The library's attack object, set as its standard version sets it; `targets` is 9 from 10 classes on."""
    whole = package.AutoAttack(model, norm=NORM_NAMES[norm], eps=eps, seed=seed, version="standard", device=device)
    whole.fab.targeted = True
    whole.fab.n_target_classes = whole.apgd_targeted.n_target_classes = targets
    whole.square.n_queries = queries
    whole.apgd.loss = "ce"
    whole.apgd_targeted.logger = _SILENT
    attacks = {"apgd-ce": whole.apgd, "apgd-t": whole.apgd_targeted, "fab-t": whole.fab, "square": whole.square}
    return attacks[part]


class _UnitInputs(nn.Module):
    """The model on images in [0, 1], float32, as the library makes them."""

    def __init__(self, model: nn.Module, y: Tensor, like: Tensor, bounds: Bounds, norm: str) -> None:
        super().__init__()
        self.model, self.low, self.range = model, bounds[0], bounds[1] - bounds[0]
        self.shape, self.dtype, self.largest = like.shape[1:], like.dtype, int(y.max())
        smallest_side = 5 if norm == "l2" else 1  # Square's first step in L2 is a grid of 5 by 5
        self.image = like.ndim == 4 and min(like.shape[2:]) >= smallest_side
        self.side = max(smallest_side, math.isqrt(like[0].numel() - 1) + 1)

    def of(self, x: Tensor) -> Tensor:
        """Inputs as images in [0, 1]."""
        unit = x if (self.low, self.range) == (0, 1) else (x - self.low) / self.range
        unit = unit.float().clamp(0, 1)
        if self.image:
            return unit
        padding = self.side**2 - unit[0].numel()
        padded = nn.functional.pad(unit.flatten(1), (0, padding), value=0.5)
        return padded.view(len(x), 1, self.side, self.side)

    def back(self, unit: Tensor) -> Tensor:
        """Images in [0, 1] as inputs."""
        if not self.image:
            unit = unit.flatten(1)[:, : self.shape.numel()].reshape(-1, *self.shape)
        unit = unit.to(self.dtype)
        return unit if (self.low, self.range) == (0, 1) else unit * self.range + self.low

    def forward(self, unit: Tensor) -> Tensor:
        """Logits of such images, checked; a copy, since Square writes into it."""
        labels = torch.full((1,), self.largest, device=unit.device)
        return classify(self.model, self.back(unit), labels).float().clone()


def _classes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return classify(model, x[:1], y[:1]).shape[1]
