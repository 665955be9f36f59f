"""From a trained network to a small file: align, train on with loss and quantizer, re-estimate, compress."""

from __future__ import annotations

import copy
import inspect
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ilwp_plugin import toolkits
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import CalibrationError, ConfigError, FileError, TrainingError, warn
from ilwp_plugin.method.provenance import Provenance
from ilwp_plugin.models.chains import evaluating, unwrap
from ilwp_plugin.pipeline.alignment import AlignmentReport, Coupler, align_model
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, Pick, map_tensors, read_inputs
from ilwp_plugin.pipeline.file import CompressedModel
from ilwp_plugin.recipes.base import AUTO
from ilwp_plugin.recipes.ilwp import IlwpTraining
from ilwp_plugin.recipes.loss_weight import TrainingRun, pull_of_fine_tuning, task_gradient_rms
from ilwp_plugin.training.batch_norm import reestimate_batch_norms
from ilwp_plugin.training.fake_quantization import FakeQuantizer
from ilwp_plugin.training.loop import Loop, Resumable
from ilwp_plugin.training.parts import Parts
from ilwp_plugin.training.size import SizeGauge, Steering, cut, every

__all__ = ["Batches", "FineTuned", "FineTuning", "Progress", "Report", "World", "fine_tune"]

TaskLoss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> scalar loss, the mean over the batch."""


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: steps that are done.
        steps: of how many.
        loss: of this process's share of the last batch.
        bits_per_weight: of the codes, as of the last measurement; None without a rate term.
        file_bytes: of the file that would be written now, likewise, to about a per cent.
        trial: which training of a search for `max_drop` it is, from 1.
    """

    step: int
    steps: int
    loss: float
    bits_per_weight: float | None = None
    file_bytes: int | None = None
    trial: int = 1

    def __str__(self) -> str:
        """As a line for people."""
        size = ""
        if self.file_bytes is not None:
            size = f", {self.bits_per_weight:.3f} bits a weight, {self.file_bytes:,} bytes"
        trial = "" if self.trial == 1 else f"trial {self.trial}, "
        return f"{trial}step {self.step} of {self.steps}, loss {self.loss:.4g}{size}"


Report = Callable[[Progress], None]
"""Is told after each step."""


@dataclass(frozen=True)
class FineTuning:
    """How to train on.

    Attributes:
        epochs: passes over the data.
        batch: samples of an optimizer step, over all processes together.
        optimizer: "sgd", with Nesterov momentum, or "adamw". SGD runs away under a strong rate term: weights before a
            norm are scale-invariant, the pull shrinks them, and each step then moves them further. None takes AdamW
            where the configuration has a rate, or a recipe asks for it.
        lr: learning rate at the start; it falls to 0 by half a cosine. None is 0.05 for SGD, 0.0007 for AdamW, and
            0.001 for AdamW with a rate term.
        momentum: of SGD.
        weight_decay: None is 0.0005 for SGD and 0 for AdamW.
        ramp: share of the steps over which the weights of the recipes' losses rise, where there is a rate.
        norms_last: share of the steps, the last ones, in which only norms and biases train, where there is a rate.
        quantize_from: share of the steps after which the model computes with quantized weights; 0 from the start, 1
            never (the weights are then quantized after training).
        norm_batches: batches for the batch-norm statistics at the end; 0 keeps the running ones.
        checkpoint_steps: steps between two checkpoints; None writes one after each epoch.
        workers: processes that load data. With some, and random augmentation, a resumption is bit for bit only from a
            checkpoint between two epochs.
        seed: of the order of the data.
    """

    epochs: int = 3
    batch: int = 256
    optimizer: Literal["sgd", "adamw"] | None = None
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    ramp: float = 0.3
    norms_last: float = 0.07
    quantize_from: float = 0.0
    norm_batches: int = 40
    checkpoint_steps: int | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, 1 if self.checkpoint_steps is None else self.checkpoint_steps) < 1:
            raise TrainingError(
                f"expected at least 1, got epochs={self.epochs}, batch={self.batch}, "
                f"checkpoint_steps={self.checkpoint_steps}"
            )
        for name in ("quantize_from", "ramp", "norms_last"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name}={getattr(self, name)}: expected a share of the steps, from 0 to 1")
        if self.optimizer not in (None, "sgd", "adamw"):
            raise TrainingError(f"optimizer={self.optimizer!r}: expected 'sgd', 'adamw' or None")
        if min(self.norm_batches, self.workers, self.seed) < 0 or not (self.lr is None or self.lr > 0):
            raise TrainingError(
                f"expected lr > 0 and none of the others below 0, got lr={self.lr}, norm_batches={self.norm_batches}, "
                f"workers={self.workers}, seed={self.seed}"
            )


