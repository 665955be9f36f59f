"""What `create_compressed_model` returns, with the interface of NNCF 2's controllers."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import nncf
import torch
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.function_hook.wrapper import ATR_HOOK_STORAGE, get_hook_storage, is_wrapped
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

from ilwp_plugin import CompressedModel
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.training import Session, SessionStatistics

from ..network import WrappedNetwork
from ..saving import file_of, finish
from .algorithms import IlwpPart, Part
from .hooks import mask_hooks, parameter_hooks, weight_hooks, weight_quantizers

__all__ = [
    "MASKED_BEFORE",
    "SESSION",
    "CompressionStage",
    "Controller",
    "Statistics",
    "network_of_model",
    "weight_fake_quantizers",
]


SESSION = "_ilwp_session"
"""Attribute of a model: its session."""
MASKED_BEFORE = "_ilwp_masked_before"
"""Attribute of a model: the weights that had masks when ilwp was applied."""
_WEIGHT_QUANTIZERS = "_ilwp_weight_quantizers"
"""Attribute of a stripped model: names of the hooks that quantize weights, by the parameter's."""


class CompressionStage(IntEnum):
    """How far a model is compressed."""

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2


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
        """The least advanced of the algorithms decides whether it is full compression; any makes it partial."""
        done = [part.finished() for part in self._parts]
        if all(done):
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED if any(done) else CompressionStage.UNCOMPRESSED

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
        for part in self._parts:
            part.load_state(state["algorithms"][part.name])

    @torch.no_grad()
    def strip(self, do_copy: bool = True) -> nn.Module:
        """The plain model, exactly as the file restores it: masks baked in, quantizers as those of torch.

        Raises:
            TrainingError: a mask or a quantizer has been put behind ilwp's hook.
        """
        model = copy.deepcopy(self._model) if do_copy else self._model
        if not is_wrapped(model) or getattr(model, _WEIGHT_QUANTIZERS, None) is not None:
            return model
        session: Session | None = getattr(model, SESSION, None)  # of the model, which may be a copy
        expected: Mapping[str, Tensor] = {}
        storage = get_hook_storage(model)
        if session is not None:
            check_order(model, session)
            expected = session.parts.reconstructed() if session.quantizes else {}
            for name in weight_hooks(model):
                storage.delete_hook(name)
        for name, parameter, mask in list(mask_hooks(model)):
            training, mask.training = mask.training, False
            model.get_parameter(parameter).data = mask(model.get_parameter(parameter).data)
            mask.training = training
            storage.delete_hook(name)
        quantized = weight_quantizers(model, self._example)
        for parameter, name in quantized.items():
            # NNCF's own values: torch's formula rounds ties in another way, and would move a weight.
            weight = model.get_parameter(parameter)
            weight.data = storage.get_submodule(name).quantize(weight.data).detach()
        if not storage.is_empty():
            model = nncf.strip(model, do_copy=False, strip_format=nncf.StripFormat.NATIVE, example_input=self._example)
        setattr(model, _WEIGHT_QUANTIZERS, quantized)
        return finish(model, session, expected, weight_fake_quantizers(model).items())

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
        model = self.strip()
        quantizers = weight_fake_quantizers(model).items()
        return file_of(model, network_of_model(model), self.session, fields, quantizers, self._example)

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


def weight_fake_quantizers(stripped: nn.Module) -> dict[str, FakeQuantize]:
    """torch's quantizers on the weights of a stripped model, by the name of the weight."""
    found: dict[str, FakeQuantize] = {}
    for parameter, name in getattr(stripped, _WEIGHT_QUANTIZERS, {}).items():
        quantizer = get_hook_storage(stripped).get_submodule(name)
        assert isinstance(quantizer, FakeQuantize), "stripping has replaced NNCF's own"
        found[parameter] = quantizer
    return found


def check_order(model: nn.Module, session: Session) -> None:
    """Raises TrainingError where NNCF does something to a layer behind ilwp, which would undo its grid."""
    later = {parameter for _, parameter, _ in mask_hooks(model)} - getattr(model, MASKED_BEFORE, set())
    if later:
        raise TrainingError(
            f"nncf.prune has put masks on {len(later)} weights behind ilwp, such as {min(later)!r}, and may have left "
            "out ilwp's layers; apply it before ilwp"
        )
    operations = {name: hook for name, hook in get_hook_storage(model).named_hooks() if name.startswith("pre_hooks")}
    own = list(weight_hooks(model).values())
    for key in session.parts.keys:
        layer = key.removesuffix(".weight")
        hooks = [hook for _, hook in parameter_hooks(model, key)]
        if [hook in own for hook in hooks] != [False] * (len(hooks) - 1) + [True]:
            raise TrainingError(
                f"layer {layer!r}: expected ilwp's hook once and last on its weight, got "
                f"{[type(hook).__name__ for hook in hooks]}; apply nncf.prune and nncf.quantize before ilwp"
            )
        for name in operations:
            operation, port = decode_hook_name(name)[1:]
            if port == 1 and operation.startswith(layer.replace(".", "/") + "/"):
                raise TrainingError(
                    f"layer {layer!r}: nncf.quantize has put a quantizer behind ilwp's ({name}); apply it before "
                    "ilwp, which then takes that quantizer off"
                )


def network_of_model(model: nn.Module) -> WrappedNetwork:
    """A model as recipes see it."""
    return WrappedNetwork.of_model(model, foreign=(ATR_HOOK_STORAGE,))
