"""Model to file and back: the only place that wires chains, prediction, quantization, coding and container."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from ilwp_plugin import toolkits
from ilwp_plugin.coding import Histogram
from ilwp_plugin.config import CALIBRATED_DEAD_ZONE, RESIDUAL_SHARE, IlwpConfig
from ilwp_plugin.container import (
    SectionBytes,
    SectionKind,
    TensorInfo,
    check_name,
    pack,
    read_archive,
    read_file,
    write_file,
)
from ilwp_plugin.container.archive import measure
from ilwp_plugin.container.directory import Storage, check_tensor
from ilwp_plugin.encoder import Encoder, Progress
from ilwp_plugin.errors import ConfigError, FormatError, IlwpWarning, TensorError
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.method.allocation import allocate_steps
from ilwp_plugin.method.grid import IntegerTensor
from ilwp_plugin.method.provenance import Origin, Provenance
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.names import translate
from ilwp_plugin.models.resizing import resize_layers
from ilwp_plugin.pipeline.calibration import calibrate, output_errors
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, Pick, read_inputs
from ilwp_plugin.pipeline.target import Knobs, Log, Trial, best_within_size, smallest_within_drop
from ilwp_plugin.sections import (
    BatchNormSection,
    ChainSection,
    CodedLayer,
    GridSection,
    decode_metadata,
    decode_raw,
    decode_structure,
    encode_metadata,
    encode_raw,
    encode_structure,
)
from ilwp_plugin.sections.lossless import LOSSLESS, LosslessSection, split_lossless
from ilwp_plugin.sections.raw import measure_raw, raw_bytes
from ilwp_plugin.selection import Model, Selection, batch_norms, given_tensors, select_layers
from ilwp_plugin.stream import ByteReader

__all__ = ["CompressedModel", "LayerSummary", "compress", "estimate", "load", "loads"]


@dataclass(frozen=True)
class LayerSummary:
    """One compressed layer, as it is stored.

    Attributes:
        name: of its tensor.
        kernel_size: height and width.
        kernels: how many.
        mode: how its references are stored: none, collocated, local, full; "anchor" for an unquantized anchor.
        bits: of a code; None for an unquantized anchor.
        step: of the quantizer, in units of weight; None likewise.
        zeros: share of codes that are 0; None likewise.
        entropy: order-0 entropy of the codes outside a map of zeros, in bits a code; None likewise.
    """

    name: str
    kernel_size: tuple[int, int]
    kernels: int
    mode: str
    bits: int | None = None
    step: float | None = None
    zeros: float | None = None
    entropy: float | None = None


class CompressedModel:
    """A model as an `.ilwp` file holds it. Made by `compress` and `load`.

    Attributes:
        tensors: the directory: name, dtype, shape and storage of every tensor of the state dict.
        chains: the quantized chains.
        grid: the other tensors that are stored as codes on a grid; None where there are none.
        batch_norms: the merged batch norms; None likewise.
        lossless: the sections of untouched tensors that are smaller there than as they are: sparse weights, packed
            integers.
        excluded: why each other convolution is in no chain; known to `compress` only, it is not stored.
        provenance: of a pruned model, the origin of the channels of each layer that lost some.
        alignment: what `config.align` has done (`alignment.AlignmentReport`); known to `compress` only.
    """

    alignment: Any = None

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        chains: Sequence[ChainSection],
        raw: Mapping[str, Tensor],
        metadata: Mapping[str, Any] | None = None,
        excluded: Mapping[str, str] | None = None,
        grid: GridSection | None = None,
        batch_norms: BatchNormSection | None = None,
        provenance: Provenance | None = None,
        lossless: Sequence[LosslessSection] = (),
    ) -> None:
        self.tensors = tuple(tensors)
        self.chains = tuple(chains)
        self.grid = grid
        self.batch_norms = batch_norms
        self.lossless = tuple(lossless)
        self._metadata = encode_metadata(metadata) if metadata else None
        self.excluded = dict(excluded or {})
        self._raw = dict(raw)
        self.provenance = dict(provenance or {})

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of the JSON object given along; empty where none was."""
        if self._metadata is None:
            return {}
        return decode_metadata(ByteReader(memoryview(bytes(self._metadata.chunks[0])), "metadata"))

    @property
    def _decoded(self) -> list[ChainSection | GridSection | BatchNormSection]:
        """The sections that hold codes, in the order of the file."""
        return [*self.chains, *(s for s in (self.grid, self.batch_norms) if s is not None)]

    @cached_property
    def _directory(self) -> dict[str, TensorInfo]:
        return {info.name: info for info in self.tensors}

    @cached_property
    def _owners(self) -> dict[str, ChainSection | GridSection | BatchNormSection | LosslessSection]:
        """The section of each tensor that is not raw."""
        return {name: section for section in [*self._decoded, *self.lossless] for name in section.names}

    @cached_property
    def _coded_sections(self) -> list[SectionBytes]:
        sections = [encode_structure(self.provenance, self.tensors)] if self.provenance else []
        sections += [section.encode(self.tensors) for section in self._decoded]
        sections += [section.encode(self.tensors) for section in self.lossless]
        return sections if self._metadata is None else [*sections, self._metadata]

    @cached_property
    def ledger(self) -> Ledger:
        """Every byte by part and layer. Exact: `file_bytes` is the size on disk.

        Of a loaded model it is that of the file as it was read; another encoder may have written it differently.
        """
        sections = [(section.kind, len(section), section.ledger) for section in self._coded_sections]
        return measure(self.tensors, [*sections, measure_raw(self.tensors)])

    @property
    def layers(self) -> list[LayerSummary]:
        """The compressed layers, chain by chain."""
        return [_summary(chain, layer) for chain in self.chains for layer in chain.layers]

    @property
    def quantized(self) -> dict[str, IntegerTensor]:
        """The tensors that are stored as codes on a grid, by name; those given to `compress` among them."""
        if self.grid is None:
            return {}
        return {info.name: value for info, value in zip(self.grid.infos, self.grid.values, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """The restored tensors in the order of the original: compressed layers exactly as quantized, the others equal.

        Each call gives new tensors; aliases (shared weights) share theirs, as in the original.
        """
        restored: dict[str, Tensor] = {}
        for info in self.tensors:
            if info.storage == "alias":
                restored[info.name] = restored[self.tensors[info.alias_of].name]
            else:
                restored[info.name] = self.tensor(info.name)
        return restored

    def tensor(self, name: str) -> Tensor:
        """One restored tensor, new. What is in memory are the codes, in two bytes a weight; only this one is restored.

        Raises:
            TensorError: the file has no tensor of this name.
        """
        if name not in self._directory:
            raise TensorError(f"no tensor {name!r} in the file; it has {_few(list(self._directory))}")
        info = self._directory[name]
        if info.storage == "alias":
            return self.tensor(self.tensors[info.alias_of].name)
        return self._raw[name].clone() if info.storage == "raw" else self._owners[name].restore(name)

    def apply_to(self, model: nn.Module) -> None:
        """Load the restored tensors into a model.

        A file of a model in a wrapper (`module.`, `_orig_mod.` in its names) fits the model without it, and the other
        way round; so does one whose names all have one prefix more or less.

        Raises:
            TensorError: names, shapes or dtypes do not fit; the model is as it was.
        """
        model = unwrap(model)
        own, restored = model.state_dict(), self.state_dict()
        names = translate(own, restored)
        if names is None:
            missing = [name for name in own if name not in restored]
            unexpected = [name for name in restored if name not in own]
            raise TensorError(
                f"the file does not fit {type(model).__name__}: "
                f"not in the file: {_few(missing)}; not in the model: {_few(unexpected)}"
            )
        restored = {name: restored[stored] for name, stored in names.items()}
        for name, tensor in restored.items():
            mine = own[name]
            if mine.shape != tensor.shape or mine.dtype != tensor.dtype:
                raise TensorError(
                    f"tensor {name!r} does not fit {type(model).__name__}: expected {tuple(mine.shape)} {mine.dtype}, "
                    f"got {tuple(tensor.shape)} {tensor.dtype}"
                )
        own.update(restored)  # with the versions of its modules: torch resets values of older ones as it loads them
        model.load_state_dict(own)

    def restore(self, model: nn.Module) -> nn.Module:
        """Load the restored tensors into the original class, whose layers take the shapes that pruning has left.

        Args:
            model: as its class makes it, before any pruning; it is changed in place.

        Returns:
            The model.

        Raises:
            TensorError: the names do not fit, or a shape is not that of a pruned layer of its kind; the model is as it
                was.
        """
        own = unwrap(model)
        names = translate(own.state_dict(), self._directory)
        if names is not None:  # else the next says what does not fit
            resize_layers(own, {name: self._directory[stored].shape for name, stored in names.items()})
        self.apply_to(own)
        return model

    def with_others_of(self, model: Model, metadata: Mapping[str, Any] | None = None) -> CompressedModel:
        """The same compressed tensors, with every other one as a model has it now.

        Compressing a restored model again would quantize what is quantized already; this does not.

        Args:
            model: a module, or a state dict.
            metadata: a JSON object to store along, instead of the one here.

        Raises:
            TensorError: a compressed tensor is missing, or has changed since.
        """
        state = unwrap(model).state_dict() if isinstance(model, nn.Module) else model
        for section in self._decoded:
            for name in section.names:
                if name not in state or not _same_bits(state[name].detach().cpu(), section.restore(name)):
                    how = "changed since it was compressed" if name in state else "not there any more"
                    raise TensorError(f"tensor {name!r} is {how}; compress the model again")
        coded = [name for chain in self.chains for name in chain.names]
        others = [section for section in (self.grid, self.batch_norms) if section is not None]
        packed = [name for section in others for name in section.names]
        directory, raw, infos, lossless = _directory(state, coded, packed)
        chains = [
            replace(chain, layers=tuple(replace(layer, info=infos[layer.info.name]) for layer in chain.layers))
            for chain in self.chains
        ]
        grid, norms = self.grid, self.batch_norms
        if grid is not None:
            grid = replace(grid, infos=tuple(infos[info.name] for info in grid.infos))
        if norms is not None:
            norms = replace(norms, infos=tuple(tuple(infos[i.name] for i in norm) for norm in norms.infos))
        metadata = self.metadata if metadata is None else metadata
        return CompressedModel(directory, chains, raw, metadata, self.excluded, grid, norms, self.provenance, lossless)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return b"".join(self._pack())

    def save(self, path: str | os.PathLike[str]) -> Ledger:
        """Write the file atomically, and verify it by reading it back.

        Returns:
            The ledger of the file.

        Raises:
            FileError: the file cannot be written; what was at the path before is untouched.
        """

        def verify(data: bytes) -> None:
            written = loads(data, "the new file")
            for info in self.tensors:
                if not _same_bits(written.tensor(info.name), self.tensor(info.name)):
                    raise FormatError(f"tensor {info.name!r} is not restored")

        write_file(path, self._pack(), verify)
        self.__dict__.pop("ledger", None)  # of a loaded model: now it is what this version writes
        return self.ledger

    def _pack(self) -> Any:
        return pack(self.tensors, [*self._coded_sections, encode_raw(self.tensors, self._raw)])


def compress(
    model: Model,
    config: IlwpConfig | Mapping[str, Any] | None = None,
    *,
    example_inputs: Any = None,
    references: Mapping[str, Tensor] | Provenance | None = None,
    quantized: Mapping[str, IntegerTensor] | None = None,
    calibration: Any = None,
    inputs: Pick | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    target_bytes: int | None = None,
    target_bits_per_weight: float | None = None,
    resume: str | os.PathLike[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CompressedModel:
    """Quantize a model as its configuration says; what that does not name is kept as it is.

    With one of `max_drop`, `target_bytes` and `target_bits_per_weight` the steps and the dead zone of the
    configuration are searched instead, for the smallest file within the drop, or the best one within the size; some
    fifteen files are tried.

    Args:
        model: a module, or a state dict, whose order then stands for the execution order.
        config: an IlwpConfig, or its fields; IlwpConfig() if None.
        example_inputs: for one forward pass that finds the execution order, where a symbolic trace does not; and for
            alignment, which works on a copy: the file then holds other weights, which compute the same.
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
        evaluate: what a model scores, more is better; called with copies of the module in eval mode.
        max_drop: how much less than the model itself the restored one may score.
        target_bytes: the most that the whole file may take.
        target_bits_per_weight: the same, in bits of the whole file for each element of the model's parameters.
        resume: a file that keeps the trials of the search, which goes on with them when it is started again.
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
    alignment = None
    if config.align:
        if references or quantized:
            raise ConfigError("align=True makes the collocated kernels the references; give no references or codes")
        model, alignment = _aligned(model, config, example_inputs)
    options: dict[str, Any] = {
        "example_inputs": example_inputs,
        "references": references,
        "quantized": quantized,
        "calibration": _examples(model, calibration, inputs),
        "metadata": metadata,
    }
    targets = {"max_drop": max_drop, "target_bytes": target_bytes, "target_bits_per_weight": target_bits_per_weight}
    if any(target is not None for target in targets.values()):
        knobs = _search(model, config, targets, evaluate, resume, progress, options)
        config = config.replace(**knobs)
    compressed = _compress(model, config, progress=progress, **options)
    compressed.alignment = alignment
    return compressed


def _examples(model: Model, calibration: Any, inputs: Pick | None) -> CalibrationInputs | None:
    if calibration is None:
        if inputs is not None:
            raise ConfigError("inputs: picks what the model gets from the batches of `calibration`, which is not given")
        return None
    if not isinstance(model, nn.Module):
        raise ConfigError("calibration: a state dict cannot be run; give the module")
    return read_inputs(model, calibration, inputs)


def _search(
    model: Model,
    config: IlwpConfig,
    targets: Mapping[str, float | None],
    evaluate: Callable[[nn.Module], float] | None,
    resume: str | os.PathLike[str] | None,
    progress: Progress | None,
    options: Mapping[str, Any],
) -> dict[str, float]:
    """The fields of the configuration that meet a target."""
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(f"one target at a time, got {sorted(given)}")
    (kind, target), *_ = given.items()
    if target < 0 or not math.isfinite(target):
        raise ConfigError(f"{kind}: expected a finite number >= 0, got {target!r}")
    module = unwrap(model) if isinstance(model, nn.Module) else None
    if kind == "max_drop" and (evaluate is None or module is None):
        raise ConfigError("max_drop: needs a module and `evaluate`, to see what the restored model scores")
    state: Mapping[str, Tensor] = module.state_dict() if module is not None else model  # type: ignore[assignment]
    weights = [t for t in (state.values() if module is None else module.parameters()) if t.is_floating_point()]
    start = max(float(torch.cat([w.detach().flatten().float().cpu() for w in weights]).std()), 1e-6)
    fixed_residuals = config.residual_step

    def knobs_of(knobs: Knobs) -> dict[str, float]:
        residual = fixed_residuals if fixed_residuals is not None else knobs.weight_step * RESIDUAL_SHARE
        return {**asdict(knobs), "residual_step": residual}

    def score(compressed: CompressedModel | None) -> float | None:
        if evaluate is None or module is None:
            return None
        restored = copy.deepcopy(module).eval()
        if compressed is not None:
            compressed.apply_to(restored)
        return float(evaluate(restored))

    tried = 0

    def run(knobs: Knobs) -> Trial:
        nonlocal tried
        tried += 1
        if progress is not None:
            progress(f"trial with a step of {knobs.weight_step:.3g}", tried, max(tried, EXPECTED_TRIALS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IlwpWarning)  # said once, by the last compression
            compressed = _compress(model, config.replace(**knobs_of(knobs)), **options)
        return Trial(knobs, compressed.ledger.file_bytes, score(compressed))

    digest = hashlib.blake2b(repr((config.to_dict(), sorted(given.items()))).encode(), digest_size=16)
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(raw_bytes(tensor.detach().cpu()))
    log = Log(resume, digest.hexdigest())
    zones = (CALIBRATED_DEAD_ZONE, 0.58) if options["calibration"] is not None else (0.5,)
    if kind == "max_drop":
        before = score(None)
        assert before is not None
        found = smallest_within_drop(run, log, start, zones, before, target)
    else:
        numel = sum(weight.numel() for weight in weights)
        limit = target if kind == "target_bytes" else target * numel / 8
        found = best_within_size(run, log, start, zones if evaluate is not None else zones[:1], limit)
    return knobs_of(found.knobs)


EXPECTED_TRIALS = 15
"""Of a search; only for the progress bar."""


def _compress(
    model: Model,
    config: IlwpConfig,
    *,
    example_inputs: Any,
    references: Mapping[str, Tensor] | Provenance | None,
    quantized: Mapping[str, IntegerTensor] | None,
    calibration: CalibrationInputs | None,
    metadata: Mapping[str, Any] | None,
    progress: Progress | None = None,
) -> CompressedModel:
    module = unwrap(model) if isinstance(model, nn.Module) else None
    if module is None and not isinstance(model, Mapping):
        raise TensorError(f"expected a torch.nn.Module or a state dict, got {type(model).__name__}")
    state: Mapping[str, Tensor] = module.state_dict() if module is not None else model  # type: ignore[assignment]
    given = given_tensors(quantized or {}, state)
    if config.bits is None and config.weight_step is None and not given:
        raise ConfigError("bits: None trains with the loss only; set bits to 2..8 to quantize")
    if config.dead_zone > 0.5 and calibration is None:
        raise ConfigError(
            f"dead_zone: {config.dead_zone} needs calibration inputs; without them 0.5 is the only choice"
        )
    if config.step_allocation == "measured" and (
        calibration is None or config.residual_step is None is config.weight_step
    ):
        raise ConfigError("step_allocation: 'measured' needs calibration inputs, and a weight_step or a residual_step")
    layers = select_layers(model, config, given, example_inputs)
    steps: dict[str, float] = {}
    if config.step_allocation == "measured":
        assert module is not None and calibration is not None
        steps = _allocated(module, config, layers, calibration, progress)
    norms = batch_norms(model, config)
    given_keys, chain_keys = list(given), [key for chain in layers.chains for key in chain.keys]
    packed = [*given_keys, *layers.grid.values(), *layers.biases.values()]
    packed += [key for norm in norms.values() for key in norm.keys]
    directory, raw, infos, lossless = _directory(state, chain_keys, packed)
    provenance = {name: value for name, value in (references or {}).items() if isinstance(value, Origin)}
    if not provenance:
        layers.chains.check_predicted(references or {})
    encoder = Encoder(
        config,
        [(chain, [infos[key] for key in chain.keys]) for chain in layers.chains],
        _unshared(layers.grid, infos),
        _unshared(layers.biases, infos),
        norms,
        [(infos[key], value) for key, value in given.items()],
        {info.name: info for info in directory},
        references or {},
        progress,
        steps,
    )
    if calibration is not None:
        assert module is not None
        calibrated = calibrate(module, calibration, encoder, encoder.layers)
        missed = sorted(encoder.layers - calibrated.layers)
        if calibrated.error > LARGE_ERROR:
            warnings.warn(
                f"the outputs on the calibration inputs change by {calibrated.error:.0%} of their variance; choose "
                "smaller steps",
                IlwpWarning,
                stacklevel=3,
            )
        if missed:
            warnings.warn(
                f"{_few(missed)}: rounded alone; calibration reaches Conv2d and Linear layers that the model calls",
                IlwpWarning,
                stacklevel=3,
            )
    elif config.weight_step is not None:
        warnings.warn(ROUNDED_ALONE, IlwpWarning, stacklevel=3)
    encoder.finish(state)
    raw.update({name: value.to(raw[name].dtype) for name, value in encoder.changed.items() if name in raw})
    chains, grid, merged = encoder.sections()
    excluded = layers.chains.excluded
    return CompressedModel(directory, chains, raw, metadata, excluded, grid, merged, provenance, lossless)


MEASURED_SHARE = 1 / 8
"""Of a step, for measuring what errors of a layer cost: near the step itself they are not small, white noise."""


def _allocated(
    module: nn.Module, config: IlwpConfig, layers: Selection, calibration: CalibrationInputs, progress: Progress | None
) -> dict[str, float]:
    """Steps by layer, from what rounding each one alone does to the outputs."""
    first = [] if config.anchor == "quantized" else [chain.layers[0] for chain in layers.chains]
    keys = {name: key for chain in layers.chains for name, key in zip(chain.layers, chain.keys, strict=True)}
    groups = [
        (config.residual_step, {name: key for name, key in keys.items() if name not in first}),
        (config.weight_step, layers.grid),
    ]
    state, steps = module.state_dict(), dict[str, float]()
    for step, group in groups:
        if step is not None:
            weights = {name: state[key] for name, key in group.items()}
            share = step * MEASURED_SHARE
            rounded = {name: torch.round(weight / share) * share for name, weight in weights.items()}
            errors = output_errors(module, calibration, rounded, progress)
            numbers = {name: weight.numel() for name, weight in weights.items()}
            sizes = {name: float(weight.double().square().mean().sqrt()) for name, weight in weights.items()}
            steps.update(allocate_steps(step, errors, numbers, sizes))
    return steps


def _aligned(model: Model, config: IlwpConfig, example_inputs: Any) -> tuple[nn.Module, Any]:
    """An aligned copy, and the report."""
    if not isinstance(model, nn.Module) or example_inputs is None:
        raise ConfigError(
            "align=True needs the module itself and example_inputs, to find what follows its channels and to verify "
            f"that its outputs stay; got a {type(model).__name__}" + (" without them" if example_inputs is None else "")
        )
    model = copy.deepcopy(unwrap(model)).cpu()
    inputs = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, example_inputs)
    return model, toolkits.load("pruning").align(model, inputs, config)


LARGE_ERROR = 0.5
"""Squared error of the outputs relative to their variance, from which on a model is hardly what it was."""

ROUNDED_ALONE = (
    "weights are rounded as they are; with a module and `calibration` inputs (some hundred examples, no labels) errors "
    "are made up for by later weights and batch norms follow, which keeps more accuracy at the same size"
)


def _unshared(keys: Mapping[str, str], infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Directory entries by layer, each once: a tensor that layers share belongs to the first of them."""
    owners: dict[str, str] = {}
    for name, key in keys.items():
        owners.setdefault(infos[key].name, name)
    return {name: infos[keys[name]] for name in owners.values()}


def estimate(model: Model, config: IlwpConfig | Mapping[str, Any] | None = None, **options: Any) -> Ledger:
    """The exact ledger of the file that `compress` with the same arguments would write, without writing it."""
    return compress(model, config, **options).ledger


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> CompressedModel:
    """Read an `.ilwp` file.

    Args:
        path: the file.
        max_bytes: refuse a file whose tensors take more memory than this, in bytes; tensors that share memory count in
            full. Without a limit they take at most some 16,000 times the size of the file.

    Raises:
        FileError: it cannot be read.
        FormatError: it is no valid `.ilwp` file.
        LimitError: over `max_bytes`.
    """
    return loads(read_file(path), os.fspath(path), max_bytes=max_bytes)


def loads(data: bytes, where: str = "data", *, max_bytes: int | None = None) -> CompressedModel:
    """Like `load`, from the content of a file; `where` names it in messages."""
    archive = read_archive(data, where, max_bytes)
    ledger = archive.ledger
    chains: list[ChainSection] = []
    singles: dict[SectionKind, Any] = {}
    for number, (kind, piece) in enumerate(archive.sections):
        reader = ByteReader(piece, f"{where}, section {number} ({kind.name.lower()})")
        if kind is SectionKind.CHAIN:
            chains.append(ChainSection.decode(reader, archive.tensors, singles.get(SectionKind.STRUCTURE)))
        elif kind in singles:
            raise reader.fail("a second section of a kind of which there may be one")
        elif kind is SectionKind.METADATA:
            singles[kind] = decode_metadata(reader)
        elif kind is SectionKind.STRUCTURE:
            singles[kind] = decode_structure(reader, archive.tensors)
        elif kind is SectionKind.GRID:
            singles[kind] = GridSection.decode(reader, archive.tensors)
        elif kind is SectionKind.BATCH_NORM:
            singles[kind] = BatchNormSection.decode(reader, archive.tensors)
        elif kind in LOSSLESS:
            singles[kind] = LOSSLESS[kind].decode(reader, archive.tensors)
        else:
            singles[kind] = decode_raw(reader, archive.tensors)
        ledger.extend(reader.ledger)
    if SectionKind.RAW not in singles:
        raise FormatError(f"{where}: no raw section")
    grid, norms = singles.get(SectionKind.GRID), singles.get(SectionKind.BATCH_NORM)
    lossless: list[LosslessSection] = [singles[kind] for kind in LOSSLESS if kind in singles]
    coded = Counter(layer.info.name for chain in chains for layer in chain.layers)
    coded.update(info.name for info in (grid.infos if grid else ()))
    coded.update(info.name for infos in (norms.infos if norms else ()) for info in infos)
    coded.update(name for section in lossless for name in section.names)
    for info in archive.tensors:
        if info.storage in ("coded", "packed") and coded[info.name] != 1:
            raise FormatError(f"{where}: tensor {info.name!r} is in {coded[info.name]} sections, expected 1")
    raw, metadata = singles[SectionKind.RAW], singles.get(SectionKind.METADATA)
    provenance = singles.get(SectionKind.STRUCTURE)
    model = CompressedModel(archive.tensors, chains, raw, metadata, None, grid, norms, provenance, lossless)
    model.ledger = ledger  # as read, not as this version would write it
    return model


def _directory(
    state: Mapping[str, Tensor], coded: Sequence[str], packed: Sequence[str]
) -> tuple[list[TensorInfo], dict[str, Tensor], dict[str, TensorInfo], tuple[LosslessSection, ...]]:
    """The directory of a state dict, copies of its untouched tensors, and the entry that each other one is stored as.

    `coded` tensors are in chains, `packed` ones in other sections; untouched ones are, too, where that is
    smaller.

    Of tensors that share all their memory the first is stored and the others are its aliases, so a coded tensor may be
    stored under another name than that of its layer. Raises TensorError.
    """
    for name, tensor in state.items():
        _check_tensor(name, tensor)
    missing = {*coded, *packed} - set(state)
    if missing:
        raise TensorError(
            f"no tensor {min(missing)!r} in the state dict; a parametrization or mask on the layer has to be removed "
            "first (torch.nn.utils.prune.remove, parametrize.remove_parametrizations); zeros stay zeros"
        )
    storages: dict[tuple[Any, ...], Storage] = {_place(key, state[key]): "packed" for key in packed}
    storages.update({_place(key, state[key]): "coded" for key in coded})
    owners: dict[tuple[Any, ...], int] = {}
    infos: list[TensorInfo] = []
    raw: dict[str, Tensor] = {}
    for position, (name, tensor) in enumerate(state.items()):
        place, shape = _place(name, tensor), tuple(tensor.shape)
        if place in owners:
            infos.append(TensorInfo(name, tensor.dtype, shape, "alias", owners[place]))
            continue
        owners[place] = position
        infos.append(TensorInfo(name, tensor.dtype, shape, storages.get(place, "raw")))
        if place not in storages:
            raw[name] = tensor.detach().to("cpu", copy=True)  # a snapshot: the model may go on training
    infos, raw, lossless = split_lossless(infos, raw)
    return infos, raw, {key: infos[owners[_place(key, state[key])]] for key in [*coded, *packed]}, lossless


def _place(name: str, tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors with the same values at the same place in memory; empty ones share nothing."""
    if tensor.numel() == 0:
        return (name,)
    return (tensor.device, tensor.data_ptr(), tensor.stride(), tuple(tensor.shape), tensor.dtype, tensor.is_conj())


def _check_tensor(name: object, tensor: object) -> None:
    if not isinstance(name, str) or (fault := check_name(name)):
        raise TensorError(f"tensor name {name!r} {fault if isinstance(name, str) else 'is no string'}")
    if not isinstance(tensor, Tensor):
        raise TensorError(f"{name!r} is a {type(tensor).__name__}; a .ilwp file holds tensors only")
    if is_lazy(tensor):
        raise TensorError(f"tensor {name!r} belongs to a lazy layer that has not run yet; run the model once")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        what = "has no values (meta device)" if tensor.is_meta else "is sparse or quantized by torch"
        raise TensorError(f"tensor {name!r} {what}; a .ilwp file holds dense tensors")
    check_tensor(name, tensor.dtype, tensor.shape)


def _summary(chain: ChainSection, layer: CodedLayer) -> LayerSummary:
    if layer.quantized is None:
        return LayerSummary(layer.info.name, chain.kernel_size, layer.kernels, "anchor")
    codes, mapped = layer.quantized.codes, layer.quantized.zeros
    return LayerSummary(
        name=layer.info.name,
        kernel_size=chain.kernel_size,
        kernels=layer.kernels,
        mode=layer.mode,
        bits=layer.quantized.bits,
        step=layer.quantized.step,
        zeros=float((codes == 0).double().mean()),
        entropy=Histogram.of((codes if mapped is None else codes[~mapped]).numpy()).entropy,
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(raw_bytes(a), raw_bytes(b))


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"
