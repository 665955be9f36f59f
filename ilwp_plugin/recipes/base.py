"""What a recipe is: which tensors it takes, how it trains them, how it encodes them.

A recipe is one file in this folder and one entry in `RECIPES`. It then works in Python, in JSON, under the toolkits,
on the command line and in `ilwp compare`. Every tensor has one owner: recipes claim in the order of the configuration,
each of what the earlier ones have left.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from ilwp_plugin.errors import ConfigError, StepError, TensorError, nearest
from ilwp_plugin.format.coding import CODERS
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.format.sections import Section
from ilwp_plugin.format.spool import Spool
from ilwp_plugin.method.entropy_model import CodeModels
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.method.grid import pieces
from ilwp_plugin.method.quantization import straight_through
from ilwp_plugin.models.chains import matcher
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.tensors import dtype_name
from ilwp_plugin.registry import Registry

__all__ = [
    "AUTO",
    "RECIPES",
    "Claims",
    "Encoding",
    "EncodingContext",
    "Knobs",
    "NormFit",
    "Options",
    "Recipe",
    "Request",
    "StepGroup",
    "TrainingPart",
    "WeightEncoding",
    "WeightRecipe",
    "WeightSource",
    "WeightTraining",
    "check_finite",
    "claimed_weights",
    "registered",
    "kernels_of",
]

AUTO: Literal["auto"] = "auto"
"""What an option is where the recipe chooses."""

Step = Annotated[float, Field(strict=True, gt=0, le=float(torch.finfo(torch.float32).max), allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Names = Annotated[tuple[Annotated[str, Field(strict=True, min_length=1)], ...], Field()]

Self = TypeVar("Self", bound="Options")


def registered(field_name: str, value: object, registry: Registry[Any], others: Sequence[str] = ()) -> object:
    """A name that is registered, or one of some others.

    Args:
        field_name: of the option, for the message.
        value: the name.
        registry: that has to know it.
        others: names besides.

    Raises:
        ConfigError: it is none of them.
    """
    if not isinstance(value, str) or (value not in others and value not in registry):
        raise ConfigError(f"{field_name}: {value!r} is no {registry.what}; {nearest(str(value), [*registry, *others])}")
    return value


class Options(BaseModel):
    """What every recipe can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_scopes: Names = Field(
        default=(),
        description="Layers to take, by name, by the name of a module that holds them, or by '{re}regular expression'; "
        "empty takes all.",
    )
    ignored_scopes: Names = Field(default=(), description="Layers to leave out, named likewise.")
    coder: str = Field(
        default=AUTO,
        description="Entropy coder of all codes: huffman (the paper's), ans, ans-classes (blocks of weights that are "
        "alike share a table), lzma, or 'auto', the smallest of the first three for each group of layers.",
    )

    def outside_scopes(self, names: Iterable[str]) -> dict[str, str]:
        """Why the scopes leave out some of these layers or norms, by name."""
        names = list(names)
        ignored = matcher(self.ignored_scopes, names, "ignored_scopes", strict=False)
        targeted = matcher(self.target_scopes, names, "target_scopes", strict=False)
        left = {name: "not named by `target_scopes`" for name in names if self.target_scopes and not targeted(name)}
        return {**left, **{name: "named by `ignored_scopes`" for name in names if ignored(name)}}

    @field_validator("coder", mode="before")
    @classmethod
    def _known_coder(cls, value: object) -> object:
        return registered("coder", value, CODERS, [AUTO])

    def changed(self: Self, **changes: Any) -> Self:
        """A copy with some fields changed; they are valid already."""
        return self.model_copy(update=changes)


@dataclass(frozen=True)
class Knobs:
    """What a search for a target turns.

    Attributes:
        weight_step: mean step of the weights outside chains, in units of weight.
        dead_zone: weights become 0 below this many steps.
    """

    weight_step: float
    dead_zone: float


@dataclass(frozen=True)
class Request:
    """What the caller has given besides the model.

    Attributes:
        example_inputs: for one forward pass that finds the execution order.
        references: by layer, given references or origins; see `compress`.
        required: whether it is an error if the recipe finds nothing, since nothing else is to be compressed.
        calibrated: whether there will be calibration inputs.
    """

    example_inputs: Any = None
    references: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False
    calibrated: bool = False


