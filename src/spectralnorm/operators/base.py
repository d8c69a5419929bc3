"""What every linear layer offers the estimators: its map, the adjoint, and its symbol."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.shards import is_sharded

__all__ = ["Operator", "Size", "check_weight", "compute_dtype", "queued", "undisturbed", "with_weight"]

Size = tuple[int, ...]
_AT_ONCE = frozenset({"cpu"})  # devices that do what they are told before the host goes on
_REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Operator(ABC):
    """The linear map a layer applies, for inputs of any spatial size.

    `weight` is float32 or float64 (half precisions are computed in float32) and keeps its autograd graph,
    so that whatever is computed from it is differentiable.
    A spatial size is a tuple with one entry per spatial axis; a dense layer has none, `()`.
    """

    weight: Tensor

    @property
    @abstractmethod
    def axes(self) -> int:
        """Number of spatial axes: 0 for a dense layer, 2 for a Conv2d."""

    @abstractmethod
    def check_size(self, size: Size) -> Size:
        """Return the size if the layer accepts it, else raise a ValueError that names it."""

    @abstractmethod
    def input_shape(self, size: Size) -> Size:
        """Shape of one input, channels first, without batch."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Map inputs (batch, *input_shape) to outputs, in the dtype of `x`, without bias."""

    @abstractmethod
    def adjoint(self, y: Tensor, size: Size) -> Tensor:
        """Map outputs (batch, *output_shape) back by the transposed map, for inputs of this size."""

    @abstractmethod
    def symbol(self) -> Symbol:
        """The symbol whose supremum is the size-free norm, or its lower end where none is exact."""

    def ceilings(self, size: Size | None) -> list[tuple[Symbol, float]]:
        """Symbols, each with a factor: the norm is at most the factor times the supremum of the symbol.

        At a spatial size, or size-free. The first is that of `symbol()`, whose supremum the size-free norm also
        reaches, so that it is known where its factor is 1.

        Returns:
            One or more pairs; the smallest product counts.
        """
        return [(self.symbol(), self.padding_factor(size))]

    def padding_factor(self, size: Size | None) -> float:
        """The norm is at most this times the supremum of `symbol()`, at a size or size-free."""
        del size
        return 1.0

    def grid(self, size: Size) -> tuple[Symbol, Size] | None:
        """The symbol and frequency grid whose maximum is the norm at this size; None without closed form."""
        del size
        return self.symbol(), ()

    def reads_all(self, size: Size | None) -> bool:
        """Whether some output reads every tap of the kernel, none from padding: at a size, or at any large one."""
        del size
        return True

    @abstractmethod
    def flattened(self) -> Tensor:
        """The kernel as PyTorch's `spectral_norm` flattens it: (outputs, the rest)."""


def with_weight(operator: Operator, weight: Tensor) -> Operator:
    """The operator with another weight."""
    weight = weight.to(operator.weight.dtype)
    if dataclasses.is_dataclass(operator):
        changed: Operator = dataclasses.replace(operator, weight=weight)
        return changed
    other = copy.copy(operator)
    object.__setattr__(other, "weight", weight)
    return other


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Compute as asked, whatever surrounds the call: without autograd, autocast or inference tensors."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def queued(device: torch.device) -> bool:
    """Whether work is queued there, so that the host waits for all of it when it asks for a number."""
    return device.type not in _AT_ONCE


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype to compute in: half precisions are computed in float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def check_weight(weight: Tensor, owner: str) -> Tensor:
    """Return the weight, gathered if it is dealt out over processes, if it has a spectral norm; else say why not.

    Args:
        weight: the kernel or matrix, any shape.
        owner: what the error calls it, such as "Conv2d.weight".

    Returns:
        The same tensor, or the gathered one.

    Raises:
        TypeError: for a dtype that is not real floating point, or a sparse or quantised tensor.
        ValueError: for an empty kernel, one with NaN or inf in it, or one on the meta device.
    """
    if is_sharded(weight):
        weight = weight.full_tensor()
    if weight.dtype not in _REAL:
        cure = "Take its real and imaginary parts apart." if weight.is_complex() else "Convert it with .float()."
        raise TypeError(
            f"{owner} has dtype {weight.dtype}; expected a real floating-point dtype: float64, float32, bfloat16 "
            f"or float16. {cure}"
        )
    if weight.layout != torch.strided:
        raise TypeError(f"{owner} has layout {weight.layout}; expected a dense tensor. Use {owner}.to_dense().")
    if weight.is_meta:
        raise ValueError(f"{owner} is on the meta device, without values; load or initialise the model first.")
    if weight.numel() == 0:
        raise ValueError(
            f"{owner} is empty, shape {tuple(weight.shape)}; expected at least one entry. "
            "An empty layer has no spectral norm: leave it out."
        )
    if not torch.isfinite(weight.detach()).all():
        bad = int((~torch.isfinite(weight.detach())).sum())
        raise ValueError(
            f"{owner} holds {bad} NaN or infinite entries of {weight.numel()}; expected finite values. "
            "Look for a diverged training step or a damaged checkpoint."
        )
    return weight
