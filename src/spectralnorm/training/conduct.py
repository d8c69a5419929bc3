"""A run from its first step, or from its checkpoint, to its result: what `spectralnorm train` does."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from spectralnorm.files import check_folder, locked, write_atomically
from spectralnorm.network.audit import audit
from spectralnorm.normalize.removal import remove_spectral_norm
from spectralnorm.robustness.attacks import check_number

from .certifying import certification
from .checkpoint import load_checkpoint, save_checkpoint
from .data import load
from .dataset import Dataset
from .journal import Journal
from .loop import accuracy
from .normalizing import targets
from .settings import Settings
from .team import Team
from .trainer import Trainer, classifier

__all__ = ["CHECKPOINT", "OPTIONS", "Options", "conduct", "load_data"]

CHECKPOINT, OPTIONS = "checkpoint.pt", "options.json"
OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """What changes nothing in a run's weights.

    Attributes:
        out: folder of the run.
        resume: whether to go on from the folder's checkpoint, if there is one.
        checkpoint_every: steps between checkpoints; there is one after each epoch too.
        log_every: steps between records of the loss.
        tensorboard: whether to write its events.
        prove: whether the norms of the final network are proven, scaled down where they are above their targets.
        certify_eps: L2 sizes at which accuracy is certified, in pixels from 0 to 1.
    """

    out: Path
    resume: bool = False
    checkpoint_every: int = 200
    log_every: int = 50
    tensorboard: bool = False
    prove: bool = True
    certify_eps: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)

    def __post_init__(self) -> None:
        for size in self.certify_eps:
            check_number("certify_eps", size, positive=True)

    def to_dict(self) -> dict[str, Any]:
        """Those that a resumed run keeps, as JSON takes them."""
        return {name: value for name, value in asdict(self).items() if name not in ("out", "resume")}


def load_data(settings: Settings) -> Dataset:
    """The data of a run, checked."""
    data = load(settings.data, settings.data_dir or None, settings.seed)
    if not settings.images or settings.images >= len(data.train_x):
        return data
    try:
        return replace(data, train_x=data.train_x[: settings.images], train_y=data.train_y[: settings.images])
    except ValueError as error:
        raise ValueError(f"images: got {settings.images}, too few ({error}); take more") from error


def conduct(
    settings: Settings, options: Options, data: Dataset, team: Team, on_progress: OnProgress
) -> dict[str, Any]:
    """Train, write checkpoints and a log, and the network and its figures in the end.

    In the folder: `settings.json`, `options.json`, `log.jsonl`, `checkpoint.pt`; in the end `model.pt`, the
    state_dict of the plain network with the normalised weights baked in, and `result.json`.

    Args:
        settings: what to compute.
        options: where to write, and when.
        data: from `load_data`.
        team: the processes.
        on_progress: called with what is done and the share of the run.

    Returns:
        The result, as JSON takes it; in processes that do not write, without the figures of the final network.

    Raises:
        ValueError: when the folder holds another run, or a setting does not fit.
        OSError: when a file cannot be written.
        FloatingPointError: when the loss is not finite.

    Example:
        >>> import tempfile
        >>> settings = Settings(images=128, epochs=1, lr=0.02)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     team = Team(0, 1, torch.device("cpu"))
        ...     result = conduct(settings, Options(Path(out)), load_data(settings), team, lambda *_: None)
        >>> result["steps"], all(layer["upper"] <= 1 for layer in result["layers"])
        (1, True)
    """
    with ExitStack() as held:
        on_progress("preparing the network", 0.0)
        start = team.first(lambda: _opened(settings, options, data, held))
        return _conducted(settings, options, data, team, on_progress, start)


def _conducted(
    settings: Settings,
    options: Options,
    data: Dataset,
    team: Team,
    on_progress: OnProgress,
    start: dict[str, Any] | None,
) -> dict[str, Any]:
    """Do what `conduct` says, from a checkpoint's content or from the first step."""
    if options.resume and start is None:
        on_progress(f"no checkpoint in {options.out}: starting anew", 0.0)
    trainer = Trainer(settings, data, team)
    if start is not None:
        trainer.load_state(start)
    journal = Journal(options.out, trainer.done, tensorboard=options.tensorboard) if team.writes else None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # each step seeds the global one
            _train(trainer, options, journal, on_progress, _print(data))
    finally:
        if journal is not None:
            journal.close()
    state = trainer.state()
    result: dict[str, Any] = {
        "settings": settings.to_dict(),
        "processes": team.size,
        "device": team.device.type,
        "classes": data.classes,
        "test_images": len(data.test_x),
        "steps": trainer.done,
        "seconds": trainer.seconds,
    }
    team.leave()
    if team.writes:
        on_progress("measuring the final network", 1.0)
        result |= _final(settings, options, data, state["model"])
        write_atomically(options.out / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _opened(settings: Settings, options: Options, data: Dataset, held: ExitStack) -> dict[str, Any] | None:
    """Check the folder, lock it for as long as `held` is open, and give the checkpoint to go on from."""
    check_folder(options.out)
    held.enter_context(locked(options.out))
    for left in options.out.glob(".*.tmp"):  # of a run that was killed as it wrote
        left.unlink()
    path, noted = options.out / CHECKPOINT, options.out / "settings.json"
    if not options.resume and (path.exists() or (options.out / "log.jsonl").exists()):
        raise ValueError(f"{options.out}: holds a run already; pass --resume to go on with it, or another --out")
    start = load_checkpoint(path) if options.resume and path.exists() else None
    if start is not None:
        before = Settings.of(start["settings"], str(path))
        if before != settings:
            raise ValueError(
                f"{path}: the run was started with other settings ({'; '.join(before.differences(settings))}); "
                "resume it with the same, or give another --out"
            )
        if start["data"] != _print(data):
            raise ValueError(f"{path}: the run was started with other data; resume it with the same images")
    write_atomically(noted, json.dumps(settings.to_dict(), indent=2) + "\n")
    write_atomically(options.out / OPTIONS, json.dumps(options.to_dict(), indent=2) + "\n")
    return start


def _print(data: Dataset) -> list[int]:
    """What tells one set of images and labels from another."""
    tensors = (data.train_x, data.train_y, data.test_x, data.test_y)
    return [zlib.crc32(tensor.contiguous().numpy().tobytes()) for tensor in tensors]


def _train(
    trainer: Trainer, options: Options, journal: Journal | None, on_progress: OnProgress, data_print: list[int]
) -> None:
    """Take the steps that are left, write records, and a checkpoint now and then."""
    every, epochs = trainer.steps_per_epoch, trainer.settings.epochs
    lr, last = trainer.lr, time.perf_counter()
    for loss in trainer.run():
        now = time.perf_counter()
        trainer.seconds, last = trainer.seconds + now - last, now
        done, epoch = trainer.done, (trainer.done - 1) // every + 1
        on_progress(f"epoch {epoch} of {epochs}", done / trainer.steps)
        if journal is not None and done % options.log_every == 0:
            journal.write({"step": done, "epoch": epoch, "loss": loss, "lr": lr})
        if done % every == 0:
            mean, hits = trainer.epoch_means()
            record = {"step": done, "epoch": epoch, "train_loss": mean, "train_accuracy": hits}
            record |= _tested(trainer, options.certify_eps) | {"seconds": trainer.seconds}
            record["temperature"] = trainer.classifier.temperature
            if journal is not None:
                journal.write(record)
        if done % every == 0 or done % options.checkpoint_every == 0:
            state = trainer.state()
            if trainer.team.writes:
                noted = {"settings": trainer.settings.to_dict(), "data": data_print}
                save_checkpoint(options.out / CHECKPOINT, {**state, **noted})
        lr, last = trainer.lr, time.perf_counter()


def _tested(trainer: Trainer, eps: Sequence[float]) -> dict[str, Any]:
    """Accuracy on the test images, and what the norms held certify of it, which is not proven."""
    if not eps:
        return {"test_accuracy": trainer.tested()[0]}
    if isinstance(trainer.held, str):
        return {"test_accuracy": trainer.tested()[0], "certified_unproven": None, "reason": trainer.held}
    accuracy, *certified = trainer.tested(eps)
    by_size = {f"{size:g}": share for size, share in zip(eps, certified, strict=True)}
    return {"test_accuracy": accuracy, "certified_unproven": by_size, "lipschitz_held": trainer.held.bound}


def _final(settings: Settings, options: Options, data: Dataset, state: dict[str, Any]) -> dict[str, Any]:
    """Bake the normalised weights in, prove them, save the plain network, and measure it."""
    made = classifier(settings, data, torch.device("cpu"))
    made.load_state_dict(state)
    net, each = made.net.eval(), targets(made.net)
    result: dict[str, Any] = {"temperature": made.temperature}
    result["test_accuracy"] = accuracy(net, data.test_x, data.test_y)
    tracked = settings.normalize == "tracked"
    if tracked:
        remove_spectral_norm(net, certified=options.prove)
        result["proven_accuracy" if options.prove else "plain_accuracy"] = accuracy(net, data.test_x, data.test_y)
    _plain(net)
    found = audit(net, certified=tracked and options.prove)
    result["layers"] = [
        {
            "name": row.name,
            "batchnorm": row.batchnorm,
            "target": each.get(row.batchnorm or row.name),
            "norm": row.norm.lower,
            "upper": row.norm.upper if math.isfinite(row.norm.upper) else None,
        }
        for row in found.rows
    ]
    result["unmeasured"] = [f"{module.name} ({module.type})" for module in found.skipped]
    save_checkpoint(options.out / "model.pt", {"state_dict": net.state_dict()})
    return result | certification(net, data, options.certify_eps, prove=options.prove)


def _plain(net: nn.Module) -> None:
    """Bake in what parametrizations are left, PyTorch's and those of `baselines.py`, as they are in eval mode."""
    for module in list(net.modules()):
        if parametrize.is_parametrized(module):
            for name in list(cast("nn.ModuleDict", module.parametrizations)):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
