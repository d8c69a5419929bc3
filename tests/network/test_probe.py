"""Reading a model: nothing of it changes, however many threads read at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from spectralnorm.network.audit import audit
from spectralnorm.network.probe import reading

WAIT = 30.0  # seconds until a thread that should have come is given up


def test_modes_are_told_and_restored() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    with reading(model) as modes:
        assert not any(module.training for module in model.modules())
        assert [modes[module] for module in model.modules()] == [True, True, False]
    assert [module.training for module in model.modules()] == [True, True, False]


def test_modes_are_restored_after_an_error() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(KeyError), reading(model):
        raise KeyError
    assert model.training


def test_a_second_thread_waits_for_the_first_one() -> None:
    """If it did not, it would find eval mode, and leave the model in it."""
    model, entered, leave = nn.Linear(2, 2), threading.Event(), threading.Event()

    def first() -> None:
        with reading(model):
            entered.set()
            assert leave.wait(WAIT)

    def second() -> bool:
        with reading(model) as modes:
            return modes[model]

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert entered.wait(WAIT)
        other = pool.submit(second)
        leave.set()
        one.result(WAIT)
        assert other.result(WAIT)
    assert model.training


def test_threads_that_audit_one_model_leave_it_in_training() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 3))
    generator, start = torch.random.get_rng_state(), threading.Barrier(4)

    def work(side: int) -> list[tuple[int, ...] | None]:
        start.wait(WAIT)
        return [audit(model, (2, side, side)).rows[0].size for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(work, (5, 6, 7, 8)))
    assert sizes == [[(side, side)] * 5 for side in (5, 6, 7, 8)]
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_a_callback_may_audit_the_model_too() -> None:
    model, inner = nn.Linear(2, 2), []
    audit(model, on_layer=lambda *_: inner.append(audit(model)))
    assert inner
    assert model.training
