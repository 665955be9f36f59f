"""The graph section: what a model is besides its tensors, in the form of another format, compressed.

The file is read without it; who has the other format's library makes the whole model of it and the tensors.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section, Summary
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["GraphSection"]

_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
_MAX_BYTES = 1 << 28
_MAX_KIND = 32
_MAX_RATIO = 1 << 13
"""LZMA packs no more than some 7,000 bytes into one."""


@SECTIONS.register("graph")
class GraphSection(Section):
    """The rest of a model.

    Args:
        kind: the format that it is in, a name of ASCII letters, digits and hyphens.
        content: of it, without the values of the tensors that the file holds; at most 256 MiB.

    Raises:
        TensorError: the kind is no such name, or the content is too large.
    """

    number = 10
    name = "graph"
    ancillary = True

    def __init__(self, kind: str, content: bytes) -> None:
        if not _is_kind(kind) or len(content) > _MAX_BYTES:
            raise TensorError(
                f"graph: expected the name of a format and at most {_MAX_BYTES:,} bytes, got {kind!r} and "
                f"{len(content):,}"
            )
        self.kind, self.content = kind, content

    def summaries(self) -> list[Summary]:
        return [Summary(self.kind, self.name, (), {"bytes": len(self.content)})]

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        packed = lzma.compress(self.content, lzma.FORMAT_RAW, filters=_FILTERS)
        with writer.charge(self.part, None):
            writer.varint(len(self.kind))
            writer.raw(self.kind.encode("ascii"))
            writer.varint(len(self.content))
            writer.raw(packed)

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> GraphSection:
        with reader.charge(cls.part, None):
            length = reader.varint()
            if not 1 <= length <= _MAX_KIND:
                raise reader.fail("form", f"the name of a format of {length} bytes")
            kind = bytes(reader.raw(length)).decode("ascii", "replace")
            size = reader.varint()
            if not _is_kind(kind) or size > min(_MAX_BYTES, reader.remaining * _MAX_RATIO):
                raise reader.fail("form", f"a graph of kind {kind!r} and {size:,} bytes in {reader.remaining}")
            packed = bytes(reader.raw(reader.remaining))
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
        try:
            content = unpacker.decompress(packed, size + 1)
        except lzma.LZMAError as error:
            raise reader.fail("value", f"a graph that cannot be unpacked: {error}") from None
        if len(content) != size or not unpacker.eof or unpacker.unused_data:
            raise reader.fail("value", f"a graph of other than {size:,} bytes")
        return cls(kind, content)


def _is_kind(kind: str) -> bool:
    return 1 <= len(kind) <= _MAX_KIND and kind.isascii() and kind.replace("-", "").isalnum()
