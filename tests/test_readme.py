"""The README's example and its blocks of code do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_prints_what_the_readme_shows() -> None:
    script = ROOT / "examples" / "true_norm.py"
    assert script.read_text() in README
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert f"```text\n{done.stdout}```" in README


def test_the_code_of_the_section_on_use_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"## Use\n\n```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert "true norm" in capsys.readouterr().out
