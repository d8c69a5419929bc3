"""FSDP2 (`torch.distributed.fsdp.fully_shard`): noticing it, telling it where a parameter has gone, leaving it.

FSDP2 holds a shard of each parameter and puts it, or for the time of a forward pass the gathered parameter, in its
place on the module by `setattr`, wherever a class has a `__setattr__` of its own.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from torch.nn.utils import parametrize

from spectralnorm.normalize.parametrization import parametrizations_of
from spectralnorm.normalize.tracker import Tracker
from spectralnorm.operators.shards import is_sharded, stand_in

__all__ = ["hand_over", "leave", "register", "reshard"]

_Place = tuple[nn.Module, str]  # a module, and the name of a parameter of it


class _WatchedList(parametrize.ParametrizationList):
    """Tells its trackers of the shards that FSDP2 puts in the place of the trained tensor."""

    def _get_name(self) -> str:
        return "ParametrizationList"

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "original" and is_sharded(value):
            for part in self:
                if isinstance(part, Tracker):
                    part.deal_out(value)
        super().__setattr__(name, value)


def register(layer: nn.Module, tensor: str, part: Tracker) -> None:
    """Register a parametrization that is told when FSDP2 takes the tensor over, or has done so already."""
    weight = layer._parameters.get(tensor)
    if is_sharded(weight):  # PyTorch would swap the shards, which others hold: it gets to see another tensor
        layer._parameters[tensor] = nn.Parameter(stand_in(weight), requires_grad=False)
    parametrize.register_parametrization(layer, tensor, part, unsafe=is_sharded(weight))
    chain = parametrizations_of(layer, tensor)
    if is_sharded(weight):
        chain._parameters["original"], chain.unsafe = cast("nn.Parameter", weight), False
    chain.__class__ = _WatchedList
    hand_over((layer, tensor), (chain, "original"))


def hand_over(before: _Place, after: _Place) -> None:
    """Tell FSDP2, where it manages a parameter, that this is on another module now.

    Args:
        before: where it was.
        after: where it is.
    """
    for parameter in _managed():
        info = _private(parameter, "_module_info")
        if _private(info, "module") is before[0] and _private(info, "param_name") == before[1]:
            info.module, info.param_name = after
        modules, names = _private(info, "shared_modules"), _private(info, "shared_param_names")
        for place, found in enumerate(zip(modules, names, strict=True)):
            if found[0] is before[0] and found[1] == before[1]:
                modules[place], names[place] = after


def _managed() -> Iterator[Any]:
    """What FSDP2 keeps of each parameter that it manages in this process."""
    if "torch.distributed.fsdp" not in sys.modules or "torch.distributed._composable_state" not in sys.modules:
        return
    states = _private(sys.modules["torch.distributed._composable_state"], "_module_state_mapping")
    for entry in list(states.values()):
        state = entry() if isinstance(entry, weakref.ref) else entry
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:  # older releases have one; or it is the state of something else
            groups = [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            yield from [] if group is None else _private(group, "fsdp_params")


def _private(holder: Any, name: str) -> Any:
    """An attribute of FSDP2's own, which another release of PyTorch may lack."""
    try:
        return getattr(holder, name)
    except AttributeError as error:
        raise RuntimeError(
            f"This release of PyTorch keeps FSDP2's parameters otherwise ({error}); expected {name!r}. "
            "Call spectral_normalize before fully_shard, which needs none of that."
        ) from error


def reshard(model: nn.Module) -> None:
    """Let FSDP2 free what a forward pass may have left gathered."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            cast("Any", module).reshard()


def leave(layer: nn.Module, tensor: str) -> None:
    """Make a parametrised tensor plain, as trained; like `remove_parametrizations`, but on FSDP2's classes."""
    chain, cls = parametrizations_of(layer, tensor), type(layer)
    parametrised = next(part for part in cls.__mro__ if isinstance(vars(part).get(tensor), property))
    original = chain.original
    delattr(parametrised, tensor)
    del cast("nn.ModuleDict", layer.parametrizations)[tensor]
    layer.register_parameter(tensor, cast("nn.Parameter", original))
    hand_over((chain, "original"), (layer, tensor))
    if not parametrize.is_parametrized(layer):
        del layer.parametrizations
        layer.__class__ = _without(cls, parametrised)


def _without(cls: type, parametrised: type) -> type:
    """A class like this one, but derived from the parametrised class's base."""
    if cls is parametrised:
        return parametrised.__bases__[0]
    if not issubclass(cls, parametrised):
        return cls
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    name = cls.__name__.replace("Parametrized", "")
    return type(name, tuple(_without(base, parametrised) for base in cls.__bases__), own)
