"""Climbing |u^H K^(w) v| over u, v and w: the sweep behind `tracked` and behind training.

A track is a point (x, w): a unit vector x of output channels and a frequency w; its height is
||K^(w)^H x||, never above the norm. One sweep (`MATHS.md`, section 2):

1. read the images K_t^T of x, of the previous direction d and of the residual r;
2. Rayleigh-Ritz in span{x, d, r}: the locally optimal step of LOBPCG (Knyazev, SIAM J. Sci. Comput. 2001);
3. move w: the height at fixed x is a trigonometric polynomial (`lags.py`), climbed without the kernel;
4. read K^(w) v for the new residual.

While the weights stand still the images are carried along, so that a sweep reads two rows a track twice;
after a change of the weights it reads six rows, then two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralnorm.operators.base import queued
from spectralnorm.operators.eigen import leading
from spectralnorm.operators.fourier import Symbol

__all__ = ["FrequencyStep", "Tracks", "lengths", "normalised", "power_sweep", "sweep"]

FrequencyStep = Callable[[Tensor, Tensor], Tensor]  # images (g, m, c, taps) and w (g, m, axes) -> w
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Tracks:
    """m tracks in each of g groups.

    Attributes:
        basis: (g, m, 3, rows) complex and orthonormal: x, the direction d it came by, the residual r; d and r
            may be zero.
        w: (g, m, axes) frequencies.
        height: (g, m) ||K^(w)^H x||.
        images: (g, m, 2, c_in/g, taps) images of x and d; None when the kernel has changed since.
    """

    basis: Tensor
    w: Tensor
    height: Tensor
    images: Tensor | None = None

    def take(self, index: Tensor) -> Tracks:
        """The tracks at `index` (g, k) of each group."""
        group = torch.arange(index.shape[0], device=index.device)[:, None]
        images = None if self.images is None else self.images[group, index]
        return Tracks(self.basis[group, index], self.w[group, index], self.height[group, index], images)

    def start(self) -> tuple[Tensor, Tensor]:
        """Each track's x (g, m, rows) and w."""
        return self.basis[:, :, 0], self.w

    def beside(self, other: Tracks) -> Tracks:
        """These tracks and others, without images."""
        pairs = (self.basis, other.basis), (self.w, other.w), (self.height, other.height)
        basis, w, height = (torch.cat(pair, 1) for pair in pairs)
        return Tracks(basis, w, height)

    def distinct(self, count: int) -> Tensor:
        """Indices (g, count) of the highest tracks, those last that repeat a higher one's peak.

        As the kernel is real, a track has the height of the conjugate vector at the opposite frequency.

        Returns:
            The indices.
        """
        order = self.height.argsort(1, descending=True)
        ranked = self.take(order)
        x, w = ranked.basis[:, :, 0], ranked.w[:, :, None]
        repeats = torch.zeros_like(x[:, :, :1], dtype=torch.bool)
        for other, sign in ((x, 1.0), (x.conj(), -1.0)):
            apart = (w - sign * ranked.w[:, None]).abs() % (2 * torch.pi)
            close = (torch.minimum(apart, 2 * torch.pi - apart) < 0.1).all(-1)
            repeats = repeats | (close & ((x.conj() @ other.mT).abs() > 0.9))
        repeated = torch.tril(repeats, diagonal=-1).any(-1) | (ranked.height == 0)
        place = torch.arange(order.shape[1], device=order.device) + order.shape[1] * repeated
        return order.gather(1, place.argsort(1)[:, :count])


def lengths(x: Tensor) -> Tensor:
    """Euclidean norms along the last axis; through real numbers, many times faster than of complex ones."""
    length: Tensor = torch.linalg.vector_norm(torch.view_as_real(x), dim=(-2, -1))
    return length


def normalised(x: Tensor) -> Tensor:
    """Unit vectors along the last axis; zero stays zero."""
    unit: Tensor = x / lengths(x)[..., None].clamp_min(_TINY)
    return unit


