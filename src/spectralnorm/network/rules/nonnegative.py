"""Norms of linear maps without negative weights: pools, padding by copies, upsampling, sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectralnorm.network.outward import root_up, up
from spectralnorm.network.rules.call import Call

__all__ = ["copies_norm", "nonnegative_norm"]

_STEPS = 300  # of power iteration; each lowers the bound, all of them are valid
_CLOSE = 1e-7  # of the norm's square: where its bounds meet
_LEAST = 1e-12  # of the largest entry: the vector stays positive


def nonnegative_norm(call: Call) -> float:
    """The norm of a call that is linear in its one input, by weights of one sign, at the size it was made.

    For A without negative entries, ||A||^2 is the spectral radius of A^T A, and that is at most
    max_i (A^T A x)_i / x_i for every positive x (Collatz and Wielandt; Horn & Johnson, Matrix Analysis, 2nd
    edition, theorem 8.1.26). Power iteration makes x the one for which this is the norm itself. A sum of terms of
    one sign rounds by no more than its number of terms times the unit roundoff, in relation to itself.

    Args:
        call: of a linear map.

    Returns:
        An upper bound; the norm itself to 1e-7 or so where the iteration converges.

    Example:
        >>> x, pool = torch.zeros(1, 1, 8), torch.nn.AvgPool1d(2)
        >>> call = Call("pool", pool, (x,), {}, (x,), pool(x), lambda *_: 1.0)
        >>> 0.5**0.5 <= nonnegative_norm(call) <= 0.5**0.5 + 1e-6
        True
    """
    example = call.inputs[0]
    if not example.numel():
        return 0.0
    x = torch.ones(example.shape, dtype=torch.float64, device=example.device)
    _check_adjoint(call, x)
    best, entries = math.inf, 0
    for _ in range(_STEPS):
        with torch.enable_grad():
            y = call.replay(x.requires_grad_())
            (image,) = torch.autograd.grad(y, x, y.detach())
        x, entries = x.detach(), x.numel() + y.numel()
        best = min(best, float((image / x).amax()))
        below = float(y.detach().square().sum() / x.square().sum())
        if best <= below * (1 + _CLOSE) or best == 0:
            break
        x = (image / image.amax()).clamp_min(_LEAST)
    return up(math.sqrt(best) * (1 + (entries + 64) * 2.0**-52))


def _check_adjoint(call: Call, x: Tensor) -> None:
    """Raise a ValueError where the backward pass is not the transpose of the forward one, which is relied on.

    Raises:
        ValueError: as said.
    """
    generator = torch.Generator(x.device).manual_seed(0)
    x = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator).requires_grad_()
    with torch.enable_grad():
        y = call.replay(x)
        z = torch.rand(y.shape, dtype=y.dtype, device=y.device, generator=generator)
        (image,) = torch.autograd.grad(y, x, z)
    forward, backward = float((y.detach() * z).sum()), float((x.detach() * image).sum())
    if abs(forward - backward) > 1e-9 * (abs(forward) + abs(backward)):
        raise ValueError(
            f"{call} has a backward pass in PyTorch that is not the transpose of its forward pass, so that its "
            "norm cannot be found; expected a linear map. Register a rule of your own."
        )


def copies_norm(call: Call) -> float:
    """The norm of a call that only copies cells of its input's spatial axes: the root of the largest count.

    Args:
        call: whose input is (1, channels, *axes), each channel treated alike. Its backward pass is not used:
            PyTorch's is not the transpose for all sizes of nearest neighbours.

    It computes nearest neighbours in the precision of its input, and finds others in float32 than in float64: the
    larger count of the two is taken.

    Returns:
        The norm, rounded up.

    Example:
        >>> x, twice = torch.zeros(1, 1, 3), torch.nn.Upsample(scale_factor=2)
        >>> copies_norm(Call("up", twice, (x,), {}, (x,), twice(x), lambda *_: 1.0)) == root_up(2.0)
        True
    """
    return root_up(max(float(_shown(call, dtype).bincount().amax()) for dtype in (torch.float32, torch.float64)))


def _shown(call: Call, dtype: torch.dtype) -> Tensor:
    """Which of the input's cells each of the output's shows, by their numbers, flat.

    Found axis by axis, since float32 cannot number all cells of a large input.

    Returns:
        int64, one number for each cell of the output.
    """
    example = call.inputs[0]
    axes = example.shape[2:]
    cells = torch.zeros((), dtype=torch.int64, device=example.device)
    for axis, n in enumerate(axes):
        places = torch.arange(n, dtype=dtype, device=example.device).reshape(n, *[1] * (len(axes) - axis - 1))
        cells = cells * n + call.replay(places.expand(example.shape).clone())[0, 0].long()
    return cells.flatten()
