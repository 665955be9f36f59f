"""Build compressed models: from a JSON config as NNCF 2 does, or one call as NNCF 3 does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nncf
import torch
from nncf.torch.function_hook.wrapper import get_hook_storage, register_post_function_hook, wrap_model
from torch import nn

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.models.chains import Chains, find_chains
from ilwp_plugin.training import Schedule, Session

from ..config import Section, sections_by_name
from ..scopes import match, translate
from .algorithms import SPARSITY_PARTS, IlwpPart, Part, SparsityPart, adapt_batch_norms, prune_masks, quantize
from .config import NNCFConfig, example_input
from .controller import MASKED_BEFORE, Controller
from .filter_pruning import prune_filters
from .hooks import MaskedWeight, ResidualQuantizer, mask_hooks, residual_quantizers, weight_quantizers

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
    chosen = None if section is None else translate(section.config, model)
    if "filter_pruning" in sections:
        history = None if state is None else state["filters"]
        pruned = prune_filters(model, config, sections["filter_pruning"], example, history)
        rebuild["filters"] = pruned.history
        parts.append(pruned)
    chains = None if chosen is None else _chains(model, chosen, example)
    if state is not None:
        if state["hooks"] is not None:
            model = nncf.torch.load_from_config(model, state["hooks"], allowed_modules=_ALLOWED)
        parts += [make(model, sections[name]) for name, make in SPARSITY_PARTS.items() if name in sections]
    else:
        parts += [prune_masks(model, config, sections[s], example) for s in sections if s.endswith("_sparsity")]
        if "quantization" in sections:
            model = quantize(model, config, sections["quantization"])
            for part in parts:
                if isinstance(part, SparsityPart):
                    part.follow(model)
        if chains is not None:
            _check_neighbours(model, chains, config, sections, example)
    if section is not None and chosen is not None and chains is not None:
        session = (_attach if state is None else _reattach)(model, chosen, section.schedule, chains, example)
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
) -> nn.Module:
    """Hook inter-layer weight prediction into a model, behind `nncf.prune` and `nncf.quantize`.

    Quantizers that `nncf.quantize` has put on the weights of ilwp's layers are taken off, unless `bits` is None.

    Args:
        model: a model, wrapped by NNCF or not; it is changed in place.
        config: an IlwpConfig or its fields.
        example_input: a tensor or a tuple of arguments.
        schedule: a Schedule or its fields.

    Returns:
        The model; `controller_of(model, example_input)` gives its loss, statistics and file.

    Raises:
        ChainError: the model has no chain.
        TrainingError: ilwp is there already, or a layer has a mask or not where others do.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    schedule = schedule if isinstance(schedule, Schedule) else Schedule.from_dict(schedule or {})
    chosen = translate(IlwpConfig.of(config), model)
    if getattr(model, _SESSION, None) is not None or residual_quantizers(wrap_model(model)):
        raise TrainingError("ilwp has been applied to this model already")
    chains = _chains(model, chosen, example)
    _attach(model, chosen, schedule, chains, example)
    return model


def controller_of(model: nn.Module, example_input: Any, schedule: Schedule | None = None) -> Controller:
    """Loss, scheduler, statistics and file of a model that `apply_ilwp` or `load_from_config` made.

    Args:
        model: the wrapped model.
        example_input: a tensor or a tuple of arguments.
        schedule: of a model restored by NNCF's own `load_from_config`, whose config does not hold it.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    session = getattr(model, _SESSION, None)
    if session is None:
        hooks = list(residual_quantizers(wrap_model(model)).values())
        if not hooks:
            raise TrainingError("ilwp has not been applied to this model; call apply_ilwp first")
        config = hooks[0].config
        layers = tuple(layer for chain in dict.fromkeys(hook.layers for hook in hooks) for layer in chain)
        chains = _chains(model, config.replace(layers=layers, target_scopes=(), ignored_scopes=()), example)
        session = _reattach(model, config, schedule or Schedule(), chains, example)
    return Controller(model, [IlwpPart(session)], example, {"filters": None})


def load_from_config(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """`nncf.torch.load_from_config` for a config that has hooks of ilwp, too."""
    return nncf.torch.load_from_config(model, config, allowed_modules=_ALLOWED)  # type: ignore[no-any-return]


_SESSION = "_ilwp_session"


def _chains(model: nn.Module, config: IlwpConfig, example: Any) -> Chains:
    return find_chains(
        model,
        scope=config.scope,
        target_scopes=config.target_scopes,
        ignored_scopes=config.ignored_scopes,
        layers=config.layers,
        example_inputs=example,
    )


def _session(model: nn.Module, config: IlwpConfig, schedule: Schedule, chains: Chains) -> Session:
    sources = {layer: MaskedWeight(model, layer) for chain in chains for layer in chain.layers}
    session = Session(config, schedule, chains, sources, model)
    object.__setattr__(model, _SESSION, session)
    object.__setattr__(model, MASKED_BEFORE, {parameter for _, parameter, _ in mask_hooks(wrap_model(model))})
    return session


def _attach(model: nn.Module, config: IlwpConfig, schedule: Schedule, chains: Chains, example: Any) -> Session:
    wrap_model(model)
    session = _session(model, config, schedule, chains)
    if config.bits is None:
        return session
    storage = get_hook_storage(model)
    if not storage.is_empty():
        quantized = weight_quantizers(model, example)
        for chain in chains:
            for key in set(chain.keys) & quantized.keys():
                storage.delete_hook(quantized[key])
    for chain, loop in zip(chains, session.loops, strict=True):
        for number, key in enumerate(chain.keys):
            register_post_function_hook(model, key, 0, ResidualQuantizer(config, chain.layers, number, loop))
    return session


def _reattach(model: nn.Module, config: IlwpConfig, schedule: Schedule, chains: Chains, example: Any) -> Session:
    """Connect restored hooks with the model."""
    session = _session(model, config, schedule, chains)
    loops = dict(zip((chain.layers for chain in chains), session.loops, strict=False))
    found = {hook.layers for hook in residual_quantizers(model).values()}
    if found != loops.keys():
        raise TrainingError(
            f"the checkpoint was trained with the chains {sorted(found)}, and this config gives {sorted(loops)}; "
            "resume with the config of the checkpoint"
        )
    for hook in residual_quantizers(model).values():
        hook.loop = loops[hook.layers]
    return session


def _check_neighbours(
    model: nn.Module, chains: Chains, config: NNCFConfig, sections: Mapping[str, Any], example: Any
) -> None:
    """Raises TrainingError where NNCF has left a layer of a chain out."""
    for name in sections:
        if name == "quantization":
            there = set(weight_quantizers(model, example))
        elif name.endswith("_sparsity"):
            there = {f"{layer}.weight" for c in chains for layer in c.layers if MaskedWeight(model, layer).pruned}
        else:
            continue
        scopes = [*(config.get("ignored_scopes") or []), *(sections[name].get("ignored_scopes") or [])]
        weights = sections[name].get("weights", {}).get("ignored_scopes") or []
        meant = {layer for scope in [*scopes, *weights] for layer in match(scope, model)}
        for chain in chains:
            for layer in chain.layers:
                if f"{layer}.weight" not in there and layer not in meant:
                    raise TrainingError(
                        f"layer {layer!r}: NNCF's {name} has left its weight out without saying so; name it in the "
                        "section's ignored_scopes if that is meant"
                    )
