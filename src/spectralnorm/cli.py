"""The console entry point; it needs typer and rich, which the library itself does not."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line: `spectralnorm demo`, `audit`, `train` or `evaluate`, or the same with `python -m`.

    Exits with 0, or with 2 and a line on stderr for bad input or without typer and rich.
    """
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        sys.stderr.write('spectralnorm needs typer and rich here: pip install "spectralnorm[cli]"\n')
        sys.exit(2)
    from spectralnorm.commands.app import app

    app()
