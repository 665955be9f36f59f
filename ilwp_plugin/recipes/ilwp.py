"""The recipe `ilwp`: kernels predicted from those of the layer before, in closed loop; the paper's method."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from ilwp_plugin.errors import ChainError, ConfigError, FormatError, TensorError, TrainingError, nearest
from ilwp_plugin.format.kernels import QuantizedLayer as StoredLayer
from ilwp_plugin.format.sections import ChainSection, CodedLayer, Section, storage_mode
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.method.loss import inter_layer_loss
from ilwp_plugin.method.prediction import PREDICTORS, gather_references
from ilwp_plugin.method.provenance import Origin, Provenance, given_references
from ilwp_plugin.method.quantization import (
    BITS,
    STEP_RULES,
    KernelPool,
    QuantizedLayer,
    as_kernels,
    reconstruct,
    stored_anchor,
)
from ilwp_plugin.method.rounding import Rounding, naming
from ilwp_plugin.models.chains import Chain, Chains, scope_matches
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.tensors import array_of, dtype_name, dtype_of
from ilwp_plugin.models.torch_network import network_of
from ilwp_plugin.recipes.base import (
    AUTO,
    RECIPES,
    Claims,
    Encoding,
    EncodingContext,
    Knobs,
    Options,
    Recipe,
    Request,
    Step,
    StepGroup,
    TrainingPart,
    Weight,
    WeightSource,
    check_finite,
    registered,
)
from ilwp_plugin.recipes.grid import StepOptions
from ilwp_plugin.recipes.layer_quantizer import quantize_layer
from ilwp_plugin.recipes.loss_weight import TrainingRun, automatic_loss_weight
from ilwp_plugin.registry import Registry

__all__ = [
    "RESIDUAL_SHARE",
    "ClosedLoop",
    "Ilwp",
    "IlwpClaims",
    "IlwpOptions",
    "IlwpTraining",
    "LayerOverride",
    "chains_of",
    "finite_kernels",
]

_log = logging.getLogger(__name__)

RESIDUAL_SHARE = 0.8
"""Step of the residuals in steps of the other weights: depthwise kernels are few, and errors in them cost more."""

_CLEARLY = 1.25
"""Ratio of squared errors (1 dB) from which on one is worse than the other, and not unlucky in rounding."""

Anchor = Literal["fp32", "fp16", "quantized"]
Bits = Annotated[int, Field(strict=True, ge=BITS[0], le=BITS[-1])]
Names = Annotated[tuple[Annotated[str, Field(strict=True, min_length=1)], ...], Field()]


def _name(registry: Registry[Any]) -> dict[str, Any]:
    """The schema of a name in a registry; validation looks it up when it is used, so plugins may register late."""
    return {"enum": sorted(registry)}


def _registered(field_name: str, value: object) -> object:
    registries: dict[str, Registry[Any]] = {"mode": PREDICTORS, "range": STEP_RULES}
    registry = registries[field_name]
    return registered(field_name, value, registry, [AUTO] if field_name == "mode" else [])


class LayerOverride(BaseModel):
    """What some layers do otherwise; None keeps what the configuration says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str | None = Field(default=None, json_schema_extra=_name(PREDICTORS))
    bits: Bits | None = None
    range: str | None = Field(default=None, json_schema_extra=_name(STEP_RULES))

    @field_validator("mode", "range", mode="before")
    @classmethod
    def _known(cls, value: object, info: Any) -> object:
        return None if value is None else _registered(info.field_name, value)


