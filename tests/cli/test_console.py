"""What commands print: progress where there is no terminal."""

import pytest

from ilwp_plugin.cli import console


@pytest.fixture(autouse=True)
def not_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)


def test_what_takes_long_says_how_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress_bar() as tell:
        for done in range(10):
            tell("layers", done, 10)
            for part in (100, 1000):
                now[0] += 50
                tell("kernels", part, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ilwp: layers: 0 of 10; kernels: 100 of 1,000, about 0 seconds left for kernels"
    assert lines[1] == "ilwp: layers: 1 of 10, about 15 minutes left for layers"
    assert all(line.startswith("ilwp: layers: ") for line in lines) and len(lines) == 19


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar() as tell:
        for done in range(11):
            tell("layers", done, 10)
    assert capsys.readouterr() == ("", "")


def test_durations() -> None:
    assert [console._duration(s) for s in (3, 119, 120, 7199, 7200)] == [
        "3 seconds", "119 seconds", "2 minutes", "120 minutes", "2 hours",
    ]  # fmt: skip


def test_progress_is_silent_in_ci_and_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(console.errors, "print", lambda *words, **_: said.append(words))
    monkeypatch.setattr(console._Reports, "EVERY", 0.0)
    with console.progress_bar() as report:
        report("kernels", 1, 2)
    assert said
    said.clear()
    monkeypatch.setenv("CI", "true")
    with console.progress_bar() as report:
        report("kernels", 1, 2)
    monkeypatch.delenv("CI")
    monkeypatch.setattr(console.output, "quiet", True)
    with console.progress_bar() as report:
        report("kernels", 1, 2)
    assert not said
