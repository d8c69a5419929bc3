"""Data sets by name: those that are read from their published files, folders, and functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .dataset import Dataset
from .imports import IMPORT_STRING
from .sources.cifar import cifar10, cifar100
from .sources.digits import digits
from .sources.fashion_mnist import DEBIAN_FASHION_MNIST, FASHION_MNIST_CURE, fashion_mnist
from .sources.folder import folder
from .sources.imported import imported
from .sources.svhn import svhn

__all__ = [
    "DEBIAN_FASHION_MNIST",
    "FASHION_MNIST_CURE",
    "Dataset",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "folder",
    "imported",
    "load",
    "svhn",
]


def load(name: str, data_dir: str | Path | None = None, seed: int = 0) -> Dataset:
    """Load a data set by name.

    Args:
        name: "digits", "fashion-mnist", "cifar10", "cifar100" or "svhn"; or the path of a folder, as `folder`
            takes it; or "package.module:function", as `imported` takes it. The five names come first.
        data_dir: Folder of the published files, for the named sets that are read from files; by default ./data
            (for Fashion-MNIST, Debian's folder where there is one).
        seed: Seed of the split, for the sets that have none of their own.

    Returns:
        The data.

    Raises:
        FileNotFoundError: If a file is missing; the message says where to get it.
        ImportError: If a package that reads the data is not installed.
        RuntimeError: If a function of your own raises.
        ValueError: If there is no set of that name, a file is wrong, or `data_dir` is given with a folder or a
            function.

    Example:
        >>> load("digits").classes
        10
    """
    readers: dict[str, Callable[[], Dataset]] = {
        "digits": lambda: digits(seed),
        "fashion-mnist": lambda: fashion_mnist(data_dir),
        "cifar10": lambda: cifar10(data_dir),
        "cifar100": lambda: cifar100(data_dir),
        "svhn": lambda: svhn(data_dir),
    }
    if name in readers:
        return readers[name]()
    is_folder = bool(name) and Path(name).is_dir()
    if not is_folder and not IMPORT_STRING.fullmatch(name):
        raise ValueError(
            f"data: got {name!r}, expected one of {', '.join(readers)}, or a folder that exists, or "
            "package.module:function; choose one of these"
        )
    if data_dir is not None:
        raise ValueError(f"data_dir: got {data_dir} with {name}, expected it with a named set only; leave it out")
    return folder(name) if is_folder else imported(name)
