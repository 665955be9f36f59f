"""Makes the valid files of the corpus. Files of a released format version are never made anew: they decode for ever.

    python -m tests.corpus.golden       writes valid/v1_*.ilwp of new cases, and adds them to expected.json

`expected.json` holds the SHA-256 of each file, and dtype, shape and SHA-256 of the values of each of its tensors, as
little-endian bytes in row-major order. numpy alone is needed, here and for reading.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin import format as ilwp
from ilwp_plugin.format.coding import AnsCoder, AnsModel, HuffmanCode, HuffmanCoder, Run, Segment, Symbols
from ilwp_plugin.format.coding.ans import _golomb_lengths, _steps
from ilwp_plugin.format.coding.bits import pack_bytes, pack_low_bits
from ilwp_plugin.format.dtypes import DTYPES, cast
from ilwp_plugin.format.stream import varint, zigzag
from tests.corpus import forge
from tests.fuzz.parts import take_apart

FOLDER = Path(__file__).parent / "valid"
MADE_BY = ilwp.MetadataSection({"made by": "tests/corpus/golden.py", "numbers": [1, 2.5, -3, True, None, "ä"]})
Parts = tuple[list[ilwp.TensorInfo], list[ilwp.Section]]

# --- what our writer makes


class Maker:
    """Collects tensors and sections of a file; random numbers are those of a seed, on every machine."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.RandomState(seed)  # its numbers never change
        self.infos: list[ilwp.TensorInfo] = []
        self.raw: dict[str, NDArray[Any]] = {}
        self.sections: list[ilwp.Section] = []

    def info(self, name: str, shape: Sequence[int], dtype: str = "float32", storage: Any = "coded") -> ilwp.TensorInfo:
        self.infos.append(ilwp.TensorInfo(name, dtype, tuple(shape), storage))
        return self.infos[-1]

    def untouched(self, name: str, values: NDArray[Any], dtype: str | None = None) -> None:
        self.info(name, values.shape, dtype or values.dtype.name, "raw")
        self.raw[name] = values

    def alias(self, name: str, of: str) -> None:
        target = next(i for i, info in enumerate(self.infos) if info.name == of)
        info = self.infos[target]
        self.infos.append(ilwp.TensorInfo(name, info.dtype, info.shape, "alias", target))

    def kernels(self, *shape: int, bits: int, sharpness: float = 3.0) -> NDArray[np.int16]:
        """Bell-shaped codes."""
        largest = (1 << (bits - 1)) - 1
        codes = np.rint(self.random.standard_normal(shape) * largest / sharpness).clip(-largest, largest)
        return codes.astype(np.int16)

    def parts(self) -> Parts:
        return self.infos, [*self.sections, *ilwp.RawSection.split(self.infos, self.raw), MADE_BY]


def chain(
    mode: str = "collocated",
    *,
    bits: Sequence[int] = (8, 8, 8),
    anchor: str | None = "float32",
    dtype: str = "float32",
    coder: str = "auto",
    counts: Sequence[int] = (6, 12, 9, 10),
    size: tuple[int, int] = (3, 3),
    zeros: float = 0.0,
    step: float | None = None,
    origins: dict[int, ilwp.Origin] | None = None,
) -> Parts:
    """A file with one chain: an anchor of 6 kernels, then three layers."""
    make = Maker()
    taps, starts = size[0] * size[1], np.cumsum([0, *counts])
    layers: list[ilwp.CodedLayer] = []
    own = list(bits) if anchor is not None else [bits[0], *bits]
    if origins is not None:
        provenance = {f"{i}.conv.weight": origin for i, origin in origins.items()}
        make.sections.append(ilwp.StructureSection(provenance))
        whole = [origins.get(i, ilwp.Origin.whole(count)) for i, count in enumerate(counts)]
    values = None
    for i, count in enumerate(counts):
        info = make.info(f"{i}.conv.weight", (count, 1, *size), dtype)
        make.untouched(f"{i}.norm.running_mean", make.random.standard_normal(count).astype(np.float32))
        if i == 0 and anchor is not None:
            values = cast(make.random.standard_normal((count, taps)).astype(np.float32), anchor)
            layers.append(ilwp.CodedLayer(info, None, "none"))
            continue
        width = own.pop(0)
        references = np.full(count, -1, np.int64)
        if i and mode == "collocated":
            references = starts[i - 1] + np.arange(count) % counts[i - 1]
        elif i and mode == "local":
            references = starts[i - 1] + make.random.randint(0, counts[i - 1], count)
        elif i and mode == "full":
            references = make.random.randint(-1, starts[i], count).astype(np.int64)
        elif i and mode == "ancestral":
            references = ilwp.ancestral_references(whole)[i]
        codes = make.kernels(count, taps, bits=width)
        mapped = None
        if zeros and i % 2 == 0:
            mapped = make.random.random_sample(codes.shape) < zeros
            codes[mapped] = 0
        if width == 2 and i == 2:  # a layer that is what predicts it
            codes[:], own_step = 0, 0.0
        else:
            own_step = float(np.float32((step or 1.0) / (1 << (width - 1))))
        quantized = ilwp.QuantizedLayer(codes, own_step, width, references.astype(np.int64), mapped)
        layers.append(ilwp.CodedLayer(info, quantized, mode if i else "none"))  # type: ignore[arg-type]
    make.alias("shared.weight", f"{len(counts) - 1}.conv.weight")
    make.sections.append(ilwp.ChainSection(size, values, anchor, layers, coder))
    return make.parts()


