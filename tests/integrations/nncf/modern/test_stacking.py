"""`stack`: ilwp's weights and NNCF's activations, with one set of codes."""

import copy
from pathlib import Path

import nncf
import pytest
import torch
from ilwp_integrations.nncf import restore, stack
from torch.ao.quantization import FakeQuantize

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.errors import ConfigError, TrainingError
from tests.integrations.nncf.helpers import images, network


@pytest.fixture(scope="module")
def dataset() -> nncf.Dataset:
    return nncf.Dataset([images()] * 4)


def test_the_model_computes_with_the_codes_of_the_file(dataset: nncf.Dataset, tmp_path: Path) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    quantized, file = stack(model, dataset, {"weight_step": 0.05})
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    modules = [module for module in quantized.modules() if isinstance(module, FakeQuantize)]
    weights = [name for name, value in file.quantized.items() if value.codes.ndim > 1]
    steps = {float(file.quantized[name].scale) for name in weights}
    on_grid = [m for m in modules if m.scale.numel() == 1 and float(m.scale) in steps]
    assert len(on_grid) >= len(weights) - 2, "all but those whose codes pass what NNCF allows"
    size = file.save(tmp_path / "model.ilwp").file_bytes
    assert size < 0.5 * compress(nncf.quantize(network(), dataset), "lossless").ledger.file_bytes
    outputs = quantized(images()).detach()
    again = restore(tmp_path / "model.ilwp", network())
    torch.testing.assert_close(again(images()), outputs, rtol=1e-6, atol=1e-6)
    plain = load(tmp_path / "model.ilwp").restore(network())
    for name in weights:
        torch.testing.assert_close(plain.state_dict()[name], quantized.state_dict()[name], rtol=0, atol=0)


def test_outputs_are_as_close_as_those_of_nncf_alone(dataset: nncf.Dataset) -> None:
    model, inputs = network().eval(), images()
    expected = model(inputs).detach()

    def error(other: torch.nn.Module) -> float:
        return float((other.eval()(inputs) - expected).square().mean() / expected.square().mean())

    quantized, file = stack(model, dataset, {"weight_step": 0.004})
    assert error(file.restore_weights(network())) < 0.01
    assert error(quantized) < 1.05 * error(nncf.quantize(network(), dataset)), "activations are those of NNCF"


def test_chains_where_the_configuration_asks_for_them(dataset: nncf.Dataset) -> None:
    _, file = stack(network(), dataset, IlwpConfig(mode="collocated", bits=5, weight_step=0.05))
    assert file.chains and file.chains[0].layers[0].info.name.startswith("features")


def test_refusals(dataset: nncf.Dataset) -> None:
    with pytest.raises(ConfigError, match="expected inputs, got none"):
        stack(network(), nncf.Dataset([]))
    with pytest.raises(TrainingError, match="wrapped this model already"):
        stack(nncf.quantize(network(), dataset), dataset)
