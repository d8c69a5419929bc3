"""The norm at a size without closed form, from below: Golub-Kahan-Lanczos on the layer; see `lanczos.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectralnorm.bound import Bound
from spectralnorm.estimators.base import Estimator, check_counts, check_seed, layer_bound
from spectralnorm.estimators.lanczos import largest_input
from spectralnorm.operators.base import Operator, Size

__all__ = ["MatrixFree"]


@dataclass(frozen=True)
class MatrixFree(Estimator):
    """From below, to rtol; what `auto` uses at a size without closed form.

    Attributes:
        max_steps: applications of the layer and its adjoint, at most.
        seed: of the random starting vector.
    """

    name: ClassVar[str] = "matrix-free"
    max_steps: int = 600
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(max_steps=self.max_steps)
        check_seed(self.seed)

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Iterate until the residual says that the norm is within rtol."""
        if size is None:
            raise ValueError(
                "the matrix-free method works at a size: expected input_shape, got None. "
                "Give the spatial size, such as (32, 32)."
            )
        v, stats = largest_input(operator, size, rtol, self.max_steps, self.seed)
        return layer_bound(operator, v, self.name, stats)
