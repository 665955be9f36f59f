"""The frame of a file: a directory of named tensors and checksummed sections. FORMAT.md in code, no mathematics."""

from ilwp_plugin.format.container.archive import Archive, SectionBytes, SectionEntry, measure, pack, read_archive
from ilwp_plugin.format.container.directory import (
    TensorInfo,
    check_name,
    check_tensor,
    directory_entries,
    read_directory,
)
from ilwp_plugin.format.container.files import read_file, write_file

__all__ = [
    "Archive",
    "SectionBytes",
    "SectionEntry",
    "TensorInfo",
    "check_name",
    "check_tensor",
    "directory_entries",
    "measure",
    "pack",
    "read_archive",
    "read_directory",
    "read_file",
    "write_file",
]
