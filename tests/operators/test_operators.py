"""Operators: the layer's own map, its transpose, its symbol, its sizes, and the registry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from cases import CASES, Case
from reference import dense_matrix
from spectralnorm.operators import registry
from spectralnorm.operators.base import Operator
from spectralnorm.operators.conv import ConvOperator
from spectralnorm.operators.dense import DenseOperator


def operator(case: Case) -> Operator:
    """The case's operator in float64."""
    return sn.as_operator(case.layer().double())


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def matrix(op: Operator, size: tuple[int, ...]) -> Tensor:
    """The operator's matrix (outputs, inputs)."""
    shape = op.input_shape(size)
    with torch.no_grad():
        return op.apply(torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)).flatten(1).T


@pytest.mark.parametrize("case", CASES, ids=str)
def test_apply_is_the_layer_without_bias(case: Case) -> None:
    op, layer = operator(case), case.layer().double()
    x = random(2, *op.input_shape(case.size))
    with torch.no_grad():
        layer.bias.zero_()
        torch.testing.assert_close(op.apply(x), layer(x))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_adjoint_is_the_transpose(case: Case) -> None:
    op = operator(case)
    dense = matrix(op, case.size)
    x = random(3, *op.input_shape(case.size))
    with torch.no_grad():
        y = random(*op.apply(x).shape) * dense.abs().max().clamp_min(1e-300)
        back = op.adjoint(y, case.size)
        torch.testing.assert_close(back.flatten(1), y.flatten(1) @ dense)
        left, right = (op.apply(x) * y).sum(), (x * back).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_apply_and_adjoint_keep_the_dtype_of_their_input(case: Case) -> None:
    op = sn.as_operator(case.layer())
    for dtype in (torch.float32, torch.float64):
        y = op.apply(torch.zeros(1, *op.input_shape(case.size), dtype=dtype))
        assert y.dtype == dtype
        assert op.adjoint(y, case.size).dtype == dtype


def dft_grid(points: tuple[int, ...]) -> Tensor:
    axes = [2 * math.pi * torch.arange(n, dtype=torch.float64) / n for n in points]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(points))


def copies(op: Operator, size: tuple[int, ...]) -> int:
    """How often each singular value of a block occurs: for a pointwise kernel, once per cell that is read."""
    if not isinstance(op, ConvOperator) or op.padding_mode == "circular":
        return 1
    reads = zip(size, op.output_size(size), op.padding, op.stride, strict=True)
    return math.prod(sum(0 <= i * s - left < n for i in range(m)) for n, m, (left, _), s in reads)


CLOSED = [case for case in CASES if operator(case).grid(case.size) is not None]


@pytest.mark.parametrize("case", CLOSED, ids=str)
def test_symbol_on_its_grid_has_exactly_the_singular_values(case: Case) -> None:
    op = operator(case)
    symbol, points = op.grid(case.size)
    w = dft_grid(points) if points else torch.zeros(1, 0, dtype=torch.float64)
    with torch.no_grad():
        blocks = torch.linalg.svdvals(symbol.at(w)).flatten().repeat(copies(op, case.size))
    dense = torch.linalg.svdvals(dense_matrix(case.layer(), case.size))
    found, expected = blocks.sort(descending=True).values, dense.sort(descending=True).values
    common = min(len(found), len(expected))
    tolerance = 1e-12 * float(expected[0])
    torch.testing.assert_close(found[:common], expected[:common], rtol=0, atol=tolerance)
    for rest in (found[common:], expected[common:]):  # what one of the two has more of is zero
        assert (rest <= tolerance).all()


def test_closed_form_exactly_where_there_is_one() -> None:
    for case in CASES:
        layer, n = case.layer(), case.size
        if isinstance(layer, nn.Linear):
            closed = True
        elif layer.padding_mode == "zeros":
            closed = set(layer.kernel_size) == {1} and matrix(operator(case), n).any().item()
        else:
            out = layer(torch.zeros(1, layer.in_channels, *n)).shape[2:]
            closed = all(a == b * s for a, b, s in zip(n, out, layer.stride, strict=True))
        assert (case in CLOSED) == closed, case
    assert len(CLOSED) > 20


SIZES = {1: [(n,) for n in range(9)], 2: [(n, m) for n in range(6) for m in (0, 1, 3, 9)]}
SIZES[3] = [(n, m, 4) for n in range(4) for m in (1, 2, 5)]


