"""Attacks that look for the smallest perturbation, through foolbox: Carlini-Wagner, DeepFool, DDN, FMN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import Bounds, check_choice
from ..model import classify
from .libraries import attacked, library

SMALLEST: dict[str, dict[str, str]] = {  # foolbox's classes by our names and norms
    "cw": {"l2": "L2CarliniWagnerAttack"},
    "deepfool": {"l2": "L2DeepFoolAttack", "linf": "LinfDeepFoolAttack"},
    "ddn": {"l2": "DDNAttack"},
    "fmn": {"l2": "L2FMNAttack", "linf": "LInfFMNAttack"},
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "cw": {"steps": 500}
}  # foolbox's own 10,000 take hours; the others are its own


def smallest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    name: str,
    norm: str = "l2",
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Look for the smallest perturbation that changes the class, and cut it to eps.

    Foolbox's own word on success is not taken; what it returns is cut to eps and to the bounds. The model is
    attacked in eval mode, and left as it was; so is torch's global generator.

    Args:
        model: Classifier from (N, ...) to logits, (N, classes).
        x: Clean inputs within the bounds, (N, ...), floating point.
        y: True labels, (N,), int64.
        eps: Largest perturbation of an example, in the units of x.
        name: "cw" (Carlini and Wagner 2017, arXiv 1608.04644), "deepfool" (Moosavi-Dezfooli et al. 2016, arXiv
            1511.04599), "ddn" (Rony et al. 2019, arXiv 1811.09600) or "fmn" (Pintor et al. 2021, arXiv
            2102.12827).
        norm: "l2"; "linf" for DeepFool and FMN.
        bounds: Lowest and highest value of an input.
        seed: Of what is random.
        options: For foolbox's attack, such as steps.

    Returns:
        Inputs within eps of x and within the bounds, shaped as x.

    Raises:
        ImportError: If foolbox is not installed.
        ValueError: If foolbox has no such attack in that norm.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.4]]), torch.tensor([0])
        >>> smallest(nn.Identity(), x, y, 0.2, name="deepfool").argmax(1)
        tensor([1])
    """
    check_choice("name", name, SMALLEST)
    check_choice("norm", norm, SMALLEST[name])
    foolbox = library("foolbox")
    attack = getattr(foolbox.attacks, SMALLEST[name][norm])(**{**DEFAULTS.get(name, {}), **options})

    def found(clean: Tensor) -> Tensor:
        with torch.no_grad():
            classify(model, clean, y)  # a clear error for logits that are no classifier's
        wrapped = foolbox.PyTorchModel(_Reading(model).eval(), bounds=bounds, device=clean.device)
        with torch.enable_grad():
            raw: Tensor = attack(wrapped, clean, y, epsilons=None)[0]
        return raw

    return attacked(found, model, x, y, eps, norm, bounds, seed)


class _Reading(nn.Module):
    """A model that leaves its input as it is, even one that writes to it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits."""
        logits: Tensor = self.model(x.clone())
        return logits
