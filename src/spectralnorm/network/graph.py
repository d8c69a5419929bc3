"""What feeds what in a model, read off its torch.fx graph."""

from __future__ import annotations

import copy
from collections import Counter

from torch import fx, nn

from spectralnorm.network.tracing import Tracer
from spectralnorm.operators.batchnorm import folds, is_batchnorm
from spectralnorm.operators.registry import as_operator, has_operator

__all__ = ["batchnorm_pairs", "readers"]


def _convolves(layer: nn.Module) -> bool:
    """Whether a layer has channels on the axis that a BatchNorm scales."""
    if not has_operator(layer) or is_batchnorm(layer):
        return False
    try:
        return as_operator(layer).axes > 0
    except (TypeError, ValueError):  # the layer's own row will say what is wrong with it
        return False


def batchnorm_pairs(model: nn.Module) -> dict[str, str]:
    """The linear layers whose output goes to one BatchNorm and nowhere else, so that the two act as one map.

    A layer or BatchNorm that is called twice makes no pair. A Linear makes none, nor does another layer without
    spatial axes: a BatchNorm behind it may scale another axis than the one it writes.

    Args:
        model: any module, in eval mode: weights are read.

    Returns:
        Name of the layer to name of the BatchNorm, as in `model.named_modules()`.

    Raises:
        ValueError: for a model that torch.fx cannot trace, with the reason it gives.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> batchnorm_pairs(net)
        {'0': '1'}
    """
    graph = _graph(model)
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    count = Counter(str(node.target) for node in calls)
    pairs = {}
    for node in calls:
        readers = list(node.users)
        layer = modules[str(node.target)]
        if len(readers) != 1 or readers[0].op != "call_module" or not _convolves(layer):
            continue
        reader = str(readers[0].target)
        norm = modules[reader]
        if folds(norm) and norm.running_var is not None and count[str(node.target)] == count[reader] == 1:
            pairs[str(node.target)] = reader
    return pairs


def readers(model: nn.Module) -> dict[str, list[str]]:
    """Which modules read the output of each module that is called once, by torch.fx; "" for another reader.

    Args:
        model: any module.

    Returns:
        By the module's name.

    Raises:
        ValueError: for a model that torch.fx cannot trace, with the reason it gives.

    Example:
        >>> readers(nn.Sequential(nn.Linear(3, 8), nn.ReLU()))
        {'0': ['1'], '1': ['']}
    """
    calls = [node for node in _graph(model).nodes if node.op == "call_module"]
    count = Counter(str(node.target) for node in calls)
    return {
        str(node.target): [str(user.target) if user.op == "call_module" else "" for user in node.users]
        for node in calls
        if count[str(node.target)] == 1
    }


def _graph(model: nn.Module) -> fx.Graph:
    try:  # on a copy that shares the parameters: a forward may write to its module
        return Tracer().trace(copy.deepcopy(model, {id(p): p for p in model.parameters()}))
    except Exception as error:  # whatever a user's forward does to a proxy
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__}, to see what feeds what: {type(error).__name__}, "
            f"{' '.join(str(error).split()):.300}"
        ) from error
