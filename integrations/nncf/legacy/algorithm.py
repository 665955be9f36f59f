"""ilwp's recipes as NNCF 2.19 wants an algorithm: a builder, a controller, a scheduler, a loss."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from nncf import NNCFConfig
from nncf.api.compression import CompressionStage
from nncf.api.statistics import Statistics
from nncf.common.graph.transformations.commands import TargetType
from nncf.common.schedulers import BaseCompressionScheduler
from nncf.common.statistics import NNCFStatistics
from nncf.config.structures import BNAdaptationInitArgs, QuantizationRangeInitArgs
from nncf.parameters import StripFormat
from nncf.torch.compression_method_api import (
    PTCompressionAlgorithmBuilder,
    PTCompressionAlgorithmController,
    PTCompressionLoss,
)
from nncf.torch.graph.transformations.commands import PTInsertionCommand, PTTargetPoint
from nncf.torch.graph.transformations.layout import PTTransformationLayout
from nncf.torch.layers import NNCF_PADDING_VALUE_ATTR_NAME, _NNCFModuleMixin
from nncf.torch.module_operations import UpdateWeight
from nncf.torch.nncf_network import NNCFNetwork
from nncf.torch.quantization.algo import QuantizationBuilder, QuantizationController
from torch import Tensor, nn

from ilwp_plugin.errors import TrainingError
from ilwp_plugin.training import Session, SessionStatistics

from ..calibrating import calibration_of
from ..config import ALGORITHM, Section, sections_by_name
from ..network import WrappedNetwork
from ..quantizers import padding_values_of, quantizers_of
from ..saving import LARGEST, LARGEST_HALF, Stripped, finish
from ..scopes import ignores, translate
from .copying import copy_model
from .hooks import MaskedWeight, WeightHook, remove_hooks, weight_hooks, weight_quantizer, weight_quantizers

__all__ = ["Builder", "Controller", "IlwpStatistics", "QuantizationBesideIlwp", "stripped_of"]

_PRIORITY = 7
"""Behind the masks of pruning (2) and sparsity (3), before quantizers (11)."""
_MASKS = ("magnitude_sparsity", "rb_sparsity", "const_sparsity")
_SESSION = "_ilwp_session"
"""Attribute of a model: what its builders share."""
_SITES = "_ilwp_sites"
"""Attribute of a model: weights that ilwp quantizes instead of NNCF, with the largest codes that NNCF would allow."""
_CONFIG = "_ilwp_config"
"""Attribute of a model: what decides where its quantizers are."""


class Builder(PTCompressionAlgorithmBuilder):  # type: ignore[misc]
    """Inserts our hooks, behind all masks."""

    def __init__(self, config: NNCFConfig, should_init: bool = True) -> None:
        section = Section.find(config)
        assert section is not None, "NNCF makes the builder of a section that it has found"
        self._section = section
        # The base class extends the scopes of the whole config in place by the section's, which then leak into the
        # algorithms behind it: it gets a copy. Ours are in the section, read above.
        super().__init__(NNCFConfig(copy.deepcopy(dict(config))), should_init)
        self.config = config
        self.ignored_scopes = self.target_scopes = None

    def _get_transformation_layout(self, target_model: NNCFNetwork) -> PTTransformationLayout:
        self._session = session_of(target_model, self._section, self.config, self.should_init)
        layout = PTTransformationLayout()
        operations = operation_names(target_model)
        trained = self._session.parts.parameters()
        for key in self._session.parts.keys:
            name = operations[key.removesuffix(".weight")][0]
            point = PTTargetPoint(TargetType.OPERATION_WITH_WEIGHTS, target_node_name=name)
            layout.register(PTInsertionCommand(point, WeightHook(key, self._session, trained), _PRIORITY))
            trained = []  # the first hook holds them
        return layout

    def initialize(self, model: NNCFNetwork) -> None:
        """Nothing has to be calibrated."""

    def _build_controller(self, model: NNCFNetwork) -> Controller:
        _check_neighbours(model, self._session, sections_by_name(self.config))
        return Controller(model, self._session)

    def _are_frozen_layers_allowed(self) -> tuple[bool, str]:
        return True, "Frozen layers are quantized as they are"


def _data_of(config: NNCFConfig) -> Any:
    """What is registered for initialization, if anything is."""
    found = (config.get_extra_struct(kind) for kind in _DATA if config.has_extra_struct(kind))
    return next((struct.data_loader for struct in found), None)


_DATA = (QuantizationRangeInitArgs, BNAdaptationInitArgs)


def session_of(model: NNCFNetwork, section: Section, whole: NNCFConfig, begins: bool) -> Session:
    """The one session of a model that is being built.

    Args:
        model: the model.
        section: ours.
        whole: the config, in which the data are registered by which steps are chosen.
        begins: whether the training begins; a checkpoint brings its own steps.
    """
    session: Session | None = getattr(model, _SESSION, None)
    if session is None:
        operations = operation_names(model)
        sources = {f"{name}.weight": MaskedWeight(model.get_submodule(name)) for name in operations}
        network = network_of_model(model)
        config, schedule = translate(section.config, model), section.schedule
        data = _data_of(whole) if begins else None
        calibration = calibration_of(model, config, data, schedule.calibration_samples)
        session = Session(config, schedule, network, sources, calibration=calibration, resumed=not begins)
        object.__setattr__(model, _SESSION, session)
    return session


def network_of_model(model: NNCFNetwork) -> WrappedNetwork:
    """A model as recipes see it, in the order of NNCF's graph."""
    layers = (name for name in operation_names(model) if isinstance(model.get_submodule(name), nn.modules.conv._ConvNd))
    foreign = [path for path, _ in quantizers_of(model)] + padding_values_of(model)
    return WrappedNetwork.of_model(model, foreign=foreign, order=tuple(layers))


