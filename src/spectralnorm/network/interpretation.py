"""How much each operation of a network can stretch a change of the input: bounds, node by node.

Every node's bound is its Lipschitz constant as a map of the network's input. A rule turns the bounds of a call's
inputs into that of its output; what does not depend on the input is a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from spectralnorm.network.layer_norms import unchanged, values_of
from spectralnorm.network.lipschitz_table import NodeBound
from spectralnorm.network.naming import first_line, naming
from spectralnorm.network.outward import product_up, root_sum_squares_up, sum_up
from spectralnorm.network.rules.call import Call, Measure
from spectralnorm.network.rules.linear import operator_rule
from spectralnorm.network.rules.registry import Constant, rule_for
from spectralnorm.network.tracing import MODEL
from spectralnorm.operators.batchnorm import folds, is_batchnorm
from spectralnorm.operators.conv import ConvOperator
from spectralnorm.operators.dense import DenseOperator
from spectralnorm.operators.registry import as_operator, has_operator
from spectralnorm.operators.transposed import TransposedConvOperator

__all__ = ["Interpretation"]

# what tells of a tensor's shape and dtype, not of its values
_FACTS = ("size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "new_zeros", "new_ones")
_FACTS_BY_FUNCTION = (torch.zeros_like, torch.ones_like, torch.is_floating_point)
_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
_FOLDABLE = (ConvOperator, DenseOperator, TransposedConvOperator)


class Interpretation(fx.Interpreter):
    """Runs a graph on one input, a batch of one, and bounds every node that depends on it.

    Args:
        root: holds the model.
        graph: of the root.
        measure: measures linear layers.
        min_variance: as of `lipschitz`.

    Attributes:
        bounds: per node that depends on the input, its Lipschitz constant as a map of that.
        constants: per such node that is a call, what its rule returned.
        rows: one per such call.
        entries: per node of a constant tensor, its number of entries.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, measure: Measure, min_variance: float | None = None
    ) -> None:
        super().__init__(root, graph=graph)
        self.extra_traceback = False  # errors stay as they are
        self.measure, self.min_variance = measure, min_variance
        self.bounds: dict[fx.Node, float] = {}
        self.constants: dict[fx.Node, Constant] = {}
        self.rows: list[NodeBound] = []
        self.entries: dict[fx.Node, int] = {}
        self._folded = _batchnorm_pairs(root, graph)  # BatchNorm to the layer before it
        self._shapes: dict[fx.Node, tuple[int, ...]] = {}  # of what those layers read
        self._values: dict[fx.Node, list[Tensor]] = {}  # of those layers' tensors then

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and bound what it returns.

        Returns:
            Its value.
        """
        args: Any
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        depending = [node for node in _nodes_in((n.args, n.kwargs)) if node in self.bounds]
        before = [(tensor, tensor._version) for tensor in _tensors((args, kwargs))]
        result = self._run(n)
        if n.op == "placeholder":
            self.bounds[n] = 1.0
        elif n.op == "output" and depending:
            self.bounds[n] = self.bounds[depending[0]]
        elif not depending and isinstance(result, Tensor):
            self.entries[n] = result.numel()
        elif depending and not _is_fact(n, depending):
            inputs = tuple(tensor for node in depending for tensor in _tensors(self.env[node]))
            call = Call(_name(n), self._target(n), args, kwargs, inputs, result, self.measure, self.min_variance)
            with naming(call.name):
                self._bound(n, call, [self.bounds[node] for node in depending])
                self._check_writes(n, call, [tensor for tensor, version in before if tensor._version != version])
        return result

    def _run(self, n: fx.Node) -> Any:
        """Run one node.

        Returns:
            Its value.

        Raises:
            ValueError: where it cannot be computed for a batch of one.
        """
        try:
            return super().run_node(n)
        except Exception as error:  # the model itself ran on two inputs
            raise ValueError(
                f"{_name(n)}: it does not run on a batch of one input ({first_line(error)}); expected "
                "a model that takes batches of any size in eval mode"
            ) from error

    def _bound(self, n: fx.Node, call: Call, terms: Sequence[float]) -> None:
        """Bound a call by the bounds of its inputs; a layer with a BatchNorm behind it waits for that one."""
        _check_output(call)
        kind = str(call)
        if self._waits(n, call):
            self._shapes[n] = tuple(call.inputs[0].shape)
            self._values[n] = values_of([call.target])  # type: ignore[list-item]
            self.bounds[n] = terms[0]
            return
        if n in self._folded:
            layer = self._target(self._folded[n])
            kind, constant = f"{type(layer).__name__} + {kind}", self._pair(layer, call.target, self._folded[n])
        else:
            constant = _constant(call)
        self.bounds[n], self.constants[n] = _combined(constant, terms), constant
        self.rows.append(NodeBound(call.name, kind, constant, self.bounds[n]))

    def _waits(self, n: fx.Node, call: Call) -> bool:
        """Whether a layer's norm is left to the BatchNorm behind it, which must scale the axis that it writes."""
        reader = next((norm for norm, layer in self._folded.items() if layer is n), None)
        if reader is not None and as_operator(self._target(n)).axes == 0 and call.output.ndim != 2:
            del self._folded[reader]  # a Linear over several axes writes the last one, BatchNorm1d scales axis 1
            return False
        return reader is not None

    def _pair(self, layer: Any, norm: Any, node: fx.Node) -> Constant:
        """The norm of a layer and the BatchNorm that alone reads it, as one map.

        Returns:
            The constant.

        Raises:
            ValueError: when the layer was written to in between.
        """
        if not unchanged([layer], self._values[node]):
            raise ValueError(
                f"{type(layer).__name__} is written to before the BatchNorm behind it is called; expected weights "
                "that a forward leaves alone"
            )
        shape = self._shapes[node]
        return self.measure(nn.Sequential(layer, norm), shape[len(shape) - as_operator(layer).axes :])

    def _target(self, n: fx.Node) -> Any:
        return self.fetch_attr(str(n.target)) if n.op == "call_module" else n.target

    def _check_writes(self, n: fx.Node, call: Call, written: Sequence[Tensor]) -> None:
        """Refuse a call that writes to what is read again, unless each number it writes moves less than before.

        Raises:
            ValueError: where the bounds of other nodes would no longer hold.
        """
        if not written:
            return
        inputs = [self.bounds[node] for node in _nodes_in((n.args, n.kwargs)) if node in self.bounds]
        alone = len(written) == len(call.inputs) == 1 and call.depends(written[0])
        if alone and self.bounds[n] <= inputs[0]:
            return
        last = set(self.user_to_last_uses.get(n, []))
        places = {tensor.untyped_storage().data_ptr() for tensor in written}
        alive = [value for node, value in self.env.items() if node not in last]
        shared = any(t.untyped_storage().data_ptr() in places for value in alive for t in _tensors(value))
        if shared or any(not call.depends(tensor) for tensor in written):
            raise ValueError(
                f"{call} writes into a tensor that is used again, so that bounds found before no longer hold; "
                "expected a call that returns a new tensor. Leave out inplace=True, or the underscore"
            )


