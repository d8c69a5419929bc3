"""True spectral norms of neural-network layers: measure them, train with them held down, prove robustness."""

from spectralnorm import losses, parametrizations
from spectralnorm.bound import Bound
from spectralnorm.estimators import (
    Certified,
    Estimator,
    Exact,
    Flattened,
    FlattenedBound,
    Gram,
    Power,
    Separated,
    Tracked,
)
from spectralnorm.layers.blocks import GroupSort, InvertibleDownsampling, L2NormPool, MaxMin
from spectralnorm.measure import singular_values, spectral_norm
from spectralnorm.network.audit import Audit, audit
from spectralnorm.network.lipschitz import lipschitz
from spectralnorm.network.rules.registry import register_lipschitz_rule
from spectralnorm.normalize import (
    clip_singular_values,
    plain_state_dict,
    refresh,
    remove_spectral_norm,
    spectral_normalize,
    spectral_penalty,
    step,
)
from spectralnorm.operators.registry import as_operator, register_operator
from spectralnorm.robustness.certifier import Certifier
from spectralnorm.robustness.certify import Certification, certified_radius, certify
from spectralnorm.robustness.evaluate import Evaluation, evaluate
from spectralnorm.robustness.held import HeldLipschitz

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Bound",
    "Certification",
    "Certified",
    "Certifier",
    "Estimator",
    "Evaluation",
    "Exact",
    "Flattened",
    "FlattenedBound",
    "Gram",
    "GroupSort",
    "HeldLipschitz",
    "InvertibleDownsampling",
    "L2NormPool",
    "MaxMin",
    "Power",
    "Separated",
    "Tracked",
    "as_operator",
    "audit",
    "certified_radius",
    "certify",
    "clip_singular_values",
    "evaluate",
    "lipschitz",
    "losses",
    "parametrizations",
    "plain_state_dict",
    "refresh",
    "register_lipschitz_rule",
    "register_operator",
    "remove_spectral_norm",
    "singular_values",
    "spectral_norm",
    "spectral_normalize",
    "spectral_penalty",
    "step",
]
