"""What rounding can hide: bounds on the errors of what is computed."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from spectralnorm.operators.fourier import Symbol

__all__ = [
    "dense_rounding",
    "evaluation_rounding",
    "float32_is_whole",
    "frobenius_norm",
    "phase_rounding",
    "power_of_two",
    "rescaled",
    "rescaled_back",
]

_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def dense_rounding(rows: int, columns: int, frobenius: float, dtype: torch.dtype) -> float:
    """Bound on the error of a computed singular value.

    LAPACK's SVD is backward stable: the computed values are the exact ones of A + E with
    ||E||_F <= p(rows, columns) u ||A||_F (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
    chapter 19; LAPACK Users' Guide, section 4.9). We take p = 32 rows columns, the worst case of Higham's
    constants; in float64 it stays near 1e-10 for the sizes in use.

    Args:
        rows: rows of the matrix.
        columns: columns of the matrix.
        frobenius: its Frobenius norm.
        dtype: float32 or float64, real or complex, that it was computed in.

    Returns:
        The absolute error at most.
    """
    return 32.0 * rows * columns * _ROUNDOFF[dtype] * frobenius


def frobenius_norm(weight: Tensor) -> float:
    """Frobenius norm in float64, without overflow or underflow of the squares; 0 for a zero weight only."""
    exact = weight.detach().double()
    largest = float(exact.abs().max())
    return largest * float(torch.linalg.vector_norm(exact / largest)) if largest else 0.0


def phase_rounding(symbol: Symbol) -> float:
    """Bound on the error that rounded phases make in K^(w) computed in float64.

    An angle w . q_t is wrong by at most (axes + 3) u |w . q_t|, its cosine and sine by 4 u more, and
    sum_t ||K_t||_F <= sqrt(taps) ||W||_F.

    Returns:
        The absolute error of K^(w) at most, in the spectral norm.
    """
    layout, weight = symbol.layout, symbol.weight.detach()
    per_tap = ((layout.axes + 3) * layout.reach + 4) * 2.0**-53
    return per_tap * math.sqrt(weight.shape[3]) * frobenius_norm(weight)


def evaluation_rounding(symbol: Symbol, dtype: torch.dtype = torch.float64) -> float:
    """Bound on the error of the blocks K^(w) that `symbol.at(w)` computes.

    An entry sums taps products in its real and its imaginary part, each within (taps + 8) u sum_t |K_t| of the
    true sum (8 for the rounding of a phase to `dtype`, the absolute value of the entry and what else is of second
    order), and || sum_t |K_t| ||_F <= sqrt(taps) ||W||_F; the phases add their own rounding, in float64.

    Args:
        symbol: the symbol.
        dtype: float32 or float64, that it is computed in.

    Returns:
        The absolute error at most, in the Frobenius norm; as much bounds that of the matrix of absolute values.
    """
    taps = symbol.weight.shape[3]
    sums = math.sqrt(2) * (taps + 8) * _ROUNDOFF[dtype] * math.sqrt(taps) * frobenius_norm(symbol.weight)
    return sums + phase_rounding(symbol)


def float32_is_whole() -> bool:
    """Whether float32 products are made in float32; PyTorch can be told to use TF32 or bfloat16 instead."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was told per backend
        return False


def power_of_two(weight: Tensor) -> float:
    """What to divide a weight by to get entries below 2 without rounding any."""
    return math.ldexp(1.0, max(math.frexp(float(weight.detach().abs().max()))[1] - 1, -1022))


def rescaled(symbol: Symbol) -> tuple[Symbol, float]:
    """The symbol in float64, detached, with entries below 2: divided by a power of two, which rounds nothing.

    Returns:
        The symbol, and what to multiply its norm by.
    """
    weight = symbol.weight.detach().double()
    scale = power_of_two(weight)
    return Symbol(weight / scale, symbol.layout), scale


def rescaled_back(value: float, scale: float, *, up: bool) -> float:
    """A bound times the power of two it was divided by; rounded outwards where that is subnormal or overflows."""
    product = value * scale
    if product == math.inf and not up:
        return sys.float_info.max
    if product == 0 or product >= 2.0**-1022:
        return product if product or not (up and value) else math.nextafter(0.0, math.inf)
    return math.nextafter(product, math.inf if up else 0.0)
