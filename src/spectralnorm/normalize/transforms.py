"""Normalisation under the transforms of `torch.func`, and under tracing: by plain operations, on bare tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

__all__ = ["bare", "outside", "plain_norm_of", "transformed"]


def transformed() -> bool:
    """Whether autograd functions of our own are no use here: within grad, vmap, jacrev, jvp, or a trace."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None
    )


def bare(tensor: Tensor) -> Tensor:
    """The tensor that transforms have wrapped; a ValueError under a vmap over the weights."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise ValueError(
                "A vmap over the weights of a normalised layer cannot be followed by one state; expected one over "
                "inputs. Call remove_spectral_norm on each model before stacking their weights."
            )
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def plain_norm_of(sigma: Tensor, *slopes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Sigma with its derivative, as `scaling.norm_of` gives it; in a trace, the number alone."""
    if torch._C._get_tracing_state():
        return sigma
    for tensor, left, right in slopes:
        slope = torch.bmm(left.mT, right).reshape(tensor.shape)
        sigma = sigma + ((tensor - tensor.detach()).to(slope.dtype) * slope).sum()
    return sigma


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Keeps what happens within out of transforms and traces: there it stands for numbers."""
    tracing: Any = torch._C
    state = tracing._get_tracing_state()
    tracing._set_tracing_state(None)
    try:
        with temporarily_clear_interpreter_stack():
            yield
    finally:
        tracing._set_tracing_state(state)
