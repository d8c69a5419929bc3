"""`lipschitz`: a bound on the Lipschitz constant of a whole network."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, fx, nn

from spectralnorm.bound import Bound
from spectralnorm.measure import check_tolerance
from spectralnorm.network.interpretation import Interpretation
from spectralnorm.network.jacobian import jacobian_norm
from spectralnorm.network.layer_norms import LayerNorms
from spectralnorm.network.lipschitz_table import NodeBound, NodeTable
from spectralnorm.network.naming import first_line
from spectralnorm.network.plain import plain_copy, unwrapped
from spectralnorm.network.probe import check_input_shape, reading
from spectralnorm.network.rules.call import Measure
from spectralnorm.network.rules.registry import Constant
from spectralnorm.network.tracing import MODEL, trace
from spectralnorm.operators.base import undisturbed

__all__ = ["Analysis", "analyse", "lipschitz"]

_ROUNDING = 1e-8  # of the upper bound: more than a float64 backward pass rounds


@dataclass(frozen=True)
class Analysis:
    """A network's graph with the bounds of its nodes.

    Attributes:
        root: holds, as `model`, a copy of the model that computes the same from plain tensors, in eval mode.
        graph: the root's operations.
        bounds: Lipschitz constants of the nodes as maps of the input; nodes that do not depend on it are left out.
        constants: what the rules of the calls that depend on the input have returned.
        rows: a row per such call.
        entries: numbers of entries of the nodes that are constant tensors.
        example: the input it was run on, (1, *input_shape).
    """

    root: nn.Module
    graph: fx.Graph
    bounds: dict[fx.Node, float]
    constants: dict[fx.Node, Constant]
    rows: tuple[NodeBound, ...]
    entries: dict[fx.Node, int]
    example: Tensor

    @property
    def bound(self) -> float:
        """The network's constant; 0 where the output does not depend on the input."""
        return self.bounds.get(self.output, 0.0)

    @property
    def plain(self) -> nn.Module:
        """The copy of the model."""
        return self.root.get_submodule(MODEL)

    def exact(self) -> nn.Module:
        """A copy that computes in float64 from the same weights."""
        return copy.deepcopy(self.plain).double()

    @property
    def output(self) -> fx.Node:
        """The node whose value the model returns."""
        value = next(node for node in self.graph.nodes if node.op == "output").args[0]
        assert isinstance(value, fx.Node)  # noqa: S101 - `analyse` has checked that it is a tensor
        return value


def lipschitz(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    certified: bool = True,
    rtol: float = 1e-3,
    min_variance: float | None = None,
) -> Bound:
    """Bound the Lipschitz constant, in the L2 norm, of a network in eval mode, as a map of one input.

    |f(x) - f(x')| <= upper |x - x'| for all real x and x' of that shape, as the network acts in exact arithmetic
    with the weights it has; constants that a forward computes of tensors are what it computes, rounded. The bound
    follows the network's torch.fx graph: layers multiply, a sum of branches adds, a concatenation takes the root
    of the sum of squares, and each operation has the constant of its rule. A convolution (or a Linear before a
    BatchNorm1d) and the BatchNorm that alone reads it count as one map; a layer that is called twice counts twice.
    Sums and products are rounded up. An operation without a rule raises.

    The model is left as it was; it is run on one random batch of two. Threads take turns, as in `audit`.

    Args:
        model: any module of one input and one output that torch.fx can trace; parametrised layers count with the
            weights they have in eval mode.
        input_shape: one input's shape without batch, such as `(3, 32, 32)`.
        certified: whether to prove the layers' norms. If not, they are estimates from below, which are faster, and
            so is the result: nothing is guaranteed of it.
        rtol: relative tolerance of each layer's norm.
        min_variance: what you know the variance to be at least, wherever a LayerNorm, GroupNorm, InstanceNorm or
            RMSNorm (its mean square) divides by it. The bound then holds between inputs for which that is so; 0
            holds for all, and is of little use. Without it these layers are refused.

    Returns:
        The `Bound`: `upper` is the bound, and `value` the same (the estimate, with `upper` infinite, if not
        `certified`); `lower` is at most the norm of the Jacobian at one input: power iteration in float64, less
        1e-8 of `upper` for its rounding (0 if nothing is left). `print(bound.stats["nodes"])` shows where it comes
        from.

    Raises:
        TypeError: when `model` is not a module or holds TorchScript, or an operation has no rule, or none is
            possible.
        ValueError: when the model does not run on `input_shape`, torch.fx cannot trace it, it mixes the inputs of
            a batch, or an operation's options allow no constant.
        MemoryError: when a layer is too large for the method.

    Reference:
        Szegedy et al., "Intriguing Properties of Neural Networks" (ICLR 2014, arXiv 1312.6199), section 4.3, and
        Gouk, Frank, Pfahringer & Cree, "Regularisation of Neural Networks by Enforcing Lipschitz Continuity"
        (Machine Learning 2021, arXiv 1804.04368), for products of layers' norms.

    Example:
        >>> import torch, spectralnorm as sn
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Tanh())
        >>> net[0].weight.data = torch.diag(torch.tensor([3.0, 1.0]))
        >>> bound = sn.lipschitz(net, (2,))
        >>> 3 <= bound.upper <= 3.003
        True
    """
    started = time.perf_counter()
    found = analyse(model, input_shape, certified=certified, rtol=rtol, min_variance=min_variance)
    stats = {"nodes": NodeTable(found.rows), "input_shape": tuple(found.example.shape[1:])}
    upper = found.bound if certified else math.inf
    known = math.isfinite(upper) and not min_variance  # the example may lie where the bound says nothing
    lower = _below(found) if known else 0.0
    value = torch.tensor(found.bound, dtype=torch.float64)
    return Bound(value, lower, upper, "lipschitz", {**stats, "seconds": time.perf_counter() - started})


