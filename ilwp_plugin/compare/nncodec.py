"""NNCodec, the reference software of MPEG NNR (ISO/IEC 15938-17), in an interpreter of its own: it needs numpy 1."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ilwp_plugin.compare import nncodec_process
from ilwp_plugin.compare.baselines import depthwise_bytes
from ilwp_plugin.compare.methods import METHODS, Case, Compressed, Method, Options, tensor_bytes
from ilwp_plugin.errors import FileError, MissingDependencyError
from ilwp_plugin.training.batch_norm import reestimate_batch_norms

__all__ = ["NONWEIGHT_QP", "NNCodec", "decode", "encode"]

NONWEIGHT_QP = -75
"""NNCodec's default."""

_BATCH = 250


class NNCodecOptions(Options):
    """Of `NNCodec`."""

    qp: int = Field(default=-38, description="Quantization parameter of weights: larger is coarser.")
    nonweight_qp: int = Field(default=NONWEIGHT_QP, description="The same for all other tensors.")
    calibration: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0,
        description="Training images, without labels, on which batch norms are estimated anew with the weights as "
        "NNCodec restores them; they are in the file. 0 is without.",
    )
    python: str = Field(default="python", description="Interpreter in which NNCodec is installed.")


@METHODS.register("nncodec")
class NNCodec(Method):
    """Weights on a grid, with dependent quantization and context-adaptive arithmetic coding; nothing is trained.

    Counters of batch norms, which are single numbers, are not in the file: NNCodec takes none.
    """

    group = "baseline"
    options: ClassVar[Any] = NNCodecOptions

    def title(self, options: NNCodecOptions) -> str:
        vectors = "" if options.nonweight_qp == NONWEIGHT_QP else f", others {options.nonweight_qp}"
        return f"NNCodec, qp {options.qp}{vectors}{', norms estimated anew' if options.calibration else ''}"

    def check(self, options: NNCodecOptions) -> None:
        _check(options.python)

    def compress(self, case: Case, options: NNCodecOptions) -> Compressed:
        model = case.model()
        qps = options.qp, options.nonweight_qp
        content, _ = encode(options.python, model.state_dict(), *qps)
        if options.calibration:
            _load(model, decode(options.python, content)[0])
            images = torch.split(case.calibration(options.calibration), _BATCH)
            reestimate_batch_norms(model, images, lambda network, batch: network(batch))
            content, _ = encode(options.python, {**case.state, **dict(model.named_buffers())}, *qps)

        def save(path: Path) -> None:
            path.write_bytes(content)

        def restore(path: Path) -> nn.Module:
            restored = case.fresh()
            _load(restored, decode(options.python, path.read_bytes())[0])
            return restored.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

        return Compressed(tensor_bytes(model.state_dict()), depthwise_bytes(model, 32), save, restore)


def encode(python: str, state: Mapping[str, Tensor], qp: int, nonweight_qp: int = NONWEIGHT_QP) -> tuple[bytes, float]:
    """What NNCodec makes of a state dict, and the seconds that it took.

    Args:
        python: interpreter in which it is installed.
        state: by name; single numbers are left out.
        qp: quantization parameter of weights.
        nonweight_qp: of all other tensors.

    Raises:
        MissingDependencyError: there is no such interpreter, or no NNCodec in it.
        FileError: NNCodec failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.npz", Path(folder) / "out.nnc"
        arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in state.items() if tensor.dim()}
        np.savez(source, **arrays)
        seconds = _run(python, "encode", source, out, qp, nonweight_qp)
        return out.read_bytes(), seconds


def decode(python: str, content: bytes) -> tuple[dict[str, Tensor], float]:
    """What NNCodec restores, by name, and the seconds that it took. Raises as `encode`."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.nnc", Path(folder) / "out.npz"
        source.write_bytes(content)
        seconds = _run(python, "decode", source, out)
        with np.load(out) as file:
            return {name: torch.from_numpy(np.array(file[name])) for name in file.files}, seconds


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor, but for the single numbers that the model has."""
    model.load_state_dict({**{n: t for n, t in model.state_dict().items() if not t.dim()}, **tensors})


def _check(python: str) -> None:
    mend = "`make peers` in a checkout sets one up, in .venv-peers; give its interpreter as the option `python`"
    if shutil.which(python) is None:
        raise MissingDependencyError(f"NNCodec needs an interpreter of its own, and there is no {python!r}; {mend}")
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('nncodec') is None)"
    if subprocess.run([python, "-I", "-c", code], check=False, capture_output=True).returncode:
        raise MissingDependencyError(f"NNCodec is not installed for {python!r}; {mend}")


def _run(python: str, *arguments: object) -> float:
    """Isolated (-I), for the script's own folder has modules of the standard library's names."""
    _check(python)
    command = [python, "-I", nncodec_process.__file__, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FileError(f"NNCodec failed to {arguments[0]}: {why}")
    return float(done.stdout.split()[-1])
