"""The attack libraries: imported when an attack of theirs is called, kept from global state, and re-checked."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn

from ..checks import Bounds, check_batch, check_budget
from ..geometry import confined, reach
from ..model import eval_mode, frozen

Found = Callable[[Tensor], Tensor]


def library(name: str) -> ModuleType:
    """Import foolbox or pyautoattack.

    Args:
        name: Of the package.

    Returns:
        The package.

    Raises:
        ImportError: If it is not installed, naming the extra to install.

    Example:
        >>> library("no_such_attacks")
        Traceback (most recent call last):
        ImportError: this attack needs no_such_attacks: pip install "spectralnorm[attacks]"
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports names that SciPy has moved
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'this attack needs {name}: pip install "spectralnorm[attacks]"') from error


@contextmanager
def contained(model: nn.Module, x: Tensor, seed: int) -> Iterator[None]:
    """Attack in eval mode, with torch's global generators seeded, and leave all as it was.

    Parameters are kept out of the graph: both libraries call `backward`, which would leave gradients in them.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), eval_mode(model), frozen(model):
        torch.manual_seed(seed)
        yield


def attacked(
    found: Found, model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: str, bounds: Bounds, seed: int
) -> Tensor:
    """Run a library's attack on a batch, and cut what it returns to eps and the bounds.

    Args:
        found: Takes the clean inputs and returns the library's points.
        model: Classifier.
        x: Clean inputs, (N, ...).
        y: Labels, (N,).
        eps: Largest perturbation of an example.
        norm: "linf" or "l2".
        bounds: Lowest and highest value of an input.
        seed: Of torch's global generator meanwhile.

    Returns:
        Points within eps of x and within the bounds, shaped as x.

    Raises:
        ValueError: If the library returns something of another shape.

    Example:
        >>> x, y = torch.tensor([[0.5, 0.4]]), torch.tensor([0])
        >>> attacked(lambda clean: clean + 9, nn.Identity(), x, y, 0.25, "linf", (0.0, 1.0), seed=0)
        tensor([[0.7500, 0.6500]])
    """
    check_batch(x, y, bounds)
    check_budget(eps, norm)
    clean = x.detach().clone()
    eps = min(eps, reach(clean, norm, bounds))
    if eps == 0 or len(clean) == 0:
        return clean
    with contained(model, clean, seed):
        point = found(clean)
    if point.shape != clean.shape:
        raise ValueError(
            f"the attack library returned a tensor of shape {tuple(point.shape)}, expected {tuple(clean.shape)}; "
            "install the versions of spectralnorm[attacks]"
        )
    return confined(point.detach().to(clean), clean, eps, norm, bounds)