ORIGINS = {
    0: ilwp.Origin(np.array([1, 2, 3, 5, 6, 7]), 8),
    1: ilwp.Origin(np.array([0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 12, 15]), 16),
    3: ilwp.Origin(np.array([11, 3, 2, 0, 1, 7, 8, 5, 4, 10]), 12),
}


def two_chains() -> Parts:
    """Of two kernel sizes, their layers in turn."""
    infos, sections = [], []
    for size in ((3, 3), (5, 2)):
        own, parts = chain("local", size=size, counts=(4, 5), bits=(5,))
        infos += [ilwp.TensorInfo(f"{size[0]}.{i.name}", i.dtype, i.shape, i.storage, i.alias_of) for i in own[:-1]]
        sections.append(parts)
    names = {info.name: info for info in infos}
    stored: list[ilwp.Section] = []
    values = {}
    for size, parts in zip((3, 5), sections, strict=True):
        for section in parts:
            if isinstance(section, ilwp.ChainSection):
                layers = [
                    ilwp.CodedLayer(names[f"{size}.{layer.info.name}"], layer.quantized, layer.mode)
                    for layer in section.layers
                ]
                stored.append(
                    ilwp.ChainSection(section.kernel_size, section.anchor, section.anchor_dtype, layers, "huffman")
                )
            elif isinstance(section, ilwp.RawSection):
                values.update({f"{size}.{name}": value for name, value in section.values.items()})
    return infos, [*stored, *ilwp.RawSection.split(infos, values)]


def old_pruned_chain() -> Parts:
    """Twenty layers of which the first alone has the ancestors of the last: they are too far away."""
    counts = [4] + [2] * 19
    origins = {0: ilwp.Origin.whole(4), **{i: ilwp.Origin(np.array([2 + i % 2, 0]), 4) for i in range(1, 20)}}
    origins[19] = ilwp.Origin(np.array([3, 1]), 4)
    origins[10] = ilwp.Origin(np.array([3, 1]), 4)
    return chain("ancestral", counts=counts, bits=[4] * 19, origins=origins, size=(2, 2))


