"""Attacks through foolbox and pyautoattack: as strong as the libraries say, re-checked, no trace left."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trained import Scale, closed_form, linear, trained_on_digits

from messages import check_says, complaint
from spectralnorm.robustness.attacks import ATTACKS, NamedAttack, autoattack, autoattack_part, pgd, smallest
from spectralnorm.robustness.attacks import libraries as adapters
from spectralnorm.robustness.attacks.autoattack import parts_for
from spectralnorm.robustness.attacks.libraries import library
from spectralnorm.robustness.evaluate import evaluate
from spectralnorm.robustness.geometry import confined, distance

SIZES = {"linf": 0.1, "l2": 0.5}
PAIRS = [(name, norm) for name, attack in ATTACKS.items() for norm in attack.norms]
QUICK = {"square": {"queries": 100}, "autoattack": {"queries": 100}, "cw": {"steps": 50}}


def run(name: str) -> Any:
    """An attack by name, quick."""
    return partial(ATTACKS[name].run, **QUICK.get(name, {}))


def few(count: int = 30) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = trained_on_digits()
    return model, x[:count], y[:count]


def fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


# AutoAttack's parts are among them; the whole takes long.
@pytest.mark.parametrize(("name", "norm"), [pair for pair in PAIRS if pair != ("autoattack", "l2")])
def test_every_attack_stays_in_its_ball_leaves_no_trace_and_repeats_itself(name: str, norm: str) -> None:
    model, x, y = few(3 if name in {"autoattack", "fab-t", "apgd-t"} else 12)
    model.train()
    before = torch.random.get_rng_state()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        options: dict[str, Any] = {"norm": norm, "bounds": (0.0, 1.0), "seed": 3}
        point, again = (run(name)(model, x, y, SIZES[norm], **options) for _ in range(2))
    assert torch.equal(point, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    model.eval()  # as the tests share it
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert point.shape == x.shape
    assert point.dtype == x.dtype
    assert point.min() >= 0
    assert point.max() <= 1
    assert distance(point, x, norm).max() <= SIZES[norm] * (1 + 1e-6) + 1e-7
    assert fooled(model, point, y).any()


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_empty_batches_and_eps_zero(name: str, norm: str) -> None:
    model, x, y = few(3)
    options = {"norm": norm, "bounds": (0.0, 1.0), "seed": 0}
    assert run(name)(model, x[:0], y[:0], 0.1, **options).shape == (0, 1, 8, 8)
    unchanged = run(name)(model, x, y, 0.0, **options)
    assert torch.equal(unchanged, x)
    assert unchanged is not x


@pytest.mark.parametrize(("name", "norm"), [pair for pair in PAIRS if pair[0] not in {"square", "apgd-t", "fgsm"}])
@pytest.mark.parametrize("classes", [2, 3])
def test_vectors_few_classes_and_other_bounds(name: str, norm: str, classes: int) -> None:
    """Of linear models, what breaks is known."""
    model = linear(classes)
    x = torch.empty(60, 6).uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
    y, gap = closed_form(model, x, norm)
    eps = min(gap.median().item(), 0.6)
    broken = fooled(model, run(name)(model, x, y, eps, norm=norm, bounds=(-1.0, 1.0), seed=0), y)
    assert not broken[gap > eps * 1.0001].any()
    assert broken[gap < 0.8 * eps].float().mean() > 0.9


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_on_vectors(norm: str, dtype: torch.dtype) -> None:
    model = linear(2, dtype=dtype)
    x = torch.empty(40, 6, dtype=dtype).uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
    y, gap = closed_form(model, x, norm)
    eps = gap.median().item()
    point = autoattack_part(model, x, y, eps, part="square", norm=norm, bounds=(-1, 1), queries=300)
    assert point.dtype == dtype
    broken = fooled(model, point, y)
    assert not broken[gap > eps * 1.0001].any()
    assert broken[gap < 0.4 * eps].float().mean() > 0.5


def test_apgd_t_needs_four_classes() -> None:
    assert "apgd-t" in parts_for(4)
    model, x = linear(3), torch.rand(4, 6)
    said = complaint(ValueError, lambda: autoattack_part(model, x, model(x).argmax(1), 0.1, part="apgd-t"))
    check_says(said, "got 3 classes", "at least 4", "autoattack")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_four_to_nine_classes(norm: str) -> None:
    for classes in (4, 9):
        model, x = linear(classes), torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
        y, gap = closed_form(model, x, norm)
        broken = fooled(model, autoattack(model, x, y, gap.median().item(), norm=norm, queries=20), y)
        assert broken.any()
        assert not broken[gap > gap.median() * 1.0001].any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_is_the_librarys(norm: str) -> None:
    """The same images and seed give the same examples, with Square's queries reduced alike."""
    model, x, y = few(10)
    eps = SIZES[norm] * 0.8
    theirs = library("pyautoattack").AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=5, version="standard"
    )
    theirs.square.n_queries = 200
    with torch.random.fork_rng():
        points, _ = theirs.run_standard_evaluation(x, y, batch_size=len(x))
    model.zero_grad(set_to_none=True)
    ours = autoattack(model, x, y, eps, norm=norm, seed=5, queries=200)
    assert torch.equal(fooled(model, ours, y), fooled(model, points, y))
    torch.testing.assert_close(ours, points, rtol=0, atol=2e-6)