@dataclass(frozen=True)
class FineTuned:
    """What came out.

    Attributes:
        compressed: the model as the file holds it.
        alignment: what was aligned; None where nothing was to be.
        loss_weight: of the inter-layer loss.
        steps: optimizer steps, those before a resumption included.
        rate: weight of the rate term at the end, which a target may have changed; 0 without.
        drop: what the score has fallen by, where `max_drop` was asked for.
    """

    compressed: CompressedModel
    alignment: AlignmentReport | None
    loss_weight: float
    steps: int
    rate: float = 0.0
    drop: float | None = None


DEFAULT_RATE = 0.7
"""Of a fine-tuning for which no configuration is given."""

DRAWN = 2000
"""Samples that calibration inputs are drawn from, where none are given, at most."""

_DRAWN_BYTES = 1 << 28
_DRAWN_BATCH = 50


def fine_tune(
    model: nn.Module,
    data: Dataset[Any],
    loss: TaskLoss,
    config: IlwpConfig | Mapping[str, Any] | None = None,
    plan: FineTuning | None = None,
    *,
    example_inputs: Any = None,
    calibration: Any = None,
    inputs: Pick | None = None,
    coupler: Callable[[nn.Module, Any], Coupler] | None = None,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    references: Mapping[str, Tensor] | Provenance | None = None,
    target_bytes: float | None = None,
    max_drop: float | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> FineTuned:
    """Train a model on while it computes with what the file will restore, and compress it.

    The channels are aligned, where the configuration says so; from `plan.quantize_from` on the model computes with the
    weights that the file will restore; its loss gets the bits of their codes (under a `rate`), or the inter-layer loss
    (without); the batch-norm statistics are estimated anew for these; the rest is `compress`. In the end the model
    holds what the file restores.

    `fine_tune(model, data, loss)` alone chooses all steps by what the data say, and trains with a rate of DEFAULT_RATE.

    Interrupted at any moment and called again with the same arguments (the weights of the model then do not matter), it
    goes on from the checkpoint, and ends with the same bits as without the interruption.

    In a process group each process takes its share of every batch, gradients are averaged, batch norms see the share of
    their own process, and only the first process writes. Under torchrun a group is made for as long as this takes,
    where there is none yet.

    An exception inside, Ctrl-C among them, leaves the model with the weights that it has reached, in the mode that it
    was in, and fit for anything: for the same call again as well.

    Args:
        model: a trained model; is changed in place, and trained in training mode.
        data: a map-style data set, the same in every process; an incomplete last batch of an epoch is left out.
        loss: the task's loss on a batch.
        config: IlwpConfig(rate=DEFAULT_RATE) if None. Under a rate a `weight_step` of "auto" is TRAINED_STEP times what
            it is without training.
        plan: FineTuning() if None.
        example_inputs: for alignment, and see `compress`.
        calibration: inputs without labels, see `compress`: steps are then chosen by what errors do to the outputs, and
            norms and biases of the file follow what is rounded. Where none are given, and the configuration has a
            rate, they are what `loss` gives the model for up to DRAWN samples of `data`, drawn at random.
        inputs: takes a batch of `calibration` and returns what the model gets.
        coupler: aligns with this; None aligns with torch-pruning's if `config.align`, else leaves the channels as they
            are.
        optimizer: makes another optimizer than SGD; its learning rate falls to 0 by half a cosine, too.
        references: index maps or origins by layer name, see `compress`; not together with a coupler.
        target_bytes: of the file at most; the rate is steered towards it.
        max_drop: of the score at most; up to four trainings with other rates find a small file that keeps it. Each
            has a checkpoint of its own, with its number behind the name.
        evaluate: what a model scores, more is better; with `max_drop`.
        checkpoint: a file that is written now and then and, where it exists, resumed from.
        out: where to write the `.ilwp` file.
        report: is told the progress.

    Raises:
        ChainError, ConfigError, TensorError: see `compress`.
        TrainingError: the plan makes no step, the loss is not finite, the checkpoint is that of another run, or the
            processes that torchrun has started find no group.
        FileError: the checkpoint or the file cannot be read or written.
        MissingDependencyError: `config.align` without torch-pruning.
    """
    config = IlwpConfig(rate=DEFAULT_RATE) if config is None else IlwpConfig.of(config)
    plan, model = plan or FineTuning(), unwrap(model)
    _check_targets(config, target_bytes, max_drop, evaluate)
    train = partial(
        _train,
        data=data,
        loss=loss,
        config=config,
        plan=plan,
        example_inputs=example_inputs,
        calibration=calibration,
        inputs=inputs,
        coupler=coupler,
        optimizer=optimizer,
        references=references,
    )
    if max_drop is None:
        return train(model, checkpoint=checkpoint, out=out, report=report, target_bytes=target_bytes)
    assert evaluate is not None
    for path in (checkpoint, out):
        _check_folder(path)

    def trial(number: int, factor: float) -> FineTuned:
        numbered = None if checkpoint is None else f"{os.fspath(checkpoint)}.{number}"
        told = None if report is None else lambda progress: report(replace(progress, trial=number))
        return train(copy.deepcopy(model), checkpoint=numbered, out=None, report=told, rate_factor=factor)

    return _within_drop(model, trial, evaluate, max_drop, out)


def _check_targets(
    config: IlwpConfig, target_bytes: float | None, max_drop: float | None, evaluate: Callable[..., float] | None
) -> None:
    """Raises ConfigError where the size or the drop cannot be steered."""
    targets = {"target_bytes": target_bytes, "max_drop": max_drop}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise ConfigError("one target at a time, got target_bytes and max_drop")
    for name, value in given.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name}: expected a finite number > 0, got {value!r}")
        if not any(getattr(recipe.options, "rate", 0.0) for recipe in config.recipe_list()):
            raise ConfigError(f"{name}: steers the rate of the training; set `rate`, to 1 for a start")
    if (max_drop is None) != (evaluate is None):
        raise ConfigError("max_drop and evaluate: one without the other; a drop is that of what `evaluate` scores")


