"""The Linear layer that a classifier ends in: how much two of its logits can move apart."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from spectralnorm.network.lipschitz import Analysis
from spectralnorm.network.outward import product_up
from spectralnorm.network.rules.registry import rule_for
from spectralnorm.network.tracing import MODEL
from spectralnorm.operators.dense import DenseOperator
from spectralnorm.operators.registry import as_operator, has_operator

__all__ = ["LastLinear", "last_linear"]

_POWERS = 1000  # of two, that a float64 holds with room to spare
_SCALINGS = (operator.mul, operator.truediv, torch.mul, torch.div)


@dataclass(frozen=True, eq=False)
class LastLinear:
    """f = factor (W g(x) + b), with a bound on the Lipschitz constant of g.

    Attributes:
        weight: W, (classes, features) float64.
        before: upper bound on the constant of g.
        factor: upper bound on what logits are multiplied by, such as an inverse temperature.
        name: of the layer in the model; empty where it is the model.
    """

    weight: Tensor
    before: float
    factor: float = 1.0
    name: str = ""

    def constants(self, y: Tensor) -> Tensor:
        """Upper bounds on the Lipschitz constants of f_y - f_j: the rows' distance times what comes before.

        The distance of two rows of d entries rounds by less than d + 8 units of float64's roundoff.

        Args:
            y: (N,) classes.

        Returns:
            (N, classes) float64; 0 where j is y.

        Example:
            >>> LastLinear(torch.eye(2).double(), before=2.0).constants(torch.tensor([0])).round(decimals=3)
            tensor([[0.0000, 2.8280]], dtype=torch.float64)
        """
        classes, index = y.unique(return_inverse=True)
        largest = float(self.weight.abs().amax()) if self.weight.numel() else 0.0
        power = math.frexp(largest)[1]  # squares of tiny entries would be lost
        weight = self.weight * 2.0**-power if abs(power) < _POWERS else self.weight
        rows = torch.cdist(
            weight[classes], weight, compute_mode="donot_use_mm_for_euclid_dist"
        )  # differences first, then their length: nothing cancels
        outward = product_up([1 + (self.weight.shape[1] + 8) * 2.0**-52, self.before, self.factor])
        scaled = rows * outward * (2.0**power if abs(power) < _POWERS else 1.0)
        return torch.where(rows > 0, scaled.clamp_min(torch.finfo(rows.dtype).tiny), 0.0)[index]


def last_linear(found: Analysis) -> LastLinear | None:
    """The Linear layer whose output, perhaps scaled by one constant, is the network's.

    Nothing else may read what is between: it may be a call that writes there, such as `mul_`.

    Args:
        found: the network's graph and bounds.

    Returns:
        The layer; None where the network does not end in one.
    """
    node, factor = found.output, 1.0
    while len(node.users) == 1 and node.op == "call_function" and node.target in _SCALINGS:
        inputs = [arg for arg in node.args if arg in found.bounds]
        others = [arg for arg in node.args if arg not in found.bounds]
        several = any(isinstance(arg, fx.Node) and found.entries.get(arg) != 1 for arg in others)
        if node.kwargs or len(inputs) != 1 or several:
            return None
        factor = product_up([factor, float(found.constants[node])])  # type: ignore[arg-type]
        (node,) = inputs  # type: ignore[assignment]
    if node.op != "call_module" or len(node.users) != 1 or node not in found.bounds:
        return None
    layer = found.root.get_submodule(str(node.target))
    if rule_for(layer) is not None or not has_operator(layer):
        return None
    dense, source = as_operator(layer), next(iter(node.all_input_nodes), None)
    if not isinstance(dense, DenseOperator) or source not in found.bounds:
        return None
    name = str(node.target).removeprefix(MODEL).removeprefix(".")
    return LastLinear(dense.weight.detach().double(), found.bounds[source], factor, name)
