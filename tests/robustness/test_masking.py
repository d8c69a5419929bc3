"""Alarms: raised where gradients are masked, and not where a net is attacked well."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn
from trained import Scale, trained_on_digits

from spectralnorm.robustness.attacks import ATTACKS
from spectralnorm.robustness.chance import exceeds, more_than_chance, wilson
from spectralnorm.robustness.evaluate import evaluate
from spectralnorm.robustness.masking import alarms
from spectralnorm.robustness.record import Condition, Probe, Record, Setup


def kinds(model: nn.Module, attacks: list[Any], eps: dict[str, list[float]], count: int = 200) -> set[str]:
    _, x, y = trained_on_digits()
    return {alarm.kind for alarm in evaluate(model, (x[:count], y[:count]), attacks, eps).alarms}


@pytest.mark.parametrize("factor", [10, 100])
def test_cross_entropy_on_scaled_logits(factor: float) -> None:
    """PGD on the cross-entropy of logits scaled up is the known trap."""
    scaled = nn.Sequential(trained_on_digits()[0], Scale(factor))
    found = kinds(scaled, ["pgd-ce"], {"l2": [0.5, 1.0, 1.5]})
    assert "gradients" in found
    if factor == 100:
        assert "unbounded" in found


@pytest.mark.parametrize("factor", [1, 100])
def test_the_margin_of_a_normal_net(factor: float) -> None:
    model = nn.Sequential(trained_on_digits()[0], Scale(factor))
    sizes = {"linf": [1 / 255, 2 / 255, 8 / 255, 0.05, 0.1, 0.3], "l2": [0.05, 0.1, 0.25, 0.5, 1.0, 1.5]}
    assert kinds(model, ["pgd"], sizes) == set()


def test_every_attack_on_a_normal_net() -> None:
    assert (
        kinds(trained_on_digits()[0], ["fgsm", "pgd", "deepfool"], {"linf": [0.05, 0.1], "l2": [0.25, 0.5]})
        == set()
    )


class _Quantised(nn.Module):
    """Rounds inputs, so that gradients are zero, but for a tiny slope that keeps them defined."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * 8).round().detach() / 8 + 0 * x)


def test_square_beats_gradients_that_are_not_there() -> None:
    model, x, y = trained_on_digits()
    square, plain = ATTACKS["square"], ATTACKS["pgd"]
    quick = replace(square, run=partial(square.run, queries=200))
    stuck = replace(plain, run=partial(plain.run, random_start=False))
    result = evaluate(_Quantised(model), (x[:60], y[:60]), [stuck, quick], {"linf": [0.2]})
    found = {alarm.kind for alarm in result.alarms}
    assert {"black box", "unbounded"} <= found
    assert "ALARM: square, which sees no gradients" in str(result)


def seen(held: dict[Condition, str], kind: str = "white", **more: Any) -> set[str]:
    """Kinds of alarms from marks of 100 examples that are all right without attack."""
    names = {at.attack: kind for at in held} | more.pop("kinds", {})
    setup = Setup("0" * 32, tuple(held), names, (), (0.0, 1.0), 0, 0, {})
    broken = more.pop("broken_by", {})
    record = Record(
        0,
        "0" * 32,
        "1" * 100,
        tuple(held.values()),
        tuple(broken for _ in held),
        tuple(0.0 for _ in held),
        **more,
    )
    return {alarm.kind for alarm in alarms(setup, [record])}


def marks(first: int, last: int = 100) -> str:
    """ "1" from the first example to before the last."""
    return "".join("1" if first <= i < last else "0" for i in range(100))


def at(attack: str, eps: float = 0.1) -> Condition:
    return Condition(attack, "linf", eps)


