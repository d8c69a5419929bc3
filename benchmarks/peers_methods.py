"""The methods of `peers.py`: ours, and what each peer offers, called as its own documentation does."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import spectralnorm as sn
from peers_layers import ANY, CIRCLE, JACOBIAN_COLUMNS, JACOBIAN_SIZE, SIZE, Norm

GRAM_WORK = 1e11  # multiplications up to which the generous Gram iteration on zero padding is run


class RefusesError(Exception):
    """The method does not take this layer, by its documentation or for want of an argument."""


class NotRunError(Exception):
    """The method takes the layer, but would need far longer than the rest of this benchmark."""


@dataclass(frozen=True)
class Method:
    """A way to a norm.

    Attributes:
        name: as in the table.
        package: what it comes from, on PyPI.
        claim: "bound" (from above), "estimate", or "neither".
        norm: the norm it claims to bound or to estimate, for a layer.
        prepare: builds what the method needs, untimed; returns the call that is timed.
        says: the claim in words.
    """

    name: str
    package: str
    claim: str
    norm: Callable[[nn.Module], Norm]
    prepare: Callable[[nn.Module], Callable[[], float]]
    says: str


# ------------------------------------------------------------------------------------------------------- ours


def _ours(**options: Any) -> Callable[[nn.Module], Callable[[], float]]:
    return lambda layer: lambda: float(sn.spectral_norm(layer, **options))


def _certified(layer: nn.Module) -> Callable[[], float]:
    return lambda: sn.spectral_norm(layer, certified=True, rtol=1e-2).upper


def _method(name: str, claim: str, says: str) -> Method:
    return Method(name, "spectralnorm", claim, lambda _: ANY, _ours(method=name), says)


OURS = [
    Method(
        "tracked", "spectralnorm", "estimate", lambda _: ANY, _ours(), "estimate from below, any size; `rtol=1e-3`"
    ),
    Method(
        "certified", "spectralnorm", "bound", lambda _: ANY, _certified, "proven upper end, any size; `rtol=1e-2`"
    ),
    _method("gram", "bound", "upper bound, any size"),
    _method("separated", "bound", "upper bound, any size"),
    _method("flattened_bound", "bound", "upper bound, any size"),
    _method("flattened", "neither", "the flattened kernel's norm, as PyTorch's `spectral_norm`"),
]

# ---------------------------------------------------------------------------------------------- deel-torchlip


def _torchlip(**options: Any) -> Callable[[nn.Module], Callable[[], float]]:
    """What SpectralConv2d divides a kernel by: the flattened kernel's norm over the `lconv` coefficient."""

    def prepare(layer: nn.Module) -> Callable[[], float]:
        from deel.torchlip.normalizers import spectral_normalization
        from deel.torchlip.utils.lconv_norm import compute_lconv_coef, compute_lconv_coef_1d

        plane = isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        if plane and (layer.groups != 1 or layer.dilation != (1, 1)):
            raise RefusesError("documented: dilation and groups have to be one")
        kernel = layer.weight.detach()
        if isinstance(layer, nn.ConvTranspose2d):
            kernel = kernel.transpose(0, 1)  # as PyTorch's hook flattens it for SpectralConvTranspose2d
        flat = kernel.flatten(1)
        coefficient = compute_lconv_coef if plane else compute_lconv_coef_1d

        def run() -> float:
            sigma = spectral_normalization(flat, **options)[2]
            return float(sigma) / float(coefficient(layer.kernel_size, None, layer.stride))

        return run

    return prepare


def _jacobian_norm(layer: nn.Module) -> Norm:
    return Norm("own padding", JACOBIAN_SIZE[layer.weight.ndim - 2])


def _jacobian(layer: nn.Module) -> Callable[[], float]:
    """The norm of the dense Jacobian, as `evaluate_lip_const` takes it by default."""
    from deel.torchlip.utils import evaluate_lip_const

    size = _jacobian_norm(layer).size
    columns = layer.in_channels * math.prod(size)
    if columns > JACOBIAN_COLUMNS:
        raise NotRunError(f"not run: the dense Jacobian has {columns} columns")

    def run() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluate_lip_const(layer, input_shape=(1, layer.in_channels, *size))

    return run


TORCHLIP = [
    Method(
        "SpectralConv2d's bound", "deel-torchlip", "bound", lambda _: ANY, _torchlip(),
        "upper bound at any size: the flattened kernel's norm (20 power steps) times sqrt(prod ceil(k / stride))",
    ),
    Method(
        "SpectralConv2d's bound, 2,000 steps", "deel-torchlip", "bound", lambda _: ANY,
        _torchlip(maxiter=1000, eps=1e-7), "the same, converged",
    ),
    Method(
        "evaluate_lip_const", "deel-torchlip", "estimate", _jacobian_norm, _jacobian,
        "the norm of the dense Jacobian at the size of its input, here 8x8, in 1-D 64",
    ),
]  # fmt: skip

