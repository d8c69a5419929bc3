"""The settings of a training run: one dataclass, from flags, from TOML, and back from a finished run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, cast

from spectralnorm.robustness.attacks import NORMS

from .activations import ACTIVATIONS
from .imports import IMPORT_STRING
from .lenet import POOLS
from .models import MODELS

__all__ = ["Settings"]

NORMALIZERS = ("none", "pytorch", "penalty", "power", "exact", "tracked")
ADVERSARIES = ("none", "fgsm", "pgd", "trades")
LOSSES = ("ce", "hinge", "lmt")
OPTIMIZERS = ("sgd", "adam", "adamw")
_OTHER_NAMES = {"learning_rate": "lr", "dataset": "data", "model": "arch", "wd": "weight_decay"}
AUGMENTATIONS = ("none", "flip", "crop", "crop-flip")


_HELD = ("normalize", "pytorch", "power", "exact", "tracked")
_READ_WITH = {  # settings that nothing reads but under these values of another
    "target": _HELD,
    "targets": _HELD,
    "budget": _HELD,
    "mode": ("normalize", "tracked"),
    "fold_batchnorm": ("normalize", "tracked"),
    "init": ("normalize", "tracked"),
    "penalty": ("normalize", "penalty"),
    "eps": ("adversarial", "fgsm", "pgd", "trades"),
    "norm": ("adversarial", "fgsm", "pgd", "trades"),
    "attack_steps": ("adversarial", "pgd", "trades"),
    "trades_beta": ("adversarial", "trades"),
    "momentum": ("optimizer", "sgd"),
    "margin": ("loss", "hinge", "lmt"),
}


def _setting(default: Any, text: str, **limits: Any) -> Any:
    """A field with its help, and what it must lie within: above, least, most, below, or `choices`."""
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes; the same settings give the same weights.

    Each field's metadata holds its help text and limits. Raises `TypeError` and `ValueError`, naming the setting.

    Example:
        >>> Settings(arch="lenet", epochs=3).epochs
        3
        >>> Settings(optimizer="sdg")
        Traceback (most recent call last):
        ValueError: optimizer: got 'sdg', expected one of sgd, adam, adamw; choose one of these
    """

    data: str = _setting("digits", "digits, fashion-mnist, cifar10, cifar100, svhn, a folder, or module:function.")
    data_dir: str = _setting("", "Folder of the data set's files.")
    images: int = _setting(0, "Train on the first so many images; 0 for all.", least=0)
    arch: str = _setting("small-cnn", "An architecture by name, or module:factory.")
    batch_norm: bool = _setting(False, "The architecture with a BatchNorm behind each convolution.")
    activation: str = _setting(
        "default", "Of small-cnn, lenet and lipschitz-cnn.", choices=("default", *ACTIVATIONS)
    )
    pool: str = _setting("default", "Of lenet.", choices=("default", *POOLS))
    normalize: str = _setting("tracked", "How norms are held down.", choices=NORMALIZERS)
    target: float = _setting(1.0, "Norm that each layer gets.", above=0)
    targets: dict[str, float] = field(
        default_factory=dict
    )  # norms by layer name or pattern, in TOML; others: target
    budget: float = _setting(0.0, "Product of all targets, in their place; 0 for none.", least=0)
    mode: str = _setting("hard", "hard: always scale; soft: norms above the target.", choices=("hard", "soft"))
    fold_batchnorm: bool = _setting(True, "Hold each layer and its BatchNorm as one map (tracked).")
    init: str = _setting("default", "Of the weights (tracked).", choices=("default", "orthogonal"))
    penalty: float = _setting(0.01, "Weight of half the sum of squared norms (penalty).", above=0)
    adversarial: str = _setting("none", "Adversarial training.", choices=ADVERSARIES)
    eps: float = _setting(0.1, "Its largest perturbation, in pixels from 0 to 1.", above=0)
    norm: str = _setting("linf", "Its norm.", choices=NORMS)
    attack_steps: int = _setting(7, "Its steps (pgd, trades).", least=1)
    trades_beta: float = _setting(6.0, "Weight of the divergence (trades).", above=0)
    epochs: int = _setting(10, "Passes over the training images.", least=1)
    batch_size: int = _setting(128, "Images a step, over all processes; an epoch's rest is dropped.", least=1)
    optimizer: str = _setting("sgd", "The optimiser.", choices=OPTIMIZERS)
    lr: float = _setting(0.1, "Largest learning rate.", above=0)
    momentum: float = _setting(0.9, "Nesterov momentum (sgd).", least=0, below=1)
    weight_decay: float = _setting(5e-4, "Weight decay.", least=0)
    schedule: str = _setting("cosine", "Of the learning rate, after the warm-up.", choices=("cosine", "constant"))
    warmup: float = _setting(1.0, "Epochs in which the learning rate rises from 0.", least=0)
    loss: str = _setting(
        "ce", "Cross-entropy, hinge, or Lipschitz-margin (tracked).", choices=("ce", "hinge", "lmt")
    )
    margin: float = _setting(0.25, "L2 radius that hinge and lmt ask for, in pixels from 0 to 1.", above=0)
    label_smoothing: float = _setting(0.0, "Share of the label spread over all classes.", least=0, below=1)
    temperature: float = _setting(1.0, "Divides the logits; small norms need 0.1 or less, and less lr.", above=0)
    learn_temperature: bool = _setting(False, "Train the temperature too.")
    augment: str = _setting("none", "Random shifts by an eighth, and mirrored images.", choices=AUGMENTATIONS)
    amp: str = _setting("none", "Mixed precision.", choices=("none", "bf16", "fp16"))
    channels_last: bool = _setting(False, "Memory layout that is faster on many machines.")
    parallel: str = _setting("ddp", "Over the processes of torchrun.", choices=("ddp", "fsdp"))
    seed: int = _setting(0, "Of everything random.", least=0, most=2**32 - 1)

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each, getattr(self, each.name))
        if self.arch not in MODELS and not IMPORT_STRING.fullmatch(self.arch):
            raise ValueError(
                f"arch: got {self.arch!r}, expected one of {', '.join(MODELS)}, or package.module:factory; choose "
                "one of these"
            )
        for name, target in self.targets.items():
            if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < math.inf:
                raise ValueError(f"targets: got {target!r} for {name}, expected a number above 0; correct it")
        if self.targets and self.budget:
            raise ValueError("budget: got it beside targets, expected one of the two; leave one out")
        if self.budget and self.target != 1:
            raise ValueError(f"target: got {self.target:g} beside budget, expected one of the two; leave one out")
        if self.loss == "hinge" and (self.label_smoothing or self.learn_temperature):
            other = "label_smoothing" if self.label_smoothing else "learn_temperature"
            raise ValueError(f"{other}: got {getattr(self, other)} with loss 'hinge', expected none; leave it out")

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Settings:
        """Settings from a mapping, the others as they are by default.

        Args:
            given: by name.
            where: what to call the mapping in errors.

        Returns:
            The settings.

        Raises:
            ValueError: for an unknown name.

        Example:
            >>> Settings.of({"learning_rate": 0.1}, "run.toml")
            Traceback (most recent call last):
            ValueError: run.toml: got an unknown setting learning_rate, expected one of data, data_dir, ...
        """
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                near = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else difflib.get_close_matches(name, known, 1)
                cure = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"{where}: got an unknown setting {name}, expected one of {', '.join(known)}{cure}"
                )
        return cls(**given)

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of the architecture: `batch_norm`, and the others that are not left to it."""
        named = self.arch in MODELS
        chosen: dict[str, Any] = {"batch_norm": self.batch_norm} if named or self.batch_norm else {}
        return chosen | {
            name: getattr(self, name) for name in ("activation", "pool") if getattr(self, name) != "default"
        }

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, as JSON takes them."""
        return asdict(self)

    def idle(self) -> list[str]:
        """A line for each setting that was changed and that nothing reads, beside the other settings.

        Returns:
            Lines, such as those of the example.

        Example:
            >>> Settings(normalize="none", mode="soft").idle()
            ["mode is 'soft', which nothing reads with normalize 'none'"]
        """
        ordinary, found = Settings(), []
        for name, (other, *values) in _READ_WITH.items():
            mine, beside = getattr(self, name), getattr(self, other)
            if beside not in values and mine != getattr(ordinary, name):
                found.append(f"{name} is {mine!r}, which nothing reads with {other} {beside!r}")
        return found

    def differences(self, other: Settings) -> list[str]:
        """A line for each setting that is not the same, this one's value first."""
        pairs = [(each.name, getattr(self, each.name), getattr(other, each.name)) for each in fields(self)]
        return [f"{name} is {mine!r}, not {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


def _check(setting: Field[Any], value: Any) -> None:
    """Check the type of a value, and what it must lie within."""
    name, limits = setting.name, setting.metadata
    kinds: dict[str, tuple[type, ...]] = {"float": (float, int), "int": (int,), "str": (str,), "bool": (bool,)}
    expected = kinds.get(str(setting.type), (dict,))
    if not isinstance(value, expected) or (isinstance(value, bool) and expected != (bool,)):
        raise TypeError(f"{name}: got {value!r}, expected {setting.type}; correct it")
    if "choices" in limits and value not in limits["choices"]:
        raise ValueError(
            f"{name}: got {value!r}, expected one of {', '.join(limits['choices'])}; choose one of these"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: got {value}, expected a finite number; correct it")
    for word, holds in (("above", "__gt__"), ("least", "__ge__"), ("most", "__le__"), ("below", "__lt__")):
        if word in limits and not getattr(float(cast("float", value)), holds)(float(limits[word])):
            words = {"least": "at least", "most": "at most"}.get(word, word)
            raise ValueError(f"{name}: got {value}, expected {words} {limits[word]}; correct it")
