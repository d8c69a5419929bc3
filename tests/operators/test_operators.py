"""Operators: the layer's own map, its transpose, its symbol, its sizes, and the registry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from cases import CASES, Case
from reference import dense_matrix, is_transposed
from spectralnorm.operators import registry
from spectralnorm.operators.base import Operator
from spectralnorm.operators.conv import ConvOperator
from spectralnorm.operators.dense import DenseOperator
from spectralnorm.operators.transposed import TransposedConvOperator


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
    if isinstance(op, TransposedConvOperator):
        shows = zip(size, op.output_size(size), op.padding, op.stride, strict=True)
        return math.prod(sum(0 <= i * s - p < m for i in range(n)) for n, m, p, s in shows)
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
        elif layer.padding_mode == "circular":
            out = layer(torch.zeros(1, layer.in_channels, *n)).shape[2:]
            closed = all(a == b * s for a, b, s in zip(n, out, layer.stride, strict=True))
        else:  # a pointwise map of cells that are no copies
            plain = layer.padding_mode == "zeros" or not any(layer.padding)
            closed = set(layer.kernel_size) == {1} and plain and matrix(operator(case), n).any().item()
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
def test_reads_all_is_an_output_that_reads_every_tap(case: Case) -> None:
    layer = case.layer()
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, layer.weight.numel() + 1).reshape(layer.weight.shape))
    rows = dense_matrix(layer, case.size)
    groups = getattr(layer, "groups", 1)
    taps = layer.weight[: layer.in_channels // groups, 0] if is_transposed(layer) else layer.weight[0]
    reads = (rows[: rows.shape[0] // groups] != 0).sum(1)  # cells read, first group
    every = bool((reads == taps.numel()).any())
    claimed = sn.as_operator(layer).reads_all(case.size)
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        assert claimed == every
    else:  # a kernel on copies may happen to read distinct cells
        assert every or not claimed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_flattened_is_what_pytorch_flattens(case: Case) -> None:
    layer = case.layer()
    outputs_first = layer.weight.transpose(0, 1) if is_transposed(layer) else layer.weight
    assert torch.equal(sn.as_operator(layer).flattened(), outputs_first.flatten(1))


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
    for part in ("Scaled", "Linear", "Conv1d-3d", "@spectralnorm.register_operator(Scaled)"):
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


REFUSED: list[tuple[nn.Module, type[Exception], str]] = [
    (nn.Embedding(3, 2), TypeError, "Embedding looks rows up by number.*no linear map.*measure its weight"),
    (nn.EmbeddingBag(3, 2), TypeError, "EmbeddingBag looks rows up"),
    (nn.LayerNorm(3), TypeError, "LayerNorm divides by statistics of its own input.*not linear"),
    (nn.GroupNorm(1, 3), TypeError, "GroupNorm divides by statistics"),
    (nn.RMSNorm(3), TypeError, "RMSNorm divides by statistics"),
    (nn.InstanceNorm2d(3, affine=True), TypeError, "InstanceNorm2d divides by statistics"),
    (nn.LazyConvTranspose2d(3, 3), ValueError, r"LazyConvTranspose2d\.weight is not initialised.*run one batch"),
    (nn.LazyBatchNorm2d(), ValueError, r"LazyBatchNorm2d\.weight is not initialised.*run one batch"),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d()), ValueError, "not initialised.*run one batch"),
    (nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)), ValueError, "not initialised.*run one batch"),
    (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), TypeError, "ReLU is not a layer spectralnorm knows"),
]


@pytest.mark.parametrize(("layer", "error", "reason"), REFUSED, ids=lambda x: type(x).__name__)
def test_a_layer_without_operator_says_why(layer: nn.Module, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        sn.as_operator(layer)


@pytest.mark.filterwarnings("ignore")  # of torch, that its quantisation will move
def test_a_quantised_layer_says_what_to_measure_instead() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})[0]
    with pytest.raises(TypeError, match=r"holds integers with scales.*measure its weight\(\)\.dequantize\(\)"):
        sn.as_operator(quantised)
    assert float(sn.spectral_norm(quantised.weight().dequantize(), method="exact")) > 0