class IlwpOptions(StepOptions):
    """Of `Ilwp`."""

    mode: str = Field(
        default=AUTO,
        description="Prediction mode, or 'auto': for each layer the one that is best at the same step, in bits and "
        "error together.",
        json_schema_extra={"enum": [AUTO, *sorted(PREDICTORS)]},
    )
    bits: Bits | None = Field(
        default=8,
        description="Bits of a residual code, 2 to 8; null quantizes no chain. Under mode 'auto', and with "
        "`residual_step`, codes have as many bits as they need.",
    )
    loss_weight: Weight | Literal["auto"] = Field(
        default=AUTO,
        description="Weight of the inter-layer loss (the paper's lambda), a number >= 0, or 'auto', which scales it to "
        "the length of the training run, and is 0 where chains have a `rate` and other weights are quantized, too: "
        "that makes residuals small by itself, at less error.",
    )
    scope: Literal["depthwise", "conv"] = Field(
        default="depthwise",
        description="Which convolutions: the depthwise ones, or every one with kernels larger than 1x1, each slice of "
        "its weight counting as a kernel.",
    )
    anchor: Anchor = Field(
        default="quantized",
        description="How the first layer of a chain is stored. Weights of 16 bits are stored as they are under 'fp32'.",
    )
    range: str = Field(
        default="max",
        description="How the quantizer sets its step from the residuals of a layer: 'max' clips nothing, 'percentile' "
        "clips above the 99.9th, 'mse' minimises the squared error.",
        json_schema_extra=_name(STEP_RULES),
    )
    layers: Names | None = Field(
        default=None,
        description="The layers in the order in which they predict each other, instead of a traced order.",
    )
    align: bool = Field(
        default=False,
        description="Permute, flip and scale channels first, where that does not change what the network computes, so "
        "that kernels resemble their references. Needs example inputs and torch-pruning.",
        strict=True,
    )
    overrides: dict[str, LayerOverride] = Field(
        default_factory=dict,
        description="Other bits, mode or range for some layers: objects by layer, named as in the scopes. Of several "
        "that name a layer the last counts.",
    )
    residual_step: Step | Literal["auto"] | None = Field(
        default=AUTO,
        description="One absolute step for the residuals of all chains, in units of weight, instead of one for each "
        f"layer from its bits and range (null). 'auto' is {RESIDUAL_SHARE} of a `weight_step` that is a number, else a "
        "step that loses no more than 8-bit integers; where `bits` are given, it is null.",
    )
    rate_weight: Weight = Field(
        default=0.0,
        description="Rate-distortion optimised rounding of residuals: what a bit is worth, in squared steps; 0 rounds "
        "to the nearest.",
    )

    @field_validator("mode", "range", mode="before")
    @classmethod
    def _registered_name(cls, value: object, info: Any) -> object:
        return _registered(info.field_name, value)

    @property
    def keeps_origins(self) -> bool:
        """Whether kernels of a pruned model keep their references: where kernels are channels, and no search is asked
        for."""
        return self.scope == "depthwise" and self.mode in ("collocated", AUTO)

    def for_layer(self, layer: str) -> IlwpOptions:
        """The options of one layer: these with the last override that names the layer."""
        chosen = [override for pattern, override in self.overrides.items() if scope_matches(pattern, layer)]
        if not chosen:
            return self
        changes = chosen[-1].model_dump(exclude_none=True)
        if "bits" in changes and self.residual_step == AUTO:
            changes["residual_step"] = None
        return self.changed(**changes)


