"""Checkpoints of plain models and of those with PyTorch's own spectral norms, saved and loaded."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations as torchs

from nets import images

FORMS = ("plain", "parametrized", "legacy")
each_form = pytest.mark.parametrize("form", FORMS)
each_wrapped = pytest.mark.parametrize("form", FORMS[1:])


def wrapped(net: nn.Module, form: str) -> nn.Module:
    """The model with one of PyTorch's spectral norms on each layer, a few passes into training."""
    for layer in [layer for layer in net.modules() if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))]:
        if form == "parametrized":
            torchs.spectral_norm(layer)
        elif form == "legacy":
            nn.utils.spectral_norm(layer)
    with torch.no_grad():
        for _ in range(20):
            net(images())
    return net


def through_file(value: Any) -> Any:
    """What `torch.load` makes of what `torch.save` has written."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def load(net: nn.Module, state: dict[str, Any], **options: Any) -> nn.Module:
    """Strictly, through a file."""
    result = net.load_state_dict(through_file(state), strict=True, **options)
    assert not result.missing_keys
    assert not result.unexpected_keys
    return net
