"""Certified accuracy: what a classifier provably keeps under every perturbation of a size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from .batches import batches_of, sizes_of
from .certification import THROUGH, Certification, CertifiedAccuracy
from .certifier import Certifier
from .checks import check_types

__all__ = ["Certification", "CertifiedAccuracy", "certified_radius", "certify"]

DEFAULT_EPS: Mapping[str, Sequence[float]] = MappingProxyType(
    {"l2": (36 / 255, 72 / 255, 108 / 255), "linf": (1 / 255, 2 / 255, 4 / 255)}
)


def certified_radius(
    model: nn.Module, x: Tensor, y: Tensor, *, rtol: float = 1e-3, min_variance: float | None = None
) -> Tensor:
    """Certified L2 radii of one batch, always from proven norms.

    The network's bound is proven anew at each call: for several batches make a `Certifier`, or call `certify`.
    The input's normalisation has to be a layer of the model, so that radii are in the units of x.

    Args:
        model: classifier from (N, ...) to logits, (N, classes), that `sn.lipschitz` takes; evaluated in eval mode.
        x: inputs, (N, ...), floating point.
        y: labels, (N,), int64.
        rtol: relative tolerance of the layers' norms.
        min_variance: as of `sn.lipschitz`; with a value above 0 radii hold only where that is so.

    Returns:
        (N,) float64: no perturbation shorter than that, in the L2 norm, makes the network answer
        otherwise in exact arithmetic; 0 where it does so already. Divided by sqrt(dimension of an input) it is an
        L-infinity radius. `Certifier` says how rounding is allowed for.

    Raises:
        TypeError: as `sn.lipschitz`, or when x and y are not tensors of floating point and int64.
        ValueError: as `sn.lipschitz`, or when shapes or labels do not fit.

    Reference:
        Tsuzuku, Sato & Sugiyama, "Lipschitz-Margin Training" (NeurIPS 2018, arXiv 1802.04034).

    Example:
        >>> import torch, spectralnorm as sn
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.eye(2)
        >>> x, y = torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1])
        >>> sn.certified_radius(net, x, y).round(decimals=3)
        tensor([1.4140, 0.0000], dtype=torch.float64)
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a tensor; use torch.as_tensor")
    return Certifier(model, tuple(x.shape[1:]), rtol=rtol, min_variance=min_variance).radius(x, y)


def certify(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    eps: Mapping[str, Sequence[float]] = DEFAULT_EPS,
    *,
    batch_size: int = 256,
    rtol: float = 1e-3,
    min_variance: float | None = None,
    on_batch: Callable[[int, int | None], None] | None = None,
) -> Certification:
    """Measure a classifier's certified accuracy: what it keeps under every perturbation of given sizes.

    Args:
        model: classifier from (N, ...) to logits, (N, classes), that `sn.lipschitz` takes.
        data: inputs and labels, (N, ...) and (N,), or an iterable of such batches, as a `DataLoader` is.
        eps: sizes of perturbations for each norm ("l2", "linf"), in the units of the inputs. L-infinity goes
            through the L2 radius over sqrt(dimension), which is loose in high dimensions.
        batch_size: examples per batch, for a pair of tensors.
        rtol: relative tolerance of the layers' norms.
        min_variance: as of `sn.lipschitz`; with a value above 0 radii hold only where that is so.
        on_batch: called after each batch with the number of batches done, and their total (None if unknown).

    Returns:
        The radii, and the accuracies that follow from them.

    Raises:
        TypeError: as `sn.lipschitz`, or for data or sizes of another type.
        ValueError: as `sn.lipschitz`, or when there are no examples, or shapes, labels or sizes do not fit.

    Reference:
        Tsuzuku, Sato & Sugiyama, "Lipschitz-Margin Training" (NeurIPS 2018, arXiv 1802.04034).

    Example:
        >>> import torch, spectralnorm as sn
        >>> data = (torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
        >>> sn.certify(torch.nn.Identity(), data, {"linf": [0.5]}).results[0].through
        'l2 / sqrt(dimension)'
    """
    sizes = sizes_of(eps)
    certifier: Certifier | None = None
    radii: list[float] = []
    right = 0
    batches, total = batches_of(data, batch_size)
    for done, (x, y) in enumerate(batches, start=1):
        check_types(x, y)
        if certifier is None:
            certifier = Certifier(model, tuple(x.shape[1:]), rtol=rtol, min_variance=min_variance)
        found, known = certifier.judge(x, y)
        radii += found.tolist()
        right += int(known.sum())
        if on_batch is not None:
            on_batch(done, total)
    if certifier is None or not radii:
        raise ValueError("data: got no examples, expected at least one; pass (x, y) or an iterable of batches")
    results = _accuracies(sizes, radii, math.prod(certifier.input_shape))
    return Certification(len(radii), right / len(radii), results, tuple(radii), certifier.lipschitz)


def _accuracies(
    sizes: Sequence[tuple[str, float]], radii: Sequence[float], dimension: int
) -> tuple[CertifiedAccuracy, ...]:
    """The share of examples whose radius is above each size; L-infinity through the L2 ball around it."""
    root = math.sqrt(dimension) * (1 + 2.0**-50)
    found = []
    for norm, size in sizes:
        needed = size if norm == "l2" else size * root
        held = sum(radius > needed for radius in radii) / len(radii)
        found.append(CertifiedAccuracy(norm, size, held, THROUGH[norm]))
    return tuple(found)
