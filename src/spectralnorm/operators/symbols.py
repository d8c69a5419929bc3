"""From a weight to its symbol, whether it is in one piece or dealt out over processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from spectralnorm.operators.fourier import Symbol, TapLayout, tap_layout
from spectralnorm.operators.sharded import ShardedSymbol
from spectralnorm.operators.shards import is_sharded

__all__ = ["conv_symbol", "dense_symbol", "symbol_of"]


def conv_symbol(weight: Tensor, groups: int, stride: Sequence[int], dilation: Sequence[int]) -> Symbol:
    """The symbol of a convolution kernel (c_out, c_in/groups, *k) on the grid of its outputs.

    Args:
        weight: the kernel.
        groups: number of groups; each has a block of its own.
        stride: stride per axis, folded into polyphase components.
        dilation: dilation per axis.

    Returns:
        The symbol, its weight a view of the kernel where that is contiguous.
    """
    c_out, c_in = weight.shape[:2]
    kernel = tuple(weight.shape[2:])
    blocks = (groups, c_out // groups, c_in, math.prod(kernel))
    return symbol_of(weight, blocks, tap_layout(kernel, tuple(stride), tuple(dilation)))


def dense_symbol(weight: Tensor) -> Symbol:
    """The symbol of a matrix (outputs, inputs): one tap, no frequency axis."""
    return symbol_of(weight, (1, *weight.shape, 1), tap_layout((), (), ()))


def symbol_of(weight: Tensor, blocks: Sequence[int], layout: TapLayout, *scales: Tensor | None) -> Symbol:
    """The symbol of a weight whose entries are those of `blocks` (g, rows, c_in/g, taps), in their order."""
    if is_sharded(weight):
        return ShardedSymbol.of(weight, blocks, layout)
    return Symbol(weight.reshape(*blocks), layout, *scales)
