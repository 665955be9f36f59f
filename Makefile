# Every target sets up its own virtual environment first.
VENV ?= .venv
# NNCF 2.19 and NNCF 3 cannot be installed together.
LEGACY ?= .venv-legacy
# NNCodec needs an older numpy, and without --no-deps gigabytes of what its coder does not use.
PEERS ?= .venv-peers
OLDEST ?= .venv-oldest
MUTATION ?= .venv-mutation
MUTANTS ?= 150
FUZZ_SECONDS ?= 300
MANY ?= 1000000
PYTHON ?= python3
BIN := $(VENV)/bin
# One thread a process: tests run in two processes, and small networks gain nothing from more.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# NNCF's C++ extension is compiled by `make setup`, in each environment for itself.
PYTEST := $(TEST_ENV) TORCH_EXTENSIONS_DIR=$(CURDIR)/$(VENV)/torch_extensions $(BIN)/python -m pytest
PYTEST_LEGACY := $(TEST_ENV) TORCH_EXTENSIONS_DIR=$(CURDIR)/$(LEGACY)/torch_extensions $(LEGACY)/bin/python -m pytest

.PHONY: demo test test-slow fuzz fuzz-many breaking mutation oldest bench table1 peers docs schema wheel lint setup browser clean

demo: $(VENV)/.installed
	$(BIN)/ilwp demo

test: setup lint
	$(PYTEST) -n 2
	$(PYTEST_LEGACY) tests/integrations/nncf -n 2

test-slow: setup
	$(PYTEST) -m slow --timeout 3600
	$(PYTEST_LEGACY) tests/integrations/nncf -m slow --timeout 3600

# Of an hour at a time, say: `make fuzz FUZZ_SECONDS=3600`. What reaches new code joins the corpus that the tests read.
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzz out/fuzz -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1
	$(BIN)/python -m tests.fuzz --take out/fuzz

# Mutants of what fuzzing has found, without coverage, which makes each slower: `make fuzz-many MANY=10000000`. What was
# read already is not read again.
fuzz-many: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m tests.fuzz.many $(MANY) out/fuzz

# Faults that tests once did not notice, put in one after the other.
breaking: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m tests.breaking

# Small faults in the format and its writers, a sample of all; what was tried already is not tried again. Half an hour.
mutation: $(VENV)/.installed $(MUTATION)/.installed
	test -e out/mutation/mutants.json || $(MUTATION)/bin/python -m tests.mutation make --count $(MUTANTS)
	$(TEST_ENV) $(BIN)/python -m tests.mutation run

# The oldest versions that setup.cfg allows write and restore the same bytes. torch 2.4 brings gigabytes of CUDA.
oldest: $(VENV)/.installed $(OLDEST)/.installed
	$(BIN)/python -W ignore -m tests.determinism > $(OLDEST)/newest.txt
	$(OLDEST)/bin/python -W ignore -m tests.determinism | diff $(OLDEST)/newest.txt -

bench: $(VENV)/.installed
	$(PYTEST) tests/benchmarks -m bench -s --timeout 1800

peers: $(VENV)/.installed $(PEERS)/.installed
	$(TEST_ENV) $(BIN)/python examples/peers/table.py --peers $(PEERS)/bin/python
	$(TEST_ENV) $(BIN)/python examples/peers/table.py --peers $(PEERS)/bin/python --pretrained

table1: $(VENV)/.installed
	$(BIN)/ilwp compare examples/compare/table1.json -o out/table1

# What `ilwp schema` prints: to be made again when an option changes.
schema: $(VENV)/.installed
	$(BIN)/python -m ilwp_plugin.config > out.schema.json && mv out.schema.json ilwp_plugin/schema.json

# The site, in out/site: nothing in it is loaded from elsewhere.
docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/.installed
	$(BIN)/python -m build --outdir out/dist

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

$(OLDEST)/.installed: setup.cfg
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet torch==2.4.1 numpy==1.26.4 scipy==1.11.4 pydantic==2.6.0 typer==0.12.0 \
	  rich==13.0.0 bitarray==3.0.0 constriction==0.4.0 safetensors==0.4.3 filelock==3.12.0
	touch $@

$(MUTATION)/.installed: Makefile
	$(PYTHON) -m venv $(MUTATION)
	$(MUTATION)/bin/python -m pip install --quiet mutmut==3.8.1
	touch $@

$(PEERS)/.installed: Makefile
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0 'numpy<2' pandas tqdm pcodec==1.1.0 zstandard==0.25.0 pybind11 setuptools wheel
	$(PEERS)/bin/python -m pip install --quiet --no-deps --no-build-isolation nncodec==2.1.3
	touch $@

%/.compiled: %/.installed
	NNCF_EXTENSION_LOAD_TIMEOUT=0 TORCH_EXTENSIONS_DIR=$(CURDIR)/$*/torch_extensions $*/bin/python -m ilwp_integrations.nncf.prepare
	touch $@

clean:
	rm -rf $(VENV) $(LEGACY) $(PEERS) $(OLDEST) $(MUTATION) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
