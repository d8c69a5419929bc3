"""Drop-in for `torch.nn.utils.parametrizations`: the same call, the true norm of convolutions."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations

from spectralnorm.normalize.api import attach, is_small
from spectralnorm.normalize.engine import Engine
from spectralnorm.normalize.parametrization import SpectralNormalization
from spectralnorm.normalize.scaling import Rule
from spectralnorm.normalize.sites import Site, check_plain, is_normalizable
from spectralnorm.operators.registry import as_operator

__all__ = ["spectral_norm"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def spectral_norm(
    module: AnyModule,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> AnyModule:
    """Divide a layer's weight by its true spectral norm; called like PyTorch's function of this name.

    Linear and convolution layers get the norm of the map they apply. A parameter without operator (of an LSTM,
    an Embedding, a vector) falls back to PyTorch's own rule, the norm of the flattened tensor.

    Args:
        module: the layer.
        name: its parameter; the true norm is for "weight".
        n_power_iterations: sweeps per change of the weight in training.
        eps: used by the fallback only; a zero weight stays zero here, whatever eps.
        dim: used by the fallback only; which axis is the output of a layer is known here.

    Returns:
        The same module, with a parametrization registered on the parameter.

    Raises:
        ValueError: when the module has no such parameter, n_power_iterations is not positive, or the weight
            is parametrised already.

    Reference:
        Miyato et al., ICLR 2018; `torch.nn.utils.parametrizations.spectral_norm` and pytorch#99149.

    Example:
        >>> import torch, spectralnorm as sn
        >>> conv = sn.parametrizations.spectral_norm(torch.nn.Conv2d(4, 4, 3))
        >>> round(float(sn.spectral_norm(conv)), 2)
        1.0
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if n_power_iterations <= 0:
        raise ValueError(
            f"Expected n_power_iterations to be positive, but got n_power_iterations={n_power_iterations}"
        )
    if name != "weight" or not is_normalizable(module):
        torch_parametrizations.spectral_norm(module, name, n_power_iterations, eps, dim)
        return module
    check_plain(module, "weight", "")
    operator = as_operator(module)
    options = {"sweeps": n_power_iterations, "small": is_small([operator])}
    attach(Site("", module, "weight", operator), SpectralNormalization(operator, Rule(1.0), Engine(), **options))
    return module
