"""Certified radii: exact where they can be, never beaten by an attack, and the errors."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import spectralnorm as sn
from messages import check_says, complaint
from spectralnorm.robustness.attacks import pgd
from spectralnorm.training.sources.digits import digits


def linear(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, torch.tensor(bias or [0.0] * len(rows))
    return layer


def test_the_radius_of_a_linear_classifier_is_the_distance_to_its_nearest_boundary() -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 4)
    x, y = torch.randn(50, 6), torch.randint(0, 4, (50,))
    radii = sn.certified_radius(net, x, y)
    weight, logits = net.weight.detach().double(), net(x).detach().double()
    for i, label in enumerate(y.tolist()):
        others = [j for j in range(4) if j != label]
        exact = min(float((logits[i, label] - logits[i, j]) / (weight[label] - weight[j]).norm()) for j in others)
        if exact <= 0:
            assert radii[i] == 0
        else:
            assert exact * (1 - 1e-3) - 1e-5 <= float(radii[i]) <= exact


@pytest.mark.parametrize("write", ["mul_", "activation", "view"])
def test_what_is_written_to_the_last_layers_output_counts(write: str) -> None:
    """The graph returns the Linear's node; a later call has changed what it holds."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = linear([[1.0], [1.0]], [0.5, 1.0])
            self.cut = nn.Hardtanh(-0.6, 0.6, inplace=True)
            self.register_buffer("factor", torch.tensor([[1.0, 0.1]]))

        def forward(self, x: Tensor) -> Tensor:
            logits = self.last(x)
            if write == "activation":
                self.cut(logits)
            elif write == "view":
                logits.view(-1, 2).mul_(self.factor)
            else:
                logits.mul_(self.factor)
            return logits

    net, x = Net().eval(), torch.tensor([[0.0], [3.0]])
    y = net(x).argmax(1)
    try:
        radii = sn.certified_radius(net, x, y)
    except ValueError:  # refused is safe too
        return
    for start, label, radius in zip(x, y, radii.tolist(), strict=True):
        reach = min(radius, 100.0) * 0.999
        around = start + torch.linspace(-reach, reach, 401)[:, None]
        assert bool((net(around).argmax(1) == label).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_of_a_models_own_dtype_is_allowed_for(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        net = linear(torch.randn(3, 16, generator=generator).tolist(), [0.0, 0.5, 1.0]).to(dtype)
        x, y = torch.zeros(1, 16, dtype=dtype), torch.tensor([2])
        radius = float(sn.certified_radius(net, x, y))
        for other in (0, 1):
            away = (net.weight[other] - net.weight[2]).detach().double()
            steps = torch.linspace(0.99, 0.9999, 40, dtype=torch.float64)[:, None] * radius * away / away.norm()
            steps = steps.to(dtype)
            inside = steps.double().norm(dim=1) < radius
            assert bool((net(x + steps[inside]).argmax(1) == 2).all())


def test_what_comes_before_the_last_layer_multiplies_and_a_scale_behind_it_cancels() -> None:
    before = linear([[2.0, 0.0], [0.0, 2.0]])
    last = linear([[1.0, 0.0], [0.0, 1.0]])
    x, y = torch.tensor([[3.0, 1.0]]), torch.tensor([0])

    class Cooled(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.log = net, nn.Parameter(torch.tensor([-3.0]))

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.net(x) / self.log.exp()

    net = nn.Sequential(before, nn.ReLU(), last)
    exact = 4 / (2 * math.sqrt(2))  # logits 6 and 2, through a map of norm 2
    for model in (net, Cooled(net)):
        assert exact * (1 - 1e-4) <= float(sn.certified_radius(model, x, y)) <= exact
    tanh = nn.Sequential(
        before, nn.ReLU(), last, nn.LeakyReLU()
    )  # does not end in a Linear: sqrt(2) times its bound
    assert exact * (1 - 1e-4) <= float(sn.certified_radius(tanh, x, y)) <= exact


def test_pairs_of_classes_are_tighter_than_the_whole_layer() -> None:
    net = linear([[10.0, 0.0], [10.0, 0.1], [-10.0, 0.0]])
    radius = float(sn.certified_radius(net, torch.tensor([[1.0, -1.0]]), torch.tensor([0])))
    assert radius == pytest.approx(1.0, rel=1e-3)  # 0.1 / 0.1; the whole layer's norm is 17


def test_answers_that_never_change_and_ties() -> None:
    net = linear([[1.0, 2.0], [1.0, 2.0]], [1.0, 0.0])
    x = torch.ones(2, 2)
    assert sn.certified_radius(net, x, torch.tensor([0, 1])).tolist() == [math.inf, 0]
    tie = linear([[1.0, 0.0], [0.0, 1.0]])
    assert sn.certified_radius(tie, torch.ones(1, 2), torch.tensor([0])).tolist() == [0]
    nothing = nn.Sequential(linear([[0.0, 0.0], [0.0, 0.0]], [1.0, 0.0]), nn.Identity())
    assert sn.certified_radius(nothing, torch.ones(1, 2), torch.tensor([0])).tolist() == [math.inf]


def test_margins_within_rounding_are_not_certified() -> None:
    net = linear([[1.0, 0.0], [0.0, 1.0]])
    assert sn.certified_radius(net, torch.tensor([[1.0 + 2e-7, 1.0]]), torch.tensor([0])).tolist() == [0]


@cache
def trained(batch_norm: bool = False) -> tuple[nn.Module, Tensor, Tensor]:
    """A small net on real digits with a normalisation layer, and 60 test images."""
    torch.manual_seed(0)

    class Normalise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 0.3) / 0.5

    norm = [nn.BatchNorm2d(8)] if batch_norm else []
    body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *norm, sn.MaxMin(), nn.AvgPool2d(2), nn.Flatten())
    net = nn.Sequential(Normalise(), body, nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))
    sn.spectral_normalize(net, fold_batchnorm=batch_norm)
    data = digits()
    x, y = data.train_x, data.train_y
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(60):
        batch = torch.arange(step * 64, step * 64 + 64) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(20 * net(x[batch]), y[batch]).backward()
        optimizer.step()
    return net.eval(), data.test_x[:60], data.test_y[:60]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_no_attack_within_a_radius_succeeds(batch_norm: bool) -> None:
    net, x, y = trained(batch_norm)
    radii = sn.certified_radius(net, x, y)
    assert float((radii > 0).double().mean()) > 0.6
    assert float(radii.median()) > 0.01
    for i in radii.nonzero().flatten().tolist()[:25]:
        one, label = x[i : i + 1], y[i : i + 1]
        for loss in ("margin", "ce"):
            found = pgd(net, one, label, 0.999 * float(radii[i]), norm="l2", loss=loss, bounds=(-9.0, 9.0))
            assert net(found).argmax(1).item() == label.item()
    beyond = pgd(net, x, y, 30 * float(radii.max()), norm="l2", bounds=(-99.0, 99.0))
    assert float((net(beyond).argmax(1) == y).double().mean()) < 0.2  # the attack does find what is there


