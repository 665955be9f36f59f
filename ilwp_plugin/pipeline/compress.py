"""`compress`: from a model to its file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ilwp_plugin import toolkits
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError, warn
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.method.provenance import Origin, Provenance
from ilwp_plugin.models.borrowing import copied
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.surroundings import exact
from ilwp_plugin.models.torch_network import Model, network_of
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, Pick, device_of, read_inputs
from ilwp_plugin.pipeline.file import CompressedModel, assembled, structure_section
from ilwp_plugin.pipeline.plan import Plan, Progress, make_plan, overlooked, plan_of_claims
from ilwp_plugin.pipeline.quantize import few, quantize
from ilwp_plugin.pipeline.trials import Met, meet_target
from ilwp_plugin.recipes.base import Claims, Recipe, Request, WeightRecipe
from ilwp_plugin.recipes.given import Given

__all__ = ["compress", "estimate", "trained_file"]


def compress(
    model: Model | Network,
    config: IlwpConfig | Mapping[str, Any] | str | None = None,
    *,
    example_inputs: Any = None,
    references: Mapping[str, Tensor] | Provenance | None = None,
    quantized: Mapping[str, IntegerTensor] | None = None,
    calibration: Any = None,
    inputs: Pick | None = None,
    evaluate: Callable[[Any], float] | None = None,
    evaluation: str | None = None,
    max_drop: float | None = None,
    target_bytes: int | None = None,
    target_bits_per_weight: float | None = None,
    resume: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CompressedModel:
    """Make a model small: one file that restores it whole.

    Without data every weight goes on a grid that loses no more than 8-bit integers do. With calibration inputs it is
    several times smaller at about the same outputs. With one of `max_drop`, `target_bytes` and `target_bits_per_weight`
    the steps are searched: for the smallest file within the drop, or the best one within the size; some fifteen files
    are tried.

    Args:
        model: a module, or a state dict, whose order then stands for the execution order. Of a module that a toolkit
            has quantized, the integer codes are stored as they are, and the scales of its activations along.
        config: an IlwpConfig, its fields, or the name of a preset; IlwpConfig() if None.
        example_inputs: for one forward pass that finds the execution order, where a symbolic trace does not; and for
            alignment, which works on a copy: the file then holds other weights, which compute the same. The first of
            `calibration`, if there are none.
        references: by layer name, (kernels,) integers each: kernel of the layer before that predicts each kernel, or -1
            for none; instead of the configured mode, for these layers. Or, of a pruned model, the origins of its
            channels (`method.provenance`): they are stored, and under mode collocated each kernel keeps its reference.
        quantized: by name of tensor or layer, weights that a toolkit has quantized already: they are stored as these
            codes, without loss, in the order given (depthwise layers are predicted by the one before).
        calibration: what the model is called with, without labels: a tensor, a list or tuple of batches, a DataLoader
            or a generator, read once; `calibration_inputs` has the rules. Weights are then quantized with error
            feedback, and batch norms and biases follow. Needs a module.
        inputs: takes a batch of `calibration` and returns what the model gets: `lambda batch: batch[0]` for a loader of
            (x, y).
        evaluate: what a model scores, more is better; called with copies of the module in eval mode, of an ONNX model
            with sessions of ONNX Runtime.
        evaluation: a name of what `evaluate` measures, for `resume`: trials of another name are another search. Without
            a name one of the trials is evaluated again, and has to score the same.
        max_drop: how much less than the model itself the restored one may score.
        target_bytes: the most that the whole file may take.
        target_bits_per_weight: the same, in bits of the whole file for each element of the model's parameters.
        resume: a file that keeps the trials of the search, which goes on with them when it is started again. It belongs
            to one model, configuration, target, metadata and calibration inputs, and is locked by `resume` + ".lock".
        metadata: a JSON object to store along.
        progress: is told the progress.

    Raises:
        ChainError: the model has no chain, and nothing else is to be quantized.
        TensorError: a tensor cannot be stored, or holds NaN or infinity where it is quantized, or is not what
            `quantized` restores to.
        ConfigError: nothing to quantize, or a configuration that does not fit the arguments.
        CalibrationError: the model cannot be calibrated with these inputs, or the target cannot be met.
        MissingDependencyError: `config.align` without torch-pruning.
    """
    config = IlwpConfig.of(config)
    own = config.ilwp()
    alignment = None
    if isinstance(model, nn.Module):
        model, quantized, metadata = _plain(model, example_inputs, quantized, metadata)
    examples = _examples(model, calibration, inputs)
    if example_inputs is None and isinstance(model, nn.Module) and examples is not None:
        example_inputs = examples.part(0, TRACED_EXAMPLES, device_of(unwrap(model)))
    with exact():
        if own is not None and own.align:
            if references or quantized:
                raise ConfigError("align=True makes the collocated kernels the references; give no references or codes")
            model, alignment = _aligned(model, config, example_inputs)
        job = _Job.of(model, config, example_inputs, references, quantized, examples, progress)
        recipes: list[Recipe] | None = None
        found: Met | None = None
        targets = {"max_drop": max_drop, "target_bytes": target_bytes, "target_bits_per_weight": target_bits_per_weight}
        if any(target is not None for target in targets.values()):
            found = meet_target(
                job,
                targets,
                evaluate=evaluate,
                evaluation=evaluation,
                resume=resume,
                metadata=metadata,
                progress=progress,
            )
            recipes = job.at(found.knobs)
        compressed = job.run(recipes, metadata, progress).read_back()
        if found is not None:
            found.check(compressed)
        job.say(compressed)
        compressed.alignment = alignment
        return compressed


def _plain(
    model: nn.Module,
    example_inputs: Any,
    quantized: Mapping[str, IntegerTensor] | None,
    metadata: Mapping[str, Any] | None,
) -> tuple[nn.Module, Mapping[str, IntegerTensor] | None, Mapping[str, Any] | None]:
    """What a toolkit has changed a model from, its integer codes, and what it takes to make the changed one again."""
    plain = toolkits.function_for(unwrap(model), "plain_model")
    if plain is None:
        return model, quantized, metadata
    module, codes, own = plain(unwrap(model), example_inputs)
    return module, {**codes, **(quantized or {})}, {**own, **(metadata or {})}


def estimate(model: Model, config: IlwpConfig | Mapping[str, Any] | str | None = None, **options: Any) -> Ledger:
    """The exact ledger of the file that `compress` with the same arguments would write, without writing it."""
    return compress(model, config, **options).ledger


@dataclass(frozen=True, eq=False)
class _Job:
    """A plan and what it takes to run it.

    Attributes:
        plan: what is claimed.
        calibration: calibration inputs.
        trained: whether the weights have been trained for their codes, which then stay.
    """

    plan: Plan
    calibration: CalibrationInputs | None
    trained: bool = False

    @classmethod
    def of(
        cls,
        model: Model | Network,
        config: IlwpConfig,
        example_inputs: Any,
        references: Mapping[str, Tensor] | Provenance | None,
        quantized: Mapping[str, IntegerTensor] | None,
        calibration: CalibrationInputs | None,
        progress: Progress | None,
    ) -> _Job:
        network = network_of(model)
        calibrated = calibration is not None
        recipes = [recipe.resolved(calibrated) for recipe in config.recipe_list()]
        for recipe in recipes:
            recipe.check(calibrated)
        if not quantized and config.preset != "lossless" and not any(recipe.quantizes() for recipe in recipes):
            raise ConfigError(
                "the configuration quantizes nothing; set `bits` to 2..8, or a `weight_step`; preset 'lossless' is for "
                "a file in which no value changes"
            )
        given = [Given(quantized)] if quantized else []
        chains_only = not quantized and sum(recipe.quantizes() for recipe in recipes) == 1
        request = Request(example_inputs, references or {}, chains_only, calibrated)
        plan = make_plan(network, [*given, *recipes], request, calibration, progress)
        return cls(plan, calibration)

    def at(self, knobs: Any) -> list[Recipe]:
        """The recipes at other steps."""
        return [recipe.at(knobs) or recipe for recipe in self.plan.recipes]

    def run(
        self, recipes: list[Recipe] | None, metadata: Mapping[str, Any] | None, progress: Progress | None = None
    ) -> CompressedModel:
        """One file."""
        quantized = quantize(self.plan, recipes, self.calibration, progress, trained=self.trained)
        raw = dict(self.plan.raw)
        raw.update({name: value.to(raw[name].dtype) for name, value in quantized.changed.items() if name in raw})
        provenance = {name: value for name, value in self.plan.request.references.items() if isinstance(value, Origin)}
        structure = structure_section(provenance)
        sections = [*([] if structure is None else [structure]), *quantized.sections]
        rest, left, notes = self.plan.network.rest, self.plan.left, quantized.notes
        return assembled(self.plan.directory, sections, raw, metadata, left=left, notes=notes, extra=rest)

    def say(self, compressed: CompressedModel) -> None:
        """What the user has to know of the result."""
        left = overlooked(self.plan)
        sizes = compressed.ledger.layers if left else {}
        taken = {name: sizes[name].file_bytes for name in left if name in sizes}
        rounding = [recipe for recipe in self.plan.recipes if not isinstance(recipe, Given)]
        whole = any(isinstance(recipe, WeightRecipe) and recipe.quantizes() for recipe in rounding)
        if whole and sum(taken.values()) > OVERLOOKED_SHARE * compressed.ledger.file_bytes:
            largest = sorted(taken, key=lambda name: -taken[name])
            warn(
                f"{sum(taken.values()):,} of {compressed.ledger.file_bytes:,} bytes are tensors in full precision: "
                f"{few(largest)} ({left[largest[0]]}); `left` has the reasons"
            )
        reasons: dict[str, list[str]] = {}
        for layer, note in compressed.notes.items():
            reasons.setdefault(note, []).append(layer)
        for note, layers in reasons.items():
            mend = "smaller steps, more `bits`, mode 'auto', `align`, or training with the inter-layer loss mend it"
            warn(f"{few(layers)}: {note}; {mend}")


def trained_file(
    network: Network,
    recipes: Sequence[Recipe],
    claims: Sequence[Claims],
    steps: Mapping[str, float],
    request: Request,
    quantized: Mapping[str, IntegerTensor] | None,
    metadata: Mapping[str, Any] | None,
    left: Mapping[str, str],
    calibration: CalibrationInputs | None = None,
) -> CompressedModel:
    """The file of a model after training, of what was claimed before it.

    Args:
        network: the trained model.
        recipes: those that trained it.
        claims: of each.
        steps: by key, those that the model has trained with.
        request: what the caller has given.
        quantized: weights that a toolkit has quantized, which no recipe gets.
        metadata: a JSON object to store along.
        left: why weights are stored as they are, by layer.
        calibration: inputs for norms and biases to follow what is rounded.
    """
    given = [Given(quantized)] if quantized else []
    taken = [recipe.claim(network, network.state, request) for recipe in given]
    own = {key for one in taken for key in one.tensors}
    rest = [replace(one, tensors=tuple(key for key in one.tensors if key not in own)) for one in claims]
    plan = plan_of_claims(network, [*given, *recipes], [*taken, *rest], request, left, steps)
    return _Job(plan, calibration, trained=True).run(None, metadata).read_back()


OVERLOOKED_SHARE = 1 / 10
"""Of the file; it is said where tensors that nobody asked to keep as they are take more."""

TRACED_EXAMPLES = 2
"""Of the calibration inputs, for one pass where there are no example inputs."""


def _examples(model: Model | Network, calibration: Any, inputs: Pick | None) -> CalibrationInputs | None:
    if calibration is None:
        if inputs is not None:
            raise ConfigError("inputs: picks what the model gets from the batches of `calibration`, which is not given")
        return None
    module = model if isinstance(model, nn.Module) else model.runnable() if isinstance(model, Network) else None
    if module is None:
        raise ConfigError("calibration: a state dict cannot be run; give the module")
    return read_inputs(module, calibration, inputs)


def _aligned(model: Model | Network, config: IlwpConfig, example_inputs: Any) -> tuple[nn.Module, Any]:
    """An aligned copy, and the report."""
    if not isinstance(model, nn.Module) or example_inputs is None:
        raise ConfigError(
            "align=True needs the module itself and example_inputs, to find what follows its channels and to verify "
            f"that its outputs stay; got a {type(model).__name__}" + (" without them" if example_inputs is None else "")
        )
    model = copied(unwrap(model)).cpu()
    inputs = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, example_inputs)
    return model, toolkits.load("pruning").align(model, inputs, config)
