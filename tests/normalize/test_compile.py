"""`torch.compile(fullgraph=True)` of normalised models: one graph, compiled once, and the true norms at the end.

What it cannot do: a gradient penalty. PyTorch cannot differentiate compiled code twice and raises, so that the
penalty of a discriminator runs through the model as it is, beside the compiled passes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from nets import assert_same, conv_net, images, normalisation, original, sgd
from reference import size_free_norm

pytestmark = [
    pytest.mark.small_models,  # the other way of moving states looks the same to a compiler
    # PyTorch's own, whenever a function with a backward of its own is compiled
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]
STEPS = 50
Loss = Callable[[nn.Module, int], Tensor]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No code compiled by other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Residual(nn.Module):
    """A block with two folded pairs, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(x + self.norm2(self.second(x)))
        return self.head(x.mean((2, 3)))


def discriminator() -> nn.Module:
    return sn.spectral_normalize(conv_net())


def residual() -> nn.Module:
    torch.manual_seed(0)
    return sn.spectral_normalize(Residual(), fold_batchnorm=True)


def transformer() -> nn.Module:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="LayerNorm"):
        return sn.spectral_normalize(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True))


def hinge(net: nn.Module, seed: int) -> Tensor:
    """Two passes before one backward: real and fake."""
    real, fake = net(images(seed)), net(images(seed + 1000) + 0.5)
    return torch.relu(1 - real.float()).mean() + torch.relu(1 + fake.float()).mean()


def regression(net: nn.Module, seed: int) -> Tensor:
    return (net(images(seed)).float() - torch.tensor([2.0, -1.0, 2.0, -1.0, 2.0])).square().mean()


def tokens(seed: int) -> Tensor:
    return torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(seed))


def reverse(net: nn.Module, seed: int) -> Tensor:
    return (net(tokens(seed)).float() - tokens(seed).flip(1)).square().mean()


def true_norms(net: nn.Module) -> list[float]:
    """Of every map that is normalised, by the reference."""
    if isinstance(net, Residual):
        pairs = (nn.Sequential(net.first, net.norm1), nn.Sequential(net.second, net.norm2))
        return [size_free_norm(part) for part in (*pairs, net.head)]
    if isinstance(net, nn.TransformerEncoderLayer):
        attention = net.self_attn
        thirds = [torch.linalg.matrix_norm(part.detach(), 2) for part in attention.in_proj_weight.split(16)]
        return [float(max(thirds)), *(size_free_norm(m) for m in (attention.out_proj, net.linear1, net.linear2))]
    return [size_free_norm(net[i]) for i in (0, 2, 5)]


RUNS: dict[str, tuple[Callable[[], nn.Module], Loss, Callable[[int], Tensor], str]] = {
    "discriminator": (discriminator, hinge, images, "aot_eager"),
    "residual net with folded BatchNorms": (residual, regression, images, "inductor"),
    "transformer layer": (transformer, reverse, tokens, "aot_eager"),
}


def run(compiled: nn.Module, net: nn.Module, loss_of: Loss, steps: int = STEPS) -> list[float]:
    """Training under bfloat16 autocast; whatever is compiled after the first step raises."""
    optimizer, losses = sgd(net, lr=0.003, momentum=0.0), []
    for turn in range(steps):
        with torch._dynamo.config.patch(error_on_recompile=turn > 0):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(compiled, turn % 5)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("kind", RUNS)
def test_fifty_compiled_steps(kind: str) -> None:
    """pytorch#167645, pytorch#113415, pytorch#70664: no graph break, no recompilation, no warning, true norms."""
    make, loss_of, data, backend = RUNS[kind]
    net = make()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = run(compiled, net, loss_of)
    known = ("should not be instantiated", "torch.jit.script")
    assert not [w for w in caught if not any(part in str(w.message) for part in known)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert true_norms(net) == pytest.approx([1.0] * len(true_norms(net)), rel=1e-2)
    standing_still(compiled, net, data)
    assert true_norms(net) == pytest.approx([1.0] * len(true_norms(net)), rel=1e-3)
    net.eval()
    torch.testing.assert_close(compiled(data(3)), net(data(3)), rtol=1e-4, atol=1e-5)
    before = copy.deepcopy(net.state_dict())
    compiled(data(4)).sum().backward()
    assert_same(net.state_dict(), before)


def standing_still(compiled: nn.Module, net: nn.Module, data: Callable[[int], Tensor]) -> None:
    """Passes in training with the weights as they are, and the statistics too: each counts as a change."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    for _ in range(20):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.0)
        compiled(data(0))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_compiled_training_is_the_training_that_it_compiles(fused: bool, copied: bool) -> None:
    """pytorch#28594, pytorch#13350: for a copy too, and an optimizer whose kernels do not count their writes."""
    nets = [copy.deepcopy(discriminator()) if copied else discriminator() for _ in range(2)]
    losses = []
    for net, passes in zip(
        nets, (torch.compile(nets[0], fullgraph=True, backend="aot_eager"), nets[1]), strict=True
    ):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, fused=fused)
        losses.append([])
        for turn in range(8):
            optimizer.zero_grad()
            loss = regression(passes, turn)
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
        passes(images())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert [normalisation(nets[0][i]).turn for i in (0, 2, 5)] == [8] * 3
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_penalty_beside_the_compiled_passes() -> None:
    """pytorch#8160: the uncompiled pass sees the same state, which moves once a step."""
    net = discriminator()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    optimizer = sgd(net, lr=0.003, momentum=0.0)
    for turn in range(6):
        optimizer.zero_grad()
        between = images(turn).requires_grad_()
        (slope,) = torch.autograd.grad(net(between).sum(), between, create_graph=True)
        (hinge(compiled, turn) + (slope.flatten(1).norm(dim=1) - 1).square().mean()).backward()
        optimizer.step()
    compiled(images())
    assert [normalisation(net[i]).turn for i in (0, 2, 5)] == [6] * 3
    assert true_norms(net) == pytest.approx([1.0] * 3, rel=1e-2)


def test_compiled_passes_cannot_be_differentiated_twice() -> None:
    """What the module says of gradient penalties; once PyTorch can, this can go."""
    net = discriminator()
    x = images().requires_grad_()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    (slope,) = torch.autograd.grad(compiled(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        slope.square().sum().backward()


def test_statistics_seen_by_compiled_passes_count() -> None:
    """sngan_projection#38: the graph writes running statistics in its own way."""
    net = residual()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for seed in range(20):
            compiled(4.0 * images(seed))
    assert true_norms(net.eval()) == pytest.approx([1.0] * 3, rel=2e-2)


def test_loading_into_a_compiled_model() -> None:
    """pytorch#51800: plain weights, by the compiled model's own names."""
    net = discriminator()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    compiled(images())
    plain = conv_net(seed=9)
    compiled.load_state_dict({f"_orig_mod.{name}": value for name, value in plain.state_dict().items()})
    compiled(images())
    assert true_norms(net) == pytest.approx([1.0] * 3, rel=1e-3)
    assert torch.equal(original(net[2]), plain[2].weight)
    assert sorted(sn.plain_state_dict(compiled)) == sorted(f"_orig_mod.{name}" for name in plain.state_dict())


def test_a_compiled_step_of_the_optimizer() -> None:
    """pytorch#13350."""
    net = discriminator()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for turn in range(4):
        optimizer.zero_grad()
        regression(net, turn).backward()
        step()
    net(images())
    assert [normalisation(net[i]).turn for i in (0, 2, 5)] == [4] * 3
    assert true_norms(net) == pytest.approx([1.0] * 3, rel=1e-2)
