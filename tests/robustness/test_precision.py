"""Attacked points in every precision: in the ball, in the bounds, whatever eps is, and whatever the model does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trained import Scale, linear, trained_on_digits

from messages import complaint
from spectralnorm.robustness.attacks import NORMS, fgsm, pgd, project
from spectralnorm.robustness.certify import certify
from spectralnorm.robustness.evaluate import evaluate
from spectralnorm.robustness.geometry import confined, distance, rounded_inward

FOOLBOX = pytest.mark.filterwarnings("ignore:Please import .gaussian_filter.:DeprecationWarning")


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


HALF = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_attacked_points_of_any_precision_lie_in_the_ball(dtype: torch.dtype, norm: str) -> None:
    """Rounded to the nearest number, those of half precision would lie a third outside."""
    model = linear(4, features=32).to(dtype)
    x = torch.rand(20, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    y, eps = torch.arange(20) % 4, {"linf": 0.011, "l2": 0.05}[norm]
    sizes = torch.full((20,), eps, dtype=torch.float64)
    for point in (
        fgsm(model, x, y, eps, norm=norm),
        pgd(model, x, y, eps, norm=norm),
        pgd(model, x, y, sizes, norm=norm),
    ):
        slack = 1e-12 if dtype == torch.float64 else 1e-6  # float32 holds sizes for half precision, too
        assert distance(point, x, norm).max() <= eps * (1 + slack)
        cut = confined(point + eps, x, eps, norm, (0.0, 1.0))
        assert distance(cut, x, norm).max() <= eps * (1 + 1e-12)
        assert cut.min() >= 0
        assert cut.max() <= 1
        assert distance(cut, x, norm).max() > 0.5 * eps


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_rounding_inward_is_by_one_number_at_most(dtype: torch.dtype, norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(50, 9, generator=generator) * 2 - 1).to(dtype)
    there = x.double() + torch.randn(50, 9, generator=generator)
    exact = project(there, x.double(), 0.3, norm, (-1.0, 1.0))
    found = rounded_inward(there, x, 0.3, norm, (-1.0, 1.0))
    assert found.dtype == dtype
    assert ((found.double() - x.double()).abs() <= (exact - x.double()).abs()).all()
    assert ((found.double() - exact).abs() <= 2 * torch.finfo(dtype).eps * exact.abs() + 1e-7).all()


@pytest.mark.parametrize("eps", [1e3, 1e19, 1e30, 1e300])
@pytest.mark.parametrize("norm", NORMS)
@FOOLBOX
def test_no_eps_is_too_large(eps: float, norm: str) -> None:
    """Squares of such steps overflow, and the points would come back to where they were."""
    model, x, y = trained_on_digits()
    x, y = x[:20], y[:20]
    sizes = torch.full((20,), eps, dtype=torch.float64)
    for attack in (fgsm, pgd):
        assert fooled(model, attack(model, x, y, eps, norm=norm), y).sum() >= (10 if attack is fgsm else 20)
    assert fooled(model, pgd(model, x, y, sizes, norm=norm), y).all()
    assert not evaluate(model, (x, y), ["pgd", "deepfool"], {norm: [eps]}, probes=0).results[0].right


def test_lengths_of_entries_whose_squares_overflow() -> None:
    point = project(torch.tensor([[3e30, 4e30]]), torch.zeros(1, 2), 1.0, "l2", (-1.0, 1.0))
    torch.testing.assert_close(point, torch.tensor([[0.6, 0.8]]))


class Writing(nn.Module):
    """Scales its input in place first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.mul_(0.5))


@FOOLBOX
def test_a_model_that_writes_to_its_input_changes_nothing_else() -> None:
    model, x, y = trained_on_digits()
    x, y = x[:12], y[:12]
    before, half = x.clone(), nn.Sequential(Scale(0.5), model)
    attacks = ["fgsm", "pgd", "deepfool", "square", "apgd-ce"]
    one, two = (evaluate(net, (x, y), attacks, {"l2": [0.5]}, probes=4) for net in (Writing(model), half))
    assert torch.equal(x, before)
    assert [result.right for result in one.results] == [result.right for result in two.results]
    radii = [certify(net, (x, y), {"l2": [0.1]}).radii for net in (Writing(model), half)]
    assert torch.equal(x, before)
    assert radii[0] == radii[1]


def test_a_step_that_overflows_half_precision_comes_back_into_the_ball() -> None:
    model, x = linear(2, features=64).half(), torch.full((2, 64), 30000.0).half()
    with torch.no_grad():
        model.weight.mul_(1e-4)
    y = model(x).argmax(1)
    for steps in (1, 2):
        point = pgd(model, x, y, 1e5, norm="l2", steps=steps, bounds=(0.0, 60000.0))
        assert distance(point, x, "l2").max() <= 1e5 * (1 + 1e-6)


@pytest.mark.parametrize("bounds", [(0.0, 0.3), (-0.7, 0.1)])
def test_bounds_that_the_precision_rounds(bounds: tuple[float, float]) -> None:
    model, x = linear(3), torch.rand(8, 6).clamp(*bounds)
    point = pgd(model, x, torch.arange(8) % 3, 5.0, bounds=bounds)
    assert evaluate(model, (point, torch.arange(8) % 3), ["fgsm"], {"linf": [0.01]}, bounds=bounds).examples == 8


def test_bounds_beyond_the_precision_are_refused() -> None:
    x = torch.rand(2, 6)
    said = complaint(ValueError, lambda: fgsm(linear(3), x, torch.tensor([0, 1]), 1.0, bounds=(-3e38, 3e38)))
    assert "expected a range that torch.float32 can hold" in said
