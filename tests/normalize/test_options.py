"""Options of `spectral_normalize`: targets by layer, budgets, orthogonal starts, constant norms, and `step`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import spectralnorm as sn
from messages import check_says, complaint
from nets import (
    LAYERS,
    assert_same,
    batchnorm_net,
    conv_net,
    images,
    normalisation,
    original,
    sgd,
    snapshot,
    train_step,
    trained,
)
from reference import size_free_norm


def norms(net: nn.Module) -> list[float]:
    return [size_free_norm(net[i]) for i in LAYERS]


# ---------------------------------------------------------------------- targets by layer

TARGETS: dict[str, tuple[dict[str, float], list[float]]] = {
    "names": ({"0": 0.5, "2": 2.0, "5": 3.0}, [0.5, 2.0, 3.0]),
    "a name, and the rest": ({"2": 2.0, "*": 0.5}, [0.5, 2.0, 0.5]),
    "the first that fits": ({"*": 0.5, "2": 2.0}, [0.5, 0.5, 0.5]),
    "ranges": ({"[0-2]": 2, "?": 3}, [2.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_targets_by_name_and_pattern(kind: str, mode: str) -> None:
    """sngan_projection#14: layers of one model want different norms."""
    target, expected = TARGETS[kind]
    net = conv_net()
    with torch.no_grad():
        for i in LAYERS:
            net[i].weight.mul_(20.0)
    sn.spectral_normalize(net, target=target, mode=mode)
    assert norms(net) == pytest.approx(expected, rel=1e-3)
    assert [normalisation(net[i]).target for i in LAYERS] == expected


def test_patterns_reach_into_blocks_pairs_and_attention() -> None:
    """deel-torchlip#47: a folded pair goes by the name of its layer, attention by that of its tensor."""
    net = nn.ModuleDict({"body": batchnorm_net(), "mix": nn.MultiheadAttention(4, 2)})
    pairs = [("body.0", "body.1"), ("body.3", "body.4")]
    target = {"body.7": 3.0, "body.*": 2.0, "mix.in_*": 0.5, "mix.out_proj": 0.7}
    sn.spectral_normalize(net, target=target, pairs=pairs).eval()
    body, mix = net["body"], net["mix"]
    found = [size_free_norm(part) for part in (body[0:2], body[3:5], body[7], mix.out_proj)]
    assert found == pytest.approx([2.0, 2.0, 3.0, 0.7], rel=1e-3)
    thirds = [float(torch.linalg.matrix_norm(part.detach(), 2)) for part in mix.in_proj_weight.split(4)]
    assert max(thirds) == pytest.approx(0.5, rel=1e-3)


def test_a_single_layer_has_no_name_but_fits_a_star() -> None:
    layer = sn.spectral_normalize(nn.Linear(4, 3), target={"*": 2.0})
    assert size_free_norm(layer) == pytest.approx(2.0, rel=1e-3)


BAD_TARGETS: dict[str, tuple[dict[Any, Any], tuple[str, ...]]] = {
    "a layer without": ({"0": 1.0, "2": 1.0}, ("'5' has none", "'*': 1.0")),
    "none at all": ({}, ("'0' has none",)),
    "a pattern that fits nothing": ({"conv*": 1.0, "*": 1.0}, ("'conv*' fits no layer", "0, 2, 5")),
    "zero": ({"0": 0.0, "*": 1.0}, ("target['0']=0.0", "above 0")),
    "NaN": ({"*": math.nan}, ("target['*']=nan", "finite")),
    "a key that is a number": ({0: 1.0}, ("key 0", "names or patterns")),
    "text": ({"*": "1"}, ("target['*']='1'", "finite number")),
}


@pytest.mark.parametrize("bad", BAD_TARGETS)
def test_bad_targets(bad: str) -> None:
    target, parts = BAD_TARGETS[bad]
    net = conv_net()
    check_says(complaint(ValueError, lambda: sn.spectral_normalize(net, target=target)), *parts)
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


# ---------------------------------------------------------------------- budgets


@pytest.mark.parametrize("budget", [1.0, 8.0, 0.001, 3])
def test_a_budget_is_shared_equally(budget: float) -> None:
    """LNets#6, deel-lip#93: the product of the layers' norms bounds the network's."""
    net = sn.spectral_normalize(conv_net(), budget=budget)
    found = norms(net)
    assert found == pytest.approx([budget ** (1 / 3)] * 3, rel=1e-3)
    assert math.prod(found) == pytest.approx(budget, rel=3e-3)


def test_the_product_of_certified_norms_stays_within_the_budget() -> None:
    """deel-lip#93."""
    net = sn.remove_spectral_norm(sn.spectral_normalize(conv_net(), budget=2.0), certified=True)
    assert math.prod(sn.spectral_norm(net[i], certified=True).upper for i in LAYERS) <= 2.0 * (1 + 1e-12)


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, math.inf, "2", True])
def test_bad_budgets(budget: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), budget=budget))
    check_says(message, f"budget={budget!r}", "finite number above 0")