@dataclass(frozen=True)
class IlwpClaims(Claims):
    """Layers that predict each other.

    Attributes:
        chains: of the network.
    """

    chains: Chains = field(default_factory=lambda: Chains(()))


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a layer with a step of its own is predicted by.

    Attributes:
        reference: (kernels, taps) float32.
        zeros: (kernels, taps) bool, weights that stay 0; None for none.
        step: of the residuals, in units of weight.
    """

    reference: Tensor
    zeros: Tensor | None
    step: float

    def levels(self, weight: Tensor) -> Tensor:
        """(kernels, taps) float32: residuals in units of the step, with gradient to the weight."""
        residual = weight.float().reshape(self.reference.shape) - self.reference
        return (residual if self.zeros is None else residual.masked_fill(self.zeros, 0.0)) / self.step


class ClosedLoop:
    """The quantization of one chain, layer by layer, each predicted from what those before it are restored to.

    This is the one loop behind files, training and alignment.

    Args:
        options: `bits` is set.
        chain: the chain.
        steps: by key, steps of residuals instead of those of the options.
        references: by layer number, given ones; see `method.provenance.given_references`.
    """

    def __init__(
        self,
        options: IlwpOptions,
        chain: Chain,
        steps: Mapping[str, float] | None = None,
        references: Sequence[Tensor | None] | None = None,
    ) -> None:
        self.chain = chain
        self._options = [options.for_layer(layer) for layer in chain.layers]
        for number, key in enumerate(chain.keys):
            if steps and key in steps and self._options[number].residual_step is not None:
                self._options[number] = self._options[number].changed(residual_step=steps[key])
        self._references = references or [None] * len(chain.layers)

    def anchor(self, kernels: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The first layer as it is stored; None where it is quantized like the others."""
        return stored_anchor(kernels, dtype, self._options[0].anchor)

    def loses(self, number: int, kernels: Tensor, restored: Tensor, *, feedback: Any = None) -> bool:
        """Whether a layer that is predicted comes out clearly worse than without prediction, at the same bits or step.

        Args:
            number, kernels, feedback: see `quantize`.
            restored: (kernels, taps) float32.
        """
        options = self._options[number]
        if number == 0 or options.mode == "none" or (options.mode == AUTO and self._references[number] is None):
            return False
        nothing = KernelPool.of([], self.chain.taps)
        plain = reconstruct(quantize_layer(kernels, nothing, options, feedback=feedback), nothing.filled)
        errors = [float((kernels - values).double().square().sum()) for values in (restored, plain)]
        return errors[0] > _CLEARLY * errors[1]

    def quantize(
        self,
        number: int,
        kernels: Tensor,
        pool: KernelPool,
        *,
        feedback: Any = None,
        searched: Any = None,
    ) -> QuantizedLayer:
        """Quantize a layer.

        Args:
            number: in the chain, from 0.
            kernels: (kernels, taps) float32.
            pool: the layers before it, as they are restored.
            feedback, searched: see `quantize_layer`.
        """
        with naming(f"layer {self.chain.layers[number]!r}"):
            return quantize_layer(
                kernels,
                pool,
                self._options[number],
                self._references[number],
                feedback=feedback,
                searched=searched,
            )

    def restored(self, number: int, weight: Tensor, pool: KernelPool) -> tuple[Tensor, Prediction | None]:
        """A layer as the file restores it, given those before it.

        Returns:
            (kernels, taps) float32; and what its residuals are, where it has some.
        """
        kernels = as_kernels(weight, self.chain.taps)
        if number == 0:
            anchor = self.anchor(kernels, weight.dtype)
            if anchor is not None:
                return anchor.float(), None
        layer = self.quantize(number, kernels, pool)
        step = self._options[number].residual_step
        prediction = Prediction(gather_references(pool.filled, layer.references), layer.zeros, layer.step)
        return reconstruct(layer, pool.filled), prediction if isinstance(step, float) and layer.step > 0 else None


