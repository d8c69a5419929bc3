"""Power iteration on the layer itself, at one input size.

Farnia, Zhang & Tse, "Generalizable Adversarial Training via Spectral Normalization" (ICLR 2019); Ryu et al.
(ICML 2019); Gouk et al. (Machine Learning, 2021): x <- A^T A x, a convolution and its transpose a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from spectralnorm.bound import Bound
from spectralnorm.estimators.base import Estimator, check_counts, check_seed, layer_bound, random_input
from spectralnorm.operators.base import Operator, Size

__all__ = ["Power"]


@dataclass(frozen=True)
class Power(Estimator):
    """From below; converges slowly where singular values lie close together.

    Stops when ||A^T u - sigma v|| <= rtol sigma / 10, which says that *a* singular value is that near, not
    that it is the largest.

    Attributes:
        iterations: at most this many.
        seed: of the random starting vector.

    Example:
        >>> import torch, spectralnorm as sn
        >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        >>> bound = sn.spectral_norm(conv, input_shape=(8, 8), method=sn.Power(iterations=50))
        >>> len(bound.stats["history"]) <= 50
        True
    """

    name: ClassVar[str] = "power"
    iterations: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(iterations=self.iterations)
        check_seed(self.seed)

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """Iterate at the size; `stats["history"]` holds the norm after each step."""
        if size is None:
            raise ValueError(
                "method='power' iterates on an input of the layer: expected input_shape, got None. "
                "Give the spatial size, such as (32, 32), or use method='tracked' for the size-free norm."
            )
        history: list[float] = []
        with torch.no_grad():
            generator = torch.Generator("cpu").manual_seed(self.seed)
            v = random_input(operator, size, generator)
            v /= torch.linalg.vector_norm(v)
            for _ in range(self.iterations):
                image = operator.apply(v)
                sigma = float(torch.linalg.vector_norm(image))
                history.append(sigma)
                if sigma == 0:
                    break
                back = operator.adjoint(image / sigma, size)
                settled = float(torch.linalg.vector_norm(back - sigma * v)) <= rtol / 10 * sigma
                v = back / torch.linalg.vector_norm(back)
                if settled:
                    break
        return layer_bound(operator, v[0], self.name, {"iterations": len(history), "history": history})