def _check_folder(path: str | os.PathLike[str] | None) -> None:
    """Raises FileError where nothing can be written: now, not after hours."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise FileError(f"cannot write {os.fspath(path)}: there is no folder {Path(path).parent}")


TRIALS = 4
"""Trainings of a search for `max_drop`."""


def _within_drop(
    model: nn.Module,
    trial: Callable[[int, float], FineTuned],
    evaluate: Callable[[nn.Module], float],
    max_drop: float,
    out: str | os.PathLike[str] | None,
) -> FineTuned:
    """The smallest file of some trainings that keeps the score."""

    def score(network: nn.Module) -> float:
        with evaluating(network):
            return float(evaluate(network))

    before = score(model)
    drops: dict[float, float] = {}
    best: FineTuned | None = None
    for number in range(1, TRIALS + 1):
        factor = _next_factor(drops, max_drop)
        found = trial(number, factor)
        restored = copy.deepcopy(model)
        found.compressed.apply_to(restored)
        drops[factor] = before - score(restored)
        if drops[factor] <= max_drop:
            found = replace(found, drop=drops[factor])
            if best is None or found.compressed.ledger.file_bytes < best.compressed.ledger.file_bytes:
                best = found
    if best is None:
        shown = ", ".join(f"{factor:.3g} times the rate: {drop:.3g}" for factor, drop in sorted(drops.items()))
        raise TrainingError(
            f"max_drop={max_drop:g}: none of {TRIALS} trainings keeps the score of {before:g} so well ({shown}); "
            "train for more epochs, or with a smaller `rate` or `weight_step`"
        )
    best.compressed.apply_to(model)
    if out is not None:
        best.compressed.save(out)
    return best


def _next_factor(drops: Mapping[float, float], most: float) -> float:
    """What to multiply the rate with next: between the largest that kept the drop and the smallest that did not."""
    kept = [factor for factor, drop in drops.items() if drop <= most]
    lost = [factor for factor, drop in drops.items() if not drop <= most]
    if not drops:
        return 1.0
    if not lost:
        return 3 * max(kept)
    if not kept:
        return min(lost) / 3
    return math.sqrt(max(kept) * min(lost)) if max(kept) < min(lost) else min(lost) / 2


def _train(
    model: nn.Module,
    data: Dataset[Any],
    loss: TaskLoss,
    config: IlwpConfig,
    plan: FineTuning,
    *,
    example_inputs: Any,
    calibration: Any,
    inputs: Pick | None,
    coupler: Callable[[nn.Module, Any], Coupler] | None,
    optimizer: Callable[[nn.Module], Optimizer] | None,
    references: Mapping[str, Tensor] | Provenance | None,
    checkpoint: str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None,
    report: Report | None,
    target_bytes: float | None = None,
    rate_factor: float = 1.0,
) -> FineTuned:
    """One training; see `fine_tune`."""
    if config.align:
        coupler = coupler or toolkits.load("pruning").Coupling
        config = config.replace(align=False)  # of what follows
    if not any(recipe.quantizes() for recipe in config.recipe_list()):
        raise ConfigError("the configuration quantizes nothing, and fine-tuning ends with a file; set bits to 2..8")
    for path in (checkpoint, out):
        _check_folder(path)
    with World.joined(model) as world, _left_usable(model) as quantizers:
        batches = Batches(data, plan, world)
        steps = plan.epochs * batches.per_epoch
        identity = {
            "config": config.to_dict(),
            "plan": asdict(plan),
            "samples": batches.samples,
            "processes": world.size,
            "aligned": coupler is not None,
            "target_bytes": target_bytes,
            "rate_factor": rate_factor,
        }
        resumes = checkpoint is not None and Path(checkpoint).exists()
        alignment = _Alignment()
        if coupler is not None:
            if references:
                raise TrainingError("references and a coupler: alignment makes the collocated kernels the references")
            if not resumes:
                alignment.report = _align(model, example_inputs, coupler, config)
        if calibration is None and config.rate > 0:
            examples = drawn_inputs(model, data, loss, plan.seed)
        else:
            examples = None if calibration is None else read_inputs(model, calibration, inputs)
        model.train()
        plain = None if resumes else copy.deepcopy(model)
        quantizer = FakeQuantizer(
            model, config, example_inputs=example_inputs, references=references, calibration=examples
        )
        quantizers.append(quantizer)
        parts = quantizer.parts
        parts.enabled, parts.rate_factor = False, rate_factor
        with_rate = parts.has_rate
        moving = _optimizer(model, parts, plan, with_rate) if optimizer is None else optimizer(model)
        schedule = LambdaLR(moving, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
        own = next((part for part in parts.parts if isinstance(part, IlwpTraining)), None)
        if own is not None and not resumes and config.loss_weight == AUTO and not own.needs_no_loss:
            first = next(iter(batches.training(0)))
            size = None
            if not isinstance(moving, SGD):  # an adaptive optimizer weighs against it
                weights = [source.weight() for source in own.sources.values()]
                size = task_gradient_rms(model, lambda: loss(model, first), weights)
            length = replace(
                TrainingRun.of(moving, steps, schedule, gradient_rms=size), pull=pull_of_fine_tuning(steps)
            )
            own.choose_loss_weight(length, model, "loss_weight: give a number")
        others: dict[str, Resumable] = {"parts": parts, "alignment": alignment, "random": _RandomState(world)}
        norms_only = round((1 - plan.norms_last) * steps) if with_rate else steps
        gauge = SizeGauge(parts)
        steering = None if target_bytes is None else Steering(parts, gauge, target_bytes, norms_only)
        if with_rate and (target_bytes is not None or report is not None):
            others["size"] = gauge
            if plain is not None:
                gauge.begin(plain)
        if steering is not None:
            others["steering"] = steering
            if not resumes:
                steering.begin()
        del plain
        path = None if checkpoint is None else Path(checkpoint)
        loop = Loop(model, moving, schedule, others, checkpoint=path, identity=identity, what="a fine-tuning")
        done = loop.resume()
        parallel = DistributedDataParallel(model) if world.size > 1 else model
        writes = world.rank == 0
        if checkpoint is not None and not resumes:
            loop.save(write=writes)
        kept, measured = plan.checkpoint_steps or batches.per_epoch, every(steps)
        begin = round(plan.quantize_from * steps)
        raw = quantizer.raw_weights()
        for step, batch in enumerate(batches.training(done), start=done):
            parts.enabled = step >= begin
            if step % batches.per_epoch == 0:
                parts.begin_epoch(step // batches.per_epoch)
            if with_rate:
                parts.loss_factor = min(1.0, (step + 1) / max(1, round(plan.ramp * steps)))
            if steering is not None and step == norms_only:
                assert target_bytes is not None
                if (excess := gauge.measure() - _BELOW * target_bytes) > 0:
                    cut(parts, raw, excess)
            freeze = tuple(raw.values()) if step >= norms_only else ()
            value = loop.step(loss(parallel, batch) + parts.loss(), freeze=freeze)
            parts.after_step()
            if "size" in others and (step + 1) % measured == 0:
                gauge.measure()
                if steering is not None:
                    steering.after_measurement(step + 1)
            if checkpoint is not None and ((step + 1) % kept == 0 or step + 1 == steps):
                loop.save(write=writes)
            if report is not None:
                report(Progress(step + 1, steps, value, gauge.bits_per_weight, gauge.file_bytes))

        parts.enabled = True
        parts.finish()
        if plan.norm_batches:
            reestimate_batch_norms(model, batches.whole(plan.norm_batches), loss)
        quantizer.remove()
        compressed = quantizer.compressed(calibration=examples)
        if target_bytes is not None:
            for _ in range(_CUTS):
                excess = compressed.ledger.file_bytes - target_bytes
                if excess <= 0:
                    break
                cut(parts, {key: model.get_parameter(key) for key in raw}, excess + 1)
                compressed = quantizer.compressed(calibration=examples)
            if (size := compressed.ledger.file_bytes) > target_bytes:
                raise TrainingError(
                    f"target_bytes={target_bytes:,.0f}: this training comes to {size:,} bytes and not below; "
                    "more epochs, a larger `weight_step`, or a larger `rate` to begin with"
                )
        compressed.apply_to(model)
        if out is not None and world.rank == 0:
            compressed.save(out)
        world.wait()
        rate = max((part.rate for part in parts.parts), default=0.0) * parts.rate_factor
        return FineTuned(compressed, alignment.report, 0.0 if own is None else own.loss_weight, steps, rate)


def drawn_inputs(model: nn.Module, data: Dataset[Any], loss: TaskLoss, seed: int) -> CalibrationInputs | None:
    """What a loss calls a model with, for samples of its data at random; labels stay with the loss.

    Generators of random numbers are left as they were.

    Returns:
        None, with a warning, where no calibration inputs can be made of that.
    """
    calls: list[Any] = []
    names = inspect.signature(model.forward)

    def remember(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        batch = dict(names.bind(*arguments, **named).arguments) if named else arguments
        calls.append(map_tensors(lambda tensor: tensor.detach().cpu(), batch))

    before, handle = _random_state(), model.register_forward_pre_hook(remember, with_kwargs=True)
    torch.manual_seed(seed)
    try:
        with evaluating(model), torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            numbers = torch.randperm(len(data), generator=generator)[:DRAWN]  # type: ignore[arg-type]
            held, batches = 0, torch.split(numbers, _DRAWN_BATCH)
            for batch in _loader(data, batches, generator=generator):
                first = len(calls)
                loss(model, batch)
                del calls[first + 1 :]  # a loss may call the model more than once
                held += sum(leaf.nbytes for leaf in tree_leaves(calls[first:]) if isinstance(leaf, Tensor))
                if held > _DRAWN_BYTES:
                    break
    finally:
        handle.remove()
        _set_random_state(before)
    try:
        return read_inputs(model, calls)
    except CalibrationError as error:
        warn(
            f"the data choose no steps, all layers get steps of 8 bits; give `calibration`, or a `weight_step`: {error}"
        )
        return None


_BELOW = 0.995
"""Of a target in bytes: norms that train on take a little more or less in the end."""

_CUTS = 5
"""Tries to cut a file to a target after training."""


@contextmanager
def _left_usable(model: nn.Module) -> Iterator[list[FakeQuantizer]]:
    """Takes off the quantizers that are put into the list, and goes back to the mode, if something is raised inside."""
    modes = {module: module.training for module in model.modules()}
    quantizers: list[FakeQuantizer] = []
    try:
        yield quantizers
    except BaseException:
        for quantizer in quantizers:
            quantizer.remove()
        for module, mode in modes.items():
            module.training = mode
        model.zero_grad(set_to_none=True)
        raise


def _optimizer(model: nn.Module, parts: Parts, plan: FineTuning, with_rate: bool) -> Optimizer:
    parameters = [*model.parameters(), *parts.parameters()]
    adaptive = with_rate or any(part.adaptive for part in parts.parts)
    if plan.optimizer == "adamw" or (plan.optimizer is None and adaptive):
        lr = plan.lr or _LR["rate" if with_rate else "adamw"]
        return AdamW(parameters, lr, weight_decay=plan.weight_decay or 0.0)
    decay = 5e-4 if plan.weight_decay is None else plan.weight_decay
    return SGD(
        parameters, plan.lr or _LR["sgd"], momentum=plan.momentum, nesterov=plan.momentum > 0, weight_decay=decay
    )


_LR = {"sgd": 0.05, "adamw": 7e-4, "rate": 1e-3}


def _align(
    model: nn.Module, example_inputs: Any, coupler: Callable[[nn.Module, Any], Coupler], config: IlwpConfig
) -> AlignmentReport:
    """Align on the CPU, wherever the model is."""
    device = _device(model)
    model.cpu()
    inputs = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, example_inputs)
    try:
        return align_model(model, inputs, coupler, config)
    finally:
        model.to(device)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@dataclass(frozen=True)
class World:
    """The process group, or this process alone."""

    rank: int
    size: int

    @classmethod
    @contextmanager
    def joined(cls, model: nn.Module) -> Iterator[World]:
        """The group as it is, or one for the time of the `with` block, where torchrun has started several processes."""
        launched = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
        if not dist.is_available() or dist.is_initialized() or launched == 1:
            group = dist.is_available() and dist.is_initialized()
            yield cls(dist.get_rank(), dist.get_world_size()) if group else cls(0, 1)
            return
        try:
            dist.init_process_group("nccl" if _device(model).type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            raise TrainingError(
                f"this is one of {launched} processes (WORLD_SIZE), which find no group: {error}; start them with "
                "torchrun, or call torch.distributed.init_process_group first"
            ) from error
        try:
            yield cls(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


class Batches:
    """The data in an order that depends on the seed and the epoch alone, so that it can be taken up anywhere."""

    def __init__(self, data: Dataset[Any], plan: FineTuning, world: World) -> None:
        try:
            samples = len(data)  # type: ignore[arg-type]
        except TypeError:
            raise TrainingError(
                f"data: a {type(data).__name__} has no length; expected a map-style data set, which can be resumed"
            ) from None
        if not 1 <= plan.batch <= samples or plan.batch % world.size:
            raise TrainingError(
                f"batches of {plan.batch} of {samples} samples in {world.size} processes: expected at most the number "
                "of samples, and a multiple of the processes"
            )
        self._data, self._plan, self._world, self.samples = data, plan, world, samples
        self.per_epoch = samples // plan.batch

    def training(self, start: int) -> Iterator[Any]:
        """This process's share of every batch from step `start` on, to the end of the last epoch."""
        for epoch in range(start // self.per_epoch, self._plan.epochs):
            order = self._order(epoch)
            first = start % self.per_epoch if epoch == start // self.per_epoch else 0
            yield from self._load([b[self._world.rank :: self._world.size] for b in order[first:]], epoch)

    def whole(self, count: int) -> Iterator[Any]:
        """The first batches of another order, the same in all processes."""
        epoch = self._plan.epochs
        return self._load(self._order(epoch)[:count], epoch)

    def _order(self, epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self._seed(epoch))
        shuffled = torch.randperm(self.samples, generator=generator)
        return list(shuffled[: self.per_epoch * self._plan.batch].view(-1, self._plan.batch))

    def _seed(self, epoch: int) -> int:
        return self._plan.seed * 1_000_003 + epoch

    def _load(self, batches: list[Tensor], epoch: int) -> Iterator[Any]:
        # Of its own generator, so that making the loader leaves the global one, which a checkpoint holds, as it is.
        generator = torch.Generator().manual_seed(self._seed(epoch))
        return iter(_loader(self._data, batches, num_workers=self._plan.workers, generator=generator))


def _loader(data: Dataset[Any], batches: Sequence[Tensor], **options: Any) -> DataLoader[Any]:
    """Of batches whose numbers are given."""
    if isinstance(data, TensorDataset):  # takes a whole batch at once
        return DataLoader(data, sampler=batches, batch_size=None, **options)
    return DataLoader(data, batch_sampler=[batch.tolist() for batch in batches], **options)


class _Alignment:
    """The report of an alignment, which a resumed run finds in the checkpoint."""

    report: AlignmentReport | None = None

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.report is None else asdict(self.report)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        self.report = None if state is None else AlignmentReport(**state)


class _RandomState:
    """Generators of all processes: of data augmentation and of dropout."""

    def __init__(self, world: World) -> None:
        self._world = world

    def state_dict(self) -> list[dict[str, Any]]:
        return self._world.gather(_random_state())

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        _set_random_state(state[self._world.rank])


def _random_state() -> dict[str, Any]:
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002  (what augmentations draw from)
    assert isinstance(numpy_state, tuple)
    name, keys, *rest = numpy_state
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