def test_an_evaluation_counts_autoattack_as_the_library_does() -> None:
    model, x, y = few(10)
    theirs = library("pyautoattack").AutoAttack(model, norm="Linf", eps=0.08, seed=5, version="standard")
    theirs.square.n_queries = 200
    with torch.random.fork_rng():
        points, _ = theirs.run_standard_evaluation(x, y, batch_size=len(x))
    model.zero_grad(set_to_none=True)
    found = evaluate(model, (x, y), [quick_autoattack()], {"linf": [0.08]}, seed=5, probes=0).results[0]
    assert found.right == len(x) - int(fooled(model, points, y).sum())
    assert list(found.broken_by) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert sum(found.broken_by.values()) == len(x) - found.right


def quick_autoattack() -> NamedAttack:
    """AutoAttack with 200 queries of Square."""
    whole, square = ATTACKS["autoattack"], ATTACKS["square"]

    def parts(classes: int, norm: str) -> tuple[NamedAttack, ...]:
        assert whole.parts is not None
        return (*whole.parts(classes, norm)[:-1], replace(square, run=partial(square.run, queries=200)))

    return replace(whole, parts=parts)


def test_an_undefended_network_keeps_nothing_at_a_large_eps() -> None:
    model, x, y = few(60)
    found = evaluate(model, (x, y), ["autoattack"], {"linf": [0.3]}, probes=0)
    assert found.clean_accuracy == 1
    assert found.worst_case[0].robust_accuracy <= 0.02