@RECIPES.register("ilwp")
class Ilwp(Recipe):
    """Chains of convolutions."""

    name: ClassVar[str] = "ilwp"
    options_type: ClassVar[type[Options]] = IlwpOptions
    options: IlwpOptions

    def quantizes(self) -> bool:
        return self.options.bits is not None

    def resolved(self, calibrated: bool, trains: bool = False) -> Recipe:
        if self.options.step_allocation != AUTO:
            return self
        return Ilwp(self.options.changed(step_allocation="measured" if calibrated else "equal"))

    def at(self, knobs: Knobs) -> Recipe | None:
        if self.options.residual_step != AUTO:
            return self
        return Ilwp(self.options.changed(residual_step=knobs.weight_step * RESIDUAL_SHARE))

    def claim(self, network: Network, free: Collection[str], request: Request) -> Claims:
        if self.options.bits is None:
            return IlwpClaims()
        taken = {name: "taken by another recipe" for name, layer in network.layers.items() if layer.weight not in free}
        chains = self.chains(network, request, taken)
        if not any(isinstance(value, Origin) for value in request.references.values()):
            chains.check_predicted(request.references)
        keys = tuple(key for chain in chains for key in chain.keys)
        return IlwpClaims(keys, chains.excluded, chains)

    def chains(self, network: Network, request: Request, taken: Mapping[str, str] | None = None) -> Chains:
        """The chains that the options find, whether they are quantized or only regularized."""
        chains = network.chains(
            scope=self.options.scope,
            target_scopes=self.options.target_scopes,
            ignored_scopes=self.options.ignored_scopes,
            layers=self.options.layers,
            example_inputs=request.example_inputs,
            taken=taken or {},
            required=request.required,
        )
        layers = [layer for chain in chains for layer in chain.layers]
        for pattern in self.options.overrides:
            if not any(scope_matches(pattern, layer) for layer in layers):
                raise ChainError(f"`overrides`: {pattern!r} matches no layer of a chain; {nearest(pattern, layers)}")
        return chains

    def step_groups(self, network: Network, claims: Claims) -> Sequence[StepGroup]:
        assert isinstance(claims, IlwpClaims)
        step = self.options.residual_step
        if step is None or not claims.tensors:
            return ()
        first = set() if self.options.anchor == "quantized" else {chain.keys[0] for chain in claims.chains}
        keys = tuple(key for key in claims.tensors if key not in first)
        return (StepGroup(step, keys, self.options.step_allocation == "measured", RESIDUAL_SHARE),)

    def encode(self, claims: Claims, context: EncodingContext) -> Encoding:
        assert isinstance(claims, IlwpClaims)
        return _IlwpEncoding(self.options, claims, context)

    def check(self, calibrated: bool, trains: bool = False) -> None:
        if self.options.step_allocation == "measured" and not calibrated:
            raise ConfigError(
                "step_allocation: 'measured' needs calibration inputs, and a weight_step or a residual_step"
            )

    def train(
        self,
        network: Network,
        claims: Claims,
        sources: Mapping[str, WeightSource],
        steps: Mapping[str, float],
        request: Request,
    ) -> TrainingPart | None:
        assert isinstance(claims, IlwpClaims)
        chains = claims.chains if claims.tensors else self.chains(network, request)  # the loss alone
        for chain in chains:
            for layer, key in zip(chain.layers, chain.keys, strict=True):
                if key not in sources:
                    raise TrainingError(
                        f"layer {layer!r}: its weight is shared with another layer, parametrized or masked by "
                        "something else already; remove that first, or leave the layer out with `ignored_scopes`"
                    )
        if not len(chains):
            return None
        return IlwpTraining(self.options, chains, bool(claims.tensors), sources, steps, request.references)


