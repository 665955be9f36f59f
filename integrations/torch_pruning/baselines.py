"""torch-pruning's structural pruning, alone and stacked with ilwp, as a method to compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch_pruning as tp
from pydantic import Field
from torch import nn

from ilwp_plugin import CompressedModel, IlwpConfig, load
from ilwp_plugin.compare.files import as_is, others_in_8_bits, wiped
from ilwp_plugin.compare.methods import Case, Compressed, Method, Options
from ilwp_plugin.compare.own import describe, raw_sizes
from ilwp_plugin.compare.training import Distillation, Plan, train_on, tuning_data
from ilwp_plugin.errors import ConfigError, IlwpError, TensorError
from ilwp_plugin.method.provenance import Origin
from ilwp_plugin.training import FineTuning, fine_tune

from .pruning import IlwpImportance, IlwpPruner, ProvenanceTracker

__all__ = ["METHODS", "Magnitude"]

_LR = 0.05


class MagnitudeOptions(Options):
    """Of `Magnitude`."""

    ratio: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(default=0.5, description="Of channels to prune.")
    epochs: Annotated[int, Field(strict=True, ge=1)] = Field(default=3, description="Of training on afterwards.")
    recovery: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0, description="Of these epochs, so many come before ilwp: they mend what pruning has broken."
    )
    lr: Annotated[float, Field(strict=True, gt=0)] | None = Field(
        default=None, description="Of training on, at the start; null is 0.05, or what the optimizer wants."
    )
    weight_bits: Literal[8] | None = Field(
        default=8,
        description="Weights that ilwp does not quantize: rounded to 8 bits a channel after training; null keeps fp32.",
    )
    calibration: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0, description="Training images, without labels, by which ilwp chooses its steps; 0 is without."
    )
    distillation: Distillation = 0.0
    ilwp: IlwpConfig | None = Field(default=None, description="Of ilwp; null is torch-pruning alone.")


class Magnitude(Method):
    """Channels of least magnitude pruned at once, and the network trained on.

    With ilwp, the training on is `ilwp_plugin.training.fine_tune`, on the weights that the file will restore, of every
    layer that the configuration takes. It aligns what is left; or, where the configuration does not align, families of
    kernels are pruned, so that every kernel keeps its reference. torch-pruning itself quantizes nothing. So that its
    file can be compared with those of integers, `weight_bits` rounds the weights that ilwp does not take (all of them
    without ilwp) to 8 bits a channel, and they are stored as integer codes, entropy coded.
    """

    group = "pruning"
    options: ClassVar[Any] = MagnitudeOptions
    packages = ("torch-pruning",)

    def title(self, options: MagnitudeOptions) -> str:
        weights = "" if options.weight_bits is None else f", int{options.weight_bits} weights"
        ilwp = "" if options.ilwp is None else f" + ilwp {describe(options.ilwp)}"
        return f"torch-pruning {options.ratio:.0%} of channels{weights}{ilwp}"

    def compress(self, case: Case, options: MagnitudeOptions) -> Compressed:
        model, config = case.model(), options.ilwp
        if config is not None and not any(recipe.quantizes() for recipe in config.recipe_list()):
            raise ConfigError("ilwp: the configuration quantizes nothing; set bits to 2..8, or a weight_step")
        if options.recovery and (config is None or options.recovery >= options.epochs):
            raise ConfigError(
                f"recovery: {options.recovery} of {options.epochs} epochs before ilwp; expected fewer, and `ilwp` given"
            )
        provenance = _prune(model, case, options.ratio, config)
        if options.recovery:
            train_on(model, case, Plan(options.recovery, _LR))
        if config is None:
            train_on(model, case, Plan(options.epochs, options.lr or _LR))
            compressed = as_is(model.state_dict())
        else:
            compressed = _fine_tuned(model, case, options, config, None if config.align else provenance)
        if options.weight_bits is not None:
            compressed = others_in_8_bits(compressed, model)

        def restore(path: Path) -> nn.Module:
            restored = load(path).restore(wiped(case.fresh()))
            return restored.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]

        return Compressed(*raw_sizes(compressed, model), compressed.save, restore)


def _prune(model: nn.Module, case: Case, ratio: float, config: IlwpConfig | None) -> dict[str, Origin]:
    """Prune in place; the classifier keeps its classes. Returns where the channels that are left come from."""
    examples = case.calibration(16)
    tracker = ProvenanceTracker(model)
    importance = tp.importance.MagnitudeImportance()
    own = None if config is None else config.ilwp()
    if (
        own is not None and own.keeps_origins and own.bits is not None and not own.align
    ):  # else there are new references
        importance = IlwpImportance(importance, tracker, config, example_inputs=examples)
    classes = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == case.data.classes]
    try:
        pruner = tp.pruner.BasePruner(model, examples, importance, pruning_ratio=ratio, ignored_layers=classes[-1:])
        IlwpPruner(pruner, tracker, config).step()
        model(examples)
    except IlwpError:
        raise
    except (IndexError, ValueError, KeyError, RuntimeError) as error:
        raise TensorError(
            f"torch-pruning cannot take {ratio:.0%} of the channels out of {type(model).__name__} "
            f"({type(error).__name__}: {error})"
        ) from error
    return tracker.provenance


def _fine_tuned(
    model: nn.Module,
    case: Case,
    options: MagnitudeOptions,
    config: IlwpConfig,
    provenance: Mapping[str, Origin] | None,
) -> CompressedModel:
    data, loss = tuning_data(replace(case, device="cpu"), options.distillation)
    plan = FineTuning(
        epochs=options.epochs - options.recovery, batch=case.settings.batch, lr=options.lr, seed=case.settings.seed
    )
    result = fine_tune(
        model,
        data,
        loss,
        config,
        plan,
        example_inputs=case.data.train_images[:16],
        calibration=case.calibration(options.calibration) if options.calibration else None,
        references=provenance,
        checkpoint=case.folder / "fine_tuning.pt",
    )
    model.eval()
    return result.compressed


METHODS: Mapping[str, Method] = {"magnitude": Magnitude()}
"""By their names in a comparison, behind `pruning.`."""
