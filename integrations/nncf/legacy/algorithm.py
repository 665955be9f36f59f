"""The algorithm `ilwp` as NNCF 2.19 wants it: a builder, a controller, a scheduler, a loss."""

from __future__ import annotations

import copy
from typing import Any

import torch
from nncf import NNCFConfig
from nncf.api.compression import CompressionStage
from nncf.api.statistics import Statistics
from nncf.common.graph.transformations.commands import TargetType
from nncf.common.schedulers import BaseCompressionScheduler
from nncf.common.statistics import NNCFStatistics
from nncf.common.utils.backend import copy_model
from nncf.parameters import StripFormat
from nncf.torch.compression_method_api import (
    PTCompressionAlgorithmBuilder,
    PTCompressionAlgorithmController,
    PTCompressionLoss,
)
from nncf.torch.graph.transformations.commands import PTInsertionCommand, PTTargetPoint
from nncf.torch.graph.transformations.layout import PTTransformationLayout
from nncf.torch.layers import NNCF_PADDING_VALUE_ATTR_NAME
from nncf.torch.nncf_network import NNCFNetwork
from nncf.torch.quantization.algo import QuantizationBuilder, QuantizationController
from torch import Tensor, nn

from ilwp_plugin.errors import TrainingError
from ilwp_plugin.models.chains import Chains, find_chains
from ilwp_plugin.training import Session, SessionStatistics

from ..config import ALGORITHM, Section, sections_by_name
from ..saving import bake, explicit, put_on_grid
from ..scopes import ignores, translate
from .hooks import MaskedWeight, ResidualQuantizer, operands, weight_quantizer, weight_quantizers

__all__ = ["Builder", "Controller", "IlwpStatistics", "QuantizationBesideIlwp"]

_PRIORITY = 7
"""Behind the masks of pruning (2) and sparsity (3), before quantizers (11)."""
_MASKS = ("magnitude_sparsity", "rb_sparsity", "const_sparsity")


class Builder(PTCompressionAlgorithmBuilder):  # type: ignore[misc]
    """Inserts the residual quantizers, behind all masks."""

    def __init__(self, config: NNCFConfig, should_init: bool = True) -> None:
        section = Section.find(config)
        assert section is not None, "NNCF makes the builder of a section that it has found"
        self._section = section
        # The base class extends the scopes of the whole config in place by the section's, which then leak into the
        # algorithms behind it: it gets a copy. Ours are in the section, read above.
        super().__init__(NNCFConfig(copy.deepcopy(dict(config))), should_init)
        self.config = config
        self.ignored_scopes = self.target_scopes = None
        self._resumed: list[list[str]] | None = None

    def _get_transformation_layout(self, target_model: NNCFNetwork) -> PTTransformationLayout:
        config, chains = chains_of_network(target_model, self._section)
        layers = [list(chain.layers) for chain in chains]
        if self._resumed not in (None, layers):
            raise TrainingError(
                f"the checkpoint was trained with the chains {self._resumed}, and this config gives {layers}; resume "
                "with the config of the checkpoint"
            )
        sources = {layer: MaskedWeight(target_model.get_submodule(layer)) for names in layers for layer in names}
        self._session = Session(config, self._section.schedule, chains, sources, target_model)
        layout = PTTransformationLayout()
        operations = operation_names(target_model)
        for loop, names in zip(self._session.loops, layers, strict=False):
            for number, layer in enumerate(names):
                point = PTTargetPoint(TargetType.OPERATION_WITH_WEIGHTS, target_node_name=operations[layer])
                layout.register(PTInsertionCommand(point, ResidualQuantizer(number, loop), _PRIORITY))
        return layout

    def initialize(self, model: NNCFNetwork) -> None:
        """Nothing has to be calibrated."""

    def _build_controller(self, model: NNCFNetwork) -> Controller:
        _check_neighbours(model, self._session, sections_by_name(self.config))
        return Controller(model, self._session)

    def _get_state_without_name(self) -> dict[str, Any]:
        return {"chains": [list(chain.layers) for chain in self._session.chains]}

    def _load_state_without_name(self, state_without_name: dict[str, Any]) -> None:
        self._resumed = state_without_name["chains"]

    def _are_frozen_layers_allowed(self) -> tuple[bool, str]:
        return True, "Frozen layers are predicted as they are"


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
        """The weighted inter-layer loss."""
        return self._loss

    @property
    def scheduler(self) -> BaseCompressionScheduler:
        """Moves the weight of the loss, and starts the quantization."""
        return self._scheduler

    def compression_stage(self) -> CompressionStage:
        """Uncompressed before the epoch in which quantization starts, fully compressed from then on."""
        waits = bool(self.session.loops) and not self.session.quantizes
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
        """Leave the reconstructed weights in the model, without hooks."""
        model = copy_model(model) if do_copy else model
        bake_network(model, self.session.chains)
        for module in model.modules():
            padding = module._buffers.get(NNCF_PADDING_VALUE_ATTR_NAME)
            if padding is not None and not bool(padding.any()):
                # A buffer of NNCF's convolutions that is not in the user's model, for which the file is.
                module._non_persistent_buffers_set.add(NNCF_PADDING_VALUE_ATTR_NAME)
        return model

    def prepare_for_export(self) -> None:
        """From now on a trace of the model holds the reconstructed weights as constants."""
        for hook in _hooks(self.model).values():
            hook.remember()


