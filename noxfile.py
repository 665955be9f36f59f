"""The matrix: every Python, the oldest and the newest torch, both generations of NNCF, INC 3.9 and 3.10.

nox                 all sessions whose interpreter is there
nox -s tests-3.12   one of them
nox -s tests-3.12 -- tests/format    some of its tests
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
NEWEST = "3.11"
"""The Python whose packages constraints.txt pins."""
CORE = ["tests", "--ignore=tests/integrations", "--ignore=tests/compare"]
TESTS = ["pytest", "hypothesis", "pytest-timeout", "pytest-xdist", "jsonschema"]
ENV = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NNCF_EXTENSION_LOAD_TIMEOUT": "0"}


def _test(session: nox.Session, *paths: str) -> None:
    extension = {"TORCH_EXTENSIONS_DIR": f"{session.virtualenv.location}/torch_extensions"}
    session.run("python", "-m", "pytest", "-n", "2", *(session.posargs or paths), env={**ENV, **extension})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The core, with whatever versions a user of this Python gets today."""
    session.install("-e", ".[report,compare,pruning,onnx,fast]", *TESTS)
    _test(session, *CORE)


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """The core with the oldest versions that setup.cfg allows."""
    pins = ["torch==2.4.*", "numpy==1.26.*", "scipy==1.11.*", "pydantic==2.6.*", "typer==0.12.*", "rich==13.*"]
    session.install("-e", ".[report]", *pins, *TESTS)
    _test(session, *CORE, "--ignore=tests/test_packaging.py")


@nox.session(python=NEWEST)
def nncf_3(session: nox.Session) -> None:
    """NNCF 3."""
    session.install("-c", "constraints.txt", "-e", ".[report,nncf,onnx]", *TESTS)
    _test(session, "tests/integrations/nncf")


@nox.session(python=NEWEST)
def nncf_2(session: nox.Session) -> None:
    """NNCF 2.19."""
    session.install("-c", "constraints-legacy.txt", "-e", ".[dev-legacy]", *TESTS)
    _test(session, "tests/integrations/nncf")


@nox.session(python=NEWEST)
@nox.parametrize("inc", ["3.9", "3.10"])
def inc(session: nox.Session, inc: str) -> None:
    """Intel Neural Compressor."""
    session.install("-e", ".[report,inc]", f"neural-compressor-pt=={inc}", "torch==2.13.*", *TESTS)
    _test(session, "tests/integrations/neural_compressor")


@nox.session(python=NEWEST)
def lint(session: nox.Session) -> None:
    """ruff, mypy, import-linter."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"]):
        session.run(*command)


@nox.session(python=NEWEST)
def docs(session: nox.Session) -> None:
    """The site."""
    session.install("-c", "constraints.txt", "-e", ".[docs,torch]")
    session.run("mkdocs", "build", "--strict")
