"""Fingerprints of weights, by which a state knows its weight again after a copy, a file or a move of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["OUTDATED", "TRUSTED", "alike", "fingerprint"]

TRUSTED = (math.inf,) * 3  # stands for the fingerprint of shards: the state belongs to the weights beside it,
OUTDATED = (-math.inf,) * 3  # or does not


@torch.no_grad()
def fingerprint(tensors: Sequence[Tensor]) -> tuple[float, ...]:
    """Sums that tell tensors from changed ones: three numbers a tensor."""
    sums: list[float] = []
    for tensor in tensors:
        exact = tensor.detach().double()
        places = torch.arange(exact.numel(), dtype=torch.float64, device=exact.device).cos()
        sums += [float(exact.sum()), float(exact.flatten() @ places), float(exact.square().sum())]
    return tuple(sums)


def alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two fingerprints agree up to the order of summation; an empty one agrees with none."""
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9 * math.sqrt(abs(other[3 * (i // 3) + 2])))
        for i, (a, b) in enumerate(zip(one, other, strict=True))
    )
