"""The graph section: what a model is besides its tensors, in the form of another format, compressed.

The file is read without it; who has the other format's library makes the whole model of it and the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ilwp_plugin.errors import FormatError, TensorError
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.packing import packed, unpacked
from ilwp_plugin.format.sections.base import SECTIONS, Context, Section, Summary
from ilwp_plugin.format.stream import ByteReader, ByteWriter

__all__ = ["GraphSection"]

_MAX_BYTES = 1 << 28
_MAX_KIND = 32


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
    single = True

    def __init__(self, kind: str, content: bytes) -> None:
        if not _is_kind(kind) or len(content) > _MAX_BYTES:
            raise TensorError(
                f"graph: expected the name of a format and at most {_MAX_BYTES:,} bytes, got {kind!r} and "
                f"{len(content):,}"
            )
        self.kind, self.size = kind, len(content)
        self._packed: bytes | memoryview = packed(content)
        self._where = self.name

    @property
    def content(self) -> bytes:
        """Unpacked anew each time."""
        return b"".join(self._pieces())

    def check(self) -> None:
        for _ in self._pieces():
            pass

    def _pieces(self) -> Iterator[bytes]:
        try:
            yield from unpacked(self._packed, self.size)
        except ValueError as error:
            raise FormatError(f"{self._where}: a graph {error}", "payload") from None

    def summaries(self) -> list[Summary]:
        return [Summary(self.kind, self.name, (), {"bytes": self.size})]

    def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
        with writer.charge(self.part, self.kind):
            writer.varint(len(self.kind))
            writer.raw(self.kind.encode("ascii"))
            writer.varint(self.size)
            writer.raw(bytes(self._packed))

    @classmethod
    def decode(cls, reader: ByteReader, context: Context) -> GraphSection:
        section = cls.__new__(cls)
        section._where = reader.where
        with reader.charge_later() as entry:
            entry.account = (cls.part, None)
            length = reader.varint()
            if not 1 <= length <= _MAX_KIND:
                raise reader.fail("range", f"the name of a format of {length} bytes")
            section.kind = bytes(reader.raw(length)).decode("ascii", "replace")
            section.size = reader.varint()
            if not _is_kind(section.kind) or section.size > _MAX_BYTES:
                raise reader.fail("range", f"a graph of kind {section.kind!r} and {section.size:,} bytes")
            section._packed = reader.raw(reader.remaining)
            entry.account = (cls.part, section.kind)
        return section


def _is_kind(kind: str) -> bool:
    return 1 <= len(kind) <= _MAX_KIND and kind.isascii() and kind.replace("-", "").isalnum()
