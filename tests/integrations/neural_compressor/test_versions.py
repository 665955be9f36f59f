"""What is said of a Neural Compressor that ilwp cannot work with."""

import copy
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from ilwp_integrations.neural_compressor import stack, versions
from neural_compressor.torch.quantization import INT8StaticQuantConfig
from torch import nn

from ilwp_plugin.errors import MissingDependencyError


def pretend(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    def version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(versions, "version", lambda name: version(name.replace("-", "_")))


@pytest.mark.parametrize("found", ["3.7", "3.7.1", "3.9", "3.10", "3.11"])
@pytest.mark.parametrize("package", ["neural_compressor_pt", "neural_compressor"])
def test_supported(monkeypatch: pytest.MonkeyPatch, package: str, found: str) -> None:
    pretend(monkeypatch, **{package: found})
    versions.check()
    assert versions.installed() == found


@pytest.mark.parametrize("found", ["2.6", "3.4.1", "3.5", "3.6", "4.0", "unknown"])
def test_unsupported(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    pretend(monkeypatch, neural_compressor_pt=found)
    with pytest.raises(MissingDependencyError, match=rf"{found} is installed; ilwp works with 3\.7 to 3\.10"):
        versions.check()


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="neural_compressor"):
        versions.check()


def test_int8_that_needs_another_torch(monkeypatch: pytest.MonkeyPatch, mobilenet: nn.Module) -> None:
    """As 3.7 and 3.8 fail beside torch 2.13: on an import inside their quantization."""
    monkeypatch.setitem(sys.modules, "neural_compressor.torch.algorithms.pt2e_quant.core", None)
    with pytest.raises(MissingDependencyError, match="does not work with torch .*take 3.9 or later"):
        stack(copy.deepcopy(mobilenet), [INT8StaticQuantConfig()], torch.randn(4, 3, 32, 32))
