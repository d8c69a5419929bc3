"""The one table of layers every estimator is crossed with: hyper-parameters, traps, and special kernels.

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_something(case):
        layer, size = case.layer(), case.size

Layers are built afresh by each call, always with the same weights. At `size` the layer's dense matrix has
at most 1,200 columns.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from reference import dense_norm, size_free_norm

__all__ = ["CASES", "Case"]

Kernel = Callable[[Tensor], Tensor]  # the weight drawn at random -> the weight of the layer
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@dataclass(frozen=True, eq=False)
class Case:
    """A layer, and a spatial size to measure it at.

    Attributes:
        name: what pytest shows.
        make: builds the layer, weights at random.
        size: spatial size; () for a Linear.
        kernel: makes a special weight from the random one.
    """

    name: str
    make: Callable[[], nn.Module]
    size: tuple[int, ...]
    kernel: Kernel

    def __str__(self) -> str:
        return self.name

    def layer(self) -> nn.Module:
        """The layer, afresh; the global random state stays as it is."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(zlib.crc32(self.name.encode()))
            layer = self.make()
            layer.weight.copy_(self.kernel(layer.weight))
        return layer

    def dense_norm(self) -> float:
        """The norm at `size`, from the dense matrix in float64; computed once."""
        return _dense_norm(self)

    def size_free_norm(self) -> float:
        """The supremum of the symbol, by a fine grid in float64; computed once."""
        return _size_free_norm(self)


@cache
def _dense_norm(case: Case) -> float:
    return dense_norm(case.layer(), case.size)


@cache
def _size_free_norm(case: Case) -> float:
    return size_free_norm(case.layer())


def _same(weight: Tensor) -> Tensor:
    return weight


def _linear(name: str, inputs: int, outputs: int, kernel: Kernel = _same) -> Case:
    return Case(f"linear-{name}", lambda: nn.Linear(inputs, outputs), (), kernel)


def _conv(
    name: str, channels: tuple[int, int], k: Any, size: tuple[int, ...], kernel: Kernel = _same, **options: Any
) -> Case:
    """A convolution over as many axes as `size` has; `channels` are (in, out)."""
    conv = _CONV[len(size)]
    return Case(f"conv{len(size)}d-{name}", lambda: conv(*channels, k, **options), size, kernel)


def _tconv(
    name: str, channels: tuple[int, int], k: Any, size: tuple[int, ...], kernel: Kernel = _same, **options: Any
) -> Case:
    """A transposed convolution, likewise."""
    conv = _TRANSPOSED[len(size)]
    return Case(f"tconv{len(size)}d-{name}", lambda: conv(*channels, k, **options), size, kernel)


def _filled(*values: float) -> Kernel:
    """The kernel written out, as a vector over its taps."""
    return lambda w: torch.tensor(values).reshape(w.shape)


def _delta(w: Tensor) -> Tensor:
    return nn.init.dirac_(torch.empty_like(w))


def _rank_one(w: Tensor) -> Tensor:
    """u v^T in the channels, one spatial pattern: u_o v_i f_p."""
    spatial = (1,) * (w.ndim - 2)
    u = torch.randn(w.shape[0], 1, *spatial)
    return u * torch.randn(1, w.shape[1], *spatial) * torch.randn(w.shape[2:])


def _same_slices(w: Tensor) -> Tensor:
    """Every tap the same multiple of one matrix."""
    return w.flatten(2).mean(2).reshape(*w.shape[:2], *(1,) * (w.ndim - 2)).expand_as(w)


