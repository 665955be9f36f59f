"""The schedules that NNCF 3 gets from us, against NNCF 2's own."""

from typing import Any

import pytest
from ilwp_integrations.nncf.sparsity_schedules import SparsitySchedule
from nncf.common.sparsity.schedulers import SPARSITY_SCHEDULERS

from ilwp_plugin.errors import ConfigError


class Controller:
    current_sparsity_level = 0.0

    def freeze(self) -> None:
        pass

    def set_sparsity_level(self, level: float) -> None:
        pass


@pytest.mark.parametrize("algorithm", ["magnitude_sparsity", "rb_sparsity"])
@pytest.mark.parametrize(
    "params",
    [
        {"schedule": "polynomial", "sparsity_target": 0.7, "sparsity_target_epoch": 5, "sparsity_freeze_epoch": 9},
        {"schedule": "polynomial", "power": 2, "concave": False, "sparsity_target_epoch": 4},
        {"schedule": "exponential", "sparsity_target": 0.6, "sparsity_target_epoch": 6},
        {"schedule": "multistep", "multistep_steps": [4, 2], "multistep_sparsity_levels": [0.1, 0.3, 0.6]},
        {},
    ],
)
def test_same_levels(algorithm: str, params: dict[str, Any]) -> None:
    ours = SparsitySchedule({"algorithm": algorithm, "sparsity_init": 0.05, "params": params})
    default = "polynomial" if algorithm == "magnitude_sparsity" else "exponential"
    make = SPARSITY_SCHEDULERS.get(params.get("schedule", default))
    theirs = make(Controller(), {**params, "sparsity_init": 0.05})
    for epoch in range(12):
        theirs.epoch_step(epoch)
        assert ours.level(epoch) == pytest.approx(theirs.current_sparsity_level, abs=1e-12)
    assert (ours.freeze_epoch, ours.target) == (theirs.freeze_epoch, theirs.target_level)


@pytest.mark.parametrize("params", [{}, {"patience": 2, "step": 0.1, "eps": 0.0}])
def test_adaptive_levels_follow_the_masks(params: dict[str, Any]) -> None:
    params = {"schedule": "adaptive", "sparsity_target": 0.3, **params}
    ours = SparsitySchedule({"algorithm": "rb_sparsity", "sparsity_init": 0.1, "params": params})
    controller = Controller()
    theirs = SPARSITY_SCHEDULERS.get("adaptive")(controller, {**params, "sparsity_init": 0.1})
    reached = []
    for epoch, sparsity in enumerate([0.0, 0.08, 0.1, 0.1, 0.15, 0.19, 0.2, 0.25, 0.3, 0.3]):
        controller.current_sparsity_level = sparsity
        theirs.epoch_step(epoch)
        ours.follow(sparsity)
        again = SparsitySchedule({"algorithm": "rb_sparsity", "sparsity_init": 0.1, "params": params})
        again.load_state(ours.state())
        assert ours.level(epoch) == again.level(epoch) == pytest.approx(theirs.current_sparsity_level, abs=1e-12)
        reached.append(ours.level(epoch))
    assert len(set(reached)) > 2


def test_errors() -> None:
    with pytest.raises(ConfigError, match="magnitude_sparsity: schedule 'adaptive' cannot be mapped"):
        SparsitySchedule({"algorithm": "magnitude_sparsity", "params": {"schedule": "adaptive"}})
    with pytest.raises(ConfigError, match="1 multistep_steps need one more"):
        SparsitySchedule(
            {"algorithm": "rb_sparsity", "params": {"schedule": "multistep", "multistep_sparsity_levels": [0.1]}}
        )
