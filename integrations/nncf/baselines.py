"""NNCF's own compression, alone and stacked with ilwp, as methods to compare."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import nncf
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IlwpConfig, compress
from ilwp_plugin.compare.files import as_is, others_in_8_bits, wiped, with_integers
from ilwp_plugin.compare.methods import Case, Compressed, Method, Options
from ilwp_plugin.compare.own import describe, raw_sizes
from ilwp_plugin.compare.training import Companion, Distillation, Optimizers, Plan, prepared, train_on
from ilwp_plugin.errors import ConfigError

from .config import ALGORITHM, Section, algorithm_sections, algorithms, sections_by_name
from .modern import (
    NNCFConfig,
    create_compressed_model,
    plain_model,
    register,
    register_default_init_args,
    restore,
    stack,
)
from .modern.controller import Controller
from .modern.operations import Operations
from .modern.stripping import unwrapped

__all__ = ["METHODS", "CompressWeights", "Prune", "Quantize", "Train"]

_BATCH = 50
"""Images in a batch of NNCF's statistics."""

Images = Annotated[int, Field(strict=True, ge=1)]
Epochs = Annotated[int, Field(strict=True, ge=1)]
Rate = Annotated[float, Field(strict=True, gt=0)]
WeightBits = Literal[8] | None


class _NNCF(Method):
    group = "nncf"
    packages = ("nncf",)


# -- after training --------------------------------------------------------------------------------------------------


class QuantizeOptions(Options):
    """Of `Quantize`."""

    images: Images = Field(default=300, description="Training images, without labels, for ranges and biases.")
    ilwp: IlwpConfig | None = Field(default=None, description="Of ilwp; null is NNCF alone.")
    calibration: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=2000, description="Training images, without labels, that ilwp calibrates with."
    )


class Quantize(_NNCF):
    """`nncf.quantize` with its defaults: INT8 of weights and activations after training, biases corrected.

    With ilwp the weights are on its grid instead, calibrated, and NNCF's codes are ilwp's (`stack`).
    """

    options: ClassVar[Any] = QuantizeOptions

    def title(self, options: QuantizeOptions) -> str:
        return "NNCF quantize" + _stacked(options.ilwp)

    def compress(self, case: Case, options: QuantizeOptions) -> Compressed:
        model, config = prepared(case, options.ilwp)
        batches = torch.split(case.calibration(options.images), _BATCH)
        dataset = nncf.Dataset(batches)
        with _quietly():
            if config is None:
                model = nncf.quantize(model, dataset, subset_size=len(batches))
                return _compressed(Controller(model, [], (batches[0],), {}), None)
            calibration = case.calibration(options.calibration)
            structure, file = stack(model, dataset, config, calibration=calibration, subset_size=len(batches))
        return _of_file(file, structure)


class CompressWeightsOptions(Options):
    """Of `CompressWeights`."""

    mode: Literal["int8_asym", "int8_sym"] = Field(default="int8_asym", description="Of the integer weights.")
    ilwp: IlwpConfig | None = Field(default=None, description="Of ilwp; null is NNCF alone.")

    @field_validator("mode", mode="before")
    @classmethod
    def _of_convolutions(cls, value: object) -> object:
        known = [mode.value for mode in nncf.CompressWeightsMode]
        if value in known and value not in ("int8_asym", "int8_sym"):
            raise ConfigError(
                f"mode: {value!r} does not apply to convolutions: NNCF keeps those in int8_asym under its 4-bit modes, "
                "and has no others for PyTorch; use int8_asym or int8_sym"
            )
        return value


