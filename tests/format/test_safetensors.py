"""Restored tensors as .safetensors, against the library of that name."""

import json
from pathlib import Path

import numpy as np
import pytest

from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.format import RawSection, TensorInfo, pack, read
from ilwp_plugin.format.dtypes import DTYPES
from ilwp_plugin.format.safetensors import write_safetensors
from tests.corpus import golden


def opened(name: str):  # type: ignore[no-untyped-def]
    return read(b"".join(pack(*golden.WRITTEN[name]())))


@pytest.mark.parametrize(
    "name",
    ["collocated", "to_bfloat16", "grid", "norms_5", "sparse", "fields", "floats", "codebooks", "dithered", "arranged"],
)
def test_as_the_library_reads_them(name: str, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    pytest.importorskip("ml_dtypes")  # so that numpy knows bfloat16 by name
    file = opened(name)
    assert write_safetensors(tmp_path / "x", file) == len(file.infos)
    found = numpy.load_file(tmp_path / "x")
    assert set(found) == set(file.names)
    for info in file.infos:
        values = found[info.name]
        assert values.tobytes() == file.tensor(info.name, as_bits=True).tobytes() and values.shape == info.shape


def test_every_dtype_that_it_has(tmp_path: Path) -> None:
    file = opened("every_dtype")
    with pytest.raises(FileError, match="a .safetensors file cannot hold 'of.complex128': complex128"):
        write_safetensors(tmp_path / "x", file)
    assert not list(tmp_path.iterdir())
    kept = [
        i
        for i in file.infos
        if i.dtype not in ("complex128", "float8_e4m3fnuz", "float8_e5m2fnuz") and i.storage == "raw"
    ]
    values = {i.name: file.tensor(i.name, as_bits=True) for i in kept}
    file = read(b"".join(pack(kept, RawSection.split(kept, values))))
    write_safetensors(tmp_path / "x", file)
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    assert length % 8 == 0 and sum(e["data_offsets"][1] - e["data_offsets"][0] for e in header.values()) == len(body)
    for info in kept:
        begin, end = header[info.name]["data_offsets"]
        assert body[begin:end] == values[info.name].tobytes() and header[info.name]["shape"] == list(info.shape)
        assert begin % min(8, DTYPES[info.dtype].itemsize) == 0
    torch = pytest.importorskip("safetensors.torch")
    found = torch.load_file(tmp_path / "x")
    assert str(found["of.bfloat16"].dtype) == "torch.bfloat16" and set(found) == set(file.names)


def test_aliases_are_written_in_full(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path / "x", opened("collocated"))
    found = numpy.load_file(tmp_path / "x")
    assert np.array_equal(found["shared.weight"], found["3.conv.weight"])


def test_a_name_that_means_something_else(tmp_path: Path) -> None:
    infos = [TensorInfo("__metadata__", "int8", (1,), "raw")]
    file = read(b"".join(pack(infos, RawSection.split(infos, {"__metadata__": np.zeros(1, np.int8)}))))
    with pytest.raises(FileError, match="cannot hold '__metadata__': a tensor of this name"):
        write_safetensors(tmp_path / "x", file)


def test_damage_that_is_found_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    data = bytearray(b"".join(pack(*golden.WRITTEN["two_raw_sections"]())))
    data[data.index(np.float32(read(bytes(data)).tensor("4")[0]).tobytes())] ^= 1
    with pytest.raises(FormatError, match="its checksum does not match"):
        write_safetensors(tmp_path / "x", read(bytes(data), verify=False))
    assert not list(tmp_path.iterdir())
