"""A copy of a model that computes the same from plain tensors: no parametrizations, no hooks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectralnorm.network.naming import first_line

__all__ = ["default_eps", "plain_copy", "unwrapped"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


@torch.no_grad()
def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model with its effective weights in place of whatever makes them.

    Parametrised tensors become parameters of the values they have now; tensors that hooks have left as attributes
    become buffers; hooks are gone. The copy shares no tensor with the model, and can be converted to float64
    without any value in it being made anew.

    Args:
        model: in eval mode, and run once before, so that hooks have set what they set.

    Returns:
        The copy, in eval mode, its parameters without gradients.

    Raises:
        ValueError: when the model cannot be copied.

    Example:
        >>> import spectralnorm as sn
        >>> net = sn.spectral_normalize(nn.Sequential(nn.Linear(3, 3))).eval()
        >>> plain = plain_copy(net)
        >>> parametrize.is_parametrized(plain[0]), torch.equal(plain[0].weight, net[0].weight)
        (False, True)
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        plain = copy.deepcopy(model)
    except Exception as error:  # whatever a user's module does when it is copied
        raise ValueError(
            f"model: {type(model).__name__} cannot be copied ({first_line(error)}); expected one that "
            "copy.deepcopy takes. Remove attributes that hold autograd graphs, locks or files"
        ) from error
    for module in plain.modules():
        module.training = False
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            _bake(module)
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor):
                delattr(module, name)
                module.register_buffer(name, value.detach().clone())
        if isinstance(module, nn.RMSNorm) and module.eps is None:
            module.eps = default_eps(module.weight.dtype if module.weight is not None else dtype)
        for hooks in _HOOKS:
            getattr(module, hooks).clear()
    return plain.requires_grad_(False)


def default_eps(dtype: torch.dtype) -> float:
    """What RMSNorm adds by default: the eps of the dtype it computes in, float32 for half precision."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, DataParallel or DistributedDataParallel, which compute what it does.

    Args:
        model: any model.

    Returns:
        The model itself where it is none of these.

    Raises:
        TypeError: when it holds TorchScript, whose layers cannot be read.

    Example:
        >>> net = nn.Linear(3, 3)
        >>> unwrapped(nn.DataParallel(net)) is net
        True
    """
    # By name: torch.compile's class lies in a module that takes seconds to import.
    while type(model).__module__.startswith("torch.") and type(model).__name__ in _WRAPPERS:
        model = getattr(model, _WRAPPERS[type(model).__name__])
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            at = f"{name!r} in it" if name else "it"
            raise TypeError(
                f"model: {at} is TorchScript, whose layers cannot be read; expected modules of Python. Pass the "
                "nn.Module that it was made from, with load_state_dict where there are only weights"
            )
    return model


def _bake(module: nn.Module) -> None:
    """Give a module its own class again, and the values of its parametrised tensors."""
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
