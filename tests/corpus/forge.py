"""Makes the malformed files of the corpus: well signed, so that the checks behind the checksums are reached.

    python -m tests.corpus.forge        writes malformed/*.ilwp and expected.json anew

Every case is a valid file with one thing changed. `expected.json` holds the code of FORMAT.md that each must be refused
with; the message that is expected of our own reader stands here.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format.budget import Budget
from ilwp_plugin.format.coding import AnsCoder, HuffmanCode, HuffmanCoder, Run, write_indices
from ilwp_plugin.format.container.archive import read_archive
from ilwp_plugin.format.stream import ByteWriter

FOLDER = Path(__file__).parent
MAGIC = b"\x89ILWP\r\n\x1a"
RAW, CHAIN, METADATA, GRID, BATCH_NORM, STRUCTURE, SPARSE, FIELDS, FLOATS = 1, 2, 3, 4, 5, 6, 7, 8, 9
GRAPH, CODEBOOK, DITHERED, ARRANGED = 10, 11, 12, 13
LARGE = 1 << 18
IS_PACKED = 1 << 31
F32, U8, I64, BOOL, F8 = 0, 4, 8, 9, 12
_RAW, _CODED, _ALIAS, _SAME = 0 << 5, 1 << 5, 2 << 5, 0x80


def varint(value: int) -> bytes:
    writer = ByteWriter()
    writer.varint(value)
    return writer.getvalue()


def token(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return b"\0" + varint(len(raw)) + raw


def entry(name: list[bytes], code: int, shape: list[int] | None = None, shared: int = 0, extra: bytes = b"") -> bytes:
    """A directory entry; `name` holds its tokens."""
    dims = b"" if shape is None else varint(len(shape)) + b"".join(varint(d) for d in shape)
    return varint(shared) + varint(len(name)) + b"".join(name) + bytes([code]) + dims + extra


def indices(values: NDArray[Any], bound: int) -> bytes:
    """An index stream."""
    writer = ByteWriter()
    write_indices(writer, values, bound)
    return writer.getvalue()


def table(low: int, lengths: list[int]) -> bytes:
    return HuffmanCoder().table(HuffmanCode(low, np.array(lengths, dtype=np.uint8)))


@dataclass
class Group:
    layers: int = 1
    coder: int = 1
    table: bytes = b""
    payload: bytes = b""
    length: int | None = None
    low: bytes = b""

    def build(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        return varint(self.layers) + bytes([self.coder]) + self.table + varint(length) + self.payload + self.low


def group(codes: list[int], layers: int = 1) -> Group:
    coder, run = HuffmanCoder(), Run.of(np.array(codes, dtype=np.int64))
    model = coder.fit(run)
    return Group(layers, 1, coder.table(model), coder.encode(model, run.joined, run.segments))


@dataclass
class Chain:
    """The chain section: an anchor a of 2 kernels, then b of 2 (collocated), then c of 2 (full)."""

    size: tuple[int, int] = (2, 1)
    anchor_kind: int = 1
    count: int | None = None
    heads: list[bytes] = field(default_factory=list)
    anchor: bytes = struct.pack("<4f", 1, 2, 3, 4)
    groups: list[Group] = field(default_factory=lambda: [group([0, 1, -1, 0, 1, 1, 0, 0], 2)])
    references: bytes = b"\x00\x60\x00\x40"  # u = 1, 2 of 0..2 and v = 0, 1 of 0..1, both of fixed width
    tail: bytes = b""

    def build(self) -> bytes:
        count = len(self.heads) if self.count is None else self.count
        parts = [varint(self.size[0]), varint(self.size[1]), bytes([self.anchor_kind]), varint(count), *self.heads]
        return b"".join([*parts, self.anchor, *(g.build() for g in self.groups), self.references, self.tail])


def head(tensor: int, mode: int = 1, bits: int = 4, step: float | bytes = 0.5) -> bytes:
    return varint(tensor) + bytes([mode << 4 | bits]) + (step if isinstance(step, bytes) else struct.pack("<f", step))


@dataclass
class File:
    """A whole file; every length and checksum is computed unless it is given."""

    magic: bytes = MAGIC
    version: int = 1
    tensors: list[bytes] = field(default_factory=list)
    tensor_count: int | None = None
    packed: tuple[int, bytes] | None = None
    chain: Chain = field(default_factory=Chain)
    raw: bytes = struct.pack("<3f", 1, 2, 3)
    metadata: bytes | None = None
    structure: bytes | None = None
    sections: list[tuple[int, bytes]] | None = None
    section_count: int | None = None
    section_lengths: dict[int, int] = field(default_factory=dict)
    section_crcs: dict[int, int] = field(default_factory=dict)
    other_importance: tuple[int, ...] = ()
    padding: bytes = b"\0"
    header_tail: bytes = b""
    header_length: int | None = None
    header_crc: int | None = None
    digest: bytes | None = None
    tail: bytes = b""

    def build(self) -> bytes:
        sections = self.sections
        if sections is None:
            sections = [] if self.structure is None else [(STRUCTURE, self.structure)]
            sections.append((CHAIN, self.chain.build()))
            sections += [] if self.metadata is None else [(METADATA, self.metadata)]
            sections.append((RAW, self.raw))
        count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        header = varint(count) + b"".join(self.tensors)
        if self.packed is not None:
            size, stream = self.packed
            header = varint(size) + varint(len(stream)) + stream
        header += varint(len(sections) if self.section_count is None else self.section_count)
        for i, (kind, body) in enumerate(sections):
            header += varint(kind << 1 | (kind in (METADATA, GRAPH)) ^ (i in self.other_importance))
            header += varint(self.section_lengths.get(i, len(body)))
            header += struct.pack("<I", self.section_crcs.get(i, zlib.crc32(body)))
        header += self.header_tail
        length = len(header) if self.header_length is None else self.header_length
        length |= 0 if self.packed is None else IS_PACKED
        front = self.magic + struct.pack("<BI", self.version, length) + header
        front += struct.pack("<I", zlib.crc32(front) if self.header_crc is None else self.header_crc)
        content = bytearray(front)
        for _, body in sections:
            if len(body) >= LARGE:
                content += self.padding * (-len(content) % 64)
            content += body
        content += self.tail
        digest = hashlib.sha256(content).digest()[:16] if self.digest is None else self.digest
        return bytes(content) + digest


def signed(data: bytes) -> bytes:
    """A file whose checksums are made anew, as far as its header can be read."""
    changed = bytearray(data)
    (length,) = struct.unpack_from("<I", changed, len(MAGIC) + 1)
    body = len(MAGIC) + 5 + (length & ~IS_PACKED)
    if body + 4 <= len(changed) - 16:
        try:
            archive = read_archive(
                memoryview(_header_signed(changed, body)), "", Budget(len(changed), ""), verify=False
            )
        except FormatError:
            archive = None
        at = body
        for entry in reversed(archive.sections if archive else ()):
            at = changed.rindex(struct.pack("<I", entry.crc), 0, at)
            struct.pack_into("<I", changed, at, zlib.crc32(changed[entry.offset : entry.offset + entry.length]))
        changed = _header_signed(changed, body)
    changed[-16:] = hashlib.sha256(changed[:-16]).digest()[:16]
    return bytes(changed)


def _header_signed(data: bytearray, body: int) -> bytearray:
    changed = bytearray(data)
    struct.pack_into("<I", changed, body, zlib.crc32(changed[:body]))
    return changed


def good() -> File:
    """Three layers of one chain, and a bias."""
    file = File()
    file.tensors = [
        entry([token("a"), token("weight")], _CODED | F32, [2, 1, 2, 1]),
        entry([token("b"), varint(2)], _CODED | F32 | _SAME),
        entry([varint(3), token("bias")], _RAW | F32, [3]),
        entry([token("c"), varint(2)], _CODED | F32, [2, 1, 2, 1]),
    ]
    file.chain.heads = [varint(0), head(1), head(3, mode=3)]
    return file


CASES: dict[str, tuple[Callable[[File], object], str, str]] = {}


def case(name: str, code: str, message: str) -> Callable[[Callable[[File], object]], Callable[[File], object]]:
    """Register a change to the good file, and the code and a part of the message that it must be refused with."""

    def enter(change: Callable[[File], object]) -> Callable[[File], object]:
        if name in CASES:
            raise ValueError(name)
        CASES[name] = (change, code, message)
        return change

    return enter


GRAPH_HEX = "e002cf001d5d00339c8846bc2b0e1806209331f9b1aeec4e2da5c59bd00b7cfe2992400000"


def change(name: str, code: str, message: str, edit: Callable[[File], object]) -> None:
    case(name, code, message)(edit)


def _set(**values: object) -> Callable[[File], object]:
    return lambda f: [setattr(f, key, value) for key, value in values.items()]


def _chain(**values: object) -> Callable[[File], object]:
    return lambda f: [setattr(f.chain, key, value) for key, value in values.items()]


def _tensor(position: int, value: bytes) -> Callable[[File], object]:
    return lambda f: f.tensors.__setitem__(position, value)


def _head(position: int, value: bytes) -> Callable[[File], object]:
    return lambda f: f.chain.heads.__setitem__(position, value)


def _all(*edits: Callable[[File], object]) -> Callable[[File], object]:
    return lambda f: [edit(f) for edit in edits]


BIAS = [token("d"), token("bias")]

# --- frame
change("bad_magic", "not-ilwp", "not an .ilwp file", _set(magic=b"\x89PNG\r\n\x1a\n"))
change("text_mode_magic", "not-ilwp", "not an .ilwp file", _set(magic=b"\x89ILWP\n\x1a\n"))
change(
    "version_future",
    "version",
    "format version 2, this version of ilwp-plugin reads 1; a newer one is needed",
    _set(version=2),
)
change("version_zero", "version", "format version 0", _set(version=0))
change(
    "header_length_too_large",
    "header-too-large",
    "truncated or damaged; the header claims",
    _set(header_length=1 << 30),
)
change("header_length_too_small", "header-checksum", "the checksum of the header does not match", _set(header_length=9))
change("header_checksum", "header-checksum", "the checksum of the header does not match", _set(header_crc=1))
change("file_checksum", "file-checksum", "the checksum of the file does not match", _set(digest=bytes(16)))
change(
    "section_checksum",
    "section-checksum",
    "section 1 (raw): damaged; its checksum does not match",
    _set(section_crcs={1: 7}),
)
DIRECTORY = bytes.fromhex(
    "e00032002e5d0001fffc6496e00bcf80af33dea4bb7bb11e1b9e73a66cc9efc4c56556c1d6e025e329efbc451154f9a697a434000000"
)
"""That of `good`, packed by a known version of LZMA."""

change("packed_too_large", "range", "a directory of 524,289 bytes is packed", _set(packed=((1 << 19) + 1, DIRECTORY)))
change("packed_of_another_size", "payload", "a directory of other than 52 bytes", _set(packed=(52, DIRECTORY)))
change("packed_and_cut", "payload", "a directory of other than 51 bytes", _set(packed=(51, DIRECTORY[:-1])))
change("packed_and_more", "payload", "a directory of other than 51 bytes", _set(packed=(51, DIRECTORY + b"\0")))
change("packed_garbage", "payload", "a directory that cannot be unpacked", _set(packed=(51, b"\x55" * 9)))
change(
    "packed_with_a_rest",
    "too-long",
    "1 bytes too many",
    _set(
        packed=(
            52,
            bytes.fromhex(
                "e00033002e5d0001fffc6496e00bcf80af33dea4bb7bb11e1b9e73a66cc9efc4c56556c1d6e025e329efbc451154f9a7bfdc"
                "34000000"
            ),
        )
    ),
)
change("packed_nothing", "too-short", "needs 1 bytes, 0 are left", _set(packed=(0, b"\0")))
change("trailing_bytes", "trailing-bytes", "there are bytes too many", _set(tail=b"\0"))
change("header_trailing_bytes", "too-long", "1 bytes too many", _set(header_tail=b"\0"))
change("section_longer_than_file", "truncated", "truncated; the header describes", _set(section_lengths={1: 4096}))
change(
    "section_length_2_63",
    "number-too-large",
    "a number of more than 63 bits",
    _set(sections=[], section_count=2, header_tail=b"\x01" + b"\xff" * 9 + b"\x01" + bytes(12)),
)
change("section_hole", "trailing-bytes", "there are bytes too many", _set(section_lengths={1: 11}))
change("section_overlap", "truncated", "truncated; the header describes", _set(section_lengths={0: 60}))
change(
    "section_kind_unknown",
    "section-unknown",
    "section 0 (unknown), byte 0: unknown kind 63",
    _set(sections=[(63, b"abc")]),
)
change("section_count_too_large", "count", "sections cannot be listed", _set(section_count=1 << 40))
change(
    "no_raw_section",
    "ownership",
    "'b.bias' is in 0 sections",
    lambda f: setattr(f, "sections", [(CHAIN, f.chain.build())]),
)
change(
    "two_raw_sections",
    "too-long",
    "12 bytes too many",
    lambda f: setattr(f, "sections", [(CHAIN, f.chain.build()), (RAW, f.raw), (RAW, f.raw)]),
)

change(
    "section_critical_metadata", "form", "a metadata section is ancillary", _set(metadata=b"{}", other_importance=(1,))
)
change("section_ancillary_chain", "form", "a chain section is not ancillary", _set(other_importance=(0,)))
change(
    "metadata_twice",
    "section-twice",
    "a second section of a kind",
    lambda f: setattr(f, "sections", [(METADATA, b"{}"), (METADATA, b"{}"), (CHAIN, f.chain.build()), (RAW, f.raw)]),
)


@case("section_padding", "padding", "the padding before a section is not zero")
def _(file: File) -> None:
    file.tensors[2] = entry([varint(3), token("bias")], _RAW | F32, [LARGE // 4])
    file.raw, file.padding = bytes(LARGE), b"\1"


# --- directory
change("tensor_count_too_large", "count", "tensors cannot be listed", _set(tensor_count=1 << 40))
change(
    "name_duplicate",
    "name",
    "duplicate name 'b.weight'",
    _tensor(3, entry([varint(3), varint(2)], _CODED | F32, [2, 1, 2, 1])),
)
change(
    "name_dot_dot_slash",
    "name",
    "has an empty component",
    _tensor(2, entry([token(""), token(""), token("/x")], _RAW | F32, [3])),
)
change("name_nul", "name", "holds a control character", _tensor(2, entry([token("a\0b")], _RAW | F32, [3])))
change("name_empty", "name", "has 0 bytes, expected 1 to 1,024", _tensor(2, entry([], _RAW | F32, [3])))
change(
    "name_too_long",
    "name",
    "a component of its name has 1025 bytes",
    _tensor(2, entry([token("x" * 1025)], _RAW | F32, [3])),
)
change(
    "name_joined_too_long",
    "name",
    "its name has more than 1024 characters",
    _tensor(2, entry([token("x" * 600), varint(4)], _RAW | F32, [3])),
)
change("name_c1_control", "name", "holds a control character", _tensor(2, entry([token("a\x9b31m")], _RAW | F32, [3])))
change(
    "shape_empty_but_huge",
    "shape",
    "is larger than any memory",
    _tensor(2, entry(BIAS, _RAW | F32, [0, 1 << 61, 1 << 61])),
)
change(
    "shape_300_dimensions",
    "shape",
    "300 dimensions, expected at most 64",
    _tensor(2, entry(BIAS, _RAW | F32, [1 << 62] * 300)),
)
change("metadata_surrogate", "metadata", "lone surrogate", _set(metadata=b'{"a":"\\ud800"}'))
change("metadata_empty", "metadata", "metadata is not JSON", _set(metadata=b""))
change("name_not_utf8", "name", "its name is not UTF-8", _tensor(2, entry([token(b"\xff")], _RAW | F32, [3])))
change(
    "name_dot_in_component", "name", "has a dot inside a component", _tensor(2, entry([token("a.b")], _RAW | F32, [3]))
)
change("name_unknown_token", "name", "unknown component 77", _tensor(2, entry([varint(77)], _RAW | F32, [3])))
change(
    "name_shares_too_much", "name", "shares or adds more components", _tensor(2, entry(BIAS, _RAW | F32, [3], shared=9))
)
change("dtype_unknown", "dtype", "d.bias: unknown dtype 20", _tensor(2, entry(BIAS, _RAW | 20, [3])))
change(
    "packed_nowhere",
    "ownership",
    "is in 0 sections, expected 1",
    _all(_tensor(2, entry(BIAS, _CODED, [3])), _set(raw=b"")),
)
change("storage_unknown", "storage", "d.bias: unknown storage 3", _tensor(2, entry(BIAS, 3 << 5, [3])))
change("dtype_extended", "dtype", "d.bias: unknown dtype 31", _tensor(2, entry(BIAS, _RAW | 31, [3])))
change(
    "shape_2_63",
    "number-too-large",
    "a number of more than 63 bits",
    _tensor(2, varint(0) + varint(2) + b"".join(BIAS) + bytes([F32, 1]) + b"\xff" * 9 + b"\x01"),
)
change(
    "shape_overlong_number",
    "number-not-shortest",
    "written in more bytes than it needs",
    _tensor(2, varint(0) + varint(2) + b"".join(BIAS) + bytes([F32, 1]) + b"\x83\x00"),
)
change(
    "shape_product_overflow",
    "shape",
    "is larger than any memory",
    _tensor(2, entry(BIAS, _RAW | F32, [1 << 40, 1 << 40])),
)
change(
    "shape_product_wraps_to_3",
    "shape",
    "is larger than any memory",
    _tensor(2, entry(BIAS, _RAW | F32, [(1 << 62) + 3, 4])),
)
change(
    "shape_too_many_dimensions",
    "shape",
    "dimensions, expected at most 64",
    _tensor(2, varint(0) + varint(2) + b"".join(BIAS) + bytes([F32]) + varint(1 << 30)),
)
change(
    "alias_of_itself",
    "alias",
    "an alias has to refer to an earlier tensor, got 2",
    _tensor(2, entry(BIAS, _ALIAS | F32, extra=varint(2))),
)
change(
    "alias_forward",
    "alias",
    "an alias has to refer to an earlier tensor, got 3",
    _tensor(2, entry(BIAS, _ALIAS | F32, extra=varint(3))),
)
change(
    "alias_other_dtype",
    "alias",
    "not a valid alias of a.weight",
    _tensor(2, entry(BIAS, _ALIAS | I64, extra=varint(0))),
)
change(
    "alias_of_alias",
    "alias",
    "not a valid alias of d.bias",
    _all(
        _tensor(2, entry(BIAS, _ALIAS | F32, extra=varint(0))),
        lambda f: f.tensors.append(entry([token("e")], _ALIAS | F32, extra=varint(2))),
    ),
)

change(
    "alias_with_shape",
    "alias",
    "not a valid alias of a.weight",
    _tensor(2, entry(BIAS, _ALIAS | F32 | _SAME, extra=varint(0))),
)

# --- raw section
change("raw_too_short", "too-short", "needs 12 bytes, 11 are left", _set(raw=bytes(11)))
change("raw_too_long", "too-long", "1 bytes too many", _set(raw=bytes(13)))
change(
    "raw_bool_2",
    "value",
    "a bool that is neither 0 nor 1",
    _all(_tensor(2, entry(BIAS, _RAW | BOOL, [3])), _set(raw=b"\0\1\2")),
)

change(
    "raw_tensor_cut",
    "too-short",
    "needs 12 bytes, 8 are left",
    lambda f: setattr(f, "sections", [(CHAIN, f.chain.build()), (RAW, f.raw[:8]), (RAW, f.raw[8:])]),
)

# --- metadata
change("metadata_duplicate_key", "metadata", "duplicate key 'a'", _set(metadata=b'{"a":1,"a":2}'))
change("metadata_nan", "metadata", "NaN is no JSON number", _set(metadata=b'{"a":NaN}'))
change("metadata_overflow_to_infinity", "metadata", "1e999 is too large", _set(metadata=b'{"a":1e999}'))
change("metadata_deep_nesting", "metadata", "nested too deeply", _set(metadata=b'{"a":' + b"[" * 50000))
change(
    "metadata_nesting_17", "metadata", "nested deeper than 16", _set(metadata=b'{"a":' + b"[" * 17 + b"]" * 17 + b"}")
)
change("metadata_not_an_object", "metadata", "metadata is a list", _set(metadata=b"[1]"))
change("metadata_not_json", "metadata", "metadata is not JSON", _set(metadata=b"{"))
change("metadata_not_utf8", "metadata", "metadata is not JSON", _set(metadata=b'{"a":"\xff"}'))

change("metadata_integer", "metadata", "an integer of more than 64 bits", _set(metadata=b'{"a":18446744073709551616}'))

# --- chain section: layers
change("chain_anchor_unknown", "form", "unknown storage 9 of the anchor", _chain(anchor_kind=9))
change("chain_without_layers", "count", "a chain of 0 layers", _chain(count=0))
change("chain_too_many_layers", "count", "a chain of 1099511627776 layers", _chain(count=1 << 40))
change("chain_tensor_out_of_range", "position", "a chain refers to tensor 99", _head(1, head(99)))
change("chain_tensor_raw", "unfit", "b.bias: a chain holds a tensor that is raw", _head(1, head(2)))
change("chain_tensor_twice", "ownership", "tensor 'b.weight' is in 2 sections, expected 1", _head(2, head(1, mode=3)))
change(
    "chain_tensor_missing",
    "ownership",
    "tensor 'c.weight' is in 0 sections, expected 1",
    _all(lambda f: f.chain.heads.__delitem__(2), _chain(groups=[group([0, 1, -1, 0])], references=b"")),
)
change(
    "chain_integer_tensor",
    "unfit",
    "a chain holds a tensor that is coded, int64",
    _tensor(3, entry([token("c"), varint(2)], _CODED | I64, [2, 1, 2, 1])),
)
change(
    "chain_float8_tensor",
    "unfit",
    "a chain holds a tensor that is coded, float8_e4m3fn",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F8, [2, 1, 2, 1])),
)
change(
    "chain_other_kernel_size",
    "unfit",
    "shape (2, 1, 1, 2) in a chain of 2x1 kernels",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F32, [2, 1, 1, 2])),
)
change(
    "chain_empty_tensor",
    "unfit",
    "shape (0, 1, 2, 1) in a chain",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F32, [0, 1, 2, 1])),
)
change(
    "chain_rank_3",
    "unfit",
    "shape (2, 2, 1) in a chain",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F32, [2, 2, 1])),
)
change(
    "chain_2_40_weights",
    "payload",
    "symbols cannot fit in",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F32, [1 << 39, 1, 2, 1])),
)
change("mode_unknown", "form", "unknown mode 5 or bit width 4", _head(1, head(1, mode=5)))
change("bits_1", "form", "unknown mode 1 or bit width 1", _head(1, head(1, bits=1)))
change("bits_0", "form", "unknown mode 1 or bit width 0", _head(1, head(1, bits=0)))
change("step_nan", "range", "step nan, expected a finite number >= 0", _head(1, head(1, step=float("nan"))))
change("step_infinite", "range", "step inf, expected", _head(1, head(1, step=float("inf"))))
change("step_negative", "range", "step -0.5, expected", _head(1, head(1, step=-0.5)))
change("step_minus_zero", "range", "step -0.0, expected", _head(1, head(1, step=-0.0)))
change(
    "first_layer_with_reference",
    "reference",
    "the first layer of a chain has no reference",
    _all(_chain(anchor_kind=0, anchor=b"", groups=[group([0, 1, -1, 0] * 3, 3)]), _head(0, head(0, mode=1))),
)
change(
    "anchor_nan",
    "not-finite",
    "the anchor holds values that are not finite",
    _chain(anchor=struct.pack("<4f", 1, float("nan"), 3, 4)),
)
change("anchor_truncated", "too-short", "needs 16 bytes", _chain(anchor=b"", groups=[], references=b""))

# --- chain section: codes
change(
    "code_too_large", "code", "a code of magnitude 8 at 4 bits", _chain(groups=[group([0, 8, -1, 0, 1, 1, 0, 0], 2)])
)
change("code_with_step_zero", "code", "a code of magnitude 1 at 4 bits, step 0.0", _head(1, head(1, step=0.0)))
change(
    "overflow_to_infinity",
    "not-finite",
    "restores to values that are not finite",
    _all(_chain(groups=[group([7, 7, 7, 7, 0, 0, 0, 0], 2)]), _head(1, head(1, step=3e38))),
)
change("group_of_no_layers", "count", "a group of 0 layers where 2 are left", _chain(groups=[Group(0)]))
change("group_of_too_many_layers", "count", "a group of 3 layers where 2 are left", _chain(groups=[group([0] * 8, 3)]))
change("coder_unknown", "coder-unknown", "unknown coder 30", lambda f: setattr(f.chain.groups[0], "coder", 30))
change(
    "payload_longer_than_section",
    "too-short",
    "needs 1000000 bytes",
    lambda f: setattr(f.chain.groups[0], "length", 1000000),
)
change(
    "payload_too_long",
    "payload",
    "bytes, but its symbols end in byte",
    lambda f: setattr(f.chain.groups[0], "payload", f.chain.groups[0].payload + b"\0"),
)
change(
    "payload_too_short",
    "payload",
    "symbols cannot fit in 0 bytes",
    lambda f: setattr(f.chain.groups[0], "payload", b""),
)
change(
    "payload_padding",
    "padding",
    "padding after the last symbol is not zero",
    lambda f: setattr(
        f.chain.groups[0], "payload", f.chain.groups[0].payload[:-1] + bytes([f.chain.groups[0].payload[-1] | 1])
    ),
)
change(
    "kraft_over",
    "table",
    "more code words than there are",
    lambda f: setattr(f.chain.groups[0], "table", table(-1, [1, 1, 1])),
)
change(
    "kraft_under",
    "table",
    "fewer code words than there are",
    lambda f: setattr(f.chain.groups[0], "table", table(-1, [1, 2, 3])),
)
change("alphabet_empty", "table", "no symbol has a code", lambda f: setattr(f.chain.groups[0], "table", table(0, [0])))
change(
    "alphabet_of_one_with_two_bits",
    "table",
    "code length of its only symbol is 2",
    lambda f: setattr(f.chain.groups[0], "table", table(0, [2])),
)
change(
    "alphabet_edges_unused",
    "table",
    "first and last symbol must occur",
    lambda f: setattr(f.chain.groups[0], "table", table(-1, [0, 1, 1])),
)
change(
    "alphabet_too_large",
    "table",
    "are more than it can hold",
    lambda f: setattr(f.chain.groups[0], "table", varint(0) + varint(1 << 40)),
)
change(
    "alphabet_far_away",
    "table",
    "are more than it can hold",
    lambda f: setattr(f.chain.groups[0], "table", varint(1 << 60) + varint(1)),
)
change(
    "table_meta_kraft",
    "table",
    "code table's own code",
    lambda f: setattr(f.chain.groups[0], "table", varint(0) + varint(1) + b"\xff" * 9),
)

change(
    "table_truncated",
    "too-short",
    "code table: ends too early",
    _all(_chain(references=b""), lambda f: setattr(f.chain, "groups", [Group(2, 1, varint(0) + varint(1) + b"\x12")])),
)
# The last group of a section without references: nothing follows that could be read instead of what is missing.
_END = _all(_head(2, head(3, mode=1)), _chain(references=b""))
change(
    "payload_of_one_symbol",
    "payload",
    "do not hold 8 symbols",
    _all(_END, _chain(groups=[Group(2, 1, table(0, [1]), b"\x10")])),
)


def _low(low: bytes, bits: int = 1) -> Callable[[File], object]:
    """Codes 0 and 1 in groups of their own, whose low bits are stored apart."""

    def edit(file: File) -> None:
        _END(file)
        file.chain.groups = [Group(2, 1 | bits << 5, table(0, [1]), b"\0", low=low)]

    return edit


change("low_bits_truncated", "too-short", "needs 3 bytes, 2 are left", _low(b"\x11\x11", 3))


@case("low_bits_padding", "padding", "the padding after the low bits")
def _(file: File) -> None:
    del file.chain.heads[2]
    file.chain.groups = [Group(1, 1 | 1 << 5, table(0, [1]), b"\0", low=b"\x51")]


# --- chain section: references
change("reference_coding_unknown", "form", "unknown coding 5 of indices", _chain(references=b"\x05\x60\x00\x40"))
change(
    "reference_to_itself",
    "reference",
    "indices from 1 to 3, expected 0 to 2",
    _chain(references=b"\x00\x70\x00\x40"),
)
change("reference_padding", "padding", "the padding is not zero", _chain(references=b"\x00\x61\x00\x40"))
change(
    "reference_kernel_of_none",
    "reference",
    "a reference to a kernel that its layer does not have",
    _chain(references=b"\x00\x10\x00\xc0"),
)
change("references_truncated", "too-short", "needs 1 bytes, 0 are left", _chain(references=b"\x00\x60"))
change("chain_trailing_bytes", "too-long", "2 bytes too many", _chain(tail=b"\0\0"))


@case("reference_into_one_kernel", "form", "references into a layer of one kernel")
def _(file: File) -> None:
    file.tensors[1] = entry([token("b"), varint(2)], _CODED | F32, [1, 1, 2, 1])
    file.chain.heads[2] = head(3, mode=2)
    file.chain.groups = [group([0, 1, 1, 1, 0, 0], 2)]
    file.chain.references = b"\0"


# --- structure
def origin(tensors: list[int], channels: int, survivors: bytes, order: int = 0, count: int | None = None) -> bytes:
    numbers = b"".join(map(varint, tensors))
    return varint(len(tensors) if count is None else count) + numbers + varint(channels) + bytes([order]) + survivors


def _structure(*origins: bytes, count: int | None = None, tail: bytes = b"") -> Callable[[File], object]:
    def edit(file: File) -> None:
        file.structure = varint(len(origins) if count is None else count) + b"".join(origins) + tail
        file.chain.heads[1] = head(1, mode=4)  # ancestral

    return edit


AB = origin([0, 1], 3, b"\xa0")  # of a and b channels 0 and 2 of 3
change("structure_missing", "origin", "from a provenance that the file does not hold", _head(1, head(1, mode=4)))
change("structure_trailing_bytes", "too-long", "1 bytes too many", _structure(AB, tail=b"\0"))
change("structure_count_too_large", "too-short", "0 are left", _structure(AB, count=1 << 40))
change("structure_without_tensors", "count", "an origin of 0 tensors", _structure(origin([], 3, b"\xa0")))
change("structure_too_many_tensors", "count", "an origin of 5 tensors", _structure(origin([0, 1], 3, b"\xa0", count=5)))
change(
    "structure_tensor_out_of_range", "position", "expected ascending numbers", _structure(origin([0, 4], 3, b"\xa0"))
)
change("structure_tensor_twice", "position", "expected ascending numbers", _structure(origin([1, 1], 3, b"\xa0")))
change("structure_second_origin", "origin", "a.weight: a second origin", _structure(AB, origin([0], 3, b"\xa0")))
change("structure_of_a_bias", "unfit", "an alias or no weight", _structure(origin([2], 4, b"\xe0")))
change("structure_fewer_channels", "origin", "2 survivors of 1 channels", _structure(origin([0], 1, b"\x80")))
change(
    "structure_2_40_channels",
    "origin",
    "survivors of 1099511627776 channels",
    _structure(origin([0], 1 << 40, b"\xa0")),
)
change(
    "structure_bitmap_too_long",
    "too-short",
    "needs 134217728 bytes, 1 are left",
    _structure(origin([0], 1 << 30, b"\xa0")),
)
change("structure_padding", "padding", "padding of its survivors is not zero", _structure(origin([0], 3, b"\xb0")))
change("structure_too_many_survivors", "origin", "3 distinct survivors for 2", _structure(origin([0], 3, b"\xe0")))
change(
    "structure_survivor_twice", "origin", "1 distinct survivors for 2", _structure(origin([0], 4, b"\x00\x50", order=1))
)
change("structure_order_unknown", "form", "unknown order 2 of survivors", _structure(origin([0], 3, b"\xa0", order=2)))


@case("two_structure_sections", "section-twice", "a second section of a kind")
def _(file: File) -> None:
    one = varint(1) + AB
    file.sections = [(STRUCTURE, one), (STRUCTURE, one), (CHAIN, file.chain.build()), (RAW, file.raw)]


@case("structure_after_the_chain", "origin", "from a provenance that the file does not hold")
def _(file: File) -> None:
    file.chain.heads[1] = head(1, mode=4)
    file.sections = [(CHAIN, file.chain.build()), (STRUCTURE, varint(1) + AB), (RAW, file.raw)]


@case("structure_of_other_kernels", "origin", "1 survivors for shape (2, 1, 2, 1)")
def _(file: File) -> None:
    file.tensors[2] = entry([token("bias"), varint(2)], _RAW | F32, [1])
    file.raw = struct.pack("<f", 1)
    _structure(origin([2, 3], 2, b"\x80"))(file)


# --- maps of zeros
def _map(data: bytes) -> Callable[[File], object]:
    def edit(file: File) -> None:
        file.chain.heads[1] = head(1, mode=9)  # collocated, with a map
        file.chain.anchor += data
        file.chain.groups = [group([0, 1, -1, 0, 1, 1], 2)]

    return edit


change("map_of_no_zeros", "zeros", "a map with 0 of 4 weights 0", _map(b"\x00\x00"))
change("map_of_zeros_only", "zeros", "a map with 4 of 4 weights 0", _map(b"\x00\xf0"))
change("map_padding", "padding", "the padding of the map of zeros is not zero", _map(b"\x00\xc1"))
change("map_coding_unknown", "form", "unknown coding 3 of indices", _map(b"\x03\xc0"))


@case("map_2_40_weights", "too-short", "a map of 1099511627776 values in")
def _(file: File) -> None:
    file.tensors[1] = entry([token("b"), varint(2)], _CODED | F32, [1 << 39, 1, 2, 1])
    _map(b"\x00\xc0")(file)


# --- ANS
def ans_group(codes: list[int], layers: int = 1) -> Group:
    coder, run = AnsCoder(), Run.of(np.array(codes, dtype=np.int64))
    model = coder.fit(run)
    return Group(layers, 2, coder.table(model), coder.encode(model, run.joined, run.segments))


def _ans(edit: Callable[[Group], object]) -> Callable[[File], object]:
    def apply(file: File) -> None:
        file.chain.groups = [ans_group([0, 1, -1, 0, 1, 1, 0, 0], 2)]
        edit(file.chain.groups[0])

    return apply


def _put(**values: object) -> Callable[[Group], object]:
    return lambda g: [setattr(g, key, value) for key, value in values.items()]


change("ans_payload_empty", "payload", "8 symbols cannot fit in 0 bytes", _ans(_put(payload=b"")))
change(
    "ans_payload_too_long",
    "payload",
    "its bits do not hold 8 symbols",
    _ans(lambda g: setattr(g, "payload", g.payload + b"\1")),
)
change("ans_payload_padded", "payload", "ends in a zero byte", _ans(lambda g: setattr(g, "payload", g.payload + b"\0")))
change("ans_payload_wrong", "payload", "its bits do not hold 8 symbols", _ans(_put(payload=b"\1\2\3\4")))
change(
    "ans_alphabet_too_large",
    "table",
    "are more than it can hold",
    _ans(_put(table=varint(0) + varint(1 << 40) + b"\0")),
)
change(
    "ans_alphabet_far_away",
    "table",
    "are more than it can hold",
    _ans(_put(table=varint(1 << 60) + varint(1) + b"\0\0")),
)
change("ans_mantissa_unknown", "form", "unknown form 0x50", _ans(_put(table=varint(1) + varint(2) + b"\x50\xff")))
change(
    "ans_edges_unused",
    "table",
    "its first and last symbol must occur",
    _ans(_put(table=varint(1) + varint(2) + b"\0\xe0")),
)
change("ans_weight_negative", "table", "a weight out of range", _ans(_put(table=varint(1) + varint(2) + b"\0\x58")))
change(
    "ans_weight_too_large", "table", "a weight out of range", _ans(_put(table=varint(1) + varint(0) + b"\0\x02\x88"))
)
change(
    "ans_table_truncated",
    "table",
    "ends too early",
    _ans(_put(table=varint(1) + varint(2) + b"\0", payload=b"", length=0)),
)
change(
    "ans_table_padding", "padding", "padding after its last number", _ans(_put(table=varint(1) + varint(0) + b"\0\x6f"))
)


change("ans_golomb_unknown", "form", "unknown form 0x8", _ans(_put(table=varint(1) + varint(2) + b"\x08\xff")))


@case("ans_stream_too_long", "too-short", "ANS payload, byte 6: needs 4096 bytes")
def _(file: File) -> None:
    file.tensors[3] = entry([token("c"), varint(2)], _CODED | F32, [1 << 15, 1, 2, 1])
    file.chain.heads[2] = head(3, mode=1)
    made = ans_group([0, 1] * (1 << 15))
    made.payload = varint(4096) + made.payload[:4095]
    file.chain.groups, file.chain.references = [group([0] * 4), made], b""


# --- grid section
def grid_head(tensor: int = 0, flags: int = 0, rest: bytes = struct.pack("<f", 0.5)) -> bytes:
    return varint(tensor) + bytes([flags]) + rest


def _grid(
    heads: list[bytes], codes: list[int], *, shape: list[int] | None = None, **values: object
) -> Callable[[File], object]:
    """A file with one packed tensor and a grid section."""

    def apply(file: File) -> None:
        code = int(values.get("code", _CODED | F32))  # type: ignore[call-overload]
        file.tensors = [entry([token("g"), token("weight")], code, shape or [2, 2])]
        file.tensors.append(entry([token("bias")], _RAW | F32, [0], shared=1))
        body = varint(int(values.get("count", len(heads)))) + b"".join(heads)  # type: ignore[call-overload]
        alone = values.get("alone")
        body += group(codes, len(heads)).build() if alone is None else bytes(alone)  # type: ignore[call-overload]
        body += bytes(values.get("tail", b""))  # type: ignore[call-overload]
        file.sections = [(GRID, body)] * int(values.get("times", 1)) + [(RAW, b"")]  # type: ignore[call-overload]

    return apply


_ONES, _HALF = struct.pack("<2f", 1, 1), struct.pack("<f", 0.5)
change("grid_twice", "ownership", "'g.weight' is in 2 sections", _grid([grid_head()], [1, 2, 3, 4], times=2))
change("grid_count_0", "count", "a grid section of 0 tensors", _grid([grid_head()], [1, 2, 3, 4], count=0))
change("grid_count_too_large", "count", "a grid section of 9 tensors", _grid([grid_head()], [1, 2, 3, 4], count=9))
change("grid_tensor_unknown", "position", "refers to tensor 7", _grid([grid_head(7)], [1, 2, 3, 4]))
change(
    "grid_of_integers",
    "unfit",
    "holds a tensor that is coded, int64",
    _grid([grid_head()], [1] * 4, code=_CODED | I64),
)
change("grid_of_raw", "unfit", "holds a tensor that is raw", _grid([grid_head()], [1] * 4, code=_RAW | F32))
change("grid_form_unknown", "form", "unknown form 0x10 of a grid", _grid([grid_head(0, 16)], [1] * 4))
change("grid_same_scale_first", "form", "shares its scale with nothing", _grid([grid_head(0, 8, b"")], [1] * 4))
change("grid_axis_too_large", "form", "scales along axis 2", _grid([grid_head(0, 1, varint(2) + _ONES)], [1] * 4))
change(
    "grid_axis_of_one",
    "form",
    "scales along axis 0",
    _grid([grid_head(0, 1, varint(0) + _ONES)], [1] * 4, shape=[1, 4]),
)
change(
    "grid_scale_nan", "range", "not a finite number", _grid([grid_head(0, 0, struct.pack("<f", float("nan")))], [1] * 4)
)
change(
    "grid_scale_negative", "range", "not a finite number", _grid([grid_head(0, 0, struct.pack("<f", -0.0))], [1] * 4)
)
change(
    "grid_zero_point_too_large",
    "range",
    "beyond 32767 in magnitude",
    _grid([grid_head(0, 2, struct.pack("<f", 1) + varint(1 << 40))], [1] * 4),
)
change("grid_predicted_by_nothing", "reference", "no earlier layer has kernels", _grid([grid_head(0, 4)], [1] * 4))
change("grid_code_too_large", "code", "a code beyond 32767", _grid([grid_head()], [0, 0, 0, 32769]))
change("grid_trailing_bytes", "too-long", "1 bytes too many", _grid([grid_head()], [1] * 4, tail=b"\0"))
change(
    "grid_infinite",
    "not-finite",
    "restores to values that are not finite",
    _grid([grid_head(0, 0, struct.pack("<f", 3e38))], [9, 0, 0, 0]),
)


change(
    "grid_zero_points_truncated",
    "too-short",
    "2 zero points in 1 bytes",
    _grid([grid_head(0, 3, varint(0) + _ONES)], [], alone=b"\0"),
)
change(
    "grid_code_and_zero_point", "code", "a code beyond 32767", _grid([grid_head(0, 2, _HALF + varint(65534))], [1] * 4)
)
change("grid_tensor_twice", "ownership", "'g.weight' is in 2 sections", _grid([grid_head(), grid_head()], [1] * 8))
change(
    "grid_of_float8",
    "unfit",
    "holds a tensor that is coded, float8_e4m3fn",
    _grid([grid_head()], [1] * 4, code=_CODED | F8),
)
change(
    "grid_infinite_along_an_axis",
    "not-finite",
    "restores to values that are not finite",
    _grid([grid_head(0, 1, varint(1) + struct.pack("<2f", 1, 3e38))], [9, 0, 0, 9]),
)


# --- batch-norm section
def norm_head(flags: int = 1, eps: float = 1e-5, exponent: int = 0, step: float = 0.5, first: int = 0) -> bytes:
    eps_bytes = b"" if flags & 2 else struct.pack("<f", eps)
    return bytes([flags]) + varint(first) + eps_bytes + varint(exponent) + struct.pack("<f", step)


def _norm(
    head: bytes,
    scales: tuple[int, int] = (1, 2),
    *,
    mantissa: int = 3,
    count: int = 1,
    tail: bytes = b"",
    **edits: bytes,
) -> Callable[[File], object]:
    """A file with one merged batch norm of two channels."""

    def apply(file: File) -> None:
        roles = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
        file.tensors = [
            entry([token("n"), token("weight")], _CODED | F32, [2]),
            *(entry([token(role)], _CODED | F32 | _SAME, shared=1) for role in roles[1:4]),
            entry([token(roles[4])], _CODED | I64, [], shared=1),
        ]
        for position, value in edits.items():
            file.tensors[int(position[1:])] = value
        body = varint(count) + bytes([mantissa]) + head + group(list(scales)).build() + group([0, 1]).build() + tail
        file.sections = [(BATCH_NORM, body), (RAW, b"")]

    return apply


change("norm_count_0", "count", "a batch-norm section of 0 layers", _norm(norm_head(), count=0))
change("norm_mantissa_unknown", "range", "scales of 60 bits of mantissa", _norm(norm_head(), mantissa=60))
change("norm_form_unknown", "form", "unknown form 0x8 of a batch norm", _norm(norm_head(8)))
change("norm_same_eps_first", "form", "unknown form 0x3 of a batch norm", _norm(norm_head(3)))
change("norm_tensor_unknown", "position", "refers to tensor 13", _norm(norm_head(first=9)))
change("norm_eps_nan", "range", "out of range", _norm(norm_head(eps=float("nan"))))
change("norm_eps_negative", "range", "out of range", _norm(norm_head(eps=-1.0)))
change("norm_step_negative", "range", "out of range", _norm(norm_head(step=-0.0)))
change("norm_exponent_too_large", "range", "out of range", _norm(norm_head(exponent=1000)))
change("norm_scale_too_large", "code", "a scale out of range", _norm(norm_head(), (1, 1000)))
change("norm_trailing_bytes", "too-long", "1 bytes too many", _norm(norm_head(), tail=b"\0"))
change(
    "norm_of_another_shape",
    "unfit",
    "no bias of a batch norm",
    _norm(norm_head(), t1=entry([token("bias")], _CODED | F32, [3], shared=1)),
)
change(
    "norm_counter_of_floats",
    "unfit",
    "no num_batches_tracked of a batch norm",
    _norm(norm_head(), t4=entry([token("num")], _CODED | F32, [], shared=1)),
)
change(
    "norm_of_raw",
    "unfit",
    "no running_var of a batch norm: raw",
    _norm(norm_head(), t3=entry([token("running_var")], _RAW | F32 | _SAME, shared=1)),
)


change("norm_mantissa_13", "range", "scales of 13 bits of mantissa", _norm(norm_head(), mantissa=13))
change("norm_tensor_twice", "ownership", "belongs to two batch norms", _norm(norm_head() + norm_head(), count=2))
change(
    "norm_scattered_out_of_range",
    "position",
    "refers to tensor 44",
    _norm(b"\4" + bytes([0, 1, 2, 44]) + norm_head(0)[2:]),
)
change(
    "norm_infinite",
    "not-finite",
    "n.weight: restores to values that are not finite",
    _norm(norm_head(exponent=60), t0=entry([token("n"), token("weight")], _CODED | 1, [2])),
)


# --- sparse section
def _sparse(
    zeros: int = 0b10110000,
    others: tuple[float, ...] = (1.5,),
    *,
    number: int = 0,
    count: int = 1,
    tensor: bytes | None = None,
    tail: bytes = b"",
) -> Callable[[File], object]:
    """A file with one sparse tensor of four values."""

    def apply(file: File) -> None:
        file.tensors = [
            tensor or entry([token("s"), token("weight")], _CODED | F32, [2, 2]),
            entry([token("bias")], _RAW | F32, [0], shared=1),
        ]
        values = struct.pack(f"<{len(others)}f", *others)
        body = varint(count) + varint(number) + b"\0" + bytes([zeros]) + values + tail
        file.sections = [(SPARSE, body), (RAW, b"")]

    return apply


change("sparse_count_0", "count", "a sparse section of 0 tensors", _sparse(count=0))
change("sparse_tensor_unknown", "position", "refers to tensor 9", _sparse(number=9))
change(
    "sparse_tensor_twice",
    "ownership",
    "s.weight: twice in a sparse section",
    _sparse(tail=b"\0\0\xb0" + bytes(4), count=2),
)
change("sparse_padding", "padding", "the padding of the map of zeros is not zero", _sparse(0b10110001))
change("sparse_without_zeros", "zeros", "does not tell the zeros from the others", _sparse(0, (1, 2, 3, 4)))
change("sparse_zero_among_others", "zeros", "does not tell the zeros from the others", _sparse(others=(0.0,)))
change("sparse_truncated", "too-short", "needs 8 bytes, 4 are left", _sparse(0b10010000))
change("sparse_trailing_bytes", "too-long", "1 bytes too many", _sparse(tail=b"\0"))
change(
    "sparse_of_integers",
    "unfit",
    "a sparse section holds a tensor that is coded, int64",
    _sparse(tensor=entry([token("s"), token("weight")], _CODED | I64, [2, 2])),
)
change(
    "sparse_of_raw",
    "unfit",
    "a sparse section holds a tensor that is raw",
    _sparse(tensor=entry([token("s"), token("weight")], _RAW | F32, [2, 2])),
)
change(
    "sparse_2_40_values",
    "too-short",
    "a map of 1099511627776 values in 6 bytes",
    _sparse(tensor=entry([token("s"), token("weight")], _CODED | F32, [1 << 20, 1 << 20])),
)


# --- fields section
def _fields(
    fields: list[int],
    heads: list[bytes] | None = None,
    *,
    count: int | None = None,
    tensor: bytes | None = None,
    tail: bytes = b"",
) -> Callable[[File], object]:
    """A file with one tensor of two bytes, in fields of three bits."""

    def apply(file: File) -> None:
        file.tensors = [
            tensor or entry([token("q"), token("weight")], _CODED | U8, [2]),
            entry([token("bias")], _RAW | F32, [0], shared=1),
        ]
        own = heads or [varint(0) + b"\3"]
        body = varint(len(own) if count is None else count) + b"".join(own)
        file.sections = [(FIELDS, body + group(fields, 2 * len(own)).build() + tail), (RAW, b"")]

    return apply


_SIX = [7, 0, 1, 2, 3, 0]  # two fields of each byte, then what is left of each
change("fields_count_0", "count", "a fields section of 0 tensors", _fields(_SIX, count=0))
change("fields_count_too_large", "count", "a fields section of 3 tensors, the file has 2", _fields(_SIX, count=3))
change("fields_tensor_unknown", "position", "refers to tensor 9", _fields(_SIX, [varint(9) + b"\3"]))
change(
    "fields_tensor_twice",
    "ownership",
    "q.weight: twice in a fields section",
    _fields(_SIX * 2, [varint(0) + b"\3"] * 2),
)
change("fields_of_0_bits", "form", "q.weight: fields of 0 bits", _fields(_SIX, [varint(0) + b"\0"]))
change("fields_of_9_bits", "form", "q.weight: fields of 9 bits", _fields(_SIX, [varint(0) + b"\11"]))
change("fields_too_wide", "code", "q.weight: a field of more than its 3 bits", _fields([8, 0, 1, 2, 3, 0]))
change("fields_last_too_wide", "code", "q.weight: a field of more than its 2 bits", _fields([7, 0, 1, 2, 4, 0]))
change("fields_negative", "code", "q.weight: a field of more than its 3 bits", _fields([7, 0, 1, -1, 3, 0]))
change("fields_trailing_bytes", "too-long", "1 bytes too many", _fields(_SIX, tail=b"\0"))
change(
    "fields_of_floats",
    "unfit",
    "a fields section holds a tensor that is coded, float32",
    _fields(_SIX, tensor=entry([token("q"), token("weight")], _CODED | F32, [2])),
)
change(
    "fields_of_raw",
    "unfit",
    "a fields section holds a tensor that is raw",
    _fields(_SIX, tensor=entry([token("q"), token("weight")], _RAW | U8, [2])),
)
change(
    "fields_of_nothing",
    "unfit",
    "a fields section holds a tensor that is coded",
    _fields(_SIX, tensor=entry([token("q"), token("weight")], _CODED | U8, [0])),
)
change(
    "fields_2_40_values",
    "payload",
    "3298534883328 symbols cannot fit in",
    _fields(_SIX, tensor=entry([token("q"), token("weight")], _CODED | U8, [1 << 20, 1 << 20])),
)


# --- floats section
def _floats(
    flags: int = 0b0111,
    planes: bytes = bytes(12),
    codes: list[int] | None = None,
    *,
    number: int = 0,
    count: int = 1,
    tensor: bytes | None = None,
    tail: bytes = b"",
) -> Callable[[File], object]:
    """A file with one tensor of four values, of which the last plane is coded."""

    def apply(file: File) -> None:
        file.tensors = [
            tensor or entry([token("f"), token("weight")], _CODED | F32, [4]),
            entry([token("bias")], _RAW | F32, [0], shared=1),
        ]
        body = varint(count) + (varint(number) + bytes([flags])) * count + planes
        body += b"" if codes == [] else group(codes or [0, 1, 0, 255]).build()
        body += tail
        file.sections = [(FLOATS, body), (RAW, b"")]

    return apply


change("floats_count_0", "count", "a floats section of 0 tensors", _floats(count=0))
change("floats_tensor_unknown", "position", "refers to tensor 7", _floats(number=7))
change("floats_tensor_twice", "ownership", "f.weight: twice in a floats section", _floats(count=2))
change("floats_flags_unknown", "form", "f.weight: plane flags 0x10", _floats(0x10))
change("floats_of_integers", "unfit", "coded, int64", _floats(tensor=entry([token("f")], _CODED | I64, [4])))
change("floats_of_raw", "unfit", "raw, float32", _floats(tensor=entry([token("f")], _RAW | F32, [4])))
change("floats_truncated", "too-short", "needs 4 bytes, 0 are left", _floats(0xF, bytes(8), [], tail=b""))
change("floats_byte_too_large", "code", "f.weight: a byte out of range", _floats(codes=[0, 256, 0, 0]))
change("floats_byte_negative", "code", "f.weight: a byte out of range", _floats(codes=[0, -1, 0, 0]))
change("floats_trailing_bytes", "too-long", "1 bytes too many", _floats(tail=b"\0"))
change(
    "floats_2_40_values",
    "too-short",
    "needs 1099511627776 bytes",
    _floats(tensor=entry([token("f"), token("weight")], _CODED | F32, [1 << 20, 1 << 20])),
)


# --- graph section
PACKED = bytes.fromhex(GRAPH_HEX)
GRAPH_BODY = varint(4) + b"onnx" + varint(720) + PACKED


def _graph(body: bytes) -> Callable[[File], object]:
    return lambda f: setattr(f, "sections", [(GRAPH, body), (CHAIN, f.chain.build()), (RAW, f.raw)])


change("graph_kind_empty", "range", "the name of a format of 0 bytes", _graph(b"\0" + GRAPH_BODY))
change("graph_kind_strange", "range", "a graph of kind 'a/b'", _graph(varint(3) + b"a/b" + varint(720) + PACKED))
change("graph_too_large", "range", "268,435,457 bytes", _graph(varint(4) + b"onnx" + varint((1 << 28) + 1) + PACKED))
change("graph_shorter", "payload", "a graph of other than 721 bytes", _graph(b"\4onnx" + varint(721) + PACKED))
change("graph_longer", "payload", "a graph of other than 719 bytes", _graph(b"\4onnx" + varint(719) + PACKED))
change("graph_cut", "payload", "a graph of other than 720 bytes", _graph(GRAPH_BODY[:-5]))
change("graph_trailing", "payload", "a graph of other than 720 bytes", _graph(GRAPH_BODY + b"x"))
change("graph_not_packed", "payload", "cannot be unpacked", _graph(b"\4onnx" + varint(720) + b"\x77" * 60))
change("graph_twice", "section-twice", "a second section", lambda f: setattr(f, "sections", [(GRAPH, GRAPH_BODY)] * 2))


# --- codebook section
def _book(
    books: bytes = b"\2\2" + struct.pack("<4f", 1, 2, 3, 4),
    heads: bytes = b"\0\0",
    codes: list[int] | None = None,
    *,
    books_count: int = 1,
    count: int = 1,
    tensor: bytes | None = None,
    tail: bytes = b"",
) -> Callable[[File], object]:
    """A file with one tensor of four values, pairs of which are entries of a codebook."""

    def apply(file: File) -> None:
        file.tensors = [
            tensor or entry([token("c"), token("weight")], _CODED | F32, [4]),
            entry([token("bias")], _RAW | F32, [0], shared=1),
        ]
        body = varint(books_count) + books + varint(count) + heads
        file.sections = [(CODEBOOK, body + group(codes or [0, 1], count).build() + tail), (RAW, b"")]

    return apply


_TWO = struct.pack("<2f", 1, -0.0)
change("book_count_0", "count", "0 codebooks", _book(b"", books_count=0))
change("book_of_no_entries", "range", "a codebook of 0 entries of 2 values", _book(b"\0\2"))
change("book_of_no_width", "range", "a codebook of 2 entries of 0 values", _book(b"\2\0"))
change("book_too_wide", "range", "a codebook of 1 entries of 65 values", _book(b"\1\x41" + bytes(260)))
change("book_too_long", "range", "a codebook of 32769 entries", _book(varint(32769) + b"\1"))
change("book_entry_nan", "range", "NaN, infinite or -0", _book(b"\2\1" + struct.pack("<2f", 1, float("nan"))))
change("book_entry_minus_zero", "range", "NaN, infinite or -0", _book(b"\2\1" + _TWO))
change("book_truncated", "too-short", "needs 4096 bytes", _book(varint(512) + b"\2"))
change("book_tensors_0", "count", "a codebook section of 0 tensors", _book(count=0))
change("book_tensor_unknown", "position", "refers to tensor 9", _book(heads=b"\x09\0"))
change("book_unknown", "position", "codebook 1 does not fit", _book(heads=b"\0\1"))
change("book_does_not_divide", "position", "does not fit its 3 values", _book(tensor=entry([token("c")], _CODED, [3])))
change("book_tensor_twice", "ownership", "c.weight: twice", _book(heads=b"\0\0\0\0", count=2))
change("book_of_integers", "unfit", "coded, int64", _book(tensor=entry([token("c")], _CODED | I64, [4])))
change("book_index_too_large", "code", "an index beyond the 2 entries", _book(codes=[0, 2]))
change("book_index_negative", "code", "an index beyond the 2 entries", _book(codes=[0, -1]))
change("book_trailing_bytes", "too-long", "1 bytes too many", _book(tail=b"\0"))
change(
    "book_infinite",
    "not-finite",
    "an entry is beyond the range of float16",
    _book(b"\2\2" + struct.pack("<4f", 1, 2, 3, 1e6), tensor=entry([token("c")], _CODED | 1, [4])),
)


# --- arranged section
def _arranged(
    heads: bytes = b"\0\0\1\0\3\3\2",
    groups: Sequence[list[int]] = ([0, 3, 1], [1, 1]),
    *,
    count: int = 1,
    tensor: bytes | None = None,
    books: bytes = b"\1\2\1" + struct.pack("<2f", 1, 2),
    tail: bytes = b"",
) -> Callable[[File], object]:
    """A file with a tensor of six values, of which the first and the last are the second entry of a codebook."""

    def apply(file: File) -> None:
        file.tensors = [
            tensor or entry([token("c"), token("weight")], _CODED | F32, [6]),
            entry([token("bias")], _RAW | F32, [0], shared=1),
        ]
        body = books + varint(count) + heads + b"".join(group(own).build() for own in groups)
        file.sections = [(ARRANGED, body + tail), (RAW, b"")]

    return apply


change("arranged_count_0", "count", "an arranged section of 0 tensors", _arranged(count=0))
change("arranged_tensor_unknown", "position", "refers to tensor 9", _arranged(b"\x09\0\0"))
change("arranged_book_unknown", "position", "codebook 1 does not fit", _arranged(b"\0\1\0"))
change("arranged_tensor_twice", "ownership", "twice in an arranged", _arranged(b"\0\0\0\0\0\0", count=2))
change("arranged_integers", "unfit", "coded, int64", _arranged(tensor=entry([token("c")], _CODED | I64, [6])))
change("arranged_form_3", "form", "indices in form 3", _arranged(b"\0\0\3"))
change("arranged_to_itself", "reference", "differences to tensor 0", _arranged(b"\0\0\2\0"))
change("arranged_to_none", "reference", "differences to tensor -1", _arranged(b"\0\0\2\1"))
change("arranged_common_unknown", "count", "indices besides 2", _arranged(b"\0\0\1\2\3\3\2"))
change("arranged_longest_0", "count", "distances up to 0", _arranged(b"\0\0\1\0\0\3\2"))
change("arranged_no_indices", "count", "0 indices besides 0", _arranged(b"\0\0\1\0\3\3\0"))
change("arranged_more_indices_than_distances", "count", "4 indices", _arranged(b"\0\0\1\0\3\3\4"))
change("arranged_too_many_distances", "count", "at 7 distances", _arranged(b"\0\0\1\0\3\7\2"))
change("arranged_distance_too_long", "code", "a distance beyond 3", _arranged(groups=([0, 4, 1], [1, 1])))
change("arranged_distance_negative", "code", "a distance beyond 3", _arranged(groups=([0, -1, 1], [1, 1])))
change("arranged_distance_to_nowhere", "code", "one that leads nowhere", _arranged(groups=([0, 1, 3], [1, 1])))
change("arranged_beyond_the_end", "code", "do not fit their distances", _arranged(groups=([0, 3, 2], [1, 1])))
change("arranged_index_missing", "code", "do not fit their distances", _arranged(groups=([0, 1, 1], [1, 1])))
change("arranged_index_that_is_left_out", "code", "do not fit their distances", _arranged(groups=([0, 3, 1], [1, 0])))
change("arranged_index_too_large", "code", "beyond the 2 entries", _arranged(groups=([0, 3, 1], [1, 2])))
change("arranged_plain_too_large", "code", "beyond the 2 entries", _arranged(b"\0\0\0", ([0, 1, 0, 1, 0, 2],)))
change("arranged_trailing_bytes", "too-long", "1 bytes too many", _arranged(tail=b"\0"))
change(
    "arranged_infinite",
    "not-finite",
    "an entry is beyond the range of float16",
    _arranged(books=b"\1\2\1" + struct.pack("<2f", 1, 1e6), tensor=entry([token("c")], _CODED | 1, [6])),
)


# --- symbols packed by LZMA
_DIGITS = bytes.fromhex("e0001a00140000006c58d1627e76ebdce2743d4d676cbf9aa9f00000")
_RESTS = bytes.fromhex("e00011000c000000827bafc71f87fc6d28000000")
LZMA_GROUP = Group(1, 3, varint(2) + varint(4), varint(len(_DIGITS)) + _DIGITS + _RESTS)
"""105 symbols around 1, in digits of radix 4."""
LZMA_PLAIN = Group(1, 3, varint(0) + varint(16), bytes.fromhex("07010002000e0000"))
"""0, 0, 7, 0, 0 in digits of radix 16, without rests."""
LZMA_LOW = Group(1, 3 | 2 << 5, LZMA_PLAIN.table, LZMA_PLAIN.payload, low=b"\x1b\xc0")


def _stored(content: bytes) -> bytes:
    """A raw LZMA2 stream that holds bytes as they are."""
    return (b"\1" + struct.pack(">H", len(content) - 1) + content if content else b"") + b"\0"


def _lzma(
    digits: bytes = b"\0\0\x0e",
    rests: bytes | None = None,
    *,
    table: bytes = varint(0) + varint(16),
    length: int | None = None,
    tail: bytes = b"",
) -> Callable[[File], object]:
    """A file with one tensor of five values on a grid."""
    stream = digits if length is not None else _stored(digits)
    payload = varint(len(stream) if length is None else length) + stream
    payload += (b"" if rests is None else _stored(rests)) + tail

    def apply(file: File) -> None:
        file.tensors = [entry([token("c")], _CODED | F32, [5]), entry([token("bias")], _RAW | F32, [0])]
        body = b"\1" + b"\0" + b"\0" + struct.pack("<f", 0.5) + Group(1, 3, table, payload).build()
        file.sections = [(GRID, body), (RAW, b"")]

    return apply


change("lzma_centre_too_far", "table", "around 131072", _lzma(table=varint(1 << 18) + varint(16)))
change("lzma_radix_1", "table", "of radix 1", _lzma(table=varint(0) + varint(1)))
change("lzma_radix_257", "table", "of radix 257", _lzma(table=varint(0) + varint(257)))
change("lzma_no_payload", "payload", "ends before what it holds", _lzma(b"", length=0))
change("lzma_stream_too_long", "too-short", "", _lzma(length=100))
change("lzma_ends_early", "payload", "ends before what it holds", _lzma(b"\0\0"))
change("lzma_goes_on", "payload", "goes on behind what it holds", _lzma(b"\0\0\0\0"))
change("lzma_no_stream", "payload", "cannot be unpacked", _lzma(b"\x77" * 9, length=9))
change("lzma_byte_too_large", "payload", "more than 5 digits", _lzma(b"\xf3", table=varint(0) + varint(3)))
change("lzma_padding", "padding", "the digits after the last symbol", _lzma(b"\0\0\x10"))
change("lzma_rests_missing", "payload", "ends before what it holds", _lzma(b"\0\0\x0f"))
change("lzma_rests_left", "payload", "", _lzma(rests=b"\1"))
change("lzma_rest_too_long", "number-too-large", "more than three bytes", _lzma(b"\0\0\x0f", b"\xff\xff\xff\1"))
change("lzma_rest_not_shortest", "number-not-shortest", "more bytes", _lzma(b"\0\0\x0f", b"\x81\0"))
change("lzma_rest_cut", "payload", "ends before what it holds", _lzma(b"\0\0\x0f", b"\x81"))
change("lzma_symbol_too_large", "payload", "beyond 131,071", _lzma(b"\0\0\x0f", b"\xff\xff\x7f"))
change("lzma_tail", "payload", "goes on behind", _lzma(b"\0\0\x0f", b"\1", tail=b"\0"))


# --- ANS by classes of blocks
def class_group(
    blocks: Sequence[Sequence[Sequence[int]]],
    classes: Sequence[int],
    length: int | None = None,
    low: bytes = b"",
    k: int = 0,
) -> Group:
    """Of runs in blocks, and the class of each block, one run after the other."""
    number, flat = max(classes) + 1, [block for run in blocks for block in run]
    order, places = list(range(number)), []
    for own in classes:
        places.append(order.index(own))
        order.insert(0, order.pop(places[-1]))
    coded = [
        ans_group([code for block, other in zip(flat, classes, strict=True) if other == own for code in block])
        for own in range(number)
    ]
    payload = b"".join(varint(length or len(run[0])) for run in blocks) + indices(np.array(places), number)
    payload += b"".join(varint(len(part.payload)) for part in coded[:-1]) + b"".join(part.payload for part in coded)
    return Group(len(blocks), 4 | k << 5, bytes([number]) + b"".join(part.table for part in coded), payload, low=low)


_FIRST, _SECOND = ans_group([0, 1, 1, 1, 0, 0]), ans_group([-1, 0])
_BOTH = _FIRST.table + _SECOND.table
_UNIFORM = varint(0) + varint((1 << 15) + 7) + b"\0\x7f" + b"\xff" * (1 << 12) + b"\xc0"
"""The table of a class of 32,776 symbols, which are equally frequent."""


def _classes(
    *,
    table: bytes = b"\2" + _BOTH,
    lengths: bytes = b"\2\2",
    places: bytes = b"\0\x60",
    first: int | None = None,
    parts: tuple[bytes, bytes] = (_FIRST.payload, _SECOND.payload),
) -> Callable[[File], object]:
    """The runs 0 1 | -1 0 and 1 1 | 0 0, of which the second block is of class 1."""
    payload = lengths + places + varint(len(parts[0]) if first is None else first) + parts[0] + parts[1]

    def apply(file: File) -> None:
        file.chain.groups = [Group(2, 4, table, payload)]

    return apply


change("classes_none", "table", "0 classes of blocks", _classes(table=b"\0"))
change("classes_too_many", "table", "65 classes of blocks", _classes(table=b"\x41" + _SECOND.table * 65))
change("classes_too_many_symbols", "table", "more than 65,536 symbols", _classes(table=b"\2" + _UNIFORM * 2))
change("classes_table_wrong", "form", "unknown form 0x50", _classes(table=b"\2" + _FIRST.table + b"\1\2\x50\xff"))
change("classes_block_of_nothing", "payload", "blocks of 0 of 4 symbols", _classes(lengths=b"\2\0"))
change("classes_block_too_long", "payload", "blocks of 5 of 4 symbols", _classes(lengths=b"\5\2"))
change(
    "classes_place_too_large",
    "reference",
    "from 0 to 3, expected 0 to 2",
    _classes(table=b"\3" + _BOTH + _SECOND.table, places=b"\0\x34"),
)
change("classes_places_padding", "padding", "indices: the padding is not zero", _classes(places=b"\0\x61"))
change("classes_places_unknown", "form", "unknown coding 2 of indices", _classes(places=b"\2\x60"))
change("classes_one_unused", "payload", "no block is of class 1", _classes(places=b"\0\0"))
change("classes_part_too_long", "too-short", "payload of classes, byte 6: needs 4096 bytes", _classes(first=4096))
change("classes_part_empty", "payload", "6 symbols cannot fit in 0 bytes", _classes(first=0))
change(
    "classes_part_wrong", "payload", "its bits do not hold 6 symbols", _classes(parts=(b"\1\2\3\4", _SECOND.payload))
)
change(
    "classes_part_goes_on",
    "payload",
    "its bits do not hold 2 symbols",
    _classes(parts=(_FIRST.payload, _SECOND.payload + b"\1")),
)
change(
    "classes_part_padded", "payload", "ends in a zero byte", _classes(parts=(_FIRST.payload, _SECOND.payload + b"\0"))
)
change(
    "classes_payload_empty",
    "payload",
    "8 symbols cannot fit in 0 bytes",
    lambda f: setattr(f.chain, "groups", [Group(2, 4, b"\1" + _FIRST.table)]),
)
change(
    "classes_payload_cut",
    "too-short",
    "payload of classes, byte 1",
    lambda f: setattr(f.chain, "groups", [Group(2, 4, b"\1" + _FIRST.table, b"\2")]),
)


@case("classes_too_many_blocks", "payload", "1,048,578 blocks, expected at most 1,048,576")
def _(file: File) -> None:
    file.tensors[3] = entry([token("c"), varint(2)], _CODED | F32, [(1 << 19) + 1, 1, 2, 1])
    file.chain.heads[2] = head(3, mode=1)
    made = Group(1, 4, b"\1" + ans_group([0]).table, b"\1\0" + b"\1" * 1100)
    file.chain.groups, file.chain.references = [group([0] * 4), made], b""


# --- dithered section
def _dithered(
    head: bytes = b"\1" + bytes(8),
    levels: bytes = b"\0",
    heads: bytes = b"\0" + struct.pack("<f", 0.5) + b"\0",
    codes: list[int] | None = None,
    *,
    count: int = 1,
    tensor: bytes | None = None,
    tail: bytes = b"",
) -> Callable[[File], object]:
    """A file with one dithered tensor of two values."""

    def apply(file: File) -> None:
        file.tensors = [
            tensor or entry([token("c"), token("weight")], _CODED | F32, [2]),
            entry([token("bias")], _RAW | F32, [0], shared=1),
        ]
        body = head + levels + varint(count) + heads + group(codes or [0, 1], count).build() + tail
        file.sections = [(DITHERED, body), (RAW, b"")]

    return apply


def _levels(*values: float, low: int = 0) -> bytes:
    zigzag = 2 * low if low >= 0 else -2 * low - 1
    return varint(len(values)) + varint(zigzag) + struct.pack(f"<{len(values)}f", *values)


def _step(step: float, tensor: int = 0) -> bytes:
    return varint(tensor) + struct.pack("<f", step) + b"\0"


_MANY = varint(32769) + b"\0"
change("dither_generator_0", "form", "an unknown generator 0", _dithered(bytes(9)))
change("dither_generator_2", "form", "an unknown generator 2", _dithered(b"\2" + bytes(8)))
change("dither_too_many_levels", "range", "32769 levels", _dithered(levels=_MANY))
change("dither_levels_far_away", "range", "1 levels from code 32768", _dithered(levels=_levels(1, low=32768)))
change("dither_level_nan", "range", "NaN, infinite or -0", _dithered(levels=_levels(1, float("nan"))))
change("dither_level_minus_zero", "range", "NaN, infinite or -0", _dithered(levels=_levels(-0.0, 1)))
change("dither_levels_truncated", "too-short", "needs 4096 bytes", _dithered(levels=varint(1024) + b"\0"))
change("dither_tensors_0", "count", "a dithered section of 0 tensors", _dithered(count=0))
change("dither_tensors_3", "count", "a dithered section of 3 tensors", _dithered(count=3))
change("dither_tensor_unknown", "position", "refers to tensor 9", _dithered(heads=_step(0.5, 9)))
change("dither_tensor_twice", "ownership", "c.weight: twice", _dithered(heads=_step(0.5) * 2, count=2))
change("dither_of_integers", "unfit", "coded, int64", _dithered(tensor=entry([token("c")], _CODED | I64, [2])))
change("dither_of_nothing", "unfit", "in a dithered section", _dithered(tensor=entry([token("c")], _CODED, [0])))
change("dither_of_raw", "unfit", "raw, float32", _dithered(tensor=entry([token("c")], _RAW, [2])))
change("dither_step_0", "range", "a step of 0.0", _dithered(heads=_step(0.0)))
change("dither_step_negative", "range", "a step of -0.5", _dithered(heads=_step(-0.5)))
change("dither_step_infinite", "range", "a step of inf", _dithered(heads=_step(float("inf"))))
change("dither_code_without_level", "code", "has no level", _dithered(levels=_levels(0, 1), codes=[0, 2]))
change("dither_code_below_levels", "code", "has no level", _dithered(levels=_levels(0, 1), codes=[0, -1]))
change("dither_code_too_large", "code", "has no level", _dithered(codes=[0, 32768]))
change("dither_infinite", "not-finite", "not finite", _dithered(heads=_step(3e38), codes=[0, 9]))
change(
    "dither_beyond_float16",
    "not-finite",
    "not finite",
    _dithered(heads=_step(1e5), codes=[0, 3], tensor=entry([token("c")], _CODED | 1, [2])),
)
change("dither_trailing_bytes", "too-long", "1 bytes too many", _dithered(tail=b"\0"))


def build_all() -> dict[str, bytes]:
    """Every malformed file by name."""
    files = {}
    for name, (edit, _, _) in CASES.items():
        file = good()
        edit(file)
        files[name] = file.build()
    files["empty"] = b""
    files["only_magic"] = MAGIC
    files["zeros"] = bytes(200)
    return files


EXPECTED = {name: (code, message) for name, (_, code, message) in CASES.items()} | {
    "empty": ("not-ilwp", "not an .ilwp file (0 bytes"),
    "only_magic": ("truncated", "truncated"),
    "zeros": ("not-ilwp", "not an .ilwp file"),
}
"""Code and part of the message of each."""


def main() -> None:
    folder = FOLDER / "malformed"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.ilwp"):
        old.unlink()
    for name, data in build_all().items():
        (folder / f"{name}.ilwp").write_bytes(data)
    codes = {name: code for name, (code, _) in EXPECTED.items()}
    (folder / "expected.json").write_text(json.dumps(codes, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
