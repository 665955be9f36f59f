"""Searches: whose trials are whose, two at a time, and what is said where a target cannot be met."""

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import CompressedModel, IlwpConfig, compress
from ilwp_plugin.errors import CalibrationError, ConfigError, FileError, IlwpWarning
from ilwp_plugin.pipeline import trial_log
from ilwp_plugin.pipeline.trial_log import Log, Trial, open_log
from ilwp_plugin.recipes.base import Knobs

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 8)).eval()


class Score:
    """Minus the error of the outputs, and how often it was asked."""

    def __init__(self, factor: float = 1.0) -> None:
        self.expected, self.factor, self.calls = network()(X).detach(), factor, 0

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        return -self.factor * float((model(X) - self.expected).square().mean())


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IlwpWarning)
        yield


def search(path: Path, evaluate: Any = None, model: nn.Module | None = None, **changes: Any) -> CompressedModel:
    options = {"max_drop": 0.01, "calibration": X, "metadata": {"a": 1}, **changes}
    config = options.pop("config", None)
    return compress(model or network(), config, evaluate=evaluate or Score(), resume=path, **options)


def test_goes_on_where_everything_is_the_same(tmp_path: Path) -> None:
    path, first, second, named = tmp_path / "trials.jsonl", Score(), Score(), Score()
    found = search(path, first)
    lines = path.read_text()
    assert search(path, second, calibration=(x for x in X.split(16))).to_bytes() == found.to_bytes()
    assert first.calls > 8 and second.calls == 3, "the model, one trial again, the file at last"
    assert path.read_text() == lines
    search(tmp_path / "named.jsonl", evaluation="error on X")
    search(tmp_path / "named.jsonl", named, evaluation="error on X")
    assert named.calls == 2, "the model, and the file at last"


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": X + 1e-3},
        {"calibration": None},
        {"metadata": {"a": 2}},
        {"metadata": None},
        {"max_drop": 0.02},
        {"max_drop": None, "target_bytes": 900},
        {"config": IlwpConfig(feedback_damping=0.03)},
        {"evaluation": "another"},
    ],
    ids=str,
)
def test_another_search_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "trials.jsonl"
    search(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="trials of another model, configuration, calibration, target, metadata or"):
        search(path, **change)
    assert path.read_bytes() == before


def test_another_model_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "trials.jsonl", network()
    search(path)
    with torch.no_grad():
        model[0].bias[0] += 1e-6
    with pytest.raises(ConfigError, match="another model"):
        search(path, model=model)


def test_another_evaluate_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    search(path)
    with pytest.raises(ConfigError, match="`evaluate` gives .* where that of these trials gave .*`evaluation` names"):
        search(path, Score(1.5))


