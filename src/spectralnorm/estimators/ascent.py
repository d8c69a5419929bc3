"""Climbing |u^H K^(w) v| over u, v and w: the sweep behind `tracked` and behind training.

A track is a point (x, w): a unit vector x of output channels and a frequency w; its height is
||K^(w)^H x||, never above the norm. One sweep (`MATHS.md`, section 2):

1. read the images K_t^T of x, of the residual r and of the previous direction d;
2. Rayleigh-Ritz in span{x, r, d}: the locally optimal step of LOBPCG (Knyazev, SIAM J. Sci. Comput. 2001);
3. move w: the height at fixed x is a trigonometric polynomial (`lags.py`), climbed without the kernel;
4. read K^(w) v for the new residual.

While the weights stand still the images are carried along, so a sweep reads two rows a track twice, and
heights never fall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralnorm.operators.fourier import Symbol

__all__ = ["FrequencyStep", "Tracks", "normalised", "sweep"]

FrequencyStep = Callable[[Tensor, Tensor], Tensor]  # images (g, m, c, taps) and w (g, m, axes) -> w
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Tracks:
    """m tracks in each of g groups.

    Attributes:
        basis: (g, 3, m, rows) complex: x, the residual r and the previous direction d, each unit or zero.
        w: (g, m, axes) frequencies.
        height: (g, m) ||K^(w)^H x||.
        images: (g, 2, m, c_in/g, taps) images of x and d; None when the kernel has changed since.
    """

    basis: Tensor
    w: Tensor
    height: Tensor
    images: Tensor | None = None

    def take(self, index: Tensor) -> Tracks:
        """The tracks at `index` (g, k) of each group."""
        group = torch.arange(index.shape[0], device=index.device)[:, None]
        images = None if self.images is None else self.images[group, :, index].transpose(1, 2)
        basis = self.basis[group, :, index].transpose(1, 2)
        return Tracks(basis, self.w[group, index], self.height[group, index], images)


def normalised(x: Tensor) -> Tensor:
    """Unit vectors along the last axis; zero stays zero."""
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_TINY)
    return unit


def sweep(symbol: Symbol, tracks: Tracks, move: FrequencyStep) -> Tracks:
    """One sweep of every track; two reads of the kernel.

    Args:
        symbol: the symbol, detached.
        tracks: where the tracks are.
        move: the frequency step.

    Returns:
        The tracks after it. A zero kernel keeps its vectors.
    """
    basis, images = tracks.basis, _images(symbol, tracks)
    groups, _, m, _ = basis.shape
    phases = symbol.layout.phases(tracks.w)
    every = phases[:, None].expand(-1, 3, -1, -1).flatten(1, 2)
    mapped = symbol.unfold(images.flatten(1, 2), every).reshape(groups, 3, m, -1)
    x_of, d_of = _ritz(_gram(basis), _gram(mapped))  # (g, 3, m) coefficients each
    x, d = _combine(x_of, basis), _combine(d_of, basis)
    image = _combine(x_of, images)
    size = torch.linalg.vector_norm(x, dim=-1).clamp_min(_TINY)
    size_d = torch.linalg.vector_norm(d, dim=-1).clamp_min(_TINY)
    x, d, image = x / size[..., None], d / size_d[..., None], image / size[..., None, None]
    w = move(image, tracks.w)
    phases = symbol.layout.phases(w)
    v = symbol.unfold(image, phases)
    height = torch.linalg.vector_norm(v, dim=(-2, -1))
    r = _direction(symbol.read(symbol.fold(v, phases)), height.square()[..., None], x)
    direction = _combine(d_of, images) / size_d[..., None, None]
    return Tracks(torch.stack([x, r, d], 1), w, height, torch.stack([image, direction], 1))


def _direction(image: Tensor, height2: Tensor, x: Tensor) -> Tensor:
    """Unit residual of K K^H x; zero where only rounding is left, which would lead nowhere."""
    residual = image - height2 * x
    size = torch.linalg.vector_norm(residual, dim=-1, keepdim=True)
    noise = 8 * torch.finfo(x.dtype).eps * height2
    return torch.where(size > noise, residual / size.clamp_min(_TINY), torch.zeros_like(residual))


def _images(symbol: Symbol, tracks: Tracks) -> Tensor:
    """Images of x, r, d: of r alone where the others are carried along."""
    if tracks.images is None:
        m = tracks.basis.shape[2]
        fresh: Tensor = symbol.read_adjoint(tracks.basis.flatten(1, 2)).unflatten(1, (3, m))
        return fresh
    fresh = symbol.read_adjoint(tracks.basis[:, 1])
    return torch.stack([tracks.images[:, 0], fresh, tracks.images[:, 1]], 1)


def _gram(vectors: Tensor) -> Tensor:
    """(g, 3, m, n) -> inner products (g, m, 3, 3)."""
    rows = vectors.transpose(1, 2)
    return rows.conj() @ rows.mT


def _combine(coefficients: Tensor, vectors: Tensor) -> Tensor:
    """Sum over the three basis vectors: (g, 3, m) and (g, 3, m, ...) -> (g, m, ...)."""
    shape = coefficients.shape + (1,) * (vectors.ndim - 3)
    return (coefficients.reshape(shape) * vectors).sum(1)


def _ritz(gram: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (g, 3, m) of the best unit combination x of the basis, and of its part outside the old x.

    Solves the 3 x 3 generalised problem energy z = height^2 gram z; directions the basis lacks (zero or
    parallel vectors) are left out.

    Returns:
        The coefficients of x and of the new direction.
    """
    spread, axes = torch.linalg.eigh(gram)
    keep = spread > 1e-4 * spread[..., -1:]
    whiten = axes * torch.where(keep, spread.clamp_min(_TINY).rsqrt(), 0.0)[..., None, :]
    top = torch.linalg.eigh(whiten.mH @ energy @ whiten)[1][..., -1:]
    z = (whiten @ top)[..., 0]  # (g, m, 3)
    outside = torch.cat([torch.zeros_like(z[..., :1]), z[..., 1:]], -1)
    return z.transpose(1, 2), outside.transpose(1, 2)