def stripped_of(model: NNCFNetwork) -> Stripped:
    """What stripping has left, and the config by which NNCF makes it again."""
    more = {"config": getattr(model, _CONFIG)} if getattr(model, _CONFIG, None) else {}
    sites = {key: {key: largest} for key, largest in getattr(model, _SITES, {}).items()}

    def put(key: str, made: nn.Module) -> str:
        module: Any = model.get_submodule(key.removesuffix(".weight"))
        module.register_pre_forward_operation(UpdateWeight(made))
        return weight_quantizers(model)[key]

    return Stripped(model, network_of_model(model), weight_quantizers(model), more, sites, put)


def _config_of(model: NNCFNetwork, config: NNCFConfig) -> dict[str, Any] | None:
    """What decides where quantizers are; None where the inputs of the model cannot be described."""
    known = {key: config[key] for key in ("input_info", "target_device") if key in config}
    if "input_info" not in known:
        if model.nncf.input_infos is None:
            return None
        args, kwargs = model.nncf.input_infos.get_forward_inputs()
        inputs: list[tuple[dict[str, str], Any]] = [({}, value) for value in args]
        inputs += [({"keyword": key}, value) for key, value in kwargs.items()]
        if not all(isinstance(value, Tensor) for _, value in inputs):
            return None
        known["input_info"] = [
            {"sample_size": list(value.shape), "type": "float" if value.is_floating_point() else "long", **keyword}
            for keyword, value in inputs
        ]
    section = copy.deepcopy(dict(sections_by_name(config)["quantization"]))
    initializer = {"range": {"num_init_samples": 0}, "batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}
    section["initializer"] = {**section.get("initializer", {}), **initializer}
    scopes = {key: config[key] for key in ("ignored_scopes", "target_scopes") if key in config}
    found: dict[str, Any] = json.loads(json.dumps({**known, **scopes, "compression": [section]}))
    return found


def operation_names(model: NNCFNetwork) -> dict[str, list[str]]:
    """NNCF's names of the operations of all layers whose weights can be hooked, by module name, in execution order.

    A module that runs several times has as many. A weight that two modules hold cannot be hooked.
    """
    names = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    found: dict[str, list[str]] = {}
    for node in model.nncf.get_original_graph().topological_sort():
        if node.node_type in ("nncf_model_input", "nncf_model_output"):
            continue
        module = model.nncf.get_containing_module(node.node_name)
        if isinstance(module, _NNCFModuleMixin) and isinstance(module, _HOOKED) and holders[id(module.weight)] == 1:
            found.setdefault(names[id(module)], []).append(node.node_name)
    return found


_HOOKED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag)


