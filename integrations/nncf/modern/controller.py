"""What `create_compressed_model` returns, with the interface of NNCF 2's controllers."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nncf
import torch
from nncf.torch.function_hook.wrapper import is_wrapped
from torch import Tensor, nn

from ilwp_plugin import CompressedModel
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.training import Session, SessionStatistics

from ..saving import file_of
from .algorithms import CompressionStage, IlwpPart, Part, SparsityPart
from .stripping import strip, stripped

__all__ = ["CompressionStage", "Controller", "Scheduler", "Statistics"]


class _Loss(nn.Module):
    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self._parts = list(parts)

    def forward(self) -> Tensor:
        return sum((torch.as_tensor(part.loss()) for part in self._parts), torch.zeros(()))

    def calculate(self) -> Tensor:
        """The same."""
        return self.forward()


class Scheduler:
    """Told of every epoch and step before it begins."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = list(parts)
        self.current_epoch = self.current_step = -1

    def step(self, next_step: int | None = None) -> None:
        """A step begins."""
        self.current_step = self.current_step + 1 if next_step is None else next_step
        for part in self._parts:
            part.begin_step()

    def epoch_step(self, next_epoch: int | None = None) -> None:
        """An epoch begins."""
        self.current_epoch = self.current_epoch + 1 if next_epoch is None else next_epoch
        for part in self._parts:
            part.set_epoch(self.current_epoch)

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"current_step": self.current_step, "current_epoch": self.current_epoch}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; the algorithms have their own state."""
        self.current_step, self.current_epoch = state["current_step"], state["current_epoch"]


class Statistics:
    """By algorithm: `.ilwp` (SessionStatistics), `.magnitude_sparsity`, ...; None for one that is not there."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = dict(found)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._found.get(name)

    def to_str(self) -> str:
        """As text."""
        texts = []
        for name, value in self._found.items():
            if isinstance(value, SessionStatistics):
                texts.append(value.to_str())
            else:
                shown = (f"  {key}: {v:.4g}" for key, v in value.items() if isinstance(v, (int, float)))
                texts.append("\n".join([f"Statistics of {name}:", *shown]))
        return "\n\n".join(texts)


