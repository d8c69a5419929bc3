"""What `evaluate` and `certify` are about: a network, and the test images of its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spectralnorm.commands.target import load_target, run_settings
from spectralnorm.network.naming import first_line
from spectralnorm.robustness.model import eval_mode
from spectralnorm.training.data import load

__all__ = ["Subject", "fitting", "load_subject"]

DEFAULT_DATA = "digits"


@dataclass(frozen=True)
class Subject:
    """A network and images, as flags name them.

    Attributes:
        target: as for `load_target`.
        arch: architecture of a state_dict; that of the run by default.
        data: name of the data set; that of the run by default.
        data_dir: folder of its files.
        images: the first so many test images; 0 for all.
        seed: of what is random, and of the split of data that has none of its own; a run's own data are split by
            its own.
    """

    target: str
    arch: str | None = None
    data: str | None = None
    data_dir: Path | None = None
    images: int = 0
    seed: int = 0


def load_subject(asked: Subject) -> tuple[nn.Module, str, tuple[Tensor, Tensor]]:
    """Load the network and the images.

    Args:
        asked: what for.

    Returns:
        The network; the name of the data; test images (N, C, H, W) and labels (N,).

    Raises:
        ValueError: when something is not as expected.
    """
    settings = run_settings(asked.target)
    if asked.data is not None or settings is None:
        data = load(asked.data or DEFAULT_DATA, asked.data_dir, asked.seed)
    else:
        data = load(settings.data, asked.data_dir or settings.data_dir or None, settings.seed)
    model = load_target(asked.target, asked.arch, data.input_shape)
    images = asked.images or len(data.test_x)
    return model, data.name, (data.test_x[:images], data.test_y[:images])


def fitting(model: nn.Module, x: Tensor) -> Tensor:
    """Bring images to the model's precision, and see that it runs on them.

    Args:
        model: the network.
        x: images, (N, C, H, W).

    Returns:
        The images.

    Raises:
        ValueError: when the network does not run on one of them.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), x)
    x = x.to(weight.dtype)
    try:
        with torch.no_grad(), eval_mode(model):
            model(x[:1].to(weight.device))
    except Exception as error:  # whatever a user's module does
        raise ValueError(
            f"the network does not run on images of shape {tuple(x.shape[1:])} ({first_line(error)}), "
            "expected one that does; give the --data it was made for, or mend it"
        ) from error
    return x