class CompressWeights(_NNCF):
    """`nncf.compress_weights`: weights in 8 bits, activations in floating point, no data.

    With ilwp its layers are on ilwp's grid, and NNCF leaves them out. NNCF multiplies codes and scales in fp16; the
    file holds both as they are.
    """

    options: ClassVar[Any] = CompressWeightsOptions

    def title(self, options: CompressWeightsOptions) -> str:
        return f"NNCF compress_weights {options.mode}" + _stacked(options.ilwp)

    def compress(self, case: Case, options: CompressWeightsOptions) -> Compressed:
        model, config = prepared(case, options.ilwp)
        example, scope = case.calibration(2), None
        chained = as_is(model.state_dict())
        if config is not None:
            chained = compress(model, config, example_inputs=example)
            chained.apply_to(model)
            layers = [layer.name.removesuffix(".weight") for chain in chained.chains for layer in chain.summaries()]
            scope = Operations(model, example).ignored([*layers, *_layers_of(chained.quantized)], ())
        with _quietly():
            model = nncf.compress_weights(
                model,
                mode=nncf.CompressWeightsMode(options.mode),
                dataset=nncf.Dataset([example]),
                ignored_scope=scope,
            )
        plain, codes, metadata = plain_model(model, example)
        compressed = with_integers(chained, codes).with_others_of(plain, metadata)

        def restored(path: Path) -> nn.Module:
            return restore(path, wiped(copy.deepcopy(plain)))

        return Compressed(*raw_sizes(compressed, model, scale_bytes=2), compressed.save, restored)


def _layers_of(tensors: Mapping[str, Any]) -> list[str]:
    return [name.rpartition(".")[0] for name in tensors]


# -- in training -----------------------------------------------------------------------------------------------------


