"""Training on adversarial examples: FGSM, PGD and TRADES.

The inner attack runs in eval mode, so that BatchNorm's statistics are those of clean images. The states of
normalised layers are moved before it: its passes, and the step's, then all go by one norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectralnorm.normalize.api import step as move_states
from spectralnorm.normalize.sites import normalised
from spectralnorm.robustness.attacks import direction, eval_mode, noise, project

from .settings import Settings

__all__ = ["training_loss"]

_LONG = 2.5  # PGD's steps have this many times eps / steps for their length
_FGSM = 1.25  # and FGSM's step, from a random start, this many times eps (Wong, Rice & Kolter 2020)
_START = 1e-3  # TRADES starts from so small a perturbation: at the image itself the divergence has no slope


def training_loss(
    model: Callable[[Tensor], Tensor],
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: Settings,
    seed: int,
    label_loss: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and the logits that count for training accuracy.

    Args:
        model: images to logits, over processes perhaps.
        net: the same, in this process alone: what is attacked.
        x: (N, C, H, W), in [0, 1].
        y: (N,).
        settings: which adversary.
        seed: of the attack's random start.
        label_loss: of logits and labels, the mean over the batch; the attack itself goes by cross-entropy.

    Returns:
        0-dim loss, and (N, classes) logits.

    Reference:
        Madry et al. 2018 (arXiv 1706.06083); Wong, Rice & Kolter 2020 (arXiv 2001.03994) for FGSM;
        Zhang et al. 2019 (arXiv 1901.08573), equation (5), for TRADES.
    """
    if settings.adversarial == "none":
        logits = model(x)
        return label_loss(logits.float(), y), logits
    if settings.adversarial != "trades":
        logits = model(_adversarial(net, x, settings, seed, lambda z: F.cross_entropy(z.float(), y)))
        return label_loss(logits.float(), y), logits
    with eval_mode(net), torch.no_grad():
        _settle(net)
        clean = F.log_softmax(net(x).float(), 1)
    attacked = _adversarial(net, x, settings, seed, lambda z: _divergence(clean, z))
    logits, moved = model(torch.cat([x, attacked])).chunk(2)
    apart = _divergence(F.log_softmax(logits.float(), 1), moved)
    return label_loss(logits.float(), y) + settings.trades_beta * apart, logits


def _adversarial(
    net: nn.Module, x: Tensor, settings: Settings, seed: int, loss_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Images within eps at which a loss of the logits is high."""
    _settle(net)
    generator = torch.Generator(x.device).manual_seed(seed)
    eps, once = settings.eps, settings.adversarial == "fgsm"
    steps = 1 if once else settings.attack_steps
    length = _FGSM * eps if once else _LONG * eps / steps
    start = noise(x, eps if settings.adversarial != "trades" else min(eps, _START), settings.norm, generator)
    onto = partial(project, x=x, eps=eps, norm=settings.norm, bounds=(0.0, 1.0))
    point = onto(x + start)
    with eval_mode(net):
        for _ in range(steps):
            point = point.detach().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(loss_of(net(point)), point)
            point = onto(point.detach() + length * direction(slope, settings.norm))
    return point


def _settle(net: nn.Module) -> None:
    """Move the states of layers that are normalised, which the attack's passes in eval mode do not."""
    if next(normalised(net), None):
        move_states(net)


def _divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || softmax of the logits), the mean over the batch."""
    return F.kl_div(F.log_softmax(logits.float(), 1), log_p, reduction="batchmean", log_target=True)
