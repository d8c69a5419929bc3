"""What the study compares: methods by network, and the six configurations that each may choose from.

Every configuration is a set of settings of `spectralnorm train`; what they share is in `COMMON`. A configuration
varies target, temperature and schedule, each method in the range where first trials showed it to work: targets and
temperatures of one method mean nothing to another. Matrices are multiplied in bf16 where a processor does so,
and in float32 elsewhere: others emulate bf16, many times as slowly, and on networks as small as these a GPU spends
its time on launches, not on products. Each result says which.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

__all__ = ["COMMON", "GRID"]

Configuration = dict[str, Any]

COMMON: Configuration = {
    "data": "fashion-mnist",
    "optimizer": "adam",
    "lr": 0.003,
    "weight_decay": 0.0,
    "augment": "flip",
    "amp": "bf16" if torch.cpu._is_avx512_bf16_supported() and not torch.cuda.is_available() else "none",
    "channels_last": True,
}


def _grid(fixed: Configuration, **choices: list[Any]) -> list[Configuration]:
    """All combinations of the choices; six."""
    return [{**fixed, **dict(zip(choices, values, strict=True))} for values in product(*choices.values())]


BATCHNORM: Configuration = {"arch": "resnet20", "batch_norm": True}
WITHOUT: Configuration = {"arch": "resnet20"}
ORTHOGONAL: Configuration = {"arch": "resnet20", "init": "orthogonal"}
SMALL: Configuration = {"arch": "small-cnn"}

GRID: dict[str, dict[str, list[Configuration]]] = {
    "resnet20": {
        "plain": _grid({**BATCHNORM, "normalize": "none"}, temperature=[0.3, 1.0, 3.0], lr=[0.003, 0.01]),
        "pytorch": _grid({**BATCHNORM, "normalize": "pytorch"}, temperature=[0.1, 0.3, 1.0], lr=[0.003, 0.01]),
        "pytorch without BatchNorm": _grid(
            {**WITHOUT, "normalize": "pytorch"}, target=[1.0, 1.5], temperature=[0.03, 0.1, 0.3]
        ),
        "penalty without BatchNorm": _grid(
            {**WITHOUT, "normalize": "penalty"}, penalty=[0.001, 0.01, 0.1], temperature=[0.1, 1.0]
        ),
        "ours, folded, hard": _grid(BATCHNORM, target=[1.5, 2.5], temperature=[0.1, 0.3, 1.0]),
        "ours, folded, soft": _grid({**BATCHNORM, "mode": "soft"}, target=[1.5, 2.5], temperature=[0.1, 0.3, 1.0]),
        "ours, without BatchNorm, hard": _grid(WITHOUT, target=[1.5, 2.5], temperature=[0.03, 0.1, 0.3]),
        "ours, without BatchNorm, soft": _grid(
            {**WITHOUT, "mode": "soft"}, target=[1.5, 2.5], temperature=[0.03, 0.1, 0.3]
        ),
        # the blocks' shortcuts keep the signal alive: here the orthogonal start costs robustness instead
        "ours, without BatchNorm, hard, orthogonal": _grid(
            ORTHOGONAL, target=[1.0, 1.5], temperature=[0.03, 0.1, 0.3]
        ),
    },
    "small-cnn": {
        "plain": _grid({**SMALL, "normalize": "none"}, temperature=[0.3, 1.0, 3.0], lr=[0.001, 0.003]),
        "pytorch": _grid({**SMALL, "normalize": "pytorch"}, target=[1.0, 1.5], temperature=[0.1, 0.3, 1.0]),
        "penalty": _grid({**SMALL, "normalize": "penalty"}, penalty=[0.001, 0.01, 0.1], temperature=[0.1, 1.0]),
        "ours, hard": _grid({**SMALL, "init": "orthogonal"}, target=[1.0, 1.5], temperature=[0.1, 0.3, 1.0]),
        "ours, soft": _grid(
            {**SMALL, "init": "orthogonal", "mode": "soft"}, target=[1.0, 1.5], temperature=[0.1, 0.3, 1.0]
        ),
        "ours, hinge": _grid(
            {**SMALL, "init": "orthogonal", "loss": "hinge"}, margin=[0.25, 0.5, 1.0], target=[1.0, 1.5]
        ),
        "ours, margin": _grid(
            {**SMALL, "init": "orthogonal", "loss": "lmt"}, margin=[0.1, 0.25, 0.5], temperature=[0.1, 0.3]
        ),
    },
}
