"""FGSM and PGD: against closed forms, against foolbox, and what they must leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trained import closed_form, linear, trained_on_digits

from spectralnorm.robustness.attacks import ATTACKS, LOSSES, NORMS, eval_mode, fgsm, margin, pgd, project
from spectralnorm.training.models import small_cnn

WIDE = (-100.0, 100.0)
SIZES = {"linf": 0.1, "l2": 0.7}  # break roughly half of the digits
FOOLBOX = pytest.mark.filterwarnings("ignore:Please import .gaussian_filter.:DeprecationWarning")


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    return copy.deepcopy(trained_on_digits())  # some tests leave gradients in it


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def size(delta: Tensor, norm: str) -> Tensor:
    return delta.flatten(1).norm(dim=1) if norm == "l2" else delta.flatten(1).abs().amax(1)


def pgd_with_long_steps(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
    """With its default steps, L2 PGD from a random start ends up to 0.5 % short of the best point."""
    return pgd(model, x, y, eps, step_size=eps, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("attack", [fgsm, pgd_with_long_steps])
def test_two_class_linear_model_breaks_exactly_at_its_margin(attack: Any, loss: str, norm: str) -> None:
    model = linear(2, dtype=torch.float64)
    x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, gap = closed_form(model, x, norm)
    for row in range(20):
        one, label, radius = x[row : row + 1], y[row : row + 1], gap[row].item()
        above = attack(model, one, label, 1.001 * radius, norm=norm, loss=loss, bounds=WIDE)
        below = attack(model, one, label, 0.999 * radius, norm=norm, loss=loss, bounds=WIDE)
        assert fooled(model, above, label)
        assert not fooled(model, below, label)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_no_success_below_the_margin_with_many_classes(norm: str, loss: str) -> None:
    model = linear(5, dtype=torch.float64)
    x = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, gap = closed_form(model, x, norm)
    eps = gap.median().item()
    wrong = fooled(model, pgd(model, x, y, eps, norm=norm, loss=loss, restarts=3, bounds=WIDE), y)
    assert not wrong[gap > eps].any()
    assert wrong[gap < 0.95 * eps].float().mean() > 0.9


@pytest.mark.parametrize("norm", NORMS)
def test_a_size_for_each_example(norm: str) -> None:
    """All at once, just below and just above each one's own margin."""
    model = linear(2, dtype=torch.float64)
    x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, gap = closed_form(model, x, norm)
    attack = {"norm": norm, "bounds": WIDE, "restarts": 2}
    assert not fooled(model, pgd(model, x, y, 0.999 * gap, **attack), y).any()
    assert fooled(model, pgd(model, x, y, 1.02 * gap, step_size=3.0, **attack), y).all()
    some = torch.where(torch.arange(20) % 2 == 0, 1.02 * gap, 0.0)
    point = pgd(model, x, y, some, step_size=3.0, **attack)
    assert torch.equal(fooled(model, point, y), some > 0)
    assert torch.equal(point[1::2], x[1::2])
    assert (size(point - x, norm) <= some * (1 + 1e-12)).all()
    one = pgd(model, x, y, 0.3, steps=5, norm=norm, bounds=WIDE)
    alike = pgd(model, x, y, torch.full((20,), 0.3), steps=5, norm=norm, bounds=WIDE)
    torch.testing.assert_close(alike, one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("eps", "error", "complaint"),
    [
        (torch.ones(3), ValueError, r"eps: got shape \(3,\), expected \(2,\)"),
        (torch.tensor([0.1, -0.1]), ValueError, "from -0.1"),
        (torch.tensor([0.1, torch.nan]), ValueError, "nan"),
        (torch.tensor([0.1, torch.inf]), ValueError, "inf"),
        (torch.ones(2, dtype=torch.int64), TypeError, "torch.int64"),
    ],
)
def test_bad_sizes_for_each_example(eps: Tensor, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        pgd(linear(2), torch.rand(2, 6), torch.zeros(2, dtype=torch.int64), eps)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_points_stay_in_the_ball_and_the_bounds(trained: Any, attack: Any, norm: str) -> None:
    model, x, y = trained
    eps = SIZES[norm]
    point = attack(model, x, y, eps, norm=norm)
    assert point.shape == x.shape
    assert point.dtype == x.dtype
    assert not point.requires_grad
    assert point.min() >= 0
    assert point.max() <= 1
    assert size(point - x, norm).max() <= eps + 1e-6
    assert 0.1 < fooled(model, point, y).float().mean() < 1


def foolbox_points(model: nn.Module, x: Tensor, y: Tensor, attack: str, eps: float, **options: Any) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    clipped: Tensor = getattr(foolbox.attacks, attack)(**options)(wrapped, x, y, epsilons=eps)[1]
    return clipped


@FOOLBOX
@pytest.mark.parametrize(("norm", "attack"), [("linf", "LinfFastGradientAttack"), ("l2", "L2FastGradientAttack")])
def test_fgsm_is_foolboxs(trained: Any, norm: str, attack: str) -> None:
    model, x, y = trained
    theirs = foolbox_points(model, x, y, attack, SIZES[norm])
    ours = fgsm(model, x, y, SIZES[norm], norm=norm)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert torch.equal(fooled(model, ours, y), fooled(model, theirs, y))


@FOOLBOX
@pytest.mark.parametrize(("norm", "attack"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_pgd_is_as_strong_as_foolboxs(trained: Any, norm: str, attack: str) -> None:
    model, x, y = trained
    eps = SIZES[norm]
    options = {"steps": 10, "abs_stepsize": eps / 4, "random_start": False}
    theirs = fooled(model, foolbox_points(model, x, y, attack, eps, **options), y)
    point = pgd(model, x, y, eps, norm=norm, steps=10, step_size=eps / 4, random_start=False)
    ours = fooled(model, point, y)
    assert abs(ours.float().mean() - theirs.float().mean()) <= 0.01
    assert (ours | ~theirs).float().mean() > 0.995  # the same path, of which ours keeps the best point


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_beats_fgsm_and_restarts_help(trained: Any, norm: str) -> None:
    model, x, y = trained
    eps = SIZES[norm]
    single = fooled(model, fgsm(model, x, y, eps, norm=norm), y)
    once = fooled(model, pgd(model, x, y, eps, norm=norm, loss="margin"), y)
    twice = fooled(model, pgd(model, x, y, eps, norm=norm, loss="margin", restarts=2), y)
    assert once.sum() > single.sum()
    assert not (once & ~twice).any()


def test_pgd_keeps_the_best_point_of_examples_that_hold(trained: Any) -> None:
    model, x, y = trained
    eps = 0.01
    few = margin(model(pgd(model, x, y, eps, loss="margin", steps=1, step_size=eps)), y)
    more = margin(model(pgd(model, x, y, eps, loss="margin", steps=5, step_size=eps)), y)
    both = (few < 0) & (more < 0)
    assert both.float().mean() > 0.5
    assert (more >= few - 1e-5)[both].all()


def test_margin_loss_survives_scaled_logits(trained: Any) -> None:
    model, x, y = trained
    scaled = nn.Sequential(model, _Scale(1e4))
    eps = SIZES["linf"]
    plain = fooled(model, pgd(model, x, y, eps, loss="margin"), y).float().mean()
    masked = fooled(scaled, pgd(scaled, x, y, eps, loss="ce"), y).float().mean()
    assert masked < plain - 0.1
    assert fooled(scaled, pgd(scaled, x, y, eps, loss="margin"), y).float().mean() > plain - 0.02


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize("norm", NORMS)
def test_seed_decides_and_the_global_generator_is_untouched(trained: Any, norm: str) -> None:
    model, x, y = trained
    before = torch.random.get_rng_state()
    first, again, other = (pgd(model, x[:50], y[:50], 0.02, norm=norm, steps=2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_starts_fill_the_ball() -> None:
    model = nn.Linear(3, 2, dtype=torch.float64)
    x, y = torch.zeros(4000, 3, dtype=torch.float64), torch.zeros(4000, dtype=torch.int64)
    nn.init.zeros_(model.weight)  # no gradient: the attack stays where it starts
    nn.init.zeros_(model.bias)
    cube = pgd(model, x, y, 2.0, norm="linf", steps=1, bounds=WIDE)
    ball = pgd(model, x, y, 2.0, norm="l2", steps=1, bounds=WIDE)
    assert cube.abs().max() <= 2
    assert abs(cube.pow(2).mean() - 4 / 3) < 0.05
    radii = ball.norm(dim=1) / 2
    assert radii.max() <= 1
    assert abs((radii < 0.5).double().mean() - 1 / 8) < 0.02  # volume grows as radius^3
    assert ball.mean(0).abs().max() < 0.05


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [ATTACKS["fgsm"].run, ATTACKS["pgd"].run], ids=["fgsm", "pgd"])
def test_zero_and_tiny_gradients(attack: Any, norm: str) -> None:
    model = linear(2, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    x, y = torch.zeros(3, 6, dtype=torch.float64), torch.tensor([0, 1, 0])
    assert torch.isfinite(attack(model, x, y, 0.5, norm=norm, bounds=WIDE, seed=0)).all()
    with torch.no_grad():
        model.weight[0, 0] = 1e-30
        model.bias.copy_(torch.tensor([1e-31, 0.0]))
    tiny = attack(model.float(), x[:1].float(), y[:1], 0.5, norm=norm, bounds=WIDE, seed=0)
    assert fooled(model, tiny, y[:1])


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_eps_zero_and_empty_batch_return_x(attack: Any) -> None:
    model, x = linear(3, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    unchanged = attack(model, x, y, 0)
    assert torch.equal(unchanged, x)
    assert unchanged is not x
    assert attack(model, x[:0], y[:0], 0.1).shape == (0, 6)


def test_already_misclassified_examples_are_left_where_they_are() -> None:
    model, x = linear(3, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64)
    y = (model(x).argmax(1) + 1) % 3
    assert torch.equal(pgd(model, x, y, 0.1, random_start=False), x)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_model_is_left_as_it_was(attack: Any) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), small_cnn((1, 8, 8), 3, width=2))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.rand(4, 1, 8, 8, requires_grad=True), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        attack(model, x, y, 0.1)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert x.grad is None


def test_eval_mode_restores_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fail() -> None:
        with eval_mode(model):
            assert not model[0].training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [model.training, model[0].training, model[1].training] == [True, True, False]


@pytest.mark.parametrize("norm", NORMS)
def test_project_is_idempotent_and_leaves_inner_points(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(10, 3, 4, generator=generator)
    inner = project(x + 0.001 * torch.randn(10, 3, 4, generator=generator), x, 0.5, norm, (0, 1))
    torch.testing.assert_close(project(inner, x, 0.5, norm, (0, 1)), inner)
    far = project(x + 9 * torch.randn(10, 3, 4, generator=generator), x, 0.5, norm, WIDE)
    torch.testing.assert_close(size(far - x, norm), torch.full((10,), 0.5))


class _Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class _Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x).sqrt() + x


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"x": torch.full((2, 3), 1.5)},
        ValueError,
        r"x: got values from 1.5 to 1.5, expected them within bounds",
    ),
    ({"x": torch.full((2, 3), torch.nan)}, ValueError, "x: got values from nan"),
    ({"x": torch.ones(2, 3, dtype=torch.uint8)}, TypeError, "got torch.uint8.*convert with x.float"),
    ({"x": [[0.1, 0.2, 0.3]]}, TypeError, "x: got list, expected a tensor"),
    ({"x": torch.rand(2)}, ValueError, r"x, y: got shapes \(2,\)"),
    ({"y": torch.tensor([0])}, ValueError, r"x, y: got shapes \(2, 3\) and \(1,\)"),
    ({"y": torch.tensor([0.0, 1.0])}, TypeError, "got torch.float32 and torch.float32"),
    ({"y": torch.tensor([0, 3])}, ValueError, "y: got 3, expected less than the 3 logits"),
    ({"y": torch.tensor([0, -1])}, ValueError, "y: got label -1"),
    ({"eps": -0.1}, ValueError, "eps: got -0.1, expected a finite number at least 0"),
    ({"eps": float("nan")}, ValueError, "eps: got nan"),
    ({"eps": "8/255"}, TypeError, "eps: got '8/255', expected a number"),
    ({"norm": "l1"}, ValueError, "norm: got 'l1', expected one of linf, l2"),
    ({"loss": "mse"}, ValueError, "loss: got 'mse', expected one of ce, margin"),
    ({"bounds": (1.0, 0.0)}, ValueError, r"bounds: got \(1.0, 0.0\)"),
    (
        {"model": torch.sigmoid},
        TypeError,
        "model: got builtin_function_or_method, expected a torch.nn.Module",
    ),
    ({"model": nn.Flatten(0)}, ValueError, r"model: got logits of shape \(6,\), expected \(2, classes\)"),
    ({"model": nn.Linear(3, 1)}, ValueError, "at least 2 classes"),
    ({"model": _Detached()}, ValueError, "no gradient with respect to the input"),
    ({"model": _Scale(torch.inf)}, FloatingPointError, "logits that are not finite"),
    ({"model": _Root()}, FloatingPointError, "gradient that is not finite"),
]


@pytest.mark.parametrize(("changes", "error", "complaint"), BAD)
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_bad_input(
    attack: Callable[..., Tensor], changes: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    arguments: dict[str, Any] = {"model": nn.Identity(), "x": torch.full((2, 3), 0.5), "eps": 0.1}
    arguments |= {"y": torch.tensor([0, 0])} | changes
    with pytest.raises(error, match=complaint):
        attack(**arguments)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"steps": 0}, ValueError, "steps: got 0, expected at least 1"),
        ({"steps": 2.0}, TypeError, "steps: got 2.0, expected an int"),
        ({"restarts": 0}, ValueError, "restarts: got 0"),
        (
            {"restarts": 2, "random_start": False},
            ValueError,
            "restarts: got 2, expected 1 with random_start=False",
        ),
        ({"step_size": 0.0}, ValueError, "step_size: got 0.0, expected a finite number above 0"),
    ],
)
def test_bad_pgd_options(options: dict[str, Any], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        pgd(nn.Identity(), torch.full((2, 3), 0.5), torch.tensor([0, 0]), 0.1, **options)
