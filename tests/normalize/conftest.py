"""The ways an engine moves states: large models sweep less, and on a GPU it asks for no number.

Small test models can be taken for large, and the CPU for a GPU.
"""

from __future__ import annotations

import pytest

AS_ON_A_GPU = ("test_normalize_training", "test_fold", "test_penalty", "test_normalize_gradients")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of normalisation runs both ways, but for those marked as speaking of small models alone.

    Those of `AS_ON_A_GPU` run a third.
    """
    if "model_size" in metafunc.fixturenames:
        small_only = metafunc.definition.get_closest_marker("small_models")
        ways = ["small"] if small_only else ["small", "large"]
        if metafunc.module.__name__.rpartition(".")[2] in AS_ON_A_GPU and not small_only:
            ways.append("gpu")
        metafunc.parametrize("model_size", ways, indirect=True)


@pytest.fixture(autouse=True)
def model_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes every model for large where "large" is asked for, and the CPU for a GPU where "gpu" is."""
    if request.param == "gpu":
        monkeypatch.setattr("spectralnorm.operators.base._AT_ONCE", frozenset())
    if request.param == "large":
        monkeypatch.setattr("spectralnorm.normalize.api._SMALL_MODEL", 0)
