"""Which Neural Compressor is installed, and whether ilwp works with it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ilwp_plugin.errors import MissingDependencyError

__all__ = ["check", "installed"]

_PACKAGES = ("neural-compressor-pt", "neural-compressor")
"""The PyTorch part alone, or all of it."""

_SUPPORTED = range(7, 11)
"""Minor versions of 3."""


def installed() -> str:
    """The version of the installed package. Raises ModuleNotFoundError where there is none."""
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            pass
    raise ModuleNotFoundError("No module named 'neural_compressor'", name="neural_compressor")


def check() -> None:
    """Raises MissingDependencyError for a version that ilwp does not know to work."""
    found = installed()
    major, minor, *_ = (*found.split("."), "0")
    if major != "3" or not minor.isdigit() or int(minor) < _SUPPORTED.start:
        raise MissingDependencyError(
            f"Neural Compressor {found} is installed; ilwp works with 3.{_SUPPORTED.start} to 3.{_SUPPORTED.stop - 1} "
            "(later ones of 3 are untried): pip install 'neural-compressor-pt>=3.9,<4'"
        )
