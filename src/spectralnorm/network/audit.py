"""Audit of a whole model: each layer's true norm beside the value PyTorch divides by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.utils import parametrize

from spectralnorm.estimators import Certified
from spectralnorm.measure import spectral_norm
from spectralnorm.network.audit_result import Audit, AuditRow, Skipped
from spectralnorm.network.audit_table import BATCHNORM
from spectralnorm.network.graph import batchnorm_pairs
from spectralnorm.network.naming import naming
from spectralnorm.network.probe import check_input_shape, reading, shapes_seen
from spectralnorm.operators.base import Size
from spectralnorm.operators.batchnorm import is_batchnorm
from spectralnorm.operators.registry import as_operator, has_operator

__all__ = ["Audit", "AuditRow", "Skipped", "audit"]

OnLayer = Callable[[float, int], None]
OnShare = Callable[[float], None]


def audit(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    certified: bool = False,
    on_layer: OnLayer | None = None,
) -> Audit:
    """Measure every layer of a model, as it acts in eval mode; the model is left as it was.

    A layer that occurs several times is measured once, under its first name. A layer and the BatchNorm that alone
    reads its output are measured as the one map they are, and the layer alone beside it. The product of the norms
    is not a Lipschitz bound of the network.

    The model is in eval mode meanwhile: audits in several threads take turns, but no other thread may train it.

    Args:
        model: any module; parametrised layers are read through their parametrizations.
        input_shape: one input's shape without batch, such as `(3, 32, 32)`, to measure each layer also at the
            spatial size it sees there; the model is run once on zeros of that shape.
        certified: whether to prove the size-free norms from above too.
        on_layer: called at first and after each layer with the number of layers done, and their total; in between
            with a fraction, where a norm is proven.

    Returns:
        The `Audit`.

    Raises:
        TypeError: when `model` is not a module, or a layer's weight has no norm for its dtype.
        ValueError: when no layer has an operator, the model does not run on `input_shape`, or a weight is
            empty or not finite.
        MemoryError: when a layer is too large for the method.

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
    with reading(model) as modes, torch.no_grad():
        pairs = _pairs(model)
        layers, skipped = _layers(model, set(pairs.values()))
        seen = {} if shape is None else shapes_seen(model, layers, shape)

        def report(share: float) -> None:
            if on_layer is not None:
                on_layer(len(rows) + share, len(layers))

        report(0)
        for name, layer in layers.items():
            norm = (pairs[name], model.get_submodule(pairs[name])) if name in pairs else None
            with naming(f"layer {name or '(model)'!r}"):
                row = _row(name, layer, seen.get(name, []), norm, report if certified else None)
            rows.append(row)
            report(0)
        norms = [name for row in rows if is_batchnorm(model.get_submodule(name := row.batchnorm or row.name))]
        training = tuple(name for name in norms if modes[model.get_submodule(name)])
    return Audit(tuple(rows), tuple(skipped), shape, training)


def _pairs(model: nn.Module) -> dict[str, str]:
    """Layers with the BatchNorm that alone reads them; none where that cannot be traced."""
    try:
        return batchnorm_pairs(model)
    except ValueError:
        return {}


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
        raise ValueError(_nothing_to_measure(model, skipped))
    return layers, skipped


def _nothing_to_measure(model: nn.Module, skipped: Sequence[Skipped]) -> str:
    """Why a model has no row, and what to do."""
    if [module.name for module in skipped] == [""]:  # a layer by itself
        try:
            as_operator(model)
        except (TypeError, ValueError) as error:
            return f"model: {error}"
    held = ", ".join(sorted({module.type for module in skipped}))
    if not held:
        return f"model: {_type_name(model)} has no weight; expected a layer at least, such as Linear or Conv2d"
    return (
        f"model: {_type_name(model)} has no layer that spectralnorm knows (it holds {held}); expected one at "
        "least, such as Linear or Conv2d; register your own with spectralnorm.register_operator"
    )


def _has_weights(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None or parametrize.is_parametrized(module)


def _depends_on_batch(module: nn.Module) -> bool:
    """Whether this is a BatchNorm without running statistics: no linear map."""
    return is_batchnorm(module) and module.running_var is None


def _row(
    name: str,
    layer: nn.Module,
    shapes: Sequence[Size],
    norm: tuple[str, nn.Module] | None,
    on_share: OnShare | None,
) -> AuditRow:
    """Measure a layer, with the BatchNorm behind it where the two are one map.

    Args:
        name: of the layer.
        layer: the layer.
        shapes: of what the model gives it.
        norm: name and module of the BatchNorm, or None.
        on_share: given where the size-free norms are to be proven: called with the share that is done.

    Returns:
        The row.
    """
    maps = [layer, nn.Sequential(layer, norm[1])] if norm else [layer]
    operator = as_operator(maps[-1])
    pytorch = None if is_batchnorm(layer) else float(spectral_norm(layer, method="flattened"))
    free = []
    for done, each in enumerate(maps):
        method = "auto" if on_share is None else Certified(on_progress=_part(on_share, done, len(maps)))
        free.append(spectral_norm(each, method=method))
    sizes = [] if is_batchnorm(layer) else [shape[len(shape) - operator.axes :] for shape in shapes]
    there = [(spectral_norm(maps[-1], input_shape=size or None), size) for size in dict.fromkeys(sizes)]
    bound, size = max(there, key=lambda pair: float(pair[0])) if there else (None, None)
    return AuditRow(
        name=name,
        type=_type_name(layer) + (BATCHNORM if norm else ""),
        weight_shape=tuple(operator.weight.shape[:1] if is_batchnorm(layer) else operator.weight.shape),
        pytorch=pytorch,
        norm=free[-1],
        alone=free[0],
        padding_copies=operator.ceilings(None)[0][1] > 1,
        size=size,
        norm_at_size=bound,
        batchnorm=norm[0] if norm else None,
    )


def _part(on_share: OnShare, done: int, parts: int) -> OnShare:
    """Report the share of a part as one of the whole."""
    return lambda share: on_share((done + share) / parts)


def _type_name(module: nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__
