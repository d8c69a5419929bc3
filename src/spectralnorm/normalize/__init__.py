"""Holding spectral norms down while training."""

from spectralnorm.normalize.api import refresh, remove_spectral_norm, spectral_normalize
from spectralnorm.normalize.clip import clip_singular_values

__all__ = ["clip_singular_values", "refresh", "remove_spectral_norm", "spectral_normalize"]
