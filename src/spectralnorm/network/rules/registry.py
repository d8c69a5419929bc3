"""From an operation to its Lipschitz rule: one decorated function, open to users. Without a rule it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from spectralnorm.network.rules.call import Call
from spectralnorm.operators.registry import computes_as, has_operator

__all__ = ["Constant", "Rule", "Target", "has_rule", "names_of", "refuse", "register_lipschitz_rule", "rule_for"]

Constant = float | tuple[float, ...]
Rule = Callable[[Call], Constant]
Target = type[nn.Module] | Callable[..., Any] | str
_RULES: dict[Target, Rule] = {}
_Function = TypeVar("_Function", bound=Rule)


def register_lipschitz_rule(*targets: Target) -> Callable[[_Function], _Function]:
    """Teach `lipschitz` an operation: decorate a function from a call to its Lipschitz constant in the L2 norm.

    The name says what is registered, beside `register_operator`, which is for the linear map of a layer: a layer
    that has an operator needs no rule.

    The rule returns one number L for the call as a map of all its input tensors together: with inputs that are
    bounded by L_1, ..., L_k as maps of the network's input, the output is by L sqrt(L_1^2 + ... + L_k^2); of one
    input that is L L_1. Or it returns a tuple, a constant per input, and the output is bounded by their sum
    c_1 L_1 + ... + c_k L_k. It must hold for inputs of any values, and for one input by itself (a batch of one):
    an operation that mixes the batch has no rule. A rule refuses a call by raising a TypeError or a ValueError.

    Args:
        *targets: classes of modules, functions as torch.fx records them (such as `torch.nn.functional.relu`,
            `operator.add`, or one of yours after `torch.fx.wrap`), or names of tensor methods. Subclasses of a
            module are covered unless they override `forward`. A registered module is one operation, whatever is
            in its forward.

    Returns:
        The decorator.

    Raises:
        TypeError: when a target is none of these, or there is none.

    Example:
        >>> import torch, spectralnorm as sn
        >>> class Huber(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.where(x.abs() < 1, x * x / 2, x.abs() - 0.5)
        >>> @sn.register_lipschitz_rule(Huber)
        ... def huber_rule(call):
        ...     return 1.0  # |derivative| <= 1 everywhere
        >>> sn.lipschitz(torch.nn.Sequential(Huber()), (4,)).upper
        1.0
    """
    if not targets:
        raise TypeError(
            "register_lipschitz_rule got no target; expected a module class, a function or a method's name."
        )
    for target in targets:
        module = isinstance(target, type) and issubclass(target, nn.Module)
        named = isinstance(target, str) and target.isidentifier()
        if not (module or named or (callable(target) and not isinstance(target, (type, nn.Module)))):
            raise TypeError(
                f"register_lipschitz_rule got {target!r}; expected a subclass of torch.nn.Module, a function, or "
                "the name of a tensor method. Pass the class, not a module of it."
            )

    def decorate(rule: _Function) -> _Function:
        for target in targets:
            _RULES[target] = rule
        return rule

    return decorate


def refuse(reason: str, *targets: Target) -> None:
    """Register that operations have no rule, and why."""

    @register_lipschitz_rule(*targets)
    def _refused(call: Call) -> Constant:
        raise TypeError(f"{call} {reason}.")


def rule_for(target: nn.Module | Callable[..., Any] | str) -> Rule | None:
    """The rule of an operation; None where there is none."""
    if not isinstance(target, nn.Module):
        return _RULES.get(target)
    cls = next((cls for cls in type(target).__mro__ if cls in _RULES), None)
    return _RULES[cls] if cls is not None and computes_as(target, cls) else None


def has_rule(module: nn.Module) -> bool:
    """Whether a module is one operation: it has a rule, an operator, or a reason why not."""
    return rule_for(module) is not None or has_operator(module)


def names_of(module: type[nn.Module], *functions: Callable[..., Any], methods: str = "") -> tuple[Target, ...]:
    """An operation's targets in one tuple: module, functions, and methods by name, parted by spaces."""
    return (module, *functions, *methods.split())
