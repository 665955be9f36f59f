"""Results as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ilwp_plugin.compare.config import Network
from ilwp_plugin.compare.results import (
    FILE,
    Accuracy,
    MethodResult,
    Sizes,
    Usage,
    append_results,
    read_results,
)
from ilwp_plugin.errors import FileError, FormatError


def result(key: str, **changes: Any) -> MethodResult:
    network = Network(
        data="digits", model="mobilenet", width=0.25, stem_stride=1, epochs=2, batch=64, seed=0, loss_weight=0
    )
    values: dict[str, Any] = {
        "key": key,
        "network": network,
        "method": "fp32",
        "group": "baseline",
        "title": f"title of {key}",
        "options": {},
        "loss_weight": 0.0,
        "sizes": Sizes(raw_bytes=4, raw_depthwise_bytes=2, file_bytes=5),
        "accuracy": Accuracy(images=10, right=9, fp32=8, worse=0, better=1),
        "compression": Usage(seconds=0.1, peak_bytes=3),
        "loading": Usage(seconds=0.2, peak_bytes=4),
        "versions": {"torch": "2"},
    }
    return MethodResult(**{**values, **changes})


def test_what_is_there_stays_and_comes_once(tmp_path: Path) -> None:
    append_results(tmp_path, [result("b"), result("a")])
    before = (tmp_path / FILE).read_bytes()
    append_results(tmp_path, [result("a", title="another"), result("c")])
    after = (tmp_path / FILE).read_bytes()
    assert after.startswith(before)
    assert [r.key for r in read_results(tmp_path)] == ["a", "b", "c"]
    assert read_results(tmp_path)[0] == result("a")


def test_a_line_that_a_kill_left_unfinished(tmp_path: Path) -> None:
    append_results(tmp_path, [result("a"), result("b")])
    content = (tmp_path / FILE).read_bytes()
    for cut in range(len(content) - 1, content.index(b"\n"), -50):
        (tmp_path / FILE).write_bytes(content[:cut])
        assert [r.key for r in read_results(tmp_path)] == ["a"]
        append_results(tmp_path, [result("b")])
        assert (tmp_path / FILE).read_bytes() == content


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no results; make some with `ilwp compare"):
        read_results(tmp_path)


@pytest.mark.parametrize("line", [b"{}\n", b"nonsense\n", b'{"kind": "method"}\n'])
def test_lines_that_are_no_results(tmp_path: Path, line: bytes) -> None:
    append_results(tmp_path, [result("a")])
    with (tmp_path / FILE).open("ab") as file:
        file.write(line)
    with pytest.raises(FormatError, match="line 2: no result"):
        read_results(tmp_path)
