"""Scales of a finished file, trained towards the outputs of the original network while every code stays as it is."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, TensorDataset

from ilwp_plugin.errors import TensorError, TrainingError
from ilwp_plugin.format.integers import LARGEST_CODE, IntegerTensor
from ilwp_plugin.format.norms import MANTISSA_BITS, MergedBatchNorm
from ilwp_plugin.format.sections import BatchNormSection, GridSection, Section
from ilwp_plugin.method.batch_norm import round_batch_norm, round_mantissa
from ilwp_plugin.method.quantization import straight_through
from ilwp_plugin.models.chains import evaluating, unwrap
from ilwp_plugin.models.names import translate
from ilwp_plugin.pipeline.calibration_inputs import Pick
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.training.fine_tuning import Batches, FineTuning, Progress, Report, World
from ilwp_plugin.training.loop import Loop

__all__ = ["distill_scales", "output_error"]

_LR = 2e-3
"""Of logarithms of scales, and of shifts in units of their layer's spread."""


def output_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error relative to the variance of the targets; for outputs of any kind.

    Args:
        outputs: (batch, ...) floating-point.
        targets: likewise, of the original network.
    """
    spread = (targets - targets.mean(0, keepdim=True)).square().sum()
    return (outputs - targets).square().sum() / spread.clamp(min=torch.finfo(targets.dtype).tiny)


def distill_scales(
    model: nn.Module,
    compressed: CompressedModel,
    data: Dataset[Any] | Tensor,
    plan: FineTuning | None = None,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = output_error,
    inputs: Pick | None = None,
    norm_bits: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> CompressedModel:
    """Train what is not codes, on inputs without labels: minutes where fine-tuning takes hours.

    The scale and shift of each merged batch norm, biases on the grid and the step of each layer on the grid follow the
    outputs of the original network. The file computes with rounded ones meanwhile, so that it is as good as what was
    trained. Weights keep their codes, and the file its size, up to a few bytes.

    Args:
        model: the original network; is left as it is.
        compressed: what `compress` or `load` gave for it.
        data: inputs: a tensor, or a map-style data set.
        plan: its `epochs`, `batch`, `lr`, `seed`, `workers` and `checkpoint_steps` count; one epoch if None. The
            learning rate, 0.002 if None, falls to 0 by half a cosine.
        loss: (outputs, targets) -> a scalar. For classifiers the divergence of the outputs suits better:
            `lambda o, t: distillation_loss(o, t.argmax(1), t, share=1.0)`.
        inputs: takes a batch of the data and returns what the model gets; None takes the first of several.
        norm_bits: bits of mantissa of the batch norms from now on, see `batch_norm_bits`; None keeps them. Fewer make
            the file smaller, and training makes up for it.
        checkpoint: a file that is written after each epoch and, where it exists, resumed from, bit for bit.
        report: is told the progress.

    Returns:
        The new file; `apply_to` a model to use it.

    Raises:
        TensorError: the file is not one of this model.
        TrainingError: nothing in the file can be trained so, or the loss is not finite.
        FileError: the checkpoint cannot be read or written.
    """
    if norm_bits is not None and norm_bits not in MANTISSA_BITS:
        raise TrainingError(
            f"norm_bits={norm_bits}: expected {MANTISSA_BITS[0]} to {MANTISSA_BITS[-1]} bits, or None to keep them"
        )
    plan = plan or FineTuning(epochs=1)
    teacher = unwrap(model)
    student = copy.deepcopy(teacher)
    compressed.apply_to(student)
    scales = _Scales(student, compressed, norm_bits).to(next(student.parameters()).device)
    data = TensorDataset(data) if isinstance(data, Tensor) else data
    batches = Batches(data, plan, World(0, 1))
    steps = plan.epochs * batches.per_epoch
    optimizer = Adam(scales.parameters(), plan.lr or _LR)
    schedule = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    identity = {
        "file": len(compressed.to_bytes()),
        "epochs": plan.epochs,
        "batch": plan.batch,
        "lr": plan.lr,
        "seed": plan.seed,
        "samples": batches.samples,
        "norm_bits": norm_bits,
    }
    path = None if checkpoint is None else Path(checkpoint)
    loop = Loop(scales, optimizer, schedule, checkpoint=path, identity=identity, what="a distillation of scales")
    kept = plan.checkpoint_steps or batches.per_epoch
    done = loop.resume()
    with evaluating(teacher), evaluating(student):
        for step, batch in enumerate(batches.training(done), start=done):
            given = inputs(batch) if inputs is not None else batch[0] if isinstance(batch, (list, tuple)) else batch
            with torch.no_grad():
                targets = teacher(given)
            value = loop.step(loss(functional_call(student, scales.tensors(), (given,)), targets))
            if checkpoint is not None and ((step + 1) % kept == 0 or step + 1 == steps):
                loop.save()
            if report is not None:
                report(Progress(step + 1, steps, value))
    return scales.compressed()


class _Scales(nn.Module):
    """What trains: one number for each scale, shift and bias, and one for each step.

    Args:
        student: the restored model.
        compressed: its file.
        norm_bits: see `distill_scales`.
    """

    def __init__(self, student: nn.Module, compressed: CompressedModel, norm_bits: int | None) -> None:
        super().__init__()
        self._compressed, self._norm_bits = compressed, norm_bits
        names = translate(student.state_dict(), {info.name: info for info in compressed.tensors})
        if names is None:
            raise TensorError("the file is not one of this model")
        self._own: dict[str, str] = {}
        for own, stored in names.items():
            self._own.setdefault(stored, own)
        self._changes = nn.ParameterDict()
        for key, size in self._sizes():
            self._changes[key.replace(".", "/")] = nn.Parameter(torch.zeros(size))
        if not len(self._changes):
            raise TrainingError("the file has neither merged batch norms nor layers on the grid, so no scale to train")

    def _norms(self) -> Iterator[tuple[str, str, MergedBatchNorm]]:
        for section in self._compressed.sections:
            if isinstance(section, BatchNormSection):
                for infos, value in zip(section.infos, section.values, strict=True):
                    yield infos[0].name, infos[1].name, value

    def _grids(self) -> Iterator[tuple[str, IntegerTensor]]:
        """Tensors with one step; those with a step for each channel are a toolkit's, whose scales are its own."""
        for section in self._compressed.sections:
            if isinstance(section, GridSection):
                for info, value in zip(section.infos, section.values, strict=True):
                    if value.scale.size == 1 and float(value.scale.reshape(-1)[0]) > 0 and value.zero_point is None:
                        yield info.name, value

    def _sizes(self) -> Iterator[tuple[str, int]]:
        for weight, bias, norm in self._norms():
            yield weight, norm.scale_codes.size
            yield bias, norm.shift_codes.size
        for name, value in self._grids():
            yield name, value.codes.size if value.codes.ndim == 1 else 1

    def _change(self, name: str) -> Tensor:
        found: Tensor = self._changes[name.replace(".", "/")]
        return found

    def _bits(self, value: MergedBatchNorm) -> int:
        return self._norm_bits or value.mantissa

    def _norm(self, weight: str, bias: str, value: MergedBatchNorm) -> tuple[Tensor, Tensor, float]:
        """Scale and shift before rounding, and the spread that the step of the shift is a share of."""
        spread = value.shift_step * 2.0**value.mantissa
        scale, shift = torch.from_numpy(value.scale), torch.from_numpy(value.shift)
        gain, offset = self._change(weight), self._change(bias)
        return scale.to(gain) * gain.exp(), shift.to(offset) + spread * offset, spread

    def tensors(self) -> dict[str, Tensor]:
        """By name in the model, what the file restores, with gradient to what trains."""
        found: dict[str, Tensor] = {}
        for weight, bias, norm in self._norms():
            scale, shift, spread = self._norm(weight, bias, norm)
            step = spread * 2.0 ** -self._bits(norm)
            found[weight] = straight_through(scale, round_mantissa(scale.detach(), self._bits(norm)))
            found[bias] = straight_through(shift, torch.round(shift.detach() / step) * step) if step else shift
        for name, value in self._grids():
            restored = torch.from_numpy(value.restore())
            change = self._change(name)
            if value.codes.ndim == 1:
                step = float(value.scale.reshape(-1)[0])
                moved = restored.to(change) + step * _BIAS_STEPS * change
                found[name] = straight_through(moved, torch.round(moved.detach() / step) * step)
            else:
                found[name] = restored.to(change) * change.exp()
        return {self._own[name]: tensor for name, tensor in found.items()}

    @torch.no_grad()
    def compressed(self) -> CompressedModel:
        """The file."""
        sections = [self._section(section) for section in self._compressed.sections]
        old = self._compressed
        return CompressedModel(old.tensors, sections, left=old.left, notes=old.notes).read_back()

    def _section(self, section: Section) -> Section:
        if isinstance(section, BatchNormSection):
            norms = [
                self._merged(infos[0].name, infos[1].name, value)
                for infos, value in zip(section.infos, section.values, strict=True)
            ]
            return BatchNormSection(section.infos, norms, section.codings[0])
        if isinstance(section, GridSection):
            trained = {name for name, _ in self._grids()}
            values = [
                self._grid(info.name, value) if info.name in trained else value
                for info, value in zip(section.infos, section.values, strict=True)
            ]
            return GridSection(section.infos, values, section.coding)
        return section

    def _merged(self, weight: str, bias: str, value: MergedBatchNorm) -> MergedBatchNorm:
        scale, shift, spread = self._norm(weight, bias, value)
        nothing, spreads = torch.zeros_like(shift), torch.full_like(shift, spread)
        return round_batch_norm(scale, nothing, shift, spreads, self._bits(value), value.eps)

    def _grid(self, name: str, value: IntegerTensor) -> IntegerTensor:
        change = self._change(name).detach().cpu()
        if value.codes.ndim > 1:
            return replace(value, scale=value.scale * np.float32(math.exp(float(change))))
        codes = np.round(value.codes + _BIAS_STEPS * change.numpy().astype(np.float64))
        return replace(value, codes=np.clip(codes, -LARGEST_CODE, LARGEST_CODE).astype(np.int16))


_BIAS_STEPS = 16.0
"""Steps that a bias moves by where a scale would be multiplied by e: about a spread of its layer's outputs."""
