"""A start that keeps signals alive through deep normalised nets: orthogonal matrices at the centre tap.

Xiao et al., "Dynamical Isometry and a Mean Field Theory of CNNs" (ICML 2018, arXiv 1806.05393): a random kernel
of norm 1 shrinks a typical signal to a third or less, and a deep net of them to nothing; one that is orthogonal at
its centre tap and zero elsewhere keeps the length of every input that has no more channels than the output.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from spectralnorm.normalize.sites import Site
from spectralnorm.operators.shards import is_sharded

__all__ = ["check_orthogonal", "orthogonal_"]


def check_orthogonal(site: Site) -> None:
    """Raise a ValueError for a layer whose weight has no known place for a matrix."""
    layer, weight = _holder(site)
    if not isinstance(layer, (nn.Linear, nn.MultiheadAttention, nn.modules.conv._ConvNd)):
        raise ValueError(
            f"init='orthogonal' cannot set the weight of {site.name or 'the layer'} ({type(layer).__name__}); "
            "expected Linear, Conv and ConvTranspose layers. Initialise yours by hand, and leave init out."
        )
    if is_sharded(weight):
        raise ValueError(
            f"init='orthogonal' cannot set the weight of {site.name or 'the layer'}, which is sharded; expected a "
            "plain one. Call spectral_normalize before fully_shard, or set the weights by hand and leave init out."
        )


@torch.no_grad()
def orthogonal_(site: Site) -> None:
    """Set a layer's weight so, in place, from torch's global generator, as `torch.nn.init.orthogonal_` does."""
    layer, weight = _holder(site)
    groups = (
        layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 3 if site.tensor == "in_proj_weight" else 1
    )
    fresh = torch.zeros_like(weight)
    for block in fresh.chunk(groups):
        tap = block
        for k in weight.shape[2:]:
            tap = tap.select(2, k // 2)
        precise = torch.promote_types(weight.dtype, torch.float32)  # a QR of half precision is not to be had
        tap.copy_(nn.init.orthogonal_(torch.empty(tap.shape, dtype=precise, device=weight.device)))
    weight.copy_(fresh)


def _holder(site: Site) -> tuple[nn.Module, Tensor]:
    """The layer, and its weight."""
    layer = site.layer if site.pair is None else site.pair[0]
    return layer, cast("Tensor", getattr(layer, site.tensor if site.pair is None else "weight"))
