"""The fast gradient sign method, and what gradient attacks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import Bounds, check_batch, check_budget, check_choice
from ..geometry import direction, project, reach
from ..model import classify, eval_mode
from .losses import LOSSES


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
    clean = checked(x, y, eps, norm, loss, bounds)
    if eps == 0 or len(clean) == 0:
        return clean
    with eval_mode(model), torch.enable_grad():
        point = clean.clone().requires_grad_()
        gradient = input_gradient(LOSSES[loss](classify(model, point, y), y), point)
    eps = min(eps, reach(clean, norm, bounds))
    return project(clean + eps * direction(gradient, norm), clean, eps, norm, bounds)


def checked(x: Tensor, y: Tensor, eps: float, norm: str, loss: str, bounds: Bounds) -> Tensor:
    """Check what every attack takes; return the clean inputs, cut off from any graph."""
    check_batch(x, y, bounds)
    check_budget(eps, norm)
    check_choice("loss", loss, LOSSES)
    return x.detach().clone()


def input_gradient(losses: Tensor, point: Tensor) -> Tensor:
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
