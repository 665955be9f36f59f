# Every target sets up its own virtual environment first; nothing else is needed.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# One thread a process: tests run in two processes, and small networks gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest

.PHONY: demo test test-slow bench lint setup clean

demo: setup
	$(BIN)/ilwp demo

test: lint
	$(PYTEST) -n 2

test-slow: setup
	$(PYTEST) -m slow --timeout 3600

bench: setup
	$(PYTEST) tests/benchmarks -m bench -s --timeout 1800

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
