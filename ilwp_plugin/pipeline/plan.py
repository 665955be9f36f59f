"""The part of a compression that is done once: what each recipe takes, and what its errors do to the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ilwp_plugin.errors import ConfigError, TensorError
from ilwp_plugin.format.container import TensorInfo, check_name, check_tensor
from ilwp_plugin.method.allocation import allocate_steps, safe_step
from ilwp_plugin.models.chains import is_real
from ilwp_plugin.models.network import FileState, Network, is_plain, is_weight
from ilwp_plugin.models.tensors import Place, dtype_name, place_of
from ilwp_plugin.pipeline.calibration import output_errors
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs
from ilwp_plugin.recipes.base import AUTO, Claims, Recipe, Request, StepGroup

__all__ = ["Plan", "Progress", "choose_steps", "claim_all", "directory_of", "make_plan", "overlooked", "plan_of_claims"]

Progress = Any
"""(what, done, of how many): is told the layer, and how many kernels or rows are done; while errors are measured, how
many layers; in a search, how many trials."""

MEASURED_SHARE = 1 / 8
"""Of a step, for measuring what errors of a layer cost: near the step itself they are not small, white noise."""

OUTPUT_ERROR = 0.015
"""Where no step and no target is given: squared error of the outputs on the calibration inputs, relative to their
variance, that steps are chosen for. It is an upper bound: error feedback and norms make up for much of it."""


MOST_STEPS = 1024
"""In the largest weight, of steps that are chosen: a network that bears no error at all, an untrained one for example,
would get steps so fine that no file holds their codes, which are larger where weights predict each other, and where a
training lets weights grow."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done with a model; quantizing it, once or many times, is `quantize`.

    Attributes:
        network: the model.
        recipes: in order of precedence.
        claims: of each.
        request: what the caller has given.
        directory: of the file.
        raw: copies of the tensors that no recipe takes, by name.
        infos: by key of a claimed tensor, the entry that holds it.
        left: why tensors that no recipe takes were left, see `CompressedModel`.
        costs: by key of a weight whose step is to be measured, the squared error of the outputs, relative to their
            variance, for a squared error of 1 / 12 in each weight.
        given_steps: by key, steps that were chosen before, in a training for example.
    """

    network: Network
    recipes: tuple[Recipe, ...]
    claims: tuple[Claims, ...]
    request: Request
    directory: tuple[TensorInfo, ...]
    raw: Mapping[str, Tensor]
    infos: Mapping[str, TensorInfo]
    left: Mapping[str, str]
    costs: Mapping[str, float] = field(default_factory=dict)
    given_steps: Mapping[str, float] = field(default_factory=dict)

    def steps(self, recipes: Sequence[Recipe] | None = None, coarser: float = 1.0) -> dict[str, float]:
        """By key, the steps of all weights whose recipe has steps.

        Args:
            recipes: the plan's own at other settings; None for the plan's own.
            coarser: steps that are chosen by calibration inputs are so many times what the outputs bear without
                training.
        """
        steps = choose_steps(self.network, recipes or self.recipes, self.claims, self.costs, coarser)
        return {**steps, **self.given_steps}


def choose_steps(
    network: Network,
    recipes: Sequence[Recipe],
    claims: Sequence[Claims],
    costs: Mapping[str, float] | None = None,
    coarser: float = 1.0,
) -> dict[str, float]:
    """By key, the steps of all weights whose recipe has steps; see `Plan.steps`."""
    groups = [  # on the CPU, whose sums are the same bits everywhere
        (group, {key: network.state[key].cpu() for key in group.keys})
        for recipe, taken in zip(recipes, claims, strict=True)
        for group in recipe.step_groups(network, taken)
    ]
    measured = [_Measured(group.share, weights, costs or {}) for group, weights in groups if _is_open(group)]
    mean = coarser * _bearable_step(measured) if measured else 1.0
    chosen: dict[str, float] = {}
    for group, weights in groups:
        if group.measured:
            own = _Measured(group.share, weights, costs or {})
            if group.mean == AUTO:
                finest = max(float(weight.abs().max()) for weight in weights.values()) / MOST_STEPS
                chosen.update({key: max(step, finest) for key, step in own.steps(mean).items()})
            else:
                chosen.update(own.steps(group.mean / group.share))
        elif group.mean == AUTO:
            chosen.update({key: safe_step(weight) or 1.0 for key, weight in weights.items()})
        else:
            chosen.update(dict.fromkeys(weights, group.mean))
        chosen.update({key: max(chosen[key], least) for key, least in group.least.items()})
    return chosen


def _is_open(group: StepGroup) -> bool:
    return group.measured and group.mean == AUTO


class _Measured:
    """Weights whose steps are chosen by what their errors cost.

    Args:
        share: their mean step in units of that which is given.
        weights: by key.
        costs: see `Plan.costs`.
    """

    def __init__(self, share: float, weights: Mapping[str, Tensor], costs: Mapping[str, float]) -> None:
        self.share, self.weights = share, weights
        self._costs = {key: costs.get(key, 0.0) for key in weights}
        self._numbers = {key: weight.numel() for key, weight in weights.items()}
        self._sizes = {key: float(weight.double().square().mean().sqrt()) for key, weight in weights.items()}

    def steps(self, mean: float) -> dict[str, float]:
        """By key."""
        return allocate_steps(mean * self.share, self._costs, self._numbers, self._sizes)

    def error(self, mean: float) -> float:
        """Squared error of the outputs, relative to their variance, if errors add up."""
        return sum(self._costs[key] * step * step for key, step in self.steps(mean).items())


def _bearable_step(groups: Sequence[_Measured]) -> float:
    """The mean step at which the errors of all groups add up to OUTPUT_ERROR."""
    step = _spread({key: weight for group in groups for key, weight in group.weights.items()})
    for _ in range(3):  # limits of the allocation make the sum other than proportional to the square
        total = sum(group.error(step) for group in groups)
        if not total > 0:  # errors in these weights change nothing
            return step
        step *= math.sqrt(OUTPUT_ERROR / total)
    return step


def _spread(weights: Mapping[str, Tensor]) -> float:
    """Standard deviation of all weights together, 1 where they are all alike."""
    return float(torch.cat([w.detach().flatten().float().cpu() for w in weights.values()]).std()) or 1.0


def make_plan(
    network: Network,
    recipes: Sequence[Recipe],
    request: Request,
    calibration: CalibrationInputs | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Trace, select and measure.

    Args:
        network: the model.
        recipes: in order of precedence, see `Recipe.resolved`.
        request: what the caller has given.
        calibration: calibration inputs.
        progress: is told the layers whose errors are measured.

    Raises:
        ChainError, ConfigError, TensorError: see `compress`.
    """
    claims, left = claim_all(network, recipes, request)
    plan = plan_of_claims(network, recipes, claims, request, left)
    return plan if calibration is None else replace(plan, costs=_costs(plan, calibration, progress))


