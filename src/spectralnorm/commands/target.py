"""From what a user names on the command line to a model: a checkpoint of an architecture, or an import string."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectralnorm.training.conduct import CHECKPOINT
from spectralnorm.training.imports import IMPORT_STRING, accepts, call_factory, import_attribute
from spectralnorm.training.models import MODELS, build
from spectralnorm.training.normalizing import normalize
from spectralnorm.training.settings import Settings

__all__ = ["load_target", "run_settings"]

NESTED = ("state_dict", "model")  # keys under which checkpoints hold their state_dict
MODEL_FILE = "model.pt"  # that a run leaves
HOW_TO_SAVE = "save one with torch.save(model.state_dict(), path)"


def load_target(target: str, arch: str | None, input_shape: Sequence[int] | None) -> nn.Module:
    """Load a model.

    Args:
        target: path of a saved state_dict; folder of a run of `spectralnorm train`, whose `model.pt` is meant, or
            while it is not there the `checkpoint.pt`; or `package.module:attribute` of a model or of a function
            that returns one.
        arch: for a state_dict: the name of an architecture, which is built with BatchNorm if the state_dict has
            any, or `package.module:attribute`. That of a run is known, with its options.
        input_shape: for a named architecture, or a function of (input_shape, classes): one input's shape without
            batch.

    Returns:
        The model.

    Raises:
        ValueError: when the target, the architecture or the file's content is not as expected.
        RuntimeError: when the user's own factory raises.

    Example:
        >>> load_target("torch.nn:Identity", None, None)
        Identity()
    """
    path = _saved(Path(target))
    if path.is_file():
        return _from_checkpoint(path, arch, input_shape)
    if not IMPORT_STRING.fullmatch(target):
        raise ValueError(
            f"{target}: got no such file, expected a saved state_dict or package.module:factory; check the path"
        )
    if arch is not None:
        raise ValueError(f"--arch: got {arch} with {target}, expected it with a checkpoint only; leave it out")
    return _from_import(target)


def run_settings(target: str | Path) -> Settings | None:
    """The settings of the run of `spectralnorm train` that a folder, or a file in it, is of.

    Args:
        target: as for `load_target`.

    Returns:
        The settings; None where it is something else.

    Raises:
        ValueError: when they are damaged, or of another release.
    """
    path = _saved(Path(target))
    noted = path.parent / "settings.json"
    if path.name not in (MODEL_FILE, CHECKPOINT) or not path.is_file() or not noted.is_file():
        return None
    try:
        return Settings.of(json.loads(noted.read_text(encoding="utf-8")), str(noted))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{noted}: cannot read it ({error}); repair it, or move {path} elsewhere") from error


def _saved(target: Path) -> Path:
    """The file of a network in the folder of a run; another target is returned as it is."""
    if not target.is_dir():
        return target
    inside = [target / name for name in (MODEL_FILE, CHECKPOINT) if (target / name).is_file()]
    if not inside:
        raise ValueError(
            f"{target}: got a folder without {MODEL_FILE} and {CHECKPOINT}, expected that of a run of "
            "spectralnorm train; finish it with --resume, or give another"
        )
    return inside[0]


def _from_import(text: str) -> nn.Module:
    """The module that an import string names, or that the callable it names returns."""
    factory = import_attribute(text)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory) or not accepts(factory):
        raise ValueError(
            f"{text}: got a {type(factory).__name__}, expected a torch.nn.Module, or a callable that needs no "
            "argument and returns one; write such a function"
        )
    return call_factory(text, factory)


def _from_checkpoint(path: Path, arch: str | None, input_shape: Sequence[int] | None) -> nn.Module:
    content = _load(path)
    if isinstance(content, Mapping) and "settings" in content and "model" in content:
        return _from_run(path, content, input_shape)
    state, settings = _state_dict(path, content), run_settings(path)
    arch = arch or (settings.arch if settings is not None else None)
    options = settings.architecture if settings is not None and settings.arch == arch else None
    model = _architecture(path, arch, input_shape, state, options)
    differences = _differences(model.state_dict(), state)
    parametrised = sorted({key.split(".parametrizations.")[0] for key in state if ".parametrizations." in key})
    if differences and parametrised:
        raise ValueError(
            f"{path}: got parametrised weights ({', '.join(parametrised)}), expected those of --arch {arch}; call "
            "spectralnorm.remove_spectral_norm(model), or torch.nn.utils.parametrize.remove_parametrizations, "
            "before you save it"
        )
    if differences:
        more = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise ValueError(
            f"{path}: it does not fit --arch {arch}: {'; '.join(differences[:3])}{more}; give the architecture it "
            "was saved from"
        )
    model.load_state_dict(state)
    return model.eval()


def _differences(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> list[str]:
    """What keeps a state_dict from being loaded."""
    return [
        *(f"got no {key}" for key in expected if key not in got),
        *(f"expected no {key}" for key in got if key not in expected),
        *(
            f"{key} has shape {tuple(got[key].shape)}, expected {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in got and got[key].shape != tensor.shape
        ),
    ]


def _from_run(path: Path, content: Mapping[str, Any], input_shape: Sequence[int] | None) -> nn.Module:
    """The network of a checkpoint of `spectralnorm train`, normalised as it is there."""
    settings = Settings.of(content["settings"], str(path))
    if input_shape is None:
        raise ValueError(f"--input-shape: got none, expected one with {path}; give it, such as 1,28,28")
    state = {key.removeprefix("net."): value for key, value in content["model"].items() if key.startswith("net.")}
    weights = [value for key, value in state.items() if key.endswith(("weight", "weight.original"))]
    with torch.random.fork_rng(devices=[]):
        net = build(settings.arch, input_shape, len(weights[-1]), **settings.architecture)
        normalize(net, settings, input_shape)
    net.load_state_dict(state)
    return net.eval()


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The state_dict a file holds, by itself or nested."""
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(
            f"{path}: got a {type(loaded).__name__} that is no state_dict, expected names with their tensors, "
            f'by themselves or under "state_dict" or "model"; {HOW_TO_SAVE}'
        )
    return dict(loaded)


