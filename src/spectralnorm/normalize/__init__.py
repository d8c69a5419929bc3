"""Holding spectral norms down while training."""

from spectralnorm.normalize.api import refresh, remove_spectral_norm, spectral_normalize
from spectralnorm.normalize.clip import clip_singular_values
from spectralnorm.normalize.penalty import spectral_penalty

__all__ = ["clip_singular_values", "refresh", "remove_spectral_norm", "spectral_normalize", "spectral_penalty"]
