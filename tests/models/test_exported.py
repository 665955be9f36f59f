import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import load
from ilwp_plugin.errors import FileError, TensorError
from ilwp_plugin.models.exported import example_inputs_of, layers_of_program, read_program, write_program
from ilwp_plugin.testing import settle
from ilwp_plugin.zoo import MODELS, build_model

ILWP = Path(sys.executable).parent / "ilwp"


def program(
    name: str = "mobilenet", decomposed: bool = False
) -> tuple[nn.Module, Tensor, torch.export.ExportedProgram]:
    torch.manual_seed(0)
    example = torch.randn(2, 3, 32, 32)
    model = settle(build_model(name, width=0.5), example)
    exported = torch.export.export(model, (example,))
    return model, example, exported.run_decompositions() if decomposed else exported


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_layers_are_those_of_the_model(name: str, decomposed: bool) -> None:
    model, example, exported = program(name, decomposed)
    layers = layers_of_program(exported)
    assert torch.equal(layers(example), model(example))
    ours, theirs = dict(layers.named_modules()), dict(model.named_modules())
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,) if decomposed else (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    for path, module in theirs.items():
        if isinstance(module, kinds):
            assert str(ours[path]) == str(module)
    assert set(layers.state_dict()) == set(exported.state_dict)


def test_command(tmp_path: Path) -> None:
    model, example, exported = program()
    write_program(exported, tmp_path / "m.pt2")
    command = [ILWP, "align", tmp_path / "m.pt2", "--bits", "5", "--trust"]
    done = subprocess.run([*command, "-o", tmp_path / "a.pt2", "--json"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert not done.stderr
    assert len(report["aligned"]) == 13 and not report["refused"]
    assert report["total_bytes"] < report["total_bytes_before"]
    aligned = read_program(tmp_path / "a.pt2", trust=True)
    torch.testing.assert_close(aligned.module()(example), model(example), rtol=1e-4, atol=1e-4)
    name = "features.4.0.weight"
    assert not torch.equal(aligned.state_dict[name], exported.state_dict[name])
    subprocess.run([*command, "-o", tmp_path / "a.ilwp"], capture_output=True, text=True, check=True)
    stored = load(tmp_path / "a.ilwp")
    assert stored.ledger.total_bytes == report["total_bytes"]
    stored.apply_to(model)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot read"):
        read_program(tmp_path / "absent.pt2")
    (tmp_path / "x.pt2").write_bytes(b"x")
    with pytest.raises(FileError, match="not a torch.export program"):
        read_program(tmp_path / "x.pt2", trust=True)
    _, _, exported = program()
    with pytest.raises(FileError, match="is written as .pt2"):
        write_program(exported, tmp_path / "x.bin")
    exported._example_inputs = None
    with pytest.raises(TensorError, match="without its example inputs"):
        example_inputs_of(exported)
