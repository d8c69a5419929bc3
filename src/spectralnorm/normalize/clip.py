"""Clipping the singular values of a layer at a maximum, its kernel size kept.

Sedghi, Gupta & Long (ICLR 2019): clip every frequency's block, transform back, cut to the kernel's taps. Repeated,
these projections approach the set of kernels that are below the maximum on the grid, from above (`MATHS.md`,
section 6), so a proven scaling ends them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from spectralnorm.estimators.base import check_counts
from spectralnorm.estimators.grids import half_grid
from spectralnorm.measure import check_size, check_tolerance, spectral_norm
from spectralnorm.normalize.options import check_target
from spectralnorm.normalize.proven import shrink_until_proven
from spectralnorm.normalize.sites import check_plain, is_normalizable
from spectralnorm.operators.base import Operator, Size, with_weight
from spectralnorm.operators.fourier import Symbol
from spectralnorm.operators.registry import as_operator, has_operator

__all__ = ["clip_singular_values"]

_LEAST_POINTS = 16  # of the grid, per axis
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def clip_singular_values(
    model_or_layer: AnyModule,
    maximum: float,
    input_shape: Sequence[int] | int | None = None,
    *,
    iterations: int = 20,
    rtol: float = 1e-3,
    certified: bool = True,
) -> AnyModule:
    """Project weights, in place, so that no singular value exceeds a maximum, at any input size.

    Small singular values stay nearly as they are, where scaling would shrink them all. Ends with a scaling
    that proves the size-free norm to be at most the maximum; a layer proven to be below already is left alone.
    That takes some seconds for a layer of 64 channels and half a minute for 128: in training, clip every so
    many steps, with `iterations=1, certified=False`.

    Args:
        model_or_layer: a Linear, Conv or ConvTranspose layer with a plain weight, or a model, of which every such
            layer is clipped.
        maximum: above 0.
        input_shape: of a layer, the spatial size whose frequencies are clipped, at least 16 an axis; None for that
            least.
        iterations: projections at most.
        rtol: tolerance of the closing certificate.
        certified: whether the closing scaling is by a proven norm; else by the tracked one, which is some hundred
            times cheaper.

    Returns:
        The same object.

    Raises:
        TypeError: for a layer without operator.
        ValueError: for a wrong maximum, size or count, a size with a model, or a weight that is parametrised.

    Reference:
        Sedghi, Gupta & Long, ICLR 2019, section 3.

    Example:
        >>> import torch, spectralnorm as sn
        >>> layer = torch.nn.Linear(3, 3)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 2.0, 0.5])))
        >>> layer = sn.clip_singular_values(layer, 1.0)
        >>> [round(float(s), 2) for s in sn.singular_values(layer).detach()]
        [1.0, 1.0, 0.5]
    """
    check_target("maximum", maximum)
    check_counts(iterations=iterations)
    check_tolerance(rtol)
    layers = _layers(model_or_layer, input_shape)
    for name, layer in layers.items():
        check_plain(layer, "weight", name)
    for name, layer in layers.items():
        operator = as_operator(layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        _clip(operator, weight, maximum, check_size(operator, input_shape), iterations, rtol)
        if certified:
            title = name or type(layer).__name__
            shrink_until_proven(weight, partial(with_weight, operator), maximum, rtol, title)
        else:
            with torch.no_grad():
                norm = float(spectral_norm(layer, rtol=rtol)) * operator.ceilings(None)[0][1]
                weight.mul_(min(1.0, maximum / norm) if norm else 1.0)
    return model_or_layer


def _layers(model: nn.Module, input_shape: Sequence[int] | int | None) -> dict[str, nn.Module]:
    """The layers to clip by name: the one given, or those of a model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"clip_singular_values expected a torch.nn.Module, got {type(model).__name__}.")
    if has_operator(model):
        return {"": model}
    layers = {name: module for name, module in model.named_modules() if is_normalizable(module)}
    if not layers:
        as_operator(model)  # raises, and says why
    if input_shape is not None:
        raise ValueError(
            f"input_shape={input_shape!r} was given with a model, whose layers see different sizes; expected it "
            "with a single layer. Leave it out."
        )
    return layers


@torch.no_grad()
def _clip(
    operator: Operator, weight: Tensor, maximum: float, size: Size | None, iterations: int, rtol: float
) -> None:
    """Project a weight, in place, until its grid holds nothing above the maximum."""
    symbol, padding = operator.symbol().to(torch.float64), operator.ceilings(None)[0][1]
    grid, before = _grid(symbol, size), symbol
    for _ in range(iterations):
        clipped, excess = _project(symbol, grid, maximum / padding)
        if excess <= 1 + rtol / 10:
            break
        symbol = Symbol(clipped, symbol.layout)
    if symbol is not before:
        weight.copy_(symbol.weight.reshape(weight.shape))


def _grid(symbol: Symbol, size: Size | None) -> Size:
    """Points per axis: as the size has, and enough to tell the taps apart."""
    wished = size or (0,) * symbol.layout.axes
    return tuple(
        max(n, _LEAST_POINTS, 4 * round(2 * d) + 2) if d else 1
        for n, d in zip(wished, symbol.layout.degrees, strict=True)
    )


def _project(symbol: Symbol, grid: Size, maximum: float) -> tuple[Tensor, float]:
    """Clip the block at every frequency of the grid, and cut the kernel that has these blocks to its taps.

    Only half the frequencies are decomposed: the block at -w is the conjugate.

    Returns:
        The weight (g, c_out/g, c_in/g, taps), and the largest singular value over the maximum before.
    """
    layout, w = symbol.layout, half_grid(grid).to(symbol.weight.device)
    once = _is_own_mirror(w, grid)
    change = torch.zeros_like(symbol.weight)
    largest = 0.0
    per_chunk = max(1, 2**21 // (symbol.groups * symbol.rows * symbol.columns))
    for part, single in zip(w.split(per_chunk), once.split(per_chunk), strict=True):
        u, s, vh = torch.linalg.svd(symbol.at(part), full_matrices=False)  # (m, g, ...)
        largest = max(largest, float(s[..., 0].max()))
        over = (u * (s - maximum).clamp_min(0)[..., None, :]) @ vh
        share = (2.0 - single.double()) / math.prod(grid)
        folded = over.unflatten(-1, (-1, layout.components))[..., layout.component]  # (m, g, o, c, taps)
        back = layout.phases(part).conj() * share[:, None]
        change += torch.einsum("mgoct,mt->goct", folded, back).real
    return symbol.weight - change, largest / maximum


def _is_own_mirror(w: Tensor, grid: Size) -> Tensor:
    """Which frequencies of `half_grid` come without their mirror image outside it: (m,) bool.

    Along the axis that is halved, 0 and pi hold both w and -w of the other axes; all others stand for two.

    Returns:
        The mask.
    """
    halved = next((axis for axis, n in enumerate(grid) if n > 1), None)
    if halved is None:
        return torch.ones(len(w), dtype=torch.bool, device=w.device)
    index = (w[:, halved] * grid[halved] / (2 * math.pi)).round()
    return (index == 0) | (2 * index == grid[halved])