@dataclass(frozen=True)
class Claims:
    """What a recipe takes of a network.

    Attributes:
        tensors: keys, in the order in which they have to be encoded.
        left: why it left what it could have taken, by layer.
    """

    tensors: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StepGroup:
    """Weights whose steps are chosen together.

    Attributes:
        mean: geometric mean of their steps; AUTO for one that is safe.
        keys: of the weights.
        measured: whether each gets a step of its own, by what its errors do to the outputs.
        share: of a mean step that is chosen for several groups together.
        least: by key, the smallest step that a weight may have, whatever the mean.
    """

    mean: float | Literal["auto"]
    keys: tuple[str, ...]
    measured: bool
    share: float = 1.0
    least: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NormFit:
    """A batch norm as it is to be, (channels,) float64 each.

    Attributes:
        scale: what the inputs are multiplied with.
        mean_input: mean of the inputs.
        mean_output: what that mean is mapped to.
        spread: standard deviation of the outputs.
    """

    scale: Tensor
    mean_input: Tensor
    mean_output: Tensor
    spread: Tensor


@dataclass(frozen=True)
class EncodingContext:
    """What an encoding works with.

    Attributes:
        network: the model.
        infos: by key, the entry of the file that holds the tensor; tensors that share memory share it.
        steps: by key, steps that were chosen for this model, in units of weight.
        references: see `Request`.
        progress: is told the layer and how many of its rows or kernels are done.
        searched: is told the progress of a search within a layer, likewise.
    """

    network: Network
    infos: Mapping[str, TensorInfo]
    steps: Mapping[str, float] = field(default_factory=dict)
    references: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[str, int], None] = lambda layer, count: None
    searched: Callable[[str, int], None] = lambda layer, count: None


class Encoding(ABC):
    """One pass of a recipe over its claims: tensors in, sections out.

    Args:
        claims: of the recipe.
        context: what it works with.

    Attributes:
        done: keys that are encoded.
        notes: what the user has to be told, by layer.
    """

    def __init__(self, claims: Claims, context: EncodingContext) -> None:
        self.claims, self.context = claims, context
        self.done: set[str] = set()
        self.notes: dict[str, str] = {}

    @abstractmethod
    def quantize(self, key: str, value: Tensor, feedback: Feedback | None = None) -> Tensor:
        """Encode a tensor of the claims.

        Args:
            key: of the tensor.
            value: as the model has it now.
            feedback: what is known of its layer's inputs; None rounds it alone.

        Returns:
            What it is restored to, in its shape and dtype.
        """

    def norm(self, name: str, fit: NormFit) -> Mapping[str, Tensor]:
        """Encode a batch norm; returns what it is restored to, by role. NotImplementedError: the recipe claims none."""
        raise NotImplementedError(f"{type(self).__name__} claims no norms")

    def finish(self, state: Mapping[str, Tensor]) -> None:
        """Encode what calibration did not reach."""
        for key in self.claims.tensors:
            if self.context.infos[key].name not in self.done:
                self.quantize(key, state[key])

    @abstractmethod
    def sections(self) -> Sequence[Section]:
        """What goes into the file."""


class WeightSource(Protocol):
    """Where a weight is found outside a forward pass."""

    @property
    def pruned(self) -> bool:
        """Whether masks set some of it to 0."""
        ...

    def weight(self) -> Tensor:
        """The weight as the recipe sees it in evaluation: the parameter with all masks applied."""
        ...


