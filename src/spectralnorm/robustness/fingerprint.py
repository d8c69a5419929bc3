"""What tells one model, or one batch, from another."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn


def of_tensors(*tensors: Tensor) -> str:
    """Return a fingerprint of tensors' dtypes, shapes and bits: 32 hexadecimal digits.

    Args:
        tensors: Any number of them.

    Returns:
        The fingerprint.

    Example:
        >>> of_tensors(torch.zeros(2)) == of_tensors(torch.zeros(2)) != of_tensors(torch.zeros(1, 2))
        True
    """
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def of_model(model: nn.Module) -> str:
    """Return a fingerprint of a model's structure: as printed, its modules' public options, all its tensors.

    Code that does not show there, such as a factor in `forward`, goes unnoticed.

    Args:
        model: The model.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> of_model(nn.ReLU()) == of_model(nn.ReLU()), of_model(nn.ReLU()) == of_model(nn.Tanh())
        (True, False)
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    state |= dict(model.named_buffers())  # those that are not saved, too
    options = {name: _options(module) for name, module in model.named_modules()}
    names = hashlib.sha256(f"{shown(model)} {options} {list(state)}".encode()).hexdigest()
    return hashlib.sha256(f"{names} {of_tensors(*state.values())}".encode()).hexdigest()[:32]


def _options(module: nn.Module) -> dict[str, object]:
    """The public attributes of a module that are plain values: not all are printed, as those of pools."""
    plain = (bool, int, float, str, tuple, list)
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {
        name: shown(value) for name, value in public.items() if isinstance(value, plain) and name != "training"
    }


def shown(value: object) -> str:
    """Return what a value prints as, without addresses; a tensor with all its entries.

    Args:
        value: Anything.

    Returns:
        The text.

    Example:
        >>> shown(0.5), shown(torch.zeros(2)) == shown(torch.ones(2)), shown(shown)
        ('0.5', False, 'shown')
    """
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        tensor = torch.as_tensor(value)
        return f"tensor of {tuple(tensor.shape)} {of_tensors(tensor)[:8]}"
    if inspect.isroutine(value):
        return getattr(value, "__qualname__", repr(value))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages, "none" for those that are not installed.

    Args:
        packages: Their names.

    Returns:
        Versions by name.

    Example:
        >>> versions(["no-such-package"])
        {'no-such-package': 'none'}
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found
