"""Several algorithms on one model: every one runs, or the user is told."""

import copy
import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ilwp_integrations.neural_compressor import IlwpConfig, attached, compose, config_from_dict, load, save
from neural_compressor.torch.algorithms.mixed_precision import HalfPrecisionModuleWrapper
from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear
from neural_compressor.torch.quantization import (
    GPTQConfig,
    HQQConfig,
    INT8StaticQuantConfig,
    MixedPrecisionConfig,
    RTNConfig,
    convert,
    prepare,
    quantize,
)
from neural_compressor.torch.utils.utility import algos_mapping
from scipy.stats import entropy
from torch import Tensor, nn

from ilwp_plugin.errors import ConfigError, MissingDependencyError, TrainingError
from tests.integrations.chained import chained

PAPER = partial(IlwpConfig, preset="paper")
"""The chains only."""

RTN = {"use_layer_wise": False, "bits": 8, "group_size": -1}


def ran(model: nn.Module) -> tuple[bool, bool]:
    """Whether ilwp and RTN ran."""
    found = attached(model).compressed
    return found is not None and len(chained(found)) == 13, isinstance(model.classifier, INCWeightOnlyLinear)


COMPOSITIONS: dict[str, Any] = {
    "compose": lambda: compose(PAPER(bits=4), RTNConfig(**RTN)),
    "other order": lambda: compose(RTNConfig(**RTN), PAPER(bits=4)),
    "dict": lambda: config_from_dict({"ilwp": {"preset": "paper", "bits": 4}, "rtn": RTN}),
    "dict, other order": lambda: config_from_dict({"rtn": RTN, "ilwp": {"preset": "paper", "bits": 4}}),
    "sum": lambda: PAPER(bits=4) + RTNConfig(**RTN),
    "INC's sum": lambda: compose(RTNConfig(**RTN) + PAPER(bits=4)),
}


@pytest.mark.parametrize("how", COMPOSITIONS)
def test_every_algorithm_runs(mobilenet: nn.Module, images: Tensor, how: str) -> None:
    quantized = quantize(mobilenet, COMPOSITIONS[how](), example_inputs=images)
    assert ran(quantized) == (True, True)
    assert not hasattr(quantized, "quantizer")
    assert quantized.classifier.bits == 8 and chained(attached(quantized).compressed)[3].details["bits"] == 4, (
        "each has its own"
    )


def test_prepare_train_convert(mobilenet: nn.Module, images: Tensor) -> None:
    prepared = prepare(mobilenet, COMPOSITIONS["compose"]())
    seen = prepared.features[4][0].weight.detach().clone()
    quantized = convert(prepared)
    assert ran(quantized) == (True, True)
    assert torch.equal(quantized.features[4][0].weight, seen)


def test_run_fn_runs_once_on_the_prepared_model(mobilenet: nn.Module) -> None:
    calls = []
    quantize(mobilenet, COMPOSITIONS["compose"](), run_fn=lambda model, x: calls.append(x), run_args=(3,))
    assert calls == [3]


def test_composed_models_are_saved_and_restored(mobilenet: nn.Module, images: Tensor, tmp_path: Path) -> None:
    original = copy.deepcopy(mobilenet)
    quantized = quantize(mobilenet, COMPOSITIONS["compose"]()).eval()
    save(quantized, tmp_path)
    restored = load(tmp_path, original).eval()
    assert ran(quantized) == (True, True) and isinstance(restored.classifier, INCWeightOnlyLinear)
    assert torch.equal(restored(images), quantized(images))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_weights_are_codes_in_the_file_and_restored_exactly(
    mobilenet: nn.Module, images: Tensor, bits: int, tmp_path: Path
) -> None:
    """Those that INC packs into larger integers: 10 of 3 bits in one, with two bits left."""
    mobilenet.classifier = nn.Linear(mobilenet.classifier.in_features, 100)
    nn.init.normal_(mobilenet.classifier.weight)  # as trained ones are, and not uniform
    original = copy.deepcopy(mobilenet)
    rtn = RTNConfig(use_layer_wise=False, bits=bits, group_size=64)
    quantized = quantize(mobilenet, compose(PAPER(bits=4), rtn)).eval()
    packed = quantized.classifier.qweight
    codes = quantized.classifier.unpack()["int_weight"]
    worth = float(entropy(codes.unique(return_counts=True)[1].numpy(), base=2)) * codes.numel() / 8
    ledger = save(quantized, tmp_path)
    size = ledger.layers["classifier.qweight"].file_bytes
    assert worth <= size < 1.03 * worth + 100 < packed.nbytes
    restored = load(tmp_path, original).eval()
    state = restored.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in quantized.state_dict().items())
    assert torch.equal(restored(images), quantized(images))


