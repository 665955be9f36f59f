"""The fast reader against one that was written from the page alone."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import read
from tests.corpus import forge, golden
from tests.format import textbook

CORPUS = Path(__file__).parent.parent / "corpus"
MADE = golden.cases()
SMALL = [name for name, data in MADE.items() if len(data) < 1300]


def found(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    file = read(data)
    state = file.state(as_bits=True)
    return {info.name: (info.dtype, info.shape, state[info.name].tobytes()) for info in file.infos}


@pytest.mark.parametrize("name", sorted(MADE))
def test_valid_files(name: str) -> None:
    assert textbook.read(MADE[name]) == found(MADE[name])


@pytest.mark.parametrize("name", sorted(forge.EXPECTED))
def test_malformed_files(name: str) -> None:
    with pytest.raises(textbook.Fault):
        textbook.read((CORPUS / "malformed" / f"{name}.ilwp").read_bytes())


@given(st.sampled_from(SMALL), st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_accept_and_refuse_the_same(name: str, data: st.DataObject) -> None:
    """Of files with a byte changed and signed anew; where both accept, the values are the same."""
    changed = bytearray(MADE[name])
    changed[data.draw(st.integers(13, len(changed) - 17))] = data.draw(st.integers(0, 255))
    file = forge.signed(bytes(changed))
    try:
        ours = found(file)
    except FormatError as error:
        if error.code != "limit":
            with pytest.raises(textbook.Fault):
                textbook.read(file)
    else:
        assert textbook.read(file) == ours
