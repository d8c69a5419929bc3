"""The map of a Linear layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.symbols import dense_symbol

__all__ = ["DenseOperator"]


@dataclass(frozen=True, eq=False)
class DenseOperator(Operator):
    """x -> W x with W of shape (outputs, inputs); its norm is the largest singular value of W."""

    weight: Tensor

    @property
    def axes(self) -> int:
        """A dense layer has no spatial axis."""
        return 0

    def check_size(self, size: Size) -> Size:
        """A dense layer has one size only: the empty one."""
        if size:
            raise ValueError(
                f"input_shape={size} was given for a dense layer, which has no spatial size; "
                "expected None. Leave input_shape out."
            )
        return size

    def input_shape(self, size: Size) -> Size:
        """(inputs,)."""
        del size
        return (self.weight.shape[1],)

    def apply(self, x: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        return F.linear(x, self.weight.to(x))

    def adjoint(self, y: Tensor, size: Size) -> Tensor:
        """(batch, outputs) -> (batch, inputs)."""
        del size
        return y @ self.weight.to(y)

    def symbol(self) -> Symbol:
        """The matrix itself."""
        return dense_symbol(self.weight)

    def flattened(self) -> Tensor:
        """The matrix itself."""
        return self.weight
