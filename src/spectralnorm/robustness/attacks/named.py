"""The attacks that have a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..checks import NORMS, Bounds, check_choice
from ..fingerprint import shown
from .autoattack import autoattack, autoattack_part, parts_for
from .base import Attack, NamedAttack
from .fgsm import fgsm
from .pgd import pgd
from .smallest import SMALLEST, smallest


def _fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, bounds: Bounds, seed: int) -> Tensor:
    """FGSM on cross-entropy; it draws nothing, so that the seed is unused."""
    del seed
    return fgsm(model, x, y, eps, norm=norm, bounds=bounds)


def _part(name: str) -> NamedAttack:
    return NamedAttack(
        name,
        partial(autoattack_part, part=name),
        kind="black" if name == "square" else "white",
        cross_entropy=name == "apgd-ce",
        library="pyautoattack",
    )


def _parts(classes: int, norm: str) -> tuple[NamedAttack, ...]:
    del norm  # the same in both
    return tuple(map(_part, parts_for(classes)))


_ALL = (
    NamedAttack("fgsm", _fgsm, cross_entropy=True),
    NamedAttack("pgd", partial(pgd, loss="margin"), steps=20),
    NamedAttack("pgd-ce", partial(pgd, loss="ce"), cross_entropy=True, steps=20),
    *(
        NamedAttack(
            name,
            partial(smallest, name=name),
            norms=tuple(norm for norm in NORMS if norm in classes),
            smallest=True,
            library="foolbox",
        )
        for name, classes in SMALLEST.items()
    ),
    *map(_part, ("apgd-ce", "apgd-t", "fab-t", "square")),
    NamedAttack("autoattack", autoattack, parts=_parts, library="pyautoattack"),
)
ATTACKS: Mapping[str, NamedAttack] = MappingProxyType({attack.name: attack for attack in _ALL})


def named(attacks: Sequence[str | Attack | NamedAttack]) -> tuple[NamedAttack, ...]:
    """Give each attack its name.

    Args:
        attacks: Keys of `ATTACKS`, or functions with the signature of `Attack`; those of functions made with
            `functools.partial` show what was set.

    Returns:
        The attacks, in the same order.

    Raises:
        TypeError: If one is neither a name nor a function.
        ValueError: If there is none, a name is unknown, or given twice.

    Example:
        >>> [attack.name for attack in named(["fgsm", partial(pgd, steps=50)])]
        ['fgsm', 'pgd(steps=50)']
    """
    if isinstance(attacks, str) or not attacks:
        raise ValueError(f"attacks: got {attacks!r}, expected a list of at least one; pass for example ['pgd']")
    found: dict[str, NamedAttack] = {}
    for attack in map(_named, attacks):
        name = attack.name
        while attack.kind == "own" and name in found:  # functions may share a name, as lambdas do
            name = f"{attack.name}#{len(found) + 1}"
        if name in found:
            raise ValueError(f"attacks: got {name} more than once, expected different attacks; drop one")
        found[name] = replace(attack, name=name)
    return tuple(found.values())


def _named(attack: str | Attack | NamedAttack) -> NamedAttack:
    if isinstance(attack, NamedAttack):
        return attack
    if isinstance(attack, str):
        check_choice("attacks", attack, ATTACKS)
        return ATTACKS[attack]
    if not callable(attack):
        raise TypeError(
            f"attacks: got {attack!r}, expected a name or a function; pass one of {', '.join(ATTACKS)}"
        )
    return NamedAttack(_name(attack), attack, kind="own")


def _name(function: Any) -> str:
    """The name of a function, with what `functools.partial` has set."""
    if isinstance(function, partial):
        by_name = (f"{name}={shown(value)}" for name, value in function.keywords.items())
        given = [*map(shown, function.args), *by_name]
        return f"{_name(function.func)}({', '.join(given)})"
    return getattr(function, "__name__", type(function).__name__)
