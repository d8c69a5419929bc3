"""One method a file; `METHODS` maps the names that `method=` takes to their estimators."""

from spectralnorm.estimators.base import Estimator
from spectralnorm.estimators.exact import Exact
from spectralnorm.estimators.flattened import Flattened
from spectralnorm.estimators.matrix_free import MatrixFree
from spectralnorm.estimators.power import Power
from spectralnorm.estimators.tracked import Tracked

__all__ = ["METHODS", "Estimator", "Exact", "Flattened", "MatrixFree", "Power", "Tracked"]

METHODS: dict[str, type[Estimator]] = {cls.name: cls for cls in (Tracked, Exact, Power, Flattened)}
