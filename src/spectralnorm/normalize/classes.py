"""Parametrised modules that can be copied and pickled.

`torch.nn.utils.parametrize` gives a module a class made on the fly: its copies share that class, so that
removing the parametrization from one breaks the other, and it refuses to pickle. Here each copy is rebuilt
with a class of its own.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["own_class"]


def own_class(module: nn.Module) -> None:
    """Let a parametrised module be copied and pickled: `copy`, `deepcopy`, `pickle`, `torch.save`."""
    cls = type(module)
    for name in ("__getstate__", "__deepcopy__"):
        if name in cls.__dict__:
            delattr(cls, name)
    cls.__reduce_ex__ = _reduce  # type: ignore[method-assign, assignment]


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    state = object.__reduce_ex__(module, 2)[2]
    del protocol
    return _rebuild, (type(module).__bases__[0], tuple(module.parametrizations)), state  # type: ignore[arg-type]


def _rebuild(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """An empty module of a fresh parametrised class; its state is set afterwards."""
    module = base.__new__(base)
    parametrize._inject_new_class(module)
    for name in names:
        parametrize._inject_property(module, name)
    own_class(module)
    return module
