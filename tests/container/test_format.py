"""The reader against damage and malice; the corpus is in tests/corpus."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ilwp_plugin.container.archive import SectionKind, read_archive

import ilwp_plugin
from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.errors import FileError, FormatError, LimitError
from tests.corpus import forge, golden

CORPUS = Path(__file__).parent.parent / "corpus"
EXPECTED = json.loads((CORPUS / "malformed" / "expected.json").read_text())
HASHES = json.loads((CORPUS / "valid" / "hashes.json").read_text())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_malformed_file_is_refused(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        ilwp_plugin.load(CORPUS / "malformed" / f"{name}.ilwp")
    assert EXPECTED[name] in str(caught.value)


def test_corpus_is_what_the_forge_makes() -> None:
    files = {path.stem: path.read_bytes() for path in (CORPUS / "malformed").glob("*.ilwp")}
    assert files == forge.build_all() and EXPECTED == forge.EXPECTED
    assert len(files) >= 40


def test_the_file_that_the_forge_starts_from_is_good() -> None:
    restored = ilwp_plugin.loads(forge.good().build()).state_dict()
    assert restored["c.weight"].flatten().tolist() == [1.5, 2.5, 2.5, 4.0]


@pytest.mark.parametrize("flags", [[], ["-O"]], ids=["plain", "optimized"])
def test_every_truncation_and_flipped_bit_is_refused(flags: list[str]) -> None:
    """In a process of its own, so that `python -O` is tested too: no check may be an assert."""
    command = [sys.executable, *flags, "-m", "tests.corpus.refuse_all"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=CORPUS.parent.parent, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("refused: ") and result.stdout.strip().endswith(f"optimize={len(flags)}")


@pytest.mark.parametrize("name", sorted(HASHES))
def test_golden_files_decode_for_ever(name: str) -> None:
    path = CORPUS / "valid" / f"{name}.ilwp"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == HASHES[name]
    expected = safetensors.torch.load_file(path.with_suffix(".safetensors"))
    restored = ilwp_plugin.load(path).state_dict()
    assert set(restored) == set(expected)
    for key, tensor in expected.items():
        if tensor.dtype == torch.bfloat16:
            assert same_bits(restored[key].view(torch.int16), tensor.view(torch.int16)), key
        else:
            assert same_bits(restored[key], tensor), key


def test_the_same_input_gives_the_golden_bytes() -> None:
    made = golden.cases()
    assert set(made) == set(json.loads((CORPUS / "valid" / "hashes.json").read_text()))
    for name, compressed in made.items():
        assert compressed.to_bytes() == (CORPUS / "valid" / f"{name}.ilwp").read_bytes(), name


@given(st.data())
@settings(max_examples=300)
def test_resigned_mutants_raise_nothing_else(data: st.DataObject) -> None:
    """A byte changed in a well-signed file: it decodes to something else, or is refused with our error."""
    file = forge.good()
    file.metadata = b'{"a": [1, 2.5, "b"]}'
    sections = [[forge.CHAIN, file.chain.build()], [forge.METADATA, file.metadata], [forge.RAW, file.raw]]
    bodies = [*file.tensors, *(body for _, body in sections)]
    which = data.draw(st.integers(0, len(bodies) - 1))
    body = bytearray(bodies[which])
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    if which < len(file.tensors):
        file.tensors[which] = bytes(body)
    else:
        sections[which - len(file.tensors)][1] = bytes(body)
    file.sections = [(kind, content) for kind, content in sections]  # type: ignore[has-type]
    try:
        ilwp_plugin.loads(file.build()).state_dict()
    except FormatError:
        pass


@given(st.binary(max_size=300))
def test_noise_raises_nothing_else(noise: bytes) -> None:
    for data in (noise, forge.MAGIC + noise):
        with pytest.raises(FormatError):
            ilwp_plugin.loads(data)


def test_limit_of_the_caller() -> None:
    data = forge.good().build()
    assert ilwp_plugin.loads(data, max_bytes=60).state_dict()
    shared = compress({**golden.model(), "again": golden.model()["4.scale"]})
    total = sum(tensor.nbytes for tensor in shared.state_dict().values())
    with pytest.raises(LimitError, match=f"takes {total:,} bytes"):
        ilwp_plugin.loads(shared.to_bytes(), max_bytes=total - 1)
    with pytest.raises(LimitError, match=r"takes 60 bytes, the limit is 59 \(max_bytes\)"):
        ilwp_plugin.loads(data, max_bytes=59)


def hostile() -> dict[str, bytes]:
    """Files under 1 KiB that claim 2^40 weights and more, well signed."""
    files = {}
    for name, shape in {"coded": [1 << 39, 1, 2, 1], "raw": [1 << 40]}.items():
        file = forge.good()
        code = 0x10 if name == "coded" else 0
        file.tensors[3] = forge.entry([forge.token("c"), forge.varint(2)], code, shape)
        files[name] = file.build()
    one = forge.good()
    one.tensors[3] = forge.entry([forge.token("c"), forge.varint(2)], 0x10, [1 << 39, 1, 2, 1])
    one.chain.groups = [forge.Group(2, 1, forge.table(0, [1]), bytes(64))]
    files["one symbol"] = one.build()
    return files


MEASURE = """
import resource, sys
import ilwp_plugin
from ilwp_plugin.errors import FormatError
import time
data = sys.stdin.buffer.read()
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    ilwp_plugin.loads(data).state_dict()
except FormatError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
"""


@pytest.mark.parametrize("name", sorted(hostile()))
def test_hostile_headers_take_no_memory(name: str) -> None:
    data = hostile()[name]
    assert len(data) < 1024
    result = subprocess.run([sys.executable, "-c", MEASURE], input=data, capture_output=True, check=True)
    assert int(result.stdout.split()[0]) < 64 * 1024, "KiB above the baseline"
    with pytest.raises(FormatError):
        ilwp_plugin.loads(data)


def one_bit_each() -> bytes:
    """As many weights as can be had for the bytes: one bit each, in one layer of a million kernels."""
    file = forge.good()
    file.tensors[3] = forge.entry([forge.token("c"), forge.varint(2)], 0x10, [1 << 20, 1, 2, 1])
    file.chain.groups = [forge.group([0] * 4), forge.Group(1, 1, forge.table(0, [1]), bytes((1 << 21) // 8))]
    file.chain.heads[2] = forge.head(3, mode=0)
    file.chain.references = b""
    return file.build()


def many_layers(count: int = 8000) -> bytes:
    """A chain of many tiny layers without references."""
    file = forge.good()
    first = forge.entry([forge.token("l"), forge.token("0"), forge.token("weight")], 0x10, [1, 1, 1, 1])
    rest = [forge.entry([forge.token(str(i)), forge.varint(3)], 0x50, shared=1) for i in range(1, count)]
    file.tensors = [first, *rest]
    heads = [forge.varint(0), *(forge.head(i, mode=0) for i in range(1, count))]
    groups = [forge.group([0] * (count - 1), count - 1)]
    file.chain = forge.Chain((1, 1), 1, None, heads, bytes(4), groups, b"")
    file.raw = b""
    return file.build()


def many_keys() -> bytes:
    """Metadata of many keys, the last of them twice."""
    file = forge.good()
    keys = [str(i) for i in range(100_000)]
    file.metadata = ("{" + ",".join(f'"{key}":0' for key in [*keys, keys[-1]]) + "}").encode()
    return file.build()


def long_names() -> bytes:
    """One long component, repeated for a byte each time."""
    file = forge.good()
    file.tensors[2] = forge.entry([forge.token("x" * 1000), *[forge.varint(4)] * 20_000], 0, [3])
    return file.build()


def a_bit_a_field() -> bytes:
    """Integers in fields of a bit, as many as can be had."""
    file = forge.good()
    file.tensors = [forge.entry([forge.token("q")], 0x34, [1 << 18])]
    fields = forge.Group(1, 1, forge.table(0, [1]), bytes((1 << 21) // 8))
    file.sections = [(forge.FIELDS, forge.varint(1) + forge.varint(0) + b"\1" + fields.build()), (forge.RAW, b"")]
    return file.build()


BOMBS = {f.__name__: f for f in (one_bit_each, a_bit_a_field, many_layers, many_keys, long_names)}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_small_and_quick(name: str) -> None:
    """In a child, whose peak memory no other test has raised before."""
    data = BOMBS[name]()
    result = subprocess.run([sys.executable, "-c", MEASURE], input=data, capture_output=True, check=True)
    growth, seconds = result.stdout.split()
    assert float(seconds) < 2
    assert int(growth) * 1024 < 64 * len(data) + (96 << 20), "what is restored, and room to work"


def test_many_tensors_are_read_in_linear_time() -> None:
    state = {f"block.{i}.weight": torch.zeros(1) for i in range(20000)}
    state |= {"a.weight": torch.randn(4, 1, 3, 3), "b.weight": torch.randn(4, 1, 3, 3)}
    data = compress(state).to_bytes()
    start = time.monotonic()
    assert len(ilwp_plugin.loads(data).state_dict()) == 20002
    assert time.monotonic() - start < 5


def test_section_kinds_keep_their_numbers() -> None:
    assert {kind.name: int(kind) for kind in SectionKind} == {
        "RAW": 1,
        "CHAIN": 2,
        "METADATA": 3,
        "GRID": 4,
        "BATCH_NORM": 5,
        "STRUCTURE": 6,
        "SPARSE": 7,
        "FIELDS": 8,
    }


def test_digest_identifies_the_file() -> None:
    data = compress(golden.model(), IlwpConfig()).to_bytes()
    assert read_archive(data, "x").digest == data[-16:].hex()


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot read .*absent\.ilwp: No such file"):
        ilwp_plugin.load(tmp_path / "absent.ilwp")
    with pytest.raises(FileError, match="directory"):
        ilwp_plugin.load(tmp_path)


def test_the_reading_path_executes_nothing() -> None:
    """No pickle, eval, exec or torch.load in any module that reading a file imports."""
    package = Path(ilwp_plugin.__file__).parent
    for folder in ("container", "coding", "sections", "method"):
        for path in (package / folder).rglob("*.py"):
            text = path.read_text()
            assert not any(word in text for word in ("pickle", "eval(", "exec(", "torch.load", "__import__")), path
    assert "pickle" not in (package / "compression.py").read_text()