# ------------------------------------------------------------------------------------------------ orthogonium


def _gram_norm(layer: nn.Module) -> Norm:
    return CIRCLE if layer.padding_mode == "circular" else ANY


def _gram_work(layer: nn.Module, steps: int) -> float:
    """Multiplications of the last Gram step on zero padding: it forms the Gram matrix on the larger side."""
    if layer.kernel_size == layer.stride:
        return 0.0  # it takes the flattened kernel's norm
    width = layer.kernel_size[-1]  # it pads every axis by the last one's taps
    before, after = (2**m * (width - 1) + 1 for m in (steps - 1, steps))
    side = max(layer.weight.shape[0] // layer.groups, layer.weight.shape[1])
    return float(side**3) * (before * after) ** 2 * layer.groups


def _get_conv_sv(generous: bool) -> Callable[[nn.Module], Callable[[], float]]:
    """`n_iter` has no default; its own tests take 3 steps for zero and 6 for circular padding."""

    def prepare(layer: nn.Module) -> Callable[[], float]:
        from orthogonium.layers.conv.singular_values import get_conv_sv

        circular = layer.padding_mode == "circular"
        steps = (12 if generous else 6) if circular else 3
        if generous and not circular and layer.weight.ndim == 4:
            affordable = [n for n in (5, 4) if _gram_work(layer, n) <= GRAM_WORK]
            if not affordable:
                raise NotRunError(f"not run: 4 steps take {_gram_work(layer, 4):.0e} multiplications")
            steps = affordable[0]
        return lambda: float(get_conv_sv(layer, n_iter=steps, return_stab_rank=False, imsize=SIZE))

    return prepare


def _fft_svd(layer: nn.Module) -> Callable[[], float]:
    from orthogonium.layers.conv.AOC.fast_block_ortho_conv import conv_singular_values_numpy

    if not isinstance(layer, nn.Conv2d) or layer.stride != (1, 1) or layer.dilation != (1, 1):
        raise RefusesError("takes a 2-D kernel without stride or dilation")
    kernel = layer.weight.detach().numpy()
    kernel = kernel.reshape(layer.groups, -1, *kernel.shape[1:])
    return lambda: float(conv_singular_values_numpy(kernel, (SIZE, SIZE))[1])


ORTHOGONIUM = [
    Method(
        "get_conv_sv", "orthogonium", "bound", _gram_norm, _get_conv_sv(False),
        "the layer's Lipschitz constant by a Gram bound: zero padding at any size, 3 steps; circular padding at "
        "32x32, 6 steps",
    ),
    Method(
        "get_conv_sv, more steps", "orthogonium", "bound", _gram_norm, _get_conv_sv(True),
        "the same: zero padding 4 or 5 steps, circular 12",
    ),
    Method(
        "conv_singular_values_numpy", "orthogonium", "estimate", lambda _: CIRCLE, _fft_svd,
        "every singular value of the circular layer at 32x32",
    ),
]  # fmt: skip

# -------------------------------------------------------------------------------------------------- normflows


def _induced_norm(layer: nn.Module) -> Norm:
    """Its adjoint needs a size that the stride divides; from 32 on."""
    axes = zip(layer.kernel_size, layer.stride, layer.padding, strict=True)
    return Norm("own padding", tuple(SIZE + (k - SIZE - 2 * p) % s for k, s, p in axes))


def _induced(steps: int) -> Callable[[nn.Module], Callable[[], float]]:
    def prepare(layer: nn.Module) -> Callable[[], float]:
        from normflows.nets import InducedNormConv2d

        if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.dilation != (1, 1):
            raise RefusesError("Conv2d only, without groups or dilation")
        if layer.padding_mode != "zeros":
            raise RefusesError("zero padding only")
        shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
        theirs = InducedNormConv2d(*shape, bias=False, n_iterations=steps)
        theirs.weight.data = layer.weight.detach().clone()
        image = torch.zeros(1, layer.in_channels, *_induced_norm(layer).size)

        def run() -> float:
            theirs.initialized.fill_(0)
            with torch.no_grad():
                theirs(image)
            return float(theirs.scale)

        return run

    return prepare


NORMFLOWS = [
    Method(
        "InducedNormConv2d", "normflows", "estimate", _induced_norm, _induced(5),
        "power iteration on the zero-padded layer at the size of its input, here 32x32 or the next that fits its "
        "stride; 5 steps from cold",
    ),
    Method(
        "InducedNormConv2d, 200 steps", "normflows", "estimate", _induced_norm, _induced(200),
        "the same, 200 steps from cold",
    ),
]  # fmt: skip

PEERS = {"deel-torchlip": TORCHLIP, "orthogonium": ORTHOGONIUM, "normflows": NORMFLOWS}
