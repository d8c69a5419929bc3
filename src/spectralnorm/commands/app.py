"""The command line: its options, and what goes to stdout, stderr and files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spectralnorm import __version__
from spectralnorm.commands import certify as certifying
from spectralnorm.commands import demo as demonstration
from spectralnorm.commands import evaluate as evaluating
from spectralnorm.commands import train
from spectralnorm.commands.target import load_target
from spectralnorm.commands.train import with_settings
from spectralnorm.files import check_folder, write_atomically
from spectralnorm.network.audit import audit as audit_model
from spectralnorm.network.naming import first_line
from spectralnorm.report.certification import certification_summary, certification_table
from spectralnorm.report.plots import figure_class, robust_accuracy_plot
from spectralnorm.report.tables import demo_notes, demo_summary, demo_table
from spectralnorm.report.training import training_summary, training_table
from spectralnorm.robustness.attacks import ATTACKS
from spectralnorm.training.data import load
from spectralnorm.training.models import MODELS
from spectralnorm.training.team import LostProcessError

__all__ = ["app"]

Target = Annotated[
    str,
    typer.Argument(
        help="Folder of a run of train, a saved state_dict, or package.module:factory.", show_default=False
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(help=f"Architecture of a state_dict: {', '.join(MODELS)}, or package.module:factory."),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the data set's files.")]

_KNOWN = "{}: this was done before; nothing was computed anew."
app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"spectralnorm {__version__}")
        raise typer.Exit


@app.callback()
def spectralnorm(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """True spectral norms of neural-network layers: measure them, train with them held down."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results and the plot.")] = Path("demo-results"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File of the results.  [default: demo.json in --out]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")] = 0,
    data: Annotated[str, typer.Option(help=f"Data set: {', '.join(demonstration.PRESETS)}.")] = "digits",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of Fashion-MNIST's IDX files.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
) -> None:
    """Train a small CNN four ways, measure its layers' norms, and attack it."""
    json_file = json_file or out / "demo.json"
    with bad_input():
        settings = demonstration.settings_for(data, seed=seed, epochs=epochs)
        images = load(data, data_dir, seed)
        figure_class()  # found out before the work, not after it
        for folder in (out, json_file.parent):
            check_folder(folder)
    with progress(lines=True) as on_progress:
        result = demonstration.run(images, settings, on_progress)
    show(*demo_notes(result), demo_table(result), *demo_summary(result))
    plot = out / "robust_accuracy.png"
    with bad_input():
        write_json(json_file, result)
        write_atomically(plot, robust_accuracy_plot(result))
    show(f"Results: {json_file}; plot: {plot}")


@app.command()
def audit(
    target: Annotated[
        str, typer.Argument(help="A saved state_dict, or package.module:factory of a model.", show_default=False)
    ],
    arch: Annotated[
        str | None,
        typer.Option(help=f"Architecture of a state_dict: {', '.join(MODELS)}, or package.module:factory."),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="One input's shape, such as 1,28,28: adds the norms at the sizes seen.")
    ] = None,
    certified: Annotated[bool, typer.Option("--certified", help="Prove the norms from above too.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the results to.")] = None,
) -> None:
    """Print each layer's true norm beside the value that PyTorch's spectral_norm divides by."""
    with bad_input():
        shape = None if input_shape is None else parse_shape(input_shape)
        if json_file is not None:
            check_folder(json_file.parent)
        with progress() as on_progress:
            on_progress("loading the model", 0.0)
            model = load_target(target, arch, shape)
            found = audit_model(model, shape, certified=certified, on_layer=partial(_layer_done, on_progress))
    show(found)  # before the file is written: the results are not lost where that fails
    if json_file is not None:
        with bad_input():
            write_json(json_file, found.to_dict())