class TrainOptions(Options):
    """Of `Train`."""

    compression: list[dict[str, Any]] = Field(min_length=1, description="As in an NNCF JSON config.")
    epochs: Epochs = Field(default=3, description="Of training.")
    lr: Rate = Field(default=0.02, description="At the start.")
    optimizer: Optimizers = Field(default="sgd", description="'adamw', at a rate of .001, is what a rate term wants.")
    distillation: Distillation = Field(default=0.0)
    images: Images = Field(
        default=300, description="Training images, without labels, for the ranges of int8, and for ilwp's steps."
    )
    weight_bits: WeightBits = Field(
        default=None,
        description="Weights that nothing in the list quantizes: 8 rounds them to 8 bits a channel after training.",
    )

    @field_validator("compression")
    @classmethod
    def _valid(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        NNCFConfig.validate({"compression": value})
        return value


class Train(_NNCF):
    """Training under an NNCF JSON config, as `create_compressed_model` understands it: int8, sparsity, ilwp, stacks.

    An `ilwp` section with an automatic loss weight gets the one of `fine_tune`. The file is that of the controller: the
    codes of quantized weights, chains of ilwp. Weights that nothing quantizes, those of sparsity alone among them, are
    in it as they are unless `weight_bits` says otherwise.
    """

    options: ClassVar[Any] = TrainOptions

    def title(self, options: TrainOptions) -> str:
        names = [name for name in sections_by_name({"compression": options.compression}) if name not in algorithms()]
        section = Section.find({"compression": options.compression})
        words = " + ".join(names)
        if section is not None:
            words = f"{words}{_stacked(section.config)}" if words else f"ilwp {describe(section.config)}"
        return f"NNCF {words}{_rest(options.weight_bits)}, {options.epochs} epochs"

    def compress(self, case: Case, options: TrainOptions) -> Compressed:
        section = Section.find({"compression": options.compression})
        model, config = prepared(case, None if section is None else section.config)
        plan = Plan(options.epochs, options.lr, options.optimizer, options.distillation)
        sections = copy.deepcopy(options.compression)
        for own in (s for s in algorithm_sections({"compression": sections}) if s["algorithm"] == ALGORITHM):
            assert config is not None and isinstance(own, dict)
            if config.recipes is None:
                own |= {"align": False, "loss_weight": plan.loss_weight(model, config, case)}
        calibration = case.calibration(options.images)
        nncf_config = NNCFConfig.from_dict({"compression": sections})
        register_default_init_args(nncf_config, [(batch,) for batch in torch.split(calibration, _BATCH)])
        with _quietly():
            controller, model = create_compressed_model(model, nncf_config)
            train_on(model, case, plan, _Controlled(controller))
            return _compressed(controller, options.weight_bits)


class _Controlled(Companion):
    """A training under a controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def begin_epoch(self, epoch: int) -> None:
        self._controller.scheduler.epoch_step(epoch)

    def begin_step(self) -> None:
        self._controller.scheduler.step()

    def loss(self) -> Tensor:
        return self._controller.loss()  # type: ignore[no-any-return]

    def state_dict(self) -> Any:
        return self._controller.get_compression_state()[Controller.CONTROLLER_STATE]

    def load_state_dict(self, state: Any) -> None:
        self._controller.load_state(state)


class PruneOptions(Options):
    """Of `Prune`."""

    ratio: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(default=0.5, description="Of weights to prune.")
    epochs: Epochs = Field(default=3, description="Of training on afterwards.")
    lr: Rate = Field(default=0.02, description="Of training on, at the start.")
    optimizer: Optimizers = Field(default="sgd", description="Of training on, see `TrainOptions`.")
    distillation: Distillation = Field(default=0.0)
    weight_bits: WeightBits = Field(
        default=8,
        description="Weights that ilwp does not quantize: rounded to 8 bits a channel after training; null keeps fp32.",
    )
    ilwp: IlwpConfig | None = Field(default=None, description="Of ilwp; null is NNCF alone.")


class Prune(_NNCF):
    """`nncf.prune`: weights of least magnitude, over all layers together, are 0 from the start; then training on.

    NNCF quantizes nothing here, and a file of fp32 tensors gains nothing from zeros. So `weight_bits` rounds the other
    weights (all of them without ilwp) to 8 bits a channel, zeros staying zeros, and they are stored as integer codes,
    entropy coded: what a user expects of pruning who stores the result well. With null they stay fp32, as they are.
    """

    options: ClassVar[Any] = PruneOptions

    def title(self, options: PruneOptions) -> str:
        return f"NNCF prune {options.ratio:.0%} of weights{_rest(options.weight_bits)}" + _stacked(options.ilwp)

    def compress(self, case: Case, options: PruneOptions) -> Compressed:
        levels = {"schedule": "multistep", "multistep_steps": [], "multistep_sparsity_levels": [options.ratio]}
        once = {"sparsity_freeze_epoch": 0}  # which weights go is decided before the training
        sections: list[dict[str, Any]] = [
            {"algorithm": "magnitude_sparsity", "sparsity_init": options.ratio, "params": {**levels, **once}}
        ]
        if options.ilwp is not None:
            sections.append({"algorithm": ALGORITHM, **options.ilwp.to_dict()})
        training = options.model_dump(include={"epochs", "lr", "optimizer", "distillation", "weight_bits"})
        return Train().compress(case, TrainOptions(compression=sections, **training))


# -- files -----------------------------------------------------------------------------------------------------------


def _compressed(controller: Controller, weight_bits: WeightBits) -> Compressed:
    """The stripped model in a file, and back out of it."""
    structure, session = controller.strip().eval(), controller.session
    fields: dict[str, Any] = {} if session is not None and session.changes else {"preset": "lossless", "bits": None}
    compressed = controller._compressed(**fields)
    if weight_bits is not None:
        compressed = others_in_8_bits(compressed, structure)
    return _of_file(compressed, structure)


def _of_file(compressed: CompressedModel, structure: nn.Module) -> Compressed:
    """A file, and how it becomes the model again."""

    def restored(path: Path) -> nn.Module:
        return restore(path, wiped(unwrapped(structure)))

    return Compressed(*raw_sizes(compressed, structure), compressed.save, restored)


def _stacked(config: IlwpConfig | None) -> str:
    return "" if config is None else f" + ilwp {describe(config)}"


def _rest(bits: int | None) -> str:
    return "" if bits is None else f", int{bits} weights"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without NNCF's bars and advice, and with time for its extension to be compiled, once."""
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "600")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


METHODS: Mapping[str, Method] = {
    "quantize": Quantize(),
    "train": Train(),
    "compress_weights": CompressWeights(),
    "prune": Prune(),
}
"""By their names in a comparison, behind `nncf.`."""

register()
