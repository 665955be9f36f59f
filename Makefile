# Every target sets up its own virtual environment first.
VENV ?= .venv
# NNCF 2.19 and NNCF 3 cannot be installed together.
LEGACY ?= .venv-legacy
PYTHON ?= python3
BIN := $(VENV)/bin
# One thread a process: tests run in two processes, and small networks gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# NNCF's C++ extension is compiled by `make setup`, in each environment for itself.
PYTEST := $(TEST_ENV) TORCH_EXTENSIONS_DIR=$(CURDIR)/$(VENV)/torch_extensions $(BIN)/python -m pytest
PYTEST_LEGACY := $(TEST_ENV) TORCH_EXTENSIONS_DIR=$(CURDIR)/$(LEGACY)/torch_extensions $(LEGACY)/bin/python -m pytest

.PHONY: demo test test-slow bench lint setup browser clean

demo: $(VENV)/.installed
	$(BIN)/ilwp demo

test: setup lint
	$(PYTEST) -n 2
	$(PYTEST_LEGACY) tests/integrations/nncf

test-slow: setup
	$(PYTEST) -m slow --timeout 3600
	$(PYTEST_LEGACY) tests/integrations/nncf -m slow --timeout 3600

bench: $(VENV)/.installed
	$(PYTEST) tests/benchmarks -m bench -s --timeout 1800

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: browser $(VENV)/.compiled $(LEGACY)/.compiled

# Tests look at the report of `ilwp compare` in a real browser.
browser:
	@command -v chromium > /dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -q && \
	  apt-get install -q -y --no-install-recommends chromium fonts-liberation; \
	} || { echo "make test needs a program named chromium: on Debian 'apt-get install chromium', as root" >&2; exit 1; }

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(LEGACY)/.installed: setup.cfg pyproject.toml constraints-legacy.txt
	$(PYTHON) -m venv $(LEGACY)
	$(LEGACY)/bin/python -m pip install --quiet --constraint constraints-legacy.txt --editable '.[dev-legacy]'
	touch $@

%/.compiled: %/.installed
	NNCF_EXTENSION_LOAD_TIMEOUT=0 TORCH_EXTENSIONS_DIR=$(CURDIR)/$*/torch_extensions $*/bin/python -m ilwp_integrations.nncf.prepare
	touch $@

clean:
	rm -rf $(VENV) $(LEGACY) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
