"""The map of a convolution, with its padding, stride, dilation and groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as conv_grad

from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol, conv_symbol

__all__ = ["ConvOperator", "Padding"]

Padding = tuple[tuple[int, int], ...]

_CONV: dict[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_INPUT: dict[int, Callable[..., Any]] = {
    1: conv_grad.conv1d_input,
    2: conv_grad.conv2d_input,
    3: conv_grad.conv3d_input,
}


@dataclass(frozen=True, eq=False)
class ConvOperator(Operator):
    """A convolution in 1 to 3 dimensions.

    Attributes:
        weight: (c_out, c_in/groups, *k).
        stride: per axis.
        padding: (left, right) per axis.
        padding_mode: "zeros" or "circular".
        dilation: per axis.
        groups: number of channel groups.
    """

    weight: Tensor
    stride: Size
    padding: Padding
    padding_mode: str
    dilation: Size
    groups: int

    @property
    def axes(self) -> int:
        """1, 2 or 3."""
        return self.weight.ndim - 2

    @property
    def extent(self) -> Size:
        """Cells a dilated kernel covers per axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.weight.shape[2:], self.dilation, strict=True))

    def check_size(self, size: Size) -> Size:
        """Return the size if PyTorch accepts an input of it, else raise a ValueError."""
        if len(size) != self.axes or any(n < 1 for n in size):
            raise ValueError(
                f"input_shape={size} does not fit a {self.axes}-dimensional convolution; expected its "
                f"{self.axes} spatial sizes, each at least 1, such as {(32,) * self.axes} (no batch, no channels)."
            )
        for n, (left, right), extent in zip(size, self.padding, self.extent, strict=True):
            if n + left + right < extent:
                raise ValueError(
                    f"input_shape={size} is too small: {n} plus padding {left}+{right} does not hold the "
                    f"kernel's extent of {extent}. Give a size of at least {extent - left - right} there."
                )
            if self.padding_mode == "circular" and max(left, right) > n:
                raise ValueError(
                    f"input_shape={size} is too small for circular padding ({left}, {right}): it would wrap "
                    f"around more than once. Give a size of at least {max(left, right)} there."
                )
        return size

    def input_shape(self, size: Size) -> Size:
        """(c_in, *size)."""
        return (self.weight.shape[1] * self.groups, *size)

    def output_size(self, size: Size) -> Size:
        """Spatial size of the output."""
        return tuple(
            (n + sum(pad) - extent) // s + 1
            for n, pad, extent, s in zip(size, self.padding, self.extent, self.stride, strict=True)
        )

    def _pad(self, x: Tensor) -> Tensor:
        for axis, (n, (left, right)) in enumerate(zip(x.shape[2:], self.padding, strict=True), start=2):
            if self.padding_mode == "circular" and (left or right):
                x = x.index_select(axis, _wrapped(n, left, right, x.device))
        if self.padding_mode == "circular":
            return x
        return F.pad(x, [cells for pad in reversed(self.padding) for cells in pad])

    def _unpad(self, x: Tensor, size: Size) -> Tensor:
        for axis, (n, (left, right)) in enumerate(zip(size, self.padding, strict=True), start=2):
            if self.padding_mode == "circular" and (left or right):
                shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
                x = x.new_zeros(shape).index_add_(axis, _wrapped(n, left, right, x.device), x)
            else:
                x = x.narrow(axis, left, n)
        return x

    def apply(self, x: Tensor) -> Tensor:
        """(batch, c_in, *size) -> (batch, c_out, *output_size)."""
        conv = _CONV[self.axes]
        out: Tensor = conv(self._pad(x), self.weight.to(x), None, self.stride, 0, self.dilation, self.groups)
        return out

    def adjoint(self, y: Tensor, size: Size) -> Tensor:
        """(batch, c_out, *output_size) -> (batch, c_in, *size): correlate back, then undo the padding."""
        padded = [n + left + right for n, (left, right) in zip(size, self.padding, strict=True)]
        shape = (y.shape[0], self.weight.shape[1] * self.groups, *padded)
        x: Tensor = _CONV_INPUT[self.axes](shape, self.weight.to(y), y, self.stride, 0, self.dilation, self.groups)
        return self._unpad(x, size)

    def symbol(self) -> Symbol:
        """The polyphase symbol; a common factor of stride and dilation cancels (MATHS: undilated kernel)."""
        stride = [s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True)]
        return conv_symbol(self.weight, self.groups, stride, [1] * self.axes)

    def size_free_factor(self) -> float:
        """1 where the supremum of the symbol is the norm; circular padding can repeat cells, at most thrice."""
        if self.padding_mode == "zeros" or (self._keeps_size() and set(self.stride) == {1}):
            return 1.0
        repeats = (1 + math.ceil(sum(pad) / max(1, *pad)) for pad in self.padding)
        return math.sqrt(math.prod(repeats))

    def _keeps_size(self) -> bool:
        """Whether an output of stride 1 is as large as the input."""
        return all(sum(pad) == extent - 1 for pad, extent in zip(self.padding, self.extent, strict=True))

    def grid(self, size: Size) -> tuple[Symbol, Size] | None:
        """The DFT grid of the outputs for circular padding whose stride divides the size; or a pointwise map."""
        outputs = self.output_size(size)
        if self.padding_mode == "circular":
            divides = all(n == m * s for n, m, s in zip(size, outputs, self.stride, strict=True))
            return (
                (conv_symbol(self.weight, self.groups, self.stride, self.dilation), outputs) if divides else None
            )
        pointwise = set(self.weight.shape[2:]) == {1} and self.has_interior(size)
        return (self.symbol(), (1,) * self.axes) if pointwise else None

    def has_interior(self, size: Size) -> bool:
        """Whether some output reads every tap from a cell of its own."""
        reads = zip(size, self.output_size(size), self.padding, self.extent, self.stride, strict=True)
        if self.padding_mode == "circular":
            return all(n >= extent for n, _, _, extent, _ in reads)
        return all(any(0 <= i * s - pad[0] <= n - extent for i in range(m)) for n, m, pad, extent, s in reads)

    def flattened(self) -> Tensor:
        """(c_out, c_in/groups * taps)."""
        return self.weight.flatten(1)


def _wrapped(n: int, left: int, right: int, device: torch.device) -> Tensor:
    """The input cell each cell of a circularly padded axis shows."""
    return torch.arange(-left, n + right, device=device) % n
