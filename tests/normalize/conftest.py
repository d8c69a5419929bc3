"""Both ways an engine moves states: large models sweep less, and small test models can be taken for large."""

from __future__ import annotations

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of normalisation runs both ways, but for those marked as speaking of small models alone."""
    if "model_size" in metafunc.fixturenames:
        small_only = metafunc.definition.get_closest_marker("small_models")
        metafunc.parametrize("model_size", ["small"] if small_only else ["small", "large"], indirect=True)


@pytest.fixture(autouse=True)
def model_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes every model for large where "large" is asked for."""
    if request.param == "large":
        monkeypatch.setattr("spectralnorm.normalize.api._SMALL_MODEL", 0)
