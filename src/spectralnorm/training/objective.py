"""What a run's loss asks of logits, and the constants of the held network that it asks by."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from spectralnorm.losses import hinge, lipschitz_margin
from spectralnorm.robustness.held import HeldLipschitz

from .settings import Settings

__all__ = ["held_constants", "label_loss"]


def held_constants(
    net: nn.Module, settings: Settings, input_shape: Sequence[int], *, sharded: bool = False
) -> HeldLipschitz | str:
    """The Lipschitz constants that a run holds its network to.

    Args:
        net: under the normalisation of the settings.
        settings: of the run.
        input_shape: of one image.
        sharded: whether the weights will be dealt out over processes.

    Returns:
        The constants; or why there are none.

    Raises:
        ValueError: when there are none and the loss needs them.

    Example:
        >>> held_constants(nn.Linear(3, 2), Settings(normalize="none"), (3,))
        "norms are held by normalize='tracked' alone, and normalize is 'none'"
    """
    try:
        if settings.normalize != "tracked":
            raise ValueError(
                f"norms are held by normalize='tracked' alone, and normalize is {settings.normalize!r}"
            )
        if sharded:
            raise ValueError("the last layer's weights are dealt out over processes (parallel is 'fsdp')")
        return HeldLipschitz(net, input_shape)
    except (TypeError, ValueError) as error:
        if settings.loss == "lmt":
            raise ValueError(
                f"loss: 'lmt' needs a network with a Lipschitz bound in training, but {error}; take another loss, "
                "or change that"
            ) from error
        return str(error)


def label_loss(
    logits: Tensor, y: Tensor, settings: Settings, held: HeldLipschitz | str, temperature: Tensor
) -> Tensor:
    """The loss of a batch.

    Args:
        logits: (N, classes), already divided by the temperature.
        y: (N,).
        settings: which loss, its margin, and label smoothing.
        held: from `held_constants`; only "lmt" reads it.
        temperature: of one element.

    Returns:
        0-dim.

    Example:
        >>> import torch
        >>> logits, y, one = torch.tensor([[0.5, 0.0]]), torch.tensor([0]), torch.ones(1)
        >>> label_loss(logits, y, Settings(loss="hinge", margin=0.5), "", one)  # lacks sqrt(2) / 2 - 1 / 2
        tensor(0.2071)
    """
    scale = temperature.reciprocal().squeeze()
    if settings.loss == "hinge":
        return hinge(logits, y, settings.margin, math.sqrt(2) * scale)
    if settings.loss == "lmt":
        assert isinstance(held, HeldLipschitz)  # noqa: S101 - `held_constants` has raised otherwise
        constants = held.constants() * scale
        return lipschitz_margin(logits, y, settings.margin, constants, label_smoothing=settings.label_smoothing)
    return F.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
