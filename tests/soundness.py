"""Ten thousand random layers against their dense matrices: no certified interval may miss the truth.

    python tests/soundness.py [--count 10000] [--seed 0] [--jobs 2]

Every layer is measured at a size and size-free. The only slack is 1e-12 of the truth, the rounding of the dense
references. Exits with 1 when an interval misses, or is wider than asked where the norm has a closed form.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import sys
import time
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

import spectralnorm as sn
from reference import dense_matrix, symbol_norms

ROUNDING = 1e-12  # relative, of the float64 references
COLUMNS = 1200
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MODES = ("zeros", "circular", "reflect", "replicate", "transposed", "same", "linear")


def draw(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer and a size that PyTorch accepts, the smallest ones often."""
    while True:
        mode, axes = rng.choice(_MODES), rng.choices((1, 2, 3), (4, 5, 2))[0]
        layer, size = _linear(rng) if mode == "linear" else _conv(rng, mode, axes)
        channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        if channels * math.prod(size) > COLUMNS:
            continue
        with torch.no_grad():
            try:
                if isinstance(layer, nn.Linear) or layer(torch.zeros(1, channels, *size)).numel():
                    break
            except (RuntimeError, ValueError):
                continue
    _fill(layer, rng)
    return layer, size


def _linear(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Linear(rng.randint(1, 200), rng.randint(1, 200)), ()


def _conv(rng: random.Random, mode: str, axes: int) -> tuple[nn.Module, tuple[int, ...]]:
    largest = {1: 7, 2: 7, 3: 3}[axes] if rng.random() < 0.5 else 3
    most = (largest, rng.choice((1, 3)), rng.choice((1, 3)))
    k, s, d = ([rng.randint(1, m) for _ in range(axes)] for m in most)
    groups = rng.choice((1, 1, 1, 2, 3, 4))
    most = max(1, (16 if axes < 3 else 4) // groups)
    channels = groups * rng.randint(1, most), groups * rng.randint(1, most)
    extent = [(kk - 1) * dd + 1 for kk, dd in zip(k, d, strict=True)]
    padding: Any = [rng.randint(0, e) for e in extent]
    options: dict[str, Any] = {"groups": groups, "dilation": tuple(d), "bias": False}
    spread = {1: 40, 2: 7, 3: 3}[axes] if rng.random() < 0.7 else 1
    if mode == "transposed":
        more = tuple(rng.randrange(max(ss, dd)) for ss, dd in zip(s, d, strict=True))
        size = tuple(rng.randint(1, 1 + spread) for _ in range(axes))
        conv = _TRANSPOSED[axes]
        return conv(*channels, tuple(k), tuple(s), tuple(padding), output_padding=more, **options), size
    if mode == "same":
        padding, s, mode = "same", [1] * axes, rng.choice(_MODES[:4])
        right = [e // 2 for e in extent]
        total = [e - 1 for e in extent]
    else:
        padding = tuple(padding)
        right, total = list(padding), [2 * p for p in padding]
    need = {"circular": 0, "reflect": 1}.get(mode)
    least = [max(1, e - t, 1 if need is None else p + need) for e, t, p in zip(extent, total, right, strict=True)]
    size = tuple(n + rng.randint(0, spread) for n in least)
    return _CONV[axes](*channels, tuple(k), tuple(s), padding, padding_mode=mode, **options), size


def _fill(layer: nn.Module, rng: random.Random) -> None:
    """Weights of many kinds: normal, positive, signs, sparse, smooth, of low rank, of extreme scale."""
    w = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    kind = rng.choice(("normal", "normal", "positive", "signs", "sparse", "integer", "rank one", "scale"))
    if kind == "rank one":
        w = w.flatten(1)[:, :1].reshape(-1, *(1,) * (w.ndim - 1)) * w[:1]
    change = {
        "positive": torch.abs,
        "signs": torch.sign,
        "sparse": lambda w: w * (w.abs() > 1.2),
        "integer": torch.round,
        "scale": lambda w: w * 10.0 ** rng.randint(-12, 12),
    }
    with torch.no_grad():
        layer.weight.copy_(change.get(kind, lambda w: w)(w))


def top(matrix: torch.Tensor) -> float:
    """Largest singular value, from the smaller Gram matrix; its square root halves the rounding."""
    scale = float(matrix.abs().max()) or 1.0
    matrix = matrix / scale
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return scale * math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


def check(seed: int) -> dict[str, Any]:
    """Measure one layer; what is wrong with its intervals, and how wide they are."""
    layer, size = draw(random.Random(seed))
    rtol = 1e-1 if len(size) == 3 else 1e-2
    operator = sn.as_operator(layer)
    truth = top(dense_matrix(layer, size))
    found = sn.spectral_norm(layer, input_shape=size or None, method="certified", rtol=rtol)
    free = sn.spectral_norm(layer, method="certified", rtol=rtol)
    wrong = []
    if found.lower > truth * (1 + ROUNDING):
        wrong.append(f"lower {found.lower!r} above the norm {truth!r} at the size")
    if found.upper < truth * (1 - ROUNDING):
        wrong.append(f"upper {found.upper!r} below the norm {truth!r} at the size")
    if free.upper < truth * (1 - ROUNDING):
        wrong.append(f"size-free upper {free.upper!r} below the norm {truth!r} at a size")
    if size:
        rng = np.random.default_rng(seed)
        peak = free.stats["frequency"]
        heights = symbol_norms(layer, np.vstack([peak, 2 * math.pi * rng.random((40, len(size)))]))
        if free.lower > heights[0] * (1 + ROUNDING):
            wrong.append(f"size-free lower {free.lower!r} above the symbol's norm {heights[0]!r} at its frequency")
        if free.upper < heights.max() * (1 - ROUNDING):
            wrong.append(f"size-free upper {free.upper!r} below the symbol's norm {heights.max()!r}")
    closed = operator.grid(size) is not None
    exact_free = operator.ceilings(None)[0][1] == 1
    for kind, bound, narrow in (("at the size", found, closed), ("size-free", free, exact_free)):
        if narrow and bound.upper > (1 + rtol) * (1 + 1e-9) * bound.lower:
            wrong.append(f"{kind}: {bound} is wider than rtol={rtol}")
    width = found.upper / found.lower - 1 if found.lower else 0.0
    told = {"closed": closed, "free": exact_free, "width": width}
    return {"seed": seed, "layer": f"{layer} at {size}", "wrong": wrong, **told}


def main() -> int:
    """Check all, print a summary, list what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    started, tally, widest = time.perf_counter(), Counter(), 0.0
    seeds = range(args.seed * 1_000_000, args.seed * 1_000_000 + args.count)
    with multiprocessing.get_context("spawn").Pool(args.jobs, _one_thread) as pool:
        for done, result in enumerate(pool.imap_unordered(check, seeds, chunksize=8), start=1):
            tally["closed"] += result["closed"]
            tally["free"] += result["free"]
            tally["wrong"] += bool(result["wrong"])
            widest = max(widest, result["width"])
            for what in result["wrong"]:
                print(f"seed {result['seed']}: {result['layer']}: {what}", flush=True)
            if done % 500 == 0:
                seconds = time.perf_counter() - started
                print(f"{done} of {args.count} layers, {seconds:.0f} s", file=sys.stderr, flush=True)
    print(
        f"seed {args.seed}, {args.count} layers, each at a size and size-free: {tally['wrong']} with an interval "
        "that misses the truth or is wider than asked.\n"
        f"The width was checked for {tally['closed']} at a size (closed form) and {tally['free']} size-free; the "
        f"widest of the others was {1 + widest:.2f} times its lower end."
    )
    return 1 if tally["wrong"] else 0


def _one_thread() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # PyTorch's note on padding="same" with even kernels


if __name__ == "__main__":
    sys.exit(main())
