"""Nothing that is read runs code: every reading function and command meets every kind of booby-trapped file."""

import ast
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ilwp_plugin
from ilwp_plugin import IlwpConfig, compress, strict_json
from ilwp_plugin.cli import main
from ilwp_plugin.compare.config import CompareConfig
from ilwp_plugin.compare.execute import execute
from ilwp_plugin.compare.methods import Case, find_method
from ilwp_plugin.compare.queue import Queue
from ilwp_plugin.compare.results import append_results, read_results
from ilwp_plugin.demo import preset
from ilwp_plugin.errors import FileError, IlwpError
from ilwp_plugin.models.exported import read_program
from ilwp_plugin.models.tensor_files import load_tensors
from ilwp_plugin.models.weights import read_state_dict
from ilwp_plugin.pipeline.target import Log
from ilwp_plugin.training.checkpoints import reading_checkpoint
from ilwp_plugin.zoo import load_data

ILWP = Path(sys.executable).parent / "ilwp"
ROOT = Path(__file__).parent.parent


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


class Script(nn.Module):
    """As TorchScript it writes a file when it is taken up again."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.marker = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.marker)


def _pickled(marker: Path) -> bytes:
    return pickle.dumps({"state_dict": Bomb(marker), "weight": Bomb(marker)})


def _saved(marker: Path, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(2), "x": Bomb(marker)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _tarred(marker: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            data = _pickled(marker)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _scripted(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Script(str(marker))), buffer)
    return buffer.getvalue()


def _exported(marker: Path) -> dict[str, bytes]:
    """Programs with a pickle as their inputs, with Python among their guards, and with Python for a size."""
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), buffer)
    archive = zipfile.ZipFile(buffer)
    parts = {name: archive.read(name) for name in archive.namelist()}
    (inputs,) = (name for name in parts if "sample_inputs" in name and name.endswith(".pt"))
    (graph,) = (name for name in parts if name.endswith("models/model.json"))
    values = json.loads(parts[graph])
    code = f"__import__('os').mkdir({str(marker)!r})"
    guarded = json.dumps({**values, "guards_code": [code]}).encode()
    sized = parts[graph].replace(
        b'{"as_int": 2}', json.dumps({"as_expr": {"expr_str": code, "hint": None}}).encode(), 1
    )
    traps = {"inputs": {inputs: _saved(marker)}, "guards": {graph: guarded}, "sizes": {graph: sized}}
    found = {}
    for trap, changed in traps.items():
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as again:
            for name, data in {**parts, **changed}.items():
                again.writestr(name, data)
        found[f"exported_{trap}"] = out.getvalue()
    return found


def _numpy(marker: Path) -> bytes:
    data = pickle.dumps([Bomb(marker)])
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def traps(marker: Path) -> dict[str, bytes]:
    """By name, the content of a file that would make the marker if something in it were run."""
    return {
        "pickle": _pickled(marker),
        "zip": _saved(marker),
        "legacy": _saved(marker, zipped=False),
        "tar": _tarred(marker),
        "torchscript": _scripted(marker),
        "numpy": _numpy(marker),
        "gzip": gzip.compress(_pickled(marker)),
        "yaml": f"!!python/object/apply:os.mkdir [{marker}]\n".encode(),
        "json": json.dumps({"__reduce__": f"__import__('os').mkdir({str(marker)!r})"}).encode() + b"\n",
        **_exported(marker),
    }


def _set(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _checkpoint(path: Path) -> None:
    with reading_checkpoint(path, "a test"):
        pass


def _trained(folder: Path, data: bytes) -> None:
    (task,) = CompareConfig.from_dict({"methods": [{"method": "fp32"}]}).tasks()[:1]
    _set(folder, f"trained/{task.network.key}.pt", data)
    execute(task, folder)


def _fashion(folder: Path, data: bytes) -> None:
    _set(folder, "train-images-idx3-ubyte", data)
    load_data("fashion-mnist", folder)


def _method_files(folder: Path, data: bytes) -> None:
    """What the methods of a comparison read back of their own files."""
    path, case = _set(folder, "model", data), Case(preset("digits"), load_data("digits"), {}, folder)
    for name in ("fp32", "fp16", "int8", "ilwp"):
        with suppress(Exception):
            method = find_method(name)
            method.compress(case, method.options()).restore(path)


READERS: dict[str, Callable[[Path, bytes], Any]] = {
    **{
        f"read_state_dict {suffix}": lambda folder, data, s=suffix: read_state_dict(_set(folder, f"x{s}", data))
        for suffix in (".pt", ".pth", ".safetensors")
    },
    "load_tensors": lambda folder, data: load_tensors(_set(folder, "x", data)),
    "load_tensors mapped": lambda folder, data: load_tensors(_set(folder, "x", data), mapped=True),
    "checkpoint": lambda folder, data: _checkpoint(_set(folder, "x.pt", data)),
    "load": lambda folder, data: ilwp_plugin.load(_set(folder, "x.ilwp", data)),
    "loads": lambda folder, data: ilwp_plugin.loads(data),
    "read_program": lambda folder, data: read_program(_set(folder, "x.pt2", data)),
    "IlwpConfig": lambda folder, data: IlwpConfig.from_file(_set(folder, "x.json", data)),
    "CompareConfig": lambda folder, data: CompareConfig.from_file(_set(folder, "x.json", data)),
    "strict_json": lambda folder, data: strict_json.load(_set(folder, "x.json", data)),
    "trials": lambda folder, data: Log(_set(folder, "x.jsonl", data), "a"),
    "results": lambda folder, data: read_results(_set(folder, "results.jsonl", data).parent),
    "append_results": lambda folder, data: append_results(_set(folder, "results.jsonl", data).parent, []),
    "queue": lambda folder, data: Queue(_set(folder, "tasks.sqlite3", data)),
    "trained networks": _trained,
    "data": _fashion,
    "data, packed": lambda folder, data: _fashion(folder, gzip.compress(data)),
    "files of methods": _method_files,
}
READERS["resume="] = lambda folder, data: compress(
    nn.Linear(4, 4),
    IlwpConfig(bits=None, weight_step=0.1),
    target_bytes=10_000,
    resume=_set(folder, "x.jsonl", data),
)

COMMANDS = {
    "compress": ["compress", "{folder}/{name}.pt", "-o", "{folder}/out.ilwp"],
    "compress, configured": ["compress", "{folder}/good.pt", "--config", "{folder}/{name}", "-o", "{folder}/out.ilwp"],
    "compress safetensors": ["compress", "{folder}/{name}.safetensors", "-o", "{folder}/out.ilwp"],
    "decompress": ["decompress", "{folder}/{name}", "-o", "{folder}/out.safetensors"],
    "inspect": ["inspect", "{folder}/{name}"],
    "verify": ["verify", "{folder}/{name}"],
    "align": ["align", "{folder}/{name}.pt2", "-o", "{folder}/out.ilwp"],
    "estimate": ["estimate", "{folder}/{name}.pt"],
    "analyze": ["analyze", "{folder}/{name}.pth", "-o", "{folder}/figures"],
    "compare": ["compare", "{folder}/{name}", "-o", "{folder}/comparison"],
    "compare, stored": ["compare", "{folder}/good.json", "-o", "{folder}/c", "--storage", "sqlite:///{folder}/{name}"],
    "report": ["report", "{folder}"],
    "demo": ["demo", "--data", "fashion-mnist", "--data-folder", "{folder}/data", "-o", "{folder}/demo"],
}
"""Every command but `schema`, which reads nothing, and `run`, whose purpose it is to run a script."""


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    marker = tmp_path_factory.mktemp("markers") / "ran"
    return marker, traps(marker)


@pytest.mark.parametrize("reader", list(READERS))
def test_no_function_runs_what_it_reads(
    reader: str, trapped: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch's own switch must not matter either
    marker, contents = trapped
    for name, data in contents.items():
        try:
            READERS[reader](tmp_path / name, data)
        except IlwpError as error:
            assert "weights_only" not in str(error)
        except ValueError:
            assert reader.startswith("load_tensors")
        assert not marker.exists(), name


@pytest.mark.parametrize("command", list(COMMANDS))
def test_no_command_runs_what_it_reads(command: str, trapped: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """All traps in one process: what takes time is to start."""
    marker, contents = trapped
    torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "good.pt")
    (tmp_path / "good.json").write_text(json.dumps({"methods": [{"method": "fp32"}]}))
    calls = []
    for name, data in contents.items():
        for suffix in ("", ".pt", ".pth", ".pt2", ".safetensors"):
            _set(tmp_path / name, f"x{suffix}", data)
        for file in ("results.jsonl", "data/train-images-idx3-ubyte"):
            _set(tmp_path / name, file, data)
        for good in ("good.pt", "good.json"):
            (tmp_path / name / good).write_bytes((tmp_path / good).read_bytes())
        calls.append([part.format(folder=tmp_path / name, name="x") for part in COMMANDS[command]])
    script = "import json, sys\n" + (
        "from ilwp_plugin.cli import main\n"
        "for call in json.loads(sys.stdin.read()):\n"
        "    sys.argv = ['ilwp', *call]\n"
        "    try:\n        main.run()\n        print('done', call)\n"
        "    except SystemExit as end:\n        print(end.code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(calls), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1"] * len(calls), result.stdout + result.stderr
    assert result.stderr.count("ilwp: error: ") == len(calls) and "weights_only" not in result.stderr, result.stderr
    assert not marker.exists()


def test_the_commands_are_all_that_read() -> None:
    names = {command.name or command.callback.__name__ for command in main.app.registered_commands if command.callback}
    assert names - {"schema", "run"} == {arguments[0] for arguments in COMMANDS.values()}


def test_the_traps_are_real(tmp_path: Path) -> None:
    """With readers that trust a file, they run."""
    openers: dict[str, Callable[[Path], Any]] = {
        "pickle": lambda path: pickle.loads(path.read_bytes()),  # noqa: S301
        "zip": lambda path: torch.load(path, weights_only=False),
        "legacy": lambda path: torch.load(path, weights_only=False),
        "numpy": lambda path: np.load(path, allow_pickle=True),
        "torchscript": torch.jit.load,
        "exported_inputs": lambda path: read_program(path, trust=True),
        "exported_sizes": lambda path: read_program(path, trust=True),
        "exported_guards": lambda path: read_program(path, trust=True).module()(torch.ones(1, 2)),
    }
    for name, open_it in openers.items():
        marker = tmp_path / f"{name}_ran"
        path = _set(tmp_path, f"{name}.pt2", traps(marker)[name])
        with suppress(Exception):
            open_it(path)
        assert marker.exists(), name


def test_a_program_is_read_only_where_it_is_trusted(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "x.pt2")
    with pytest.raises(FileError, match=r"can run code that its maker put into it.*--trust.*trust=True"):
        read_program(tmp_path / "x.pt2")
    assert read_program(tmp_path / "x.pt2", trust=True).state_dict.keys() == {"weight", "bias"}


LOADERS = {"torch.load": "tensor_files.py", "torch.export.load": "exported.py"}
"""Functions that can run code, and the one file of the package where each may be called."""


def test_what_could_run_code_is_called_nowhere_else() -> None:
    for folder in ("ilwp_plugin", "integrations", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    imported = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
                    assert not forbidden & {name.partition(".")[0] for name in imported}, path
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called not in {"eval", "exec", "torch.jit.load", "np.memmap"}, f"{path}: {called}"
                assert given.get("allow_pickle", "False") == "False", path
                assert given.get("weights_only", "True") == "True", path
                if called == "torch.load":
                    assert given["weights_only"] == "True", path
                if folder != "examples":
                    assert called not in LOADERS or path.name == LOADERS[called], f"{path}: {called}"
