"""A model as its file holds it, with torch's tensors; `ilwp_plugin.format` reads the same file with numpy alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ilwp_plugin import format as ilwp_format
from ilwp_plugin import toolkits
from ilwp_plugin.errors import FormatError, MissingDependencyError, RegistryError, TensorError, warn
from ilwp_plugin.format import container
from ilwp_plugin.format.coding import AUTO
from ilwp_plugin.format.container import SectionBytes, TensorInfo, write_file
from ilwp_plugin.format.integers import IntegerTensor
from ilwp_plugin.format.sections import (
    ChainSection,
    FieldSection,
    FloatSection,
    GraphSection,
    GridSection,
    MetadataSection,
    RawSection,
    Section,
    SparseSection,
    StructureSection,
    Summary,
)
from ilwp_plugin.format.sections.codes import SMALLEST
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.method.provenance import Origin, Provenance
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.loading import load_tensors
from ilwp_plugin.models.names import translate
from ilwp_plugin.models.network import is_weight
from ilwp_plugin.models.resizing import resize_layers
from ilwp_plugin.models.tensors import array_of, dtype_of, same_bits, tensor_of
from ilwp_plugin.models.torch_network import Model, network_of
from ilwp_plugin.pipeline.plan import directory_of
from ilwp_plugin.pipeline.quantize import few

__all__ = ["CompressedModel", "assembled", "load", "loads", "lossless_sections", "untouched"]

S = TypeVar("S", bound=Section)

_PACKED = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WORTH_FIELDS = 64
"""Integers of fewer bytes are not worth a look."""


class CompressedModel:
    """A model as an `.ilwp` file holds it. Made by `compress` and `load`.

    Attributes:
        tensors: the directory: name, dtype, shape and storage of every tensor of the state dict.
        sections: what holds them, in the order of the file.
        left: what is stored as it is: tensors of real or complex numbers, by the name of their layer or norm, or their
            own, with the reason. A file does not tell the reason, and names tensors alone.
        notes: what has to be said of layers, by name; likewise.
        alignment: what `config.align` has done (`pipeline.alignment.AlignmentReport`); likewise.
    """

    alignment: Any = None

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        sections: Sequence[Section],
        *,
        left: Mapping[str, str] | None = None,
        notes: Mapping[str, str] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.tensors, self.sections = tuple(tensors), tuple(sections)
        self.left, self.notes = dict(left or {}), dict(notes or {})
        self._read_ledger = ledger
        self._was_read_back = False

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without what is made of the sections, views of memory among them."""
        made = ("_directory", "_owners", "_encoded")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def _kind(self, kind: type[S]) -> list[S]:
        return [section for section in self.sections if isinstance(section, kind)]

    @property
    def excluded(self) -> dict[str, str]:
        """What is stored as it is, with the reason: `left`."""
        return self.left

    @property
    def chains(self) -> list[ChainSection]:
        """The chains."""
        return self._kind(ChainSection)

    @property
    def metadata(self) -> dict[str, Any]:
        """The JSON object given along, new at each call; empty where none was."""
        found = self._kind(MetadataSection)
        return found[0].value if found else {}

    @property
    def provenance(self) -> dict[str, Origin]:
        """Of a pruned model, the origin of the channels of each layer that lost some."""
        return {
            name: Origin(torch.from_numpy(origin.survivors.copy()), origin.channels)
            for section in self._kind(StructureSection)
            for name, origin in section.provenance.items()
        }

    @property
    def quantized(self) -> dict[str, IntegerTensor]:
        """The tensors that are stored as codes on a grid, by name; those given to `compress` among them."""
        return {
            info.name: value
            for section in self._kind(GridSection)
            for info, value in zip(section.infos, section.values, strict=True)
        }

    @property
    def layers(self) -> list[Summary]:
        """What there is to say about each compressed layer: `name`, `kind`, `shape` and `details`."""
        return [summary for section in self.sections for summary in section.summaries()]

    @cached_property
    def _directory(self) -> dict[str, TensorInfo]:
        return {info.name: info for info in self.tensors}

    @cached_property
    def _owners(self) -> dict[str, Section]:
        return {name: section for section in self.sections for name in section.names}

    @cached_property
    def _encoded(self) -> list[SectionBytes]:
        return [section.encode(self.tensors) for section in self.sections]

    @property
    def ledger(self) -> Ledger:
        """Every byte by part and layer. Exact: `file_bytes` is the size on disk.

        Of a loaded model it is that of the file as it was read; another encoder may have written it differently.
        """
        if self._read_ledger is None:
            self._read_ledger = container.measure(self.tensors, self._encoded)
        return self._read_ledger

    def state_dict(self) -> dict[str, Tensor]:
        """The restored tensors in the order of the original: compressed ones exactly as quantized, the others equal.

        Each call gives new tensors; aliases (shared weights) share theirs, as in the original.
        """
        found = {name: array for section in self.sections for name, array in section.restore_all()}
        restored: dict[str, Tensor] = {}
        for info in self.tensors:
            if info.storage == "alias":
                restored[info.name] = restored[self.tensors[info.alias_of].name]
            else:
                restored[info.name] = tensor_of(found.pop(info.name), dtype_of(info.dtype))
        return restored

    def tensor(self, name: str) -> Tensor:
        """One restored tensor, new. What is in memory are the codes, in two bytes a weight; only this one is restored.

        Raises:
            TensorError: the file has no tensor of this name.
        """
        if name not in self._directory:
            raise TensorError(f"no tensor {name!r} in the file; it has {few(list(self._directory))}")
        info = self._directory[name]
        if info.storage == "alias":
            return self.tensor(self.tensors[info.alias_of].name)
        return tensor_of(self._owners[name].restore(name), dtype_of(info.dtype))

    def apply_to(self, model: nn.Module) -> None:
        """Load the restored tensors into a model.

        A file of a model in a wrapper (`module.`, `_orig_mod.` in its names) fits the model without it, and the other
        way round; so does one whose names all have one prefix more or less. A model on the meta device gets the
        tensors on the CPU. Into a model that a toolkit has quantized, the scales of its quantizers are loaded, too.

        Raises:
            TensorError: names, shapes or dtypes do not fit, or the model has no values where the file has none either;
                the model is as it was.
        """
        model = unwrap(model)
        own, restored = model.state_dict(), self.state_dict()
        added = toolkits.function_for(model, "added_state")
        if added is not None:
            restored.update(added(model, self))
        names = translate(own, restored)
        if names is None:
            missing = [name for name in own if name not in restored]
            unexpected = [name for name in restored if name not in own]
            raise TensorError(
                f"the file does not fit {type(model).__name__}: "
                f"not in the file: {few(missing)}; not in the model: {few(unexpected)}"
            )
        restored = {name: restored[stored] for name, stored in names.items()}
        for name, tensor in restored.items():
            mine = own[name]
            if is_lazy(mine):
                raise TensorError(
                    f"tensor {name!r} belongs to a lazy layer whose shape is not known; run the model once"
                )
            if mine.shape != tensor.shape or mine.dtype != tensor.dtype:
                raise TensorError(
                    f"tensor {name!r} does not fit {type(model).__name__}: expected {tuple(mine.shape)} {mine.dtype}, "
                    f"got {tuple(tensor.shape)} {tensor.dtype}"
                )
        own.update(restored)  # with the versions of its modules: torch resets values of older ones as it loads them
        load_tensors(model, own)

    def restore(self, model: nn.Module) -> nn.Module:
        """Load the restored tensors into the original class, whose layers take the shapes that pruning has left.

        A model that a toolkit has quantized becomes what it was: the toolkit's integration puts the quantizers of its
        weights and activations on, with their scales. Where the toolkit is not installed, a warning says so, and the
        model computes with the same weights, and with activations in floating point.

        Args:
            model: as its class makes it, before any pruning; it is changed in place.

        Returns:
            The model; one that was quantized is in eval mode.

        Raises:
            TensorError: the names do not fit, or a shape is not that of a pruned layer of its kind; the model is as it
                was. Or another version of the toolkit has quantized it; see `restore_weights`.
        """
        if "quantizers" not in self.metadata:
            return self.restore_weights(model)
        toolkit = str(self.metadata.get("toolkit", "toolkit"))
        try:
            restored: nn.Module = toolkits.load(toolkit).restore(self, model)
        except (MissingDependencyError, RegistryError) as error:
            warn(
                f"the file is of a model that {toolkit} has quantized: its weights are restored, the quantizers of its "
                f"activations are not: {error}"
            )
            return self.restore_weights(model)
        return restored

    def restore_weights(self, model: nn.Module) -> nn.Module:
        """As `restore`, without any toolkit: activations are in floating point."""
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
        state = network_of(model).state
        self.check_compressed_in(state)
        kept = self._kept
        directory, raw, _ = directory_of(state, [name for section in kept for name in section.names])
        metadata = self.metadata if metadata is None else metadata
        extra = [section for section in self.sections if section.ancillary and not isinstance(section, MetadataSection)]
        sections = [*self._kind(StructureSection), *kept]
        return assembled(directory, sections, raw, metadata, left=self.left, extra=extra).read_back()

    @property
    def _kept(self) -> list[Section]:
        """Sections of tensors that are compressed."""
        return [section for section in self.sections if section.names and not section.lossless]

    def check_compressed_in(self, model: Model) -> None:
        """Raises TensorError where a compressed tensor is missing in a model, or has changed since."""
        state = network_of(model).state
        for name in (name for section in self._kept for name in section.names):
            if name not in state or not same_bits(state[name].detach().cpu(), self.tensor(name)):
                how = "changed since it was compressed" if name in state else "not there any more"
                raise TensorError(f"tensor {name!r} is {how}; compress the model again")

    def read_back(self) -> CompressedModel:
        """Itself, once all that is encoded in the file was decoded again and found to be the same.

        Raises:
            FormatError: a fault of this package. `compress` returns nothing that was not read back.
        """
        if self._was_read_back:
            return self
        try:
            ilwp_format.reread(self.tensors, self.sections, self._encoded)
        except FormatError as error:
            raise FormatError(
                f"a fault of ilwp-plugin, please report it: it cannot read what it wrote: {error}", error.code
            ) from error
        self._was_read_back = True
        return self

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return b"".join(self._pack())

    def save(self, path: str | os.PathLike[str]) -> Ledger:
        """Write the file atomically, and verify it by reading it back.

        Returns:
            The ledger of the file.

        Raises:
            FileError: the file cannot be written; what was at the path before is untouched.
            FormatError: a fault of this package, or of the disk: what is read back differs.
        """

        self.read_back()

        def verify(data: memoryview) -> None:
            at = 0
            for chunk in self._pack():
                if data[at : at + len(chunk)] != chunk:
                    raise FormatError(f"the file differs within {len(chunk)} bytes from byte {at} on")
                at += len(chunk)
            if at != len(data):
                raise FormatError(f"the file has {len(data)} bytes, not {at}")

        write_file(path, self._pack(), verify)
        self._read_ledger = None  # of a loaded model: now it is what this version writes
        return self.ledger

    def _pack(self) -> Iterator[bytes | memoryview]:
        return container.pack(self.tensors, self._encoded)