@pytest.mark.parametrize("target", [torch.ones(2), np.ones(2), [1.0]])
def test_a_target_that_is_no_number_beside_a_budget(target: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), target=target, budget=2.0))
    check_says(message, "target=", "finite number")


@pytest.mark.parametrize("target", [2.0, {"*": 1.0}])
def test_a_budget_beside_a_target(target: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), target=target, budget=2.0))
    check_says(message, "target=", "budget=2.0", "one of them")


# ---------------------------------------------------------------------- orthogonal starts

LAYERS_TO_START: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 6),
    "wide linear": lambda: nn.Linear(9, 4),
    "tall linear": lambda: nn.Linear(4, 9),
    "conv": lambda: nn.Conv2d(5, 5, 3, padding=1),
    "even kernel": lambda: nn.Conv1d(4, 4, 4),
    "groups": lambda: nn.Conv2d(6, 6, 3, groups=3, padding=1),
    "depthwise": lambda: nn.Conv2d(5, 5, 3, groups=5, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, padding=1),
    "transposed with groups": lambda: nn.ConvTranspose1d(6, 6, 4, stride=2, groups=2),
}


@pytest.mark.parametrize("kind", LAYERS_TO_START)
@pytest.mark.parametrize("target", [1.0, 2.0])
def test_an_orthogonal_start_keeps_every_length_that_it_can(kind: str, target: float) -> None:
    """sngan_projection#14: one tap, an orthogonal matrix there; all singular values are the target."""
    layer = sn.spectral_normalize(LAYERS_TO_START[kind](), init="orthogonal", target=target)
    weight = layer.weight.detach()
    taps = weight.flatten(2).norm(dim=(0, 1)) if weight.ndim > 2 else weight.norm()[None]
    assert int((taps > 0).sum()) == 1
    matrix = weight if weight.ndim == 2 else weight.flatten(2)[..., taps.argmax()]
    for block in matrix.chunk(getattr(layer, "groups", 1)):
        torch.testing.assert_close(
            torch.linalg.svdvals(block), torch.full((min(block.shape),), target), rtol=1e-3, atol=0.0
        )
    assert size_free_norm(layer) == pytest.approx(target, rel=1e-3)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
def test_attention_starts_orthogonal(sizes: dict[str, int]) -> None:
    module = sn.spectral_normalize(nn.MultiheadAttention(8, 2, **sizes), init="orthogonal")
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight") if sizes else ("in_proj_weight",)
    for name in names:
        for block in getattr(module, name).detach().chunk(1 if sizes else 3):
            torch.testing.assert_close(
                torch.linalg.svdvals(block), torch.ones(min(block.shape)), rtol=1e-3, atol=0.0
            )
    assert size_free_norm(module.out_proj) == pytest.approx(1.0, rel=1e-3)


def deep(seed: int = 0) -> nn.Sequential:
    """20 convolutions (16 channels) with a smooth odd activation of slope 1 at zero."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(part for _ in range(20) for part in (nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.Tanh()))
    )


def test_a_signal_survives_twenty_layers() -> None:
    """sngan_projection#14: random kernels of norm 1 shrink a typical signal to nothing (Xiao et al. 2018)."""
    x = 0.1 * torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(1))
    ratios = {}
    for init in (None, "orthogonal"):
        net = sn.spectral_normalize(deep(), init=init)
        ratios[init] = float((net(x).norm() / x.norm()).detach())
    assert ratios[None] < 1e-5
    assert ratios["orthogonal"] > 0.5


def test_a_signal_survives_with_gradients() -> None:
    net = sn.spectral_normalize(deep(), init="orthogonal")
    x = (0.1 * torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(1))).requires_grad_()
    net(x).square().sum().backward()
    assert float(x.grad.norm() / (2 * net(x).norm()).detach()) > 0.5
    assert all(original(net[i]).grad.isfinite().all() for i in range(0, 40, 2))


def test_folded_layers_start_orthogonal() -> None:
    """deel-torchlip#47: the layer's own weight is set, the BatchNorm's gamma holds the norm."""
    net = sn.spectral_normalize(batchnorm_net(), fold_batchnorm=True, init="orthogonal").eval()
    for conv in (net[0], net[3]):
        assert int((conv.weight.flatten(2).norm(dim=(0, 1)) > 0).sum()) == 1
    for part in (net[0:2], net[3:5], net[7]):
        assert size_free_norm(part) == pytest.approx(1.0, rel=1e-3)


def test_the_start_goes_by_the_global_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(original(sn.spectral_normalize(nn.Linear(5, 5), init="orthogonal")))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_start_in_other_dtypes(dtype: torch.dtype) -> None:
    layer = sn.spectral_normalize(nn.Conv2d(4, 4, 3).to(dtype), init="orthogonal")
    assert layer.weight.dtype == dtype
    assert size_free_norm(layer) == pytest.approx(1.0, rel=1e-2)


