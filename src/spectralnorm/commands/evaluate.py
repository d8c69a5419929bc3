"""The command `spectralnorm evaluate`: what its flags name, and the evaluation over processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from spectralnorm.commands.subject import Subject, fitting, load_subject
from spectralnorm.files import check_folder
from spectralnorm.robustness.evaluate import DEFAULT_EPS, Evaluation, evaluate
from spectralnorm.training.team import joined

__all__ = ["Request", "numbers", "run", "severities"]

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Request(Subject):
    """What the command is asked for.

    Attributes:
        attacks: names.
        eps: sizes by norm; those of `sn.evaluate` if there are none.
        controls: severities by name.
        batch_size: images at a time.
        probes: images on which masked gradients are looked for.
        json_file: file of the results, read and continued where it exists.
        device: "auto", "cpu" or "cuda".
    """

    attacks: tuple[str, ...] = ("pgd",)
    eps: dict[str, list[float]] | None = None
    controls: dict[str, list[int]] | None = None
    batch_size: int = 256
    probes: int = 64
    json_file: Path | None = None
    device: str = "auto"


def run(request: Request, on_progress: OnProgress) -> tuple[Evaluation, bool] | None:
    """Load, attack, write.

    Args:
        request: what to do.
        on_progress: called with what is being done and the share that is done.

    Returns:
        The evaluation, and whether it had been done before, in the process that writes; None in the others.

    Raises:
        ValueError: when the target, the data or a flag is wrong, or the file is of another evaluation.
        LostProcessError: when another process is gone.
    """
    with joined(request.device) as team:
        told: OnProgress = on_progress if team.writes else lambda *_: None
        told("loading the model and the data", 0.0)
        if request.json_file is not None:
            check_folder(request.json_file.parent)
        model, _, (x, y) = load_subject(request)
        x = fitting(model, x)
        path = request.json_file
        known = path is not None and path.is_file() and Evaluation.load(path).complete
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
        return (found, known) if team.writes else None


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
