"""What is public is documented: docstrings with their sections and examples, and the README's commands."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import spectralnorm

ROOT = Path(__file__).parents[1]


def public(module: ModuleType, prefix: str = "") -> dict[str, Any]:
    """Every public name and what it stands for, those of public modules included."""
    found: dict[str, Any] = {}
    for name in module.__all__:
        value = getattr(module, name)
        found[prefix + name] = value
        if inspect.ismodule(value):
            found |= public(value, f"{prefix}{name}.")
    return found


PUBLIC = public(spectralnorm)
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
EXAMPLES = [*FUNCTIONS, *(name for name, cls in CLASSES.items() if not inspect.isabstract(cls))]


def methods(cls: type) -> dict[str, Callable[..., Any]]:
    """Public methods and properties that the class itself, or one of ours that it derives from, defines."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("spectralnorm")]
    found = {}
    for base in reversed(ours):
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(function) and not name.startswith("_"):
                found[name] = function
    return found


def arguments(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in {"self", "cls"}]


def section(docstring: str, title: str) -> str:
    """The indented block below "Args:" and the like; empty where there is none."""
    match = re.search(rf"^{title}:\n((?:[ \t]+.*\n?|\n)+)", docstring + "\n", re.MULTILINE)
    return match[1] if match else ""


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring(name: str) -> None:
    docstring = inspect.getdoc(PUBLIC[name]) or ""
    assert len(docstring.split()) >= 3
    if inspect.isclass(PUBLIC[name]):  # not the one a dataclass makes for itself
        assert not docstring.startswith(f"{name}(")
        assert PUBLIC[name].__doc__


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_has_a_docstring(name: str) -> None:
    for method, function in methods(CLASSES[name]).items():
        assert function.__doc__, f"{name}.{method} has no docstring"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sections_of_a_function(name: str) -> None:
    function = FUNCTIONS[name]
    docstring = inspect.getdoc(function) or ""
    if not arguments(function):
        return
    described = section(docstring, "Args")
    for argument in arguments(function):
        assert re.search(rf"^ +\*{{0,2}}{argument}:", described, re.MULTILINE), f"Args lacks {argument}"
    if inspect.signature(function).return_annotation not in {None, "None", inspect.Signature.empty}:
        assert section(docstring, "Returns")
    assert section(docstring, "Raises")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_to_run(name: str) -> None:
    assert ">>>" in section(inspect.getdoc(PUBLIC[name]) or "", "Example")


@pytest.mark.parametrize("name", CLASSES)
def test_attributes_of_a_class_are_described(name: str) -> None:
    described = section(inspect.getdoc(CLASSES[name]) or "", "Attributes")
    for field in dataclasses.fields(CLASSES[name]) if dataclasses.is_dataclass(CLASSES[name]) else ():
        assert re.search(rf"^ +{field.name}:", described, re.MULTILINE), f"Attributes lacks {field.name}"


def test_all_is_sorted_and_complete() -> None:
    assert list(spectralnorm.__all__) == sorted(spectralnorm.__all__)
    assert all(hasattr(spectralnorm, name) for name in spectralnorm.__all__)


COMMANDS = re.findall(r"\S+", re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_mentions_every_make_command(command: str) -> None:
    assert re.search(rf"\bmake {command}\b", (ROOT / "README.md").read_text(encoding="utf-8"))