class _Loss(PTCompressionLoss):  # type: ignore[misc]
    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def calculate(self) -> Tensor:
        return self._session.loss()

    def get_state(self) -> dict[str, Any]:
        return self._session.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._session.load_state(state)


class _Scheduler(BaseCompressionScheduler):  # type: ignore[misc]
    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def step(self, next_step: int | None = None) -> None:
        super().step(next_step)
        self._session.begin_step()

    def epoch_step(self, next_epoch: int | None = None) -> None:
        super().epoch_step(next_epoch)
        self._session.set_epoch(self.current_epoch)


class IlwpStatistics(Statistics):  # type: ignore[misc]
    """`NNCFStatistics.ilwp`: see `SessionStatistics` for the fields."""

    def __init__(self, session: SessionStatistics) -> None:
        self.session = session

    def __getattr__(self, name: str) -> Any:
        if name == "session":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.session, name)

    def to_str(self) -> str:
        """As a table of text."""
        return self.session.to_str()


class Controller(PTCompressionAlgorithmController):  # type: ignore[misc]
    """What `create_compressed_model` returns for a config with just this section; else a part of what it returns."""

    def __init__(self, model: NNCFNetwork, session: Session) -> None:
        super().__init__(model)
        self.session = session
        self._loss = _Loss(session)
        self._scheduler = _Scheduler(session)

    @property
    def loss(self) -> PTCompressionLoss:
        """The weighted losses of the recipes."""
        return self._loss

    @property
    def scheduler(self) -> BaseCompressionScheduler:
        """Moves the weight of the inter-layer loss, and starts the quantization."""
        return self._scheduler

    def compression_stage(self) -> CompressionStage:
        """Uncompressed before the epoch in which quantization starts, fully compressed from then on."""
        waits = self.session.changes and not self.session.quantizes
        return CompressionStage.UNCOMPRESSED if waits else CompressionStage.FULLY_COMPRESSED

    def statistics(self, quickly_collected_only: bool = False) -> NNCFStatistics:
        """The inter-layer loss, and what the `.ilwp` file of the model would be, exactly.

        Args:
            quickly_collected_only: without the sizes, for which the file is made in memory.
        """
        from .stripping import compressed

        whole = self.model.nncf.compression_controller or self
        result = NNCFStatistics()
        found = self.session.statistics(None if quickly_collected_only else lambda: compressed(whole))
        result.register(ALGORITHM, IlwpStatistics(found))
        return result

    def strip_model(
        self, model: NNCFNetwork, do_copy: bool = False, strip_format: StripFormat = StripFormat.NATIVE
    ) -> NNCFNetwork:
        """Leave exactly what the file restores in the model, without hooks. The others have been stripped before."""
        model = copy_model(model) if do_copy else model
        if hasattr(model, _SESSION):
            session: Session = model._ilwp_session  # of the model, which may be a copy
            expected = session.parts.reconstructed() if session.quantizes else {}
            for key in expected:  # filters that are pruned stay masked in a stripped model
                module = model.get_submodule(key.removesuffix(".weight"))
                module.get_parameter("weight").data = session.parts.sources[key].weight().detach()
            remove_hooks(model)
            model.nncf._kd_loss_handler = None  # the teacher of knowledge distillation
            object.__delattr__(model, _SESSION)
            finish(stripped_of(model), session, expected)
        for module in model.modules():
            padding = module._buffers.get(NNCF_PADDING_VALUE_ATTR_NAME)
            if padding is not None and not bool(padding.any()):
                # A buffer of NNCF's convolutions that is not in the user's model, for which the file is.
                module._non_persistent_buffers_set.add(NNCF_PADDING_VALUE_ATTR_NAME)
        return model

    def prepare_for_export(self) -> None:
        """From now on a trace of the model holds the restored weights as constants."""
        for hook in weight_hooks(self.model).values():
            hook.remember()


