"""The map of a transposed convolution: the adjoint of the convolution with the same weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.conv import ConvOperator
from spectralnorm.operators.fourier import Symbol

__all__ = ["TransposedConvOperator"]

_TRANSPOSED: dict[int, Callable[..., Any]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class TransposedConvOperator(Operator):
    """A transposed convolution in 1 to 3 dimensions; its padding takes cells away from the output.

    Its norm is that of the adjoint, a convolution with zero padding, over all sizes; an output_padding of at
    least the stride leaves some of that one's outputs out, so that at a size the norm can only be smaller.

    Attributes:
        weight: (c_in, c_out/groups, *k).
        stride: per axis.
        padding: per axis, on both sides.
        dilation: per axis.
        groups: number of channel groups.
        output_padding: per axis, further cells on the right.
    """

    weight: Tensor
    stride: Size
    padding: Size
    dilation: Size
    groups: int
    output_padding: Size

    @cached_property
    def conv(self) -> ConvOperator:
        """The convolution whose adjoint this is, from c_out to c_in channels."""
        padding = tuple((p, p) for p in self.padding)
        return ConvOperator(self.weight, self.stride, padding, "zeros", self.dilation, self.groups)

    @property
    def axes(self) -> int:
        """1, 2 or 3."""
        return self.weight.ndim - 2

    def check_size(self, size: Size) -> Size:
        """Return the size if PyTorch accepts an input of it, else raise a ValueError."""
        if len(size) != self.axes or any(n < 1 for n in size):
            raise ValueError(
                f"input_shape={size} does not fit a {self.axes}-dimensional transposed convolution; expected its "
                f"{self.axes} spatial sizes, each at least 1, such as {(8,) * self.axes} (no batch, no channels)."
            )
        outputs = self.output_size(size)
        if any(m < 1 for m in outputs):
            least = tuple(
                n + max(0, math.ceil((1 - m) / s)) for n, m, s in zip(size, outputs, self.stride, strict=True)
            )
            raise ValueError(
                f"input_shape={size} is too small: padding={self.padding} leaves an output of {outputs}. "
                f"Give a size of at least {least}."
            )
        return size

    def input_shape(self, size: Size) -> Size:
        """(c_in, *size)."""
        return (self.weight.shape[0], *size)

    def output_size(self, size: Size) -> Size:
        """Spatial size of the output."""
        axes = zip(size, self.stride, self.padding, self.conv.extent, self.output_padding, strict=True)
        return tuple((n - 1) * s - 2 * p + extent + more for n, s, p, extent, more in axes)

    def apply(self, x: Tensor) -> Tensor:
        """(batch, c_in, *size) -> (batch, c_out, *output_size)."""
        weight, more = self.weight.to(x), self.output_padding
        transposed = _TRANSPOSED[self.axes]
        out: Tensor = transposed(x, weight, None, self.stride, self.padding, more, self.groups, self.dilation)
        return out

    def adjoint(self, y: Tensor, size: Size) -> Tensor:
        """(batch, c_out, *output_size) -> (batch, c_in, *size): the convolution, its first outputs."""
        x = self.conv.apply(y)
        for axis, n in enumerate(size, start=2):
            x = x.narrow(axis, 0, n)
        return x

    def symbol(self) -> Symbol:
        """The convolution's: an adjoint has the same norm."""
        return self.conv.symbol()

    def grid(self, size: Size) -> tuple[Symbol, Size] | None:
        """A pointwise map, unless its padding takes every output away."""
        pointwise = set(self.weight.shape[2:]) == {1} and self.reads_all(size)
        return (self.symbol(), (1,) * self.axes) if pointwise else None

    def reads_all(self, size: Size | None) -> bool:
        """Whether some output reads every tap of the kernel: none does where a stride sends taps apart."""
        axes = list(zip(self.weight.shape[2:], self.stride, self.dilation, strict=True))
        if any(k > 1 and d % s for k, s, d in axes):
            return False
        if size is None:
            return True
        outputs, inside = self.output_size(size), []
        for (k, s, d), n, m, p in zip(axes, size, outputs, self.padding, strict=True):
            first, last = (k - 1) * d, (n - 1) * s  # of the cells that read every tap, before padding
            inside.append(any(p <= cell < p + m for cell in range(first, last + 1) if (cell - first) % s == 0))
        return all(inside)

    def flattened(self) -> Tensor:
        """(c_out/groups, c_in * taps), as PyTorch does."""
        return self.weight.transpose(0, 1).flatten(1)
