"""What a run computes, and that a resumed one computes the same."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from runs import steps, trainer, weights
from torch import nn

import spectralnorm as sn
from messages import check_says, complaint

KINDS: dict[str, dict[str, Any]] = {
    "none": {"normalize": "none"},
    "pytorch": {"normalize": "pytorch"},
    "penalty": {"normalize": "penalty"},
    "power": {"normalize": "power"},
    "tracked": {},
    "soft": {"mode": "soft", "target": 0.5},
    "folded": {"batch_norm": True},
    "batchnorm alone": {"batch_norm": True, "fold_batchnorm": False},
    "adam": {"optimizer": "adam", "lr": 2e-3, "learn_temperature": True, "label_smoothing": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 2e-3, "augment": "crop-flip", "schedule": "constant"},
    "bf16": {"amp": "bf16", "channels_last": True},
    "fp16": {"amp": "fp16", "normalize": "none"},
    "fgsm": {"adversarial": "fgsm", "batch_norm": True},
    "pgd": {"adversarial": "pgd", "attack_steps": 2},
    "hinge": {"loss": "hinge", "margin": 0.3, "arch": "lipschitz-cnn"},
    "lmt": {"loss": "lmt", "margin": 0.1, "mode": "soft", "learn_temperature": True, "activation": "maxmin"},
    "lmt, folded": {"loss": "lmt", "batch_norm": True, "amp": "bf16", "adversarial": "fgsm"},
    "trades": {"adversarial": "trades", "attack_steps": 2, "norm": "l2", "eps": 0.5},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_kind
@pytest.mark.parametrize("done", [2, 3])
def test_a_resumed_run_goes_on_bit_for_bit(kind: str, done: int) -> None:
    """Within an epoch and between two."""
    whole, first, second = (trainer(**KINDS[kind]) for _ in range(3))
    losses = steps(whole, 6)
    begun = steps(first, done)
    torch.manual_seed(99)
    second.load_state(through_file(first.state()))
    assert begun + steps(second, 6 - done) == losses
    assert second.epoch_means() == whole.epoch_means()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name


@each_kind
def test_the_same_settings_give_the_same_weights(kind: str) -> None:
    runs = [trainer(**KINDS[kind]) for _ in range(2)]
    assert steps(runs[0], 4) == steps(runs[1], 4)
    for name, value in weights(runs[0]).items():
        assert torch.equal(value, weights(runs[1])[name]), name


@each_kind
def test_evaluating_changes_nothing(kind: str) -> None:
    one, other = (trainer(**KINDS[kind]) for _ in range(2))
    losses = []
    for loss in one.run():
        one.tested([0.1, 0.5])
        losses.append(loss)
        if len(losses) == 4:
            break
    assert losses == steps(other, 4)


def test_a_run_learns() -> None:
    run = trainer(epochs=30, optimizer="adam", lr=5e-3)
    losses = steps(run, 90)
    assert sum(losses[-9:]) < 0.5 * sum(losses[:9])
    assert run.accuracy() > 0.6
    assert run.done == run.steps == 90


def test_another_seed_gives_another_run() -> None:
    assert steps(trainer(), 2) != steps(trainer(seed=1), 2)


def proven(layer: nn.Module) -> float:
    return sn.spectral_norm(layer, certified=True).upper


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ({"target": 0.7}, [0.7] * 5),
        ({"targets": {"conv1": 2.0, "fc*": 0.5}}, [2.0, 1.0, 1.0, 0.5, 0.5]),
        ({"budget": 32.0}, [2.0] * 5),
    ],
)
def test_layers_get_their_targets(given: dict[str, Any], targets: list[float]) -> None:
    run = trainer(**given)
    steps(run, 3)
    layers = [m for m in run.classifier.net if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [proven(layer) for layer in layers] == pytest.approx(targets, rel=2e-2)


def test_folded_pairs_get_their_targets() -> None:
    run = trainer(batch_norm=True, target=1.5)
    steps(run, 3)
    net = run.classifier.net.eval()
    for conv, norm in ((net.conv1, net.bn1), (net.conv2, net.bn2), (net.conv3, net.bn3)):
        assert proven(nn.Sequential(conv, norm)) == pytest.approx(1.5, rel=5e-2)


def test_orthogonal_weights_to_start_from() -> None:
    layer = trainer(init="orthogonal").classifier.net.fc1
    values = torch.linalg.svdvals(layer.weight.detach())
    assert float(values.min()) == pytest.approx(float(values.max()), rel=1e-4)


def test_the_penalty_lowers_norms() -> None:
    penalised, plain = trainer(normalize="penalty", penalty=0.1, epochs=10), trainer(normalize="none", epochs=10)
    for run in (penalised, plain):
        steps(run, 30)
    assert (
        sn.spectral_norm(penalised.classifier.net.conv2).value < sn.spectral_norm(plain.classifier.net.conv2).value
    )


def test_the_warm_up_rises_and_the_schedule_falls() -> None:
    run = trainer(warmup=1.0, epochs=4)
    rates = []
    for _ in run.run():
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([0.02 / 3, 0.04 / 3, 0.02])
    assert rates[3] == 0.02
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 2e-3


def test_a_learnt_temperature_moves_and_a_fixed_one_does_not() -> None:
    learnt, fixed = trainer(learn_temperature=True), trainer()
    for run in (learnt, fixed):
        steps(run, 3)
    assert learnt.classifier.temperature != pytest.approx(0.2, rel=1e-4)
    assert fixed.classifier.temperature == pytest.approx(0.2)


SORTING = {"activation": "maxmin", "init": "orthogonal", "optimizer": "adam", "lr": 1e-3, "epochs": 30}


def test_training_for_margins_certifies_more() -> None:
    shares = {}
    for loss, temperature in (("ce", 0.03), ("hinge", 0.1), ("lmt", 0.1)):
        run = trainer(loss=loss, margin=0.3, temperature=temperature, **SORTING)
        steps(run, 90)
        shares[loss] = run.tested([0.2])
    for accuracy, _ in shares.values():
        assert accuracy > 0.55
    for loss in ("hinge", "lmt"):
        assert shares[loss][1] > shares["ce"][1] + 0.1


def test_certified_accuracy_while_training_is_that_of_the_held_constants() -> None:
    run = trainer(loss="hinge", margin=0.3, temperature=0.1, **SORTING)
    steps(run, 30)
    accuracy, *shares = run.tested([1e-6, 0.05, 0.2, 9.0])
    assert accuracy == run.accuracy()
    assert [accuracy, *shares] == sorted([accuracy, *shares], reverse=True)
    assert shares[0] == accuracy
    assert shares[-1] == 0
    net, x, y = run.classifier.net.eval(), run.data.test_x, run.data.test_y
    with torch.no_grad():
        logits, constants = net(x), run.held.constants()
    for eps, mine in zip([0.05, 0.2], shares[1:3], strict=True):
        gaps = logits.gather(1, y[:, None]) - logits
        near = [all(gaps[n, j] > eps * constants[y[n], j] for j in range(10) if j != y[n]) for n in range(len(y))]
        assert mine == sum(near) / len(y)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"normalize": "none"}, ("normalize is 'none'", "'tracked'")),
        ({"normalize": "pytorch"}, ("normalize is 'pytorch'",)),
        ({"batch_norm": True, "fold_batchnorm": False}, ("bn1", "not held", "folded")),
        ({"arch": "test_trainer:Divided"}, ("LayerNorm",)),
    ],
)
def test_a_margin_without_a_bound_is_refused_and_logged_for_other_losses(
    given: dict[str, Any], parts: tuple[str, ...]
) -> None:
    check_says(complaint(ValueError, lambda: trainer(loss="lmt", **given)), "loss: 'lmt'", *parts)
    held = trainer(loss="hinge", **given).held
    assert isinstance(held, str)
    check_says(held, *parts)


class Divided(nn.Sequential):
    """A network without a Lipschitz constant."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        norm = nn.LayerNorm(math.prod(shape), elementwise_affine=False)
        super().__init__(nn.Flatten(), norm, nn.Linear(math.prod(shape), classes))


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    run = trainer(normalize="none", lr=1e30, warmup=0.0)
    with pytest.raises(FloatingPointError, match="lower lr"):
        steps(run, 9)


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    run = trainer(batch_size=1000)
    assert (run.batch_size, run.steps_per_epoch, run.steps) == (96, 1, 3)
    assert all(map(math.isfinite, steps(run, 3)))