def chains_of_network(network: NNCFNetwork, section: Section) -> tuple[Any, Chains]:
    """The configuration with its scopes as names of modules, and the chains in the order of NNCF's graph."""
    config = translate(section.config, network)
    chains = find_chains(
        network,
        scope=config.scope,
        target_scopes=config.target_scopes,
        ignored_scopes=config.ignored_scopes,
        layers=config.layers or list(operation_names(network)),
    )
    return config, chains


def operation_names(network: NNCFNetwork) -> dict[str, str]:
    """NNCF's names of the operations of all convolutions by module name, in execution order."""
    names = {id(module): name for name, module in reversed(list(network.named_modules(remove_duplicate=False)))}
    found: dict[str, str] = {}
    for node in network.nncf.get_original_graph().topological_sort():
        if node.node_type in ("nncf_model_input", "nncf_model_output"):
            continue
        module = network.nncf.get_containing_module(node.node_name)
        if isinstance(module, nn.modules.conv._ConvNd):
            found.setdefault(names[id(module)], node.node_name)
    return found


def _hooks(model: nn.Module) -> dict[str, ResidualQuantizer]:
    """By the name of the layer."""
    return {
        name: operation
        for name, module in model.named_modules()
        for operation in operands(module)
        if isinstance(operation, ResidualQuantizer)
    }


@torch.no_grad()
def bake_network(model: NNCFNetwork, chains: Chains) -> None:
    """Replace the hooks by what they compute; a model without hooks stays as it is."""
    hooks = _hooks(model)
    if not hooks:
        return
    # The loops of the model's own hooks: it may be a copy.
    loops = {chain.layers: hooks[chain.layers[0]].loop for chain in chains}
    config = explicit(next(iter(loops.values())).config, chains)
    if all(loop.enabled for loop in loops.values()):
        bake(model, loops, config)
    for layer in hooks:
        module = model.get_submodule(layer)
        operations: Any = module.pre_ops
        for key, operation in list(operations.items()):
            if isinstance(getattr(operation, "op", None), ResidualQuantizer):
                del operations[key]


def _check_neighbours(model: NNCFNetwork, session: Session, sections: dict[str, Any]) -> None:
    """Raises TrainingError where another algorithm of the config left a layer of a chain out."""
    operations = operation_names(model)
    for name in sections.keys() & {*_MASKS, "quantization"}:
        section, quantizes = sections[name], name == "quantization"
        if quantizes and session.loops:
            continue  # these layers are on our grid, see QuantizationBesideIlwp
        for chain in session.chains:
            for layer in chain.layers:
                module = model.get_submodule(layer)
                there = weight_quantizer(module) is not None if quantizes else MaskedWeight(module).pruned
                if not there and not ignores(section, operations[layer], "weights" if quantizes else None):
                    raise TrainingError(
                        f"layer {layer!r}: NNCF's {name} has left its weight out without saying so; name it in the "
                        f"section's ignored_scopes ({operations[layer]!r}) if that is meant"
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
        put_on_grid(stripped, weight_quantizers(stripped))
        return stripped


class QuantizationBesideIlwp(QuantizationBuilder):  # type: ignore[misc]
    """NNCF's quantization, which leaves the weights of ilwp's layers on their own grid.

    int8 would quantize what is quantized already, and the file could not hold the result as residual codes. Activations
    are quantized as ever. With `"bits": null` ilwp quantizes nothing, and nothing is left out here.
    """

    def _build_controller(self, model: NNCFNetwork) -> QuantizationController:
        controller = super()._build_controller(model)
        if type(controller) is QuantizationController:
            controller.__class__ = _QuantizationController
        return controller

    def _get_transformation_layout(self, target_model: NNCFNetwork) -> PTTransformationLayout:
        section = Section.find(self.config)
        if section is not None and section.config.bits is not None:
            _, chains = chains_of_network(target_model, section)
            operations = operation_names(target_model)
            own_section: dict[str, Any] = self._algo_config  # type: ignore[has-type]
            weights = dict(own_section.get("weights", {}))
            own = [operations[layer] for chain in chains for layer in chain.layers]
            weights["ignored_scopes"] = [*weights.get("ignored_scopes", []), *own]
            self._algo_config = {**own_section, "weights": weights}
            # Bits chosen by hand for these weights would name quantizers that are not there.
            chosen: Any = getattr(self, "_precision_init_params", None)
            if getattr(chosen, "bitwidth_per_scope", None):
                left_out = {f"{operation}|WEIGHT" for operation in own}
                chosen.bitwidth_per_scope = [entry for entry in chosen.bitwidth_per_scope if entry[1] not in left_out]
        return super()._get_transformation_layout(target_model)
