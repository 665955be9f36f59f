"""The page itself: what it holds, and how a real browser shows it."""

import base64
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from ilwp_plugin.compare import build_report
from ilwp_plugin.compare.report.drawing import draw
from ilwp_plugin.compare.report.figures import Bar, Bars, Chart, Point, Series
from ilwp_plugin.compare.report.summary import Change, Estimate, sections
from ilwp_plugin.compare.results import append_results
from ilwp_plugin.errors import FileError, FormatError
from tests.compare.synthetic import HOSTILE, Results, results

ILWP = Path(sys.executable).parent / "ilwp"
CHROMIUM_OPTIONS = [
    "--no-sandbox",  # as root, in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

PATIENCE = 120_000
"""Milliseconds; a machine may be busy."""


def write(found: Results, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    append_results(folder, found)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(write(results(bits=[2, 4, 8]), tmp_path_factory.mktemp("report")))


class Reader(HTMLParser):
    """Elements with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_titles_are_text_and_nothing_else(page: Path) -> None:
    reader = Reader(page.read_text())
    assert HOSTILE in reader.text
    assert not reader.all("script") and "<script" not in page.read_text()


def test_the_page_holds_its_pictures_and_they_are_beside_it(page: Path) -> None:
    reader = Reader(page.read_text())
    images = reader.all("img")
    inlined = [base64.b64decode((i["src"] or "").removeprefix("data:image/png;base64,")) for i in images]
    beside = {path.name: path.read_bytes() for path in page.parent.glob("*.png")}
    assert len(inlined) == len(beside) == 18 and sorted(inlined) == sorted(beside.values())
    assert all(i["alt"] and "." in i["alt"] and i["width"] and i["height"] for i in images)
    assert "ilwp would save" in (images[0]["alt"] or "")
    sources = [v for _, attributes in reader.elements for k, v in attributes.items() if k in ("src", "href") and v]
    assert all(source.startswith(("data:", "#")) for source in sources)
    tables = (page.parent / "tables.md").read_text()
    assert all(f"]({name})" in tables for name in beside)
    assert {f"#{i['id']}" for i in reader.all("section")} >= {a["href"] for a in reader.all("a")}


def test_the_same_results_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    found = results(networks=[1], seeds=[0, 1], bits=[4, 8])
    first = build_report(write(found, tmp_path / "one")).parent
    random.Random(1).shuffle(found)
    second = build_report(write(found, tmp_path / "other")).parent
    names = {path.name for path in first.iterdir()} - {"results.jsonl"}
    assert {"report.html", "tables.md"} < names == {path.name for path in second.iterdir()} - {"results.jsonl"}
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    trainings = [r for r in results(networks=[0], seeds=[0]) if r.kind == "training"]
    text = build_report(write(trainings, tmp_path)).read_text()
    assert "Not in these results; the configuration would need" in text and "Fig. 2 and 3" in text
    only_fp32 = [r for r in results(networks=[0], seeds=[0]) if r.kind == "method" and r.method == "fp32"]
    text = build_report(write(only_fp32, tmp_path / "fp32")).read_text()
    assert "No method with ilwp was measured here" in text


def test_command(tmp_path: Path) -> None:
    write(results(networks=[1], seeds=[0], bits=[8]), tmp_path)

    def ilwp(folder: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
        return subprocess.run([ILWP, "report", folder], capture_output=True, text=True, check=False, env=environment)

    done = ilwp(tmp_path)
    assert done.returncode == 0 and done.stdout == f"the report is {tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    absent = ilwp(tmp_path / "absent")
    assert absent.returncode == 1 and "no results; make some with `ilwp compare" in absent.stderr


def test_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no results"):
        build_report(tmp_path)
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(FormatError, match="line 1"):
        build_report(tmp_path)


def test_extreme_charts_can_be_drawn() -> None:
    """One point, no deviation, an accuracy far beneath all others, names that would be mathematics."""
    one = Point(Estimate(1.0), Estimate(90.0, 0.5), "$x_1$ \\frac")
    far = Point(Estimate(2.0, 0.1), Estimate(10.0), "x" * 300)
    for points in ((one,), (one, far)):
        for scale in ("linear", "log", "weight"):
            series = (Series("$y^2$", "ilwp", points, True), Series("y" * 200, "NNCF + ilwp", points, False))
            for front in ((), points):
                png = draw(Chart(series, "x", "accuracy, %", scale, front))
                assert png.startswith(b"\x89PNG") and len(png) > 5000
    method = sections(results(networks=[0], seeds=[0], bits=[8]))[0].methods[0]
    lost = type(method)(**{**vars(method), "change": Change(-5.0, 0.1), "ratio": None, "title": "$" + "z" * 200})
    fine, hatched = (draw(Bars((Bar("ilwp", m),))) for m in (method, lost))
    assert fine != hatched and hatched.startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("no chromium on the PATH, in which the report is tested: apt-get install chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS, timeout=PATIENCE)
        yield found
        found.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_in_a_browser(browser: Browser, page: Path, width: int, height: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    tab.wait_for_load_state("load")
    for summary in tab.query_selector_all("summary"):
        summary.click()  # what is folded has to fit, too

    assert not complaints
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    images = tab.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(images) == 18
    assert all(complete and natural > 0 and 300 < shown <= width for complete, natural, shown in images)
    tables = tab.evaluate("[...document.querySelectorAll('table')].map(t => t.parentElement.clientWidth)")
    assert len(tables) >= 6 and all(0 < table <= width for table in tables)

    def box(selector: str) -> dict[str, float]:
        found: dict[str, float] = tab.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        return found

    assert box(".lead")["bottom"] < height, "the headline is in the first screen"
    assert box(".chart img")["bottom"] < height, "and its bars"
    assert tab.inner_text(".lead").startswith("ilwp would save")
    ink, back = tab.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert (brightness(ink) < brightness(back)) == (scheme == "light")
    assert tab.evaluate("parseFloat(getComputedStyle(document.querySelector('.lead')).fontSize)") >= 16
    context.close()


def brightness(colour: str) -> int:
    """Of `rgb(r, g, b)`."""
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))
