"""JSON files that users write."""

from pathlib import Path

import pytest

from ilwp_plugin import strict_json
from ilwp_plugin.errors import ConfigError, FileError


def test_values_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, "\u00e9", null]}', encoding="utf-8")
    assert strict_json.load(tmp_path / "a.json") == {"a": [1, 2.5, "é", None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1', "not JSON: Expecting"),
        (b'{"a": 1, "a": 2}', "not JSON: duplicate key 'a'"),
        (b'{"a": NaN}', "not JSON: NaN is no JSON number"),
        (b"\xff", "not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"bad.json: {message}"):
        strict_json.load(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot read .*absent\.json: No such file"):
        strict_json.load(tmp_path / "absent.json")
    with pytest.raises(FileError, match="cannot read .*directory"):
        strict_json.load(tmp_path)
