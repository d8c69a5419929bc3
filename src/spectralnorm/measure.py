"""`spectral_norm`: one entry point, which picks the method; no maths here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from spectralnorm.bound import Bound
from spectralnorm.estimators import METHODS, Certified, Estimator, Exact, MatrixFree, Tracked
from spectralnorm.estimators.spectrum import spectrum
from spectralnorm.operators.base import Operator, Size
from spectralnorm.operators.registry import as_operator

__all__ = ["check_size", "check_tolerance", "singular_values", "spectral_norm"]

_DENSE_COLUMNS = 256  # up to here the SVD of the layer's matrix beats iterating, and proves both ends
_PROVEN_COLUMNS = 1024  # and up to here it is worth its second, where both ends are asked for
_SVD_WORK = 2**29  # grid points x c^3 up to which every frequency is decomposed (about a second); then tracked


def spectral_norm(
    layer_or_weight: nn.Module | Tensor,
    *,
    input_shape: Sequence[int] | int | None = None,
    method: str | Estimator = "auto",
    rtol: float = 1e-3,
    certified: bool = False,
    **conv_args: Any,
) -> Bound:
    """The largest singular value of the linear map a layer applies.

    Args:
        layer_or_weight: a Linear, Conv, ConvTranspose or BatchNorm (eval mode) layer, a registered type, a
            `Sequential` of one and the BatchNorm behind it, a matrix (outputs, inputs), or a kernel
            (c_out, c_in/groups, *k).
        input_shape: the spatial size, such as `(32, 32)`, to measure the layer at that size; None for the
            size-free norm, the supremum over all sizes.
        method: "auto", "tracked", "certified", "exact", "power", "gram", "flattened", "flattened_bound",
            "separated", or an `Estimator` with its options. "auto" is "certified" if that is asked for, and
            "tracked" without `input_shape`; with it, the closed form where one exists, else matrix-free.
        rtol: relative tolerance.
        certified: whether "auto" proves both ends of the interval.
        **conv_args: for a raw kernel: `stride`, `padding`, `padding_mode`, `dilation`, `groups`, `transposed`, and
            `output_padding` of a transposed one.

    Returns:
        The `Bound`: a differentiable value, and the interval that encloses the norm asked for.

    Raises:
        TypeError: for an unknown layer, method type or dtype.
        ValueError: for an unknown method name, a wrong size or tolerance, or an empty or non-finite weight.
        MemoryError: when the layer is too large for the method.

    Reference:
        Pan & Mishra 2021 (arXiv 2103.13815) for "tracked" and "separated", our reading of it; Sedghi et al. 2019
        for "exact"; Farnia et al. 2019 for "power"; Delattre et al. 2023 for "gram"; Miyato et al. 2018 for
        "flattened"; Singla & Feizi 2021 for "flattened_bound".

    Example:
        >>> import torch, spectralnorm as sn
        >>> box = torch.full((1, 1, 3, 3), 1 / 9)  # a blur keeps a constant image as it is
        >>> round(float(sn.spectral_norm(box, padding=1)), 4)
        1.0
        >>> round(float(sn.spectral_norm(box, method="flattened")), 4)  # what PyTorch divides by
        0.3333
    """
    estimator = _choose_estimator(method)
    if not isinstance(certified, bool):
        raise TypeError(f"certified={certified!r} is neither True nor False; expected one of them.")
    if certified and method not in ("auto", "certified") and not isinstance(method, Certified):
        raise ValueError(
            f"certified=True was given with method={method!r}; expected 'auto' or 'certified'. Leave one out."
        )
    check_tolerance(rtol)
    operator = as_operator(layer_or_weight, **conv_args)
    size = check_size(operator, input_shape)
    with torch.autocast(operator.weight.device.type, enabled=False):  # half precision would move the norm
        return (estimator or _auto(operator, size, certified)).estimate(operator, size, float(rtol))


def singular_values(
    layer_or_weight: nn.Module | Tensor, input_shape: Sequence[int] | int | None = None, **conv_args: Any
) -> Tensor:
    """All singular values of the linear map a layer applies at a size, descending.

    Args:
        layer_or_weight: as in `spectral_norm`.
        input_shape: the spatial size, such as `(32, 32)`; None for a layer without one, such as Linear.
        **conv_args: for a raw kernel: `stride`, `padding`, `padding_mode`, `dilation`, `groups`, `transposed`, and
            `output_padding` of a transposed one.

    Returns:
        (min(inputs, outputs),), computed in float64 and differentiable; in float64 for such a weight and for a
        layer with a BatchNorm folded in, else in float32.

    Raises:
        TypeError: for an unknown layer or dtype.
        ValueError: for a size that is missing or wrong, or an empty or non-finite weight.
        MemoryError: when the layer is too large for it.

    Reference:
        Sedghi, Gupta & Long, ICLR 2019.

    Example:
        >>> import torch, spectralnorm as sn
        >>> blur = torch.full((1, 1, 3), 1 / 3)
        >>> [round(float(s), 3) for s in sn.singular_values(blur, 4, padding=1, padding_mode="circular")]
        [1.0, 0.333, 0.333, 0.333]
    """
    operator = as_operator(layer_or_weight, **conv_args)
    size = check_size(operator, input_shape)
    if size is None:
        raise ValueError(
            "input_shape=None was given for a convolution, whose singular values depend on the size; expected its "
            f"spatial size, such as {(32,) * operator.axes}."
        )
    with torch.autocast(operator.weight.device.type, enabled=False):
        return spectrum(operator, size).to(operator.weight.dtype)


def _choose_estimator(method: str | Estimator) -> Estimator | None:
    """The estimator a user named; None for "auto"."""
    if isinstance(method, Estimator):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"method={method!r} is neither a name nor an Estimator object; expected one of "
            f"{', '.join(['auto', *METHODS])}."
        )
    if method != "auto" and method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; expected one of {', '.join(['auto', *METHODS])}.")
    return None if method == "auto" else METHODS[method]()


def check_tolerance(rtol: float) -> None:
    """Raise a ValueError unless this is a relative tolerance."""
    if isinstance(rtol, bool) or not isinstance(rtol, Real) or not 0 < rtol < 1:
        raise ValueError(f"rtol={rtol!r} is not a relative tolerance; expected a number between 0 and 1.")


def check_size(operator: Operator, input_shape: Sequence[int] | int | None) -> Size | None:
    """The spatial size a user gave, checked: None for size-free, () for a layer without one."""
    if input_shape is None:
        return () if operator.axes == 0 else None
    given = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else (input_shape,)
    if not all(isinstance(n, Integral) and not isinstance(n, bool) for n in given):
        raise ValueError(
            f"input_shape={input_shape!r} is not a spatial size; expected whole numbers, as in (32, 32)."
        )
    return operator.check_size(tuple(map(int, given)))


def _auto(operator: Operator, size: Size | None, certified: bool) -> Estimator:
    if size is None or operator.axes == 0:
        return Certified() if certified else Tracked()
    closed = operator.grid(size)
    if closed is None:
        columns = math.prod(operator.input_shape(size))
        if columns <= (_PROVEN_COLUMNS if certified else _DENSE_COLUMNS):
            return Exact()
        return Certified() if certified else MatrixFree()
    if certified:
        return Certified()
    symbol, grid = closed
    work = math.prod(grid) * symbol.groups * symbol.rows * symbol.columns * min(symbol.rows, symbol.columns)
    return Exact() if work <= _SVD_WORK else Tracked()
