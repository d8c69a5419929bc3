"""Scikit-learn's handwritten digits, which come with that package."""

from __future__ import annotations

import numpy as np
import torch

from ..dataset import Dataset


def digits(seed: int = 0) -> Dataset:
    """Load scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, ten classes.

    Args:
        seed: Seed of the split into 1,397 training and 400 test images, stratified by class.

    Returns:
        The data, pixels divided by 16.

    Raises:
        ImportError: If scikit-learn is not installed.

    Reference:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.

    Example:
        >>> data = digits()
        >>> len(data.train_x), len(data.test_x), data.input_shape
        (1397, 400, (1, 8, 8))
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('digits needs scikit-learn: pip install "spectralnorm[data]"') from error
    pixels, labels = load_digits(return_X_y=True)
    x = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    y = labels.astype(np.int64)
    parts = train_test_split(x, y, test_size=400, random_state=seed, stratify=y)
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return Dataset("digits", train_x, train_y, test_x, test_y, classes=10)
