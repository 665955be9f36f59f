"""ilwp's own methods of a comparison."""

from pathlib import Path
from typing import Any

import pytest

from ilwp_plugin.compare import compare
from ilwp_plugin.compare.config import CompareConfig
from ilwp_plugin.compare.methods import find_method
from ilwp_plugin.errors import ConfigError
from tests.integrations.comparing import outputs_of, run, small_case


def test_fine_tuned_from_a_calibrated_file_towards_the_outputs_before(tmp_path: Path) -> None:
    ilwp = {"weight_step": 0.05, "rate": 0.1, "epochs": 2}
    plain = run(small_case(tmp_path / "plain"), "fine_tune", **ilwp)
    calibrated = run(small_case(tmp_path / "calibrated"), "fine_tune", calibration=64, **ilwp)
    distilled = run(small_case(tmp_path / "distilled"), "fine_tune", calibration=64, distillation=0.9, **ilwp)
    files = {(tmp_path / name / "model").read_bytes() for name in ("plain", "calibrated", "distilled")}
    assert len(files) == 3
    case = small_case(tmp_path)
    before = outputs_of(case.model(), case).softmax(1)
    with_labels, with_outputs = (
        float((found.outputs.softmax(1) - before).abs().mean()) for found in (calibrated, distilled)
    )
    assert with_outputs < with_labels
    assert min(found.percent for found in (plain, calibrated, distilled)) > 80


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    config = CompareConfig.from_dict({"methods": [{"method": "fp32"}]})
    with pytest.raises(ConfigError, match=f"device: torch cannot use '{device}' here"):
        compare(config, tmp_path / "out", device=device)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", ["small", "paper", "lossless", None])
@pytest.mark.parametrize("fields", [{}, {"mode": "collocated"}, {"mode": "none", "anchor": "fp32"}, {"bits": 4}])
def test_what_has_changed_makes_the_same_options_again(preset: str | None, fields: dict[str, Any]) -> None:
    for name in ("ilwp", "fine_tune"):
        options = find_method(name).options
        asked = options.from_dict({**({} if preset is None else {"preset": preset}), **fields})
        assert options.from_dict(asked.changes) == asked
