"""The command `spectralnorm certify`: what its flags name, the certification, and its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spectralnorm import __version__
from spectralnorm.commands.subject import Subject, load_subject
from spectralnorm.files import check_folder
from spectralnorm.robustness.attacks import check_budget
from spectralnorm.robustness.certification import Certification
from spectralnorm.robustness.certify import certify
from spectralnorm.robustness.fingerprint import of_model, of_tensors

__all__ = ["Request", "run"]

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Request(Subject):
    """What the command is asked for.

    Attributes:
        eps: sizes by norm.
        batch_size: images at a time.
        json_file: file of the result.
    """

    eps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    batch_size: int = 256
    json_file: Path | None = None


def run(request: Request, on_progress: OnProgress) -> tuple[Certification, bool]:
    """Load, prove, write; or read what has been proven of the same inputs.

    Args:
        request: what to do.
        on_progress: called with what is being done and the share that is done.

    Returns:
        The certification, and whether it had been done before.

    Raises:
        TypeError: when the network has no Lipschitz bound.
        ValueError: when the target, the data or a size is wrong, or the file is of other inputs.
        OSError: when the file cannot be read or written.
    """
    _check(request)
    on_progress("loading the model and the data", 0.0)
    model, data, (x, y) = load_subject(request)
    inputs = _inputs(request, model.eval(), data, x, y)
    if request.json_file is not None and request.json_file.is_file():
        return _same(request.json_file, inputs), True
    on_progress("proving the network's Lipschitz bound", 0.0)

    def on_batch(done: int, total: int | None) -> None:
        on_progress("certifying images", done / (total or done))

    found = certify(model, (x, y), request.eps, batch_size=request.batch_size, on_batch=on_batch)
    found = replace(found, inputs=inputs)
    if request.json_file is not None:
        found.save(request.json_file)
    return found, False


def _check(request: Request) -> None:
    for norm, sizes in request.eps.items():
        for size in sizes:
            check_budget(size, norm)
    if not any(request.eps.values()):
        raise ValueError("--eps, --linf-eps: got no size, expected at least one; give such as --eps 0.25")
    if request.json_file is not None:
        check_folder(request.json_file.parent)


def _inputs(request: Request, model: nn.Module, data: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    """What the result depends on."""
    return {
        "target": request.target,
        "model": of_model(model),
        "data": data,
        "images": of_tensors(x, y),
        "eps": {norm: list(sizes) for norm, sizes in request.eps.items()},
        "version": __version__,
    }


def _same(path: Path, inputs: Mapping[str, Any]) -> Certification:
    """The certification in a file, if it is of the same inputs."""
    found = Certification.load(path)
    others = [name for name in inputs if name != "target" and found.inputs.get(name) != inputs[name]]
    if others:
        raise ValueError(
            f"{path}: holds a certification of other inputs ({', '.join(others)}), expected the same; give "
            "another --json, or delete it"
        )
    return found
