"""All singular values of a layer at a size: those of every frequency's block, or of the layer's matrix.

Sedghi, Gupta & Long, "The Singular Values of Convolutional Layers" (ICLR 2019), with strides by polyphase
components.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import torch
from torch import Tensor

from spectralnorm.estimators.memory import check_memory
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol

__all__ = ["spectrum"]

_COPIES = 6  # of a matrix, that its decomposition and gradient hold at the most


def spectrum(operator: Operator, size: Size) -> Tensor:
    """Every singular value, descending: as many as the layer has inputs or outputs at the size, the fewer.

    Args:
        operator: the layer's map.
        size: the spatial size.

    Returns:
        (min(inputs, outputs),) float64, with the graph of the weight.

    Raises:
        MemoryError: when the blocks, or the matrix where there is no closed form, do not fit.
    """
    inputs, outputs = math.prod(operator.input_shape(size)), _outputs(operator, size)
    count = min(inputs, outputs)
    _check(3 * count, operator.weight.device, f"{count} singular values")
    closed = operator.grid(size)
    if closed is None:
        values = _of_matrix(operator, size, outputs)
    else:
        values = _of_blocks(*closed).repeat(_cells(operator, size, closed[1]))
    values = values.sort(descending=True).values[:count]
    return torch.cat([values, values.new_zeros(count - len(values))])  # of inputs that no output reads


def _check(numbers: int, device: torch.device, what: str) -> None:
    cure = "Give a smaller input_shape, or measure the largest one with spectral_norm."
    check_memory(8 * numbers, device, what, cure)


@torch.no_grad()
def _outputs(operator: Operator, size: Size) -> int:
    """How many outputs there are, without an input or an output in memory."""
    shape = (1, *operator.input_shape(size))
    try:
        return operator.apply(torch.zeros(shape, device="meta")).numel()
    except (NotImplementedError, RuntimeError):  # an operator of the user's that computes where its weight is
        _check(math.prod(shape), operator.weight.device, "one input of the layer")
        return operator.apply(torch.zeros(shape, device=operator.weight.device)).numel()


def _of_blocks(symbol: Symbol, grid: Size) -> Tensor:
    """Of the block at every frequency of a grid."""
    points = math.prod(grid)
    _check(
        2 * _COPIES * points * symbol.groups * symbol.rows * symbol.columns,
        symbol.weight.device,
        f"the singular values of {points} blocks of {symbol.rows} x {symbol.columns}",
    )
    axes = [2 * math.pi * torch.arange(n, dtype=torch.float64, device="cpu") / n for n in grid]
    w = (
        torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(points, -1)
        if grid
        else torch.zeros(1, 0, device="cpu")
    )
    exact = Symbol(symbol.weight.double(), symbol.layout)
    values: Tensor = torch.linalg.svdvals(exact.at(w.double().to(symbol.weight.device))).flatten()
    return values


def _of_matrix(operator: Operator, size: Size, outputs: int) -> Tensor:
    """Of the layer's matrix, made column by column."""
    shape, device = operator.input_shape(size), operator.weight.device
    inputs = math.prod(shape)
    _check(
        inputs * (inputs + _COPIES * outputs),
        device,
        f"the singular values of the layer's matrix of {outputs} x {inputs}",
    )
    basis = torch.eye(inputs, dtype=torch.float64, device=device).reshape(-1, *shape)
    values: Tensor = torch.linalg.svdvals(operator.apply(basis).flatten(1))
    return values


def _cells(operator: Operator, size: Size, grid: Size) -> int:
    """How many cells a pointwise kernel is applied to, each with the same singular values; else 1."""
    kernel = operator.weight.shape[2:]
    if not size or set(grid) != {1} or set(kernel) != {1}:
        return 1
    # of one channel: they are alike
    weight = torch.ones(1, 1, *kernel, device=operator.weight.device)
    ones = dataclasses.replace(cast("Any", operator), weight=weight, groups=1)
    return int(ones.apply(weight.new_ones(1, 1, *size)).count_nonzero())