class Controller:
    """Loss, schedule, statistics and the way out of a compressed model.

    Args:
        model: the wrapped model.
        parts: its algorithms.
        example: an input.
        rebuild: what `create_compressed_model` needs to build the same model again.
    """

    BUILDER_STATE, CONTROLLER_STATE = "builder_state", "ctrl_state"

    def __init__(self, model: nn.Module, parts: Sequence[Part], example: Any, rebuild: Mapping[str, Any]) -> None:
        self._model, self._parts, self._example, self._rebuild = model, list(parts), example, dict(rebuild)
        self._loss, self._scheduler = _Loss(parts), Scheduler(parts)

    @property
    def model(self) -> nn.Module:
        """The model to train."""
        return self._model

    @property
    def loss(self) -> _Loss:
        """Call it for the sum of the losses of all algorithms, and add that to your own."""
        return self._loss

    @property
    def scheduler(self) -> Scheduler:
        """Call its `epoch_step()` before each epoch and its `step()` before each step."""
        return self._scheduler

    @property
    def session(self) -> Session | None:
        """That of ilwp, if it is among the algorithms."""
        return next((part.session for part in self._parts if isinstance(part, IlwpPart)), None)

    def compression_stage(self) -> CompressionStage:
        """That of all algorithms, where they are alike; else partial compression, as in NNCF 2."""
        stages = {part.stage() for part in self._parts} or {CompressionStage.UNCOMPRESSED}
        return stages.pop() if len(stages) == 1 else CompressionStage.PARTIALLY_COMPRESSED

    @property
    def name(self) -> str:
        """Of the algorithm, where there is one."""
        return self._parts[0].name if len(self._parts) == 1 else "composite"

    @property
    def compression_rate(self) -> float | None:
        """The share of the weights that is 0; None where no algorithm sets any to 0. Setting it ends the schedule."""
        part = self._sparsity
        return None if part is None else float(part.statistics()["sparsity"])

    @compression_rate.setter
    def compression_rate(self, value: float) -> None:
        if self._sparsity is None:
            raise ConfigError("compression_rate: no algorithm of the config sets weights to 0")
        self._sparsity.hold(value)

    @property
    def maximal_compression_rate(self) -> float:
        """The largest that can be set."""
        return 1.0

    @property
    def _sparsity(self) -> SparsityPart | None:
        return next((part for part in self._parts if isinstance(part, SparsityPart)), None)

    def disable_scheduler(self) -> None:
        """From now on epochs and steps change nothing."""
        self._scheduler = Scheduler([])

    def distributed(self) -> None:
        """Nothing has to be prepared."""

    def prepare_for_export(self) -> None:
        """Nothing has to be prepared: `export_model` exports a stripped copy."""

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:
        """What each algorithm has come to.

        Args:
            quickly_collected_only: without the sizes of the `.ilwp` file, which is made in memory for them.
        """
        found: dict[str, Any] = {}
        for part in self._parts:
            if isinstance(part, IlwpPart):
                found[part.name] = part.session.statistics(None if quickly_collected_only else self._compressed)
            else:
                found[part.name] = part.statistics()
        found.pop("quantization", None)  # it has none
        return Statistics(found)

    def get_compression_state(self) -> dict[str, Any]:
        """For a checkpoint, beside the model's state dict; `create_compressed_model` takes it."""
        hooks = nncf.torch.get_config(self._model) if is_wrapped(self._model) else None
        state = {part.name: part.state() for part in self._parts}
        return {
            self.BUILDER_STATE: {**self._rebuild, "hooks": hooks},
            self.CONTROLLER_STATE: {"scheduler": self._scheduler.get_state(), "algorithms": state},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from the controller's part of a compression state."""
        self._scheduler.load_state(state["scheduler"])
        missing = [part.name for part in self._parts if part.name not in state["algorithms"]]
        if missing:
            raise TrainingError(
                f"the checkpoint was trained without {', '.join(missing)}; load its state dict into the model instead, "
                "without its compression state"
            )
        for part in self._parts:
            part.load_state(state["algorithms"][part.name])

    @torch.no_grad()
    def strip(self, do_copy: bool = True) -> nn.Module:
        """The plain model, exactly as the file restores it: masks baked in, quantizers as those of torch.

        Raises:
            TrainingError: a mask or a quantizer has been put behind ilwp's hook.
        """
        return strip(copy.deepcopy(self._model) if do_copy else self._model, self._example)

    def export_model(self, save_path: str | os.PathLike[str], *unused: Any, **options: Any) -> None:
        """Export a stripped copy to ONNX; a path that ends in `.xml` gets OpenVINO's format.

        Args:
            save_path: the file.
            unused: further positional arguments of NNCF 2.
            options: for `torch.onnx.export`.
        """
        model = self.strip().eval()
        if Path(save_path).suffix == ".xml":
            import openvino

            converted = openvino.convert_model(model, example_input=self._example)
            openvino.save_model(converted, save_path, compress_to_fp16=False)
            return
        known = {name: options[name] for name in ("input_names", "output_names", "opset_version") if name in options}
        torch.onnx.export(model, self._example, os.fspath(save_path), dynamo=False, **known)

    def _compressed(self, **fields: Any) -> CompressedModel:
        return file_of(stripped(self.strip()), self.session, fields, self._example)

    def estimate_ilwp(self, **fields: Any) -> Ledger:
        """The exact sizes of the file that `save_ilwp` would write now."""
        return self._compressed(**fields).ledger

    def save_ilwp(self, path: str | os.PathLike[str], **fields: Any) -> Ledger:
        """Write the `.ilwp` file of the stripped model, which `load(path).apply_to(stripped)` restores exactly.

        Args:
            path: the file.
            fields: of IlwpConfig, where the config has no `ilwp` section or one that quantizes nothing.

        Raises:
            TrainingError: the model does not compute with quantized residuals yet.
        """
        if self.session is not None:
            self.session.check_quantizes()
        return self._compressed(**fields).save(path)
