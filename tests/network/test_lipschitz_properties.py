"""On random networks no slope is above the bound: neither a Jacobian's norm, nor a secant that was climbed to."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import inf, nextafter, prod

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spectralnorm as sn
from spectralnorm.network.lipschitz import analyse
from spectralnorm.network.outward import product_up, root_sum_squares_up, sum_up

SHAPE = (2, 4, 4)
Operation = Callable[[], nn.Module]

KEEPS: list[Operation] = [  # (2, 4, 4) -> (2, 4, 4)
    lambda: nn.Conv2d(2, 2, 3, padding=1),
    lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    lambda: nn.Conv2d(2, 2, 5, padding=2, padding_mode="replicate"),
    lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2),
    lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)),
    lambda: nn.BatchNorm2d(2),
    lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1)),
    lambda: nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2)),
    lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    lambda: nn.Sequential(nn.AdaptiveMaxPool2d(3), nn.Upsample(size=(4, 4), mode="bilinear")),
    lambda: nn.Sequential(nn.LPPool2d(2, 2, 1), nn.ReflectionPad2d((1, 0, 0, 1))),
    lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(8, 8, 1), nn.PixelShuffle(2)),
    lambda: nn.ConvTranspose2d(2, 2, 3, padding=1),
    lambda: nn.Sequential(nn.MaxPool2d(2), nn.ConvTranspose2d(2, 2, 2, stride=2)),
    *(nn.ReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.SELU, nn.Softplus, nn.Hardswish, nn.Tanhshrink, sn.MaxMin),
    *(lambda: nn.LeakyReLU(1.5), lambda: nn.ELU(2.0), lambda: nn.PReLU(2), lambda: nn.Softmax(1), nn.Identity),
]


class Residual(nn.Module):
    """x + f(x), or a combination of that kind."""

    def __init__(self, branch: nn.Module, kind: str) -> None:
        super().__init__()
        self.branch, self.kind = branch, kind
        self.project = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.kind == "add":
            return x + y
        if self.kind == "sub":
            return 0.5 * x - y / 3
        if self.kind == "max":
            return torch.maximum(x, y)
        if self.kind == "parts":
            a, b = x.chunk(2, dim=1)
            return torch.cat([b, y[:, :1] + a], dim=1)
        if self.kind == "twice":
            return self.branch(y)
        mixed: Tensor = self.project(torch.cat([x, y], dim=1))
        return mixed


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 10**6)))
    blocks: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        block = draw(st.sampled_from(KEEPS))()
        kind = draw(st.sampled_from([None, "add", "sub", "max", "cat", "parts", "twice"]))
        blocks.append(block if kind is None else Residual(block, kind))
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())]
    net = nn.Sequential(*blocks, draw(st.sampled_from(heads)))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.1, 2)
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.normal_(module.weight)
    return net.eval()


def steepest(net: nn.Module) -> float:
    """The largest slope found: Jacobians at random inputs, then secants climbed by gradient steps in float64."""
    net = net.double()
    x = 3 * torch.randn(6, *SHAPE, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian
    jacobians = torch.stack([jacobian(net, each[None]).reshape(-1, 32) for each in x]).detach()
    best = float(torch.linalg.matrix_norm(jacobians, 2).max())
    x, y = x.requires_grad_(), (x.detach() + 0.5 * torch.randn_like(x)).requires_grad_()
    climber = torch.optim.Adam([x, y], lr=0.05)
    for _ in range(40):
        slope = (net(x) - net(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1).clamp_min(1e-3)
        best = max(best, float(slope.detach().max()))
        climber.zero_grad()
        slope.sum().backward()
        climber.step()
    return best


@given(net=networks())
@settings(max_examples=60, deadline=None)
def test_no_slope_is_above_the_bound(net: nn.Module) -> None:
    bound = sn.lipschitz(net, SHAPE)
    assert bound.lower <= bound.upper
    assert steepest(net) <= bound.upper * (1 + 1e-9)


@given(net=networks())
@settings(max_examples=15, deadline=None)
def test_estimates_are_near_the_proven_bound_and_tables_end_in_it(net: nn.Module) -> None:
    found = analyse(net, SHAPE)
    assert found.rows[-1].bound == found.bound
    estimate = float(sn.lipschitz(net, SHAPE, certified=False))
    assert estimate >= 0.9 * found.bound  # size-free norms are larger than those at 4 x 4, estimates lower


FLOATS = st.floats(0, 1e200) | st.sampled_from([0.0, 1.0, 5e-324, 0.1, 1e308])


@given(st.lists(FLOATS, max_size=5))
def test_arithmetic_rounds_up_and_by_one_float_at_most(terms: list[float]) -> None:
    exact = list(map(Fraction, terms))
    for found, true in [(sum_up(terms), sum(exact)), (product_up(terms), prod(exact, start=Fraction(1)))]:
        assert found == inf or Fraction(found) >= true
        assert found == 0 or Fraction(nextafter(found, 0)) < true
    length = root_sum_squares_up(terms)
    square = sum(each**2 for each in exact)
    assert length == inf or Fraction(length) ** 2 >= square
    assert length == 0 or Fraction(nextafter(length, 0)) ** 2 < square
