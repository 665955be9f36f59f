"""Build compressed models: from a JSON config as NNCF 2 does, or one call as NNCF 3 does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import nncf
import torch
from nncf.torch.function_hook.wrapper import get_hook_storage, is_wrapped, register_post_function_hook, wrap_model
from torch import nn

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, read_inputs
from ilwp_plugin.training import Schedule, Session

from ..calibrating import calibration_of
from ..config import Section, algorithms, sections_by_name, within_int8
from ..network import WrappedNetwork
from ..scopes import translate
from .algorithms import (
    SPARSITY_PARTS,
    IlwpPart,
    Part,
    QuantizationPart,
    SparsityPart,
    adapt_batch_norms,
    check_scopes,
    patterns_of,
    prune_masks,
    quantize,
    scopes_of,
)
from .config import NNCFConfig, example_input
from .controller import Controller
from .filter_pruning import prune_filters
from .hooks import (
    MaskedWeight,
    Restored,
    WeightHook,
    mask_hooks,
    take_quantizers_off,
    weight_hooks,
    weight_quantizers,
)
from .operations import Operations
from .stripping import MASKED_BEFORE, SESSION, network_of_model

__all__ = ["apply_ilwp", "controller_of", "create_compressed_model", "load_from_config"]

_ALLOWED = ("nncf.*", "ilwp_integrations.*")


def create_compressed_model(
    model: nn.Module,
    config: NNCFConfig | Mapping[str, Any],
    compression_state: Mapping[str, Any] | None = None,
    dummy_forward_fn: Any = None,
    wrap_inputs_fn: Any = None,
    wrap_outputs_fn: Any = None,
    dump_graphs: bool = False,
) -> tuple[Controller, nn.Module]:
    """What NNCF 2 calls so, on NNCF 3: the sections of a JSON config applied to a model.

    Whatever order the config lists them in: filters are pruned first, then masks, int8 and at last ilwp are hooked in.

    Args:
        model: the model.
        config: the config.
        compression_state: of a checkpoint, to go on from; load the model's state dict afterwards.
        dummy_forward_fn: not supported, like the next two: the inputs come from `input_info` or the registered data.
        wrap_inputs_fn: see there.
        wrap_outputs_fn: see there.
        dump_graphs: ignored.

    Returns:
        The controller and the model to train.

    Raises:
        ConfigError: the config says what NNCF 3 cannot do.
        ChainError: ilwp finds no chain.
        TrainingError: NNCF has left out a layer without saying so.
    """
    if dummy_forward_fn is not None or wrap_inputs_fn is not None or wrap_outputs_fn is not None:
        raise TrainingError("dummy_forward_fn, wrap_inputs_fn and wrap_outputs_fn cannot be mapped to NNCF 3")
    if not isinstance(config, NNCFConfig):
        config = NNCFConfig.from_dict(config)
    section, sections = Section.find(config), sections_by_name(config)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    example = example_input(config, device)
    state = None if compression_state is None else compression_state[Controller.BUILDER_STATE]
    training = model.training
    model.eval()
    parts: list[Part] = []
    rebuild: dict[str, Any] = {"filters": None}
    before: nn.Module | None = None
    chosen = None if section is None else translate(section.config, model)
    if "filter_pruning" in sections:
        history = None if state is None else state["filters"]
        pruned = prune_filters(model, config, sections["filter_pruning"], example, history)
        rebuild["filters"] = pruned.history
        parts.append(pruned)
    others = [s for name, s in sections.items() if name not in (*algorithms(), "filter_pruning")]
    operations = Operations(model, example) if state is None and others else None
    if operations is not None:
        check_scopes(operations, config, others)
    if state is not None:
        if state["hooks"] is not None:
            model = nncf.torch.load_from_config(model, state["hooks"], allowed_modules=_ALLOWED)
        parts += [make(model, sections[name]) for name, make in SPARSITY_PARTS.items() if name in sections]
    elif operations is not None:
        masked = [s for name, s in sections.items() if name.endswith("_sparsity")]
        parts += [prune_masks(model, config, s, example, operations) for s in masked]
        if "quantization" in sections:
            before = model
            model = quantize(model, config, sections["quantization"], example, operations)
            for part in parts:
                if isinstance(part, SparsityPart):
                    part.follow(model)
    if "quantization" in sections:
        parts.append(QuantizationPart())
    if section is not None and chosen is not None:
        data = None
        if state is None:
            data = calibration_of(model, chosen, config.init_loader, section.schedule.calibration_samples)
        session = _attach(
            model, chosen, section.schedule, example, calibration=data, before=before, resumed=state is not None
        )
        if state is None:
            _check_neighbours(model, session, config, sections, example, operations)
        parts.append(IlwpPart(session))
    if state is None:
        adapt_batch_norms(model, config, sections.values())
    controller = Controller(model, parts, example, rebuild)
    if compression_state is not None:
        controller.load_state(compression_state[Controller.CONTROLLER_STATE])
    model.train(training)
    return controller, model


def apply_ilwp(
    model: nn.Module,
    config: IlwpConfig | Mapping[str, Any] | None = None,
    example_input: Any = None,
    schedule: Schedule | Mapping[str, Any] | None = None,
    *,
    calibration: Any = None,
) -> nn.Module:
    """Hook inter-layer weight prediction into a model, behind `nncf.prune` and `nncf.quantize`.

    Quantizers that `nncf.quantize` has put on the weights of ilwp's layers are taken off, unless `bits` is None.

    Args:
        model: a model, wrapped by NNCF or not; it is changed in place.
        config: an IlwpConfig or its fields.
        example_input: a tensor or a tuple of arguments.
        schedule: a Schedule or its fields.
        calibration: inputs, see `compress`, by which the steps of all layers are chosen: what errors do to the outputs
            decides. None gives all layers the same step.

    Returns:
        The model; `controller_of(model, example_input)` gives its loss, statistics and file.

    Raises:
        CalibrationError: the model does not run with the inputs.
        ChainError: the model has no chain.
        TrainingError: ilwp is there already, or a layer has a mask or not where others do.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    schedule = schedule if isinstance(schedule, Schedule) else Schedule.from_dict(schedule or {})
    chosen = translate(IlwpConfig.of(config), model)
    if getattr(model, SESSION, None) is not None or weight_hooks(model):
        raise TrainingError("ilwp has been applied to this model already")
    if is_wrapped(model) and weight_quantizers(model, example):
        chosen = within_int8(chosen)
    inputs = None if calibration is None else read_inputs(model, calibration)
    _attach(model, chosen, schedule, example, calibration=inputs)
    return model


