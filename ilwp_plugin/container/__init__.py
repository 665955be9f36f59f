"""The `.ilwp` container: named tensors and checksummed sections in one file. FORMAT.md in code, no mathematics."""

from ilwp_plugin.container.archive import Archive, SectionBytes, SectionKind, pack, read_archive
from ilwp_plugin.container.directory import TensorInfo, check_name
from ilwp_plugin.container.files import read_file, write_file

__all__ = [
    "Archive",
    "SectionBytes",
    "SectionKind",
    "TensorInfo",
    "check_name",
    "pack",
    "read_archive",
    "read_file",
    "write_file",
]
