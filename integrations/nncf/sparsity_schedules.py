"""The sparsity schedules of NNCF 2's JSON config, by epoch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from ilwp_plugin.errors import ConfigError

__all__ = ["SparsitySchedule"]


class SparsitySchedule:
    """How much of the weights is to be 0 in each epoch.

    Args:
        section: `magnitude_sparsity` or `rb_sparsity` of the config.

    Raises:
        ConfigError: an unknown schedule, or levels that do not fit the steps.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        params: Mapping[str, Any] = section.get("params", {})
        default = "polynomial" if section["algorithm"] == "magnitude_sparsity" else "exponential"
        self.kind = params.get("schedule", default)
        kinds = ["polynomial", "exponential", "multistep"]
        if section["algorithm"] == "rb_sparsity":
            kinds.append("adaptive")  # follows what the masks have learned
        if self.kind not in kinds:
            raise ConfigError(
                f"{section['algorithm']}: schedule {self.kind!r} cannot be mapped to NNCF 3; use {', '.join(kinds)}"
            )
        self._power, self._concave = float(params.get("power", 0.9)), bool(params.get("concave", True))
        self.initial = float(section.get("sparsity_init", 0.0))
        self.target = float(params.get("sparsity_target", 0.5))
        self.target_epoch = int(params.get("sparsity_target_epoch", 90))
        self.freeze_epoch = int(params.get("sparsity_freeze_epoch", 100))
        self._levels = list(params.get("multistep_sparsity_levels", (0.1, 0.5)))
        self._steps = sorted(params.get("multistep_steps", (90,)))
        if self.kind == "multistep":
            if len(self._levels) != len(self._steps) + 1:
                raise ConfigError(
                    f"{section['algorithm']}: {len(self._steps)} multistep_steps need one more "
                    f"multistep_sparsity_levels, got {len(self._levels)}"
                )
            self.target = self._levels[-1]
        self._step, self._tolerance = float(params.get("step", 0.05)), float(params.get("eps", 0.03))
        self._patience = int(params.get("patience", 1))
        self._waited, self._adapted = 0, self.initial

    def follow(self, sparsity: float) -> None:
        """An epoch begins: the adaptive schedule goes on where the masks have reached its level, the others as ever.

        Args:
            sparsity: the share of the weights that is 0 now.
        """
        self._waited += sparsity >= self._adapted - self._tolerance
        if self._waited >= self._patience:
            self._waited, self._adapted = 0, min(self._adapted + self._step, self.target)

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps of the adaptive schedule."""
        return {"waited": self._waited, "adapted": self._adapted}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint."""
        self._waited, self._adapted = int(state["waited"]), float(state["adapted"])

    def level(self, epoch: int) -> float:
        """The sparsity of an epoch, counted from 0; -1 is before the training."""
        if self.kind == "adaptive":
            return self._adapted
        if self.kind == "multistep":
            return float(self._levels[bisect_right(self._steps, max(epoch, 0))])
        if epoch < 0:
            return self.initial
        if self.target_epoch == 0 or epoch >= self.target_epoch:
            return self.target
        progress = epoch / self.target_epoch
        if self.kind == "exponential":
            return float(1 - (1 - self.initial) * ((1 - self.target) / (1 - self.initial)) ** progress)
        if self._concave:
            return float(self.target - (self.target - self.initial) * (1 - progress) ** self._power)
        return float(self.initial + (self.target - self.initial) * progress**self._power)
