"""Attacks on classifiers: FGSM and PGD of our own, others through foolbox and pyautoattack."""

from ..checks import NORMS, Bounds, check_batch, check_budget, check_choice, check_count, check_number
from ..geometry import direction, noise, project
from ..model import classify, eval_mode
from .autoattack import autoattack, autoattack_part
from .base import Attack, NamedAttack
from .fgsm import fgsm
from .losses import LOSSES, margin
from .named import ATTACKS, named
from .pgd import pgd
from .smallest import smallest

__all__ = [
    "ATTACKS",
    "LOSSES",
    "NORMS",
    "Attack",
    "Bounds",
    "NamedAttack",
    "autoattack",
    "autoattack_part",
    "check_batch",
    "check_budget",
    "check_choice",
    "check_count",
    "check_number",
    "classify",
    "direction",
    "eval_mode",
    "fgsm",
    "margin",
    "named",
    "noise",
    "pgd",
    "project",
    "smallest",
]
