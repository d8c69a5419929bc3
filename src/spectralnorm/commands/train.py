"""The command `spectralnorm train`: its settings from flags and TOML, and what it prints."""

from __future__ import annotations

import inspect
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from torch.backends.cpu import get_cpu_capability

from spectralnorm.training.checkpoint import load_checkpoint
from spectralnorm.training.conduct import CHECKPOINT, OPTIONS, Options, conduct, load_data
from spectralnorm.training.settings import Settings
from spectralnorm.training.team import joined

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["options_from", "resume_advice", "run", "settings_from", "with_settings"]

OnProgress = Callable[[str, float], None]
_TYPES = {"str": str, "int": int, "float": float, "bool": bool}


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each setting; those that were given reach it as the dictionary `given`.

    Args:
        command: takes `given` and flags of its own.

    Returns:
        A function that Typer makes flags of.
    """

    def wrapper(**arguments: Any) -> None:
        flags = {each.name: arguments.pop(each.name) for each in _flagged()}
        command(given={name: value for name, value in flags.items() if value is not None}, **arguments)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "given"]
    made = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(each))
        for each in _flagged()
    ]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    wrapper.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *made]}
    wrapper.__doc__, wrapper.__name__ = command.__doc__, command.__name__
    return wrapper


def _flagged() -> list[Field[Any]]:
    """The settings that a flag can hold: all but the table of targets."""
    return [each for each in fields(Settings) if each.default is not MISSING]


def _annotation(setting: Field[Any]) -> Any:
    text, choices = setting.metadata["help"], setting.metadata.get("choices")
    text = f"{text[:-1]}: {', '.join(choices)}." if choices and choices[0] not in text else text
    kind = _TYPES[str(setting.type)]
    default = str(setting.default) or "none"
    return Annotated[kind | None, typer.Option(help=f"{text}  [default: {default.lower()}]", show_default=False)]


def settings_from(given: dict[str, Any], config: Path | None, out: Path, *, resume: bool) -> Settings:
    """Settings from flags, then from the TOML file, then by default; of a resumed run, its own.

    Args:
        given: flags.
        config: the TOML file.
        out: folder of the run.
        resume: whether the folder's settings count where none are given.

    Returns:
        The settings.

    Raises:
        ValueError: for a file that is no TOML or names an unknown setting, or a wrong value.
    """
    before = _noted(out) if resume and config is None else None
    if before is not None:
        return Settings(**{**before.to_dict(), **given})  # what differs is refused with the checkpoint at hand
    table: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise ValueError(f"--config: got {config}, which is no file; check the path")
        try:
            table = tomllib.loads(config.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{config}: cannot read it as TOML ({error}); correct it") from error
        Settings.of(table, str(config))
    return Settings(**{**table, **given})


def _noted(out: Path) -> Settings | None:
    """The settings that a run was started with, from its folder; None where there is none."""
    if (out / "settings.json").is_file():
        return Settings.of(_read(out / "settings.json"), str(out / "settings.json"))
    if (out / CHECKPOINT).is_file():
        return Settings.of(load_checkpoint(out / CHECKPOINT)["settings"], str(out / CHECKPOINT))
    return None


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file of a run holds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot read it as JSON ({error}); repair or delete it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: got {type(found).__name__}, expected names with values; repair or delete it")
    return found


def options_from(given: dict[str, Any], out: Path, *, resume: bool) -> Options:
    """Options from flags, of a resumed run then its own, then by default.

    Args:
        given: flags; None where one was not given.
        out: folder of the run.
        resume: whether the folder's options count where none are given.

    Returns:
        The options.

    Raises:
        ValueError: for a wrong value, or a damaged file.
    """
    path, before = out / OPTIONS, {}
    if resume and path.is_file():
        before = _read(path)
        before["certify_eps"] = tuple(before.get("certify_eps", ()))
    named = {name: value for name, value in given.items() if value is not None}
    try:
        return Options(out, resume, **{**before, **named})
    except TypeError as error:
        raise ValueError(f"{path}: it is of another release ({error}); delete it") from error


def run(settings: Settings, options: Options, device: str, on_progress: OnProgress) -> dict[str, Any] | None:
    """Train; the result, in the process that writes.

    Args:
        settings: what to compute.
        options: where to write, and when.
        device: "auto", "cpu" or "cuda".
        on_progress: called with what is done and the share of the run.

    Returns:
        The result; None in the other processes.

    Raises:
        LostProcessError: when another process of the run is gone.
        KeyboardInterrupt: when it is told to stop.
    """
    with joined(device) as team, _stoppable():
        quiet: OnProgress = lambda *_: None  # noqa: E731
        on_progress = on_progress if team.writes else quiet
        if team.writes and team.device.type == "cpu" and settings.amp != "none":
            _warn_of_emulation(settings.amp)
        on_progress("reading the data", 0.0)
        result = conduct(settings, options, load_data(settings), team, on_progress)
        return result if team.writes else None


def _warn_of_emulation(amp: str) -> None:
    """Say when the processor has to emulate the short floats of mixed precision."""
    if get_cpu_capability() == "AVX2":  # of x86, oneDNN multiplies them natively or fast from AVX-512 on
        typer.echo(
            f"spectralnorm: note: this processor emulates {amp}; a step can take ten times as long as with "
            "--amp none",
            err=True,
        )


def resume_advice(out: Path) -> str:
    """Say how to go on with a run that has ended early.

    Args:
        out: its folder.

    Returns:
        Part of a sentence.
    """
    if (out / CHECKPOINT).is_file():
        return f"its last checkpoint is {out / CHECKPOINT}; go on with: spectralnorm train --resume --out {out}"
    return f"it has no checkpoint in {out} yet; start it again with --resume"


@contextmanager
def _stoppable() -> Iterator[None]:
    """Take SIGTERM, which torchrun sends to the processes that are left, and SIGHUP for an interrupt."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
