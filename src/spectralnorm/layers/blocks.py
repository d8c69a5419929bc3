"""Blocks of Lipschitz constant 1 that keep the length of gradients or signals: sorting, unshuffling, L2 pools."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["GroupSort", "InvertibleDownsampling", "L2NormPool", "MaxMin"]


class GroupSort(nn.Module):
    """Sorts channels within groups, ascending: an activation whose Jacobian is a permutation.

    (N, C, ...) to (N, C, ...); each run of `group_size` adjacent channels is a group. It is 1-Lipschitz, and keeps
    the length of gradients, which ReLU does not.

    Attributes:
        group_size: channels in a group; it must divide their number.

    Raises:
        ValueError: when `group_size` is below 2, or does not divide the channels of an input.

    Reference:
        Anil, Lucas & Grosse, "Sorting Out Lipschitz Function Approximation" (ICML 2019, arXiv 1811.05381).

    Example:
        >>> GroupSort(4)(torch.tensor([[3.0, 1.0, 2.0, 0.0]]))
        tensor([[0., 1., 2., 3.]])
    """

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = _checked("group_size", group_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) to (N, C, ...)."""
        if x.ndim < 2 or x.shape[1] % self.group_size:
            raise ValueError(
                f"{type(self).__name__} got an input of shape {tuple(x.shape)}; expected (N, C, ...) with C a "
                f"multiple of {self.group_size}. Choose the number of channels so."
            )
        groups: Tensor = x.unflatten(1, (-1, self.group_size))
        return groups.sort(dim=2).values.flatten(1, 2)

    def extra_repr(self) -> str:
        """The group's size."""
        return f"{self.group_size}"


class MaxMin(GroupSort):
    """`GroupSort` in pairs: of each two adjacent channels the smaller, then the larger.

    Example:
        >>> MaxMin()(torch.tensor([[2.0, 1.0, 3.0, 4.0]]))
        tensor([[1., 2., 3., 4.]])
    """

    def __init__(self) -> None:
        super().__init__(2)

    def extra_repr(self) -> str:
        """Nothing: the group's size is always 2."""
        return ""


class InvertibleDownsampling(nn.Module):
    """Moves each block of cells into channels: a stride that loses nothing, of norm 1 in both directions.

    (N, C, *size) to (N, C f^D, *(size / f)), in the order of `torch.nn.PixelUnshuffle`, for 1 to 3 spatial axes.

    Attributes:
        factor: f, by which every spatial size is divided.

    Raises:
        ValueError: when `factor` is below 2, or does not divide the sizes of an input.

    Reference:
        Jacobsen, Smeulders & Oyallon, "i-RevNet" (ICLR 2018, arXiv 1802.07088), section 3.2.

    Example:
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> down = InvertibleDownsampling(2)
        >>> down(x).shape, torch.equal(down.inverse(down(x)), x)
        (torch.Size([1, 4, 2, 2]), True)
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = _checked("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) to (N, C f^D, *(size / f))."""
        blocks = _blocks(x, self.factor, type(self).__name__)
        axes = x.ndim - 2
        outer, inner = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        return blocks.permute(0, 1, *inner, *outer).flatten(1, 1 + axes)

    def inverse(self, y: Tensor) -> Tensor:
        """(N, C f^D, *size) to (N, C, *(f size))."""
        axes = y.ndim - 2
        if axes < 1 or y.shape[1] % self.factor**axes:
            raise ValueError(
                f"{type(self).__name__}.inverse got an input of shape {tuple(y.shape)}; expected (N, C, *size) "
                f"with C a multiple of {self.factor}^{max(axes, 1)}. Give it what forward returned."
            )
        cells: Tensor = y.unflatten(1, (-1, *(self.factor,) * axes))  # (N, C, f, ..., *size)
        order = [axis for a in range(axes) for axis in (2 + axes + a, 2 + a)]
        size = [n * self.factor for n in y.shape[2:]]
        return cells.permute(0, 1, *order).reshape(len(y), -1, *size)

    def extra_repr(self) -> str:
        """The factor."""
        return f"{self.factor}"


class L2NormPool(nn.Module):
    """The length of each block of cells, channel by channel: a pool that keeps the length of its input.

    (N, C, *size) to (N, C, *(size / k)), for 1 to 3 spatial axes. Blocks are disjoint, so that it is 1-Lipschitz,
    and the output is as long as the input. The gradient of a block of zeros is taken as 0.

    Attributes:
        kernel_size: k, the cells of a block along every spatial axis.

    Raises:
        ValueError: when `kernel_size` is below 2, or does not divide the sizes of an input.

    Reference:
        Boureau, Ponce & LeCun, "A Theoretical Analysis of Feature Pooling in Visual Recognition" (ICML 2010); as a
        norm-preserving pool Anil, Lucas & Grosse 2019, and `ScaledL2NormPooling2D` of deel-lip.

    Example:
        >>> L2NormPool(2)(torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]]))
        tensor([[[[5.]]]])
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = _checked("kernel_size", kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) to (N, C, *(size / k))."""
        blocks = _blocks(x, self.kernel_size, type(self).__name__)
        length: Tensor = torch.linalg.vector_norm(blocks, dim=tuple(range(3, blocks.ndim, 2)))
        return length

    def extra_repr(self) -> str:
        """The kernel's size."""
        return f"{self.kernel_size}"


def _blocks(x: Tensor, k: int, owner: str) -> Tensor:
    """(N, C, *size) to (N, C, n_1 / k, k, n_2 / k, k, ...)."""
    if not 3 <= x.ndim <= 5 or any(n % k for n in x.shape[2:]):
        raise ValueError(
            f"{owner} got an input of shape {tuple(x.shape)}; expected (N, C, *size) with 1 to 3 sizes, each a "
            f"multiple of {k}. Pad or crop it first."
        )
    return x.reshape(*x.shape[:2], *(part for n in x.shape[2:] for part in (n // k, k)))


def _checked(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; expected a whole number, such as 2.")
    if value < 2:
        raise ValueError(f"{name}={value} does nothing; expected at least 2.")
    return value
