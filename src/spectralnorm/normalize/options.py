"""What a user may ask of a normalisation, checked; and the target of each layer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch

__all__ = ["MODES", "check_in_range", "check_options", "check_switches", "check_target", "targets_of"]

MODES = ("hard", "soft")


def check_target(name: str, target: object) -> None:
    """Raise a ValueError unless a norm can be the target."""
    number = isinstance(target, (int, float)) and not isinstance(target, bool)
    if not (number and 0 < target <= sys.float_info.max):  # type: ignore[operator]
        raise ValueError(
            f"{name}={target!r:.60} cannot be reached; expected a finite number above 0, such as 1.0."
        )


def check_options(target: object, mode: str, method: str, budget: float | None, init: str | None) -> None:
    """Raise a ValueError for the first option that is none."""
    if isinstance(target, Mapping):
        for name, value in target.items():
            if not isinstance(name, str):
                raise ValueError(f"target: the key {name!r} is no text; expected names or patterns of layers.")
            check_target(f"target[{name!r}]", value)
    else:
        check_target("target", target)
    if budget is not None:
        check_target("budget", budget)
        if target != 1.0:
            raise ValueError(f"target={target!r} and budget={budget!r} were both given; expected one of them.")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; expected one of {', '.join(MODES)}.")
    if method != "tracked":
        raise ValueError(f"method={method!r} cannot be used in training; expected 'tracked'.")
    if init not in (None, "orthogonal"):
        raise ValueError(f"init={init!r} is unknown; expected 'orthogonal', or None to leave the weights.")


def check_switches(**switches: object) -> None:
    """Raise a ValueError for an option that is neither True nor False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r:.60} is no switch; expected True or False.")


def check_in_range(names: Sequence[str], dtypes: Sequence[torch.dtype], targets: Sequence[float]) -> None:
    """Raise a ValueError for a target that weights of the layer's dtype cannot have for their norm."""
    for name, dtype, target in zip(names, dtypes, targets, strict=True):
        limits = torch.finfo(dtype)
        if not limits.tiny <= target <= limits.max:
            raise ValueError(
                f"target={target:g} is beyond {limits.dtype}, the dtype of {name or 'the layer'}; expected "
                f"{limits.tiny:.2g} to {limits.max:.2g}."
            )


def targets_of(names: Sequence[str], target: float | Mapping[str, float], budget: float | None) -> list[float]:
    """The target of each layer.

    Args:
        names: of the layers.
        target: for all of them, or by name or pattern.
        budget: the product of all targets, in place of `target`.

    Returns:
        One number a layer.

    Raises:
        ValueError: when a layer has no target, or a name fits no layer.
    """
    if budget is not None:
        return [float(budget) ** (1 / len(names))] * len(names)
    if not isinstance(target, Mapping):
        return [float(target)] * len(names)
    for pattern in target:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"target: {pattern!r} fits no layer; expected names or patterns of {', '.join(names)}."
            )
    found = []
    for name in names:
        fitting = [value for pattern, value in target.items() if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"target: {name!r} has none; expected one for every layer. Add '*': 1.0 at the end.")
        found.append(float(fitting[0]))
    return found
