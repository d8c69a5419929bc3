"""Holding spectral norms down while training."""

from spectralnorm.normalize.api import refresh, remove_spectral_norm, spectral_normalize

__all__ = ["refresh", "remove_spectral_norm", "spectral_normalize"]
