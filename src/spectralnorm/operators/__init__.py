"""The linear map of a layer, and its symbol."""

from spectralnorm.operators import layers

__all__ = ["layers"]
