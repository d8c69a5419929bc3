"""A model as a graph of operations: torch.fx, with errors that say what to do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from spectralnorm.network.naming import first_line
from spectralnorm.network.rules.registry import has_rule

__all__ = ["MODEL", "Tracer", "trace"]

MODEL = "model"  # the attribute of the traced root that holds the model


class _Root(nn.Module):
    """Calls the model with one argument, so that a model of one layer is a call too, and defaults stay values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The model's output."""
        result: Tensor = self.model(x)
        return result


class _Proxy(fx.Proxy):
    """Records `a += b` as a write to `a`, not as `a = a + b`: another name may stand for the same tensor."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._written(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._written(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._written(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._written(operator.itruediv, other)

    def _written(self, function: Callable[[Any, Any], Any], other: Any) -> fx.Proxy:
        found: fx.Proxy = self.tracer.create_proxy("call_function", function, (self, other), {})
        return found


class Tracer(fx.Tracer):
    """Keeps whole what has a rule or an operator, modules of users too."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a value while the forward runs."""
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one operation."""
        return has_rule(m) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Trace a model.

    Args:
        model: a copy that may be written to, as a forward does to its module.

    Returns:
        A module that holds the model as `model`, and its graph.

    Raises:
        ValueError: when torch.fx cannot trace it.

    Example:
        >>> _, graph = trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        >>> [str(node.target) for node in graph.nodes if node.op == "call_module"]
        ['model.0', 'model.1']
    """
    root = _Root(model)
    try:
        return root, Tracer().trace(root)
    except Exception as error:  # whatever a user's forward does to a proxy
        raise ValueError(
            f"model: torch.fx cannot trace {type(model).__name__} ({first_line(error)}); expected a "
            "forward without branches on values of the input. Rewrite it, or give the module that branches a rule "
            "with @spectralnorm.register_lipschitz_rule"
        ) from error