def test_rules_on_marks() -> None:
    assert seen({at("pgd", 0.1): marks(20), at("pgd", 0.3): marks(22)}) == {"flat"}
    assert seen({at("pgd", 0.1): marks(20), at("pgd", 0.15): marks(22)}) == set()  # the larger eps is near
    assert seen({at("pgd", 0.1): marks(20), at("pgd", 0.3): marks(50)}) == set()
    assert seen({at("pgd", 0.1): marks(1), at("pgd", 0.2): marks(2)}) == set()  # hardly any broken yet
    assert seen({at("pgd", 0.1): marks(90), at("pgd", 0.3): marks(90)}) == set()  # few left
    assert seen({at("pgd", 0.1): marks(30), at("pgd", 0.15): marks(5)}) == {"flat"}  # a larger eps breaks less
    assert seen({at("pgd", 0.1): marks(20), at("pgd", 0.3): marks(22)}, "own") == set()
    assert seen({at("fgsm"): marks(30), at("pgd"): marks(10)}) == {"fewer steps"}
    assert seen({at("fgsm"): marks(30), at("pgd"): marks(28)}) == set()
    black = {"square": "black"}
    assert seen({at("pgd"): marks(10), at("square"): marks(30)}, kinds=black) == {"black box"}
    assert seen({at("pgd"): marks(10), at("square"): marks(12)}, kinds=black) == set()
    assert seen({at("pgd"): marks(30), at("square"): marks(10)}, kinds=black) == set()
    assert seen({at("square"): marks(30)}, kinds=black) == set()
    parts = {"apgd-ce": 20, "apgd-t": 0, "fab-t": 0}
    assert seen({at("autoattack"): marks(30)}, broken_by={**parts, "square": 10}) == {"black box"}
    assert seen({at("autoattack"): marks(20)}, broken_by={**parts, "square": 0}) == set()
    assert seen({at("autoattack"): marks(20)}, broken_by={**parts, "square": 1}) == set()  # of 81, by chance


@pytest.mark.parametrize(
    ("probe", "kind"),
    [
        (Probe("unbounded", "pgd", "linf", 64, (30, 10)), "unbounded"),
        (Probe("unbounded", "pgd", "linf", 64, (8, 10)), None),
        (Probe("unbounded", "pgd", "linf", 64, (36, 2)), None),
        (Probe("steps", "pgd", "linf", 64, (12, 1)), "fewer steps"),
        (Probe("steps", "pgd", "linf", 64, (1, 12)), "more steps"),
        (Probe("steps", "pgd", "linf", 64, (3, 4)), None),
        (Probe("gradients", "", "", 64, (20,)), "gradients"),
        (Probe("gradients", "", "", 64, (1,)), None),
    ],
)
def test_rules_on_probes(probe: Probe, kind: str | None) -> None:
    found = seen({at("pgd-ce"): marks(50)}, "white, cross-entropy", probes=(probe,))
    assert found == ({kind} if kind else set())


def test_vanished_gradients_do_not_matter_to_the_margin() -> None:
    assert seen({at("pgd"): marks(50)}, probes=(Probe("gradients", "", "", 64, (64,)),)) == set()


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_solves_its_equation(successes: int, others: int) -> None:
    """Its ends are the shares whose normal test would just accept what was seen."""
    trials = successes + others
    low, high = wilson(successes, trials)
    assert 0 <= low <= high <= 1
    if trials:
        share = successes / trials
        assert low <= share <= high
        for end in {low, high} - {0.0, 1.0}:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / trials), rel=1e-5)


def test_chance_is_the_binomials() -> None:
    for more, less in [
        (7, 0),
        (6, 0),
        (10, 1),
        (9, 2),
        (15, 4),
        (60, 40),
        (40, 60),
        (0, 0),
        (700, 600),
        (800, 600),
    ]:
        exact = more > less and binomtest(more, more + less, alternative="greater").pvalue <= 0.01
        assert more_than_chance(more, less) == exact


@pytest.mark.parametrize(("trials", "share"), [(88, 0.002), (64, 0.05), (16, 0.01), (1, 0.5), (3000, 0.002)])
def test_exceeding_a_share_is_the_binomials(trials: int, share: float) -> None:
    for count in range(min(trials, 40) + 1):
        exact = count > 0 and binomtest(count, trials, share, alternative="greater").pvalue <= 0.01
        assert exceeds(count, trials, share) == exact
    assert not exceeds(0, trials, 0.0)
    assert exceeds(1, trials, 0.0)
    assert not exceeds(trials, trials, 1.0)


def test_zero_logits_and_no_right_examples() -> None:
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x = torch.rand(30, 4)
    for label in (0, 1):
        result = evaluate(model, (x, torch.full((30,), label)), ["fgsm", "pgd-ce"], {"l2": [0.1, 0.2]})
        assert result.clean_accuracy == 1 - label
        assert bool(result.alarms) == (label == 0)  # a constant classifier has no gradient, and survives anything