def controller_of(model: nn.Module, example_input: Any, schedule: Schedule | None = None) -> Controller:
    """Loss, scheduler, statistics and file of a model that `apply_ilwp` or `load_from_config` made.

    Args:
        model: the wrapped model.
        example_input: a tensor or a tuple of arguments.
        schedule: of a model restored by NNCF's own `load_from_config`, whose config does not hold it.

    Raises:
        TrainingError: the model has no hooks of ilwp.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    session = getattr(model, SESSION, None)
    if session is None:
        hooks = list(weight_hooks(model).values())
        if not hooks:
            raise TrainingError("ilwp has not been applied to this model; call apply_ilwp first")
        restored = hooks[0].owner
        assert isinstance(restored, Restored), "other hooks come with their session"
        session = _attach(model, restored.config, schedule or Schedule(), example, resumed=True)
        session.parts.load_state_dict(restored.state)
    return Controller(model, [IlwpPart(session)], example, {"filters": None})


def load_from_config(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """`nncf.torch.load_from_config` for a config that has hooks of ilwp, too."""
    return nncf.torch.load_from_config(model, config, allowed_modules=_ALLOWED)  # type: ignore[no-any-return]


def _attach(
    model: nn.Module,
    config: IlwpConfig,
    schedule: Schedule,
    example: Any,
    *,
    calibration: CalibrationInputs | None = None,
    before: nn.Module | None = None,
    resumed: bool = False,
) -> Session:
    """Connect a model with a new session, through new hooks or those that NNCF has restored.

    Args:
        model: the model, in which hooks are put.
        config: of the session.
        schedule: likewise.
        example: an input.
        calibration: by which steps are chosen.
        before: the model without int8, whose errors are measured then; None for the model itself.
        resumed: whether hooks are there.
    """
    from .registration import register  # which knows this module

    register()
    found = {hook.key: hook for hook in weight_hooks(model).values()}
    network = network_of_model(model)
    session = _session(
        model,
        list(found.values()),
        config,
        schedule,
        network if before is None else replace(network, module=before),
        example_inputs=example,
        calibration=calibration,
        resumed=resumed,
    )
    storage = get_hook_storage(wrap_model(model))
    if resumed and found.keys() != set(session.parts.keys):
        raise TrainingError(
            f"the checkpoint was trained with hooks on {sorted(found)}, and this config gives "
            f"{sorted(session.parts.keys)}; resume with the config of the checkpoint"
        )
    object.__setattr__(model, SESSION, session)
    object.__setattr__(model, MASKED_BEFORE, {parameter for _, parameter, _ in mask_hooks(model)})
    if resumed:
        for hook in found.values():
            hook.connect(session, network)
    else:
        quantized = {} if storage.is_empty() else weight_quantizers(model, example)
        trained = session.parts.parameters()
        for key in session.parts.keys:
            sites = take_quantizers_off(model, quantized.get(key, []))
            register_post_function_hook(model, key, 0, WeightHook(key, session, network, trained, sites))
            trained = []  # the first hook holds them
    return session


def _session(
    model: nn.Module,
    restored: Sequence[WeightHook],
    config: IlwpConfig,
    schedule: Schedule,
    network: WrappedNetwork,
    **more: Any,
) -> Session:
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    sources = {
        layer.weight: MaskedWeight(model, layer.weight)
        for layer in network.layers.values()
        if layer.hooked and counts[id(model.get_parameter(layer.weight))] == 1
    }
    for hook in restored:
        hook.passing = True  # it cannot compute yet, and the order of layers is found by running the model
    try:
        return Session(config, schedule, network, sources, **more)
    finally:
        for hook in restored:
            hook.passing = False


def _check_neighbours(
    model: nn.Module,
    session: Session,
    config: NNCFConfig,
    sections: Mapping[str, Any],
    example: Any,
    operations: Operations | None,
) -> None:
    """Raises TrainingError where NNCF has left a layer of a chain out."""
    for name in sections:
        if name == "quantization" and not session.parts.keys:
            there = set(weight_quantizers(model, example))
        elif name.endswith("_sparsity"):
            there = {key for chain in session.chains for key in chain.keys if MaskedWeight(model, key).pruned}
        else:
            continue
        assert operations is not None, "made for the sections of NNCF"
        ignored, targets = patterns_of(config, sections[name])
        ignored += scopes_of({}, sections[name].get("weights", {}), "ignored_scopes")
        meant = set(operations.left_out(ignored, targets).values())
        for chain in session.chains:
            for layer, key in zip(chain.layers, chain.keys, strict=True):
                if key not in there and layer not in meant:
                    raise TrainingError(
                        f"layer {layer!r}: NNCF's {name} has left its weight out without saying so; name it in the "
                        "section's ignored_scopes if that is meant"
                    )
