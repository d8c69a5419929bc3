"""Settings: what they refuse, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from messages import check_says
from spectralnorm.commands.train import settings_from
from spectralnorm.training.schedule import rate, seed_of
from spectralnorm.training.settings import Settings

WRONG: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"normalize": "spectral"}, ValueError, ("normalize", "'spectral'", "tracked")),
    ({"adversarial": "cw"}, ValueError, ("adversarial", "trades")),
    ({"target": 0.0}, ValueError, ("target", "above 0")),
    ({"target": float("nan")}, ValueError, ("target", "finite")),
    ({"lr": float("inf")}, ValueError, ("lr", "finite")),
    ({"lr": "fast"}, TypeError, ("lr", "'fast'", "float")),
    ({"epochs": 0}, ValueError, ("epochs", "at least 1")),
    ({"epochs": 2.5}, TypeError, ("epochs", "2.5", "int")),
    ({"epochs": True}, TypeError, ("epochs", "True")),
    ({"momentum": 1.0}, ValueError, ("momentum", "below 1")),
    ({"seed": -1}, ValueError, ("seed", "at least 0")),
    ({"batch_norm": 1}, TypeError, ("batch_norm", "bool")),
    ({"amp": "int8"}, ValueError, ("amp", "bf16")),
    ({"temperature": 0.0}, ValueError, ("temperature", "above 0")),
    ({"targets": {"conv1": -1.0}}, ValueError, ("targets", "conv1", "above 0")),
    ({"targets": {"conv1": 1.0}, "budget": 2.0}, ValueError, ("budget", "targets")),
    ({"loss": "lipschitz"}, ValueError, ("loss", "'lipschitz'", "hinge", "lmt")),
    ({"margin": 0.0}, ValueError, ("margin", "above 0")),
    ({"margin": "wide"}, TypeError, ("margin", "'wide'")),
    ({"loss": "hinge", "label_smoothing": 0.1}, ValueError, ("label_smoothing: got 0.1", "hinge")),
    ({"loss": "hinge", "learn_temperature": True}, ValueError, ("learn_temperature", "hinge")),
    ({"activation": "tanh"}, ValueError, ("activation", "'tanh'", "maxmin")),
    ({"pool": "sum"}, ValueError, ("pool", "average")),
    ({"targets": 3}, TypeError, ("targets", "3")),
]


@pytest.mark.parametrize(("given", "kind", "parts"), WRONG, ids=[str(given) for given, *_ in WRONG])
def test_wrong_values(given: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        Settings(**given)
    check_says(str(error.value), *parts)


def test_what_the_architecture_gets() -> None:
    assert Settings().architecture == {"batch_norm": False}
    assert Settings(arch="lenet", pool="max", activation="maxmin").architecture == {
        "batch_norm": False,
        "activation": "maxmin",
        "pool": "max",
    }
    assert Settings(arch="my.models:net").architecture == {}
    assert Settings(arch="my.models:net", batch_norm=True).architecture == {"batch_norm": True}


def test_unknown_names_have_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean momentum"):
        Settings.of({"momentun": 0.9}, "run.toml")


def test_there_and_back() -> None:
    made = Settings(targets={"fc": 2.0}, arch="lenet", lr=0.3)
    assert Settings.of(made.to_dict(), "itself") == made
    assert made.differences(Settings(arch="lenet", targets={"fc": 2.0})) == ["lr is 0.3, not 0.1"]


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('arch = "lenet"\nepochs = 3\n[targets]\n"fc*" = 2.0\n')
    made = settings_from({"epochs": 5}, config, tmp_path, resume=False)
    assert (made.arch, made.epochs, made.targets, made.lr) == ("lenet", 5, {"fc*": 2.0}, 0.1)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epochs =", ("TOML", "correct it")),
        ("epoch = 3", ("unknown setting epoch", "epochs")),
        ("learning_rate = 0.1", ("unknown setting learning_rate", "did you mean lr?")),
        ("epochs = 0", ("at least 1",)),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    config = tmp_path / "run.toml"
    config.write_text(text)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked
        settings_from({}, config, tmp_path, resume=False)
    check_says(str(error.value), *parts)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (10, 3), (10, 10), (5, 9)])
def test_rates_lie_between_0_and_1(schedule: str, steps: int, warmup: int) -> None:
    rates = [rate(step, steps, warmup, schedule) for step in range(steps)]
    assert all(0 < each <= 1 for each in rates)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_seeds_of_different_purposes_differ() -> None:
    seeds = {seed_of(seed, what, step) for seed in (0, 1) for what in ("order", "step") for step in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
