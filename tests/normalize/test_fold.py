"""A layer and the BatchNorm that alone reads it, normalised as the one map they are in eval mode."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import update_bn

import spectralnorm as sn
from messages import check_says, complaint
from nets import (
    assert_same,
    batchnorm_net,
    folded_net,
    folded_norms,
    images,
    original,
    settle,
    sgd,
    train_folded,
    trained_folded,
)
from reference import size_free_norm

PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], nn.Module]]] = {
    "conv": (lambda: nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d),
    "depthwise": (lambda: nn.Conv2d(5, 5, 3, groups=5), nn.BatchNorm2d),
    "conv1d": (lambda: nn.Conv1d(3, 5, 4, dilation=2), nn.BatchNorm1d),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), nn.BatchNorm2d),
    "transposed with groups": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), nn.BatchNorm1d),
    "linear": (lambda: nn.Linear(7, 5), nn.BatchNorm1d),
    "synchronised": (lambda: nn.Conv2d(3, 4, 3), nn.SyncBatchNorm),
}
each_pair = pytest.mark.parametrize("kind", PAIRS)
GAMMA = (1.5, -0.7, 0.0, 0.4, -2.0, 1.0)  # zero and negative ones among them


def pair(kind: str, *, affine: bool = True) -> nn.Sequential:
    """A layer and its BatchNorm, with gammas and statistics as after some training."""
    layer, norm = PAIRS[kind]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = layer()
        channels = 5 if kind in ("depthwise", "conv1d", "linear") else 4 if kind == "synchronised" else 6
        net = nn.Sequential(module, norm(channels, affine=affine))
        net[1].running_var.uniform_(0.3, 3.0)
        net[1].running_mean.normal_()
        if affine:
            net[1].weight.copy_(torch.tensor(GAMMA[:channels]))
    return net.eval()


def fold(net: nn.Sequential, **options: Any) -> nn.Sequential:
    return sn.spectral_normalize(net, pairs=[("0", "1")], **options)


# ---------------------------------------------------------------------- the norm


@each_pair
@pytest.mark.parametrize("options", [{"target": 0.7}, {"mode": "soft", "target": 0.2}], ids=["hard", "soft"])
def test_the_fused_map_gets_the_norm_asked_for(kind: str, options: dict[str, Any]) -> None:
    """deel-torchlip#47, orthogonium#16: with the weight alone held, a BatchNorm undoes the constraint."""
    net = pair(kind)
    before, plain = size_free_norm(net), copy.deepcopy(net)
    fold(net, **options)
    assert before > options["target"]
    assert size_free_norm(net) == pytest.approx(options["target"], rel=1e-3)
    assert torch.equal(net[0].weight, plain[0].weight)
    factor = options["target"] / before
    torch.testing.assert_close(net[1].weight, plain[1].weight * factor, rtol=1e-3, atol=1e-6)


@each_pair
def test_soft_leaves_gamma_where_the_norm_is_below_the_target(kind: str) -> None:
    """sngan_projection#38."""
    net = pair(kind)
    gamma = net[1].weight.detach().clone()
    fold(net, mode="soft", target=100.0)
    assert torch.equal(net[1].weight, gamma)


@each_pair
def test_a_batchnorm_without_affine_parameters_gets_a_gamma_that_is_not_trained(kind: str) -> None:
    """orthogonium#16: `affine=False` behind a normalised layer."""
    net = fold(pair(kind, affine=False), target=0.7)
    assert size_free_norm(net) == pytest.approx(0.7, rel=1e-3)
    assert not original(net[1]).requires_grad
    x = (
        torch.randn(4, 7)
        if kind == "linear"
        else torch.randn(4, net[0].in_channels, *([9] * (net[0].weight.ndim - 2)))
    )
    expected = net(x)
    assert torch.equal(sn.remove_spectral_norm(net)(x), expected)
    assert net[1].weight.unique().numel() == 1