def test_certified_accuracy_follows_from_the_radii() -> None:
    net, x, y = trained()
    found = sn.certify(net, DataLoader(TensorDataset(x, y), batch_size=25), {"l2": [0.0, 0.1], "linf": [0.01]})
    radii = sn.certified_radius(net, x, y)
    assert found.radii == pytest.approx(radii.tolist(), rel=1e-12)  # a batch's size changes the order of sums
    assert found.examples == 60
    assert found.clean_accuracy == float((net(x).argmax(1) == y).double().mean())
    by = {(each.norm, each.eps): each for each in found.results}
    assert by["l2", 0.1].certified_accuracy == float((radii > 0.1).double().mean())
    assert by["linf", 0.01].certified_accuracy == float((radii > 0.08).double().mean())  # sqrt(64) times as long
    assert by["linf", 0.01].through == "l2 / sqrt(dimension)"
    assert found.lipschitz == sn.lipschitz(net, (1, 8, 8)).upper <= 1 + 5e-3  # 1 / 0.5 times 1/2 for the pool
    assert found.to_dict()["results"][0]["norm"] == "l2"
    pairs = sn.certify(net, (x, y), {"l2": [0.1]}, batch_size=7)
    assert pairs.radii == pytest.approx(found.radii, rel=1e-5)


