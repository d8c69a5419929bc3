"""Audit of a whole model: each layer's true norm beside the value PyTorch divides by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from spectralnorm.bound import Bound
from spectralnorm.measure import spectral_norm
from spectralnorm.network.graph import batchnorm_pairs
from spectralnorm.network.probe import check_input_shape, reading, shapes_seen
from spectralnorm.operators.base import Size
from spectralnorm.operators.batchnorm import is_batchnorm
from spectralnorm.operators.registry import as_operator, has_operator

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Audit", "AuditRow", "Skipped", "audit"]

SCHEMA = "spectralnorm/audit/1"
PRODUCT = "product of the layers' norms"
LEGEND = (
    "PyTorch: what torch.nn.utils.parametrizations.spectral_norm divides by, the norm of the flattened kernel. "
    "True norm: of the layer itself, the supremum over all input sizes."
)

OnLayer = Callable[[int, int], None]


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
        size: the spatial size the layer sees, `()` for a dense layer; of several sizes the one of the largest
            norm; None when no `input_shape` was given, or the model never called the layer.
        norm_at_size: the norm at that size.
        batchnorm: name of the BatchNorm that alone reads the layer's output; then the norms are those of the two
            as one map, in eval mode.
    """

    name: str
    type: str
    weight_shape: Size
    pytorch: float | None
    norm: Bound
    size: Size | None = None
    norm_at_size: Bound | None = None
    batchnorm: str | None = None

    @property
    def ratio(self) -> float:
        """The true norm over PyTorch's value; NaN where that is zero, or the norm is not of the kernel alone."""
        return float(self.norm) / self.pytorch if self.pytorch and self.batchnorm is None else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the same as lists, strings, numbers and None, ready for JSON."""
        return {
            "name": self.name,
            "type": self.type,
            "batchnorm": self.batchnorm,
            "weight_shape": list(self.weight_shape),
            "pytorch": self.pytorch,
            "norm": _bound_to_dict(self.norm),
            "ratio": None if math.isnan(self.ratio) else self.ratio,
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

    Example:
        >>> import torch, spectralnorm as sn
        >>> found = sn.audit(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3)))
        >>> [row.name for row in found.rows], [module.name for module in found.skipped]
        (['0'], ['1'])
    """

    rows: tuple[AuditRow, ...]
    skipped: tuple[Skipped, ...] = ()
    input_shape: Size | None = None

    @property
    def product(self) -> float:
        """The product of the layers' size-free norms.

        It is not a Lipschitz bound of the network: it ignores skipped modules, branches, and layers that are
        called twice, and without `certified` the norms are known from below.
        """
        return math.prod(float(row.norm) for row in self.rows)

    @property
    def certified(self) -> bool:
        """Whether every size-free norm is proven from both sides."""
        return all(row.norm.certified for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as dictionaries, lists, strings, numbers and None, ready for JSON."""
        return {
            "schema": SCHEMA,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "certified": self.certified,
            "layers": [row.to_dict() for row in self.rows],
            "product_of_layer_norms": self.product,
            "skipped": [{"name": module.name, "type": module.type} for module in self.skipped],
        }

    def __str__(self) -> str:
        lines = [self._header(), *map(self._cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([table[0], "-" * (sum(widths) + 2 * len(widths) - 2), *table[1:], *self._notes()])

    def __rich__(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        notes = Text("\n".join(self._notes()))
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=notes)
        table.caption_justify, table.caption_style = "left", ""
        for i, heading in enumerate(self._header()):
            table.add_column(heading, justify="left" if i < 3 else "right", overflow="fold", no_wrap=i > 1)
        for row in self.rows:
            table.add_row(*map(Text, self._cells(row)))
        return table

    def _header(self) -> list[str]:
        at_size = ["input size", "norm at it"] if self.input_shape is not None else []
        proven = ["at most"] if self.certified else []
        return ["layer", "type", "weight", "PyTorch", "true norm", *proven, "ratio", *at_size]

    def _cells(self, row: AuditRow) -> list[str]:
        name = row.name or "(model)"
        cells = [name, row.type, _times(row.weight_shape)]
        cells += ["-" if row.pytorch is None else _number(row.pytorch), _number(float(row.norm))]
        cells += [*([_number(row.norm.upper, up=True)] if self.certified else []), _number(row.ratio)]
        if self.input_shape is not None:
            there = row.norm_at_size
            cells += [_times(row.size or ()), "-" if there is None else _number(float(there))]
        return cells

    def _notes(self) -> list[str]:
        notes = [f"{PRODUCT}: {_number(self.product)} (not a Lipschitz bound of the network)", LEGEND]
        if any(row.batchnorm for row in self.rows):
            notes.append(
                "+ BN: with the BatchNorm that alone reads the layer, as the one map they are in eval mode."
            )
        if self.certified:
            notes.append("At most: proven, by a search that excludes every frequency.")
        if self.skipped:
            names = ", ".join(f"{module.name or '(model)'} ({module.type})" for module in self.skipped)
            notes.append(f"Not measured, no operator: {names}.")
        return notes


def audit(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    certified: bool = False,
    on_layer: OnLayer | None = None,
) -> Audit:
    """Measure every layer of a model, as it acts in eval mode; the model is left as it was.

    A layer that occurs several times is measured once, under its first name. A layer and the BatchNorm that alone
    reads its output are measured as the one map they are. The product of the norms is not a Lipschitz bound of
    the network.

    Args:
        model: any module; parametrised layers are read through their parametrizations.
        input_shape: one input's shape without batch, such as `(3, 32, 32)`, to measure each layer also at the
            spatial size it sees there; the model is run once on zeros of that shape.
        certified: whether to prove the size-free norms from above too.
        on_layer: called after each layer with the number of layers done, and their total.

    Returns:
        The `Audit`.

    Raises:
        TypeError: when `model` is not a module, or a layer's weight has no norm for its dtype.
        ValueError: when no layer has an operator, the model does not run on `input_shape`, or a weight is
            empty or not finite.

    Example:
        >>> import torch, spectralnorm as sn
        >>> conv = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
        >>> _ = torch.nn.init.constant_(conv.weight, 1 / 9)  # a blur: it keeps a constant image as it is
        >>> found = sn.audit(torch.nn.Sequential(conv, torch.nn.LayerNorm(8)))
        >>> print(found)
        layer  type    weight   PyTorch  true norm  ratio
        -------------------------------------------------
        0      Conv2d  1x1x3x3    0.333      1.000  3.000
        product of the layers' norms: 1.000 (not a Lipschitz bound of the network)
        PyTorch: ...
        Not measured, no operator: 1 (LayerNorm).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module; wrap it in one")
    shape = None if input_shape is None else check_input_shape(input_shape)
    rows: list[AuditRow] = []
    with reading(model), torch.no_grad():
        pairs = batchnorm_pairs(model)
        layers, skipped = _layers(model, set(pairs.values()))
        seen = {} if shape is None else shapes_seen(model, layers, shape)
        for name, layer in layers.items():
            norm = (pairs[name], model.get_submodule(pairs[name])) if name in pairs else None
            rows.append(_row(name, layer, seen.get(name, []), norm, certified))
            if on_layer is not None:
                on_layer(len(rows), len(layers))
    return Audit(tuple(rows), tuple(skipped), shape)


def _layers(model: nn.Module, folded: set[str]) -> tuple[dict[str, nn.Module], list[Skipped]]:
    """The layers by name, and the modules with weights of their own that have no operator.

    Args:
        model: the model.
        folded: names of BatchNorms that are measured with the layer before them.

    Returns:
        Both, in the model's order.

    Raises:
        ValueError: when no layer has an operator.
    """
    inside = {
        part
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for part in module.parametrizations.modules()  # type: ignore[union-attr]
    }
    layers: dict[str, nn.Module] = {}
    skipped: list[Skipped] = []
    for name, module in model.named_modules():
        if name in folded:
            continue
        if module not in inside and has_operator(module) and not _depends_on_batch(module):
            layers[name] = module
        elif module not in inside and _has_weights(module):
            skipped.append(Skipped(name, _type_name(module)))
    if not layers:
        held = ", ".join(sorted({module.type for module in skipped})) or "no weights"
        raise ValueError(
            f"model: got {type(model).__name__} without a layer that has an operator (it holds {held}), expected "
            "at least one, such as Linear or Conv2d; register your own with spectralnorm.register_operator"
        )
    return layers, skipped


def _has_weights(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None or parametrize.is_parametrized(module)


def _depends_on_batch(module: nn.Module) -> bool:
    """Whether this is a BatchNorm without running statistics: no linear map."""
    return is_batchnorm(module) and module.running_var is None


def _row(
    name: str, layer: nn.Module, shapes: Sequence[Size], norm: tuple[str, nn.Module] | None, certified: bool
) -> AuditRow:
    """Measure a layer, with the BatchNorm behind it where the two are one map.

    Args:
        name: of the layer.
        layer: the layer.
        shapes: of what the model gives it.
        norm: name and module of the BatchNorm, or None.
        certified: whether to prove the size-free norm.

    Returns:
        The row.

    Raises:
        TypeError: when a weight has no norm for its dtype.
        ValueError: when a weight is empty or not finite.
    """
    measured = nn.Sequential(layer, norm[1]) if norm else layer
    try:
        operator = as_operator(measured)
        pytorch = None if is_batchnorm(layer) else float(spectral_norm(layer, method="flattened"))
        free = spectral_norm(measured, certified=certified)
        sizes = [] if is_batchnorm(layer) else [shape[len(shape) - operator.axes :] for shape in shapes]
        there = [(spectral_norm(measured, input_shape=size or None), size) for size in dict.fromkeys(sizes)]
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name!r}: {error}") from error
    bound, size = max(there, key=lambda pair: float(pair[0])) if there else (None, None)
    return AuditRow(
        name=name,
        type=_type_name(layer) + (" + BN" if norm else ""),
        weight_shape=tuple(operator.weight.shape[:1] if is_batchnorm(layer) else operator.weight.shape),
        pytorch=pytorch,
        norm=free,
        size=size,
        norm_at_size=bound,
        batchnorm=norm[0] if norm else None,
    )


def _bound_to_dict(bound: Bound) -> dict[str, Any]:
    upper = bound.upper if math.isfinite(bound.upper) else None
    return {"value": float(bound), "lower": bound.lower, "upper": upper, "method": bound.method}


def _type_name(module: nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__


def _times(shape: Size) -> str:
    return "x".join(map(str, shape)) or "-"


def _number(value: float, *, up: bool = False) -> str:
    """Three decimals, or scientific; rounded up for an upper bound."""
    if math.isnan(value):
        return "-"
    if value and not 1e-3 <= value < 1e5:
        return f"{value:.2e}" if not up else f"{value * 1.005:.2e}"
    return f"{math.ceil(value * 1000) / 1000 if up and math.isfinite(value) else value:.3f}"