@each_pair
def test_removal_proves_the_fused_norm(kind: str) -> None:
    """deel-lip#93: a guarantee that it is at most the target."""
    net = sn.remove_spectral_norm(fold(pair(kind), target=0.7), certified=True)
    assert not parametrize.is_parametrized(net[1])
    assert sn.spectral_norm(net, method=sn.Certified()).upper <= 0.7
    assert size_free_norm(net) == pytest.approx(0.7, rel=5e-3)


def test_zero_gammas_and_zero_kernels_stay_zero() -> None:
    """pytorch#20192: NaN there."""
    for index in (0, 1):
        net = pair("conv")
        nn.init.zeros_(net[index].weight)
        fold(net).train()
        net(images()).square().sum().backward()
        assert not net[index].weight.any()
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_branch_that_starts_with_gamma_zero_trains() -> None:
    """Residual branches start so (Goyal et al. 2017); soft mode lets them grow from there."""
    net = pair("conv").train()
    nn.init.zeros_(net[1].weight)
    fold(net, mode="soft")
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.05), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (net(images()) - net[0](images()).detach()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert 0.1 < size_free_norm(net.eval()) < 1.01


# ---------------------------------------------------------------------- the state


@pytest.mark.small_models
def test_the_state_follows_weights_gammas_and_statistics() -> None:
    """deel-torchlip#47. Statistics of small batches jump in each pass: the norm is right when it is read."""
    net = folded_net()
    optimizer = sgd(net, lr=0.003, momentum=0.0)
    for _ in range(6):
        losses = train_folded(net, optimizer, 4)
        for mode in (False, True):
            assert folded_norms(net.train(mode)) == pytest.approx([1.0] * 3, rel=0.1)
    assert losses[-1] < 4.0
    assert folded_norms(sn.refresh(net)) == pytest.approx([1.0] * 3, rel=1e-3)


@pytest.mark.parametrize("mode", [True, False])
def test_statistics_that_are_estimated_anew(mode: bool) -> None:
    """sngan_projection#38: the kernels of BatchNorm write their statistics without a trace in their version."""
    net = folded_net().train()
    update_bn([5.0 * images(seed) for seed in range(30)], net)
    assert folded_norms(net.train(mode)) == pytest.approx([1.0] * 3, rel=5e-2)


def test_statistics_seen_in_one_pass_count_in_the_next_evaluation() -> None:
    net = folded_net().train()
    with torch.no_grad():
        net(20.0 * images())
    net.eval()
    assert folded_norms(net) == pytest.approx([1.0] * 3, rel=2e-2)


def test_a_frozen_batchnorm_behind_a_layer_in_training() -> None:
    """Fine-tuning with BatchNorms in eval: the state follows the weight of the layer all the same."""
    net = fold(pair("conv")).train()
    net[1].eval()
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        with torch.no_grad():
            net[0].weight.add_(0.05 * torch.randn(net[0].weight.shape, generator=generator))
        net(images())
    assert size_free_norm(net) == pytest.approx(1.0, rel=2e-2)


def test_reading_changes_nothing() -> None:
    net = trained_folded()
    net(images())
    before = net[1].weight, copy.deepcopy(net.state_dict())
    assert torch.equal(net[1].weight, before[0])
    net.eval()
    net(images()), net[1].weight
    assert_same(net.state_dict(), before[1])


def test_eval_never_moves_the_state() -> None:
    """pytorch#8208, pytorch#51800."""
    net = trained_folded().eval()
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net[0].weight.mul_(3.0)
    net(images()).sum().backward()
    assert folded_norms(net) == pytest.approx([1.0] * 3, rel=1e-3)
    after = net.state_dict()
    before.pop("0.weight"), after.pop("0.weight")
    assert_same(after, before)


# ---------------------------------------------------------------------- gradients


def fused_gamma(net: nn.Sequential, weight: Tensor, gamma: Tensor, target: float) -> Tensor:
    """The scaled gamma by the reference."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        net[0].weight.copy_(weight), net[1].weight.copy_(gamma)
    return gamma * target / size_free_norm(net)


@each_pair
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_gradients_equal_finite_differences(kind: str, mode: str) -> None:
    """Of the scaled gamma, in weight and gamma; invertible-resnet#4 for what flows through the norm."""
    plain = pair(kind).double()
    net = fold(copy.deepcopy(plain), target=0.5, mode=mode)
    settle(net[1])
    generator = torch.Generator().manual_seed(3)
    weight, gamma = net[0].weight.detach().clone(), original(net[1]).detach().clone()
    draws = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (gamma, weight, gamma)]
    along, step_weight, step_gamma = draws
    loss = (net[1].weight * along).sum()
    grads = torch.autograd.grad(loss, [net[0].weight, original(net[1])])
    for steps in ((step_weight, 0 * gamma), (0 * weight, step_gamma)):
        values = [
            float((fused_gamma(plain, weight + h * steps[0], gamma + h * steps[1], 0.5) * along).sum())
            for h in (1e-5, -1e-5)
        ]
        slope = sum(float((grad * step).sum()) for grad, step in zip(grads, steps, strict=True))
        assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-5)


