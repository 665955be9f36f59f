"""Models that NNCF has quantized after training: files without a controller."""

import copy
from pathlib import Path
from typing import Any

import nncf
import pytest
import torch
from ilwp_integrations.nncf import apply_ilwp, restore
from nncf.parameters import PruneMode
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.function_hook.wrapper import get_hook_storage
from nncf.torch.quantization.layers import BaseWeightsDecompressor
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

from ilwp_plugin import compress, load
from ilwp_plugin.errors import ConfigError, FormatError, TensorError
from tests.integrations.nncf.helpers import check_in_a_new_process, images, network


def quantized(model: nn.Module) -> nn.Module:
    return nncf.quantize(model.eval(), nncf.Dataset([images()]), subset_size=1)


def pruned(model: nn.Module) -> nn.Module:
    return nncf.prune(model, PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio=0.5, examples_inputs=(images(),))


def stripped(model: nn.Module) -> nn.Module:
    return nncf.strip(quantized(model), example_input=images())


def weights(mode: str) -> Any:
    def compressed(model: nn.Module) -> nn.Module:
        chosen = nncf.CompressWeightsMode(mode)
        return nncf.compress_weights(model.eval(), mode=chosen, dataset=nncf.Dataset([images()]))

    return compressed


WAYS = {
    "quantize": quantized,
    "strip": stripped,
    "prune and quantize": lambda model: quantized(pruned(model)),
    "int8_asym": weights("int8_asym"),
    "int8_sym": weights("int8_sym"),
}


@pytest.fixture(scope="module", params=WAYS)
def made(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    model = WAYS[request.param](network())
    return model, model(images()).detach()


def test_the_codes_are_found_and_the_model_is_restored(made: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, outputs = made
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compress(model, "lossless").save(tmp_path / "model.ilwp")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "left as it is"
    file = load(tmp_path / "model.ilwp")
    layers = [n for n, m in network().named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {name.removesuffix(".weight") for name in file.quantized} == set(layers)
    torch.testing.assert_close(restore(file, network())(images()), outputs, rtol=1e-5, atol=1e-5)
    assert list(file.state_dict()) == list(network().state_dict()), "tensors of the plain network alone"
    plain = file.restore_weights(network()).eval()
    found = restore(tmp_path / "model.ilwp", network())
    assert len([m for m in found.modules() if isinstance(m, FakeQuantize)]) in (0, len(_quantizers(model)))
    for name, hook in get_hook_storage(model).named_hooks():
        if isinstance(hook, BaseWeightsDecompressor):  # it multiplies in fp16
            key = decode_hook_name(name)[1]
            weight = hook(model.get_parameter(key))
            torch.testing.assert_close(plain.get_parameter(key), weight, rtol=1e-3, atol=1e-6, msg=key)
    again = compress(found, "lossless")
    assert again.to_bytes() == file.to_bytes()


def _quantizers(model: nn.Module) -> list[nn.Module]:
    kinds = (FakeQuantize, nncf.torch.quantization.layers.BaseQuantizer)
    return [module for module in model.modules() if isinstance(module, kinds)]


def test_by_default_norms_and_biases_are_small_too(made: tuple[nn.Module, Tensor]) -> None:
    model, _ = made
    exact, small = compress(model, "lossless"), compress(model)
    assert small.ledger.file_bytes < 0.95 * exact.ledger.file_bytes
    for name, value in exact.quantized.items():
        torch.testing.assert_close(small.tensor(name), torch.from_numpy(value.restore()), rtol=0, atol=0)


def test_it_loads_into_a_stripped_model_and_no_other() -> None:
    model = quantized(network())
    file, strip = compress(model), nncf.strip(copy.deepcopy(model), example_input=images())
    for tensor in strip.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(0.5)
    file.apply_to(strip)
    torch.testing.assert_close(strip(images()), restore(file, network())(images()), rtol=0, atol=0)
    with pytest.raises(TensorError, match="quantizers not in the file"):
        compress(network()).apply_to(strip)


def test_in_a_new_process(tmp_path: Path) -> None:
    model = quantized(network())
    compress(model, "lossless").save(tmp_path / "model.ilwp")
    check_in_a_new_process(tmp_path / "model.ilwp", model(images()).detach(), 1e-5)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="controller.save_ilwp"):
        compress(apply_ilwp(network(), {"loss_weight": 0.0}, images()))
    model = compress(quantized(network()))
    damaged = model.with_others_of(model.state_dict(), {**model.metadata, "quantizers": "c-rk+0RR910RR"})
    with pytest.raises(FormatError, match="quantizers in the metadata of the file are damaged"):
        restore(damaged, network())


def test_calibration_leaves_the_codes_and_moves_the_norms() -> None:
    model = quantized(network())
    file = compress(model, calibration=images(64), example_inputs=images())
    exact = compress(model, "lossless")
    assert file.quantized.keys() >= exact.quantized.keys()
    assert all(torch.equal(file.tensor(name), exact.tensor(name)) for name in exact.quantized)
