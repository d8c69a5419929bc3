"""Slow, plain references, written without the library: dense matrices, and the symbol from its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn


def dense_matrix(layer: nn.Module, size: tuple[int, ...]) -> Tensor:
    """The layer's matrix in float64 (outputs, inputs), column by column from the layer itself."""
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    shape = (channels, *size)
    layer = _plain_copy(layer)
    with torch.no_grad():
        basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return layer(basis).flatten(1).T.contiguous()


def dense_norm(layer: nn.Module, size: tuple[int, ...]) -> float:
    """Largest singular value of the layer's matrix at this size."""
    return float(torch.linalg.matrix_norm(dense_matrix(layer, size), 2))


def _plain_copy(layer: nn.Module) -> nn.Module:
    """A bias-free float64 copy without parametrizations."""
    args = {"bias": False, "dtype": torch.float64}
    if isinstance(layer, nn.Linear):
        copy = nn.Linear(layer.in_features, layer.out_features, **args)
    else:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        options = {name: getattr(layer, name) for name in names}
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[layer.weight.ndim - 2]
        copy = conv(layer.in_channels, layer.out_channels, layer.kernel_size, **args, **options)
    copy.weight.data = layer.weight.detach().double()
    return copy


def size_free_norm(layer: nn.Module) -> float:
    """Supremum of the polyphase symbol: a grid of 16 k points an axis, then zooms into its best cells.

    Where the layer has a stride, the input is split into its residue classes; taps that read a common
    lattice only (stride and dilation share a factor) are the same map on that lattice.
    """
    weight = layer.weight.detach().double().numpy()
    if weight.ndim == 2:
        return float(np.linalg.norm(weight, 2))
    stride = [s // math.gcd(s, d) for s, d in zip(layer.stride, layer.dilation, strict=True)]
    blocks = np.split(weight, layer.groups)
    return max(_supremum(block, stride) for block in blocks)


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
