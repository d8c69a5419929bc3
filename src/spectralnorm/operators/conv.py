"""The map of a convolution, with its padding, stride, dilation and groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as conv_grad

from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.padding import Padding, least_size, most_copies, most_copies_ever, pad, unpad
from spectralnorm.operators.symbols import conv_symbol

__all__ = ["ConvOperator"]

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
        padding_mode: "zeros", "circular", "reflect" or "replicate".
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
            least = least_size(left, right, self.padding_mode)
            if n < least:
                raise ValueError(
                    f"input_shape={size} is too small for {self.padding_mode} padding ({left}, {right}): it would "
                    f"show a cell more than once on one side. Give a size of at least {least} there."
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

    def apply(self, x: Tensor) -> Tensor:
        """(batch, c_in, *size) -> (batch, c_out, *output_size)."""
        conv = _CONV[self.axes]
        x = pad(x, self.padding, self.padding_mode)
        out: Tensor = conv(x, self.weight.to(x), None, self.stride, 0, self.dilation, self.groups)
        return out

    def adjoint(self, y: Tensor, size: Size) -> Tensor:
        """(batch, c_out, *output_size) -> (batch, c_in, *size): correlate back, then undo the padding."""
        padded = [n + left + right for n, (left, right) in zip(size, self.padding, strict=True)]
        shape = (y.shape[0], self.weight.shape[1] * self.groups, *padded)
        x: Tensor = _CONV_INPUT[self.axes](shape, self.weight.to(y), y, self.stride, 0, self.dilation, self.groups)
        return unpad(x, size, self.padding, self.padding_mode)

    def symbol(self) -> Symbol:
        """The polyphase symbol; a common factor of stride and dilation cancels (MATHS: undilated kernel)."""
        stride = [s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True)]
        return conv_symbol(self.weight, self.groups, stride, [1] * self.axes)

    def ceilings(self, size: Size | None) -> list[tuple[Symbol, float]]:
        """The polyphase symbol times what padding adds; for circular padding also that of stride 1.

        Padding shows a cell of the input m times at most, so its norm is at most sqrt(m) per axis, and the
        convolution behind it is one with zero padding. A circular convolution also takes outputs from the one
        of stride 1 with n outputs, each at most ceil(n_out gcd(s, n) / n) times.

        Returns:
            One or two pairs of a symbol and its factor.
        """
        found = [(self.symbol(), self.padding_factor(size))]
        repeats = self._circular_repeats(size) if self.padding_mode == "circular" else None
        if repeats is not None:
            found.append((conv_symbol(self.weight, self.groups, [1] * self.axes, [1] * self.axes), repeats))
        if len(found) == 2 and set(self.stride) == {1}:  # the same symbol twice
            return [min(found, key=lambda pair: pair[1])]
        return found

    def padding_factor(self, size: Size | None) -> float:
        """The norm of the padding as a map: sqrt of how often it shows one cell, at this size or at the worst."""
        if size is None:
            copies = [most_copies_ever(*both, self.padding_mode) for both in self.padding]
        else:
            axes = zip(size, self.padding, self.output_size(size), self.stride, self.extent, strict=True)
            copies = [most_copies(n, *p, self.padding_mode, (m - 1) * s + e) for n, p, m, s, e in axes]
        return math.sqrt(math.prod(copies))

    def _circular_repeats(self, size: Size | None) -> float | None:
        """Sqrt of how often an output of the circular map of stride 1 is taken; None where no size bounds it."""
        if size is None:  # n_out <= n at every size, unless padding goes beyond "same"
            within = all(sum(p) <= extent - 1 for p, extent in zip(self.padding, self.extent, strict=True))
            return 1.0 if within else None
        axes = zip(size, self.output_size(size), self.stride, strict=True)
        return math.sqrt(math.prod(math.ceil(m * math.gcd(s, n) / n) for n, m, s in axes))

    def grid(self, size: Size) -> tuple[Symbol, Size] | None:
        """The DFT grid of the outputs for circular padding whose stride divides the size; or a pointwise map."""
        outputs = self.output_size(size)
        if self.padding_mode == "circular":
            divides = all(n == m * s for n, m, s in zip(size, outputs, self.stride, strict=True))
            return (
                (conv_symbol(self.weight, self.groups, self.stride, self.dilation), outputs) if divides else None
            )
        pointwise = set(self.weight.shape[2:]) == {1} and self.reads_all(size)
        unpadded = self.padding_mode == "zeros" or not any(map(sum, self.padding))
        return (self.symbol(), (1,) * self.axes) if pointwise and unpadded else None

    def reads_all(self, size: Size | None) -> bool:
        """Whether some output reads every tap from a cell of its own."""
        if size is None:
            return True
        reads = zip(size, self.output_size(size), self.padding, self.extent, self.stride, strict=True)
        if self.padding_mode == "circular":
            return all(n >= extent for n, _, _, extent, _ in reads)
        return all(any(0 <= i * s - both[0] <= n - extent for i in range(m)) for n, m, both, extent, s in reads)

    def flattened(self) -> Tensor:
        """(c_out, c_in/groups * taps)."""
        return self.weight.flatten(1)
