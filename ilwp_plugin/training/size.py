"""The size that a file would have while a model trains, and a rate that is steered towards a size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.errors import TrainingError
from ilwp_plugin.method.entropy_model import entropy_bits
from ilwp_plugin.recipes.grid import GridTraining
from ilwp_plugin.training.parts import Parts

__all__ = ["SizeGauge", "Steering", "cut", "every"]


def every(steps: int) -> int:
    """Steps of training between two measurements."""
    return max(1, min(25, steps // 40))


ARRIVAL = 0.7
"""Share of the steps after which a file is to have the size that is asked for."""

GAIN = 0.3
"""What the logarithm of the rate changes by at each measurement, for each unit of the logarithm of the size."""

MOST = 10.0
"""The largest factor of a rate that is steered, and the inverse of the smallest."""


class SizeGauge:
    """Bytes of the file that would be written now: its codes by their histograms, and all else as it was at the start.

    Args:
        parts: what trains.

    Attributes:
        bits_per_weight: of all weights that have codes with a step; None before `measure`.
        file_bytes: of the whole file, to about a per cent; None before `measure`.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts, self.rest = parts, 0.0
        self.bits_per_weight: float | None = None
        self.file_bytes: int | None = None

    def begin(self, model: nn.Module) -> None:
        """Measure what is not codes, on the model without hooks, as it begins to train."""
        self.rest = self._parts.compressed(model).ledger.file_bytes - self._parts.code_bits()[0] / 8

    def measure(self) -> int:
        """Bytes of the file as it would be now."""
        bits, codes = self._parts.code_bits()
        self.bits_per_weight = bits / codes if codes else 0.0
        self.file_bytes = round(self.rest + bits / 8)
        return self.file_bytes

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rest": self.rest, "bits_per_weight": self.bits_per_weight, "file_bytes": self.file_bytes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rest, self.bits_per_weight, self.file_bytes = (
            state[name] for name in ("rest", "bits_per_weight", "file_bytes")
        )


class Steering:
    """Makes the rate larger where the file is larger than it should be by now, and smaller where it is smaller.

    The size falls from where it begins to the target along an exponential, and then stays there.

    Args:
        parts: their `rate_factor` is what is turned.
        gauge: of the size.
        target: bytes.
        steps: of the training in which codes move.
    """

    def __init__(self, parts: Parts, gauge: SizeGauge, target: float, steps: int) -> None:
        self._parts, self._gauge, self._target, self._steps = parts, gauge, target, steps
        self._first: float | None = None

    def begin(self) -> None:
        """The training begins. Raises TrainingError where what is not codes is larger than the target."""
        if self._gauge.rest >= self._target:
            raise TrainingError(
                f"target_bytes={self._target:,.0f}: what the rate does not change (norms, biases, the directory, "
                f"layers without a step) takes {self._gauge.rest:,.0f} bytes alone; coarser norms "
                "(`batch_norm_bits`) or fewer layers that are left out make that less"
            )
        self._first = float(self._gauge.measure())

    def after_measurement(self, step: int) -> None:
        """Turn the rate; `step` steps are done."""
        assert self._first is not None and self._gauge.file_bytes is not None
        share = min(1.0, step / max(1.0, ARRIVAL * self._steps))
        wanted = self._first * (self._target / self._first) ** share
        change = GAIN * math.log(self._gauge.file_bytes / wanted)
        self._parts.rate_factor = min(MOST, max(1 / MOST, self._parts.rate_factor * math.exp(change)))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"first": self._first, "factor": self._parts.rate_factor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._first, self._parts.rate_factor = state["first"], float(state["factor"])


@torch.no_grad()
def cut(parts: Parts, raw: Mapping[str, Tensor], excess: float) -> None:
    """Set the smallest weights of the grid that have a code to zero, until the codes take so many bytes less.

    They are all below one dead zone, in steps, which is found by bisection.

    Args:
        parts: what has trained.
        raw: by key, the parameters behind the restored weights; are changed.
        excess: bytes, more than 0.
    """
    grid = [part for part in parts.parts if isinstance(part, GridTraining)]
    steps = {key: step for part in grid for key, step in part.encoding_steps().items()}
    levels = {key: raw[key] / step for key, step in steps.items()}

    def bits(zone: float) -> float:
        return sum(entropy_bits(torch.where(own.abs() < zone, 0.0, own)) for own in levels.values())

    aim = bits(0.5) - 8 * excess
    low, high = 0.5, max([float(own.abs().max()) for own in levels.values()], default=0.5) + 1
    for _ in range(_BISECTIONS):
        zone = (low + high) / 2
        low, high = (zone, high) if bits(zone) > aim else (low, zone)
    for key, own in levels.items():
        raw[key].masked_fill_(own.abs() < high, 0.0)


_BISECTIONS = 16
