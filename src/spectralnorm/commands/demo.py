"""The demonstration: one small network trained four ways, its norms measured, then attacked."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from spectralnorm.network.audit import audit
from spectralnorm.normalize import remove_spectral_norm, spectral_normalize
from spectralnorm.operators.registry import has_operator
from spectralnorm.robustness.evaluate import evaluate
from spectralnorm.training.data import Dataset
from spectralnorm.training.loop import train
from spectralnorm.training.models import small_cnn

__all__ = ["PRESETS", "OnProgress", "Settings", "run", "settings_for"]

SCHEMA = "spectralnorm/demo/1"

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """What the demonstration trains and how it attacks.

    Attributes:
        epochs: passes over the training images.
        train_images: training images used, the first ones.
        test_images: test images attacked, the first ones.
        logit_scale: factor of the normalised networks' logits in the loss; that of the plain one is 1.
        eps: sizes of the attacks per norm, pixels being in [0, 1].
        table_eps: those of them that the table shows.
        seed: of the initial weights, of the order of the images and of the attacks.
        batch_size: images a step.
        lr: learning rate of Adam.
        width: channels of the first convolution.
        attacks: names of the attacks.
    """

    epochs: int
    train_images: int
    test_images: int
    logit_scale: float
    eps: Mapping[str, tuple[float, ...]]
    table_eps: Mapping[str, tuple[float, ...]]
    seed: int = 0
    batch_size: int = 64
    lr: float = 2e-3
    width: int = 32
    attacks: tuple[str, ...] = ("fgsm", "pgd")


PRESETS: Mapping[str, Settings] = {
    "digits": Settings(
        epochs=20,
        train_images=1397,
        test_images=400,
        logit_scale=20,
        eps={"linf": (0.05, 0.1, 0.15, 0.2), "l2": (0.25, 0.5, 0.75, 1.0)},
        table_eps={"linf": (0.05, 0.1), "l2": (0.25, 0.5)},
    ),
    "fashion-mnist": Settings(
        epochs=4,
        train_images=6_000,
        test_images=400,
        logit_scale=20,
        eps={"linf": (0.02, 0.04, 0.06, 0.08), "l2": (0.5, 1.0, 1.5, 2.0)},
        table_eps={"linf": (0.02, 0.04), "l2": (0.5, 1.0)},
    ),
}


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        key: short name, in the results.
        label: name in tables.
        normalise: parametrises a model in place.
        bake: removes the parametrizations and keeps the weights.
    """

    key: str
    label: str
    normalise: Callable[[nn.Module], object]
    bake: Callable[[nn.Module], object]


def _pytorch(model: nn.Module) -> None:
    for layer in [module for module in model.modules() if has_operator(module)]:
        parametrizations.spectral_norm(layer)


def _bake_pytorch(model: nn.Module) -> None:
    for layer in [module for module in model.modules() if parametrize.is_parametrized(module)]:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


METHODS = (
    Method("plain", "plain", lambda model: model, lambda model: model),
    Method("pytorch", "PyTorch's spectral_norm", _pytorch, _bake_pytorch),
    Method("hard", "spectralnorm, hard", spectral_normalize, remove_spectral_norm),
    Method("soft", "spectralnorm, soft", lambda m: spectral_normalize(m, mode="soft"), remove_spectral_norm),
)


def settings_for(data: str, *, seed: int = 0, epochs: int | None = None) -> Settings:
    """Settings for a data set.

    Args:
        data: a key of `PRESETS`.
        seed: of everything random.
        epochs: passes over the training images, if not the preset's.

    Returns:
        The settings.

    Raises:
        ValueError: when there are none for this data set.

    Example:
        >>> settings_for("digits", epochs=1).epochs
        1
    """
    if data not in PRESETS:
        raise ValueError(f"data: got {data!r}, expected one of {', '.join(PRESETS)}; choose one of these")
    preset = PRESETS[data]
    return replace(preset, seed=seed, epochs=epochs or preset.epochs)


def run(data: Dataset, settings: Settings, on_progress: OnProgress) -> dict[str, Any]:
    """Train, measure and attack by every method.

    Args:
        data: what to train on.
        settings: how.
        on_progress: called with what is being done, and the share of the whole that is done, in [0, 1].

    Returns:
        Versions, settings and results, ready for JSON.

    Example:
        >>> import torch
        >>> x, y = torch.rand(32, 1, 8, 8), torch.arange(32) % 2
        >>> small = Settings(1, 32, 16, 20.0, {"linf": (0.1,)}, {"linf": (0.1,)}, width=2)
        >>> result = run(Dataset("noise", x, y, x, y, classes=2), small, lambda stage, share: None)
        >>> [method["key"] for method in result["methods"]]
        ['plain', 'pytorch', 'hard', 'soft']
    """
    cut = replace(
        data,
        train_x=data.train_x[: settings.train_images],
        train_y=data.train_y[: settings.train_images],
        test_x=data.test_x[: settings.test_images],
        test_y=data.test_y[: settings.test_images],
    )
    results = []
    for done, method in enumerate(METHODS):
        results.append(_one(method, cut, settings, partial(_part, on_progress, done)))
    return {
        "schema": SCHEMA,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "spectralnorm": version("spectralnorm"),
        },
        "data": {"name": cut.name, "train_images": len(cut.train_x), "test_images": len(cut.test_x)},
        "settings": asdict(settings),
        "methods": results,
    }


def _part(on_progress: OnProgress, done: int, stage: str, share: float) -> None:
    """Report a method's progress as the whole's."""
    on_progress(stage, (done + share) / len(METHODS))


def _one(method: Method, data: Dataset, settings: Settings, on_progress: OnProgress) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = small_cnn(data.input_shape, data.classes, width=settings.width)
        method.normalise(model)
    scale = 1.0 if method.key == "plain" else settings.logit_scale
    log = train(
        model,
        data,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        seed=settings.seed,
        logit_scale=scale,
        on_batch=lambda done, total, _: on_progress(f"{method.label}: training", 0.5 * done / total),
    )
    method.bake(model)
    evaluation = evaluate(
        model,
        (data.test_x, data.test_y),
        settings.attacks,
        settings.eps,
        seed=settings.seed,
        batch_size=100,
        probes=0,
        on_batch=lambda done, total: on_progress(f"{method.label}: attacking", 0.5 + 0.5 * done / (total or done)),
    )
    return {
        "key": method.key,
        "label": method.label,
        "logit_scale": scale,
        "training": asdict(log),
        "audit": audit(model).to_dict(),
        "evaluation": evaluation.to_dict(),
    }