def grid() -> Parts:
    """Every form of a tensor on a grid, and every dtype."""
    make = Maker(1)
    infos, values = [], []

    def add(shape: Sequence[int], scale: Any, zero_point: Any = None, axis: int = 0, dtype: str = "float32") -> None:
        if isinstance(scale, tuple):
            scale = make.random.random_sample(scale[0]).astype(np.float32)
        codes = make.kernels(*shape, bits=8)
        if infos and len(shape) == 4 and values[-1].codes.shape == codes.shape:
            codes = values[-1].codes + make.kernels(*shape, bits=3)
        infos.append(make.info(f"{len(infos)}.weight", shape, dtype))
        values.append(ilwp.IntegerTensor(codes, scale, zero_point, axis))

    add((8, 1, 3, 3), (8,))
    add((8, 1, 3, 3), (8,))  # predicted by the first
    add((5, 1, 3, 3), np.float32(0.5))
    add((4, 8), np.float32(0.125), np.array(131))
    add((4, 8), np.float32(0.125))
    add((4, 8), np.float32(0.125), np.array(-7))
    add((4, 3, 2, 2), (3,), np.array([5, -120, 0]), 1, "float16")
    add((6,), np.float32(0.0), dtype="bfloat16")
    add((2, 3, 4), (4,), None, 2, "float64")
    add((), np.float32(0.01))
    make.sections.append(ilwp.GridSection(infos, values, "auto"))
    wide = make.random.randint(-32767, 32768, (40, 50)).astype(np.int16)
    one = make.info("wide", wide.shape)
    make.sections.append(ilwp.GridSection([one], [ilwp.IntegerTensor(wide, np.float32(2**-12))], "ans"))
    return make.parts()


def rows() -> Parts:
    """Of layers whose rows differ, by classes of blocks."""
    make = Maker(11)
    infos, values = [], []
    for shape in ((12, 100), (30, 4, 3, 3), (600,), (3, 1000)):
        spread = make.random.choice([0.2, 2, 15], (shape[0], *[1] * (len(shape) - 1)))
        codes = np.rint(make.random.standard_normal(shape) * spread).clip(-127, 127).astype(np.int16)
        infos.append(make.info(f"{len(infos)}.weight", shape))
        values.append(ilwp.IntegerTensor(codes, np.float32(0.01)))
    make.sections.append(ilwp.GridSection(infos, values, "ans-classes"))
    return make.parts()


def norms(mantissa: int) -> Parts:
    """Every form of a batch norm."""
    make = Maker(mantissa)
    infos, values = [], []
    for i, (channels, eps, tracked, dtype) in enumerate(
        [
            (6, 1e-5, True, "float32"),
            (12, 1e-5, False, "bfloat16"),
            (3, 1e-3, True, "float16"),
            (1, 1e-3, True, "float64"),
        ]
    ):
        roles = ilwp.ROLES if tracked else ilwp.ROLES[:4]
        own = []
        for role in roles:
            if i == 2:
                make.untouched(f"{i}.before_{role}", np.array(role == "bias"))
            own.append(make.info(f"{i}.{role}", () if role == roles[4:] or role[:3] == "num" else (channels,), dtype))
        if tracked:
            last = make.infos.pop()
            make.infos.append(ilwp.TensorInfo(last.name, "int64", (), "coded"))
            own[-1] = make.infos[-1]
        scale = make.random.randint(0, (24 << mantissa) + 1 if i == 1 else 4 << mantissa, channels)
        scale = scale * make.random.choice([-1, 1], channels)
        shift = make.random.randint(-4095, 4096, channels)
        if i == 1:
            scale[:2] = 24 << mantissa, -(24 << mantissa)
        infos.append(tuple(own))
        exponent = -14 if i == 2 else [-20, 3, 0, 100][i]
        step = 0.0 if i == 3 else float(np.float32(2**-7 * 1.1))
        values.append(ilwp.MergedBatchNorm(scale, shift, exponent, mantissa, step, float(np.float32(eps))))
    make.sections.append(ilwp.BatchNormSection(infos, values, "auto"))
    return make.parts()


def every_dtype() -> Parts:
    """Raw tensors: of every dtype, empty, without dimensions, first of all one without dimensions; aliases."""
    make = Maker(2)
    make.untouched("step", np.array(7, np.int64))
    for dtype in DTYPES.values():
        bits = make.random.randint(0, 2 if dtype.kind == "bool" else 256, 6 * dtype.itemsize).astype(np.uint8)
        make.untouched(f"of.{dtype.name}", bits.view(dtype.carrier).reshape(2, 3), dtype.name)
    make.untouched("empty", np.zeros((0, 3), np.float32))
    make.untouched("empty.too", np.zeros((2, 0, 5), bool))
    make.untouched("one", np.array(-0.0))
    make.untouched("ünïcode.☃", np.array([np.nan, np.inf, -np.inf, 1e-45], np.float32))
    make.alias("again", "of.complex64")
    make.alias("empty.again", "empty")
    return make.parts()


