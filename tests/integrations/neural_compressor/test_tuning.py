import copy

import pytest
import torch
from ilwp_integrations.neural_compressor import IlwpConfig, attached, autotune, compose, load, save
from neural_compressor.torch.quantization import INT8StaticQuantConfig, RTNConfig, TuningConfig, quantize
from neural_compressor.torch.quantization import autotune as inc_autotune
from torch import Tensor, nn

from ilwp_plugin.demo import initial_model, preset
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.zoo import Recipe, accuracy, load_data, train


@pytest.fixture
def fidelity(mobilenet: nn.Module):  # type: ignore[no-untyped-def]
    """1 minus the relative change of the depthwise weights; outputs of random weights change at the least touch."""

    def weights(model: nn.Module) -> Tensor:
        return torch.cat([model.features[i][0].weight.detach().flatten() for i in range(4, 16)])

    expected = weights(mobilenet).clone()
    return lambda model: 1 - float((weights(model) - expected).norm() / expected.norm())


@pytest.mark.slow
def test_finds_the_smallest_that_passes(mobilenet: nn.Module, fidelity, tmp_path) -> None:  # type: ignore[no-untyped-def]
    before = copy.deepcopy(mobilenet.state_dict())
    space = IlwpConfig(bits=[8, 6, 5, 4, 3], mode=["collocated", "none", "full"])
    tuned = autotune(mobilenet, TuningConfig(config_set=[space], tolerable_loss=0.05), fidelity)
    passing = []
    for config in space.expand():
        alone = autotune(mobilenet, TuningConfig(config_set=[config]), fidelity, criterion=lambda before, after: True)
        if alone.trials[0].result >= 0.95:
            passing.append(alone.trials[0].file_bytes)
    assert tuned.trials[-1].file_bytes == min(passing) == save(tuned.model, tmp_path).file_bytes
    assert [t.file_bytes for t in tuned.trials] == sorted(t.file_bytes for t in tuned.trials)
    assert [t.passed for t in tuned.trials] == [False] * (len(tuned.trials) - 1) + [True] and len(tuned.trials) > 2
    assert tuned.baseline == 1 and fidelity(tuned.model) >= 0.95
    assert all(torch.equal(tensor, before[name]) for name, tensor in mobilenet.state_dict().items())
    assert fidelity(load(tmp_path, mobilenet)) == tuned.trials[-1].result


def test_compositions_and_stacks_are_compared_by_their_files(mobilenet: nn.Module, images: Tensor, tmp_path) -> None:  # type: ignore[no-untyped-def]
    mobilenet.eval()
    rtn, static = RTNConfig(use_layer_wise=False, bits=8, group_size=-1), INT8StaticQuantConfig()
    candidates = [
        IlwpConfig(preset="paper", bits=[4, 8]),
        compose(IlwpConfig(preset="paper", bits=[3, 6]), rtn),
        [IlwpConfig(weight_step=[0.02, 0.1]), static],
        [static],
    ]
    seen: list[nn.Module] = []

    def score(model: nn.Module) -> float:
        seen.append(model)
        return 1.0 if len(seen) in (1, 4) else 0.5  # the model itself, and the third smallest file

    tuned = autotune(mobilenet, TuningConfig(config_set=candidates), score, example_inputs=images)
    assert [trial.passed for trial in tuned.trials] == [False, False, True]
    assert [t.file_bytes for t in tuned.trials] == sorted(t.file_bytes for t in tuned.trials)
    assert save(tuned.model, tmp_path).file_bytes == tuned.trials[-1].file_bytes
    stacks = [trial.config for trial in tuned.trials if isinstance(trial.config, list)]
    assert [config[0].weight_step for config in stacks if len(config) == 2] == [0.1, 0.02]
    assert torch.equal(load(tmp_path, mobilenet, images)(images), tuned.model(images))


def test_the_users_criterion(mobilenet: nn.Module, fidelity) -> None:  # type: ignore[no-untyped-def]
    asked = []

    def criterion(before: float, after: float) -> bool:
        asked.append((before, after))
        return after > 0.98

    tuned = autotune(mobilenet, TuningConfig(config_set=IlwpConfig(bits=[3, 8])), fidelity, criterion=criterion)
    assert tuned.config.bits == 8 and len(asked) == 2


