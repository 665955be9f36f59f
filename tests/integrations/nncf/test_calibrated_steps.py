"""Steps chosen, in a training, by the data that a config has for its initialization."""

import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from ilwp_integrations.nncf import NNCFConfig, create_compressed_model, register_default_init_args
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, load
from ilwp_plugin.errors import IlwpWarning
from ilwp_plugin.training import FakeQuantizer
from tests.integrations.nncf.helpers import (
    INT8,
    MAGNITUDE,
    WHOLE,
    compressed,
    images,
    network,
    optimizer_of,
    session_of,
    train,
)

LEGACY = version("nncf").startswith("2.")
STEPS = {**WHOLE, "weight_step": 0.05, "rate": 0.1}
ONE_EACH = {**STEPS, "params": {"calibration_samples": 0}}


def steps(controller: Any) -> dict[str, float]:
    return dict(session_of(controller).parts.state_dict()["steps"])


def built(section: Any, loader: Any) -> Any:
    config = NNCFConfig.from_dict({"input_info": {"sample_size": [2, 1, 16, 16]}, "compression": section})
    if loader is not None:
        config = register_default_init_args(config, loader)
    return create_compressed_model(network(), config, dump_graphs=False)[0]


def test_steps_are_those_of_fine_tuning() -> None:
    """The same network, configuration and inputs choose the same steps, with a toolkit and without."""
    expected = FakeQuantizer(
        network().train(),
        IlwpConfig(weight_step=0.05, rate=0.1),
        example_inputs=images(2),
        calibration=images(),
    )
    found = steps(compressed(STEPS)[0])
    assert len(set(found.values())) > 3
    assert found == pytest.approx(dict(expected.parts.state_dict()["steps"]))


@pytest.mark.parametrize("section", [ONE_EACH, {**STEPS, "step_allocation": "equal"}])
def test_they_can_be_equal(section: dict[str, Any]) -> None:
    assert sorted(set(steps(compressed(section)[0]).values())) == pytest.approx([0.04, 0.05])


def test_without_data_they_are_equal() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", IlwpWarning)
        assert len(set(steps(built(STEPS, None)).values())) == 2


def test_data_that_tell_nothing_are_said() -> None:
    """Two inputs for a network of one."""
    with pytest.warns(IlwpWarning, match="all layers get the same step"):
        controller = built(STEPS, _TwoInputs([images(4)]))
    assert len(set(steps(controller).values())) == 2


def test_a_model_whose_outputs_tell_nothing_trains_as_well() -> None:
    """Where examples depend on each other, errors cannot be measured."""

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x - x.mean(0, keepdim=True))

    with pytest.warns(IlwpWarning, match="all layers get the same step"):
        controller, _ = compressed(STEPS, Mixes())
    assert len(set(steps(controller).values())) == 2


_Loader: Any = import_module("nncf.torch.initialization").PTInitializingDataLoader if LEGACY else list


class _TwoInputs(_Loader):  # type: ignore[misc]
    def get_inputs(self, dataloader_output: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (dataloader_output, dataloader_output), {}

    def get_target(self, dataloader_output: Any) -> Any:
        return None


def test_int8_has_the_same_steps_but_for_codes_that_would_not_fit() -> None:
    alone, stacked = steps(compressed(STEPS)[0]), steps(compressed([INT8, STEPS])[0])
    model = network()
    for key, step in alone.items():
        largest = float(model.get_parameter(key).detach().abs().max())
        depthwise = model.get_parameter(key).shape[1] == 1 and "stem" not in key and "body" in key
        assert stacked[key] == pytest.approx(step if depthwise else max(step, largest / 63))


@pytest.mark.parametrize(
    "sections",
    [[STEPS], [{**STEPS, "step_allocation": "measured"}], [ONE_EACH], [MAGNITUDE, INT8, STEPS]],
    ids=["alone", "measured", "equal", "stacked"],
)
def test_a_checkpoint_brings_its_steps(sections: list[Any], tmp_path: Path) -> None:
    controller, model = compressed(sections)
    train(controller, model, optimizer_of(model), [0])
    state, weights = controller.get_compression_state(), model.state_dict()
    again, resumed = compressed(sections, state=state)
    resumed.load_state_dict(weights)
    if hasattr(again, "load_state"):
        again.load_state(state["ctrl_state"])
    assert steps(again) == steps(controller)
    for number, (own, net) in enumerate(((controller, model), (again, resumed))):
        train(own, net, optimizer_of(net), [1])
        own.save_ilwp(tmp_path / f"{number}.ilwp")
    assert (tmp_path / "0.ilwp").read_bytes() == (tmp_path / "1.ilwp").read_bytes()
    restored, stripped = load(tmp_path / "1.ilwp").state_dict(), again.strip().state_dict()
    assert all(torch.equal(stripped[key], value) for key, value in restored.items())
