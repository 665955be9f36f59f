"""Model to file and back: the only place that wires chains, prediction, quantization, coding and container."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from ilwp_plugin import adapters
from ilwp_plugin.coding import Histogram
from ilwp_plugin.config import IlwpConfig
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
from ilwp_plugin.container.directory import check_tensor
from ilwp_plugin.errors import ConfigError, FormatError, TensorError
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.method.chains import Chain, Chains, find_chains, find_chains_by_name, unwrap
from ilwp_plugin.method.prediction import PREDICTORS
from ilwp_plugin.method.provenance import Origin, Provenance, given_references
from ilwp_plugin.method.quantization import STEP_RULES, as_kernels, quantize_chain, stored_anchor
from ilwp_plugin.method.structure import resize_layers
from ilwp_plugin.sections import (
    ChainSection,
    CodedLayer,
    decode_metadata,
    decode_raw,
    decode_structure,
    encode_metadata,
    encode_raw,
    encode_structure,
)
from ilwp_plugin.sections.chain import Mode, storage_mode
from ilwp_plugin.sections.raw import measure_raw, raw_bytes
from ilwp_plugin.stream import ByteReader

__all__ = ["CompressedModel", "LayerSummary", "chains_of", "compress", "estimate", "finite_kernels", "load", "loads"]

Model = nn.Module | Mapping[str, Tensor]
Progress = Callable[[str, int, int], None]
"""Is told the layer, how many kernels of all layers are done, and of how many."""


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
        provenance: Provenance | None = None,
    ) -> None:
        self.tensors = tuple(tensors)
        self.chains = tuple(chains)
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

    @cached_property
    def _coded_sections(self) -> list[SectionBytes]:
        sections = [encode_structure(self.provenance, self.tensors)] if self.provenance else []
        sections += [chain.encode(self.tensors) for chain in self.chains]
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

    def state_dict(self) -> dict[str, Tensor]:
        """The restored tensors in the order of the original: compressed layers exactly as quantized, the others equal.

        Each call gives new tensors; aliases (shared weights) share theirs, as in the original.
        """
        coded = {name: tensor for chain in self.chains for name, tensor in chain.tensors.items()}
        restored: dict[str, Tensor] = {}
        for info in self.tensors:
            if info.storage == "alias":
                restored[info.name] = restored[self.tensors[info.alias_of].name]
            else:
                restored[info.name] = (coded if info.storage == "coded" else self._raw)[info.name].clone()
        return restored

    def apply_to(self, model: nn.Module) -> None:
        """Load the restored tensors into a model.

        Raises:
            TensorError: names, shapes or dtypes do not fit; the model is as it was.
        """
        model = unwrap(model)
        own, restored = model.state_dict(), self.state_dict()
        missing = [name for name in own if name not in restored]
        unexpected = [name for name in restored if name not in own]
        if missing or unexpected:
            raise TensorError(
                f"the file does not fit {type(model).__name__}: "
                f"not in the file: {_few(missing)}; not in the model: {_few(unexpected)}"
            )
        for name, tensor in restored.items():
            mine = own[name]
            if mine.shape != tensor.shape or mine.dtype != tensor.dtype:
                raise TensorError(
                    f"tensor {name!r} does not fit {type(model).__name__}: expected {tuple(mine.shape)} {mine.dtype}, "
                    f"got {tuple(tensor.shape)} {tensor.dtype}"
                )
        model.load_state_dict(restored)

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
        resize_layers(own, {info.name: info.shape for info in self.tensors})
        self.apply_to(own)
        return model

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
            written, mine = loads(data, "the new file").state_dict(), self.state_dict()
            for name, tensor in mine.items():
                if not _same_bits(written[name], tensor):
                    raise FormatError(f"tensor {name!r} is not restored")

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
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CompressedModel:
    """Quantize the chains of a model; everything else is kept as it is.

    Args:
        model: a module, or a state dict, whose order then stands for the execution order.
        config: an IlwpConfig, or its fields; IlwpConfig() if None.
        example_inputs: for one forward pass that finds the execution order, where a symbolic trace does not; and for
            alignment, which works on a copy: the file then holds other weights, which compute the same.
        references: by layer name, (kernels,) integers each: kernel of the layer before that predicts each kernel, or -1
            for none; instead of the configured mode, for these layers. Or, of a pruned model, the origins of its
            channels (`method.provenance`): they are stored, and under mode collocated each kernel keeps its reference.
        metadata: a JSON object to store along.
        progress: is told the progress.

    Raises:
        ChainError: the model has no chain.
        TensorError: a tensor cannot be stored, or a chain holds NaN or infinity.
        ConfigError: `config.bits` is None: nothing to quantize; or what alignment needs is missing.
        MissingDependencyError: `config.align` without torch-pruning.
    """
    config = IlwpConfig.of(config)
    if config.bits is None:
        raise ConfigError("bits: None trains with the loss only; set bits to 2..8 to quantize")
    alignment = None
    if config.align:
        if references:
            raise ConfigError("align=True makes the collocated kernels the references; give no others")
        model, alignment = _aligned(model, config, example_inputs)
    chains = chains_of(model, config, example_inputs=example_inputs)
    state = unwrap(model).state_dict() if isinstance(model, nn.Module) else model
    directory, raw, stored_as = _directory(state, [key for chain in chains for key in chain.keys])
    by_name = {info.name: info for info in directory}
    infos = {key: by_name[name] for key, name in stored_as.items()}
    provenance = {name: value for name, value in (references or {}).items() if isinstance(value, Origin)}
    if not provenance:
        chains.check_predicted(references or {})
    told = _Progress(progress, sum(infos[k].numel // c.taps for c in chains for k in c.keys))
    sections = [
        _quantize(chain, [infos[key] for key in chain.keys], state, config, references or {}, told) for chain in chains
    ]
    compressed = CompressedModel(directory, sections, raw, metadata, chains.excluded, provenance)
    compressed.alignment = alignment
    return compressed


def _aligned(model: Model, config: IlwpConfig, example_inputs: Any) -> tuple[nn.Module, Any]:
    """An aligned copy, and the report."""
    if not isinstance(model, nn.Module) or example_inputs is None:
        raise ConfigError(
            "align=True needs the module itself and example_inputs, to find what follows its channels and to verify "
            f"that its outputs stay; got a {type(model).__name__}" + (" without them" if example_inputs is None else "")
        )
    model = copy.deepcopy(unwrap(model)).cpu()
    inputs = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, example_inputs)
    return model, adapters.load("pruning").align(model, inputs, config)


def chains_of(model: Model, config: IlwpConfig, *, example_inputs: Any = None) -> Chains:
    """The chains that a configuration finds in a module or a state dict; see `method.chains`."""
    options: dict[str, Any] = {
        "scope": config.scope,
        "target_scopes": config.target_scopes,
        "ignored_scopes": config.ignored_scopes,
        "layers": config.layers,
    }
    if isinstance(model, nn.Module):
        return find_chains(model, example_inputs=example_inputs, **options)
    if not isinstance(model, Mapping):
        raise TensorError(f"expected a torch.nn.Module or a state dict, got {type(model).__name__}")
    return find_chains_by_name(model, **options)


def estimate(model: Model, config: IlwpConfig | Mapping[str, Any] | None = None, **options: Any) -> Ledger:
    """The exact ledger of the file that `compress` with the same arguments would write, without writing it."""
    return compress(model, config, **options).ledger


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> CompressedModel:
    """Read an `.ilwp` file.

    Args:
        path: the file.
        max_bytes: refuse a file whose tensors take more memory than this, in bytes; tensors that share memory count in
            full. Without a limit they take at most about 512 times the size of the file.

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
        else:
            singles[kind] = decode_raw(reader, archive.tensors)
        ledger.extend(reader.ledger)
    if SectionKind.RAW not in singles:
        raise FormatError(f"{where}: no raw section")
    coded = Counter(layer.info.name for chain in chains for layer in chain.layers)
    for info in archive.tensors:
        if info.storage == "coded" and coded[info.name] != 1:
            raise FormatError(f"{where}: tensor {info.name!r} is in {coded[info.name]} sections, expected 1")
    model = CompressedModel(
        archive.tensors,
        chains,
        singles[SectionKind.RAW],
        singles.get(SectionKind.METADATA),
        provenance=singles.get(SectionKind.STRUCTURE),
    )
    model.ledger = ledger  # as read, not as this version would write it
    return model