class TrainingPart(ABC):
    """A recipe while a model trains. The same for every toolkit: an adapter hooks `weight` into the model.

    Args:
        sources: by key, where the weights of the claims are found.

    Attributes:
        enabled: False passes weights through.
        loss_factor: of a schedule; multiplies what `loss` adds, and the rate.
        rate: weight of the bits of its codes in the loss; 0 without a rate term.
        codes: models of what its codes cost.
        adaptive: whether `fine_tune` takes AdamW for it, where nobody says otherwise.
    """

    adaptive: bool = False

    def __init__(self, sources: Mapping[str, WeightSource], rate: float = 0.0) -> None:
        self.sources, self.enabled, self.loss_factor = dict(sources), True, 1.0
        self.rate, self.codes = rate, CodeModels()

    @property
    def hooked(self) -> tuple[str, ...]:
        """Keys of the weights that the model computes with through `weight`."""
        return tuple(self.sources)

    @abstractmethod
    def restored(self, key: str, weight: Tensor) -> Tensor:
        """What the file restores a weight to, in its shape and dtype; without gradient."""

    def weight(self, key: str, weight: Tensor) -> Tensor:
        """What the model computes with. By default the restored weight, whose gradient goes straight through."""
        if not self.enabled:
            return weight
        with torch.inference_mode(False), torch.no_grad():
            restored = self.restored(key, weight.detach())
        return straight_through(weight, restored)

    def reconstructed(self) -> dict[str, Tensor]:
        """By key, what the file restores the weights to as they are now."""
        with torch.no_grad():
            return {key: self.restored(key, self.sources[key].weight().detach()) for key in self.hooked}

    def loss(self) -> Tensor | None:
        """What is added to the loss; None for nothing."""
        return None

    def levels(self) -> Mapping[str, Tensor]:
        """By key, weights in units of their step, less what predicts them, with gradient: what the rate is taken of.

        Of weights whose step follows themselves there is none: fewer bits would only make it smaller.
        """
        return {}

    def parameters(self) -> Iterable[nn.Parameter]:
        """What the optimizer has to train besides the model."""
        return ()

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  (most recipes have nothing to do)
        """An epoch begins, counted from 0."""

    def after_step(self) -> None:
        """The optimizer has made a step."""
        self.codes.after_step()

    def finish(self) -> None:  # noqa: B027
        """Training is over: from now on the model computes with what the file restores."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors, numbers, strings, and containers of them."""
        return {"codes": self.codes.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.codes.load_state(state["codes"])

    def statistics(self) -> dict[str, float]:
        """Numbers for reports."""
        return {}

    def encoding_steps(self) -> dict[str, float]:
        """By key, the steps with which a file restores what the model computes with."""
        return {}

    def encoder(self) -> Recipe | None:
        """The recipe that encodes what the model computes with, where that is more than its options tell: one that has
        learned codebooks. None for the recipe itself."""
        return None


class Recipe(ABC):
    """Options, and what to do with them.

    Attributes:
        name: in configurations.
        options_type: model of the options.
        options: of this recipe.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[Options]]

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def claim(self, network: Network, free: Collection[str], request: Request) -> Claims:
        """What the recipe takes.

        Args:
            network: the model.
            free: keys of tensors that no earlier recipe has claimed.
            request: what the caller has given.
        """

    @abstractmethod
    def encode(self, claims: Claims, context: EncodingContext) -> Encoding:
        """Begin to encode the claims."""

    def train(
        self,
        network: Network,
        claims: Claims,
        sources: Mapping[str, WeightSource],
        steps: Mapping[str, float],
        request: Request,
    ) -> TrainingPart | None:
        """The recipe's part in a training; None where it has none.

        Args:
            network: the model.
            claims: of the recipe.
            sources: by key, where the weights that training can reach are found.
            steps: by key, those that were chosen for the model.
            request: what the caller has given.
        """
        return None

    def check(self, calibrated: bool, trains: bool = False) -> None:  # noqa: B027
        """Raises ConfigError where the options need calibration inputs, or training, and there are none."""

    def resolved(self, calibrated: bool, trains: bool = False) -> Recipe:
        """With its automatic settings chosen.

        Args:
            calibrated: whether there are calibration inputs.
            trains: whether the model will train with them.
        """
        return self

    def at(self, knobs: Knobs) -> Recipe | None:
        """The same with other steps, for a search; None where it has no steps that could be searched."""
        return None

    def step_groups(self, network: Network, claims: Claims) -> Sequence[StepGroup]:
        """The weights whose steps are chosen for the model: safe ones, or measured ones."""
        return ()

    def quantizes(self) -> bool:
        """Whether it changes anything at all."""
        return True


RECIPES: Registry[type[Recipe]] = Registry("recipe")
"""Recipes by name."""


def claimed_weights(
    options: Options, network: Network, free: Collection[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Keys of the free weights of two dimensions or more that the scopes allow, and why others are left, by layer.

    Args:
        options: with the scopes.
        network: the model.
        free: keys that nobody has claimed.
    """
    free_layers = {name: layer for name, layer in network.layers.items() if layer.weight in free}
    left = options.outside_scopes(free_layers)
    return tuple(layer.weight for name, layer in free_layers.items() if name not in left), left


def kernels_of(weight: Tensor) -> int:
    """What progress is counted in: kernels of convolutions, rows of other tensors."""
    return math.prod(weight.shape[:2] if weight.dim() in (3, 4, 5) else weight.shape[:1])


def check_finite(name: str, weight: Tensor) -> None:
    """Raises TensorError where a tensor holds NaN or infinity."""
    bad = sum(int((~piece.isfinite()).sum()) for piece in pieces(weight))
    if bad:
        raise TensorError(
            f"tensor {name!r}: {bad} of its {weight.numel()} values are NaN or infinite; mend the model, or leave the "
            "layer out with `ignored_scopes`"
        )


_MANY_WEIGHTS = 1 << 26
"""Of a model whose codes are kept in a file until they are encoded."""


class WeightEncoding(Encoding):
    """Of a recipe that treats every weight for itself; see `WeightRecipe`."""

    def __init__(self, recipe: WeightRecipe, claims: Claims, context: EncodingContext) -> None:
        super().__init__(claims, context)
        self._recipe = recipe
        self._stored: dict[str, tuple[TensorInfo, Any]] = {}
        weights = sum(context.network.state[key].numel() for key in claims.tensors if key in context.network.state)
        self._spool = Spool() if weights > _MANY_WEIGHTS else None

    def quantize(self, key: str, value: Tensor, feedback: Feedback | None = None) -> Tensor:
        info = self.context.infos[key]
        check_finite(info.name, value)
        stored, restored = self._recipe.quantize(key, value.detach(), self.context.steps.get(key), feedback)
        if self._spool is not None and isinstance(stored, IntegerTensor):
            stored = replace(stored, codes=self._spool.store(stored.codes))
        self._stored[info.name] = (info, stored)
        self.done.add(info.name)
        layer = self.context.network.layer_of(key)
        bias = layer in self.context.network.layers and self.context.network.layers[layer].bias == key
        if not bias and not any(bool(piece.any()) for piece in pieces(restored)) and bool(value.any()):
            self.notes[layer] = "becomes 0 as a whole"
        self.context.progress(key, kernels_of(value))
        restored = restored.to(value.dtype).reshape(value.shape)
        if not all(bool(piece.isfinite().all()) for piece in pieces(restored)):
            raise TensorError(
                f"tensor {info.name!r}: overflow: values up to {float(value.abs().max()):.3g} are rounded beyond the "
                f"range of {dtype_name(value.dtype)}; leave the layer out with `ignored_scopes`"
            )
        return restored

    def finish(self, state: Mapping[str, Tensor]) -> None:
        """See `Encoding.finish`. Raises StepError, of the weight that needs the largest step, and names the others."""
        refused: dict[str, StepError] = {}
        for key in self.claims.tensors:
            name = self.context.infos[key].name
            if name not in self.done:
                try:
                    self.quantize(key, state[key])
                except StepError as error:
                    refused[name] = error
        if refused:
            worst = max(refused, key=lambda name: refused[name].smallest)
            others = [repr(name) for name in refused if name != worst]
            more = f"; too fine for {len(others)} more, too: {', '.join(others[:9])}" if others else ""
            raise StepError(f"{refused[worst]}{more}", refused[worst].smallest)

    def sections(self) -> Sequence[Section]:
        order = dict.fromkeys(self.context.infos[key].name for key in self.claims.tensors)
        entries = [self._stored[name] for name in order if name in self._stored]
        return self._recipe.sections(entries) if entries else ()


class WeightTraining(TrainingPart):
    """Of a `WeightRecipe`: each weight is what the recipe restores it to."""

    def __init__(
        self, recipe: WeightRecipe, sources: Mapping[str, WeightSource], steps: Mapping[str, float], rate: float = 0.0
    ) -> None:
        super().__init__(sources, rate)
        self._recipe, self._steps = recipe, dict(steps)

    def restored(self, key: str, weight: Tensor) -> Tensor:
        return self._recipe.restored(key, weight, self._steps.get(key))

    def state(self) -> dict[str, Any]:
        return {**super().state(), "steps": dict(self._steps)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self._steps = dict(state["steps"])

    def encoding_steps(self) -> dict[str, float]:
        return dict(self._steps)


class WeightRecipe(Recipe):
    """A recipe that treats every weight for itself. Two methods make a whole recipe: `quantize` and `sections`."""

    @abstractmethod
    def quantize(self, key: str, weight: Tensor, step: float | None, feedback: Feedback | None) -> tuple[Any, Tensor]:
        """Encode a weight.

        Args:
            key: of the weight.
            weight: floating-point, finite, on any device.
            step: that was chosen for it, if the recipe has `step_groups`.
            feedback: see `Encoding.quantize`.

        Returns:
            What `sections` stores, and the restored values: float32 in the weight's shape, on its device.
        """

    @abstractmethod
    def sections(self, entries: Sequence[tuple[TensorInfo, Any]]) -> Sequence[Section]:
        """The sections that hold what `quantize` has given, with the entries of the directory."""

    def restored(self, key: str, weight: Tensor, step: float | None) -> Tensor:
        """What a weight is restored to, for training; in its shape and dtype."""
        return self.quantize(key, weight, step, None)[1].to(weight.dtype)

    def claim(self, network: Network, free: Collection[str], request: Request) -> Claims:
        """Every weight of two dimensions or more that the scopes allow."""
        return Claims(*claimed_weights(self.options, network, free))

    def encode(self, claims: Claims, context: EncodingContext) -> Encoding:
        return WeightEncoding(self, claims, context)

    def train(
        self,
        network: Network,
        claims: Claims,
        sources: Mapping[str, WeightSource],
        steps: Mapping[str, float],
        request: Request,
    ) -> TrainingPart | None:
        own = {key: sources[key] for key in claims.tensors if key in sources}
        return WeightTraining(self, own, {key: steps[key] for key in own if key in steps}) if own else None
