"""The same tests under NNCF 2.19 and under NNCF 3; `make test` runs them in an environment for each."""

import logging
from importlib.metadata import version

import ilwp_integrations.nncf  # before nncf.torch, which it tells how to trace
import pytest

LEGACY = version("nncf").startswith("2.")
collect_ignore = ["modern" if LEGACY else "legacy"]


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    ilwp_integrations.nncf.register()
    ilwp_integrations.nncf.register()  # a second time does nothing
    logging.getLogger("nncf").setLevel(logging.ERROR)
