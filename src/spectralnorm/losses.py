"""Losses that ask for certified radii: a classifier's margin measured against how fast its logits can move.

Where f_y - f_j has the Lipschitz constant L_(y,j), the answer y holds within (f_y - f_j) / L_(y,j) of an input.
Constants that no step of training changes come from `HeldLipschitz`; 1-Lipschitz networks have sqrt(2).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["hinge", "lipschitz_margin"]

ROOT_2 = math.sqrt(2)  # the Lipschitz constant of f_y - f_j where that of f is 1


def hinge(logits: Tensor, labels: Tensor, margin: float, constants: Tensor | float = ROOT_2) -> Tensor:
    """The multi-class hinge: what each wrong logit lacks, below the right one, to a certified radius.

    The mean over examples and wrong classes of max(0, margin L_(y,j) - (f_y - f_j)). Beyond the margin it asks for
    nothing, so that a network's limited slope is spent on inputs near a boundary.

    Args:
        logits: (N, classes), of at least 2 classes.
        labels: (N,), int64.
        margin: radius to ask for, in units of the inputs, at least 0.
        constants: Lipschitz constants of f_y - f_j: (classes, classes), or one for all; sqrt(2) is that of a
            network whose own constant is 1.

    Returns:
        0-dim, differentiable, also with respect to `constants`.

    Raises:
        TypeError: when logits or labels are no tensors of floating point and int64, or the margin is no number.
        ValueError: when shapes, labels or margin do not fit.

    Reference:
        Crammer & Singer, JMLR 2001; for 1-Lipschitz networks Anil, Lucas & Grosse (ICML 2019, arXiv 1811.05381)
        and Li et al. (NeurIPS 2019, arXiv 1911.00937), with margins of sqrt(2) times the radius.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
        >>> hinge(logits, labels, margin=1.5, constants=1.0)  # the first lacks 0.5, the second nothing
        tensor(0.2500)
    """
    constants = _checked(logits, labels, margin, constants)
    gaps = logits.gather(1, labels[:, None]) - logits
    lacking = (margin * _of_labels(constants, labels, gaps) - gaps).clamp_min(0)
    wrong = torch.ones_like(gaps, dtype=torch.bool).scatter(1, labels[:, None], False)
    return lacking[wrong].mean()


def lipschitz_margin(
    logits: Tensor,
    labels: Tensor,
    margin: float,
    constants: Tensor | float = ROOT_2,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Lipschitz-margin training: cross-entropy with every wrong logit raised by margin L_(y,j).

    Those are bounds on what the logits can become, relative to the right one, within the margin of an input.

    Args:
        logits: (N, classes), of at least 2 classes.
        labels: (N,), int64.
        margin: radius to ask for, in units of the inputs, at least 0.
        constants: Lipschitz constants of f_y - f_j, f being these logits, after a temperature too: (classes,
            classes), or one for all.
        label_smoothing: as of `torch.nn.functional.cross_entropy`.

    Returns:
        0-dim, the mean over the batch, differentiable, also with respect to `constants`.

    Raises:
        TypeError: when logits or labels are no tensors of floating point and int64, or the margin is no number.
        ValueError: when shapes, labels or margin do not fit.

    Reference:
        Tsuzuku, Sato & Sugiyama, "Lipschitz-Margin Training" (NeurIPS 2018, arXiv 1802.04034), algorithm 1.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 1.0]]), torch.tensor([0])
        >>> lipschitz_margin(logits, labels, margin=0.5, constants=2.0)  # as that of logits 2 and 2
        tensor(0.6931)
    """
    constants = _checked(logits, labels, margin, constants)
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, (int, float)):
        raise TypeError(f"label_smoothing: got {label_smoothing!r}, expected a number; pass one from 0 to 1")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: got {label_smoothing}, expected 0 to 1; pass such a number")
    raised = logits + margin * _of_labels(constants, labels, logits)
    raised = raised.scatter(1, labels[:, None], logits.gather(1, labels[:, None]))
    return F.cross_entropy(raised, labels, label_smoothing=label_smoothing)


def _of_labels(constants: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """The constants of each example's label, (N, classes)."""
    rows = constants[labels] if constants.ndim else constants
    return rows.to(logits).expand_as(logits)


def _checked(logits: Tensor, labels: Tensor, margin: float, constants: Tensor | float) -> Tensor:
    """Check a loss's arguments.

    Returns:
        The constants as a tensor.

    Raises:
        TypeError: when something is of the wrong type.
        ValueError: when something does not fit.
    """
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor; use torch.as_tensor")
    if not logits.is_floating_point() or labels.dtype != torch.int64:
        raise TypeError(
            f"logits, labels: got {logits.dtype} and {labels.dtype}, expected floating point and torch.int64; "
            "convert with .float() and .long()"
        )
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits, labels: got shapes {tuple(logits.shape)} and {tuple(labels.shape)}, expected (N, classes) "
            "and (N,), with at least one example and two classes; give one label per row"
        )
    _check_number("margin", margin)
    classes = logits.shape[1]
    if not _holds(labels, lambda: ((labels >= 0) & (labels < classes)).all()):
        raise ValueError(
            f"labels: got {int(labels.min())} to {int(labels.max())}, expected 0 to {classes - 1}, the columns of "
            "logits; relabel"
        )
    return _checked_constants(constants, logits)


def _checked_constants(constants: Tensor | float, logits: Tensor) -> Tensor:
    """Check a loss's constants, and their values where there is one to look at.

    Returns:
        The constants as a tensor.

    Raises:
        TypeError: when they are no numbers.
        ValueError: when they do not fit.
    """
    if not isinstance(constants, Tensor):
        _check_number("constants", constants)
        return torch.tensor(float(constants), device=logits.device)
    classes = logits.shape[1]
    if constants.is_complex():
        raise TypeError(f"constants: got {constants.dtype}, expected real numbers; pass Lipschitz constants")
    if constants.shape not in {(), (classes, classes)}:
        raise ValueError(
            f"constants: got shape {tuple(constants.shape)}, expected one number or {(classes, classes)}; give "
            "one for each pair of classes"
        )
    known = constants.to(logits.device)
    same = torch.eye(classes, dtype=torch.bool) if known.ndim else torch.tensor(False)
    # the diagonal is not read
    if not _holds(known, lambda: (same | (torch.isfinite(known) & (known >= 0))).all()):
        raise ValueError(
            "constants: got NaN, infinite or negative ones, expected finite numbers of at least 0; pass Lipschitz "
            "constants"
        )
    return known


def _check_number(name: str, value: float) -> None:
    """Check that an argument is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, expected a number; pass a finite one of at least 0")
    number = value if isinstance(value, int) else float(value)  # a large int is no float
    if not 0 <= number <= sys.float_info.max:  # false for NaN, too
        raise ValueError(
            f"{name}: got {str(value)[:24]}, expected a finite number of at least 0; pass such a number"
        )


def _holds(values: Tensor, check: Callable[[], Tensor]) -> bool:
    """What a check of values says; true where looking costs (on a GPU) or finds none (compiled, torch.func)."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    try:
        return bool(check())
    except RuntimeError:  # the values of a transform of torch.func have no numbers
        return True
