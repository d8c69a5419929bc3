"""Holding spectral norms down while training."""

from spectralnorm.normalize.api import refresh, spectral_normalize, step
from spectralnorm.normalize.checkpoints import plain_state_dict
from spectralnorm.normalize.clip import clip_singular_values
from spectralnorm.normalize.penalty import spectral_penalty
from spectralnorm.normalize.removal import remove_spectral_norm

__all__ = [
    "clip_singular_values",
    "plain_state_dict",
    "refresh",
    "remove_spectral_norm",
    "spectral_normalize",
    "spectral_penalty",
    "step",
]
