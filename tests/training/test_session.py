"""One training under a toolkit: schedule, closed loop, statistics."""

import copy

import pytest
import torch
from ilwp_plugin.selection import chains_of
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.training import ClosedLoop, InterLayerLoss, Schedule, Session


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
    chains = chains_of(model, config)
    generator = torch.Generator().manual_seed(0)
    sources = {}
    for layer in (layer for chain in chains for layer in chain.layers):
        weight = model.get_submodule(layer).weight
        mask = torch.rand(weight.shape, generator=generator) >= share if share else None
        sources[layer] = Source(weight, mask)
    return Session(config, Schedule(**schedule), chains, sources, model)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("mode", ["none", "collocated", "local", "full"])
@pytest.mark.parametrize("fields", [{}, {"anchor": "quantized", "range": "mse"}, {"residual_step": 0.01}])
def test_layer_by_layer_is_what_the_file_restores(mobilenet: nn.Module, share: float, mode: str, fields: dict) -> None:
    config = IlwpConfig(bits=4, loss_weight=0, mode=mode, **fields)
    session = session_of(mobilenet, config, share)
    state = copy.deepcopy(mobilenet.state_dict())
    masked = {
        key: source.weight().detach()
        for chain, sources in zip(session.chains, session._sources, strict=True)
        for key, source in zip(chain.keys, sources, strict=True)
    }
    restored = compress({**state, **masked}, config.replace(layers=session.chains.chains[0].layers)).state_dict()
    for chain, loop in zip(session.chains, session.loops, strict=True):
        for number, key in enumerate(chain.keys):
            out = loop(number, loop.sources[number].weight())
            torch.testing.assert_close(out, restored[key], rtol=0, atol=0)
            assert bool((out[masked[key] == 0] == 0).all()), "pruned weights stay 0"
        for key, weight in zip(chain.keys, loop.reconstructed(), strict=True):
            torch.testing.assert_close(weight, restored[key], rtol=0, atol=0)


def test_a_new_pass_forgets_the_one_before(mobilenet: nn.Module) -> None:
    (loop,) = session_of(mobilenet, IlwpConfig(bits=4, loss_weight=0)).loops
    first = [loop(n, source.weight()) for n, source in enumerate(loop.sources)]
    with torch.no_grad():
        for source in loop.sources:
            source.weight().mul_(2)
    alone = loop(3, loop.sources[3].weight())  # a part of the model alone: the others come from their sources
    again = [loop(n, source.weight()) for n, source in enumerate(loop.sources)]
    torch.testing.assert_close(again[3], alone, rtol=0, atol=0)
    torch.testing.assert_close(again[3], 2 * first[3])


def test_gradient_goes_straight_through(mobilenet: nn.Module) -> None:
    (loop,) = session_of(mobilenet, IlwpConfig(bits=4, loss_weight=0)).loops
    weight = loop.sources[2].weight()
    loop(2, weight).sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight))
    loop.enabled = False
    assert loop(2, weight) is weight
    with pytest.raises(ConfigError, match="bits: None"):
        ClosedLoop(IlwpConfig(bits=None), [], [])


def test_the_loss_is_the_core_s_and_pruned_weights_do_not_count(mobilenet: nn.Module) -> None:
    config = IlwpConfig(bits=None, loss_weight=2.0)
    dense = session_of(mobilenet, config)
    torch.testing.assert_close(dense.loss(), InterLayerLoss(mobilenet, config)())
    masked = session_of(mobilenet, config, 0.5)
    masked.loss().backward()
    for source in masked._sources[0]:
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
    other = session_of(mobilenet, IlwpConfig(bits=4, loss_weight=1.0), loss_weight_schedule=points)
    other.load_state(session.state())
    assert other.current_loss_weight == 4.0


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
    ],
)
def test_schedule_errors(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.from_dict(fields)