def two_raw_sections() -> Parts:
    make = Maker(3)
    for i in range(5):
        make.untouched(f"{i}", make.random.standard_normal(i).astype(np.float32))
    own = [info for info in make.infos if info.storage == "raw"]
    halves = [ilwp.RawSection(part, {i.name: make.raw[i.name] for i in part}) for part in (own[:3], own[3:])]
    return make.infos, [halves[0], MADE_BY, halves[1]]


def aligned() -> Parts:
    """A raw section so large that it begins at a multiple of 64."""
    make = Maker(4)
    make.untouched("flag", np.array([True]))
    make.untouched("large", np.tile(np.arange(16, dtype=np.int32), 1 << 12).reshape(256, 256))
    return make.parts()


def sparse() -> Parts:
    """Maps of zeros, as they are and coded."""
    make = Maker(5)
    infos, values = [], {}
    for i, (dtype, share, count) in enumerate(
        [("float32", 0.5, 27), ("float16", 0.97, 4000), ("bfloat16", 0.2, 64), ("float64", 1.0, 9)]
    ):
        dense = make.random.standard_normal(count).astype(np.float32)
        dense[make.random.random_sample(count) < share] = 0
        info = make.info(f"{i}.weight", (count,), dtype)
        infos.append(info)
        values[info.name] = cast(dense, dtype)
    make.sections.append(ilwp.SparseSection(infos, values))
    return make.parts()


def fields() -> Parts:
    """Fields of every width, in integers of every size."""
    make = Maker(6)
    infos, values, bits = [], {}, {}
    for width in range(1, 9):
        for dtype in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
            carrier = DTYPES[dtype].carrier
            info = make.info(f"{width}.{dtype}", (3, 2), dtype)
            infos.append(info)
            packed = make.random.randint(0, 256, 6 * carrier.itemsize).astype(np.uint8) & 0x77
            values[info.name], bits[info.name] = packed.view(carrier).reshape(3, 2), width
    make.sections.append(ilwp.FieldSection(infos, values, bits))
    return make.parts()


def floats() -> Parts:
    """Planes of bytes, as they are and coded."""
    make = Maker(7)
    infos, values = [], {}
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        info = make.info(dtype, (40, 30), dtype)
        infos.append(info)
        values[info.name] = cast((make.random.standard_normal((40, 30)) * 0.05).astype(np.float32), dtype)
    odd = np.array([np.nan, -np.inf, -0.0, 1e-45] * 30, np.float32)
    infos.append(make.info("odd", odd.shape))
    values["odd"] = odd
    make.sections.append(ilwp.FloatSection(infos, values))
    return make.parts()


def codebooks() -> Parts:
    """Books of several widths, shared and not; indices of one entry."""
    make = Maker(8)
    books = [make.random.standard_normal((n, width)).astype(np.float32) for n, width in ((5, 1), (300, 4), (1, 2))]
    tensors = []
    for i, (book, shape, dtype) in enumerate(
        [(0, (4, 9), "float32"), (1, (10, 8), "float16"), (2, (6,), "bfloat16"), (0, (3, 1, 3, 3), "float64")]
    ):
        count = int(np.prod(shape)) // books[book].shape[1]
        indices = make.random.randint(0, len(books[book]), count)
        tensors.append(ilwp.CodebookTensor(make.info(f"{i}.weight", shape, dtype), book, indices))
    make.sections.append(ilwp.CodebookSection(books, tensors))
    return make.parts()