WHITE_LISTS: dict[str, Any] = {
    "mixed precision, names": lambda: MixedPrecisionConfig(dtype="bf16", white_list=["features.0", r"features\.5\.3"]),
    "mixed precision, types": lambda: MixedPrecisionConfig(dtype="bf16", white_list=[nn.Linear]),
    "rtn, names": lambda: RTNConfig(**RTN, white_list=["classifier"]),
    "rtn, local": lambda: RTNConfig(**{**RTN, "bits": 2}).set_local("classifier", RTNConfig(**RTN)),
    "rtn, names and local": lambda: RTNConfig(**{**RTN, "bits": 4}, white_list=["absent"]).set_local(
        "classifier", RTNConfig(**RTN)
    ),
    "rtn, local types": lambda: RTNConfig(**{**RTN, "bits": 4}).set_local(nn.Linear, RTNConfig(**RTN)),
}


@pytest.mark.parametrize("what", WHITE_LISTS)
def test_white_lists_and_local_settings_of_others_are_restored(
    mobilenet: nn.Module, images: Tensor, what: str, tmp_path: Path
) -> None:
    """INC's own dictionaries lose them."""
    original = copy.deepcopy(mobilenet)
    quantized = quantize(mobilenet, compose(PAPER(bits=6), WHITE_LISTS[what]())).eval()
    kinds = [type(module).__name__ for module in quantized.modules()]
    assert any("INC" in kind or "Half" in kind for kind in kinds)
    save(quantized, tmp_path)
    restored = load(tmp_path, original).eval()
    assert [type(module).__name__ for module in restored.modules()] == kinds
    assert torch.equal(restored(images), quantized(images))


@pytest.mark.parametrize("options", [RTN, {**RTN, "use_sym": False}, {**RTN, "bits": 4, "group_size": 32}], ids=str)
def test_a_model_that_has_run_before_it_is_saved(
    mobilenet: nn.Module, images: Tensor, options: Any, tmp_path: Path
) -> None:
    """INC's modules change the dtype of their bias when they run first."""
    original = copy.deepcopy(mobilenet)
    quantized = quantize(mobilenet, compose(PAPER(bits=4), RTNConfig(**options))).eval()
    before = quantized.classifier.bias.dtype
    outputs = quantized(images)
    assert quantized.classifier.bias.dtype != before
    save(quantized, tmp_path)
    assert torch.equal(load(tmp_path, original).eval()(images), outputs)


def test_what_nothing_else_takes_goes_on_the_grid(mobilenet: nn.Module, images: Tensor, tmp_path: Path) -> None:
    """With no fields, ilwp takes what other algorithms leave, and the whole file is small."""
    original, fp32 = copy.deepcopy(mobilenet), sum(tensor.nbytes for tensor in mobilenet.state_dict().values())
    quantized = quantize(mobilenet, compose(RTNConfig(**RTN), IlwpConfig())).eval()
    compressed = attached(quantized).compressed
    assert isinstance(quantized.classifier, INCWeightOnlyLinear)
    assert len(chained(compressed)) == 13
    assert {n for n in compressed.quantized if n.endswith("3.weight")} == {
        f"features.{i}.3.weight" for i in range(3, 16)
    }
    assert save(quantized, tmp_path).file_bytes < 0.3 * fp32
    assert torch.equal(load(tmp_path, original).eval()(images), quantized(images))


