"""PyTorch's "spectral norm": the norm of the kernel flattened to a matrix, converged.

Miyato, Kataoka, Koyama & Yoshida, "Spectral Normalization for Generative Adversarial Networks" (ICLR 2018), as
in `torch.nn.utils.parametrizations.spectral_norm`. It is not the norm of the convolution (pytorch#99149).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from spectralnorm.bound import Bound
from spectralnorm.estimators.base import Estimator, attach_gradient
from spectralnorm.estimators.rounding import dense_rounding, frobenius_norm, power_of_two, rescaled_back
from spectralnorm.operators.base import Operator, Size

__all__ = ["Flattened"]


@dataclass(frozen=True)
class Flattened(Estimator):
    """At most the norm for one group, where some output reads every tap: its row of the layer's matrix does.

    With several groups it lies on neither side; then, and where no output sees the whole kernel (at small sizes;
    in strided transposed convolutions), `lower` is 0. For a dense layer it *is* the norm.

    Example:
        >>> import torch, spectralnorm as sn
        >>> kernel = torch.tensor([[[1.0, 1.0, -1.0]]])  # norm sqrt(5), over all sizes
        >>> round(float(sn.spectral_norm(kernel, method=sn.Flattened())), 4)
        1.7321
    """

    name: ClassVar[str] = "flattened"

    def estimate(self, operator: Operator, size: Size | None, rtol: float) -> Bound:
        """One SVD of the flattened kernel, whatever the tolerance."""
        del rtol
        flat = operator.flattened()
        with torch.no_grad():
            scale = power_of_two(flat)
            exact = flat.double() / scale
            u, s, vh = torch.linalg.svd(exact, full_matrices=False)
            frobenius = frobenius_norm(exact)
        sigma = float(s[0])
        rounding = dense_rounding(flat.shape[0], flat.shape[1], frobenius, torch.float64)
        bilinear = (flat * torch.outer(u[:, 0], vh[0]).to(flat)).sum()
        value = attach_gradient(sigma * scale, bilinear)
        below = operator.symbol().groups == 1 and operator.reads_all(size)
        lower = rescaled_back(max(0.0, sigma - rounding), scale, up=False) if below else 0.0
        upper = rescaled_back(sigma + rounding, scale, up=True) if operator.axes == 0 else math.inf
        return Bound(value, lower, upper if frobenius else 0.0, self.name, {})
