"""The command `spectralnorm certify`: what its flags name, the certification, and its file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectralnorm import __version__
from spectralnorm.commands.target import load_target, run_settings
from spectralnorm.files import check_folder
from spectralnorm.robustness.attacks import check_budget
from spectralnorm.robustness.certification import Certification
from spectralnorm.robustness.certify import certify
from spectralnorm.training.data import Dataset, load
from spectralnorm.training.settings import Settings

__all__ = ["Request", "run"]

OnProgress = Callable[[str, float], None]
DEFAULT_DATA = "digits"


@dataclass(frozen=True)
class Request:
    """What the command is asked for.

    Attributes:
        target: as for `load_target`.
        eps: sizes by norm.
        arch: architecture of a state_dict; that of the run by default.
        data: name of the data set; that of the run by default.
        data_dir: folder of its files.
        images: certify the first so many test images; 0 for all.
        batch_size: images at a time.
        json_file: file of the result.
    """

    target: str
    eps: Mapping[str, list[float]]
    arch: str | None = None
    data: str | None = None
    data_dir: Path | None = None
    images: int = 0
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
    settings = run_settings(request.target)
    data = _data(request, settings)
    model = load_target(request.target, request.arch, data.input_shape).eval()
    x, y = data.test_x[: request.images or None], data.test_y[: request.images or None]
    inputs = _inputs(request, model, data.name, x, y)
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


def _data(request: Request, settings: Settings | None) -> Dataset:
    """The data that is asked for, or that the run was trained with; split as for the run."""
    seed = 0 if settings is None else settings.seed
    if request.data is not None or settings is None:
        return load(request.data or DEFAULT_DATA, request.data_dir, seed)
    return load(settings.data, request.data_dir or settings.data_dir or None, seed)


def _inputs(request: Request, model: nn.Module, data: str, x: Tensor, y: Tensor) -> dict[str, Any]:
    """What the result depends on."""
    return {
        "target": request.target,
        "model": _fingerprint(repr(model), *(part for pair in model.state_dict().items() for part in pair)),
        "data": data,
        "images": _fingerprint(x, y),
        "eps": {norm: list(sizes) for norm, sizes in request.eps.items()},
        "version": __version__,
    }


def _fingerprint(*parts: object) -> str:
    """What tells tensors and text from others."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            raw = part.detach().cpu().contiguous().flatten().view(torch.uint8)  # bfloat16 has no NumPy dtype
            digest.update(raw.numpy().tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


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
