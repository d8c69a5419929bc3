"""What tells one model, or one batch, from another."""

from __future__ import annotations

import hashlib
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
    """Return a fingerprint of a model's structure, as printed, and of the tensors in its state_dict.

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
    shown = re.sub(r" at 0x[0-9a-fA-F]+", "", str(model))
    names = hashlib.sha256(f"{shown} {list(state)}".encode()).hexdigest()
    return hashlib.sha256(f"{names} {of_tensors(*state.values())}".encode()).hexdigest()[:32]


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