def _below(found: Analysis) -> float:
    """The constant from below; 0 where the network does not run in float64."""
    try:
        with undisturbed(found.example.device):
            norm = jacobian_norm(found.exact(), found.example.double())
    except (RuntimeError, TypeError):  # it makes float32 tensors itself
        return 0.0
    return max(0.0, min(norm - _ROUNDING * found.bound, found.bound))  # it rounds other constants than the model


def analyse(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    certified: bool = True,
    rtol: float = 1e-3,
    min_variance: float | None = None,
    measure_of: Callable[[nn.Module], Measure] | None = None,
) -> Analysis:
    """Trace a network and bound every node; arguments and errors as of `lipschitz`.

    `measure_of`, where given, takes the plain copy of the model that is traced, whose modules have the model's
    names, and returns what measures its layers, in place of `certified` and `rtol`.

    Returns:
        The graph with its bounds.

    Raises:
        TypeError: as `lipschitz`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module; wrap it in one")
    model = unwrapped(model)
    shape = check_input_shape(input_shape)
    check_tolerance(rtol)
    if not isinstance(certified, bool):
        raise TypeError(f"certified={certified!r} is neither True nor False; expected one of them.")
    _check_variance(min_variance)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    pair = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)).to(weight)
    _check_hooks(model)
    with reading(model), undisturbed(weight.device):
        expected = _run(model, pair, shape)
        root, graph = trace(plain_copy(model))
        measure: Measure = LayerNorms(certified=certified, rtol=float(rtol))
        if measure_of is not None:
            measure = measure_of(root.get_submodule(MODEL))
        interpretation = Interpretation(root, graph, measure, min_variance)
        output = interpretation.run(pair[:1].clone())
        _check_same(model, output, expected)
        _check_elsewhere(model, root, graph, pair)
    rows = tuple(interpretation.rows)
    known = interpretation
    return Analysis(root, graph, known.bounds, known.constants, rows, known.entries, pair[:1])


def _run(model: nn.Module, pair: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The model's output on a batch of two.

    Returns:
        (2, ...).

    Raises:
        ValueError: when it does not run, or returns something else.
    """
    try:
        output = model(pair.clone())
    except Exception as error:
        raise ValueError(
            f"input_shape={shape}: the model does not run on a batch of two such inputs ({first_line(error)}); "
            "expected one input's shape without batch, such as (3, 32, 32)"
        ) from error
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != 2:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"model: got {got} for a batch of two, expected one tensor with the batch on the first axis; wrap the "
            "model in a module that returns it"
        )
    if not output.numel():
        raise ValueError(
            f"input_shape={shape}: the model's output is empty, of shape {tuple(output.shape)}; expected one "
            "number at least. Give the size of the real inputs"
        )
    return output


def _check_same(model: nn.Module, output: Tensor, expected: Tensor) -> None:
    """Raise a ValueError unless the graph, given one input, returns what the model does for it in a batch."""
    if not torch.isfinite(expected).all():
        raise ValueError(
            f"model: {type(model).__name__} returns numbers that are not finite for a random input between 0 and "
            "1; expected numbers. Find the NaN in its weights or biases"
        )
    scale = float(expected.abs().amax()) if expected.numel() else 0.0
    slack = math.sqrt(torch.finfo(expected.dtype).eps) * scale
    same = isinstance(output, Tensor) and output.shape == expected[:1].shape
    if not (same and torch.allclose(output, expected[:1], rtol=0, atol=slack)):
        raise ValueError(
            f"model: {type(model).__name__} returns another output for an input in a batch of two than its graph "
            "does for the input alone; expected the same. It mixes the batch, draws random numbers, or has "
            "forward hooks that change values, which torch.fx does not see"
        )


def _check_elsewhere(model: nn.Module, root: nn.Module, graph: fx.Graph, like: Tensor) -> None:
    """Compare again at inputs of both signs, where a forward that asks what its input is may go another way."""
    one = 4 * torch.randn(like[:1].shape, generator=torch.Generator().manual_seed(1)).to(like)
    wide = torch.cat([one, -one])
    try:
        expected = model(wide.clone())
        outputs = [fx.Interpreter(root, graph=graph).run(each.clone()) for each in wide.split(1)]
    except Exception:  # it takes no such inputs
        return
    for row, output in enumerate(outputs):
        if torch.isfinite(expected).all():
            _check_same(model, output, expected[row:])


def _check_hooks(model: nn.Module) -> None:
    """Raise a ValueError for forward hooks, which may change values, but for PyTorch's own and ours."""
    everywhere = nn.modules.module
    found = [*everywhere._global_forward_hooks.values(), *everywhere._global_forward_pre_hooks.values()]
    for module in model.modules():
        found += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    for hook in found:
        home = (getattr(hook, "__module__", None) or type(hook).__module__).split(".")[0]
        if home not in ("torch", "spectralnorm"):
            name = getattr(hook, "__qualname__", type(hook).__name__)
            raise ValueError(
                f"model: it has a forward hook ({name}), which may change values and which torch.fx does not see; "
                "expected none. Remove it, and put what it computes into a forward"
            )


def _check_variance(min_variance: float | None) -> None:
    if min_variance is None:
        return
    if isinstance(min_variance, bool) or not isinstance(min_variance, Real):
        raise TypeError(f"min_variance={min_variance!r} is no number; expected one of at least 0, or None.")
    if not 0 <= min_variance < math.inf:
        raise ValueError(f"min_variance={min_variance!r} bounds no variance; expected a number of at least 0.")