def test_the_file_is_checked_against_its_target(tmp_path: Path) -> None:
    """Trials that claim what is not so do not get through."""
    path = tmp_path / "trials.jsonl"
    search(path, evaluation="x")
    score, calls = Score(), list[int]()

    def worse(model: nn.Module) -> float:
        """The model itself scores as ever, its files less than the trials say."""
        calls.append(1)
        return score(model) - (1.0 if len(calls) > 1 else 0.0)

    with pytest.raises(
        CalibrationError, match="file at the steps found scores -.*trials.jsonl were not made like this"
    ):
        search(path, worse, evaluation="x")
    sized: dict[str, Any] = {"max_drop": None, "target_bytes": 600}
    path = tmp_path / "sizes.jsonl"
    search(path, evaluation="x", **sized)
    head, *lines = path.read_text().splitlines()
    trials = [json.loads(line) for line in lines]
    path.write_text("\n".join([head, *(json.dumps({**t, "nbytes": t["nbytes"] // 2}) for t in trials), ""]))
    with pytest.raises(CalibrationError, match="=600 allows 600 bytes, and the file at the steps found takes"):
        search(path, evaluation="x", **sized)


def test_one_search_at_a_time(tmp_path: Path) -> None:
    path, messages = tmp_path / "trials.jsonl", list[str]()

    def second() -> None:
        try:
            search(path)
        except FileError as error:
            messages.append(str(error))

    class Waiting(Score):
        def __call__(self, model: nn.Module) -> float:
            if self.calls == 3:
                other = threading.Thread(target=second)
                other.start()
                other.join()
            return super().__call__(model)

    found = search(path, Waiting())
    assert len(messages) == 1 and "another search is keeping its trials there" in messages[0]
    assert search(path).to_bytes() == found.to_bytes(), "free again"


GOOD = '{"search":"x"}\n{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":10,"score":1.0}\n'


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\0\n\0\0\n",
        b'{"search":null}\n',
        b'{"search":"x","more":1}\n',
        b"null\n",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"bits": 4}',
        b'{"bits": 4}\n',
        *(
            (GOOD + line + "\n").encode()
            for line in (
                "null",
                "",
                "3",
                '{"knobs":null,"nbytes":10,"score":1.0}',
                '{"knobs":{"weight_step":null,"dead_zone":0.5},"nbytes":10,"score":1.0}',
                '{"knobs":{"weight_step":"0.1","dead_zone":0.5},"nbytes":10,"score":1.0}',
                '{"knobs":{"weight_step":-0.1,"dead_zone":0.5},"nbytes":10,"score":1.0}',
                '{"knobs":{"weight_step":1e999,"dead_zone":0.5},"nbytes":10,"score":1.0}',
                '{"knobs":{"weight_step":0.1},"nbytes":10,"score":1.0}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5,"more":1},"nbytes":10,"score":1.0}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":null,"score":1.0}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":1.5,"score":1.0}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":-1,"score":1.0}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":true,"score":1.0}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":10,"score":null}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":10,"score":NaN}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":10,"score":"high"}',
                '{"knobs":{"weight_step":0.1,"dead_zone":0.5},"nbytes":10,"score":1.0,"score":2.0}',
                '{"nbytes":10,"score":1.0}',
            )
        ),
    ],
)
def test_what_is_no_record_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"trials.jsonl: not a record of trials \(line [123]: .*\); give a new path"):
        Log(path, "x", scored=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("score", [None, 0.5, float("nan"), float("inf"), float("-inf")])
def test_every_score_is_read_again(tmp_path: Path, score: float | None) -> None:
    trial = Trial(Knobs(0.1, 0.5), 10, score)
    Log(tmp_path / "x", "x").add(trial)
    assert repr(Log(tmp_path / "x", "x").trials) == repr({trial.knobs: trial})


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_kill_at_any_byte_loses_one_line_at_most(tmp_path: Path, length: int) -> None:
    path, head = tmp_path / "x", json.dumps({"search": "x"}) + "\n"
    whole = head + GOOD.partition("\n")[2]
    path.write_text(whole[:length])
    log = Log(path, "x")
    assert log.trials == {} and path.read_text() == head
    log.add(Trial(Knobs(0.1, 0.5), 10, 1.0))
    assert path.read_text() == whole


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no folder"), open_log(tmp_path / "none" / "x", "x", True):
        pass
    with pytest.raises(FileError, match="cannot read"), open_log(tmp_path, "x", True):
        pass
    assert trial_log.open_log(None, "x", True)


def unmet(make: Callable[[], CompressedModel]) -> str:
    with pytest.raises(CalibrationError, match="^the target cannot be met: ") as caught:
        make()
    return str(caught.value)


def test_what_stands_in_the_way_of_a_target_is_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x)[0])

    text = unmet(lambda: compress(Recurrent(), {"ignored_scopes": ["lstm"]}, target_bits_per_weight=3))
    assert "target_bits_per_weight=3 allows 12,724 bytes, and the smallest file that was tried" in text
    assert "are tensors in full precision: 'lstm.weight_" in text and "named by `ignored_scopes`" in text
    text = unmet(lambda: compress(Recurrent().state_dict(), target_bytes=200))
    assert "the largest parts are 'lstm.weight_" in text
    text = unmet(lambda: compress(network(), target_bytes=50))
    assert "the largest parts are '0.weight (" in text
    normed = nn.Sequential(network(), nn.BatchNorm1d(8)).eval()
    with torch.no_grad():
        normed[1].bias.fill_(0.3)
    exact = {"evaluate": lambda model: float(bool((model[1].bias == normed[1].bias).all()))}
    text = unmet(lambda: compress(normed, max_drop=0.5, **exact))
    assert "the model scores 1, max_drop=0.5, and the best of " in text and "scores 0" in text
    assert "something is lost by the recipes 'batch_norm'" in text
    text = unmet(lambda: compress(network(), evaluate=lambda model: float("nan"), max_drop=0.5))
    assert "files scores a number" in text
    with pytest.raises(ConfigError, match="evaluate returned 'good'; expected a number"):
        compress(network(), evaluate=lambda model: "good", max_drop=0.5)  # type: ignore[arg-type, return-value]
