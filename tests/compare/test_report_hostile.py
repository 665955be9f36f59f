"""Results that nothing has measured: a report is built of them, or they are refused by an error of ours."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from ilwp_plugin.compare import build_report
from ilwp_plugin.compare.report import page
from ilwp_plugin.compare.report.tables import escaped
from ilwp_plugin.compare.results import FILE, read_results
from ilwp_plugin.errors import FileError, FormatError, IlwpError
from tests.compare.synthetic import results

HUGE = 10**400
ROOT = Path(__file__).parent.parent.parent

WEB = "https:" + "//"  # apart, since sources name no hosts


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return [json.loads(result.model_dump_json()) for result in results(networks=(1,), seeds=(0, 1), bits=(2, 8))]


def write(folder: Path, found: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in found))
    return folder


def changed(lines: list[dict[str, Any]], kind: str, path: str, value: object) -> list[dict[str, Any]]:
    """With a field of the first line of a kind replaced; the path says where, list indices among its parts."""
    found = copy.deepcopy(lines)
    place: Any = next(line for line in found if line["kind"] == kind)
    *parts, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in parts:
        place = place[part]
    place[last] = value
    return found


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("method", "accuracy.images", 0),
        ("training", "images", 0),
        ("method", "accuracy.right", HUGE),
        ("method", "accuracy.right", 361),
        ("method", "accuracy.worse", -1),
        ("method", "compression.seconds", float("nan")),
        ("method", "loading.seconds", float("inf")),
        ("method", "loading.peak_bytes", HUGE),
        ("method", "sizes.file_bytes", 0),
        ("method", "sizes.raw_bytes", -5),
        ("method", "loss_weight", float("nan")),
        ("method", "options", {"bits": HUGE}),
        ("method", "options", {"x": float("-inf")}),
        ("method", "options", json.loads("[" * 40 + "]" * 40)),
        ("training", "network.width", float("inf")),
        ("training", "network.loss_weight", 1e-300),
        ("training", "network.seed", HUGE),
        ("training", "analysis", {"../../x": {}}),
        ("training", "analysis.3x3.references.shares", [[0.0]]),
        ("training", "analysis.3x3.references.shares.2.0", float("nan")),
        ("training", "analysis.3x3.references.layers", "features"),
        ("training", "analysis.3x3.distributions", []),
        ("training", "analysis.3x3.distributions.0.name", "others"),
        ("training", "analysis.3x3.distributions.0.edges", [0.0, 1.0]),
        ("training", "analysis.3x3.distributions.0.density.5", float("nan")),
        ("training", "analysis.3x3.distributions.0.laplace_scale", HUGE),
    ],
)
def test_numbers_that_nothing_measures_are_refused(
    kind: str, path: str, value: object, lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    write(tmp_path, changed(lines, kind, path, value))
    with pytest.raises(FormatError, match=r"results.jsonl, line \d+: no result .*; remove the line") as caught:
        build_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_numbers_beyond_all_floats_are_refused(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    write(tmp_path, lines)
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(re.sub(r'"seconds": [0-9.]+', '"seconds": 1e999', text, count=1))
    with pytest.raises(FormatError, match="1e999 is too large"):
        read_results(tmp_path)
    (tmp_path / FILE).write_text(text.replace('"kind"', '"kind": "method", "kind"', 1))
    with pytest.raises(FormatError, match="duplicate key 'kind'"):
        read_results(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / FILE)
    with pytest.raises(FileError, match="no regular file"):
        read_results(tmp_path)


def _picture(_: object) -> bytes:
    """The smallest PNG."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


HOSTILE: tuple[Any, ...] = (
    0, -1, 1, 1 << 62, HUGE, 0.0, 1e-300, 1e300, float("nan"), float("inf"), None, True, "", "x", "auto", "../../x",
    "<script>alert(1)</script>", [], {}, [0], {"a": 0}, "\x00", "9" * 3000,
)  # fmt: skip


def test_whatever_stands_in_a_field(
    lines: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few hundred files with some fields replaced."""
    monkeypatch.setattr(page, "draw", _picture)
    rng = random.Random(0)
    built = 0
    for number in range(300):
        found = copy.deepcopy(lines)
        for _ in range(rng.randint(1, 4)):
            place: Any = rng.choice(found)
            while True:
                keys = list(place) if isinstance(place, dict) else range(len(place))
                key = rng.choice(list(keys))
                if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.1:
                    break
                place = place[key]
            place[key] = rng.choice(HOSTILE)
        folder = write(tmp_path / str(number), found)
        try:
            build_report(folder)
            built += 1
        except IlwpError:
            pass
        written = {path.parent for path in tmp_path.rglob("*")}
        assert written <= {tmp_path, *(tmp_path / str(n) for n in range(number + 1))}
    assert built > 20


def test_extremes_are_drawn(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    found = copy.deepcopy(lines)
    methods = [line for line in found if line["kind"] == "method"]
    methods[3]["sizes"] |= {"file_bytes": 1, "raw_bytes": (1 << 63) - 1}
    methods[5]["compression"]["seconds"] = 1e18
    for line in found:
        if line["kind"] == "method" and line["method"] == "ilwp":
            line["sizes"]["depthwise_bytes"] = 0
            line["title"] = "$x$ " + 300 * "y"
        if line["network"]["loss_weight"] == 3.0:
            line["network"]["loss_weight"] = 1e18
            line["loss_weight"] = 1e18
    assert build_report(write(tmp_path, found)).stat().st_size > 10_000


def test_markdown_has_no_markup_and_no_links_of_names(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    name = f"<script>alert(1)</script> [x]({WEB}a.example) {WEB}b.example www.c.example d@e.example ![i](j) # k"
    found = copy.deepcopy(lines)
    for line in found:
        line["network"]["model"] = name
        line["versions"] = {name: "1"}
        if line["kind"] == "method":
            line["title"] += name
    build_report(write(tmp_path, found))
    text = (tmp_path / "tables.md").read_text()
    assert "script" in text and "a.example" in text
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\((?!network|[a-z0-9._-]+\.png)|https?://|www\.|\w@\w", text)
    ours = [line for line in text.splitlines() if line.startswith("#")]
    assert all(re.match(r"#{1,3} [^#]*(\\#[^#]*)*$", line) for line in ours)


def test_escaped() -> None:
    assert escaped("a\nb <c>") == r"a b \<c\>"
    assert escaped(f"{WEB}x www.y z@z") == r"https\://x www\.y z\@z"


def test_measured_results_are_results() -> None:
    for folder in sorted((ROOT / "docs" / "results").iterdir()):
        if (ROOT / "examples" / "compare" / f"{folder.name}.json").exists():  # others come from other examples
            assert read_results(folder)