def _load(path: Path) -> Any:
    """Read tensors only; whatever torch says about a file it cannot read becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"Unsupported (?:global|class)\W*(?:GLOBAL )?([\w.]+)", str(error))
        if refused:
            reason = f"got a file with an object of class {refused[1]}, which could run code and is not loaded"
        else:
            reason = f"got a file that is damaged or no checkpoint ({type(error).__name__})"
        raise ValueError(f"{path}: {reason}; expected a state_dict; {HOW_TO_SAVE}") from error


def _architecture(
    path: Path,
    arch: str | None,
    input_shape: Sequence[int] | None,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any] | None,
) -> nn.Module:
    """The network of an architecture, with the options of its run or as far as the state_dict tells them."""
    if imported := arch is not None and IMPORT_STRING.fullmatch(arch):
        found = import_attribute(arch)
        if isinstance(found, nn.Module) or not accepts(found, input_shape, 2):
            return _from_import(arch)
        if accepts(found):
            model = _from_import(arch)
            if input_shape is None or not _differences(model.state_dict(), state):
                return model
    elif arch not in MODELS:
        raise ValueError(
            f"--arch: got {arch or 'none'}, expected {', '.join(MODELS)} or package.module:factory; name the "
            f"architecture of {path}"
        )
    if input_shape is None:
        raise ValueError(f"--input-shape: got none, expected one with --arch {arch}; give it, such as 1,28,28")
    matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
    if not matrices:
        raise ValueError(f"{path}: got no matrix, expected the last layer of {arch}; give another --arch")
    if options is not None:
        return build(str(arch), input_shape, len(matrices[-1]), **options)
    batch_norm: bool | None = any(key.endswith("running_var") for key in state)
    if imported and not (batch_norm and accepts(found, input_shape, 2, batch_norm=True)):
        batch_norm = None
    return build(arch, input_shape, len(matrices[-1]), batch_norm=batch_norm)