def arranged() -> Parts:
    """Indices in every form, some of them differences of differences; distances with fillers."""
    make = Maker(9)
    books = [make.random.standard_normal((n, width)).astype(np.float32) for n, width in ((6, 1), (9, 2))]
    tensors = []

    def add(name: str, shape: Sequence[int], indices: NDArray[Any], book: int = 0, **form: Any) -> None:
        tensors.append(ilwp.ArrangedTensor(make.info(name, shape), book, indices, **form))

    kernels = make.random.randint(0, 6, 36)
    add("a.weight", (4, 1, 3, 3), kernels)
    add("b.weight", (6, 1, 3, 3), np.concatenate([kernels, kernels[:18]]), form="collocated", before=0)
    add("c.weight", (3, 1, 3, 3), np.minimum(kernels[:27] + 1, 5), form="collocated", before=1)
    for name, common, longest, share in (("d", 2, 255, 0.9), ("e", 0, 1, 0.7), ("f", 5, 7, 0.97)):
        indices = np.where(make.random.random_sample(600) < share, common, make.random.randint(0, 6, 600))
        add(f"{name}.weight", (20, 30), indices, form="sparse", common=common, longest=longest)
    pairs = np.zeros(50, np.int64)
    pairs[[0, 49]] = 3, 8
    add("g.weight", (10, 10), pairs, 1, form="sparse")
    make.sections.append(ilwp.ArrangedSection(books, tensors))
    return make.parts()


def dithered(levels: bool) -> Parts:
    """Several dtypes, streams and steps; with levels and without."""
    make = Maker(9)
    low, table = -3, np.array([-2.9, -2.0, -1.1, 7.0, 0.8, 2.5], np.float32)
    tensors = []
    for i, (shape, dtype, stream) in enumerate(
        [((4, 9), "float32", 0), ((80,), "float16", 3), ((7, 3), "bfloat16", 1 << 40), ((3, 1, 3, 3), "float64", 1)]
    ):
        codes = make.random.randint(low, low + len(table), shape)
        tensors.append(ilwp.DitheredTensor(make.info(f"{i}.weight", shape, dtype), 0.25 * (i + 1), stream, codes))
    lattice = ilwp.Lattice(0xFEDCBA9876543210, low, table) if levels else ilwp.Lattice(1)
    make.sections.append(ilwp.DitheredSection(lattice, tensors, "huffman"))
    return make.parts()


class _Unknown(ilwp.OpaqueSection):
    """An ancillary section of a kind that nobody knows."""


def unknown_section() -> Parts:
    infos, sections = two_raw_sections()
    return infos, [_Unknown(77, b"whatever"), *sections, _Unknown(1 << 40, b"")]


WRITTEN: dict[str, Callable[[], Parts]] = {
    "none": lambda: chain("none", coder="huffman"),
    "collocated": lambda: chain("collocated"),
    "local": lambda: chain("local", bits=(3, 3, 3)),
    "full": lambda: chain("full", bits=(2, 2, 2)),
    "full_huffman_indices": lambda: chain("full", bits=(4,), counts=(2, 300), coder="huffman"),
    "anchor_float16": lambda: chain(anchor="float16", bits=(5, 5, 5)),
    "anchor_bfloat16": lambda: chain(anchor="bfloat16", bits=(5, 5, 5)),
    "anchor_quantized": lambda: chain("full", anchor=None, bits=(6, 7, 8)),
    "to_float16": lambda: chain(dtype="float16", anchor="float16", bits=(4, 4, 4)),
    "to_bfloat16": lambda: chain(dtype="bfloat16", anchor="bfloat16", bits=(4, 4, 4)),
    "to_float64": lambda: chain(dtype="float64", bits=(4, 4, 4)),
    "subnormal": lambda: chain("collocated", step=2.0**-142, anchor=None, bits=(6, 6, 6)),
    "bits_2_to_15": lambda: chain("local", bits=range(2, 16), counts=[4] * 15, size=(1, 4)),
    "masked": lambda: chain("local", anchor=None, zeros=0.4, bits=(5, 5, 5)),
    "masked_densely": lambda: chain(zeros=0.98, counts=(4, 4, 600), bits=(3, 3)),
    "pruned": lambda: chain("ancestral", origins=ORIGINS),
    "pruned_and_masked": lambda: chain("ancestral", origins=ORIGINS, zeros=0.3),
    "pruned_long_ago": old_pruned_chain,
    "two_chains": two_chains,
    "grid": grid,
    "rows": rows,
    **{f"norms_{mantissa}": (lambda m=mantissa: norms(m)) for mantissa in (1, 5, 8, 12)},
    "every_dtype": every_dtype,
    "two_raw_sections": two_raw_sections,
    "aligned": aligned,
    "sparse": sparse,
    "fields": fields,
    "floats": floats,
    "codebooks": codebooks,
    "arranged": arranged,
    "dithered": lambda: dithered(levels=False),
    "dithered_levels": lambda: dithered(levels=True),
    "unknown_section": unknown_section,
    "nothing": lambda: ([], []),
}

