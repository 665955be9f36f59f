import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ilwp_plugin.errors import ConfigError, FileError
from ilwp_plugin.hub import IlwpModelMixin


class Net(nn.Module, IlwpModelMixin):
    def __init__(self, width: int = 16, *, classes: int = 10, activation: object = None, **more: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3))
        self.head = nn.Linear(width, classes)
        self.more = more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.body(x).mean((2, 3)))
        return y


def test_round_trip(tmp_path: Path) -> None:
    model = Net(24, classes=3, extra=5).eval()
    ledger = model.save_pretrained(tmp_path / "net")
    assert ledger.file_bytes == (tmp_path / "net" / "model.ilwp").stat().st_size
    again = Net.from_pretrained(tmp_path / "net")
    assert again.init_arguments == {"width": 24, "classes": 3, "activation": None, "extra": 5} and again.more == {
        "extra": 5
    }
    assert not again.training
    assert copy.deepcopy(again).init_arguments == again.init_arguments
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(again(x), model(x), rtol=0.05, atol=0.05)
    model.save_pretrained(tmp_path / "net", "lossless")
    exact = Net.from_pretrained(tmp_path / "net")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in exact.state_dict().items())


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no JSON"):
        Net(activation=object()).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists(), "nothing half written"
    with pytest.raises(FileError, match="cannot read"):
        Net.from_pretrained(tmp_path / "x")
    Net().save_pretrained(tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected an object"):
        Net.from_pretrained(tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text('{"a b": 1}')
    assert Net.from_pretrained(tmp_path / "x").more == {"a b": 1}
