"""The losses that ask for radii: their values against loops over examples and classes, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, multi_margin_loss

import spectralnorm as sn
from messages import check_says, complaint

LOSSES = [sn.losses.hinge, sn.losses.lipschitz_margin]
each_loss = pytest.mark.parametrize("loss", LOSSES)


def batch(seed: int, classes: int, examples: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels, and symmetric constants."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(examples, classes, generator=generator, dtype=torch.float64)
    rows = torch.randn(classes, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (examples,), generator=generator)
    return logits, labels, torch.cdist(rows, rows)


@given(seed=st.integers(0, 1000), classes=st.integers(2, 6), margin=st.floats(0, 3))
@settings(max_examples=40, deadline=None)
def test_values_are_those_of_the_papers(seed: int, classes: int, margin: float) -> None:
    logits, labels, constants = batch(seed, classes)
    lacking, raised = [], logits.clone()
    for n, y in enumerate(labels.tolist()):
        for j in range(classes):
            if j != y:
                asked = margin * float(constants[y, j])
                lacking.append(max(0.0, asked - float(logits[n, y] - logits[n, j])))
                raised[n, j] += asked
    assert float(sn.losses.hinge(logits, labels, margin, constants)) == pytest.approx(
        sum(lacking) / len(lacking), abs=1e-12
    )
    found = sn.losses.lipschitz_margin(logits, labels, margin, constants, label_smoothing=0.1)
    assert float(found) == pytest.approx(float(cross_entropy(raised, labels, label_smoothing=0.1)), abs=1e-12)


def test_one_constant_is_pytorchs_hinge_and_no_margin_is_cross_entropy() -> None:
    logits, labels, _ = batch(1, 4)
    whole = multi_margin_loss(
        logits, labels, margin=0.3 * math.sqrt(2)
    )  # divides by all classes, not the wrong ones
    assert float(sn.losses.hinge(logits, labels, 0.3)) == pytest.approx(float(whole) * 4 / 3)
    assert torch.equal(sn.losses.lipschitz_margin(logits, labels, 0.0), cross_entropy(logits, labels))


@each_loss
def test_a_larger_margin_asks_for_more(loss: object) -> None:
    logits, labels, constants = batch(2, 3)
    values = [float(loss(logits, labels, margin, constants)) for margin in (0.0, 0.1, 1.0, 10.0)]  # type: ignore[operator]
    assert values == sorted(values)
    assert values[0] < values[-1]


@each_loss
def test_gradients(loss: object) -> None:
    """With respect to logits and constants, in double precision."""
    logits, labels, constants = batch(3, 3)
    inputs = (logits.requires_grad_(), constants.requires_grad_())
    assert torch.autograd.gradcheck(lambda z, c: loss(z, labels, 0.7, c), inputs)  # type: ignore[operator]


@each_loss
def test_what_is_refused(loss: object) -> None:
    logits, labels, constants = batch(4, 3)

    def said(kind: type[Exception], *arguments: object) -> str:
        return complaint(kind, lambda: loss(*arguments))  # type: ignore[operator]

    check_says(said(TypeError, [1.0], labels, 0.1), "logits: got list")
    check_says(said(TypeError, logits, labels.int(), 0.1), "torch.int32", "torch.int64")
    check_says(said(ValueError, logits, labels[:2], 0.1), "(5, 3)", "(2,)", "one label per row")
    check_says(said(ValueError, logits[:0], labels[:0], 0.1), "(0, 3)", "at least one example")
    check_says(said(ValueError, logits[:, :1], labels, 0.1), "two classes")
    check_says(said(TypeError, logits, labels, "wide"), "margin: got 'wide'")
    check_says(said(ValueError, logits, labels, -1.0), "margin: got -1")
    check_says(said(TypeError, logits, labels, 0.1, constants + 0j), "constants: got torch.complex")
    check_says(said(ValueError, logits, labels, 0.1, constants[:2]), "constants: got shape (2, 3)", "(3, 3)")
    check_says(said(ValueError, logits, labels - 1, 0.1), "labels: got -1 to ", "expected 0 to 2")
    check_says(said(ValueError, logits, labels + 1, 0.1), "labels", "to 3")
    for wrong in (math.nan, math.inf, -1.0):
        check_says(said(ValueError, logits, labels, 0.1, wrong), f"constants: got {wrong:g}")
        damaged = constants.detach().clone()
        damaged[1, 2] = wrong
        check_says(said(ValueError, logits, labels, 0.1, damaged), "constants: got NaN")
    for other in (True, "wide", None):
        check_says(said(TypeError, logits, labels, 0.1, other), f"constants: got {other!r}")


@pytest.mark.parametrize("smoothing", [math.nan, -0.1, 1.1, "much", True])
def test_label_smoothing_is_a_share(smoothing: float) -> None:
    logits, labels, _ = batch(4, 3)
    error = TypeError if isinstance(smoothing, (str, bool)) else ValueError

    def call() -> object:
        return sn.losses.lipschitz_margin(logits, labels, 0.1, label_smoothing=smoothing)

    check_says(complaint(error, call), "label_smoothing: got")


@each_loss
def test_losses_compile(loss: object) -> None:
    logits, labels, constants = batch(4, 3)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)  # type: ignore[call-overload]
    assert torch.equal(compiled(logits, labels, 0.1, constants), loss(logits, labels, 0.1, constants))  # type: ignore[operator]


@each_loss
def test_numbers_of_any_kind(loss: object) -> None:
    logits, labels, _ = batch(4, 3)
    value = loss(logits, labels, 0.1, 2.0)  # type: ignore[operator]
    for constant in (2, np.float32(2), np.float64(2), torch.tensor(2.0), torch.tensor(2)):
        assert torch.allclose(loss(logits, labels, 0.1, constant), value)  # type: ignore[operator]
    for huge in (10**400, 10**30 * 10**300):
        complaint(ValueError, lambda huge=huge: loss(logits, labels, huge))  # type: ignore[operator,misc]


def test_gradients_of_each_example() -> None:
    logits, labels, constants = batch(4, 3)
    logits = logits.detach()

    def of_one(row: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return sn.losses.lipschitz_margin(row[None], label[None], 0.1)

    found = torch.func.vmap(torch.func.grad(of_one))(logits, labels)
    for row, label, slope in zip(logits, labels, found, strict=True):
        assert torch.allclose(torch.func.grad(of_one)(row, label), slope)
    by_constants = torch.func.vmap(lambda c: sn.losses.lipschitz_margin(logits, labels, 0.1, c))
    assert by_constants(constants.detach().expand(4, 3, 3)).shape == (4,)
