"""What a user may ask of a normalisation, checked; and the target of each layer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

__all__ = ["MODES", "check_options", "check_target", "targets_of"]

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
    if budget is not None:
        check_target("budget", budget)
        if target != 1.0:
            raise ValueError(f"target={target!r} and budget={budget!r} were both given; expected one of them.")
    if isinstance(target, Mapping):
        for name, value in target.items():
            check_target(f"target[{name!r}]", value)
    else:
        check_target("target", target)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; expected one of {', '.join(MODES)}.")
    if method != "tracked":
        raise ValueError(f"method={method!r} cannot be used in training; expected 'tracked'.")
    if init not in (None, "orthogonal"):
        raise ValueError(f"init={init!r} is unknown; expected 'orthogonal', or None to leave the weights.")


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
