"""Certified radii of one network: its bounds are proven once, and serve every batch.

Where f is a network's logits and f_y - f_j has the Lipschitz constant L_j, the answer y stands within a distance
of min over j of (f_y - f_j) / L_j (Tsuzuku, Sato & Sugiyama, "Lipschitz-Margin Training", NeurIPS 2018, arXiv
1802.04034).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectralnorm.network.last_linear import LastLinear, last_linear
from spectralnorm.network.lipschitz import analyse
from spectralnorm.network.naming import first_line

from .checks import check_types
from .model import classify

__all__ = ["Certifier"]

_ROUNDINGS = 8  # of the largest logit, in units of the dtype's eps: what is taken off a margin
_LEAST_EPS = 2.0**-23  # of float32; that of float64 would allow for nothing
_DOWN = 1 - 2.0**-40  # more than what rounds in a radius


class Certifier:
    """Certifies inputs of one network: its bounds are proven once, and serve every batch.

    It works on a copy of the network as it was when the certifier was made: make a new one after training on.

    What is proven is about the network in exact arithmetic, with the weights it has. Logits are computed twice, as
    the model computes them and in float64. Every margin is lowered by twice the largest difference between the two
    and by 8 times the dtype's eps of the largest logit (float32's for float64): an allowance for rounding, also of
    the model itself at perturbed inputs, which is measured, not proven. An input that either misclassifies has
    radius 0.

    Attributes:
        input_shape: one input's shape without batch.
        lipschitz: upper bound on the Lipschitz constant of all logits together, in the L2 norm.

    Args:
        model: classifier from (N, ...) to logits, (N, classes), that `sn.lipschitz` takes.
        input_shape: one input's shape without batch, such as `(3, 32, 32)`.
        rtol: relative tolerance of the layers' norms.
        min_variance: as of `sn.lipschitz`; with a value above 0 radii hold only where that is so.

    Raises:
        TypeError: as `sn.lipschitz`.
        ValueError: as `sn.lipschitz`, or when the output is not (N, classes) with at least 2 classes.

    Reference:
        Tsuzuku et al. 2018, section 3; the last layer per pair of classes as in its section 4.

    Example:
        >>> import torch, spectralnorm as sn
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.eye(2)
        >>> certifier = sn.Certifier(net, (2,))
        >>> radius = certifier.radius(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        >>> round(float(radius), 3)  # the boundary is the diagonal
        1.414
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: Sequence[int],
        *,
        rtol: float = 1e-3,
        min_variance: float | None = None,
    ) -> None:
        found = analyse(model, input_shape, rtol=rtol, min_variance=min_variance)
        self.input_shape = tuple(found.example.shape[1:])
        self.lipschitz = found.bound
        self._plain, self._exact = found.plain, found.exact()
        logits = self._example_logits(found.example)
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"model: got an output of shape {tuple(logits.shape)} for one input, expected (1, classes) with "
                "at least 2 classes; pass a classifier"
            )
        self._last: LastLinear | None = last_linear(found)

    def _example_logits(self, x: Tensor) -> Tensor:
        """Of one input in float64.

        Returns:
            (1, classes), if the model is a classifier.

        Raises:
            ValueError: when the network does not run so.
        """
        try:
            with torch.no_grad():
                logits: Tensor = self._exact(x.double())
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"model: it does not run in float64 ({first_line(error)}), as certified logits need; expected a "
                "forward that takes its dtype from its input"
            ) from error
        return logits

    def radius(self, x: Tensor, y: Tensor) -> Tensor:
        """Certified L2 radii.

        Args:
            x: inputs, (N, *input_shape).
            y: labels, (N,), int64.

        Returns:
            (N,) float64: no perturbation shorter than that, in the L2 norm, makes the network answer otherwise in
            exact arithmetic; 0 where it does so already, `inf` where the answer does not depend on the input.

        Raises:
            TypeError: when x and y are not tensors of floating point and int64.
            ValueError: when their shapes or values do not fit.
        """
        return self.judge(x, y)[0]

    def judge(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Certified L2 radii, and which inputs are classified right.

        Args:
            x: inputs, (N, *input_shape).
            y: labels, (N,), int64.

        Returns:
            Radii as of `radius`, and (N,) bool: right both in float64 and as the model computes.
        """
        self._check(x, y)
        if not len(x):
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
        weight = next((p for p in self._plain.parameters() if p.is_floating_point()), x)
        x, y = x.to(weight.device), y.to(weight.device)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            rounded = classify(self._plain, x.to(weight.dtype), y)
            exact = classify(self._exact, x.double(), y)
            right = (rounded.argmax(1) == y) & (exact.argmax(1) == y)
            return torch.where(right, self._distances(exact, rounded, y), 0.0), right

    def _distances(self, exact: Tensor, rounded: Tensor, y: Tensor) -> Tensor:
        """Least distance at which another class can draw level, (N,); logits are (N, classes)."""
        dtypes = {p.dtype for p in self._plain.parameters() if p.is_floating_point()} | {rounded.dtype}
        units = _ROUNDINGS * max(_LEAST_EPS, *(torch.finfo(dtype).eps for dtype in dtypes))
        slack = 2 * (exact - rounded).abs().amax(1) + units * exact.abs().amax(1)
        margins = exact.gather(1, y[:, None]) - exact - slack[:, None]
        constants = self._constants(y)
        distances = torch.where(constants > 0, margins / constants, math.inf)
        distances = torch.where(margins > 0, distances, 0.0)
        return distances.scatter(1, y[:, None], math.inf).amin(1) * _DOWN

    def _constants(self, y: Tensor) -> Tensor:
        """Lipschitz constants of f_y - f_j, (N, classes) or (N, 1); zero entries stay zero."""
        if self._last is None:
            return torch.full(
                (len(y), 1), math.sqrt(2) * self.lipschitz / _DOWN, dtype=torch.float64, device=y.device
            )
        return self._last.constants(y)

    def _check(self, x: Tensor, y: Tensor) -> None:
        check_types(x, y)
        if torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                "Certified radii were asked for under torch.autocast, where the model computes other logits; "
                "expected none. Leave autocast, or convert the model with .to(dtype) and certify that"
            )
        if tuple(x.shape[1:]) != self.input_shape or y.shape != x.shape[:1]:
            raise ValueError(
                f"x, y: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (N, "
                f"{', '.join(map(str, self.input_shape))}) and (N,); give one label per input"
            )
        if len(y) and int(y.min()) < 0:
            raise ValueError(f"y: got label {int(y.min())}, expected class indices from 0; relabel")
