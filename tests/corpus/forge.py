"""Makes the malformed files of the corpus: well signed, so that the checks behind the checksums are reached.

    python -m tests.corpus.forge        writes malformed/*.ilwp and expected.json anew

Every case is a valid file with one thing changed. `expected.json` holds the message that each must be refused with.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ilwp_plugin.stream import ByteWriter

from ilwp_plugin.format.coding import AnsCoder, Histogram, HuffmanCode, HuffmanCoder

FOLDER = Path(__file__).parent
MAGIC = b"\x89ILWP\r\n\x1a"
RAW, CHAIN, METADATA, GRID, BATCH_NORM, STRUCTURE, SPARSE, FIELDS = 1, 2, 3, 4, 5, 6, 7, 8
F32, U8, I64, BOOL, F8 = 0, 4, 8, 9, 12
_RAW, _CODED, _ALIAS, _PACKED, _SAME = 0 << 4, 1 << 4, 2 << 4, 3 << 4, 0x40


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


def table(low: int, lengths: list[int]) -> bytes:
    return HuffmanCoder().table(HuffmanCode(low, np.array(lengths, dtype=np.uint8)))


@dataclass
class Group:
    layers: int = 1
    coder: int = 1
    table: bytes = b""
    payload: bytes = b""
    length: int | None = None

    def build(self) -> bytes:
        length = len(self.payload) if self.length is None else self.length
        return varint(self.layers) + bytes([self.coder]) + self.table + varint(length) + self.payload


def group(codes: list[int], layers: int = 1) -> Group:
    coder = HuffmanCoder()
    symbols = np.array(codes, dtype=np.int64)
    model = coder.fit(Histogram.of(symbols))
    return Group(layers, 1, coder.table(model), coder.encode(model, symbols))


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
    chain: Chain = field(default_factory=Chain)
    raw: bytes = struct.pack("<3f", 1, 2, 3)
    metadata: bytes | None = None
    structure: bytes | None = None
    sections: list[tuple[int, bytes]] | None = None
    section_count: int | None = None
    section_lengths: dict[int, int] = field(default_factory=dict)
    section_crcs: dict[int, int] = field(default_factory=dict)
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
        header += varint(len(sections) if self.section_count is None else self.section_count)
        for i, (kind, body) in enumerate(sections):
            header += bytes([kind]) + varint(self.section_lengths.get(i, len(body)))
            header += struct.pack("<I", self.section_crcs.get(i, zlib.crc32(body)))
        header += self.header_tail
        length = len(header) if self.header_length is None else self.header_length
        front = self.magic + struct.pack("<BI", self.version, length) + header
        front += struct.pack("<I", zlib.crc32(front) if self.header_crc is None else self.header_crc)
        content = front + b"".join(body for _, body in sections) + self.tail
        digest = hashlib.blake2b(content, digest_size=16).digest() if self.digest is None else self.digest
        return content + digest


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


CASES: dict[str, tuple[Callable[[File], object], str]] = {}


def case(name: str, message: str) -> Callable[[Callable[[File], object]], Callable[[File], object]]:
    """Register a change to the good file, and a part of the message that it must be refused with."""

    def enter(change: Callable[[File], object]) -> Callable[[File], object]:
        if name in CASES:
            raise ValueError(name)
        CASES[name] = (change, message)
        return change

    return enter


def change(name: str, message: str, edit: Callable[[File], object]) -> None:
    case(name, message)(edit)


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
change("bad_magic", "not an .ilwp file", _set(magic=b"\x89PNG\r\n\x1a\n"))
change("text_mode_magic", "not an .ilwp file", _set(magic=b"\x89ILWP\n\x1a\n"))
change(
    "version_future", "format version 2, this version of ilwp-plugin reads 1; a newer one is needed", _set(version=2)
)
change("version_zero", "format version 0", _set(version=0))
change("header_length_too_large", "truncated or damaged; the header claims", _set(header_length=1 << 30))
change("header_length_too_small", "the checksum of the header does not match", _set(header_length=9))
change("header_checksum", "the checksum of the header does not match", _set(header_crc=1))
change("file_checksum", "the checksum of the file does not match", _set(digest=bytes(16)))
change("section_checksum", "the checksum of section 1 (raw) does not match", _set(section_crcs={1: 7}))
change("trailing_bytes", "there are bytes too many", _set(tail=b"\0"))
change("header_trailing_bytes", "1 bytes too many", _set(header_tail=b"\0"))
change("section_longer_than_file", "truncated; the header describes", _set(section_lengths={1: 4096}))
change(
    "section_length_2_63",
    "a number of more than 63 bits",
    _set(sections=[], section_count=2, header_tail=b"\x01" + b"\xff" * 9 + b"\x01" + bytes(12)),
)
change("section_hole", "there are bytes too many", _set(section_lengths={1: 11}))
change("section_overlap", "truncated; the header describes", _set(section_lengths={0: 60}))
change("section_kind_unknown", "section 0 is of unknown kind 9", _set(sections=[(9, b"abc")]))
change("section_count_too_large", "sections cannot be listed", _set(section_count=1 << 40))
change("no_raw_section", "no raw section", lambda f: setattr(f, "sections", [(CHAIN, f.chain.build())]))
change(
    "two_raw_sections",
    "a second section of a kind",
    lambda f: setattr(f, "sections", [(CHAIN, f.chain.build()), (RAW, f.raw), (RAW, f.raw)]),
)

# --- directory
change("tensor_count_too_large", "tensors cannot be listed", _set(tensor_count=1 << 40))
change(
    "name_duplicate", "duplicate name 'b.weight'", _tensor(3, entry([varint(3), varint(2)], _CODED | F32, [2, 1, 2, 1]))
)
change(
    "name_dot_dot_slash",
    "has an empty component",
    _tensor(2, entry([token(""), token(""), token("/x")], _RAW | F32, [3])),
)
change("name_nul", "holds a control character", _tensor(2, entry([token("a\0b")], _RAW | F32, [3])))
change("name_empty", "has 0 bytes, expected 1 to 1,024", _tensor(2, entry([], _RAW | F32, [3])))
change(
    "name_too_long", "a component of its name has 1025 bytes", _tensor(2, entry([token("x" * 1025)], _RAW | F32, [3]))
)
change(
    "name_joined_too_long",
    "its name has more than 1024 characters",
    _tensor(2, entry([token("x" * 600), varint(4)], _RAW | F32, [3])),
)
change("name_c1_control", "holds a control character", _tensor(2, entry([token("a\x9b31m")], _RAW | F32, [3])))
change("shape_empty_but_huge", "is larger than any memory", _tensor(2, entry(BIAS, _RAW | F32, [0, 1 << 61, 1 << 61])))
change(
    "shape_300_dimensions", "300 dimensions, expected at most 64", _tensor(2, entry(BIAS, _RAW | F32, [1 << 62] * 300))
)
change("metadata_surrogate", "lone surrogate", _set(metadata=b'{"a":"\\ud800"}'))
change("metadata_empty", "metadata is not JSON", _set(metadata=b""))
change("name_not_utf8", "its name is not UTF-8", _tensor(2, entry([token(b"\xff")], _RAW | F32, [3])))
change("name_dot_in_component", "has a dot inside a component", _tensor(2, entry([token("a.b")], _RAW | F32, [3])))
change("name_unknown_token", "unknown component 77", _tensor(2, entry([varint(77)], _RAW | F32, [3])))
change("name_shares_too_much", "shares or adds more components", _tensor(2, entry(BIAS, _RAW | F32, [3], shared=9)))
change("dtype_unknown", "unknown type or storage code 0xf", _tensor(2, entry(BIAS, _RAW | 15, [3])))
change("packed_nowhere", "is in 0 sections, expected 1", _all(_tensor(2, entry(BIAS, _PACKED, [3])), _set(raw=b"")))
change("reserved_bit", "unknown type or storage code 0x80", _tensor(2, entry(BIAS, 0x80, [3])))
change(
    "shape_2_63",
    "a number of more than 63 bits",
    _tensor(2, varint(0) + varint(2) + b"".join(BIAS) + bytes([F32, 1]) + b"\xff" * 9 + b"\x01"),
)
change(
    "shape_overlong_number",
    "written in more bytes than it needs",
    _tensor(2, varint(0) + varint(2) + b"".join(BIAS) + bytes([F32, 1]) + b"\x83\x00"),
)
change("shape_product_overflow", "is larger than any memory", _tensor(2, entry(BIAS, _RAW | F32, [1 << 40, 1 << 40])))
change("shape_product_wraps_to_3", "is larger than any memory", _tensor(2, entry(BIAS, _RAW | F32, [(1 << 62) + 3, 4])))
change(
    "shape_too_many_dimensions",
    "dimensions, expected at most 64",
    _tensor(2, varint(0) + varint(2) + b"".join(BIAS) + bytes([F32]) + varint(1 << 30)),
)
change(
    "alias_of_itself",
    "an alias has to refer to an earlier tensor, got 2",
    _tensor(2, entry(BIAS, _ALIAS | F32, extra=varint(2))),
)
change(
    "alias_forward",
    "an alias has to refer to an earlier tensor, got 3",
    _tensor(2, entry(BIAS, _ALIAS | F32, extra=varint(3))),
)
change("alias_other_dtype", "not a valid alias of a.weight", _tensor(2, entry(BIAS, _ALIAS | I64, extra=varint(0))))
change(
    "alias_of_alias",
    "not a valid alias of d.bias",
    _all(
        _tensor(2, entry(BIAS, _ALIAS | F32, extra=varint(0))),
        lambda f: f.tensors.append(entry([token("e")], _ALIAS | F32, extra=varint(2))),
    ),
)

# --- raw section
change("raw_too_short", "needs 12 bytes, 11 are left", _set(raw=bytes(11)))
change("raw_too_long", "1 bytes too many", _set(raw=bytes(13)))
change(
    "raw_bool_2", "a bool that is neither 0 nor 1", _all(_tensor(2, entry(BIAS, _RAW | BOOL, [3])), _set(raw=b"\0\1\2"))
)

# --- metadata
change("metadata_duplicate_key", "duplicate key 'a'", _set(metadata=b'{"a":1,"a":2}'))
change("metadata_nan", "NaN is no JSON number", _set(metadata=b'{"a":NaN}'))
change("metadata_overflow_to_infinity", "holds inf, which JSON has not", _set(metadata=b'{"a":1e999}'))
change("metadata_deep_nesting", "nested too deeply", _set(metadata=b'{"a":' + b"[" * 50000))
change("metadata_nesting_17", "nested deeper than 16", _set(metadata=b'{"a":' + b"[" * 17 + b"]" * 17 + b"}"))
change("metadata_not_an_object", "metadata is a list", _set(metadata=b"[1]"))
change("metadata_not_json", "metadata is not JSON", _set(metadata=b"{"))
change("metadata_not_utf8", "metadata is not JSON", _set(metadata=b'{"a":"\xff"}'))

# --- chain section: layers
change("chain_anchor_unknown", "unknown storage 9 of the anchor", _chain(anchor_kind=9))
change("chain_without_layers", "a chain of 0 layers", _chain(count=0))
change("chain_too_many_layers", "a chain of 1099511627776 layers", _chain(count=1 << 40))
change("chain_tensor_out_of_range", "a chain refers to tensor 99", _head(1, head(99)))
change("chain_tensor_raw", "b.bias: a chain holds a tensor that is raw", _head(1, head(2)))
change("chain_tensor_twice", "tensor 'b.weight' is in 2 sections, expected 1", _head(2, head(1, mode=3)))
change(
    "chain_tensor_missing",
    "tensor 'c.weight' is in 0 sections, expected 1",
    _all(lambda f: f.chain.heads.__delitem__(2), _chain(groups=[group([0, 1, -1, 0])], references=b"")),
)
change(
    "chain_integer_tensor",
    "a chain holds a tensor that is coded, torch.int64",
    _tensor(3, entry([token("c"), varint(2)], _CODED | I64, [2, 1, 2, 1])),
)
change(
    "chain_float8_tensor",
    "a chain holds a tensor that is coded, torch.float8_e4m3fn",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F8, [2, 1, 2, 1])),
)
change(
    "chain_other_kernel_size",
    "shape (2, 1, 1, 2) in a chain of 2x1 kernels",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F32, [2, 1, 1, 2])),
)
change(
    "chain_empty_tensor",
    "shape (0, 1, 2, 1) in a chain",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F32, [0, 1, 2, 1])),
)
change(
    "chain_rank_3", "shape (2, 2, 1) in a chain", _tensor(3, entry([token("c"), varint(2)], _CODED | F32, [2, 2, 1]))
)
change(
    "chain_2_40_weights",
    "symbols cannot fit in",
    _tensor(3, entry([token("c"), varint(2)], _CODED | F32, [1 << 39, 1, 2, 1])),
)
change("mode_unknown", "unknown mode 5 or bit width 4", _head(1, head(1, mode=5)))
change("bits_1", "unknown mode 1 or bit width 1", _head(1, head(1, bits=1)))
change("bits_0", "unknown mode 1 or bit width 0", _head(1, head(1, bits=0)))
change("step_nan", "step nan, expected a finite number >= 0", _head(1, head(1, step=float("nan"))))
change("step_infinite", "step inf, expected", _head(1, head(1, step=float("inf"))))
change("step_negative", "step -0.5, expected", _head(1, head(1, step=-0.5)))
change("step_minus_zero", "step -0.0, expected", _head(1, head(1, step=-0.0)))
change(
    "first_layer_with_reference",
    "the first layer of a chain has no reference",
    _all(_chain(anchor_kind=0, anchor=b"", groups=[group([0, 1, -1, 0] * 3, 3)]), _head(0, head(0, mode=1))),
)
change(
    "anchor_nan",
    "the anchor holds values that are not finite",
    _chain(anchor=struct.pack("<4f", 1, float("nan"), 3, 4)),
)
change("anchor_truncated", "needs 16 bytes", _chain(anchor=b"", groups=[], references=b""))

# --- chain section: codes
change("code_too_large", "a code of magnitude 8 at 4 bits", _chain(groups=[group([0, 8, -1, 0, 1, 1, 0, 0], 2)]))
change("code_with_step_zero", "a code of magnitude 1 at 4 bits, step 0.0", _head(1, head(1, step=0.0)))
change(
    "overflow_to_infinity",
    "restores to values that are not finite",
    _all(_chain(groups=[group([7, 7, 7, 7, 0, 0, 0, 0], 2)]), _head(1, head(1, step=3e38))),
)
change("group_of_no_layers", "a group of 0 layers where 2 are left", _chain(groups=[Group(0)]))
change("group_of_too_many_layers", "a group of 3 layers where 2 are left", _chain(groups=[group([0] * 8, 3)]))
change("coder_unknown", "unknown coder 200", lambda f: setattr(f.chain.groups[0], "coder", 200))
change("payload_longer_than_section", "needs 1000000 bytes", lambda f: setattr(f.chain.groups[0], "length", 1000000))
change(
    "payload_too_long",
    "bytes, but its symbols end in byte",
    lambda f: setattr(f.chain.groups[0], "payload", f.chain.groups[0].payload + b"\0"),
)
change("payload_too_short", "symbols cannot fit in 0 bytes", lambda f: setattr(f.chain.groups[0], "payload", b""))
change(
    "payload_padding",
    "padding after the last symbol is not zero",
    lambda f: setattr(
        f.chain.groups[0], "payload", f.chain.groups[0].payload[:-1] + bytes([f.chain.groups[0].payload[-1] | 1])
    ),
)
change(
    "kraft_over", "more code words than there are", lambda f: setattr(f.chain.groups[0], "table", table(-1, [1, 1, 1]))
)
change(
    "kraft_under",
    "fewer code words than there are",
    lambda f: setattr(f.chain.groups[0], "table", table(-1, [1, 2, 3])),
)
change("alphabet_empty", "no symbol has a code", lambda f: setattr(f.chain.groups[0], "table", table(0, [0])))
change(
    "alphabet_of_one_with_two_bits",
    "code length of its only symbol is 2",
    lambda f: setattr(f.chain.groups[0], "table", table(0, [2])),
)
change(
    "alphabet_edges_unused",
    "first and last symbol must occur",
    lambda f: setattr(f.chain.groups[0], "table", table(-1, [0, 1, 1])),
)
change(
    "alphabet_too_large",
    "are more than it can hold",
    lambda f: setattr(f.chain.groups[0], "table", varint(0) + varint(1 << 40)),
)
change(
    "alphabet_far_away",
    "are more than it can hold",
    lambda f: setattr(f.chain.groups[0], "table", varint(1 << 60) + varint(1)),
)
change(
    "table_meta_kraft",
    "code table's own code",
    lambda f: setattr(f.chain.groups[0], "table", varint(0) + varint(1) + b"\xff" * 9),
)

# --- chain section: references
change("reference_coding_unknown", "unknown coding 5 of reference indices", _chain(references=b"\x05\x60\x00\x40"))
change("reference_to_itself", "reference indices from 1 to 3, expected 0 to 2", _chain(references=b"\x00\x70\x00\x40"))
change("reference_padding", "the padding is not zero", _chain(references=b"\x00\x61\x00\x40"))
change(
    "reference_kernel_of_none",
    "a reference to a kernel that its layer does not have",
    _chain(references=b"\x00\x10\x00\xc0"),
)
change("references_truncated", "needs 1 bytes, 0 are left", _chain(references=b"\x00\x60"))
change("chain_trailing_bytes", "2 bytes too many", _chain(tail=b"\0\0"))


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
change("structure_missing", "from a provenance that the file does not hold", _head(1, head(1, mode=4)))
change("structure_trailing_bytes", "1 bytes too many", _structure(AB, tail=b"\0"))
change("structure_count_too_large", "0 are left", _structure(AB, count=1 << 40))
change("structure_without_tensors", "an origin of 0 tensors", _structure(origin([], 3, b"\xa0")))
change("structure_too_many_tensors", "an origin of 5 tensors", _structure(origin([0, 1], 3, b"\xa0", count=5)))
change("structure_tensor_out_of_range", "expected ascending numbers", _structure(origin([0, 4], 3, b"\xa0")))
change("structure_tensor_twice", "expected ascending numbers", _structure(origin([1, 1], 3, b"\xa0")))
change("structure_second_origin", "a.weight: a second origin", _structure(AB, origin([0], 3, b"\xa0")))
change("structure_of_a_bias", "an alias or no weight", _structure(origin([2], 4, b"\xe0")))
change("structure_fewer_channels", "2 survivors of 1 channels", _structure(origin([0], 1, b"\x80")))
change("structure_2_40_channels", "survivors of 1099511627776 channels", _structure(origin([0], 1 << 40, b"\xa0")))
change("structure_bitmap_too_long", "needs 134217728 bytes, 1 are left", _structure(origin([0], 1 << 30, b"\xa0")))
change("structure_padding", "padding of its survivors is not zero", _structure(origin([0], 3, b"\xb0")))
change("structure_too_many_survivors", "3 distinct survivors for 2", _structure(origin([0], 3, b"\xe0")))
change("structure_survivor_twice", "1 distinct survivors for 2", _structure(origin([0], 4, b"\x00\x50", order=1)))
change("structure_order_unknown", "unknown order 2 of survivors", _structure(origin([0], 3, b"\xa0", order=2)))


@case("two_structure_sections", "a second section of a kind")
def _(file: File) -> None:
    one = varint(1) + AB
    file.sections = [(STRUCTURE, one), (STRUCTURE, one), (CHAIN, file.chain.build()), (RAW, file.raw)]


@case("structure_after_the_chain", "from a provenance that the file does not hold")
def _(file: File) -> None:
    file.chain.heads[1] = head(1, mode=4)
    file.sections = [(CHAIN, file.chain.build()), (STRUCTURE, varint(1) + AB), (RAW, file.raw)]


@case("structure_of_other_kernels", "1 survivors for shape (2, 1, 2, 1)")
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


change("map_of_no_zeros", "a map with 0 of 4 weights 0, or with padding", _map(b"\x00\x00"))
change("map_of_zeros_only", "a map with 4 of 4 weights 0, or with padding", _map(b"\x00\xf0"))
change("map_padding", "a map with 2 of 4 weights 0, or with padding", _map(b"\x00\xc1"))
change("map_coding_unknown", "unknown coding 3 of reference indices", _map(b"\x03\xc0"))


@case("map_2_40_weights", "a map of 1099511627776 weights in")
def _(file: File) -> None:
    file.tensors[1] = entry([token("b"), varint(2)], _CODED | F32, [1 << 39, 1, 2, 1])
    _map(b"\x00\xc0")(file)


# --- ANS
def ans_group(codes: list[int], layers: int = 1) -> Group:
    coder = AnsCoder()
    symbols = np.array(codes, dtype=np.int64)
    model = coder.fit(Histogram.of(symbols))
    return Group(layers, 2, coder.table(model), coder.encode(model, symbols))


def _ans(edit: Callable[[Group], object]) -> Callable[[File], object]:
    def apply(file: File) -> None:
        file.chain.groups = [ans_group([0, 1, -1, 0, 1, 1, 0, 0], 2)]
        edit(file.chain.groups[0])

    return apply


def _put(**values: object) -> Callable[[Group], object]:
    return lambda g: [setattr(g, key, value) for key, value in values.items()]


change("ans_payload_empty", "8 symbols cannot fit in 0 bytes", _ans(_put(payload=b"")))
change(
    "ans_payload_too_long", "its bits do not hold 8 symbols", _ans(lambda g: setattr(g, "payload", g.payload + b"\1"))
)
change("ans_payload_padded", "ends in a zero byte", _ans(lambda g: setattr(g, "payload", g.payload + b"\0")))
change("ans_payload_wrong", "its bits do not hold 8 symbols", _ans(_put(payload=b"\1\2\3\4")))
change("ans_alphabet_too_large", "are more than it can hold", _ans(_put(table=varint(0) + varint(1 << 40) + b"\0")))
change("ans_alphabet_far_away", "are more than it can hold", _ans(_put(table=varint(1 << 60) + varint(1) + b"\0\0")))
change("ans_mantissa_unknown", "unknown form 0x50", _ans(_put(table=varint(1) + varint(2) + b"\x50\xff")))
change("ans_edges_unused", "its first and last symbol must occur", _ans(_put(table=varint(1) + varint(2) + b"\0\xe0")))
change("ans_weight_negative", "a weight out of range", _ans(_put(table=varint(1) + varint(2) + b"\0\x58")))
change("ans_weight_too_large", "a weight out of range", _ans(_put(table=varint(1) + varint(0) + b"\0\x02\x88")))
change("ans_table_truncated", "ends too early", _ans(_put(table=varint(1) + varint(2) + b"\0", payload=b"", length=0)))
change("ans_table_padding", "padding after its last number", _ans(_put(table=varint(1) + varint(0) + b"\0\x6f")))


# --- grid section
def grid_head(tensor: int = 0, flags: int = 0, rest: bytes = struct.pack("<f", 0.5)) -> bytes:
    return varint(tensor) + bytes([flags]) + rest


def _grid(
    heads: list[bytes], codes: list[int], *, shape: list[int] | None = None, **values: object
) -> Callable[[File], object]:
    """A file with one packed tensor and a grid section."""

    def apply(file: File) -> None:
        code = int(values.get("code", _PACKED | F32))  # type: ignore[call-overload]
        file.tensors = [entry([token("g"), token("weight")], code, shape or [2, 2])]
        body = varint(int(values.get("count", len(heads)))) + b"".join(heads)  # type: ignore[call-overload]
        body += group(codes, len(heads)).build() + bytes(values.get("tail", b""))  # type: ignore[call-overload]
        file.sections = [(GRID, body)] * int(values.get("times", 1)) + [(RAW, b"")]  # type: ignore[call-overload]

    return apply


_ONES = struct.pack("<2f", 1, 1)
change("grid_twice", "a second section of a kind", _grid([grid_head()], [1, 2, 3, 4], times=2))
change("grid_count_0", "a grid section of 0 tensors", _grid([grid_head()], [1, 2, 3, 4], count=0))
change("grid_count_too_large", "a grid section of 9 tensors", _grid([grid_head()], [1, 2, 3, 4], count=9))
change("grid_tensor_unknown", "refers to tensor 7", _grid([grid_head(7)], [1, 2, 3, 4]))
change(
    "grid_of_integers", "holds a tensor that is packed, torch.int64", _grid([grid_head()], [1] * 4, code=_PACKED | I64)
)
change("grid_of_coded", "holds a tensor that is coded", _grid([grid_head()], [1] * 4, code=_CODED | F32))
change("grid_form_unknown", "unknown form 0x10 of a grid", _grid([grid_head(0, 16)], [1] * 4))
change("grid_same_scale_first", "shares its scale with nothing", _grid([grid_head(0, 8, b"")], [1] * 4))
change("grid_axis_too_large", "scales along axis 2", _grid([grid_head(0, 1, varint(2) + _ONES)], [1] * 4))
change("grid_axis_of_one", "scales along axis 0", _grid([grid_head(0, 1, varint(0) + _ONES)], [1] * 4, shape=[1, 4]))
change("grid_scale_nan", "not a finite number", _grid([grid_head(0, 0, struct.pack("<f", float("nan")))], [1] * 4))
change("grid_scale_negative", "not a finite number", _grid([grid_head(0, 0, struct.pack("<f", -0.0))], [1] * 4))
change(
    "grid_zero_point_too_large",
    "beyond 32767 in magnitude",
    _grid([grid_head(0, 2, struct.pack("<f", 1) + varint(1 << 40))], [1] * 4),
)
change("grid_predicted_by_nothing", "no earlier layer has kernels", _grid([grid_head(0, 4)], [1] * 4))
change("grid_code_too_large", "a code beyond 32767", _grid([grid_head()], [0, 0, 0, 32769]))
change("grid_trailing_bytes", "1 bytes too many", _grid([grid_head()], [1] * 4, tail=b"\0"))
change(
    "grid_infinite",
    "restores to values that are not finite",
    _grid([grid_head(0, 0, struct.pack("<f", 3e38))], [9, 0, 0, 0]),
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
            entry([token("n"), token("weight")], _PACKED | F32, [2]),
            *(entry([token(role)], _PACKED | F32 | _SAME, shared=1) for role in roles[1:4]),
            entry([token(roles[4])], _PACKED | I64, [], shared=1),
        ]
        for position, value in edits.items():
            file.tensors[int(position[1:])] = value
        body = varint(count) + bytes([mantissa]) + head + group(list(scales)).build() + group([0, 1]).build() + tail
        file.sections = [(BATCH_NORM, body), (RAW, b"")]

    return apply


change("norm_count_0", "a batch-norm section of 0 layers", _norm(norm_head(), count=0))
change("norm_mantissa_unknown", "scales of 60 bits of mantissa", _norm(norm_head(), mantissa=60))
change("norm_form_unknown", "unknown form 0x8 of a batch norm", _norm(norm_head(8)))
change("norm_same_eps_first", "unknown form 0x3 of a batch norm", _norm(norm_head(3)))
change("norm_tensor_unknown", "refers to tensor 13", _norm(norm_head(first=9)))
change("norm_eps_nan", "out of range", _norm(norm_head(eps=float("nan"))))
change("norm_eps_negative", "out of range", _norm(norm_head(eps=-1.0)))
change("norm_step_negative", "out of range", _norm(norm_head(step=-0.0)))
change("norm_exponent_too_large", "out of range", _norm(norm_head(exponent=1000)))
change("norm_scale_too_large", "a scale out of range", _norm(norm_head(), (1, 1000)))
change("norm_trailing_bytes", "1 bytes too many", _norm(norm_head(), tail=b"\0"))
change(
    "norm_of_another_shape",
    "no bias of a batch norm",
    _norm(norm_head(), t1=entry([token("bias")], _PACKED | F32, [3], shared=1)),
)
change(
    "norm_counter_of_floats",
    "no num_batches_tracked of a batch norm",
    _norm(norm_head(), t4=entry([token("num")], _PACKED | F32, [], shared=1)),
)
change(
    "norm_of_raw",
    "no running_var of a batch norm: raw",
    _norm(norm_head(), t3=entry([token("running_var")], _RAW | F32 | _SAME, shared=1)),
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
            tensor or entry([token("s"), token("weight")], _PACKED | F32, [2, 2]),
            entry([token("bias")], _RAW | F32, [0], shared=1),
        ]
        values = struct.pack(f"<{len(others)}f", *others)
        body = varint(count) + varint(number) + b"\0" + bytes([zeros]) + values + tail
        file.sections = [(SPARSE, body), (RAW, b"")]

    return apply


change("sparse_count_0", "a sparse section of 0 tensors", _sparse(count=0))
change("sparse_tensor_unknown", "refers to tensor 9", _sparse(number=9))
change("sparse_tensor_twice", "s.weight: twice in a sparse section", _sparse(tail=b"\0\0\xb0" + bytes(4), count=2))
change("sparse_padding", "the padding of the map of zeros is not zero", _sparse(0b10110001))
change("sparse_without_zeros", "does not tell the zeros from the others", _sparse(0, (1, 2, 3, 4)))
change("sparse_zero_among_others", "does not tell the zeros from the others", _sparse(others=(0.0,)))
change("sparse_truncated", "needs 8 bytes, 4 are left", _sparse(0b10010000))
change("sparse_trailing_bytes", "1 bytes too many", _sparse(tail=b"\0"))
change(
    "sparse_of_integers",
    "a sparse section holds a tensor that is packed, torch.int64",
    _sparse(tensor=entry([token("s"), token("weight")], _PACKED | I64, [2, 2])),
)
change(
    "sparse_of_raw",
    "a sparse section holds a tensor that is raw",
    _sparse(tensor=entry([token("s"), token("weight")], _RAW | F32, [2, 2])),
)
change(
    "sparse_2_40_values",
    "a map of 1099511627776 values in 6 bytes",
    _sparse(tensor=entry([token("s"), token("weight")], _PACKED | F32, [1 << 20, 1 << 20])),
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
            tensor or entry([token("q"), token("weight")], _PACKED | U8, [2]),
            entry([token("bias")], _RAW | F32, [0], shared=1),
        ]
        own = heads or [varint(0) + b"\3"]
        body = varint(len(own) if count is None else count) + b"".join(own)
        file.sections = [(FIELDS, body + group(fields, 2 * len(own)).build() + tail), (RAW, b"")]

    return apply


_SIX = [7, 0, 1, 2, 3, 0]  # two fields of each byte, then what is left of each
change("fields_count_0", "a fields section of 0 tensors", _fields(_SIX, count=0))
change("fields_count_too_large", "a fields section of 3 tensors, the file has 2", _fields(_SIX, count=3))
change("fields_tensor_unknown", "refers to tensor 9", _fields(_SIX, [varint(9) + b"\3"]))
change("fields_tensor_twice", "q.weight: twice in a fields section", _fields(_SIX * 2, [varint(0) + b"\3"] * 2))
change("fields_of_0_bits", "q.weight: fields of 0 bits", _fields(_SIX, [varint(0) + b"\0"]))
change("fields_of_9_bits", "q.weight: fields of 9 bits", _fields(_SIX, [varint(0) + b"\11"]))
change("fields_too_wide", "q.weight: a field of more than its 3 bits", _fields([8, 0, 1, 2, 3, 0]))
change("fields_last_too_wide", "q.weight: a field of more than its 2 bits", _fields([7, 0, 1, 2, 4, 0]))
change("fields_negative", "q.weight: a field of more than its 3 bits", _fields([7, 0, 1, -1, 3, 0]))
change("fields_trailing_bytes", "1 bytes too many", _fields(_SIX, tail=b"\0"))
change(
    "fields_of_floats",
    "a fields section holds a tensor that is packed, torch.float32",
    _fields(_SIX, tensor=entry([token("q"), token("weight")], _PACKED | F32, [2])),
)
change(
    "fields_of_raw",
    "a fields section holds a tensor that is raw",
    _fields(_SIX, tensor=entry([token("q"), token("weight")], _RAW | U8, [2])),
)
change(
    "fields_of_nothing",
    "a fields section holds a tensor that is packed",
    _fields(_SIX, tensor=entry([token("q"), token("weight")], _PACKED | U8, [0])),
)
change(
    "fields_2_40_values",
    "3298534883328 symbols cannot fit in",
    _fields(_SIX, tensor=entry([token("q"), token("weight")], _PACKED | U8, [1 << 20, 1 << 20])),
)


def build_all() -> dict[str, bytes]:
    """Every malformed file by name."""
    files = {}
    for name, (edit, _) in CASES.items():
        file = good()
        edit(file)
        files[name] = file.build()
    files["empty"] = b""
    files["only_magic"] = MAGIC
    files["zeros"] = bytes(200)
    return files


EXPECTED = {name: message for name, (_, message) in CASES.items()} | {
    "empty": "not an .ilwp file (0 bytes",
    "only_magic": "truncated",
    "zeros": "not an .ilwp file",
}


def main() -> None:
    folder = FOLDER / "malformed"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.ilwp"):
        old.unlink()
    for name, data in build_all().items():
        (folder / f"{name}.ilwp").write_bytes(data)
    (folder / "expected.json").write_text(json.dumps(EXPECTED, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
