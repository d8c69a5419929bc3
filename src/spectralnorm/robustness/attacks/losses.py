"""What gradient attacks raise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


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
