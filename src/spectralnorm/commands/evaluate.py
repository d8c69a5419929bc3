"""The command `spectralnorm evaluate`: what its flags name, and the evaluation over processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from spectralnorm.commands.target import load_target
from spectralnorm.files import check_folder
from spectralnorm.robustness.evaluate import DEFAULT_EPS, Evaluation, evaluate
from spectralnorm.training.checkpoint import load_checkpoint
from spectralnorm.training.conduct import CHECKPOINT
from spectralnorm.training.data import Dataset, load
from spectralnorm.training.settings import Settings
from spectralnorm.training.team import joined
from spectralnorm.training.trainer import classifier

__all__ = ["Request", "numbers", "run", "severities"]

OnProgress = Callable[[str, float], None]
DEFAULT_DATA = "digits"


@dataclass(frozen=True)
class Request:
    """What the command is asked for.

    Attributes:
        target: folder of a run of `spectralnorm train`, one of its files, another state_dict, or an import string.
        arch: architecture of a state_dict; that of the run by default.
        data: name of the data set; that of the run by default.
        data_dir: folder of its files.
        images: evaluate the first so many test images; 0 for all.
        attacks: names.
        eps: sizes by norm; those of `sn.evaluate` if there are none.
        controls: severities by name.
        batch_size: images at a time.
        seed: of the attacks, and of the split of data that has none of its own.
        probes: images on which masked gradients are looked for.
        json_file: file of the results, read and continued where it exists.
        device: "auto", "cpu" or "cuda".
    """

    target: str
    arch: str | None = None
    data: str | None = None
    data_dir: Path | None = None
    images: int = 0
    attacks: tuple[str, ...] = ("pgd",)
    eps: dict[str, list[float]] | None = None
    controls: dict[str, list[int]] | None = None
    batch_size: int = 256
    seed: int = 0
    probes: int = 64
    json_file: Path | None = None
    device: str = "auto"


def run(request: Request, on_progress: OnProgress) -> Evaluation | None:
    """Load, attack, write.

    Args:
        request: what to do.
        on_progress: called with what is being done and the share that is done.

    Returns:
        The evaluation, in the process that writes; None in the others.

    Raises:
        ValueError: when the target, the data or a flag is wrong, or the file is of another evaluation.
        LostProcessError: when another process is gone.
    """
    with joined(request.device) as team:
        told: OnProgress = on_progress if team.writes else lambda *_: None
        told("loading the model and the data", 0.0)
        if request.json_file is not None:
            check_folder(request.json_file.parent)
        model, (x, y) = _loaded(request)
        watch = _Watch(told, len(x), request.batch_size)
        found = evaluate(
            model.to(team.device),
            (x, y),
            request.attacks,
            request.eps or DEFAULT_EPS,
            seed=request.seed,
            batch_size=request.batch_size,
            controls=request.controls or {},
            probes=request.probes,
            resume=request.json_file,
            on_batch=watch.batch,
            on_attack=watch.attack,
        )
        return found if team.writes else None


class _Watch:
    """Says which attack runs on which batch."""

    def __init__(self, told: OnProgress, images: int, batch_size: int) -> None:
        self.told, self.done, self.total = told, 0, max(1, -(-images // batch_size))

    def batch(self, done: int, total: int | None) -> None:
        self.done, self.total = done, total or self.total
        self.told(f"batch {done} of {self.total} done", done / self.total)

    def attack(self, name: str, norm: str, eps: float) -> None:
        stage = f"batch {self.done + 1} of {self.total}: {name}, {norm} {eps:.4g}"
        self.told(stage, self.done / self.total)


def _loaded(request: Request) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The model, and the test images and labels."""
    path, settings, state = _resolved(Path(request.target))
    data = _data(request, settings)
    if settings is not None and state is not None and request.arch is None:
        made = classifier(settings, data, torch.device("cpu"))
        made.load_state_dict(state)
        model: nn.Module = made.net
    else:
        arch = request.arch or (settings.arch if settings is not None else None)
        target = request.target if path is None else str(path)
        model = load_target(target, arch, data.input_shape)
    images = request.images or len(data.test_x)
    return model, (data.test_x[:images], data.test_y[:images])


def _resolved(target: Path) -> tuple[Path | None, Settings | None, dict[str, Tensor] | None]:
    """The file to load, and, where it is of a run of `spectralnorm train`, its settings; a checkpoint's state."""
    if target.is_dir():
        inside = [target / name for name in ("model.pt", CHECKPOINT) if (target / name).is_file()]
        if not inside:
            raise ValueError(
                f"{target}: got a folder without model.pt and {CHECKPOINT}, expected that of a run of "
                "spectralnorm train; give another"
            )
        target = inside[0]
    if not target.is_file():
        return None, None, None
    if target.name == CHECKPOINT:
        content = load_checkpoint(target)
        if "settings" in content and "model" in content:
            return target, Settings.of(content["settings"], str(target)), content["model"]
    noted = target.parent / "settings.json"
    if target.name == "model.pt" and noted.is_file():
        try:
            return target, Settings.of(json.loads(noted.read_text(encoding="utf-8")), str(noted)), None
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(
                f"{noted}: cannot read it ({error}); repair it, or move {target} elsewhere"
            ) from error
    return target, None, None


def _data(request: Request, settings: Settings | None) -> Dataset:
    """The data that is asked for, or that the run was trained with."""
    if request.data is not None or settings is None:
        return load(request.data or DEFAULT_DATA, request.data_dir, request.seed)
    return load(settings.data, request.data_dir or settings.data_dir or None, settings.seed)


def numbers(flag: str, text: str | None) -> list[float]:
    """Read numbers, such as 0.1,8/255.

    Args:
        flag: what to call them in errors.
        text: separated by commas; None for none.

    Returns:
        The numbers.

    Raises:
        ValueError: when one is no number.

    Example:
        >>> numbers("--linf", "0.1,51/255")
        [0.1, 0.2]
    """
    try:
        return [float(Fraction(part.strip())) for part in text.split(",")] if text is not None else []
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{flag}: got {text!r}, expected numbers such as 0.1 or 8/255,16/255; correct it"
        ) from None


def severities(text: str | None) -> dict[str, list[int]]:
    """Read changes without an adversary, such as noise:1,noise:3,blur; without a number all five severities.

    Args:
        text: separated by commas; None for none.

    Returns:
        Severities by name.

    Raises:
        ValueError: when a severity is no whole number.

    Example:
        >>> severities("noise:1,noise:3,blur")
        {'noise': [1, 3], 'blur': [1, 2, 3, 4, 5]}
    """
    found: dict[str, list[int]] = {}
    for part in text.split(",") if text is not None else []:
        name, colon, severity = part.strip().partition(":")
        if colon and not severity.isdecimal():
            raise ValueError(f"--controls: got {part!r}, expected such as noise or noise:3; correct it")
        found.setdefault(name, []).extend([int(severity)] if colon else [1, 2, 3, 4, 5])
    return found
