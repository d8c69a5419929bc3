"""One call in a model's graph, as a Lipschitz rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

__all__ = ["Call", "Measure"]


class Measure(Protocol):
    """Measures linear maps: an upper bound of the norm, or an estimate where that was asked for."""

    def __call__(
        self, layer_or_weight: nn.Module | Tensor, size: tuple[int, ...] | None = None, **conv_args: Any
    ) -> float:
        """The norm of a layer or a raw weight, at a spatial size or over all sizes."""
        ...


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module, function or method, made on an example input: a batch of one.

    Attributes:
        name: of the node in the graph.
        target: the module, the function, or the method's name.
        args: positional arguments, tensors as they were.
        kwargs: keyword arguments.
        inputs: the tensors among both that depend on the network's input, in their order.
        output: what the call returned.
        measure: `measure(layer_or_weight, size=None, **conv_args)` is the norm of a linear map, for rules that
            rest on one; it is proven from above unless the whole bound is an estimate.
        min_variance: what the user says the variance is at least wherever a layer divides by it; None if nothing.

    Example:
        >>> x = torch.ones(1, 3)
        >>> call = Call("act", nn.LeakyReLU(2.0), (x,), {}, (x,), 2 * x, lambda *_: 1.0)
        >>> call.argument("negative_slope"), call.depends(x), call.depends(torch.ones(1, 3))
        (2.0, True, False)
    """

    name: str
    target: nn.Module | Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Tensor, ...]
    output: Any
    measure: Measure
    min_variance: float | None = None

    def argument(self, name: str, position: int | None = None, default: Any = None) -> Any:
        """An option of the call: a module's attribute, or an argument by keyword or position.

        Args:
            name: of the attribute and of the keyword.
            position: among the positional arguments of a function or method, where it may stand there.
            default: of the function or method.

        Returns:
            Its value.
        """
        if isinstance(self.target, nn.Module):
            return getattr(self.target, name)
        if name in self.kwargs:
            return self.kwargs[name]
        given = position is not None and position < len(self.args)
        return self.args[position] if given else default  # type: ignore[index]

    def depends(self, value: Any) -> bool:
        """Whether an argument is a tensor that depends on the network's input."""
        return any(value is each for each in self.inputs)

    def replay(self, x: Tensor) -> Tensor:
        """Make the call again on another tensor in place of its one input."""
        old = self.inputs[0]

        def swap(value: Any) -> Any:
            return x if value is old else value

        args: Any = fx.node.map_aggregate(self.args, swap)
        kwargs: Any = fx.node.map_aggregate(self.kwargs, swap)
        function = getattr(torch.Tensor, self.target) if isinstance(self.target, str) else self.target
        result: Tensor = function(*args, **kwargs)
        return result

    def __str__(self) -> str:
        """The target as its user knows it: a module's class, a function's or a method's name."""
        if isinstance(self.target, nn.Module):
            return type(self.target).__name__
        if isinstance(self.target, str):
            return f"Tensor.{self.target}"
        return getattr(self.target, "__name__", repr(self.target))