# --- valid files that our writer does not make, but others might


def coded(groups: Sequence[forge.Group], counts: Sequence[int]) -> bytes:
    """A file with a tensor on a grid for each group."""
    file = forge.good()
    first = forge.entry([forge.token("g"), forge.token("0")], forge._CODED | forge.F32, [counts[0]])
    rest = [
        forge.entry([forge.token(str(i))], forge._CODED | forge.F32, [count], shared=1)
        for i, count in enumerate(counts[1:], 1)
    ]
    file.tensors = [first, *rest]
    heads = [forge.varint(i) + (b"\x00" + struct.pack("<f", 0.5) if i == 0 else b"\x08") for i in range(len(counts))]
    body = forge.varint(len(counts)) + b"".join(heads) + b"".join(group.build() for group in groups)
    file.sections = [(forge.GRID, body)]
    return file.build()


def ans_group(symbols: Symbols, mantissa: int, order: int) -> forge.Group:
    """With a table of a given form."""
    run, coder = Run.of(symbols), AnsCoder()
    histogram = run.histogram
    with_levels = [_model(histogram.low, histogram.counts, mantissa)]
    model = with_levels[0]
    values = _steps(model)
    table = forge.varint(zigzag(model.low)) + forge.varint(len(model.levels) - 1) + bytes([mantissa << 4 | order])
    table += pack_bytes(np.arange(len(values)), values + (1 << order), _golomb_lengths(values, order))
    return forge.Group(1, 2, table, coder.encode(model, symbols, run.segments))


def _model(low: int, counts: NDArray[np.int64], mantissa: int) -> AnsModel:
    from ilwp_plugin.format.coding.ans import _levels_of

    return AnsModel(low, _levels_of(counts, mantissa), mantissa)


def huffman_group(symbols: Symbols, code: HuffmanCode | None = None, low_bits: int = 0) -> forge.Group:
    run, coder = Run.of(symbols >> low_bits), HuffmanCoder()
    code = code or coder.fit(run)
    payload = coder.encode(code, run.joined, [Segment.flat(len(symbols))])
    low = pack_low_bits(symbols, low_bits) if low_bits else b""
    return forge.Group(1, 1 | low_bits << 5, coder.table(code), payload, low=low)


def tables() -> bytes:
    """ANS tables of every form; spans of one symbol; a symbol that has nearly all; four streams."""
    random = np.random.RandomState(8)
    symbols = np.rint(random.standard_normal(300) * 3).astype(np.int64)
    groups, counts = [], []
    for mantissa in range(5):
        for order in range(8):
            groups.append(ans_group(symbols, mantissa, order))
            counts.append(len(symbols))
    for own in (
        np.full(5, -3),
        np.array([0] * 9999 + [1]),
        np.array([4] + [3] * 9999),
        np.array([-32767, 32767]),
        (random.random_sample(1 << 16) < 0.01).astype(np.int64),
        (random.random_sample((1 << 16) + 3) < 0.01).astype(np.int64),
    ):
        groups.append(ans_group(own, 2, 0))
        counts.append(len(own))
    return coded(groups, counts)


def codes() -> bytes:
    """Huffman codes of one symbol, of 16 bits, of a wide span; low bits, for both coders."""
    random = np.random.RandomState(9)
    rising = np.repeat(np.arange(20), np.minimum(1 << np.arange(20), 500))
    longest = HuffmanCode(0, np.array([*range(1, 16), 16, 16], np.uint8))
    groups = [
        huffman_group(np.full(13, 5)),
        huffman_group(rising),
        huffman_group(np.arange(17), longest),
        huffman_group(np.array([-32767, 0, 32767])),
    ]
    counts = [13, len(rising), 17, 3]
    for low_bits in range(1, 8):
        symbols = random.randint(-1000, 1000, 101)
        groups.append(huffman_group(symbols, low_bits=low_bits))
        counts.append(len(symbols))
        other = ans_group(symbols >> low_bits, 3, 1)
        groups.append(
            forge.Group(1, 2 | low_bits << 5, other.table, other.payload, low=pack_low_bits(symbols, low_bits))
        )
        counts.append(len(symbols))
    return coded(groups, counts)