def test_the_slope_in_gamma_stays_true_where_a_gamma_falls_to_nothing_in_one_step() -> None:
    """The singular vectors lag by a step there, and what is left of the channel in them is not small."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    with torch.no_grad():
        net[1].weight.fill_(1.0)
    net = fold(net)
    settle(net[1])
    with torch.no_grad():
        original(net[1])[3] = 1e-10
    grad = torch.autograd.grad(net[1].weight.sum(), original(net[1]))[0]
    twin = fold(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
    twin.load_state_dict(net.state_dict())
    sn.refresh(twin)
    true = torch.autograd.grad(twin[1].weight.sum(), original(twin[1]))[0]
    torch.testing.assert_close(grad, true, rtol=0.05, atol=0.05)


def test_through_norm_false_takes_the_norm_for_a_constant() -> None:
    net = fold(pair("conv"), through_norm=False)
    gamma = net[1].weight
    gamma.sum().backward()
    assert net[0].weight.grad is None
    ratio = (gamma / original(net[1])).detach()[0]
    torch.testing.assert_close(original(net[1]).grad, torch.full((6,), float(ratio)))


def test_two_forward_passes_before_one_backward() -> None:
    """pytorch#8160, #22095: a discriminator with BatchNorm sees two batches a step."""
    net = trained_folded()
    first = net(images(1)).square().sum()
    (first + net(images(2)).square().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_backward_step_backward_of_gamma() -> None:
    """pytorch#55368, pytorch#62293: PyTorch's own BatchNorm raises here, since it saves its gamma."""
    net = fold(pair("conv"))
    optimizer = torch.optim.SGD(net[1].parameters(), lr=0.1)
    loss = net(images()).square().sum()
    loss.backward(retain_graph=True)
    first = original(net[1]).grad.clone()
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    assert torch.equal(original(net[1]).grad, first)


# ---------------------------------------------------------------------- which layers are paired


class Read(nn.Module):
    """A block in which something else reads what the BatchNorm reads."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), how
        self.after = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "conv read twice":
            return self.after(self.norm(y) + y)
        if self.how == "conv called twice":
            return self.after(self.norm(self.conv(y)))
        if self.how == "norm called twice":
            return self.after(self.norm(self.norm(y)))
        if self.how == "something between":
            return self.after(self.norm(torch.relu(y)))
        if self.how == "untraceable":
            return self.after(self.norm(y if x.sum() > 0 else -y))
        return self.after(self.norm(y))


HOWS = ("conv read twice", "conv called twice", "norm called twice", "something between")


@pytest.mark.parametrize("how", HOWS)
def test_only_layers_that_alone_feed_their_batchnorm_are_paired(how: str) -> None:
    """deel-torchlip#47: the others are normalised alone, and the warning says what to do."""
    net = Read(how)
    with pytest.warns(UserWarning, match=r"norm \(BatchNorm2d\).*undoes the constraint.*Name pairs=") as record:
        sn.spectral_normalize(net, fold_batchnorm=True)
    assert len(record) == 1
    assert size_free_norm(net.conv) == pytest.approx(1.0, rel=1e-3)
    assert not parametrize.is_parametrized(net.norm)


def test_a_pair_in_a_block_is_found() -> None:
    net = sn.spectral_normalize(Read("alone"), fold_batchnorm=True)
    assert not parametrize.is_parametrized(net.conv)
    assert size_free_norm(nn.Sequential(net.conv, net.norm)) == pytest.approx(1.0, rel=1e-3)


def test_pairs_name_what_torch_fx_cannot_see() -> None:
    """The rest of the model is normalised as ever."""
    net = sn.spectral_normalize(Read("untraceable"), pairs=[("conv", "norm")])
    assert size_free_norm(nn.Sequential(net.conv, net.norm)) == pytest.approx(1.0, rel=1e-3)
    assert size_free_norm(net.after) == pytest.approx(1.0, rel=1e-3)


def test_a_model_that_torch_fx_cannot_trace_is_refused_with_the_reason() -> None:
    net = Read("untraceable")
    message = complaint(ValueError, lambda: sn.spectral_normalize(net, fold_batchnorm=True))
    check_says(message, "fold_batchnorm=True", "torch.fx cannot trace Read", "TraceError", "pairs=[")
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


def test_without_folding_the_warning_says_that_batchnorm_undoes_the_constraint() -> None:
    """deel-torchlip#47, sngan_projection#38."""
    with pytest.warns(UserWarning, match=r"undoes the constraint.*fold_batchnorm=True, or pairs") as record:
        sn.spectral_normalize(batchnorm_net())
    assert len(record) == 1


@pytest.mark.parametrize("options", [{"fold_batchnorm": True}, {"pairs": [("0", "1"), ("3", "4")]}])
def test_with_folding_nothing_is_warned_of(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = sn.spectral_normalize(batchnorm_net(), **options)
    assert folded_norms(net.eval()) == pytest.approx([1.0] * 3, rel=1e-3)


BAD_PAIRS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "unknown layer": ([("9", "1")], ("'9'", "named_modules")),
    "unknown norm": ([("0", "bn")], ("'bn'", "named_modules")),
    "the wrong way round": ([("1", "0")], ("'1'", "BatchNorm2d", "first")),
    "no BatchNorm": ([("0", "2")], ("'2'", "ReLU", "BatchNorm")),
    "no layer": ([("2", "1")], ("'2'", "ReLU", "Linear, Conv")),
    "a layer twice": ([("0", "1"), ("0", "4")], ("twice",)),
    "a norm twice": ([("0", "1"), ("3", "1")], ("twice",)),
    "other axes": ([("7", "1")], ("BatchNorm2d", "0 spatial axes", "BatchNorm1d")),
    "names only": (("0", "1"), ("no list of pairs", "('conv1', 'bn1')")),
    "a number": (5, ("no list of pairs",)),
    "numbers": ([1, 2], ("no list of pairs",)),
    "what the graph denies": ([("0", "4"), ("3", "1")], ("'0' is read by 1", "'4' alone")),
    "three names": ([("0", "1", "2")], ("no list of pairs",)),
}


@pytest.mark.parametrize("bad", BAD_PAIRS)
def test_bad_pairs(bad: str) -> None:
    pairs, parts = BAD_PAIRS[bad]
    net = batchnorm_net()
    check_says(complaint(ValueError, lambda: sn.spectral_normalize(net, pairs=pairs)), *parts)
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


def test_a_batchnorm_without_running_statistics_cannot_be_folded() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    check_says(complaint(ValueError, lambda: fold(net)), "track_running_stats", "not linear")
    assert not parametrize.is_parametrized(net[1])