def _check_neighbours(model: NNCFNetwork, session: Session, sections: Any) -> None:
    """Raises TrainingError where another algorithm of the config left a layer of a chain out."""
    operations = operation_names(model)
    for name in sections.keys() & {*_MASKS, "quantization"}:
        section, quantizes = sections[name], name == "quantization"
        if quantizes and session.parts.keys:
            continue  # these layers are on our grid, see QuantizationBesideIlwp
        for chain in session.chains:
            for layer in chain.layers:
                module = model.get_submodule(layer)
                there = weight_quantizer(module) is not None if quantizes else MaskedWeight(module).pruned
                operation = operations[layer][0]
                if not there and not ignores(section, operation, "weights" if quantizes else None):
                    raise TrainingError(
                        f"layer {layer!r}: NNCF's {name} has left its weight out without saying so; name it in the "
                        f"section's ignored_scopes ({operation!r}) if that is meant"
                    )


class _QuantizationController(QuantizationController):  # type: ignore[misc]
    """NNCF's, whose stripping does not move a weight.

    NNCF quantizes raw weights there, before masks are applied to them, and torch's formula rounds ties in another way.
    """

    @torch.no_grad()
    def strip_model(
        self, model: NNCFNetwork, do_copy: bool = False, strip_format: StripFormat = StripFormat.NATIVE
    ) -> NNCFNetwork:
        model = copy_model(model) if do_copy else model
        for module in model.modules():
            quantizer: Any = weight_quantizer(module)
            if quantizer is not None and quantizer.is_enabled_quantization():
                weight = MaskedWeight(module).weight()
                module.get_parameter("weight").data = quantizer.quantize(
                    weight, execute_traced_op_as_identity=False
                ).detach()
        stripped = super().strip_model(model, False, strip_format)
        return finish(stripped_of(stripped), None, {}) if strip_format == StripFormat.NATIVE else stripped


class QuantizationBesideIlwp(QuantizationBuilder):  # type: ignore[misc]
    """NNCF's quantization, which leaves the weights that ilwp quantizes on their own grid.

    int8 would quantize what is quantized already, and the file could not hold the result as the recipe's codes.
    Activations are quantized as ever.
    """

    def _build_controller(self, model: NNCFNetwork) -> QuantizationController:
        controller = super()._build_controller(model)
        if type(controller) is QuantizationController:
            controller.__class__ = _QuantizationController
        return controller

    def _get_transformation_layout(self, target_model: NNCFNetwork) -> PTTransformationLayout:
        section = Section.find(self.config)
        object.__setattr__(target_model, _CONFIG, _config_of(target_model, self.config))
        if section is not None:
            operations = operation_names(target_model)
            keys = session_of(target_model, section, self.config, self.should_init).parts.keys
            own = [name for key in keys for name in operations[key.removesuffix(".weight")]]
            own_section: dict[str, Any] = self._algo_config  # type: ignore[has-type]
            weights = dict(own_section.get("weights", {}))
            if weights.get("bits", 8) == 8 and not getattr(self, "_precision_init_type", None):
                device = self.config.get("target_device", "ANY")
                halved = own_section.get("overflow_fix", "enable") != "disable" and device in ("ANY", "CPU")
                sites = {
                    key: LARGEST_HALF if halved else LARGEST
                    for key in keys
                    if not ignores(own_section, operations[key.removesuffix(".weight")][0], "weights")
                }
                object.__setattr__(target_model, _SITES, sites)
            weights["ignored_scopes"] = [*weights.get("ignored_scopes", []), *own]
            self._algo_config = {**own_section, "weights": weights}
            # Bits chosen by hand for these weights would name quantizers that are not there.
            chosen: Any = getattr(self, "_precision_init_params", None)
            if getattr(chosen, "bitwidth_per_scope", None):
                left_out = {f"{operation}|WEIGHT" for operation in own}
                chosen.bitwidth_per_scope = [entry for entry in chosen.bitwidth_per_scope if entry[1] not in left_out]
        return super()._get_transformation_layout(target_model)