class _ChainEncoding:
    """One chain on its way into a file."""

    def __init__(self, options: IlwpOptions, chain: Chain, context: EncodingContext) -> None:
        self.chain, self._options, self._context = chain, options, context
        self._infos = [context.infos[key] for key in chain.keys]
        self._counts = [info.numel // chain.taps for info in self._infos]
        self._pruned = any(isinstance(value, Origin) for value in context.references.values())
        references: list[Tensor | None] = [None] * len(self._infos)
        if self._pruned and not options.keeps_origins:  # they are stored, the mode chooses
            self._pruned = False
        else:
            references = given_references(chain.layers, self._counts, context.references)
        self._given = references
        self._loop = ClosedLoop(options, chain, context.steps, references)
        self._pool = KernelPool(sum(self._counts), chain.taps)
        self._anchor: Tensor | None = None
        self._layers: list[CodedLayer] = []

    def quantize(self, key: str, weight: Tensor, feedback: Feedback | None) -> tuple[Tensor, str | None]:
        """The next layer: what it is restored to, and what the user has to be told of it."""
        number = len(self._layers)
        name, info = self.chain.layers[number], self._infos[number]
        if key != self.chain.keys[number]:
            raise ConfigError(
                f"layers: {key.removesuffix('.weight')!r} runs before a layer that is to predict it; calibration needs "
                "the layers of a chain in the order of execution"
            )
        if feedback is not None:
            weight = feedback.target(weight)
        kernels, shape = finite_kernels(info.name, weight, self.chain.taps), weight.shape
        self._anchor = self._loop.anchor(kernels, dtype_of(info.dtype)) if number == 0 else self._anchor
        if number == 0 and self._anchor is not None:
            if not bool(self._anchor.isfinite().all()):
                raise TensorError(f"tensor {info.name!r}: beyond the range of float16; choose anchor='fp32'")
            self._pool.append(self._anchor.float())
            self._layers.append(CodedLayer(info, None, "none"))
            return self._pool.layers[0].reshape(shape), _note(kernels, self._pool.layers[0], False)

        def rounded(reference: Tensor, step: float, rounding: Rounding) -> Tensor:
            assert feedback is not None
            return feedback.codes(kernels.reshape(shape), reference.reshape(shape), step, rounding)

        rounding = None if feedback is None else rounded
        layer = self._loop.quantize(
            number, kernels, self._pool, feedback=rounding, searched=partial(self._context.searched, name)
        )
        ancestral = self._given[number] if self._pruned else None
        known = None if ancestral is None else ancestral.numpy()
        mode = storage_mode(layer.references.cpu().numpy(), self._counts[:number], known) if number else "none"
        self._layers.append(CodedLayer(info, _stored(layer), mode))
        self._pool.append(reconstruct(layer, self._pool.filled))
        restored = self._pool.layers[number]
        loses = self._loop.loses(number, kernels, restored, feedback=rounding)
        return restored.reshape(shape), _note(kernels, restored, loses)

    @property
    def kernels(self) -> int:
        """Of the layer that was quantized last."""
        return self._counts[len(self._layers) - 1]

    def section(self) -> ChainSection:
        """Once all layers are quantized."""
        anchor = None if self._anchor is None else array_of(self._anchor)
        dtype = None if self._anchor is None else dtype_name(self._anchor.dtype)
        section = ChainSection(self.chain.kernel_size, anchor, dtype, self._layers, self._options.coder)
        try:
            section.check()
        except FormatError as error:
            raise TensorError(f"overflow: {error}; leave the layer out with `ignored_scopes`") from None
        return section


class _IlwpEncoding(Encoding):
    def __init__(self, options: IlwpOptions, claims: IlwpClaims, context: EncodingContext) -> None:
        super().__init__(claims, context)
        self._chains = [_ChainEncoding(options, chain, context) for chain in claims.chains]
        self._chain_of = {key: chain for chain in self._chains for key in chain.chain.keys}

    def quantize(self, key: str, value: Tensor, feedback: Feedback | None = None) -> Tensor:
        chain, layer = self._chain_of[key], key.removesuffix(".weight")
        restored, note = chain.quantize(key, value.detach(), feedback)
        self.done.add(self.context.infos[key].name)
        if note is not None:
            self.notes[layer] = note
        self.context.progress(layer, chain.kernels)
        return restored.to(value.dtype)

    def sections(self) -> Sequence[Section]:
        return [chain.section() for chain in self._chains]


def _note(kernels: Tensor, restored: Tensor, loses: bool) -> str | None:
    """What the user has to be told of a layer that is restored to something else."""
    power, error = float(kernels.double().square().sum()), float((restored - kernels).double().square().sum())
    if power and not bool(restored.any()):
        return "becomes 0 as a whole"
    if error > power:
        return "comes out worse than zeros would"
    return "comes out worse than without prediction at the same bits" if loses else None


def _stored(layer: QuantizedLayer) -> StoredLayer:
    zeros = None if layer.zeros is None else layer.zeros.cpu().numpy()
    return StoredLayer(layer.codes.cpu().numpy(), layer.step, layer.bits, layer.references.cpu().numpy(), zeros)


def finite_kernels(name: str, weight: Tensor, taps: int) -> Tensor:
    """A weight as kernels on the CPU, see `method.quantization.as_kernels`. Raises TensorError on NaN or infinity."""
    check_finite(name, weight)
    kernels = as_kernels(weight.cpu(), taps)
    if not bool(kernels.isfinite().all()):
        raise TensorError(f"tensor {name!r}: values beyond the range of float32")
    return kernels


class IlwpTraining(TrainingPart):
    """Chains while a model trains: the inter-layer loss, and kernels as the file will restore them.

    A layer is predicted from what the layers before it were restored to *in the same pass*, so masks that are drawn
    anew in each pass are followed exactly. A layer that has not been called in this pass (another execution order, a
    part of the model alone) is taken from its source.

    Args:
        options: of the recipe.
        chains: of the network.
        quantizes: False for the loss alone.
        sources: by key, of all weights.
        steps: by key, steps of residuals.
        references: by layer, given ones; see `compress`.

    Attributes:
        chains: the layers that take part.
        predicted_weights: Z, the number of weights that the loss is the mean of.
        loss_weight: may be changed at any time; 0 until `choose_loss_weight`, if it is automatic.
        beside_rates: whether other recipes train with a rate, too.
    """

    def __init__(
        self,
        options: IlwpOptions,
        chains: Chains,
        quantizes: bool,
        sources: Mapping[str, WeightSource],
        steps: Mapping[str, float],
        references: Mapping[str, Tensor] | Provenance | None = None,
    ) -> None:
        self._keys = tuple(key for chain in chains for key in chain.keys)
        super().__init__({key: sources[key] for key in self._keys}, options.rate if quantizes else 0.0)
        self.chains, self._options, self._quantizes = chains, options, quantizes
        self._steps = {key: steps[key] for key in self._keys if key in steps}
        self._place = {key: (chain, number) for chain in chains for number, key in enumerate(chain.keys)}
        pruned = any(isinstance(value, Origin) for value in (references or {}).values())
        if pruned and options.scope != "depthwise":  # the origins are of channels, the kernels are slices of them
            references = {}
        self._given = _given(chains, self.sources, references or {})
        self._pairs = self._given if references else None
        self._used = _none_given(self._given) if pruned and not options.keeps_origins else self._given
        self._make_loops()
        self._called: set[str] = set()
        self._restored: dict[str, Tensor] = {}
        self._predictions: dict[str, Prediction | None] = {}
        self.predicted_weights = self._count_predicted()
        self.loss_weight = 0.0 if options.loss_weight == AUTO else float(options.loss_weight)
        self.beside_others = False

    def _make_loops(self) -> None:
        self._loops = {
            chain.layers: ClosedLoop(self._options, chain, self._steps, used)
            for chain, used in zip(self.chains, self._used, strict=True)
        }

    def _count_predicted(self) -> int:
        total = 0
        for chain, given in zip(self.chains, self._given, strict=True):
            for key, index in zip(chain.keys[1:], given[1:], strict=True):
                numel = self.sources[key].weight().numel()
                total += numel if index is None else int((index >= 0).sum()) * chain.taps
        return total

    @property
    def hooked(self) -> tuple[str, ...]:
        return self._keys if self._quantizes else ()

    def restored(self, key: str, weight: Tensor) -> Tensor:
        chain, _ = self._place[key]
        if key in self._called:  # a new pass has begun: what is known may be outdated
            self._forget(chain)
        self._called.add(key)
        return self._restore(key, weight).to(weight.dtype).reshape(weight.shape)

    def reconstructed(self) -> dict[str, Tensor]:
        for chain in self.chains:
            self._forget(chain)
        return super().reconstructed()

    def after_step(self) -> None:
        super().after_step()
        for chain in self.chains:  # weights have moved; what predicts them is found anew, as after a resumed checkpoint
            self._forget(chain)

    def _forget(self, chain: Chain) -> None:
        for key in chain.keys:
            self._restored.pop(key, None)
            self._called.discard(key)

    def _restore(self, key: str, weight: Tensor) -> Tensor:
        """(kernels, taps) float32."""
        chain, number = self._place[key]
        for earlier in chain.keys[:number]:
            if earlier not in self._restored:
                self._restore(earlier, self.sources[earlier].weight().detach())
        pool = KernelPool.of([self._restored[k] for k in chain.keys[:number]], chain.taps, weight.device)
        loop = self._loops[chain.layers]
        self._restored[key], self._predictions[key] = loop.restored(number, weight, pool)
        return self._restored[key]

    def levels(self) -> Mapping[str, Tensor]:
        """Of layers whose residuals have a step of their own; references are of the last pass since a step."""
        found: dict[str, Tensor] = {}
        if not self.enabled:  # no pass has told the references
            for chain in self.chains:
                self._forget(chain)
        for key in self._keys:
            weight = self.sources[key].weight()
            if key not in self._restored:
                with torch.no_grad():
                    self._restore(key, weight.detach())
            prediction = self._predictions[key]
            if prediction is not None:
                found[key] = prediction.levels(weight)
        return found

    def inter_layer_loss(self) -> Tensor:
        """The loss without its weight: the mean |residual| of the predicted weights, a float32 scalar.

        It is always that of the collocated kernels (or of given references), whatever the mode, since it is what makes
        them predict each other. The weights are the raw ones, not what they are restored to.
        """
        weights = [[self.sources[key].weight() for key in chain.keys] for chain in self.chains]
        pruned = any(source.pruned for source in self.sources.values())
        with torch.autocast(weights[0][0].device.type, enabled=False):
            return inter_layer_loss(weights, self._pairs, pruned=pruned)

    def loss(self) -> Tensor | None:
        weight = self.loss_weight * self.loss_factor
        return weight * self.inter_layer_loss() if weight else None

    @property
    def needs_no_loss(self) -> bool:
        """Whether an automatic loss weight is 0.

        Where chains have a rate and other weights are quantized, too, the loss costs more accuracy than it gives;
        chains alone become smaller with it at the same accuracy (docs/how_small.md, docs/recipes.md).
        """
        return self.rate > 0 and self.beside_others

    def choose_loss_weight(self, run: TrainingRun | None, model: nn.Module | None, mend: str) -> None:
        """Choose the automatic weight, where the options ask for it; see `recipes.loss_weight`.

        Args:
            run: the training to come.
            model: one that is trained already is pulled less far.
            mend: what to do where `run` is None, for the message.

        Raises:
            TrainingError: the weight is automatic, and there is no run.
        """
        if self._options.loss_weight != AUTO:
            return
        if self.needs_no_loss:
            _log.info("inter-layer loss weight 0 (automatic: rate=%g makes residuals small)", self.rate)
            return
        if run is None:
            raise TrainingError(mend)
        run = run if model is None else run.for_network(model)
        with torch.no_grad():
            residual = float(self.inter_layer_loss())
        self.loss_weight = automatic_loss_weight(run, self.predicted_weights, residual)
        _log.info(
            "inter-layer loss weight %.4g (automatic: %d predicted weights, mean residual %.4g, reach of the run %.4g)",
            self.loss_weight,
            self.predicted_weights,
            residual,
            run.reach,
        )

    def state(self) -> dict[str, Any]:
        return {**super().state(), "steps": dict(self._steps), "loss_weight": self.loss_weight}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._steps, self.loss_weight = dict(state["steps"]), float(state["loss_weight"])
        self._make_loops()

    def encoding_steps(self) -> dict[str, float]:
        return dict(self._steps)


def _given(
    chains: Chains, sources: Mapping[str, WeightSource], references: Mapping[str, Tensor] | Provenance
) -> list[list[Tensor | None]]:
    """Given references, checked, by chain and layer; see `method.provenance.given_references`."""
    if not any(isinstance(value, Origin) for value in references.values()):
        chains.check_predicted(references)
    return [
        given_references(chain.layers, [sources[key].weight().numel() // chain.taps for key in chain.keys], references)
        for chain in chains
    ]


def _none_given(references: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    return [[None] * len(chain) for chain in references]


def chains_of(model: Any, options: IlwpOptions, *, example_inputs: Any = None, required: bool = True) -> Chains:
    """The chains that options find in a module or a state dict; see `models.chains`."""
    return Ilwp(options).chains(network_of(model), Request(example_inputs, required=required))
