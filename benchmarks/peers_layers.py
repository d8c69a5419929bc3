"""The 30 layers of `peers.py`, and the norms that a value can claim to be."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import spectralnorm as sn

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the plain references live with the tests
from reference import dense_norm, size_free_norm

SIZE = 32  # where peers that need a size are asked
JACOBIAN_SIZE = {1: (64,), 2: (8, 8)}  # a dense Jacobian needs smaller inputs
JACOBIAN_COLUMNS = 2048

# ----------------------------------------------------------------------------------------------------- layers


def _layer(
    kind: type, *args: int | tuple[int, int], kernel: Callable[[Tensor], Tensor] | None = None, **options: Any
) -> Callable[[], nn.Module]:
    """A layer with a He-initialised kernel, or what `kernel` makes of it; the caller sets the seed."""

    def make() -> nn.Module:
        layer = kind(*args, bias=False, **options)
        nn.init.kaiming_normal_(layer.weight)
        if kernel is not None:
            layer.weight.data = kernel(layer.weight.detach())
        return layer

    return make


_conv = partial(_layer, nn.Conv2d)


def _decaying(w: Tensor) -> Tensor:
    """The flattened kernel's singular values fall like 1 / i, its taps fade from the centre: as if trained."""
    u, s, vh = torch.linalg.svd(w.flatten(1), full_matrices=False)
    flat = u * (s[0] / torch.arange(1, len(s) + 1)) @ vh
    fade = torch.tensor([0.5, 1.0, 0.5])
    return flat.reshape(w.shape) * torch.outer(fade, fade)


def _bump(w: Tensor) -> Tensor:
    """Positive, highest at the centre."""
    axis = torch.linspace(-1, 1, w.shape[-1])
    return w.abs() * torch.exp(-2 * (axis[:, None] ** 2 + axis[None] ** 2))


def _orthogonal(w: Tensor) -> Tensor:
    """An orthogonal 2x2 convolution from two projectors (Li et al. 2019): every singular value is 1."""
    c = w.shape[0]
    bases = [nn.init.orthogonal_(torch.empty(c, c))[:, : c // 2] for _ in range(2)]
    p, q = (b @ b.T for b in bases)
    one = torch.eye(c)
    rows = [torch.stack([a @ q, a @ (one - q)], -1) for a in (p, one - p)]
    return torch.stack(rows, -2)


CIRCULAR = {"padding_mode": "circular"}

LAYERS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("3 -> 32, 3x3", _conv(3, 32, 3, padding=1)),
    ("16 -> 16, 3x3", _conv(16, 16, 3, padding=1)),
    ("32 -> 64, 3x3", _conv(32, 64, 3, padding=1)),
    ("64 -> 64, 3x3", _conv(64, 64, 3, padding=1)),
    ("128 -> 128, 3x3", _conv(128, 128, 3, padding=1)),
    ("64 -> 128, 1x1", _conv(64, 128, 1)),
    ("16 -> 32, 5x5", _conv(16, 32, 5, padding=2)),
    ("3 -> 32, 7x7", _conv(3, 32, 7, padding=3)),
    ("3 -> 64, 7x7, stride 2", _conv(3, 64, 7, stride=2, padding=3)),
    ("32 -> 64, 3x3, stride 2", _conv(32, 64, 3, stride=2, padding=1)),
    ("64 -> 128, 1x1, stride 2", _conv(64, 128, 1, stride=2)),
    ("3 -> 64, 4x4, stride 4 (patches)", _conv(3, 64, 4, stride=4)),
    ("16 -> 16, 3x3, dilation 2", _conv(16, 16, 3, padding=2, dilation=2)),
    ("8 -> 16, 3x3, stride 2, dilation 2", _conv(8, 16, 3, padding=2, stride=2, dilation=2)),
    ("32 -> 32, 3x3, 4 groups", _conv(32, 32, 3, padding=1, groups=4)),
    ("64 -> 64, 3x3, depthwise", _conv(64, 64, 3, padding=1, groups=64)),
    ("32 -> 32, 5x5, depthwise, stride 2", _conv(32, 32, 5, padding=2, stride=2, groups=32)),
    ("16 -> 16, 3x3, circular", _conv(16, 16, 3, padding=1, **CIRCULAR)),
    ("32 -> 64, 5x5, circular", _conv(32, 64, 5, padding=2, **CIRCULAR)),
    ("16 -> 32, 1x7", _conv(16, 32, (1, 7), padding=(0, 3))),
    ("16 -> 16, 5x2", _conv(16, 16, (5, 2), padding=(2, 1))),
    ("16 -> 16, 3x3, positive", _conv(16, 16, 3, padding=1, kernel=torch.abs)),
    ("8 -> 8, 7x7, positive, smooth", _conv(8, 8, 7, padding=3, kernel=_bump)),
    ("64 -> 64, 3x3, decaying spectrum", _conv(64, 64, 3, padding=1, kernel=_decaying)),
    ("32 -> 32, 2x2, orthogonal", _conv(32, 32, 2, padding=1, kernel=_orthogonal)),
    ("16 -> 16, 3x3, zero", _conv(16, 16, 3, padding=1, kernel=torch.zeros_like)),
    ("1-D: 32 -> 32, 5", _layer(nn.Conv1d, 32, 32, 5, padding=2)),
    ("1-D: 16 -> 64, 3, stride 2", _layer(nn.Conv1d, 16, 64, 3, stride=2, padding=1)),
    ("transposed: 32 -> 16, 3x3", _layer(nn.ConvTranspose2d, 32, 16, 3, padding=1)),
    ("transposed: 64 -> 32, 4x4, stride 2", _layer(nn.ConvTranspose2d, 64, 32, 4, stride=2, padding=1)),
]


@cache
def layer_of(index: int) -> nn.Module:
    """The layer, always with the same weights."""
    torch.manual_seed(index)
    return LAYERS[index][1]()


# ------------------------------------------------------------------------------------------- what is claimed


@dataclass(frozen=True)
class Norm:
    """Which norm a value claims to be: size-free, of the circular layer at a size, or of the layer at a size."""

    padding: str = "any"
    size: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "any size" if self.padding == "any" else f"{self.padding}, {'x'.join(map(str, self.size))}"


ANY = Norm()
CIRCLE = Norm("circular", (SIZE, SIZE))


@cache
def true_norm(index: int, norm: Norm) -> float:
    """In float64: a fine search of the symbol, FFT + eigenvalues, the dense matrix, or Lanczos on the layer."""
    layer = layer_of(index)
    if norm == ANY:
        return size_free_norm(layer)
    if norm.padding == "circular":
        return _circular_norm(layer, norm.size)
    if math.prod(norm.size) * layer.in_channels <= JACOBIAN_COLUMNS:
        return dense_norm(layer, norm.size)
    return sn.spectral_norm(copy.deepcopy(layer).double(), input_shape=norm.size, rtol=1e-6).lower


def _circular_norm(layer: nn.Module, size: tuple[int, ...]) -> float:
    weight = layer.weight.detach().double().numpy()
    top = 0.0
    for block in np.split(weight, layer.groups):
        symbol = np.fft.fft2(block, size).transpose(2, 3, 0, 1)
        gram = symbol @ symbol.conj().swapaxes(2, 3)
        top = max(top, float(np.linalg.eigvalsh(gram)[..., -1].max()))
    return math.sqrt(max(top, 0.0))