@pytest.mark.parametrize(("norm", "theirs"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_accuracy_under_pgd_is_foolboxs(norm: str, theirs: str) -> None:
    """From the same start with the same steps; random starts alone differ by a point from seed to seed."""
    model, x, y = few(350)
    foolbox, eps = library("foolbox"), SIZES[norm]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = getattr(foolbox.attacks, theirs)(steps=40, rel_stepsize=2.5 / 40, random_start=False)
    foolboxs = 1 - fooled(model, attack(wrapped, x, y, epsilons=eps)[1], y).float().mean().item()
    model.zero_grad(set_to_none=True)
    ours = evaluate(
        model, (x, y), [partial(pgd, loss="ce", steps=40, random_start=False)], {norm: [eps]}, probes=0
    )
    assert abs(ours.results[0].robust_accuracy - foolboxs) <= 0.01


@pytest.mark.parametrize("name", ["deepfool", "ddn", "fmn", "cw"])
def test_smallest_perturbations_are_near_those_in_closed_form(name: str) -> None:
    """Of a linear model; and one run serves every eps."""
    model = linear(4)
    x = torch.empty(60, 6).uniform_(0.3, 0.7, generator=torch.Generator().manual_seed(1))
    y, gap = closed_form(model, x, "l2")
    near = gap < 0.25  # the bounds do not matter
    assert near.sum() > 10
    calls: list[float] = []

    def counted(*arguments: Any, **options: Any) -> Tensor:
        calls.append(arguments[3])
        return smallest(*arguments, name=name, **options)

    attack = replace(ATTACKS[name], run=counted)
    sizes = [0.05, 0.1, 0.2]
    found = evaluate(model, (x[near], y[near]), [attack], {"l2": sizes}, probes=0)
    assert len(calls) == 1
    for size, result in zip(sizes, found.results, strict=True):
        assert result.right >= int((gap[near] > size * 1.0001).sum())
        assert result.right <= int((gap[near] > size * 0.9).sum())


def test_a_lying_library_is_cut_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points outside eps and the bounds, and NaN, count as what is left of them."""
    model, x, y = few(20)

    class Liar:
        def perturb(self, clean: Tensor, _: Tensor) -> Tensor:
            point = clean + 50 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
            point[0] = torch.nan
            return point

    module = importlib.import_module("spectralnorm.robustness.attacks.autoattack")  # also a function's name
    monkeypatch.setattr(module, "_configured", lambda *_: Liar())
    for norm in ("linf", "l2"):
        point = autoattack_part(model, x, y, 0.01, part="apgd-ce", norm=norm)
        assert distance(point, x, norm).max() <= 0.01 * (1 + 1e-5)
        assert point.min() >= 0
        assert point.max() <= 1
        assert torch.equal(point[0], x[0])
    found = evaluate(model, (x, y), ["apgd-ce"], {"linf": [1e-4]}, probes=0)
    assert found.results[0].robust_accuracy == 1

    monkeypatch.setattr(Liar, "perturb", lambda _, clean, *__: clean[:, :, :4])
    said = complaint(ValueError, lambda: autoattack_part(model, x, y, 0.1, part="square"))
    check_says(said, "(20, 1, 4, 8)", "(20, 1, 8, 8)", "spectralnorm[attacks]")


def test_points_inside_stay_bit_for_bit() -> None:
    x = torch.rand(50, 7, generator=torch.Generator().manual_seed(0))
    point = (x + 0.3 * (2 * torch.rand(50, 7, generator=torch.Generator().manual_seed(1)) - 1)).clamp(0, 1)
    assert torch.equal(confined(point, x, 0.31, "linf", (0, 1)), point)


@pytest.mark.parametrize("name", ["cw", "square"])
def test_a_missing_library_is_one_clear_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, ATTACKS[name].library, None)
    model, x, y = few(2)
    for call in (
        lambda: run(name)(model, x, y, 0.1, norm="l2", bounds=(0.0, 1.0), seed=0),
        lambda: evaluate(model, (x, y), [name], {"l2": [0.1]}),
    ):
        said = complaint(ImportError, call)
        check_says(said, ATTACKS[name].library, 'pip install "spectralnorm[attacks]"')


@pytest.mark.parametrize("name", ["deepfool", "fmn", "apgd-ce", "square", "fab-t"])
def test_logits_that_are_not_finite(name: str) -> None:
    model, x, y = few(4)
    broken = nn.Sequential(model, Scale(torch.nan))
    with pytest.raises(FloatingPointError, match="logits that are not finite"):
        run(name)(broken, x, y, 0.1, norm="linf", bounds=(0.0, 1.0), seed=0)


def test_wrong_names_and_norms() -> None:
    model, x, y = few(2)
    check_says(complaint(ValueError, lambda: smallest(model, x, y, 0.1, name="jsma")), "'jsma'", "deepfool")
    check_says(complaint(ValueError, lambda: smallest(model, x, y, 0.1, name="cw", norm="linf")), "'linf'", "l2")
    check_says(complaint(ValueError, lambda: autoattack_part(model, x, y, 0.1, part="apgd")), "'apgd'", "apgd-ce")
    assert adapters.library("foolbox").__version__ == "3.3.4"