class _Progress:
    """Adds up the kernels that are done: those of whole layers, and of a search within a layer."""

    def __init__(self, tell: Progress | None, total: int) -> None:
        self._tell, self._total, self._layers, self._search = tell, total, 0, 0

    def searched(self, layer: str, kernels: int) -> None:
        self._search += kernels
        if self._tell is not None:
            self._tell(layer, self._layers + self._search, self._total)

    def finished(self, layer: str, kernels: int) -> None:
        self._layers, self._search = self._layers + kernels, 0
        if self._tell is not None:
            self._tell(layer, self._layers, self._total)


def _quantize(
    chain: Chain,
    infos: Sequence[TensorInfo],
    state: Mapping[str, Tensor],
    config: IlwpConfig,
    references: Mapping[str, Tensor] | Provenance,
    progress: _Progress,
) -> ChainSection:
    assert config.bits is not None
    kernels = [finite_kernels(info.name, state[info.name], chain.taps) for info in infos]
    counts = [len(layer) for layer in kernels]
    predictor = PREDICTORS[config.mode]
    given = given_references(chain.layers, counts, references)
    pruned = any(isinstance(value, Origin) for value in references.values())
    if pruned and config.mode != "collocated":
        given = [None] * len(counts)
    progress.finished(chain.layers[0], counts[0])

    def choose(number: int, layer: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        name = chain.layers[number]
        chosen = given[number]
        if chosen is None:
            chosen = predictor.references(layer, earlier, partial(progress.searched, name))
        progress.finished(name, len(layer))
        return chosen

    anchor = stored_anchor(kernels[0], infos[0].dtype, config.anchor)
    if anchor is not None and not bool(anchor.isfinite().all()):
        raise TensorError(f"tensor {infos[0].name!r}: beyond the range of float16; choose anchor='fp32'")
    quantized, _ = quantize_chain(
        kernels, None if anchor is None else anchor.float(), choose, config.bits, STEP_RULES[config.range]
    )
    layers = [] if anchor is None else [CodedLayer(infos[0], None, "none")]
    for number, layer in enumerate(quantized, start=len(layers)):
        ancestral = given[number] if pruned else None
        mode: Mode = storage_mode(layer.references, counts[:number], ancestral) if number else "none"
        layers.append(CodedLayer(infos[number], layer, mode))
    section = ChainSection(chain.kernel_size, anchor, tuple(layers), config.coder)
    for name, tensor in section.tensors.items():
        if not bool(tensor.isfinite().all()):
            raise TensorError(f"layer {name!r}: its residuals overflow {tensor.dtype}; rescale it or leave it out")
    return section


def finite_kernels(name: str, weight: Tensor, taps: int) -> Tensor:
    """A weight as kernels on the CPU, see `method.quantization.as_kernels`. Raises TensorError on NaN or infinity."""
    bad = int((~weight.isfinite()).sum())
    if bad:
        raise TensorError(
            f"tensor {name!r}: {bad} of its {weight.numel()} values are NaN or infinite; mend the model, or leave the "
            "layer out with `ignored_scopes`"
        )
    kernels = as_kernels(weight.cpu(), taps)
    if not bool(kernels.isfinite().all()):
        raise TensorError(f"tensor {name!r}: values beyond the range of float32")
    return kernels


def _directory(
    state: Mapping[str, Tensor], coded: Sequence[str]
) -> tuple[list[TensorInfo], dict[str, Tensor], dict[str, str]]:
    """The directory of a state dict, copies of its untouched tensors, and under which name each coded one is stored.

    Of tensors that share all their memory the first is stored and the others are its aliases, so a coded tensor may be
    stored under another name than that of its layer. Raises TensorError.
    """
    for name, tensor in state.items():
        _check_tensor(name, tensor)
    missing = set(coded) - set(state)
    if missing:
        raise TensorError(
            f"no tensor {min(missing)!r} in the state dict; a parametrization or mask on the layer has to be removed "
            "first (torch.nn.utils.prune.remove, parametrize.remove_parametrizations); zeros stay zeros"
        )
    coded_places = {_place(key, state[key]) for key in coded}
    owners: dict[tuple[Any, ...], int] = {}
    infos: list[TensorInfo] = []
    raw: dict[str, Tensor] = {}
    for position, (name, tensor) in enumerate(state.items()):
        place, shape = _place(name, tensor), tuple(tensor.shape)
        if place in owners:
            infos.append(TensorInfo(name, tensor.dtype, shape, "alias", owners[place]))
            continue
        owners[place] = position
        infos.append(TensorInfo(name, tensor.dtype, shape, "coded" if place in coded_places else "raw"))
        if place not in coded_places:
            raw[name] = tensor.detach().to("cpu", copy=True)  # a snapshot: the model may go on training
    return infos, raw, {key: infos[owners[_place(key, state[key])]].name for key in coded}


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
