"""One method a file; `METHODS` maps the names that `method=` takes to their estimators."""

from spectralnorm.estimators.base import Estimator
from spectralnorm.estimators.certified import Certified
from spectralnorm.estimators.exact import Exact
from spectralnorm.estimators.flattened import Flattened
from spectralnorm.estimators.flattened_bound import FlattenedBound
from spectralnorm.estimators.gram import Gram
from spectralnorm.estimators.matrix_free import MatrixFree
from spectralnorm.estimators.power import Power
from spectralnorm.estimators.separated import Separated
from spectralnorm.estimators.tracked import Tracked

__all__ = [
    "METHODS",
    "Certified",
    "Estimator",
    "Exact",
    "Flattened",
    "FlattenedBound",
    "Gram",
    "MatrixFree",
    "Power",
    "Separated",
    "Tracked",
]

_ALL: tuple[type[Estimator], ...] = (Tracked, Certified, Exact, Power, Flattened, Gram, FlattenedBound, Separated)

METHODS: dict[str, type[Estimator]] = {cls.name: cls for cls in _ALL}