def _constant(call: Call) -> Constant:
    """What the operation's rule says, or the norm of its operator.

    Returns:
        The constant.

    Raises:
        TypeError: when it has neither.
    """
    rule = rule_for(call.target)
    if rule is not None:
        return rule(call)
    if isinstance(call.target, nn.Module) and has_operator(call.target):
        return operator_rule(call, as_operator(call.target).axes)
    if isinstance(call.target, nn.Module) and "forward" in vars(call.target):
        raise TypeError(
            f"{call} has a forward of its own, set on the instance, which torch.fx cannot see into; expected "
            "one that its class defines. Put what it computes into a class"
        )
    target = repr(call.target) if isinstance(call.target, str) else str(call)
    raise TypeError(
        f"{call} has no Lipschitz rule; expected an operation with one. Decorate a function from the call to its "
        f"constant with @spectralnorm.register_lipschitz_rule({target})"
    )


def _combined(constant: Constant, terms: Sequence[float]) -> float:
    """The bound of a call from its rule's constant and the bounds of its inputs.

    Returns:
        The bound.

    Raises:
        ValueError: when the rule returned no such constant.
    """
    parts = constant if isinstance(constant, tuple) else (constant,)
    numbers = all(isinstance(part, (int, float)) and part >= 0 for part in parts)
    if not numbers or (isinstance(constant, tuple) and len(parts) != len(terms)):
        raise ValueError(
            f"the rule returned {constant!r}; expected a number of at least 0, or a tuple of {len(terms)} of "
            "them, one per input"
        )
    if isinstance(constant, tuple):
        return sum_up(product_up(pair) for pair in zip(constant, terms, strict=True))
    return product_up([float(constant), root_sum_squares_up(terms)])


def _check_output(call: Call) -> None:
    """Raise unless a call returns real tensors, the batch of one on their first axis."""
    found = list(_tensors(call.output))
    if not found or not all(tensor.is_floating_point() for tensor in found):
        what = found[-1].dtype if found else type(call.output).__name__
        raise TypeError(f"{call} returns {what}; expected real floating-point tensors only")
    digits = max((torch.finfo(tensor.dtype).eps for tensor in call.inputs), default=1.0)
    for tensor in found:
        if torch.finfo(tensor.dtype).eps > digits:
            raise TypeError(f"{call} returns {tensor.dtype}, which rounds; expected as many digits as it reads.")
        if tensor.ndim == 0 or len(tensor) != 1:
            raise ValueError(
                f"{call} returns shape {tuple(tensor.shape)} for a batch of one; expected the batch on the first "
                "axis. Reshape with x.flatten(1) or x.view(x.size(0), ...)"
            )


def _batchnorm_pairs(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The BatchNorm calls, and the call of a linear layer before each whose output goes there and nowhere else."""
    modules = dict(root.named_modules())
    pairs = {}
    for n in graph.nodes:
        norm = modules[str(n.target)] if n.op == "call_module" else None
        before = n.args[0] if norm is not None and n.args else None
        if norm is None or not folds(norm) or norm.running_var is None or not isinstance(before, fx.Node):
            continue
        if len(before.args) + len(before.kwargs) != 1:  # a transposed convolution's output_size
            continue
        layer = modules[str(before.target)] if before.op == "call_module" else None
        if layer is None or len(before.users) > 1 or not has_operator(layer) or is_batchnorm(layer):
            continue
        if rule_for(layer) is None and isinstance(as_operator(layer), _FOLDABLE):
            pairs[n] = before
    return pairs


def _is_fact(n: fx.Node, depending: Sequence[fx.Node]) -> bool:
    """Whether a node, an argument of which depends on the input, does not itself."""
    if n.op == "call_method":
        as_another = (
            n.target in ("to", "type_as") and n.args[0] not in depending
        )  # a constant in the input's dtype
        return n.target in _FACTS or as_another
    attribute = n.target is getattr and n.args[1] in _ATTRIBUTES
    return n.op == "call_function" and (attribute or n.target in _FACTS_BY_FUNCTION)


def _name(n: fx.Node) -> str:
    """A module's name in the model, or the node's own."""
    return (str(n.target).removeprefix(MODEL).removeprefix(".") or "(model)") if n.op == "call_module" else n.name


def _nodes_in(arguments: Any) -> list[fx.Node]:
    """The nodes in a call's arguments, one as often as it occurs."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
