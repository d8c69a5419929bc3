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
    """Keeps whole what has a rule or an operator, modules of users too.

    Attributes:
        called: those modules, with the options that they had when they were called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[nn.Module, dict[str, Any]]] = []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Note a module's options, and record its call."""
        self.called.append((m, _options(m)))
        return super().call_module(m, forward, args, kwargs)

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
    root, tracer = _Root(model), Tracer()
    before = {name: tensor._version for name, tensor in _floating(model)}
    try:
        graph = tracer.trace(root)
    except Exception as error:  # whatever a user's forward does to a proxy
        raise ValueError(
            f"model: torch.fx cannot trace {type(model).__name__} ({first_line(error)}); expected a "
            "forward without branches on values of the input. Rewrite it, or give the module that branches a rule "
            "with @spectralnorm.register_lipschitz_rule"
        ) from error
    written = [name for name, tensor in _floating(model) if before.get(name) != tensor._version]
    moved = [module for module, options in tracer.called if options != _options(module)]
    if written or moved:
        what = written[0] if written else f"the options of its {type(moved[0]).__name__}"
        raise ValueError(
            f"model: {type(model).__name__} writes to {what} in its forward, unseen by torch.fx; expected "
            "one that leaves its buffers and options alone in eval mode"
        )
    return root, graph


def _floating(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a model, but for counters."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in found if tensor.is_floating_point()]


def _options(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are plain values."""
    plain = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, plain)}