def test_what_changes_the_whole_model_runs_alone(mobilenet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'hqq' turns the whole model into half precision"):
        compose(IlwpConfig(), HQQConfig())
    assert compose(HQQConfig()).name == "hqq"
    convert_all = algos_mapping["rtn"]

    def careless(model: nn.Module, *arguments: Any, mode: Any, **options: Any) -> nn.Module:
        changed = convert_all(model, *arguments, mode=mode, **options)
        return changed.half() if mode.value == "convert" else changed

    monkeypatch.setitem(algos_mapping, "rtn", careless)
    with pytest.raises(TrainingError, match="'rtn' has changed what ilwp has compressed .*run it alone"):
        quantize(mobilenet, COMPOSITIONS["compose"]())


def test_algorithms_that_need_data_say_so_when_loaded(mobilenet: nn.Module, tmp_path: Path) -> None:
    quantized = quantize(copy.deepcopy(mobilenet), COMPOSITIONS["compose"]())
    (composition,) = quantized.qconfig.values()
    composition.configs[1] = GPTQConfig()
    save(quantized, tmp_path)
    with pytest.raises(ConfigError, match="'gptq' needs data"):
        load(tmp_path, mobilenet)


def test_incs_own_ways_to_lose_an_algorithm_raise(mobilenet: nn.Module) -> None:
    for configs in ({"ilwp": {}, "rtn": RTN}, {"rtn": RTN, "ilwp": {}}):
        with pytest.raises(ConfigError, match="keeps only the first .*config_from_dict"):
            quantize(copy.deepcopy(mobilenet), configs)
    with pytest.raises(ConfigError, match="drops the others silently; use .*compose"):
        quantize(mobilenet, RTNConfig(**RTN) + PAPER())


def test_other_dicts_of_inc_are_as_before(mobilenet: nn.Module) -> None:
    quantized = quantize(mobilenet, {"rtn": RTN})
    assert isinstance(quantized.classifier, INCWeightOnlyLinear)


def test_overlapping_layers_raise(mobilenet: nn.Module) -> None:
    with pytest.raises(ConfigError, match="'ilwp' and 'mixed_precision' both take layer .* and 12 more"):
        quantize(copy.deepcopy(mobilenet), compose(PAPER(), MixedPrecisionConfig()))
    with pytest.raises(ConfigError, match="both take layer 'classifier'"):
        config = compose(RTNConfig(**RTN), MixedPrecisionConfig(white_list=[nn.Linear]), PAPER())
        quantize(copy.deepcopy(mobilenet), config)
    with pytest.raises(ConfigError, match="'ilwp' and 'rtn' both take layer 'classifier'"):
        quantize(mobilenet, compose(RTNConfig(**RTN), PAPER(weight_step=0.01)))


def test_layers_apart_do_not_overlap(mobilenet: nn.Module) -> None:
    config = compose(PAPER(), MixedPrecisionConfig(white_list=[r"features\.[0-9]+\.3$", "features.0$"]))
    quantized = quantize(mobilenet, config)
    assert isinstance(quantized.features[4][3], HalfPrecisionModuleWrapper)
    assert attached(quantized).compressed is not None


def test_what_would_run_nowhere_is_refused(mobilenet: nn.Module) -> None:
    with pytest.raises(ConfigError, match="'rtn' would run on no layer"):
        quantize(mobilenet, compose(RTNConfig(**{**RTN, "white_list": ["absent"]}), PAPER()))


def test_rtn_by_layers_names_what_it_needs(mobilenet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="needs accelerate.*use_layer_wise=False"):
        quantize(mobilenet, compose(RTNConfig(use_layer_wise=True), PAPER()))


def test_a_models_own_quantizer_is_not_taken_for_incs(mobilenet: nn.Module) -> None:
    mobilenet.quantizer = "the user's own"
    with pytest.raises(TrainingError, match="attribute 'quantizer'"):
        quantize(mobilenet, COMPOSITIONS["compose"]())


def test_invalid_compositions_are_refused() -> None:
    with pytest.raises(ConfigError, match="no configuration"):
        compose()
    with pytest.raises(ConfigError, match="'ilwp' is given twice"):
        compose(PAPER(), PAPER(bits=4))
    with pytest.raises(ConfigError, match="'static_quant' runs on an exported model.*stack"):
        compose(PAPER(), INT8StaticQuantConfig())
    with pytest.raises(ConfigError, match="unknown algorithm 'rtm'.*did you mean 'rtn'"):
        config_from_dict({"ilwp": {}, "rtm": {}})
    with pytest.raises(ConfigError, match="expected configurations of INC, got dict"):
        compose({"ilwp": {}})


def test_round_trip() -> None:
    composition = COMPOSITIONS["compose"]()
    assert config_from_dict(composition.to_dict()) == composition
    assert compose(PAPER(bits=4)) == PAPER(bits=4), "a composition of one is that one"