def _first_group_dominates(w: Tensor) -> Tensor:
    w[: w.shape[0] // 4] *= 1e4
    return w


def _last_group_dominates(w: Tensor) -> Tensor:
    w[-w.shape[0] // 4 :] *= 1e4
    return w


def _smooth(w: Tensor) -> Tensor:
    """A clear peak at frequency zero, as a trained layer has."""
    return w.abs() + 0.1 * w


def _one_entry(w: Tensor) -> Tensor:
    w = torch.zeros_like(w)
    w.view(-1)[w.numel() // 2] = -3.0
    return w


CIRCULAR = {"padding_mode": "circular"}
REFLECT = {"padding_mode": "reflect"}
REPLICATE = {"padding_mode": "replicate"}

CASES = [
    # ------------------------------------------------------------------ Linear
    _linear("wide", 40, 7),
    _linear("tall", 7, 40),
    _linear("one-entry", 1, 1),
    _linear("one-row", 30, 1),
    _linear("64", 64, 64),
    _linear("orthogonal", 12, 12, nn.init.orthogonal_),
    _linear("zero", 6, 5, torch.zeros_like),
    _linear("tiny", 9, 8, lambda w: 1e-12 * w),
    _linear("huge", 9, 8, lambda w: 1e12 * w),
    # ------------------------------------------------------------------ Conv1d: kernel sizes and padding
    _conv("k1", (5, 3), 1, (9,)),
    _conv("k1-padded", (5, 3), 1, (9,), padding=2),
    _conv("k2-valid", (3, 4), 2, (12,)),
    _conv("k3-same", (4, 4), 3, (20,), padding=1),
    _conv("k4-same-asymmetric", (3, 5), 4, (15,), padding="same"),
    _conv("k5-beyond-same", (3, 2), 5, (10,), padding=7),
    _conv("k7-wide", (12, 2), 7, (24,), padding=3),
    _conv("k7-tall", (2, 12), 7, (24,), padding=3),
    _conv("k15-one-channel", (1, 1), 15, (60,), padding=7),
    _conv("64-channels", (64, 64), 3, (6,), padding=1),
    _conv("depthwise", (8, 8), 3, (14,), padding=1, groups=8),
    _conv("groups", (6, 4), 3, (14,), padding=1, groups=2),
    _conv("n1", (3, 3), 3, (1,), padding=1),
    # ------------------------------------------------------------------ Conv1d: stride and dilation
    _conv("stride2", (3, 4), 3, (17,), padding=1, stride=2),
    _conv("stride-beyond-kernel", (3, 4), 2, (18,), stride=4),
    _conv("dilation3", (3, 4), 3, (20,), padding=3, dilation=3),
    _conv("stride2-dilation2", (3, 4), 4, (20,), padding=3, stride=2, dilation=2),
    _conv("stride3-dilation2", (3, 4), 5, (25,), padding=4, stride=3, dilation=2),
    _conv("stride4-dilation6", (2, 3), 5, (40,), padding=4, stride=4, dilation=6),
    # ------------------------------------------------------------------ Conv1d: circular
    _conv("circular", (3, 4), 3, (16,), padding=1, **CIRCULAR),
    _conv("circular-n-odd", (3, 4), 3, (15,), padding=1, **CIRCULAR),
    _conv("circular-k4-same", (3, 4), 4, (11,), padding="same", **CIRCULAR),
    _conv("circular-n-below-kernel", (2, 3), 7, (4,), padding=3, **CIRCULAR),
    _conv("circular-dilated-n-below-kernel", (2, 3), 3, (5,), padding=4, dilation=4, **CIRCULAR),
    _conv("circular-no-padding", (3, 4), 3, (16,), **CIRCULAR),
    _conv("circular-beyond-same", (3, 4), 3, (9,), padding=6, **CIRCULAR),
    _conv("circular-stride-divides", (3, 4), 3, (16,), padding=1, stride=2, **CIRCULAR),
    _conv("circular-stride-does-not-divide", (3, 4), 3, (17,), padding=1, stride=2, **CIRCULAR),
    _conv("circular-stride-dilation", (3, 4), 3, (18,), padding=2, stride=3, dilation=2, **CIRCULAR),
    _conv("circular-stride2-dilation2", (3, 4), 3, (20,), padding=2, stride=2, dilation=2, **CIRCULAR),
    # ------------------------------------------------------------------ Conv2d: kernel sizes and padding
    _conv("1x1", (8, 6), 1, (5, 4)),
    _conv("2x2-valid", (2, 3), 2, (9, 8)),
    _conv("3x3-valid", (4, 3), 3, (8, 8)),
    _conv("3x3-same", (4, 6), 3, (9, 9), padding=1),
    _conv("3x3-beyond-same", (2, 3), 3, (6, 7), padding=4),
    _conv("3x3-wide", (16, 2), 3, (8, 8), padding=1),
    _conv("3x3-tall", (2, 16), 3, (8, 8), padding=1),
    _conv("3x3-smooth", (4, 4), 3, (10, 10), _smooth, padding=1),
    _conv("3x3-64-to-8", (64, 8), 3, (4, 4), padding=1),
    _conv("5x5-same", (2, 2), 5, (12, 12), padding=2),
    _conv("7x7-same", (2, 3), 7, (14, 14), padding=3),
    _conv("2x5-asymmetric", (2, 3), (2, 5), (9, 10), padding="same"),
    _conv("4x4-same-asymmetric", (2, 3), 4, (10, 10), padding="same"),
    _conv("1x7", (3, 3), (1, 7), (6, 14), padding=(0, 3)),
    _conv("non-square-padding", (2, 3), (3, 4), (9, 6), padding=(2, 0)),
    _conv("groups", (6, 9), 3, (8, 8), padding=1, groups=3),
    _conv("depthwise", (12, 12), 3, (8, 8), padding=1, groups=12),
    _conv("depthwise-64", (64, 64), 3, (4, 4), padding=1, groups=64),
    _conv("depthwise-multiplier", (6, 12), 5, (9, 9), padding=2, groups=6),
    # ------------------------------------------------------------------ Conv2d: stride and dilation
    _conv("stride2", (3, 4), 3, (11, 10), padding=1, stride=2),
    _conv("stride2-1x1", (6, 8), 1, (9, 9), stride=2),
    _conv("patches", (3, 10), 4, (16, 16), stride=4),
    _conv("stride-3x1", (3, 4), 3, (11, 9), padding=1, stride=(3, 1)),
    _conv("non-square-kernel-stride", (2, 4), (5, 2), (13, 12), padding=(2, 1), stride=(2, 3)),
    _conv("dilation2", (2, 3), 3, (12, 12), padding=2, dilation=2),
    _conv("stride2-dilation2", (2, 3), 3, (13, 13), padding=2, stride=2, dilation=2),
    _conv("stride-dilation-mixed", (2, 3), 3, (13, 15), padding=(3, 2), stride=(2, 4), dilation=(3, 2)),
    _conv("stride-groups", (6, 6), 4, (10, 10), padding=1, stride=2, groups=3),
    _conv("stride-depthwise", (8, 8), 3, (9, 9), padding=1, stride=2, groups=8),
    # ------------------------------------------------------------------ Conv2d: circular
    _conv("circular", (4, 5), 3, (8, 8), padding=1, **CIRCULAR),
    _conv("circular-5x3-same", (2, 3), (5, 3), (9, 7), padding="same", **CIRCULAR),
    _conv("circular-4x2-same", (2, 3), (4, 2), (7, 9), padding="same", **CIRCULAR),
    _conv("circular-n-below-kernel", (3, 2), 7, (4, 9), padding=3, **CIRCULAR),
    _conv("circular-dilated-groups", (4, 8), 3, (9, 8), padding=2, dilation=2, groups=2, **CIRCULAR),
    _conv("circular-stride-divides", (3, 4), 3, (12, 12), padding=1, stride=(2, 3), **CIRCULAR),
    _conv("circular-stride-does-not-divide", (3, 4), 3, (11, 11), padding=1, stride=2, **CIRCULAR),
    _conv("circular-stride-dilation", (2, 3), 4, (12, 12), padding=3, stride=2, dilation=2, **CIRCULAR),
    _conv("circular-beyond-same", (2, 2), 3, (6, 5), padding=(3, 4), **CIRCULAR),
    _conv("circular-no-padding", (2, 3), 3, (8, 7), **CIRCULAR),
    _conv("circular-n1", (3, 4), 3, (1, 1), padding=1, **CIRCULAR),
    _conv("circular-large-grid", (1, 1), 5, (34, 33), padding=2, **CIRCULAR),
    _conv("circular-large-grid-stride", (1, 2), 3, (34, 34), padding=1, stride=2, **CIRCULAR),
    # ------------------------------------------------------------------ Conv3d
    _conv("3x3x3", (2, 2), 3, (5, 5, 5), padding=1),
    _conv("1x1x1", (4, 3), 1, (3, 3, 3)),
    _conv("2x3x1", (2, 3), (2, 3, 1), (5, 6, 4), padding="same"),
    _conv("stride", (2, 3), (2, 3, 3), (6, 7, 5), padding=1, stride=(1, 2, 2)),
    _conv("circular", (2, 3), (3, 2, 2), (4, 5, 6), padding="same", **CIRCULAR),
    _conv("depthwise", (3, 3), (2, 2, 3), (6, 5, 5), padding=(1, 0, 1), groups=3),
    # ------------------------------------------------------------------ reflect
    _conv("reflect", (3, 4), 3, (14,), padding=1, **REFLECT),
    _conv("reflect-smallest", (2, 3), 5, (3,), padding=2, **REFLECT),  # the middle cell is shown three times
    _conv("reflect-same-asymmetric", (3, 4), 4, (11,), padding="same", **REFLECT),
    _conv("reflect-one-sided", (2, 3), 2, (12,), padding="same", **REFLECT),
    _conv("reflect-beyond-same", (2, 3), 3, (7,), padding=6, **REFLECT),
    _conv("reflect-stride3-dilation2", (3, 4), 5, (19,), padding=4, stride=3, dilation=2, **REFLECT),
    _conv("reflect-no-padding", (2, 3), 3, (9,), **REFLECT),
    _conv("reflect-1x1-padded", (3, 2), 1, (6, 5), padding=1, **REFLECT),
    _conv("reflect-smooth", (4, 4), 3, (9, 9), _smooth, padding=1, **REFLECT),
    _conv("reflect-smallest", (3, 3), 3, (2, 2), padding=1, **REFLECT),
    _conv("reflect-4x3-same-asymmetric", (2, 3), (4, 3), (9, 8), padding="same", **REFLECT),
    _conv("reflect-stride-groups", (4, 6), (3, 5), (9, 10), padding=(1, 2), stride=2, groups=2, **REFLECT),
    _conv("reflect-zero", (2, 3), 3, (5, 5), torch.zeros_like, padding=1, **REFLECT),
    _conv("reflect-2x3x2", (2, 3), (2, 3, 2), (4, 5, 4), padding="same", **REFLECT),
    # ------------------------------------------------------------------ replicate
    _conv("replicate", (3, 4), 3, (14,), padding=1, **REPLICATE),
    _conv("replicate-n1", (2, 3), 3, (1,), padding=2, **REPLICATE),  # the one cell is shown five times
    _conv("replicate-one-sided", (2, 3), 2, (12,), padding="same", **REPLICATE),
    _conv("replicate-beyond-same", (2, 3), 3, (6,), padding=5, **REPLICATE),
    _conv("replicate-stride2-dilation2", (3, 4), 3, (16,), padding=3, stride=2, dilation=2, **REPLICATE),
    _conv("replicate-dilation-stride", (2, 3), 4, (11, 9), padding=3, stride=(2, 3), dilation=2, **REPLICATE),
    _conv("replicate-5x4-same-asymmetric", (2, 3), (5, 4), (8, 7), padding="same", **REPLICATE),
    _conv("replicate-n1", (3, 4), 3, (1, 1), padding=1, **REPLICATE),
    _conv("replicate-depthwise", (6, 6), 3, (7, 7), padding=1, groups=6, **REPLICATE),
    _conv("replicate-stride", (2, 3), (3, 2, 2), (4, 5, 3), padding=1, stride=(2, 1, 1), **REPLICATE),
    # ------------------------------------------------------------------ transposed, 1d
    _tconv("k1", (5, 3), 1, (9,)),
    _tconv("k3-same", (4, 3), 3, (12,), padding=1),
    _tconv("k4-wide", (12, 2), 4, (10,)),
    _tconv("stride2", (3, 4), 4, (9,), padding=1, stride=2),
    _tconv("stride-beyond-kernel", (3, 4), 2, (6,), stride=4),
    _tconv("output-padding", (3, 2), 3, (8,), padding=1, stride=2, output_padding=1),
    _tconv("output-padding-beyond-stride", (2, 3), 3, (7,), padding=2, dilation=4, output_padding=3),
    _tconv("stride2-dilation3-output-padding", (2, 3), 3, (7,), padding=3, stride=2, dilation=3, output_padding=2),
    _tconv("stride4-dilation6", (2, 3), 3, (8,), padding=2, stride=4, dilation=6, output_padding=5),
    _tconv("cropped-to-one-cell", (3, 2), 3, (3,), padding=2),
    _tconv("groups", (6, 4), 3, (10,), padding=1, stride=2, groups=2),
    # ------------------------------------------------------------------ transposed, 2d and 3d
    _tconv("1x1", (8, 6), 1, (5, 4)),
    _tconv("1x1-stride-padding", (4, 3), 1, (5, 4), padding=1, stride=2, output_padding=1),
    _tconv("3x3-same", (4, 6), 3, (7, 7), padding=1),
    _tconv("4x4-stride2", (4, 3), 4, (7, 6), padding=1, stride=2),
    _tconv("3x3-smooth-stride2", (3, 4), 3, (7, 7), _smooth, padding=1, stride=2, output_padding=1),
    _tconv("patches", (10, 3), 4, (4, 4), stride=4),
    _tconv("non-square", (2, 4), (5, 2), (6, 7), padding=(2, 1), stride=(2, 3), output_padding=(1, 0)),
    _tconv("groups-dominate", (8, 4), 3, (6, 6), _last_group_dominates, padding=1, groups=4),
    _tconv("depthwise-multiplier", (4, 8), 3, (6, 6), padding=1, stride=2, groups=4),
    _tconv("stride-dilation-mixed", (2, 3), 3, (6, 5), stride=(2, 4), dilation=(3, 2), output_padding=(2, 1)),
    _tconv("zero", (3, 4), 3, (5, 5), torch.zeros_like, padding=1, stride=2),
    _tconv("delta-stride", (3, 3), 3, (6, 6), _delta, padding=1, stride=2),
    _tconv("stride", (3, 2), (2, 3, 2), (3, 4, 4), padding=1, stride=(1, 2, 2), output_padding=(0, 1, 0)),
    _tconv("groups-dilated", (4, 2), 2, (4, 3, 4), stride=1, dilation=2, groups=2),
    # ------------------------------------------------------------------ special kernels
    _conv("zero", (3, 4), 3, (8,), torch.zeros_like, padding=1),
    _conv("zero", (3, 4), 3, (6, 6), torch.zeros_like, padding=1),
    _conv("zero-groups", (4, 4), 3, (6, 6), torch.zeros_like, groups=2, **CIRCULAR),
    _conv("one-entry", (3, 4), 3, (6, 6), _one_entry, padding=1),
    _conv("box", (1, 1), 3, (12, 12), lambda w: torch.full_like(w, 1 / 9), padding=1),
    _conv("trap", (1, 1), 3, (100,), _filled(1, 1, -1), padding=1),  # stuck at 1 from w = 0; sqrt(5)
    _conv("trap", (1, 1), (3, 1), (40, 2), _filled(1, 1, -1), padding=(1, 0)),
    _conv("trap-circular", (1, 1), 3, (64,), _filled(1, 1, -1), padding=1, **CIRCULAR),
    _conv("difference", (1, 1), 2, (30,), _filled(1, -1), padding=1),  # its maximum lies at w = pi
    _conv("sharpen", (1, 1), 3, (12, 12), _filled(0, -1, 0, -1, 5, -1, 0, -1, 0), padding=1),
    _conv("delta", (3, 3), 3, (8, 8), _delta, padding=1),
    _conv("delta-stride", (3, 3), 3, (9, 9), _delta, padding=1, stride=2),
    _conv("rank-one", (4, 5), 3, (8, 8), _rank_one, padding=1),
    _conv("rank-one-stride", (4, 5), 3, (8, 8), _rank_one, padding=1, stride=2),
    _conv("same-slices", (3, 5), 3, (9, 9), _same_slices, padding=1),
    _conv("orthogonal-1x1", (6, 6), 1, (5, 5), nn.init.orthogonal_),
    _conv("tiny", (3, 4), 3, (8, 8), lambda w: 1e-12 * w, padding=1),
    _conv("huge", (3, 4), 3, (8, 8), lambda w: 1e12 * w, padding=1),
    _conv("tiny-circular", (3, 4), 3, (8,), lambda w: 1e-12 * w, padding=1, **CIRCULAR),
    _conv("huge-stride", (3, 4), 3, (9,), lambda w: 1e12 * w, padding=1, stride=2),
    _conv("first-group-dominates", (8, 8), 3, (6, 6), _first_group_dominates, padding=1, groups=4),
    _conv("last-group-dominates", (8, 8), 3, (6, 6), _last_group_dominates, padding=1, groups=4),
]
