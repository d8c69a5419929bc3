# Every target sets up what it needs in .venv, and reuses it when it is there.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# One thread: test workers with thread pools would fight for the cores, and the demo's nets are too small for more.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test check soundness kills bench clean

setup: .venv/.installed

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing spectralnorm and what it needs into .venv (once, a few minutes)"
	$(INSTALL) -e ".[cli,data,attacks,plot,train,dev]"
	@touch $@

.venv/.installed-bench: .venv/.installed
	$(INSTALL) -e ".[bench]"
	@touch $@

demo: .venv/.installed
	$(BIN)/spectralnorm demo

test: .venv/.installed
	$(BIN)/python -m pytest

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 0 tests/test_documentation.py tests/test_architecture.py

soundness: .venv/.installed
	$(BIN)/python tests/soundness.py

kills: .venv/.installed
	$(BIN)/python tests/kills.py

bench: .venv/.installed-bench
	$(BIN)/python benchmarks/estimators.py
	$(BIN)/python benchmarks/certified.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
