"""Constants from targets alone: what the rules make of them, beside what is measured and proven."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spectralnorm as sn
from messages import check_says, complaint


class Residual(nn.Module):
    """Two branches, a constant factor, and a convolution whose padding copies cells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode="replicate")
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = 2 * self.fc((y + torch.relu(self.branch(y))).flatten(1))
        return z


def sequence(batch_norm: bool = False) -> nn.Sequential:
    norm = [nn.BatchNorm2d(4)] if batch_norm else []
    conv = nn.Conv2d(2, 4, 1)  # of the same norm at all sizes
    return nn.Sequential(conv, *norm, sn.MaxMin(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def test_targets_go_through_the_network() -> None:
    torch.manual_seed(0)
    net = sn.spectral_normalize(Residual(), target={"conv": 3.0, "branch": 2.0, "fc": 0.5})
    held = sn.HeldLipschitz(net, (2, 4, 4))
    copies = sn.as_operator(net.conv).padding_factor((4, 4))
    assert copies > 1
    assert held.bound == pytest.approx(3 * copies * (1 + 2) * 0.5 * 2)
    rows = net.fc.weight.detach()
    expected = 3 * copies * 3 * 2 * torch.cdist(rows, rows)
    assert torch.allclose(held.constants(), expected, rtol=1e-6)
    assert held.bound >= sn.lipschitz(net, (2, 4, 4)).upper * (1 - 1e-2)  # tracked norms, from below


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_circular_convolutions_show_no_cell_twice(depth: int, size: int) -> None:
    convs = [nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular") for _ in range(depth)]
    net = nn.Sequential(*convs, nn.Flatten(), nn.Linear(2 * size * size, 3))
    held = sn.HeldLipschitz(sn.spectral_normalize(net), (2, size, size))
    assert held.bound == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_held_constants_are_those_proven_or_larger(mode: str, batch_norm: bool) -> None:
    torch.manual_seed(0)
    net = sn.spectral_normalize(sequence(batch_norm), target=0.7, mode=mode, fold_batchnorm=batch_norm)
    held = sn.HeldLipschitz(net, (2, 4, 4))
    assert held.bound == pytest.approx(0.7 * 0.5 * 0.7)
    proven = sn.Certifier(net, (2, 4, 4))
    assert proven.lipschitz <= held.bound * 1.01
    x, y = torch.rand(40, 2, 4, 4), torch.arange(40) % 3
    with torch.no_grad():
        net.eval()
        y = torch.where(torch.arange(40) % 4 == 0, y, net(x).argmax(1))  # three quarters of them right
        radii = held.radii(net(x), y, held.constants())
    sure = proven.radius(x, y)
    if mode == "hard":
        right = sure > 0
        assert right.sum() > 20
        assert torch.allclose(radii[right].double(), sure[right], rtol=1e-2, atol=1e-5)
    assert bool((radii.double() <= sure * 1.01 + 1e-5).all())
    assert bool((radii[sure == 0] <= 1e-6).all())


def test_training_changes_only_the_last_layers_part() -> None:
    net = sn.spectral_normalize(sequence())
    held = sn.HeldLipschitz(net, (2, 4, 4))
    before = held.constants().detach()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    x, y = torch.rand(8, 2, 4, 4), torch.arange(8) % 3
    sn.losses.lipschitz_margin(net(x), y, 0.2, held.constants()).backward()
    slope = net[-1].parametrizations.weight.original.grad
    assert slope is not None
    assert float(slope.norm()) > 0
    optimizer.step()
    rows = net[-1].weight.detach()
    assert torch.allclose(held.constants(), 0.5 * torch.cdist(rows, rows), rtol=1e-5)
    assert not torch.allclose(held.constants(), before)


def test_shrinking_distances_of_rows_is_asked_for() -> None:
    """The gradient of all distances, worked out by hand, where the norm is taken for a constant."""
    torch.manual_seed(1)
    net = sn.spectral_normalize(sequence().double(), target=2.0, through_norm=False)
    held = sn.HeldLipschitz(net, (2, 4, 4))
    weight = net[-1].parametrizations.weight.original
    held.constants().sum().backward()
    net.eval()
    rows = net[-1].weight.detach()
    scale = float(rows.norm() / weight.detach().norm())
    expected = torch.zeros_like(rows)
    for i in range(3):
        for j in range(3):
            if i != j:
                expected[i] += 2 * scale * (2 * 0.5) * (rows[i] - rows[j]) / (rows[i] - rows[j]).norm()
    assert torch.allclose(weight.grad, expected, rtol=1e-6)


def test_networks_that_end_otherwise() -> None:
    net = sn.spectral_normalize(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), target=2.0)
    held = sn.HeldLipschitz(net, (3,))
    assert float(held.constants()) == pytest.approx(2 * math.sqrt(2))
    radii = held.radii(torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([0]), held.constants())
    assert float(radii) == pytest.approx(1 / (2 * math.sqrt(2)))


def test_answers_that_do_not_change() -> None:
    """Rows that are equal: the answer never changes, right or wrong."""
    net = sn.spectral_normalize(nn.Sequential(nn.Linear(3, 3)))
    held = sn.HeldLipschitz(net, (3,))
    logits, constants = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2)
    assert held.radii(logits, torch.tensor([0, 0]), constants).tolist() == [math.inf, -math.inf]


def test_what_is_refused() -> None:
    check_says(
        complaint(ValueError, lambda: sn.HeldLipschitz(sequence(), (2, 4, 4))), "no layer", "spectral_normalize"
    )
    with pytest.warns(UserWarning, match="BatchNorm"):
        loose = sn.spectral_normalize(sequence(batch_norm=True))
    check_says(
        complaint(ValueError, lambda: sn.HeldLipschitz(loose, (2, 4, 4))), "BatchNorm2d", "not held", "folded"
    )
    norm = nn.Sequential(sn.spectral_normalize(nn.Linear(3, 3)), nn.LayerNorm(3, elementwise_affine=False))
    check_says(complaint(TypeError, lambda: sn.HeldLipschitz(norm, (3,))), "LayerNorm")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = sn.spectral_normalize(nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    held, plain = sn.HeldLipschitz(wrap(net), (1, 2, 2)), sn.HeldLipschitz(net, (1, 2, 2))
    assert held.bound == plain.bound
    assert torch.equal(held.constants(), plain.constants())
