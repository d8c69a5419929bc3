"""Slow, plain references, written without the library: dense matrices, and the symbol from its definition."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def dense_matrix(layer: nn.Module, size: tuple[int, ...]) -> Tensor:
    """The layer's matrix in float64 (outputs, inputs), column by column from the layer itself.

    A BatchNorm, alone or last in a `Sequential`, is as in eval mode.
    """
    shape = (_inputs(layer), *size)
    layer = _plain_copy(layer).eval()
    with torch.no_grad():
        basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        offset = layer(torch.zeros_like(basis[:1]))
        return (layer(basis) - offset).flatten(1).T.contiguous()


def dense_norm(layer: nn.Module, size: tuple[int, ...]) -> float:
    """Largest singular value of the layer's matrix at this size."""
    return float(torch.linalg.matrix_norm(dense_matrix(layer, size), 2))


def is_transposed(layer: nn.Module) -> bool:
    return isinstance(layer, tuple(_TRANSPOSED.values()))


def _inputs(layer: nn.Module) -> int:
    """Input channels of a layer."""
    if isinstance(layer, nn.Sequential):
        return _inputs(layer[0])
    names = ("in_features", "in_channels", "num_features")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def _plain_copy(layer: nn.Module) -> nn.Module:
    """A bias-free float64 copy without parametrizations; a BatchNorm keeps its shift."""
    if isinstance(layer, nn.Sequential):
        return nn.Sequential(*map(_plain_copy, layer))
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return copy.deepcopy(layer).double()
    args = {"bias": False, "dtype": torch.float64}
    if isinstance(layer, nn.Linear):
        plain = nn.Linear(layer.in_features, layer.out_features, **args)
    else:
        names = ["stride", "padding", "dilation", "groups", "padding_mode"]
        names += ["output_padding"] if is_transposed(layer) else []
        options = {name: getattr(layer, name) for name in names}
        conv = (_TRANSPOSED if is_transposed(layer) else _CONV)[layer.weight.ndim - 2]
        plain = conv(layer.in_channels, layer.out_channels, layer.kernel_size, **args, **options)
    plain.weight.data = layer.weight.detach().double()
    return plain


def size_free_norm(layer: nn.Module) -> float:
    """Supremum of the polyphase symbol: a grid of 16 k points an axis, then zooms into its best cells.

    Where the layer has a stride, the input is split into its residue classes; taps that read a common
    lattice only (stride and dilation share a factor) are the same map on that lattice. A transposed layer has
    the norm of the convolution it is the adjoint of. Under circular padding with a stride, reflect and
    replicate this is the lower end of what the norm over all sizes can be.
    """
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return float(np.abs(_batchnorm_scale(layer)).max())
    if isinstance(layer, nn.Sequential):
        return _folded_norm(*layer)
    return _weight_norm(layer, layer.weight.detach().double().numpy())


def _weight_norm(layer: nn.Module, weight: np.ndarray) -> float:
    if weight.ndim == 2:
        return float(np.linalg.norm(weight, 2))
    stride = [s // math.gcd(s, d) for s, d in zip(layer.stride, layer.dilation, strict=True)]
    blocks = np.split(weight, layer.groups)
    return max(_supremum(block, stride) for block in blocks)


def _batchnorm_scale(norm: nn.Module) -> np.ndarray:
    gamma = torch.ones(1) if norm.weight is None else norm.weight.detach()
    return (gamma.double() / (norm.running_var.double() + norm.eps).sqrt()).numpy()


def _folded_norm(layer: nn.Module, norm: nn.Module) -> float:
    """Of a layer and the BatchNorm behind it, as one map: output channel c scaled by the norm's factor for c."""
    weight, scale = layer.weight.detach().double().numpy().copy(), _batchnorm_scale(norm)
    if is_transposed(layer):
        inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for c, factor in enumerate(scale):
            group = slice(c // outputs * inputs, (c // outputs + 1) * inputs)
            weight[group, c % outputs] *= factor
    else:
        for c, factor in enumerate(scale):
            weight[c] *= factor
    return _weight_norm(layer, weight)


def _supremum(block: np.ndarray, stride: list[int]) -> float:
    kernel = block.shape[2:]
    counts = [1 if k <= s else 16 * k for k, s in zip(kernel, stride, strict=True)]
    steps = [2 * math.pi / n for n in counts]
    ranges = [np.arange(n) * step for n, step in zip(counts, steps, strict=True)]
    for axis, n in enumerate(counts):  # s(-w) = s(w): half of one axis is enough
        if n > 1:
            ranges[axis] = ranges[axis][: n // 2 + 1]
            break
    points = np.array(list(itertools.product(*ranges))).reshape(-1, len(kernel))
    values = _norms(block, stride, points)
    best = points[np.argsort(values)[-12:]]
    top = values.max()
    offsets = np.array(list(itertools.product((0, -0.5, 0.5, -1, 1), repeat=len(kernel))))  # the centre first
    width = np.tile(steps, (len(best), 1))
    for _ in range(45):
        around = best[:, None] + offsets[None] * width[:, None] / 2
        heights = _norms(block, stride, around.reshape(-1, len(kernel))).reshape(len(best), -1)
        winner = heights.argmax(1)
        best = around[np.arange(len(best)), winner]
        top = max(top, heights.max())
        width[winner == 0] /= 4  # a cell shrinks once its centre wins, so that ridges are followed
    return float(top)


def _norms(block: np.ndarray, stride: list[int], points: np.ndarray) -> np.ndarray:
    """Largest singular value of the symbol at each point, by the definition."""
    components: dict[tuple[int, ...], np.ndarray] = {}
    for p in np.ndindex(block.shape[2:]):
        residue = tuple(i % s for i, s in zip(p, stride, strict=True))
        quotient = np.array([i // s for i, s in zip(p, stride, strict=True)])
        term = np.exp(-1j * points @ quotient)[:, None, None] * block[(slice(None), slice(None), *p)]
        components[residue] = components.get(residue, 0) + term
    symbol = np.concatenate(list(components.values()), axis=2)
    gram = symbol.conj().swapaxes(1, 2) @ symbol
    if symbol.shape[1] < symbol.shape[2]:
        gram = symbol @ symbol.conj().swapaxes(1, 2)
    return np.sqrt(np.linalg.eigvalsh(gram)[:, -1].clip(0))


def symbol_norms(layer: nn.Module, points: np.ndarray) -> np.ndarray:
    """Norm of a convolution's polyphase symbol at each frequency (m, axes), over all groups."""
    weight = layer.weight.detach().double().numpy()
    stride = [s // math.gcd(s, d) for s, d in zip(layer.stride, layer.dilation, strict=True)]
    return np.max([_norms(block, stride, points) for block in np.split(weight, layer.groups)], axis=0)
