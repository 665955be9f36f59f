"""The reader against damage and malice; the corpus is in tests/corpus."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import read
from ilwp_plugin.format.faults import FAULTS
from tests.corpus import forge, golden

ROOT = Path(__file__).parent.parent.parent
CORPUS = ROOT / "tests" / "corpus"
CODES = json.loads((CORPUS / "malformed" / "expected.json").read_text())
GOLDEN = json.loads((CORPUS / "valid" / "expected.json").read_text())
MADE = golden.cases()


@pytest.mark.parametrize("name", sorted(CODES))
def test_malformed_file_is_refused(name: str) -> None:
    data = (CORPUS / "malformed" / f"{name}.ilwp").read_bytes()
    code, message = forge.EXPECTED[name]
    for verify in (True, False):
        with pytest.raises(FormatError) as caught:
            file = read(data, verify=verify)
            file.state(as_bits=True)
            for section in file.sections:  # what holds no tensors was not looked at
                section.check()
        assert caught.value.code == code == CODES[name] and code in FAULTS
        assert message in str(caught.value) and "torch" not in str(caught.value)
        if code == "file-checksum":
            break  # it is verification that checks the whole file


def test_corpus_is_what_the_forge_makes() -> None:
    files = {path.stem: path.read_bytes() for path in (CORPUS / "malformed").glob("*.ilwp")}
    assert files == forge.build_all() and {name: code for name, (code, _) in forge.EXPECTED.items()} == CODES
    assert len(files) >= 300


def test_every_fault_is_in_the_corpus_and_on_the_page() -> None:
    beyond_files = {"limit", "platform"}
    assert set(CODES.values()) == set(FAULTS) - beyond_files
    page = (ROOT / "FORMAT.md").read_text()
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", page, re.MULTILINE)) == FAULTS


def test_the_file_that_the_forge_starts_from_is_good() -> None:
    restored = read(forge.good().build()).state()
    assert restored["c.weight"].flatten().tolist() == [1.5, 2.5, 2.5, 4.0]


def test_every_truncation_and_flipped_bit_is_refused() -> None:
    """In a process of its own, so that `python -O` is tested too, where nothing else may come out of any file: no check
    may be an assert."""
    found = []
    for flags in ([], ["-O"]):
        command = [sys.executable, *flags, "-m", "tests.corpus.refuse_all"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert result.returncode == 0, result.stderr
        mutants, refused = result.stdout.splitlines()
        assert refused.startswith("refused: ") and refused.endswith(f"optimize={len(flags)}")
        found.append(mutants)
    assert found[0] == found[1] and found[0].startswith("2000 mutants, ")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_files_decode_for_ever(name: str) -> None:
    data = (CORPUS / "valid" / f"{name}.ilwp").read_bytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN[name]["sha256"]
    assert golden.values_of(data) == GOLDEN[name]["tensors"]
    lazy = read(data, verify=False)
    for info in reversed(lazy.infos):
        values = lazy.tensor(info.name, as_bits=True)
        assert GOLDEN[name]["tensors"][info.name].endswith(hashlib.sha256(values.tobytes()).hexdigest())


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_same_input_gives_the_golden_bytes(name: str) -> None:
    assert set(MADE) == set(GOLDEN)
    data = MADE[name]
    assert data == (CORPUS / "valid" / f"{name}.ilwp").read_bytes()


@given(st.data())
@settings(max_examples=300, deadline=None)
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
        read(file.build()).state(as_bits=True)
    except FormatError as error:
        assert error.code in FAULTS


GENTLE = [name for name, data in MADE.items() if len(data) < 4096]


def resigned(data: bytes, at: int, value: int) -> bytes:
    """A file with a byte of its header or a section changed, and its checksums made anew."""
    changed = bytearray(data)
    changed[at] = value
    return forge.signed(bytes(changed))


@given(st.sampled_from(GENTLE), st.data())
@settings(max_examples=400, deadline=None)
def test_resigned_mutants_of_every_golden_file(name: str, data: st.DataObject) -> None:
    whole = MADE[name]
    at = data.draw(st.integers(13, len(whole) - 17))
    try:
        read(resigned(whole, at, data.draw(st.integers(0, 255)))).state(as_bits=True)
    except FormatError as error:
        assert error.code in FAULTS


@given(st.binary(max_size=300))
def test_noise_raises_nothing_else(noise: bytes) -> None:
    for data in (noise, forge.MAGIC + noise):
        with pytest.raises(FormatError):
            read(data)