def claim_all(network: Network, recipes: Sequence[Recipe], request: Request) -> tuple[list[Claims], dict[str, str]]:
    """What each recipe takes, and why each weight that none takes was left, by layer."""
    for name, tensor in network.state.items():
        _check_tensor(name, tensor)
    free, claims = dict.fromkeys(network.state), []
    for recipe in recipes:
        taken = recipe.claim(network, free, request)
        for key in taken.tensors:
            if key not in network.state:
                raise TensorError(f"no tensor {key!r} in the state dict; {_removal(network, key)}")
            if key not in free:
                raise ConfigError(f"recipe {recipe.name!r} takes {key!r}, which an earlier recipe has taken")
        places = {place_of(key, network.state[key]) for key in taken.tensors}  # with them go those that share memory
        free = {key: None for key in free if place_of(key, network.state[key]) not in places}
        claims.append(taken)
    return claims, _left(network, claims, free)


def _removal(network: Network, key: str) -> str:
    """How to get a weight back that is made anew at each call."""
    layer, _, local = key.rpartition(".")
    if network.module is not None:
        made = dict(getattr(network.module.get_submodule(layer), "parametrizations", {})).get(local, ())
        own = [part.how_to_remove for part in made if hasattr(part, "how_to_remove")]
        if own:
            return str(own[0])
    return (
        "a parametrization or mask on the layer has to be removed first (torch.nn.utils.prune.remove, "
        "parametrize.remove_parametrizations); zeros stay zeros"
    )


def plan_of_claims(
    network: Network,
    recipes: Sequence[Recipe],
    claims: Sequence[Claims],
    request: Request,
    left: Mapping[str, str],
    given_steps: Mapping[str, float] | None = None,
) -> Plan:
    """A plan whose claims are known."""
    directory, raw, infos = directory_of(network.state, [key for taken in claims for key in taken.tensors])
    once = _once(claims, infos)
    return Plan(network, tuple(recipes), once, request, directory, raw, infos, left, given_steps=given_steps or {})


def _costs(plan: Plan, calibration: CalibrationInputs, progress: Progress | None) -> dict[str, float]:
    """See `Plan.costs`."""
    costs: dict[str, float] = {}
    for recipe, claims in zip(plan.recipes, plan.claims, strict=True):
        for group in recipe.step_groups(plan.network, claims):
            if not group.measured:
                continue
            weights = {key: plan.network.state[key] for key in group.keys}
            share = (_spread(weights) if group.mean == AUTO else group.mean) * MEASURED_SHARE
            reached = {key: layer for key in weights if (layer := plan.network.layer_of(key)) != key}
            rounded = {
                layer: plan.network.in_module(layer, torch.round(weights[key] / share) * share)
                for key, layer in reached.items()
                if plan.network.layers[layer].hooked
            }
            module = plan.network.runnable()
            assert module is not None
            errors = output_errors(module, calibration, rounded, progress)
            costs.update({key: errors[layer] / share**2 for key, layer in reached.items() if layer in errors})
    return costs