def test_certified_accuracy_is_at_most_the_accuracy_under_attack() -> None:
    net, x, y = trained()
    sizes = {"l2": [0.1, 0.3], "linf": [0.02]}
    attacked = sn.evaluate(net, (x, y), ["pgd"], sizes)
    proven = sn.certify(net, (x, y), sizes)
    for one, other in zip(proven.results, attacked.worst_case, strict=True):
        assert (one.norm, one.eps) == (other.norm, other.eps)
        assert one.certified_accuracy <= other.robust_accuracy


def test_a_certifier_keeps_the_network_it_was_made_of() -> None:
    net, x, y = trained()
    net = copy.deepcopy(net)
    certifier = sn.Certifier(net, (1, 8, 8))
    before = certifier.radius(x, y)
    with torch.no_grad():
        net[4].bias.add_(100 * torch.randn(10))
    net.train()
    assert torch.equal(certifier.radius(x, y), before)
    assert net.training
    assert certifier.radius(x[:0], y[:0]).shape == (0,)
    assert certifier.radius(x[:2].double(), y[:2]) == pytest.approx(before[:2], rel=1e-6)


def test_wrong_inputs() -> None:
    net, x, y = trained()
    certifier = sn.Certifier(net, (1, 8, 8))
    check_says(complaint(TypeError, lambda: certifier.radius([1], y)), "x: got list")
    check_says(complaint(TypeError, lambda: certifier.radius(x, y.int())), "torch.int32", "torch.int64")
    check_says(complaint(ValueError, lambda: certifier.radius(x[:, :, :4], y)), "(N, 1, 8, 8)")
    check_says(complaint(ValueError, lambda: certifier.radius(x, y[:-1])), "one label per input")
    check_says(complaint(ValueError, lambda: certifier.radius(x, y - 10)), "from 0")
    check_says(complaint(ValueError, lambda: certifier.radius(x, y + 10)), "less than the 10 logits")
    check_says(complaint(TypeError, lambda: sn.certified_radius(net, None, y)), "x: got NoneType")
    check_says(complaint(ValueError, lambda: sn.Certifier(nn.Linear(3, 1), (3,))), "at least 2 classes")
    check_says(
        complaint(TypeError, lambda: sn.certified_radius(nn.LayerNorm(3), torch.ones(1, 3), y[:1])), "LayerNorm"
    )
    check_says(complaint(ValueError, lambda: sn.certify(net, [])), "no examples")
    check_says(complaint(TypeError, lambda: sn.certify(net, 3)), "data: got a int")
    check_says(complaint(TypeError, lambda: sn.certify(net, [x])), "pair (x, y)")
    check_says(complaint(ValueError, lambda: sn.certify(net, (x, y[:3]))), "3 labels")
    check_says(complaint(ValueError, lambda: sn.certify(net, (x, y), {"l7": [1.0]})), "l7")
    check_says(complaint(TypeError, lambda: sn.certify(net, (x, y), {"l2": 1.0})), "list of sizes")
    check_says(complaint(ValueError, lambda: sn.certify(net, (x, y), {"l2": [-1.0]})), "-1.0")


def test_a_network_that_does_not_run_in_float64() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x.float())
            return y

    check_says(complaint(ValueError, lambda: sn.Certifier(Casts(), (2,))), "float64")
    assert sn.lipschitz(Casts(), (2,)).lower == 0
