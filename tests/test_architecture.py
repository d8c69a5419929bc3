"""The layout: who may import whom, what importing the library costs, and how long files and functions get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "spectralnorm"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
ROWS = (  # a file imports only from rows above its own, or from its own folder
    "bound",
    "files",
    "layers",
    "operators",
    "estimators",
    "measure",
    "network",
    "normalize",
    "parametrizations",
    "losses",
    "robustness",
    "training",
    "__init__",
    "report",
    "commands",
    "cli",
    "__main__",
)
SHARED_BY_ESTIMATORS = {
    *("base", "rounding", "grids", "above", "memory"),
    *("ascent", "lanczos", "cells", "cholesky", "sharing", "search", "proof"),
}
BETWEEN_ESTIMATORS = {("certified", "tracked")}
HEAVY = {"typer", "rich", "sklearn", "scipy", "matplotlib", "foolbox", "pyautoattack", "pandas", "torchvision"}

every_file = pytest.mark.parametrize("module", FILES)


def imports(module: str, *, types: bool = True) -> set[str]:
    """Modules of the library that a file imports, anywhere in it; "__init__" is the library as a whole.

    Without `types`, imports that only a type checker follows are left out.
    """
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    if not types:
        blocks = [n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        unused = {id(n) for block in blocks for n in ast.walk(block)}
        nodes = [n for n in nodes if id(n) not in unused]
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{origin(module, node)}.{alias.name}" for alias in node.names]
    ours = [name for name in names if name.split(".")[0] == "spectralnorm"]
    return {existing(name.removeprefix("spectralnorm").removeprefix(".")) for name in ours}


def origin(module: str, node: ast.ImportFrom) -> str:
    """The module that names are imported from, written out."""
    if not node.level:
        return node.module or ""
    parts = ["spectralnorm", *module.split(".")]
    up = node.level - (FILES[module].name == "__init__.py")
    return ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])


def existing(name: str) -> str:
    """The module that a dotted name lies in: "bound.Bound" in "bound"."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or "__init__"


def row(module: str) -> int:
    return ROWS.index(module.split(".")[0])


def test_every_file_has_its_row() -> None:
    assert {module.split(".")[0] for module in FILES} <= set(ROWS)


@every_file
def test_imports_come_from_rows_above(module: str) -> None:
    for other in imports(module):
        assert row(other) <= row(module), f"{module} imports {other}, which lies below it"


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: imports(module, types=False) for module in FILES if module != "__init__"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("estimators.")])
def test_estimators_do_not_import_each_other(module: str) -> None:
    own = module.split(".")[1]
    others = {name.split(".")[1] for name in imports(module) if name.startswith("estimators.")}
    allowed = SHARED_BY_ESTIMATORS | {other for one, other in BETWEEN_ESTIMATORS if one == own}
    assert others <= allowed
    assert "estimators" not in imports(module)


def test_importing_the_library_is_light() -> None:
    """Of heavy packages, only those that PyTorch and NumPy bring themselves."""
    code = (
        "import sys, numpy, torch\n"
        "before = set(sys.modules)\n"
        "import spectralnorm\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(run.stdout.split())
    assert "spectralnorm" in new
    assert not new & HEAVY


@every_file
def test_no_file_is_long(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 400


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


@every_file
def test_no_function_is_long(module: str) -> None:
    for function in functions(module):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        lines = (function.end_lineno - body[0].lineno + 1) if body else 0
        assert lines <= 40, f"the body of {module}.{function.name} has {lines} lines"