def sweep(symbol: Symbol, tracks: Tracks, move: FrequencyStep) -> Tracks:
    """One sweep of every track; two reads of the kernel.

    Args:
        symbol: the symbol, detached.
        tracks: where the tracks are.
        move: the frequency step.

    Returns:
        The tracks after it. Where the kernel answers with zero, the vectors stay as they were.
    """
    basis, images = tracks.basis, _images(symbol, tracks)
    mapped = symbol.unfold(images, symbol.layout.phases(tracks.w)[:, :, None]).flatten(-2)
    chosen = _ritz(mapped.conj() @ mapped.mT)  # (g, m, 2, 3): x and d in terms of the basis
    pair = chosen @ basis
    size = lengths(pair)[..., None].clamp_min(_TINY)
    pair = pair / size
    carried = ((chosen / size) @ images.flatten(-2)).unflatten(-1, images.shape[-2:])
    image = carried[:, :, 0]
    w = move(image, tracks.w)
    phases = symbol.layout.phases(w)
    v = symbol.unfold(image, phases)
    height = lengths(v.flatten(-2))
    residual = _residual(symbol.read(symbol.fold(v, phases)), pair, height)
    return Tracks(torch.cat([pair, residual], 2), w, height, carried)


def power_sweep(
    symbol: Symbol, x: Tensor, w: Tensor, move: FrequencyStep
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The cheapest sweep: v <- K^(w)^H x with a frequency step, then x <- K^(w) v. Two reads of two rows a track.

    Args:
        symbol: the symbol, detached.
        x: (g, m, rows) unit vectors.
        w: (g, m, axes) frequencies.
        move: the frequency step.

    Returns:
        x, unit v (g, m, c_in/g, components), w, the height ||K^(w) v|| (g, m), and v with the phases folded in
        (g, m, c_in/g, taps). Where the kernel answers with zero, x stays and the height is 0.
    """
    image = symbol.read_adjoint(x)
    w = move(image, w)
    phases = symbol.layout.phases(w)
    v = symbol.unfold(image, phases)
    v = v / lengths(v.flatten(-2))[..., None, None].clamp_min(_TINY)
    folded = symbol.fold(v, phases)
    ahead = symbol.read(folded)
    height = lengths(ahead)
    unit = ahead / height[..., None].clamp_min(_TINY)
    return torch.where(height[..., None] > 0, unit, x), v, w, height, folded


def _images(symbol: Symbol, tracks: Tracks) -> Tensor:
    """Images of x, d, r (g, m, 3, c_in/g, taps): of r alone where the others are carried along."""
    if tracks.images is None:
        every: Tensor = symbol.read_adjoint(tracks.basis.flatten(1, 2)).unflatten(1, tracks.basis.shape[1:3])
        return every
    fresh = symbol.read_adjoint(tracks.basis[:, :, 2])
    return torch.cat([tracks.images, fresh[:, :, None]], 2)


def _ritz(energy: Tensor) -> Tensor:
    """The best combination of an orthonormal basis, from its energies (g, m, 3, 3).

    Returns:
        (g, m, 2, 3) coefficients of the new x, z, and of the direction it came by: the part of the old x that
        is orthogonal to z, which is (|z_1|^2 + |z_2|^2, -z_1 conj(z_0), -z_2 conj(z_0)) up to scale. Written
        so it stays orthogonal however small the step.
    """
    # not-a-number weights must not stop the other layers of a stack: eigh refuses them
    energy = torch.where(energy.isfinite(), energy, 0.0)
    if not queued(energy.device):
        values, vectors = torch.linalg.eigh(energy)
        stay = torch.zeros_like(vectors[..., 0])
        stay[..., 0] = 1
        z = torch.where(values[..., -1:] > 0, vectors[..., -1], stay)
    else:
        z = leading(energy)
    step = z[..., 1:]
    back = torch.cat([step.abs().square().sum(-1, keepdim=True).to(z), -step * z[..., :1].conj()], -1)
    return torch.stack([z, normalised(back)], 2)


def _residual(image: Tensor, pair: Tensor, height: Tensor) -> Tensor:
    """Unit residual (g, m, 1, rows) of K K^H x, orthogonal to x and d; zero where only rounding is left."""
    image = image[:, :, None]
    residual = image - (image @ pair.mH) @ pair
    size = lengths(residual)[..., None]
    noise = 8 * torch.finfo(size.dtype).eps * height.square()[..., None, None]
    residual = residual * torch.where(size > noise, 1 / size.clamp_min(_TINY), 0.0)
    return normalised(residual - (residual @ pair.mH) @ pair)  # near convergence once is not orthogonal enough
