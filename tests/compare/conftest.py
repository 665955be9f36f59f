"""A network whose weights are as its class makes them, for methods that do not train."""

from pathlib import Path

import pytest

from ilwp_plugin.compare import Case, CompareConfig
from ilwp_plugin.demo import initial_model
from ilwp_plugin.zoo import load_data


@pytest.fixture
def case(tmp_path: Path) -> Case:
    config = CompareConfig.from_dict({"networks": [{"epochs": 1}], "methods": [{"method": "fp32"}]})
    settings, data = config.tasks()[0].network.settings, load_data("digits")
    model = initial_model(settings, data).train()
    model(data.train_images[:64])  # so that the batch norms have statistics
    return Case(settings, data, model.state_dict(), tmp_path)