def test_training_tries_all_and_takes_the_smallest(mobilenet: nn.Module, fidelity) -> None:  # type: ignore[no-untyped-def]
    """Training changes sizes, so the order in which they were estimated is not the last word."""
    seen = []

    def train(model: nn.Module, scale: float) -> None:
        seen.append(model)
        with torch.no_grad():  # the first trial, that of the fewest bits, ends up with a file that does not pass
            model.features[4][0].parametrizations.weight.original.mul_(scale if len(seen) == 1 else 1)

    tuned = autotune(
        mobilenet,
        TuningConfig(config_set=[IlwpConfig(bits=[6, 8, 4])]),
        fidelity,
        run_fn=train,
        run_args=(9.0,),
        criterion=lambda before, after: after > 0.8,
    )
    assert len(tuned.trials) == len(seen) == 3
    assert tuned.config.bits == 6


def test_none_passes(mobilenet: nn.Module, fidelity) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TrainingError, match="none of the 2 configurations tried, of 3, meets .*'bits': 4"):
        config = TuningConfig(config_set=[IlwpConfig(bits=[3, 4, 8])], max_trials=2, tolerable_loss=0.001)
        autotune(mobilenet, config, fidelity)


def test_clear_errors(mobilenet: nn.Module, fidelity) -> None:  # type: ignore[no-untyped-def]
    for configs, message in (
        ([], "config_set is empty"),
        ([IlwpConfig(bits=4), IlwpConfig(bits=[8, 4])], "same configuration twice: .*'bits': 4"),
        ([RTNConfig()], "holds a RTNConfig"),
        (None, "holds a NoneType"),
        ([IlwpConfig(preset="paper", bits=None)], "quantizes nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            autotune(mobilenet, TuningConfig(config_set=configs), fidelity)
    for result in (None, float("nan"), "good"):
        with pytest.raises(ConfigError, match="eval_fn returned .* for the model as it is; expected a number"):
            autotune(mobilenet, TuningConfig(config_set=[IlwpConfig(bits=4)]), lambda model, result=result: result)
    with pytest.raises(ConfigError, match="max_trials"):
        autotune(mobilenet, TuningConfig(config_set=[IlwpConfig(bits=4)], max_trials=0), fidelity)


def test_incs_own_autotune_takes_ilwp(mobilenet: nn.Module, fidelity) -> None:  # type: ignore[no-untyped-def]
    tuned = inc_autotune(
        mobilenet, TuningConfig(config_set=[IlwpConfig(bits=[2, 8])], tolerable_loss=0.05), eval_fn=fidelity
    )
    assert attached(tuned).config.bits == 8
    with pytest.raises(ConfigError, match="4 twice"):  # where INC would return None
        inc_autotune(mobilenet, TuningConfig(config_set=[IlwpConfig(bits=[4, 4])]), eval_fn=fidelity)


@pytest.mark.slow
def test_half_a_point_of_a_trained_network_buys_a_smaller_file_than_eight_bits(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = load_data("digits")
    settings = preset("digits", epochs=6)
    model = initial_model(settings, data)
    train(model, data, Recipe(settings.epochs, settings.batch))
    before = accuracy(model, data)
    assert before > 90
    tuned = autotune(
        model.eval(),
        TuningConfig(config_set=[IlwpConfig(bits=[3, 4, 5, 6, 7, 8], mode=["collocated", "none"])]),
        eval_fn=lambda network: accuracy(network, data),
        criterion=lambda before, after: after >= before - 0.5,
    )
    eight = save(quantize(copy.deepcopy(model), IlwpConfig(bits=8)), tmp_path / "8")
    assert tuned.config.bits < 8 and save(tuned.model, tmp_path / "tuned").file_bytes < eight.file_bytes
    restored = load(tmp_path / "tuned", initial_model(settings, data).eval())
    assert accuracy(restored, data) >= before - 0.5
