"""Norms of the linear layers in a network: proven from above, or estimated; each measured once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectralnorm.bound import Bound
from spectralnorm.estimators import Certified, Exact, Tracked
from spectralnorm.network.outward import product_up
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.registry import as_operator

__all__ = ["LayerNorms", "unchanged", "values_of"]

_SVD_WORK = 2**29  # grid points x c^3 up to which a closed form is decomposed: about a second
_PROVEN_COLUMNS = 1024  # inputs up to which the norm at a size is proven by the layer's matrix


def values_of(parts: Sequence[nn.Module | Tensor]) -> list[Tensor]:
    """Copies of the tensors of layers, which a forward may write to between two calls.

    Args:
        parts: layers or weights.

    Returns:
        The copies.
    """
    return [tensor.detach().clone() for tensor in _tensors(parts)]


def unchanged(parts: Sequence[nn.Module | Tensor], values: Sequence[Tensor]) -> bool:
    """Whether layers have the values that they had: versions do not tell of writes to `.data`.

    Args:
        parts: layers or weights.
        values: from `values_of`.

    Returns:
        Whether all are equal.
    """
    return all(torch.equal(tensor, value) for tensor, value in zip(_tensors(parts), values, strict=True))


def _tensors(parts: Sequence[nn.Module | Tensor]) -> Iterator[Tensor]:
    """The tensors of layers."""
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        else:
            yield from part.parameters()
            yield from part.buffers()


class LayerNorms:
    """Measures layers for Lipschitz rules, at the size they are called at where that is cheap.

    Attributes:
        certified: whether norms are proven from above; else they are estimates from below.
        rtol: relative tolerance.
    """

    def __init__(self, *, certified: bool, rtol: float) -> None:
        self.certified, self.rtol = certified, rtol
        self._known: dict[tuple[Any, ...], list[tuple[list[Tensor], float]]] = {}
        self._held: list[Any] = []  # what the keys' ids are of: they stay theirs

    def __call__(
        self, layer_or_weight: nn.Module | Tensor, size: tuple[int, ...] | None = None, **conv_args: Any
    ) -> float:
        """The norm of a layer or a raw weight.

        Args:
            layer_or_weight: as for `spectral_norm`.
            size: the spatial size it is called at; None for the supremum over all sizes.
            **conv_args: of a raw weight.

        Returns:
            An upper bound of the norm at that size if `certified`, else an estimate of the size-free norm.
        """
        parts = list(layer_or_weight) if isinstance(layer_or_weight, nn.Sequential) else [layer_or_weight]
        known = self._known.setdefault((*map(id, parts), size, repr(conv_args)), [])
        for values, measured in known:
            if unchanged(parts, values):
                return measured
        self._held += parts
        operator = as_operator(layer_or_weight, **conv_args)
        there = () if operator.axes == 0 else size
        measured = self._proven(operator, there) if self.certified else self._estimate(operator, there)
        known.append((values_of(parts), measured))
        return measured

    def _proven(self, operator: Operator, size: Size | None) -> float:
        """At the size by closed form, by the matrix of a small layer, or by what its padding adds there.

        Zero padding adds nothing at any size, and the size-free norm is then the bound.

        Returns:
            The upper bound.
        """
        if size is None:
            return self._certified(operator, None)
        operator.check_size(size)
        if self._decomposes(operator, size):
            return Exact().estimate(operator, size, self.rtol).upper
        if operator.grid(size) is not None:
            return self._certified(operator, size)
        if math.prod(operator.input_shape(size)) <= _PROVEN_COLUMNS:
            return Exact().estimate(operator, size, self.rtol).upper
        copies = any(factor != 1 for _, factor in operator.ceilings(None))
        return self._certified(operator, size if copies else None)

    @staticmethod
    def _decomposes(operator: Operator, size: Size) -> bool:
        """Whether there is a closed form whose decomposition takes a second at most."""
        closed = operator.grid(size)
        if closed is None:
            return False
        symbol, grid = closed
        work = math.prod(grid) * symbol.groups * symbol.rows * symbol.columns * min(symbol.rows, symbol.columns)
        return work <= _SVD_WORK

    def _certified(self, operator: Operator, size: Size | None) -> float:
        bound: Bound = Certified().estimate(operator, size, self.rtol)
        return bound.upper

    def _estimate(self, operator: Operator, size: Size | None) -> float:
        """The tracked norm, times what padding adds."""
        value = float(Tracked().estimate(operator, None if operator.axes else (), self.rtol))
        factor = min(factor for _, factor in operator.ceilings(size)[:1])
        return product_up([value, factor])
