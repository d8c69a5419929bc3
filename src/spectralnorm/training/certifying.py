"""The certified accuracy of a run's final network, as its result holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from spectralnorm.robustness.certify import certify

from .dataset import Dataset

__all__ = ["certification"]


def certification(net: nn.Module, data: Dataset, eps: Sequence[float], *, prove: bool) -> dict[str, Any]:
    """Prove the network's Lipschitz bound, and certify the test images with it.

    Args:
        net: plain, from (N, C, H, W) to logits.
        data: whose test images count.
        eps: L2 sizes; none ask for nothing.
        prove: whether proofs are wanted.

    Returns:
        What goes into the result: "certification", and where that is None, "certification_reason".

    Example:
        >>> import torch
        >>> x, y = torch.rand(4, 1, 1, 2), torch.arange(4) % 2
        >>> data = Dataset("noise", x, y, x, y, classes=2)
        >>> found = certification(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), data, [0.1], prove=True)
        >>> found["certification"]["images"]
        4
    """
    if not eps:
        return {"certification": None, "certification_reason": "no sizes were asked for (--certify-eps)"}
    if not prove:
        return {"certification": None, "certification_reason": "proofs were left out (--no-prove)"}
    try:
        found = certify(net, (data.test_x, data.test_y), {"l2": list(eps)})
    except (TypeError, ValueError, MemoryError) as error:
        return {"certification": None, "certification_reason": str(error)}
    sizes = [{"eps": each.eps, "certified_accuracy": each.certified_accuracy} for each in found.results]
    proven = {"images": found.examples, "clean_accuracy": found.clean_accuracy, "lipschitz": found.lipschitz}
    return {"certification": {**proven, "norm": "l2", "sizes": sizes}}