@app.command(name="train")
@with_settings
def train_command(
    given: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="TOML file of settings, by the flags' names with _.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: its log, checkpoint and result.")] = Path("run"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out, if any.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints.  [default: 200]")
    ] = None,
    log_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between records of the loss.  [default: 50]")
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option(help="Write TensorBoard's events too.  [default: no]", show_default=False)
    ] = None,
    prove: Annotated[
        bool | None, typer.Option(help="Prove the final network's norms.  [default: yes]", show_default=False)
    ] = None,
    certify_eps: Annotated[
        str | None,
        typer.Option(help="L2 sizes at which accuracy is certified, or none.  [default: 0.1,0.25,0.5,1]"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Copy of the result.")] = None,
) -> None:
    """Train a network with its norms held down; go on after a crash with --resume, scale out with torchrun."""
    with bad_input():
        settings = train.settings_from(given, config, out, resume=resume)
        sizes = None if certify_eps is None else _sizes("--certify-eps", certify_eps)
        flags = {
            "checkpoint_every": checkpoint_every,
            "log_every": log_every,
            "tensorboard": tensorboard,
            "prove": prove,
            "certify_eps": sizes,
        }
        options = train.options_from(flags, out, resume=resume)
        if json_file is not None:
            check_folder(json_file.parent)
        if os.environ.get("RANK", "0") == "0":
            for line in settings.idle():
                typer.echo(f"spectralnorm: note: {line}", err=True)
        with stopped(out), progress(lines=True) as on_progress:
            result = train.run(settings, options, device, on_progress)
        if result is not None:
            show(training_table(result), *training_summary(result, out))
            if json_file is not None:
                write_json(json_file, result)


@app.command()
def evaluate(
    target: Target,
    arch: Arch = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set as for train; its test images are attacked.  [default: the run's, or digits]"),
    ] = None,
    data_dir: DataDir = None,
    images: Annotated[int, typer.Option(min=0, help="Attack the first so many test images; 0 for all.")] = 0,
    attacks: Annotated[str, typer.Option(help=f"Of {', '.join(ATTACKS)}.")] = "pgd",
    linf: Annotated[str | None, typer.Option(help="Sizes in L-infinity, such as 2/255,8/255.")] = None,
    l2: Annotated[str | None, typer.Option(help="Sizes in L2, such as 0.5,1.")] = None,
    controls: Annotated[
        str | None, typer.Option(help="Changes without an adversary: noise, blur, contrast, or noise:3.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the attacks.")] = 0,
    probes: Annotated[int, typer.Option(min=0, help="Images on which masked gradients are looked for.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File of the results; what it holds is not done again.")
    ] = None,
) -> None:
    """Attack a network, and print what accuracy it keeps; share the work among processes with torchrun."""
    with bad_input():
        eps = {"linf": evaluating.numbers("--linf", linf), "l2": evaluating.numbers("--l2", l2)}
        request = evaluating.Request(
            target,
            arch,
            data,
            data_dir,
            images,
            seed,
            attacks=tuple(name.strip() for name in attacks.split(",")),
            eps={norm: sizes for norm, sizes in eps.items() if sizes},
            controls=evaluating.severities(controls),
            batch_size=batch_size,
            probes=probes,
            json_file=json_file,
            device=device,
        )
        with unfinished(json_file), progress() as on_progress:
            done = evaluating.run(request, on_progress)
    if done is not None:
        found, known = done
        show(found)
        if known:
            show(_KNOWN.format(json_file))


@contextmanager
def unfinished(json_file: Path | None) -> Iterator[None]:
    """Say how to go on with an evaluation that was stopped or broke off; exit codes 130 and 1."""
    try:
        yield
    except KeyboardInterrupt:
        reason, code = "this was stopped", 130
    except (LostProcessError, FloatingPointError) as error:
        reason, code = str(error), 1
    except RuntimeError as error:  # of the network, which may be anyone's
        reason, code = f"the network does not run: {first_line(error)}", 1
    else:
        return
    cure = "" if json_file is None else "; the same command goes on with what is done"
    typer.echo(f"spectralnorm: {reason}{cure}", err=True)
    raise typer.Exit(code)


@app.command(name="certify")
def certify_command(
    target: Target,
    arch: Arch = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set as for train; its test images count.  [default: the run's, or digits]"),
    ] = None,
    data_dir: DataDir = None,
    images: Annotated[int, typer.Option(min=0, help="The first so many test images; 0 for all.")] = 0,
    eps: Annotated[str, typer.Option(help="L2 sizes, such as 0.25,0.5, or none.")] = "0.1,0.25,0.5,1",
    linf_eps: Annotated[str | None, typer.Option(help="L-infinity sizes, such as 1/255,2/255.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 256,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File of the result; what it holds is not done again.")
    ] = None,
) -> None:
    """Prove which test images a network classifies right under every change of a size."""
    with bad_input():
        sizes = {"l2": _sizes("--eps", eps), "linf": tuple(evaluating.numbers("--linf-eps", linf_eps))}
        request = certifying.Request(
            target, arch, data, data_dir, images, eps=sizes, batch_size=batch_size, json_file=json_file
        )
        with unfinished(None), progress() as on_progress:
            found, known = certifying.run(request, on_progress)
    show(certification_table(found), *certification_summary(found))
    if known:
        show(_KNOWN.format(json_file))


@contextmanager
def stopped(out: Path) -> Iterator[None]:
    """Say how to go on with a run that was told to stop, lost a process, or diverged; exit codes 130 and 1."""
    try:
        yield
    except KeyboardInterrupt:
        reason, code = f"the run was stopped; {train.resume_advice(out)}", 130
    except LostProcessError as error:
        reason, code = f"{error}; {train.resume_advice(out)}", 1
    except FloatingPointError as error:  # with the same settings it would come to the same
        reason, code = f"{error}, with another --out", 1
    else:
        return
    typer.echo(f"spectralnorm: {reason}", err=True)
    raise typer.Exit(code)


def _sizes(flag: str, text: str) -> tuple[float, ...]:
    """Sizes of perturbations; none for "none"."""
    return () if text == "none" else tuple(evaluating.numbers(flag, text))


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn what is wrong with the input into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError, MemoryError, FloatingPointError) as error:
        typer.echo(f"spectralnorm: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def progress(*, lines: bool = False) -> Iterator[demonstration.OnProgress]:
    """A progress bar on stderr where that is a terminal; else, if asked for, a line for each new stage."""
    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] | None = set() if lines else None
        yield lambda stage, _: _announce(stage, seen)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # what the user's code prints goes above the bar on a terminal, and stays in the pipe elsewhere
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda stage, share: bar.update(task, description=stage, completed=share)


def _layer_done(on_progress: demonstration.OnProgress, done: float, total: int) -> None:
    """Report which layer is being measured, and the share that is done."""
    on_progress(f"measuring layer {min(int(done) + 1, total)} of {total}", done / total)


def _announce(stage: str, seen: set[str] | None) -> None:
    if seen is not None and stage not in seen:
        seen.add(stage)
        typer.echo(stage, err=True)


def show(*what: RenderableType) -> None:
    """Print to stdout; 120 columns wide where that is no terminal."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(*what, sep="\n", soft_wrap=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, strictly: no NaN."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape such as 1,28,28."""
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"--input-shape: got {text!r}, expected whole numbers above 0, such as 1,28,28; no batch")
    return shape