def metadata_without_tensors() -> bytes:
    file = forge.File(tensors=[], sections=[(forge.METADATA, b' { "a" : [ [ ] , 1e300 , 18446744073709551615 ] } ')])
    return file.build()


def floats_without_codes() -> bytes:
    file = forge.good()
    forge._floats(0xF, np.arange(16, dtype=np.uint8).tobytes(), [])(file)
    return file.build()


def graph() -> bytes:
    """Packed by a known version of LZMA; others may pack it otherwise."""
    file = forge.good()
    file.sections = [(forge.GRAPH, forge.GRAPH_BODY), (forge.CHAIN, file.chain.build()), (forge.RAW, file.raw)]
    return file.build()


def lzma_codes() -> bytes:
    """Packed by a known version of LZMA; with rests and without, and with low bits."""
    return coded([forge.LZMA_GROUP, forge.LZMA_PLAIN, forge.LZMA_LOW], [105, 5, 5])


def packed_directory() -> bytes:
    """Packed by a known version of LZMA."""
    file = forge.good()
    file.packed = len(varint(len(file.tensors)) + b"".join(file.tensors)), forge.DIRECTORY
    return file.build()


def classes() -> bytes:
    """Classes of blocks: one and several, runs of other lengths together, low bits."""
    together = forge.class_group([[[0, 1], [-1, 0]], [[1, 1, 2], [0, 0, 0], [7]]], [0, 1, 0, 2, 1])
    low = forge.class_group([[[3, 4, 3], [9, 9, 9]]], [1, 0], low=b"\x1b\x50", k=2)
    alone = forge.class_group([[[5, 5, 6, -200]]], [0])
    return coded([together, low, alone], [4, 7, 6, 4])


def many_classes() -> bytes:
    """As many as there can be, places in a Huffman code; and parts of four streams."""
    random = np.random.RandomState(10)
    blocks = [random.randint(-(own % 7), own + 1, 5).tolist() for own in range(64)]
    order = [*range(64), *(0,) * 300, *random.randint(0, 64, 36).tolist()]
    many = forge.class_group([[blocks[own] for own in order]], order)
    long = [(random.random_sample(1 << 15) < chance).astype(int).tolist() for chance in (0.02, 0.02, 0.3)]
    return coded([many, forge.class_group([long], [1, 1, 0])], [2000, 3 << 15])


FORGED: dict[str, Callable[[], bytes]] = {
    "good": lambda: forge.good().build(),
    "tables": tables,
    "codes": codes,
    "metadata_without_tensors": metadata_without_tensors,
    "floats_without_codes": floats_without_codes,
    "graph": graph,
    "lzma": lzma_codes,
    "packed_directory": packed_directory,
    "classes": classes,
    "many_classes": many_classes,
}


def cases() -> dict[str, bytes]:
    """Every case by name, made anew; directories are plain, since other versions of LZMA pack them otherwise."""
    made = {f"v1_{name}": plain(b"".join(ilwp.pack(*make()))) for name, make in WRITTEN.items()}
    return made | {f"v1_other_{name}": make() for name, make in FORGED.items()}


def plain(data: bytes) -> bytes:
    """A file with its directory as it is."""
    parts = take_apart(data)
    assert parts is not None
    return replace(parts, packed=False).build()


def values_of(data: bytes) -> dict[str, str]:
    """Dtype, shape and hash of the values of every tensor."""
    file = ilwp.read(data)
    return {
        info.name: f"{info.dtype} {list(info.shape)} {hashlib.sha256(values.tobytes()).hexdigest()}"
        for info, values in zip(file.infos, file.state(as_bits=True).values(), strict=True)
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    listed = FOLDER / "expected.json"
    expected = json.loads(listed.read_text()) if listed.exists() else {}
    for name, data in cases().items():
        if name not in expected:
            (FOLDER / f"{name}.ilwp").write_bytes(data)
            expected[name] = {"sha256": hashlib.sha256(data).hexdigest(), "tensors": values_of(data)}
    listed.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