@pytest.mark.parametrize("case", [c for c in CASES if c.size], ids=str)
def test_a_size_is_refused_exactly_when_pytorch_refuses_it(case: Case) -> None:
    layer = case.layer()
    op = sn.as_operator(layer)
    for size in SIZES[op.axes]:
        try:
            with torch.no_grad():
                accepted = layer(torch.zeros(1, *op.input_shape(size))).numel() > 0
        except (RuntimeError, ValueError):
            accepted = False
        if accepted:
            assert op.check_size(size) == size
            assert op.apply(torch.zeros(1, *op.input_shape(size))).shape[2:] == op.output_size(size)
        else:
            with pytest.raises(ValueError, match="input_shape="):
                op.check_size(size)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_interior_is_an_output_that_reads_every_tap(case: Case) -> None:
    layer = case.layer()
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, layer.weight.numel() + 1).reshape(layer.weight.shape))
    rows = dense_matrix(layer, case.size)
    reads = (rows[: rows.shape[0] // getattr(layer, "groups", 1)] != 0).sum(1)  # cells read, first group
    every = bool((reads == layer.weight[0].numel()).any())
    claimed = sn.as_operator(layer).has_interior(case.size)
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        assert claimed == every
    else:  # a wrapped kernel may happen to read distinct cells
        assert every or not claimed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_flattened_is_what_pytorch_flattens(case: Case) -> None:
    layer = case.layer()
    assert torch.equal(sn.as_operator(layer).flattened(), layer.weight.flatten(1))


# ---------------------------------------------------------------------- registry


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of the test are forgotten."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


class Scaled(nn.Module):
    """A user's layer: y = factor * x, feature by feature."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor)


def test_an_unknown_layer_says_how_to_register_it() -> None:
    with pytest.raises(TypeError) as error:
        sn.spectral_norm(Scaled(torch.ones(2)))
    for part in ("Scaled", "Linear", "Conv2d", "@spectralnorm.register_operator(Scaled)"):
        assert part in str(error.value)


@pytest.mark.usefixtures("clean_registry")
def test_a_users_layer_works_after_one_decorated_function() -> None:
    @sn.register_operator(Scaled)
    def scaled(layer: Scaled) -> Operator:
        return sn.as_operator(torch.diag(layer.factor))

    layer = Scaled(torch.tensor([1.0, -3.0, 2.0]))
    for method in ("auto", "tracked", "exact", "power", "flattened"):
        shape = () if method == "power" else None
        assert float(sn.spectral_norm(layer, method=method, input_shape=shape)) == pytest.approx(3, rel=1e-3)
    sn.spectral_norm(layer, method="exact").value.backward()
    torch.testing.assert_close(layer.factor.grad, torch.tensor([0.0, -1.0, 0.0]))


@pytest.mark.usefixtures("clean_registry")
def test_a_subclass_is_its_base_until_it_is_registered_itself() -> None:
    class Wide(nn.Linear):
        pass

    class Wider(Wide):
        pass

    layer, base = Wider(3, 2), nn.Linear(3, 2)
    assert isinstance(sn.as_operator(layer), DenseOperator)

    @sn.register_operator(Wide)
    def wide(layer: Wide) -> Operator:
        return DenseOperator(2 * layer.weight)

    assert torch.equal(sn.as_operator(layer).weight, 2 * layer.weight)
    assert torch.equal(sn.as_operator(base).weight, base.weight)


@pytest.mark.parametrize("layer_type", [int, "Linear", nn.Linear(1, 1), None])
def test_only_module_classes_can_be_registered(layer_type: object) -> None:
    with pytest.raises(TypeError, match=r"expected a subclass of torch\.nn\.Module, got"):
        sn.register_operator(layer_type)


def test_has_operator() -> None:
    assert registry.has_operator(nn.Conv2d(1, 1, 1))
    assert not registry.has_operator(nn.ReLU())


def test_a_lazy_layer_says_that_it_is_not_initialised() -> None:
    with pytest.raises(ValueError, match=r"LazyLinear\.weight is not initialised.*run one batch"):
        sn.spectral_norm(nn.LazyLinear(3))


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_a_padding_without_an_operator_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"padding_mode='{mode}' has no operator; expected 'zeros' or 'circular'"):
        sn.as_operator(nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode))