def untouched(compressed: CompressedModel) -> set[str]:
    """Names of the tensors whose sections change no value; a recipe may have rounded norms before."""
    return {name for section in compressed.sections if section.lossless for name in section.names}


def lossless_sections(
    directory: Sequence[TensorInfo], raw: Mapping[str, Tensor], coding: str = AUTO
) -> tuple[list[TensorInfo], list[Section]]:
    """Tensors that nothing quantizes, each in the section that holds it in the fewest bytes.

    Args:
        directory: of the file.
        raw: the tensors, by name.
        coding: of integers and floating-point numbers: AUTO, or SMALLEST, which takes longer.

    Returns:
        The directory, where those that are not stored as they are are "coded", and the sections.
    """
    by_name = {info.name: info for info in directory}
    sparse, fields, floats, left = (dict[str, Any]() for _ in range(4))
    bits: dict[str, int] = {}
    for name, tensor in raw.items():
        info, values = by_name[name], array_of(tensor)
        # A mask times a negative weight is -0, which computes as 0 does.
        unsigned = array_of(tensor + 0.0) if is_weight(tensor) else None
        sizes: dict[str, float] = {"raw": info.nbytes}
        if unsigned is not None and (size := SparseSection.size(info, unsigned)) is not None:
            sizes["sparse"] = size + 2
        if (size_of_floats := FloatSection.size(info, values)) is not None:
            sizes["floats"] = size_of_floats
        if info.nbytes >= _WORTH_FIELDS and tensor.dtype in _PACKED:
            bits[name] = FieldSection.best_bits(info, values)
            if (size_of_fields := FieldSection.size(info, values, bits[name])) is not None:
                sizes["fields"] = size_of_fields + 8
        best = min(sizes, key=lambda kind: sizes[kind])
        if best == "sparse":
            sparse[name] = unsigned
        else:
            {"raw": left, "floats": floats, "fields": fields}[best][name] = values
    own = {
        name: replace(info, storage="coded") if name in {*sparse, *fields, *floats} else info
        for name, info in by_name.items()
    }

    def infos(names: Mapping[str, Any]) -> list[TensorInfo]:
        return [own[name] for name in names]

    sections: list[Section] = []
    if sparse:
        sections.append(SparseSection(infos(sparse), sparse))
    if fields:
        sections.append(FieldSection(infos(fields), fields, {name: bits[name] for name in fields}, coding))
    if floats:
        sections.append(FloatSection(infos(floats), floats, coding))
    return list(own.values()), [*sections, *RawSection.split(list(own.values()), left)]