class Scaled(nn.Module):
    """A registered layer of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def test_layers_of_users_are_not_set() -> None:
    sn.register_operator(Scaled)(lambda layer: sn.as_operator(layer.weight))
    net = nn.Sequential(nn.Linear(4, 4), Scaled())
    before = copy.deepcopy(net.state_dict())
    message = complaint(ValueError, lambda: sn.spectral_normalize(net, init="orthogonal"))
    check_says(message, "init='orthogonal'", "1 (Scaled)", "by hand")
    assert_same(net.state_dict(), before)


@pytest.mark.parametrize("init", ["xavier", "", True, 1])
def test_unknown_starts(init: Any) -> None:
    message = complaint(ValueError, lambda: sn.spectral_normalize(conv_net(), init=init))
    check_says(message, f"init={init!r}", "orthogonal", "None")


# ---------------------------------------------------------------------- norms as constants


def test_gradients_that_take_the_norm_for_a_constant() -> None:
    """invertible-resnet#4: the gradient of W target / sigma without the part through sigma."""
    whole, constant = (sn.spectral_normalize(conv_net(), target=0.7, through_norm=t) for t in (True, False))
    assert torch.equal(whole(images()), constant(images()))
    for net in (whole, constant):
        net(images()).square().sum().backward()
    assert not any(torch.equal(original(whole[i]).grad, original(constant[i]).grad) for i in LAYERS)
    along = torch.randn(constant[2].weight.shape, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad((constant[2].weight * along).sum(), original(constant[2]))
    scale = float((constant[2].weight.norm() / original(constant[2]).norm()).detach())
    torch.testing.assert_close(grad, scale * along)


def test_soft_layers_at_the_cap_can_grow_along_themselves_only_there() -> None:
    """invertible-resnet#4: through the norm, the gradient along the weight vanishes; as a constant it does not."""
    slopes = {}
    for through in (True, False):
        layer = sn.spectral_normalize(nn.Linear(5, 4), target=0.1, mode="soft", through_norm=through)
        (grad,) = torch.autograd.grad((layer.weight * layer.weight.detach()).sum(), original(layer))
        slopes[through] = float((grad * original(layer)).sum().detach())
    assert abs(slopes[True]) < 1e-4
    assert slopes[False] > 1e-2


def test_training_with_constant_norms_follows_the_weights() -> None:
    net = sn.spectral_normalize(conv_net(), through_norm=False)
    optimizer = sgd(net, lr=0.003, momentum=0.0)
    losses = [train_step(net, optimizer) for _ in range(15)]
    net(images())
    assert losses[-1] < losses[0]
    assert norms(net) == pytest.approx([1.0] * 3, rel=1e-2)
    assert "constant" in repr(net)


# ---------------------------------------------------------------------- moving states by hand

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "fused": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("how", ["hook", "call"])
def test_step_gives_the_run_that_the_forward_pass_gives(kind: str, fold: bool, how: str) -> None:
    """pytorch#8160: bit for bit, as an optimizer's hook or called after each step."""
    ends = []
    for by_hand in (False, True):
        net = sn.spectral_normalize(batchnorm_net() if fold else conv_net(), fold_batchnorm=fold)
        optimizer = OPTIMIZERS[kind](net.parameters())
        if by_hand and how == "hook":
            optimizer.register_step_post_hook(lambda *_, net=net: sn.step(net))
        losses = []
        for seed in range(5):
            losses.append(train_step(net, optimizer, seed))
            if by_hand and how == "call":
                assert sn.step(net) is net
        net(images())
        ends.append((losses, snapshot(net), net.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert_same(ends[0][1], ends[1][1])
    assert_same(ends[0][2], ends[1][2])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_after_a_hooked_step_the_norms_are_up_to_date(kind: str) -> None:
    """pytorch#121068: values that can be read between steps."""
    net = sn.spectral_normalize(conv_net())
    optimizer = OPTIMIZERS[kind](net.parameters())
    optimizer.register_step_post_hook(lambda *_: sn.step(net))
    for expected in (1, 2):
        train_step(net, optimizer)
        assert [normalisation(net[i]).turn for i in LAYERS] == [expected] * 3


def test_step_moves_nothing_twice_and_nothing_in_eval() -> None:
    """pytorch#8208."""
    net = trained()
    sn.step(net)
    before = snapshot(net)
    sn.step(net)
    net(images())
    assert_same(snapshot(net), before)
    train_step(net, sgd(net))
    sn.step(net.eval())
    assert_same(snapshot(net), before)


def test_step_moves_one_layer() -> None:
    net = trained()
    turns = [normalisation(net[i]).turn for i in LAYERS]
    sn.step(net)
    assert [normalisation(net[i]).turn for i in LAYERS] == [turn + 1 for turn in turns]


@pytest.mark.parametrize("model", [nn.Linear(3, 3), conv_net()])
def test_step_without_anything_to_move(model: nn.Module) -> None:
    check_says(complaint(ValueError, lambda: sn.step(model)), "carries no spectral normalisation")


@pytest.mark.parametrize("thing", [None, "net", torch.ones(2)])
def test_step_of_something_that_is_not_a_module(thing: Any) -> None:
    check_says(complaint(TypeError, lambda: sn.step(thing)), "torch.nn.Module", type(thing).__name__)
