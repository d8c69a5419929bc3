"""Lipschitz bounds of whole networks: the rules put together, and the errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from messages import check_says, complaint
from nets import conv_net
from reference import dense_norm, size_free_norm
from spectralnorm.network.rules import registry
from spectralnorm.training.models import build


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


def diagonal(*entries: float) -> nn.Linear:
    linear = nn.Linear(len(entries), len(entries), bias=False)
    linear.weight.data = torch.diag(torch.tensor(entries, dtype=torch.float32))
    return linear


def rows(bound: sn.Bound) -> dict[str, Any]:
    return {row.name: row for row in bound.stats["nodes"]}


def test_layers_multiply() -> None:
    bound = sn.lipschitz(nn.Sequential(diagonal(3, 1), nn.Tanh(), diagonal(2, 1)), (2,))
    assert 6 <= bound.upper <= 6 * (1 + 1e-6)
    assert bound.certified
    assert 0 < bound.lower <= bound.upper == float(bound)
    assert bound.method == "lipschitz"
    assert rows(bound)["2"].constant == pytest.approx(2)


def test_residuals_add_and_a_layer_called_twice_counts_twice() -> None:
    bound = sn.lipschitz(Function(lambda x, f: x + f(torch.relu(f(x))), diagonal(2, 1)), (2,))
    assert 5 <= bound.upper <= 5 * (1 + 1e-6)
    assert bound.lower == pytest.approx(5, rel=1e-6)


def test_branches_meet_the_norm_of_the_concatenated_map() -> None:
    bound = sn.lipschitz(
        Function(lambda x, f, g: torch.cat([f(x), g(x)], 1), diagonal(3, 3), diagonal(4, 4)), (2,)
    )
    assert bound.lower == pytest.approx(5, rel=1e-6)
    assert 5 <= bound.upper <= 5 * (1 + 1e-6)


def test_a_convolution_and_its_batchnorm_are_one_map() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20)
    nn.init.uniform_(norm.running_var, 0.1, 2)
    pair = nn.Sequential(conv, norm).eval()
    bound = sn.lipschitz(pair, (3, 20, 20))
    exact = size_free_norm(pair)
    assert exact * (1 - 1e-3) <= bound.upper <= exact * (1 + 2e-3)
    assert [row.operation for row in bound.stats["nodes"]] == ["Conv2d + BatchNorm2d"]
    read_twice = Function(
        lambda x, c, n: c(x) + n(c(x)), conv, norm
    )  # two calls: one is read by the BatchNorm alone
    assert sn.lipschitz(read_twice, (3, 20, 20)).stats["nodes"][0].operation == "Conv2d"
    shared = sn.lipschitz(Function(lambda x, c, n: (lambda y: y + n(y))(c(x)), conv, norm), (3, 20, 20))
    assert [row.operation for row in shared.stats["nodes"]] == ["Conv2d", "BatchNorm2d", "add"]


def test_a_linear_layer_folds_a_batchnorm_of_its_features_only() -> None:
    torch.manual_seed(0)
    pair = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    pair[1].running_var.data = torch.tensor([0.1, 1.0, 2.0, 3.0])
    weight = pair[0].weight.detach().double()
    matrix = weight * (pair[1].running_var.double() + 1e-5).rsqrt()[:, None]
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    assert sn.lipschitz(pair, (4,)).upper == pytest.approx(exact, rel=1e-6)
    both = float(torch.linalg.matrix_norm(weight, 2)) / math.sqrt(0.1 + 1e-5)
    assert sn.lipschitz(pair, (4, 4)).upper == pytest.approx(both, rel=1e-6)  # scales the other axis


def test_small_layers_have_their_norm_at_the_size_they_see() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    small, free = dense_norm(conv, (4, 4)), size_free_norm(conv)
    assert small < 0.99 * free
    assert sn.lipschitz(conv, (1, 4, 4)).upper == pytest.approx(small, rel=1e-6)
    large = sn.lipschitz(conv, (1, 40, 40)).upper
    assert free * (1 - 1e-9) <= large <= free * (1 + 2e-3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_copies_adds_what_it_adds_at_the_size(mode: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 5, padding=2, stride=2, padding_mode=mode)
    bound = sn.lipschitz(conv, (4, 18, 18))
    assert dense_norm(conv, (18, 18)) <= bound.upper <= 3 * size_free_norm(conv) * (1 + 1e-3)


def test_normalised_networks_stand_as_they_are() -> None:
    net = sn.spectral_normalize(conv_net())
    net.train()
    state = copy.deepcopy(net.state_dict())
    bound = sn.lipschitz(net, (3, 8, 8))
    assert 0.1 < bound.upper <= 1 + 2e-3
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    folded = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    sn.spectral_normalize(folded, fold_batchnorm=True)
    assert sn.lipschitz(folded, (3, 16, 16)).upper <= 1 + 2e-3
    torch.nn.utils.parametrizations.weight_norm(plain := nn.Linear(3, 3))
    exact = float(torch.linalg.matrix_norm(plain.weight.detach().double(), 2))
    assert sn.lipschitz(plain, (3,)).upper == pytest.approx(exact, rel=1e-6)


def test_residual_networks() -> None:
    torch.manual_seed(0)
    net = build("resnet20", (1, 8, 8), 10)
    bound = sn.lipschitz(net, (1, 8, 8), rtol=1e-2)
    named = rows(bound)
    branch, around = named["stage1.0.branch.bn2"].bound, named["relu"].bound
    assert named["add"].bound == pytest.approx(branch + around)
    assert "stage1.0.branch.bn2" in str(bound.stats["nodes"])


def test_estimates_say_that_they_are() -> None:
    bound = sn.lipschitz(nn.Sequential(diagonal(3, 1), nn.ReLU()), (2,), certified=False)
    assert float(bound) == pytest.approx(3, rel=1e-3)
    assert (bound.lower, bound.upper, bound.certified) == (0, math.inf, False)


def test_outputs_that_ignore_the_input_and_zero_weights() -> None:
    assert sn.lipschitz(Function(lambda x: x * 0), (2,)).upper == 0
    zero = nn.Linear(3, 3)
    nn.init.zeros_(zero.weight)
    bound = sn.lipschitz(zero, (3,))
    assert (bound.lower, bound.upper, bound.certified) == (0, 0, True)


def test_half_precision_and_float64_weights() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        net = nn.Sequential(diagonal(3, 1), nn.ReLU()).to(dtype)
        assert sn.lipschitz(net, (2,)).upper == pytest.approx(3, rel=1e-6)


def test_arguments_with_defaults_and_attributes_of_shapes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = diagonal(2, 2, 2, 2)
            self.scale = nn.Parameter(torch.tensor(-3.0))
            self.register_buffer("mean", torch.full((1, 1, 2, 2), 0.5))

        def forward(self, x: Tensor, double: bool = False) -> Tensor:
            batch = x.shape[0]
            x = (x - self.mean).reshape(batch, -1)
            return self.scale * self.fc(x) if not double else x

    assert sn.lipschitz(Net(), (1, 2, 2)).upper == pytest.approx(6, rel=1e-6)


def test_a_rule_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x if x.sum() > 0 else x

    message = complaint(ValueError, lambda: sn.lipschitz(Branches(), (2,)))
    check_says(message, "torch.fx cannot trace Branches", "register_lipschitz_rule")
    seen = []

    @sn.register_lipschitz_rule(Branches)
    def rule(call: Any) -> float:
        seen.append(call.inputs[0].shape)
        return 2.0

    assert sn.lipschitz(nn.Sequential(Branches(), nn.ReLU()), (2,)).upper == 2
    assert seen == [(1, 2)]


def test_a_rule_for_a_function_a_tuple_and_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    net = Function(lambda x: torch.erf(x))
    check_says(complaint(TypeError, lambda: sn.lipschitz(net, (2,))), "erf", "no Lipschitz rule", "register")
    sn.register_lipschitz_rule(torch.erf, "erf")(lambda _: 2 / math.pi**0.5)
    assert sn.lipschitz(net, (2,)).upper == pytest.approx(1.1284, rel=1e-4)
    sn.register_lipschitz_rule(torch.erf)(lambda _: -1.0)
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2,))), "erf", "-1.0", "at least 0")
    sn.register_lipschitz_rule(torch.erf)(lambda _: (1.0, 2.0))
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2,))), "(1.0, 2.0)", "tuple of 1")
    check_says(complaint(TypeError, lambda: sn.register_lipschitz_rule(nn.ReLU())), "Pass the class")
    check_says(complaint(TypeError, lambda: sn.register_lipschitz_rule()), "no target")


def test_subclasses_with_a_forward_of_their_own_are_traced() -> None:
    class Doubled(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Squared(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight @ self.weight)

    assert sn.lipschitz(Doubled(), (2,)).upper == 2
    squared = Squared(2, 2)
    squared.weight.data = torch.diag(torch.tensor([3.0, 1.0]))
    assert sn.lipschitz(squared, (2,)).upper == pytest.approx(9, rel=1e-6)


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], type[Exception], tuple[str, ...]]] = {
    "hardshrink": (nn.Hardshrink, (2,), TypeError, ("jumps",)),
    "threshold": (lambda: nn.Threshold(0.1, 20), (2,), TypeError, ("jumps",)),
    "glu": (nn.GLU, (2,), TypeError, ("multiplies two parts",)),
    "softplus": (lambda: nn.Softplus(threshold=2), (2,), ValueError, ("threshold=2", "at least 20")),
    "celu": (lambda: nn.CELU(-1.0), (2,), ValueError, ("alpha=-1.0",)),
    "layernorm": (lambda: nn.LayerNorm(2), (2,), TypeError, ("min_variance",)),
    "batch statistics": (
        lambda: nn.BatchNorm1d(2, track_running_stats=False),
        (2,),
        ValueError,
        ("batch of one",),
    ),
    "attention": (
        lambda: Function(lambda x: nn.functional.scaled_dot_product_attention(x, x, x)),
        (3, 4),
        TypeError,
        ("not Lipschitz", "Kim"),
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, batch_first=True), (3, 4), TypeError, ("Kim",)),
    "lstm": (
        lambda: Function(lambda x, m: m(x)[0], nn.LSTM(2, 2, batch_first=True)),
        (3, 2),
        TypeError,
        ("LSTM",),
    ),
    "square": (lambda: Function(lambda x: x**2), (2,), TypeError, ("unbounded slope",)),
    "product": (lambda: Function(lambda x: x * x.sigmoid()), (2,), TypeError, ("both depend",)),
    "quotient": (lambda: Function(lambda x: 1 / x), (2,), TypeError, ("divides by a value",)),
    "by zero": (lambda: Function(lambda x: x / 0.0), (2,), ValueError, ("expected none that is 0",)),
    "odd p": (lambda: nn.LPPool1d(3, 2), (1, 4), ValueError, ("norm_type=3",)),
    "bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 4, 4), ValueError, ("negative weights",)),
    "indices": (
        lambda: Function(lambda x, p: p(x)[0], nn.MaxPool1d(2, return_indices=True)),
        (1, 4),
        TypeError,
        ("int64",),
    ),
    "cat of the batch": (lambda: Function(lambda x: torch.cat([x, x])[:2]), (2,), ValueError, ("batch",)),
    "mean of the batch": (lambda: Function(lambda x: x - x.mean(0, keepdim=True)), (2,), ValueError, ("axis 0",)),
    "softmax of the batch": (lambda: nn.Softmax(0), (2,), ValueError, ("axis 0",)),
    "transposed": (lambda: Function(lambda x: x.transpose(0, 1).transpose(0, 1)), (2,), ValueError, ("axis",)),
    "squeezed": (lambda: Function(lambda x: x.squeeze() * 1), (2, 3), ValueError, ("squeeze", "first axis")),
    "indexed": (lambda: Function(lambda x: x[:, [0, 0, 0]]), (2,), TypeError, ("getitem", "slices")),
    "rounded": (lambda: Function(lambda x: x.to(torch.bfloat16).float()), (2,), TypeError, ("rounds",)),
    "item": (lambda: Function(lambda x: x.flatten(1).unbind(1)[0].round()), (2,), TypeError, ("steps",)),
    "active dropout": (
        lambda: Function(lambda x: nn.functional.dropout(x, 0.0)),
        (2,),
        TypeError,
        ("training=True",),
    ),
    "product matrix": (lambda: Function(lambda x: x @ x), (3, 3), TypeError, ("matmul", "constant")),
    "tuples": (
        lambda: Function(lambda x: torch.cat(x.chunk(2, 1) + x.chunk(2, 1), 1)),
        (4,),
        TypeError,
        ("tuples",),
    ),
    "repeated": (lambda: Function(lambda x: torch.cat(x.chunk(2, 1) * 2, 1)), (4,), TypeError, ("tuples",)),
    "einsum": (
        lambda: Function(lambda x: torch.einsum("bi,ij->bj", x, torch.eye(2))),
        (2,),
        TypeError,
        ("torch.matmul", "constant"),
    ),
    "rolled batch": (lambda: Function(lambda x: torch.roll(x, 1, 0)), (2,), ValueError, ("roll", "axis 0")),
    "flipped batch": (lambda: Function(lambda x: x.flip(0, 1)), (2,), ValueError, ("flip", "axis 0")),
    "moved batch": (lambda: Function(lambda x: x.movedim(1, 0)), (2, 3), ValueError, ("movedim", "first axis")),
    "unknown": (lambda: Function(lambda x: torch.special.i0(x)), (2,), TypeError, ("no Lipschitz rule",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_constant_is_refused_with_the_reason(name: str) -> None:
    make, shape, error, parts = REFUSED[name]
    check_says(complaint(error, lambda: sn.lipschitz(make().eval(), shape)), *parts)


def test_errors_name_the_layer() -> None:
    net = nn.Sequential(nn.Sequential(nn.ReLU(), nn.GLU()))
    check_says(complaint(TypeError, lambda: sn.lipschitz(net, (4,))), "0.1: GLU")
    bad = nn.Sequential(nn.Linear(2, 2))
    bad[0].weight.data[0, 0] = math.nan
    check_says(complaint(ValueError, lambda: sn.lipschitz(bad, (2,))), "NaN")


def test_wrong_arguments() -> None:
    net = nn.Linear(2, 2)
    check_says(complaint(TypeError, lambda: sn.lipschitz(torch.eye(2), (2,))), "Tensor", "Module")
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, 2)), "input_shape=2")
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (3,))), "does not run", "(3,)")
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2,), rtol=0)), "rtol=0")
    check_says(complaint(TypeError, lambda: sn.lipschitz(net, (2,), certified=1)), "certified=1")
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2,), min_variance=-1)), "min_variance=-1")
    check_says(complaint(TypeError, lambda: sn.lipschitz(net, (2,), min_variance="1")), "min_variance='1'")
    two = Function(lambda x: (x, x))
    check_says(complaint(ValueError, lambda: sn.lipschitz(two, (2,))), "tuple", "one tensor")


def test_random_numbers_and_a_mixed_batch_are_seen() -> None:
    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.flip(0)

    check_says(complaint(ValueError, lambda: sn.lipschitz(Mixes(), (2,))), "flip", "axis 0 holds the batch")
    check_says(
        complaint(ValueError, lambda: sn.lipschitz(Function(lambda x: x / x.size(0)), (2,))),
        "batch",
    )


def test_writing_in_place_where_the_old_value_is_read_again() -> None:
    def grows(x: Tensor) -> Tensor:
        y = 1 * x
        return y.mul_(3) + y

    def shrinks(x: Tensor) -> Tensor:
        y = 1 * x
        return nn.functional.relu(y, inplace=True) + y

    check_says(complaint(ValueError, lambda: sn.lipschitz(Function(grows), (2,))), "mul_", "used again")
    assert sn.lipschitz(Function(shrinks), (2,)).upper == 2
    assert sn.lipschitz(Function(lambda x: (1 * x).mul_(3)), (2,)).upper == pytest.approx(3)


def test_a_model_that_cannot_be_copied() -> None:
    net = nn.Linear(2, 2)
    net.lock = (n for n in range(3))
    check_says(complaint(ValueError, lambda: sn.lipschitz(net, (2,))), "cannot be copied")
