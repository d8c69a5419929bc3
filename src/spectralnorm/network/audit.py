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
from spectralnorm.network.probe import check_input_shape, reading, shapes_seen
from spectralnorm.operators.base import Size
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
        type: name of the layer's class, without parametrizations.
        weight_shape: (outputs, inputs) or (c_out, c_in/groups, *k).
        pytorch: the norm of the flattened kernel, which PyTorch's `spectral_norm` divides by.
        norm: the true, size-free norm.
        size: the spatial size the layer sees, `()` for a dense layer; of several sizes the one of the largest
            norm; None when no `input_shape` was given, or the model never called the layer.
        norm_at_size: the norm at that size.
    """

    name: str
    type: str
    weight_shape: Size
    pytorch: float
    norm: Bound
    size: Size | None = None
    norm_at_size: Bound | None = None

    @property
    def ratio(self) -> float:
        """The true norm over PyTorch's value; NaN where that is zero."""
        return float(self.norm) / self.pytorch if self.pytorch else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the same as lists, strings, numbers and None, ready for JSON."""
        return {
            "name": self.name,
            "type": self.type,
            "weight_shape": list(self.weight_shape),
            "pytorch": self.pytorch,
            "norm": _bound_to_dict(self.norm),
            "ratio": self.ratio if self.pytorch else None,
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
        called twice, and the norms are known from below.
        """
        return math.prod(float(row.norm) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as dictionaries, lists, strings, numbers and None, ready for JSON."""
        return {
            "schema": SCHEMA,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
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
        return ["layer", "type", "weight", "PyTorch", "true norm", "ratio", *at_size]

    def _cells(self, row: AuditRow) -> list[str]:
        cells = [row.name or "(model)", row.type, _times(row.weight_shape), _number(row.pytorch)]
        cells += [_number(float(row.norm)), _number(row.ratio)]
        if self.input_shape is not None:
            there = row.norm_at_size
            cells += [_times(row.size or ()), "-" if there is None else _number(float(there))]
        return cells

    def _notes(self) -> list[str]:
        notes = [f"{PRODUCT}: {_number(self.product)} (not a Lipschitz bound of the network)", LEGEND]
        if self.skipped:
            names = ", ".join(f"{module.name or '(model)'} ({module.type})" for module in self.skipped)
            notes.append(f"Not measured, no operator: {names}.")
        return notes


def audit(model: nn.Module, input_shape: Sequence[int] | None = None, *, on_layer: OnLayer | None = None) -> Audit:
    """Measure every layer of a model, as it acts in eval mode; the model is left as it was.

    A layer that occurs several times is measured once, under its first name. The product of the norms is not
    a Lipschitz bound of the network.

    Args:
        model: any module; parametrised layers are read through their parametrizations.
        input_shape: one input's shape without batch, such as `(3, 32, 32)`, to measure each layer also at the
            spatial size it sees there; the model is run once on zeros of that shape.
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
        >>> found = sn.audit(torch.nn.Sequential(conv, torch.nn.BatchNorm2d(1)))
        >>> print(found)
        layer  type    weight   PyTorch  true norm  ratio
        -------------------------------------------------
        0      Conv2d  1x1x3x3    0.333      1.000  3.000
        product of the layers' norms: 1.000 (not a Lipschitz bound of the network)
        PyTorch: ...
        Not measured, no operator: 1 (BatchNorm2d).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module; wrap it in one")
    layers, skipped = _layers(model)
    shape = None if input_shape is None else check_input_shape(input_shape)
    rows: list[AuditRow] = []
    with reading(model), torch.no_grad():
        seen = {} if shape is None else shapes_seen(model, layers, shape)
        for name, layer in layers.items():
            rows.append(_row(name, layer, seen.get(name, [])))
            if on_layer is not None:
                on_layer(len(rows), len(layers))
    return Audit(tuple(rows), tuple(skipped), shape)


def _layers(model: nn.Module) -> tuple[dict[str, nn.Module], list[Skipped]]:
    """The layers by name, and the modules with weights of their own that have no operator."""
    inside = {
        part
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for part in module.parametrizations.modules()  # type: ignore[union-attr]
    }
    layers: dict[str, nn.Module] = {}
    skipped: list[Skipped] = []
    for name, module in model.named_modules():
        if module not in inside and has_operator(module):
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


def _row(name: str, layer: nn.Module, shapes: Sequence[Size]) -> AuditRow:
    try:
        operator = as_operator(layer)
        pytorch = float(spectral_norm(layer, method="flattened"))
        free = spectral_norm(layer)
        sizes = [shape[len(shape) - operator.axes :] for shape in shapes]
        there = [(spectral_norm(layer, input_shape=size or None), size) for size in dict.fromkeys(sizes)]
    except (TypeError, ValueError) as error:
        raise type(error)(f"layer {name!r}: {error}") from error
    weight_shape = tuple(operator.weight.shape)
    if not there:
        return AuditRow(name, _type_name(layer), weight_shape, pytorch, free)
    bound, size = max(there, key=lambda pair: float(pair[0]))
    return AuditRow(name, _type_name(layer), weight_shape, pytorch, free, size, bound)


def _bound_to_dict(bound: Bound) -> dict[str, Any]:
    upper = bound.upper if math.isfinite(bound.upper) else None
    return {"value": float(bound), "lower": bound.lower, "upper": upper, "method": bound.method}


def _type_name(module: nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__


def _times(shape: Size) -> str:
    return "x".join(map(str, shape)) or "-"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if value == 0 or 1e-3 <= value < 1e5 else f"{value:.2e}"