def _once(claims: Sequence[Claims], infos: Mapping[str, TensorInfo]) -> tuple[Claims, ...]:
    """Without the keys of tensors that share the memory of one before."""
    owners: dict[str, str] = {}
    for taken in claims:
        for key in taken.tensors:
            owners.setdefault(infos[key].name, key)
    return tuple(
        replace(taken, tensors=tuple(key for key in taken.tensors if owners[infos[key].name] == key))
        for taken in claims
    )


def _left(network: Network, claims: Sequence[Claims], free: Mapping[str, None]) -> dict[str, str]:
    """Why tensors of real or complex numbers stay as they are: those of layers and norms by name, others by key."""
    reasons: dict[str, str] = {}
    for taken in claims:
        reasons.update(taken.left)
    left = {name: reason for name, reason in reasons.items() if name in network.norms}
    weights = {layer.weight: name for name, layer in network.layers.items()}
    left.update({name: reasons.get(name, UNCLAIMED) for key, name in weights.items() if key in free})
    known = {key for name in left if name in network.norms for key in network.norms[name].keys}
    known.update(layer.bias for name, layer in network.layers.items() if name in left and layer.bias)
    for key in free:
        tensor = network.state[key]
        inexact = tensor.is_floating_point() or tensor.is_complex()
        if key in weights or key in known or tensor.numel() < 2 or not inexact:
            continue
        if key in reasons:
            left[key] = reasons[key]
        elif not is_real(tensor):
            left[key] = f"its dtype is {dtype_name(tensor.dtype)}"
        else:
            left[key] = network.no_weight if is_weight(tensor) else "a vector, which no recipe takes"
    return left


UNCLAIMED = "no recipe of the configuration takes it"


def overlooked(plan: Plan) -> dict[str, str]:
    """What stays as it is although nothing in the configuration says so, with the reason, by key."""
    asked = {name for taken in plan.claims for name in taken.left}
    return {name: reason for name, reason in plan.left.items() if name not in asked and reason != UNCLAIMED}


def directory_of(
    state: Mapping[str, Tensor], claimed: Sequence[str]
) -> tuple[tuple[TensorInfo, ...], dict[str, Tensor], dict[str, TensorInfo]]:
    """The directory of a state dict, copies of its unclaimed tensors, and the entry that each claimed one is stored as.

    Of tensors that share all their memory the first is stored and the others are its aliases, so a claimed tensor may
    be stored under another name than its own.
    """
    coded = {place_of(key, state[key]) for key in claimed}
    owners: dict[Place, int] = {}
    infos: list[TensorInfo] = []
    raw: dict[str, Tensor] = {}
    for position, (name, tensor) in enumerate(state.items()):
        place, shape, dtype = place_of(name, tensor), tuple(tensor.shape), dtype_name(tensor.dtype)
        if place in owners:
            infos.append(TensorInfo(name, dtype, shape, "alias", owners[place]))
            continue
        owners[place] = position
        infos.append(TensorInfo(name, dtype, shape, "coded" if place in coded else "raw"))
        if place not in coded:
            # else a snapshot: the model may go on training
            raw[name] = tensor.detach().to("cpu", copy=not isinstance(state, FileState))
    return tuple(infos), raw, {key: infos[owners[place_of(key, state[key])]] for key in claimed}


def _check_tensor(name: object, tensor: object) -> None:
    if not isinstance(name, str) or (fault := check_name(name)):
        raise TensorError(f"tensor name {name!r} {fault if isinstance(name, str) else 'is no string'}")
    if not isinstance(tensor, Tensor):
        raise TensorError(f"{name!r} is a {type(tensor).__name__}; a .ilwp file holds tensors only")
    if is_lazy(tensor):
        raise TensorError(f"tensor {name!r} belongs to a lazy layer that has not run yet; run the model once")
    if not is_plain(tensor):
        what = "nested" if tensor.is_nested else f"a {type(tensor).__name__}"
        raise TensorError(f"tensor {name!r} is {what}; a .ilwp file holds dense tensors: take its full values first")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        what = "has no values (meta device)" if tensor.is_meta else "is sparse or quantized by torch"
        raise TensorError(f"tensor {name!r} {what}; a .ilwp file holds dense tensors")
    check_tensor(name, dtype_name(tensor.dtype), tensor.shape)