def assembled(
    directory: Sequence[TensorInfo],
    sections: Sequence[Section],
    raw: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
    *,
    left: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    extra: Sequence[Section] = (),
) -> CompressedModel:
    """A file of sections that recipes have given, and of everything else as it is.

    Args:
        directory: of the file.
        sections: of the recipes.
        raw: the tensors that none of them holds, by name.
        metadata: a JSON object to store along.
        left: see `CompressedModel`.
        notes: likewise.
        extra: further sections, which hold no tensors.
    """
    # Graphs of other formats bring many small tensors along.
    coding = SMALLEST if any(isinstance(section, GraphSection) for section in extra) else AUTO
    infos, others = lossless_sections(directory, raw, coding)
    stored: list[Section] = [MetadataSection(metadata)] if metadata else []
    return CompressedModel(infos, [*sections, *others, *extra, *stored], left=left, notes=notes)


def structure_section(provenance: Provenance) -> StructureSection | None:
    """The section of origins of channels; None where nothing was pruned."""
    origins = {
        name: ilwp_format.Origin(origin.survivors.numpy(), origin.channels) for name, origin in provenance.items()
    }
    lost = {name: origin for name, origin in origins.items() if not origin.is_whole}
    return StructureSection(lost) if lost else None


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> CompressedModel:
    """Read an `.ilwp` file.

    Args:
        path: the file.
        max_bytes: refuse a file that takes more memory than this, in bytes, to read; tensors that share memory count in
            full.

    Raises:
        FileError: it cannot be read.
        FormatError: it is no valid `.ilwp` file.
        LimitError: over `max_bytes`.
    """
    return _of(ilwp_format.read(path, max_bytes=max_bytes))


def loads(data: bytes | memoryview, where: str = "data", *, max_bytes: int | None = None) -> CompressedModel:
    """Like `load`, from the content of a file.

    Args:
        data: the content.
        where: what names it in messages.
        max_bytes: see `load`.

    Raises:
        FormatError, LimitError: see `load`.
    """
    return _of(ilwp_format.read(data, where=where, max_bytes=max_bytes))


def _of(file: ilwp_format.IlwpFile) -> CompressedModel:
    return CompressedModel(file.infos, file.sections, left=file.left, ledger=file.ledger)
