"""What an audit found: a row per layer, what was left out, and the same as dictionaries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectralnorm.bound import Bound
from spectralnorm.network.audit_table import rich_table, text_table
from spectralnorm.operators.base import Size

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Audit", "AuditRow", "Skipped"]

SCHEMA = "spectralnorm/audit/1"


@dataclass(frozen=True)
class AuditRow:
    """One layer.

    Attributes:
        name: as in `model.named_modules()`.
        type: name of the layer's class, without parametrizations; with "+ BN" where a BatchNorm is folded in.
        weight_shape: (outputs, inputs) or (c_out, c_in/groups, *k).
        pytorch: the norm of the flattened kernel, which PyTorch's `spectral_norm` divides by; None for a
            BatchNorm, which has no kernel.
        norm: the true, size-free norm.
        alone: the same without the BatchNorm that is folded in; `norm` itself where none is.
        padding_copies: whether the padding copies cells of the input so that the norm over all sizes is not one
            number of the kernel (reflect, replicate, circular with a stride or beyond "same"): the value of `norm`
            is then that of the convolution behind the padding, and the layer's lies between it and `norm.upper`.
        size: the spatial size the layer sees, `()` for a dense layer; of several sizes the one of the largest
            norm; None when no `input_shape` was given, or the model never called the layer.
        norm_at_size: the norm at that size.
        batchnorm: name of the BatchNorm that alone reads the layer's output; then `norm` and `norm_at_size` are
            those of the two as one map, in eval mode.
    """

    name: str
    type: str
    weight_shape: Size
    pytorch: float | None
    norm: Bound
    alone: Bound
    padding_copies: bool = False
    size: Size | None = None
    norm_at_size: Bound | None = None
    batchnorm: str | None = None

    @property
    def ratio(self) -> float:
        """The true norm of the layer alone over PyTorch's value; NaN without a kernel, or where that is zero."""
        return float(self.alone) / self.pytorch if self.pytorch else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the same as lists, strings, finite numbers, booleans and None, ready for JSON."""
        return {
            "name": self.name,
            "type": self.type,
            "batchnorm": self.batchnorm,
            "weight_shape": list(self.weight_shape),
            "pytorch": _finite(self.pytorch),
            "norm": _bound_to_dict(self.norm),
            "alone": _bound_to_dict(self.alone),
            "ratio": _finite(self.ratio),
            "padding_copies": self.padding_copies,
            "size": None if self.size is None else list(self.size),
            "norm_at_size": None if self.norm_at_size is None else _bound_to_dict(self.norm_at_size),
        }


@dataclass(frozen=True)
class Skipped:
    """A module that holds weights and has no operator, so that its norm is not measured."""

    name: str
    type: str


@dataclass(frozen=True)
class Audit:
    """What `audit` found; print it, or show it with rich.

    Attributes:
        rows: one per layer that has an operator, in the model's order.
        skipped: the other modules that hold weights.
        input_shape: shape of one input, as given to `audit`.
        train_mode: names of the measured BatchNorms that are in train mode, where they divide by the statistics
            of each batch; they are measured as they act in eval mode all the same.

    Example:
        >>> import torch, spectralnorm as sn
        >>> found = sn.audit(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)))
        >>> [row.name for row in found.rows], [module.name for module in found.skipped]
        (['0'], ['1'])
    """

    rows: tuple[AuditRow, ...]
    skipped: tuple[Skipped, ...] = ()
    input_shape: Size | None = None
    train_mode: tuple[str, ...] = ()

    @property
    def product(self) -> float:
        """The product of the layers' size-free norms.

        It is not a Lipschitz bound of the network: it ignores skipped modules, branches, and layers that are
        called twice, and without `certified` the norms are known from below.
        """
        return math.prod(float(row.norm) for row in self.rows)

    @property
    def product_upper(self) -> float:
        """The product of the norms' proven upper ends, rounded up; infinite unless `certified`.

        It is not a Lipschitz bound of the network, for the same reasons.
        """
        if not self.certified:
            return math.inf
        uppers = [row.norm.upper for row in self.rows]
        product = 1.0
        for upper in uppers:
            product = math.nextafter(product * upper, math.inf)
        return product if all(uppers) else 0.0

    @property
    def certified(self) -> bool:
        """Whether every size-free norm is proven from both sides."""
        return all(row.norm.certified for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as dictionaries, lists, strings, finite numbers, booleans and None, ready for JSON."""
        return {
            "schema": SCHEMA,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "certified": self.certified,
            "layers": [row.to_dict() for row in self.rows],
            "product_of_layer_norms": _finite(self.product),
            "product_of_upper_ends": _finite(self.product_upper),
            "skipped": [{"name": module.name, "type": module.type} for module in self.skipped],
            "batchnorms_in_train_mode": list(self.train_mode),
        }

    def __str__(self) -> str:
        return text_table(self)

    def __rich__(self) -> Table:
        return rich_table(self)


def _bound_to_dict(bound: Bound) -> dict[str, Any]:
    ends = {"value": float(bound), "lower": bound.lower, "upper": bound.upper}
    return {**{name: _finite(end) for name, end in ends.items()}, "method": bound.method}


def _finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN: null stands for them."""
    return value if value is not None and math.isfinite(value) else None
