import pytest
import torch

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.zoo import Recipe, accuracy, build_model, load_data, train


def test_training_learns_and_is_reproducible() -> None:
    data = load_data("digits")
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build_model("mobilenet", width=0.25, in_channels=1)
        steps: list[int] = []
        loss = train(model, data, Recipe(epochs=5, batch=64), IlwpConfig(), lambda step, _, s=steps: s.append(step))  # type: ignore[misc]
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert loss is not None and loss.loss_weight > 0
        assert steps == list(range(1, 111))
    assert torch.equal(*weights)
    assert accuracy(model, data) > 50


def test_recipe_without_a_step() -> None:
    data = load_data("digits")
    with pytest.raises(TrainingError, match="make no step"):
        train(build_model("mobilenet", width=0.25, in_channels=1), data, Recipe(epochs=1, batch=5000))
    with pytest.raises(TrainingError, match="make no step"):
        Recipe(epochs=1, batch=0).steps(data)
