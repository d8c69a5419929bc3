"""The result of every measurement: a value, and the interval that encloses the norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

__all__ = ["Bound"]


@dataclass(frozen=True, eq=False)
class Bound:
    """A spectral norm and what is guaranteed about it.

    `float(bound)` and formats such as `f"{bound:.3f}"` are of the value. Copies by `copy.deepcopy` and `pickle`
    hold the value without its autograd graph, which can be neither copied nor saved; `copy.copy` keeps it.

    Attributes:
        value: 0-dim tensor, the estimate; differentiable with respect to the weight.
        lower: the norm is at least this; 0 without a guarantee.
        upper: the norm is at most this; `inf` without a guarantee.
        method: name of the method that made it.
        stats: what the method did (sweeps, frequency, tracks, ...), for reading and logging.

    Example:
        >>> import torch, spectralnorm as sn
        >>> bound = sn.spectral_norm(torch.diag(torch.tensor([3.0, 4.0])), method="exact")
        >>> bound.lower <= 4 <= bound.upper
        True
        >>> bound.certified
        True
    """

    value: Tensor
    lower: float
    upper: float
    method: str
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def certified(self) -> bool:
        """Whether both ends are proven."""
        return math.isfinite(self.upper) and (self.lower > 0 or self.upper == 0)

    def __float__(self) -> float:
        return float(self.value.detach())

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "value": self.value.detach()}

    def __copy__(self) -> Bound:
        return replace(self)

    def __repr__(self) -> str:
        interval = f"[{self.lower:.6g}, {self.upper:.6g}]"
        return f"Bound({float(self):.6g}, norm in {interval}, method={self.method!r})"
