"""Accuracy under attack: counted right, and the attacks' word never taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from spectralnorm.robustness.evaluate import DEFAULT_EPS, evaluate
from spectralnorm.robustness.evaluation import WORST, AttackResult

X = torch.tensor([[0.5, 0.45], [0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])  # gaps 0.05, 0.2, 0.8; the last is wrong
Y = torch.zeros(4, dtype=torch.int64)


def toward(axis: int) -> Any:
    """An attack on the identity that moves the two inputs by eps in opposite directions, up along `axis`."""

    def move(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
        sign = torch.tensor([-1.0, 1.0]) if axis else torch.tensor([1.0, -1.0])
        return x + eps * sign

    return move


def rates(results: list[AttackResult]) -> list[float]:
    return [result.robust_accuracy for result in results]


def test_accuracies_of_the_identity_are_known() -> None:
    result = evaluate(nn.Identity(), (X, Y), ["fgsm", "pgd"], {"linf": [0.0, 0.03, 0.11], "l2": [0.2]})
    assert result.examples == 4
    assert result.clean_accuracy == 0.75
    assert [(entry.attack, entry.norm, entry.eps) for entry in result.results[-2:]] == [
        ("fgsm", "l2", 0.2),
        ("pgd", "l2", 0.2),
    ]
    assert rates(result.results) == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert rates(result.worst_case) == [0.75, 0.5, 0.25, 0.25]


def test_worst_case_is_taken_per_example() -> None:
    x = torch.tensor([[0.55, 0.45], [0.45, 0.55]])
    y = torch.tensor([0, 1])
    result = evaluate(nn.Identity(), (x, y), [toward(0), toward(1)], {"linf": [0.1]})
    assert rates(result.results) == [0.5, 0.5]
    worst = result.worst_case[0]
    assert (worst.attack, worst.norm, worst.eps, worst.right, worst.examples) == (WORST, "linf", 0.1, 0, 2)
    assert worst.interval[0] == 0


def test_attacks_that_cheat_are_cut_back() -> None:
    def too_far(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
        return x + 100 * torch.tensor([-1.0, 1.0])

    def out_of_bounds(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
        return x - 0.9 * torch.tensor([1.0, 0.0])

    result = evaluate(nn.Identity(), (X, Y), [too_far], {"linf": [0.03], "l2": [0.2]})
    assert rates(result.results) == [0.5, 0.25]
    high = torch.tensor([[0.1, 0.0]])
    assert rates(evaluate(nn.Identity(), (high, Y[:1]), [out_of_bounds], {"linf": [0.9]}).results) == [1.0]


def test_attack_that_claims_nothing_is_judged_by_the_model() -> None:
    def idle(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
        model.train()
        return x

    model = nn.Sequential(nn.Dropout(0.99))
    result = evaluate(model, (X, Y), [idle], {"linf": [1.0]})
    assert rates(result.results) == [result.clean_accuracy] == [0.75]
    assert result.results[0].attack == "idle"


def test_only_right_examples_are_attacked_and_batches_get_their_own_seed() -> None:
    calls: list[tuple[int, int]] = []

    def record(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, seed: int, **options: Any) -> Tensor:
        calls.append((len(x), seed))
        return x

    evaluate(nn.Identity(), (X, Y), [record], {"linf": [0.1]}, batch_size=2, seed=7, probes=0)
    assert calls == [(2, 7), (1, 8)]


def test_batch_without_a_right_example() -> None:
    def picky(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
        return x / len(x)

    result = evaluate(nn.Identity(), (X[3:], Y[3:]), ["fgsm", "pgd", picky], {"l2": [0.1]})
    assert result.clean_accuracy == 0
    assert rates(result.worst_case) == [0]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    yield X[:3], Y[:3]
    yield X[3:], Y[3:]


def test_pair_loader_list_and_generator_agree() -> None:
    sizes = {"linf": [0.03, 0.11]}
    expected = evaluate(nn.Identity(), (X, Y), eps=sizes, batch_size=3)
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    for data in (loader, list(batches()), batches(), [X, Y]):
        assert evaluate(nn.Identity(), data, eps=sizes, batch_size=3) == expected


def test_progress_knows_the_total_where_it_can() -> None:
    calls: list[tuple[int, int | None]] = []
    sizes = {"linf": [0.1]}
    evaluate(nn.Identity(), (X, Y), eps=sizes, batch_size=3, on_batch=lambda *call: calls.append(call))
    evaluate(nn.Identity(), batches(), eps=sizes, on_batch=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2), (1, None), (2, None)]


def test_seed_modes_and_global_generator() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.BatchNorm1d(16).eval(), nn.Linear(16, 2))
    before = torch.random.get_rng_state()
    assert evaluate(model, (X, Y), seed=3) == evaluate(model, (X, Y), seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [module.training for module in model] == [True, True, False, True]


def test_result_is_ready_for_json() -> None:
    result = evaluate(nn.Identity(), (X, Y))
    assert [(entry.norm, entry.eps) for entry in result.worst_case] == [
        (norm, size) for norm, sizes in DEFAULT_EPS.items() for size in sizes
    ]
    report = json.loads(json.dumps(result.to_dict()))
    assert report["clean_accuracy"] == 0.75
    first = report["results"][0]
    assert (first["attack"], first["norm"], first["eps"], first["robust_accuracy"]) == (
        "pgd",
        "linf",
        2 / 255,
        0.75,
    )
    assert (first["right"], report["examples"]) == (3, 4)
    assert first["interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)  # Wilson's, 3 of 4


def test_other_bounds() -> None:
    x = 255 * X
    result = evaluate(nn.Identity(), (x, Y), ["fgsm"], {"linf": [8.0]}, bounds=(0, 255))
    assert rates(result.results) == [0.5]


def silent(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> None:
    return None


def broken(model: nn.Module, x: Tensor, y: Tensor, eps: float, **options: Any) -> Tensor:
    return torch.full_like(x, torch.nan)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"attacks": "pgd"}, ValueError, r"attacks: got 'pgd', expected a list"),
    ({"attacks": []}, ValueError, r"attacks: got \[\], expected a list of at least one"),
    ({"attacks": ["jsma"]}, ValueError, "attacks: got 'jsma', expected one of fgsm, pgd"),
    ({"attacks": [3]}, TypeError, "attacks: got 3, expected a name or a function"),
    ({"attacks": [silent]}, ValueError, "attacks: got a NoneType from silent"),
    (
        {"attacks": [broken]},
        ValueError,
        r"attacks: got a tensor of shape \(3, 2\) from broken, expected finite",
    ),
    ({"eps": 0.1}, TypeError, "eps: got 0.1, expected a list of sizes per norm"),
    ({"eps": {"linf": 0.1}}, TypeError, "expected a list of sizes per norm"),
    ({"eps": {"linf": []}}, ValueError, "expected at least one size"),
    ({"eps": {"l1": [0.1]}}, ValueError, "norm: got 'l1'"),
    ({"eps": {"l2": [-1.0]}}, ValueError, "eps: got -1.0"),
    ({"data": X}, TypeError, r"data: got a tensor of shape \(4, 2\), expected \(x, y\)"),
    ({"data": 3}, TypeError, "data: got a int"),
    ({"data": [X, X, X]}, TypeError, "data: got a batch that is a tensor"),
    ({"data": (X, Y[:2])}, ValueError, "data: got 4 inputs and 2 labels"),
    ({"data": []}, ValueError, "data: got no examples"),
    ({"data": (X[:0], Y[:0])}, ValueError, "data: got no examples"),
    ({"data": (2 * X, Y)}, ValueError, "x: got values from"),
    ({"batch_size": 0}, ValueError, "batch_size: got 0"),
    ({"model": torch.sigmoid}, TypeError, "model: got builtin_function_or_method"),
]


@pytest.mark.parametrize(("changes", "error", "complaint"), BAD)
def test_bad_input(changes: dict[str, Any], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        evaluate(**({"model": nn.Identity(), "data": (X, Y)} | changes))
