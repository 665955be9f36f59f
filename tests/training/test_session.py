"""One training under a toolkit: schedule, closed loop, statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.models.torch_network import network_of
from ilwp_plugin.training import InterLayerLoss, Schedule, Session


class Source:
    """A weight with a mask, as a toolkit has it."""

    def __init__(self, weight: Tensor, mask: Tensor | None = None) -> None:
        self.parameter, self.mask = weight, mask

    @property
    def pruned(self) -> bool:
        return self.mask is not None

    def weight(self) -> Tensor:
        return self.parameter if self.mask is None else self.parameter * self.mask


def session_of(model: nn.Module, config: IlwpConfig, share: float = 0.0, **schedule: object) -> Session:
    network = network_of(model)
    generator = torch.Generator().manual_seed(0)
    sources = {}
    for layer in network.layers.values():
        weight = model.get_parameter(layer.weight)
        mask = torch.rand(weight.shape, generator=generator) >= share if share else None
        sources[layer.weight] = Source(weight, mask)
    return Session(config, Schedule(**schedule), network, sources)


def sources_of(session: Session) -> dict[str, Source]:
    return {key: source for part in session.parts.parts for key, source in part.sources.items()}


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("mode", ["none", "collocated", "local", "full"])
@pytest.mark.parametrize("fields", [{}, {"anchor": "quantized", "range": "mse"}, {"residual_step": 0.01}])
def test_layer_by_layer_is_what_the_file_restores(mobilenet: nn.Module, share: float, mode: str, fields: dict) -> None:
    config = IlwpConfig.paper(bits=4, loss_weight=0, mode=mode, **fields)
    check_layer_by_layer(mobilenet, config, share)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("fields", [{}, {"bits": 4}, {"weight_step": 0.02}], ids=str)
def test_every_layer_is_what_the_file_restores(mobilenet: nn.Module, share: float, fields: dict) -> None:
    check_layer_by_layer(mobilenet, IlwpConfig(loss_weight=0, batch_norm="exact", **fields), share)


def check_layer_by_layer(model: nn.Module, config: IlwpConfig, share: float) -> None:
    session = session_of(model, config, share)
    parts = session.parts
    masked = {key: source.weight().detach() for key, source in sources_of(session).items()}
    state = {**copy.deepcopy(model.state_dict()), **masked}
    restored = parts.compressed(state).state_dict()
    if config.weight_step != "auto":  # an automatic one follows what the training began with, masks aside
        config = config.replace(layers=session.chains.chains[0].layers)
        again = compress(state, config).state_dict()
        assert all(torch.equal(again[key], restored[key]) for key in parts.keys)
    for key in parts.keys:
        out = parts.weight(key, sources_of(session)[key].weight())
        torch.testing.assert_close(out, restored[key], rtol=0, atol=0)
        assert bool((out[masked[key] == 0] == 0).all()), "pruned weights stay 0"
    found = parts.reconstructed()
    assert list(found) == list(parts.keys)
    for key, weight in found.items():
        torch.testing.assert_close(weight.reshape(restored[key].shape), restored[key], rtol=0, atol=0)


def test_a_new_pass_forgets_the_one_before(mobilenet: nn.Module) -> None:
    session = session_of(mobilenet, IlwpConfig.paper(bits=4, loss_weight=0))
    parts, sources = session.parts, sources_of(session)
    first = {key: parts.weight(key, source.weight()) for key, source in sources.items()}
    with torch.no_grad():
        for source in sources.values():
            source.weight().mul_(2)
    third = parts.keys[3]
    alone = parts.weight(third, sources[third].weight())  # a part of the model: the others come from their sources
    again = {key: parts.weight(key, source.weight()) for key, source in sources.items()}
    torch.testing.assert_close(again[third], alone, rtol=0, atol=0)
    torch.testing.assert_close(again[third], 2 * first[third])


@pytest.mark.parametrize("config", [IlwpConfig.paper(bits=4, loss_weight=0), IlwpConfig(loss_weight=0)])
def test_gradient_goes_straight_through(mobilenet: nn.Module, config: IlwpConfig) -> None:
    session = session_of(mobilenet, config)
    for key in (session.parts.keys[2], session.parts.keys[-1]):
        weight = sources_of(session)[key].weight()
        out = session.parts.weight(key, weight)
        assert not torch.equal(out, weight)
        out.sum().backward()
        torch.testing.assert_close(weight.grad, torch.ones_like(weight))
    session.parts.enabled = False
    assert session.parts.weight(key, weight) is weight
    unquantized = session_of(mobilenet, IlwpConfig.paper(bits=None, loss_weight=0))
    assert not unquantized.parts.keys and not unquantized.quantizes


def test_the_loss_is_the_core_s_and_pruned_weights_do_not_count(mobilenet: nn.Module) -> None:
    config = IlwpConfig.paper(bits=None, loss_weight=2.0)
    dense = session_of(mobilenet, config)
    torch.testing.assert_close(dense.loss(), InterLayerLoss(mobilenet, config)())
    masked = session_of(mobilenet, config, 0.5)
    masked.loss().backward()
    for source in sources_of(masked).values():
        assert bool((source.parameter.grad[~source.mask] == 0).all())


def test_schedule(mobilenet: nn.Module) -> None:
    points = [(1, 0.0), (3, 1.0), (5, 0.5)]
    schedule = Schedule(loss_weight_schedule=points, quantization_start_epoch=2)
    assert [schedule.loss_factor(e) for e in range(7)] == [0, 0, 0.5, 1, 0.75, 0.5, 0.5]
    assert [schedule.quantizes(e) for e in range(4)] == [False, False, True, True]
    session = session_of(
        mobilenet, IlwpConfig(bits=4, loss_weight=8.0), loss_weight_schedule=points, quantization_start_epoch=2
    )
    assert not session.quantizes and session.loss().item() == 0
    session.set_epoch(2)
    assert session.quantizes and session.current_loss_weight == 4.0
    other = session_of(mobilenet, IlwpConfig(bits=4, loss_weight=8.0), loss_weight_schedule=points)
    other.load_state(session.state())
    assert other.current_loss_weight == 4.0
    foreign = session_of(mobilenet, IlwpConfig(bits=4, loss_weight=1.0), loss_weight_schedule=points)
    with pytest.raises(TrainingError, match=r"another configuration \(loss_weight: 8.0, now 1.0\)"):
        foreign.load_state(session.state())


def test_automatic_weight_needs_the_training(mobilenet: nn.Module) -> None:
    with pytest.raises(TrainingError, match="mean_lr"):
        session_of(mobilenet, IlwpConfig(bits=4))
    run = {"steps": 100, "mean_lr": 0.05, "momentum": 0.9}
    assert session_of(mobilenet, IlwpConfig(bits=4), training=run).loss_weight > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_weight_schedule": []}, "at least 1 item"),
        ({"loss_weight_schedule": [(0, float("nan"))]}, "finite number"),
        ({"epochs": 3}, "unknown key 'epochs'"),
        ({"training": {"steps": 1, "mean_lr": 0.1, "lr": 1.0}}, "unknown key 'training.lr'"),
        ({"loss_weight_schedule": [(1, 1.0), (1, 2.0)]}, "rising epochs"),
        ({"rate_schedule": [(1, 1.0), (0, 2.0)]}, "rate_schedule: expected rising epochs"),
    ],
)
def test_schedule_errors(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.from_dict(fields)


def test_rate_under_a_schedule(mobilenet: nn.Module) -> None:
    """The loss carries the bits of all codes that have a step, the schedule their weight, statistics what they are."""
    config = IlwpConfig(mode="collocated", weight_step=0.05, rate=2.0, loss_weight=0.0)
    session = session_of(mobilenet, config, rate_schedule=[(0, 0.0), (2, 1.0)])
    assert float(session.loss()) == 0
    session.set_epoch(1)
    half = float(session.loss().detach())
    session.set_epoch(5)
    assert float(session.loss().detach()) == pytest.approx(2 * half)
    numbers = session.statistics().numbers
    assert half == pytest.approx(numbers["bits per weight"], rel=0.05), "a rate of 2, halved"
    file = compress(mobilenet, config.replace(dead_zone=0.5))
    codes = file.ledger.total_bytes + file.ledger.grid_bytes
    assert numbers["bits per weight"] * session.parts.code_bits()[1] / 8 == pytest.approx(codes, rel=0.1)
    assert "bits per weight" in session.statistics().to_str()
