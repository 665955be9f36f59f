"""Quantizes a model layer by layer, with or without calibration, and hands on the sections of a file.

Layers come in the order of execution; each is told what earlier ones were restored to. With calibration each layer
comes with what its inputs are (`Feedback`), without it the weights are rounded as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.container import TensorInfo
from ilwp_plugin.errors import ConfigError, TensorError
from ilwp_plugin.layer_quantizer import quantize_layer
from ilwp_plugin.method.batch_norm import MergedBatchNorm, merge_batch_norm, round_batch_norm
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.method.grid import LARGEST_CODE, IntegerTensor, round_to_grid
from ilwp_plugin.method.provenance import Origin, Provenance, given_references
from ilwp_plugin.method.quantization import KernelPool, as_kernels, reconstruct, stored_anchor
from ilwp_plugin.method.rounding import Rounding, check_step, dead_zone_rounding, naming
from ilwp_plugin.models.chains import Chain
from ilwp_plugin.pipeline.calibration import BatchNormMoments
from ilwp_plugin.sections import BatchNormSection, ChainSection, CodedLayer, GridSection
from ilwp_plugin.sections.chain import Mode, storage_mode

__all__ = ["BatchNormKeys", "ChainEncoder", "Encoder", "Progress", "finite_kernels"]

Progress = Callable[[str, int, int], None]
"""Is told the layer, how many kernels (rows, of layers in no chain) of all layers are done, and of how many; while
steps are measured, before that, the same in layers."""


class ProgressCounter:
    """Adds up the kernels that are done: those of whole layers, and of a search within a layer."""

    def __init__(self, tell: Progress | None, total: int) -> None:
        self._tell, self._total, self._layers, self._search = tell, total, 0, 0

    def searched(self, layer: str, kernels: int) -> None:
        self._search += kernels
        if self._tell is not None:
            self._tell(layer, self._layers + self._search, self._total)

    def finished(self, layer: str, kernels: int) -> None:
        self._layers, self._search = self._layers + kernels, 0
        if self._tell is not None:
            self._tell(layer, self._layers, self._total)


@dataclass(frozen=True)
class BatchNormKeys:
    """A batch norm: its tensors in the order of `sections.ROLES`, and its eps."""

    keys: tuple[str, ...]
    eps: float


class ChainEncoder:
    """Quantizes the layers of one chain, in order and in closed loop.

    Args:
        chain: the chain.
        infos: the entries of its layers in the directory.
        config: the configuration; `bits` is set.
        references: by layer, given index maps or origins; see `compress`.
        progress: is told.
        steps: by layer, residual steps instead of that of the configuration.
    """

    def __init__(
        self,
        chain: Chain,
        infos: Sequence[TensorInfo],
        config: IlwpConfig,
        references: Mapping[str, Tensor] | Provenance,
        progress: ProgressCounter,
        steps: Mapping[str, float],
    ) -> None:
        self._chain, self._infos, self._config, self._steps = chain, infos, config, steps
        self._progress = progress
        self._counts = [info.numel // chain.taps for info in infos]
        self._given = given_references(chain.layers, self._counts, references)
        self._pruned = any(isinstance(value, Origin) for value in references.values())
        if self._pruned and config.mode != "collocated":  # the origins are stored, the mode chooses
            self._given, self._pruned = [None] * len(infos), False
        self._pool = KernelPool(sum(self._counts), chain.taps)
        self._anchor: Tensor | None = None
        self._layers: list[CodedLayer] = []

    def quantize(self, weight: Tensor, feedback: Feedback | None = None) -> Tensor:
        """Quantize the next layer of the chain; returns what it is restored to, float32 in the weight's shape."""
        number = len(self._layers)
        name, info = self._chain.layers[number], self._infos[number]
        if feedback is not None:
            weight = feedback.target(weight)
        kernels = finite_kernels(info.name, weight, self._chain.taps)
        if number == 0:
            self._anchor = stored_anchor(kernels, info.dtype, self._config.anchor)
            if self._anchor is not None:
                if not bool(self._anchor.isfinite().all()):
                    raise TensorError(f"tensor {info.name!r}: beyond the range of float16; choose anchor='fp32'")
                self._pool.append(self._anchor.float())
                self._layers.append(CodedLayer(info, None, "none"))
                self._progress.finished(name, len(kernels))
                return self._pool.layers[0].reshape(weight.shape)
        config, shape = self._config.for_layer(name), weight.shape
        if name in self._steps:
            config = config.replace(residual_step=self._steps[name])

        def rounded(reference: Tensor, step: float, rounding: Rounding) -> Tensor:
            assert feedback is not None
            return feedback.codes(kernels.reshape(shape), reference.reshape(shape), step, rounding)

        with naming(f"layer {name!r}"):
            layer = quantize_layer(
                kernels,
                self._pool,
                config,
                self._given[number],
                feedback=None if feedback is None else rounded,
                searched=partial(self._progress.searched, name),
            )
        mode: Mode = (
            storage_mode(layer.references, self._counts[:number], self._ancestral(number)) if number else "none"
        )
        self._layers.append(CodedLayer(info, layer, mode))
        self._pool.append(reconstruct(layer, self._pool.filled))
        self._progress.finished(name, len(kernels))
        return self._pool.layers[number].reshape(weight.shape)

    def _ancestral(self, number: int) -> Tensor | None:
        return self._given[number] if self._pruned else None

    def section(self) -> ChainSection:
        """The chain's section, once all its layers are quantized."""
        section = ChainSection(self._chain.kernel_size, self._anchor, tuple(self._layers), self._config.coder)
        for name, tensor in section.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise TensorError(f"layer {name!r}: its residuals overflow {tensor.dtype}; rescale it or leave it out")
        return section


class Encoder:
    """Quantizes the layers of a model; a `calibration.Visitor`.

    Args:
        config: the configuration.
        chains: the chains, each with the directory entries of its layers.
        grid: directory entries of the weights to put on the grid, by name of the layer.
        biases: directory entries of the biases to put on the grid, by name of the layer.
        norms: the batch norms to merge, by name of the layer.
        quantized: tensors whose codes are given, with their directory entries.
        directory: directory entries by name of the tensor.
        references: index maps by layer; see `compress`.
        progress: is told.
        steps: by layer, steps instead of those of the configuration: of residuals, or of weights on the grid.
    """

    def __init__(
        self,
        config: IlwpConfig,
        chains: Sequence[tuple[Chain, Sequence[TensorInfo]]],
        grid: Mapping[str, TensorInfo],
        biases: Mapping[str, TensorInfo],
        norms: Mapping[str, BatchNormKeys],
        quantized: Sequence[tuple[TensorInfo, IntegerTensor]],
        directory: Mapping[str, TensorInfo],
        references: Mapping[str, Tensor] | Provenance,
        progress: Progress | None,
        steps: Mapping[str, float],
    ) -> None:
        self._config, self._grid, self._biases, self._norms, self._directory = config, grid, biases, norms, directory
        self._steps = steps
        kernels = sum(info.numel // chain.taps for chain, infos in chains for info in infos)
        counter = ProgressCounter(progress, kernels + sum(info.shape[0] for info in grid.values()))
        self._progress = counter
        self._chains = [ChainEncoder(chain, infos, config, references, counter, steps) for chain, infos in chains]
        self._chain_of = {
            name: (encoder, i)
            for encoder, (chain, _) in zip(self._chains, chains, strict=True)
            for i, name in enumerate(chain.layers)
        }
        self._given = list(quantized)
        self._on_grid: dict[str, tuple[TensorInfo, IntegerTensor]] = {}
        self._merged: dict[str, MergedBatchNorm] = {}
        self._exact: dict[str, Tensor] = {}
        self._next = {id(encoder): 0 for encoder in self._chains}

    @property
    def layers(self) -> set[str]:
        """The layers to quantize."""
        return {*self._chain_of, *self._grid}

    @property
    def changed(self) -> Mapping[str, Tensor]:
        """Tensors that are stored as they are but were changed by calibration, by name."""
        return self._exact

    def quantize(self, name: str, weight: Tensor, feedback: Feedback | None = None) -> Tensor:
        """Quantize the weight of a layer; returns what it is restored to, in its shape and dtype."""
        if name in self._chain_of:
            encoder, position = self._chain_of[name]
            if self._next[id(encoder)] != position:
                raise ConfigError(
                    f"layers: {name!r} runs before a layer that is to predict it; calibration needs the layers of a "
                    "chain in the order of execution"
                )
            self._next[id(encoder)] += 1
            return encoder.quantize(weight, feedback).to(weight.dtype)
        info, step = self._grid[name], self._steps.get(name, self._config.weight_step)
        assert step is not None
        _check_finite(info.name, weight)
        with naming(f"layer {name!r}"):
            if feedback is None:
                value = round_to_grid(weight, step, self._config.dead_zone)
            else:
                value = self._fed(feedback, weight, step)
        self._on_grid[info.name] = (info, value)
        self._progress.finished(name, info.shape[0])
        return value.restore().to(weight.dtype)

    def _fed(self, feedback: Feedback, weight: Tensor, step: float) -> IntegerTensor:
        """A weight on the grid, rounded with error feedback."""
        target, scale = feedback.target(weight), torch.tensor(step)
        check_step(target, float(scale), LARGEST_CODE)
        rounding, damping = dead_zone_rounding(self._config.dead_zone), self._config.feedback_damping
        codes = feedback.codes(target, torch.zeros_like(target), step, rounding, damping)
        check_step(codes.double() * float(scale), float(scale), LARGEST_CODE)
        return IntegerTensor(codes, scale)

    def quantize_bias(self, name: str, bias: Tensor) -> Tensor:
        """Put the bias of a layer on the grid, or keep it; returns what it is restored to."""
        step = self._config.weight_step
        if name not in self._biases or step is None:
            return bias
        if name in self._grid:
            step = self._steps.get(name, step)
        info = self._biases[name]
        _check_finite(info.name, bias)
        with naming(f"bias of layer {name!r}, on a grid of a quarter of its weight step"):
            value = round_to_grid(bias, step / 4)
        self._on_grid[info.name] = (info, value)
        return value.restore().to(bias.dtype)

    def merge(self, name: str, scale: Tensor, mean_input: Tensor, mean_output: Tensor, spread: Tensor) -> None:
        """Round a merged batch norm; see `round_batch_norm`."""
        norm = self._norms[name]
        try:
            value = round_batch_norm(scale, mean_input, mean_output, spread, self._config.batch_norm_bits, norm.eps)
        except TensorError as error:
            raise TensorError(f"{name}: {error}; keep it with batch_norm='exact'") from None
        self._merged[name] = value

    def layer(self, name: str, module: nn.Module, feedback: Feedback) -> tuple[Tensor, Tensor | None]:
        """See `calibration.Visitor`."""
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        restored = self.quantize(name, weight, feedback)
        if not isinstance(bias, Tensor):
            return restored, None
        corrected = self.quantize_bias(name, bias + feedback.bias_correction(weight, restored).to(bias.dtype))
        if name not in self._biases:
            self._exact[f"{name}.bias"] = corrected
        return restored, corrected

    def batch_norm(self, name: str, module: nn.Module, moments: BatchNormMoments) -> Mapping[str, Tensor]:
        """See `calibration.Visitor`."""
        assert isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.BatchNorm3d)
        assert isinstance(module.running_var, Tensor)
        mean, variance, mean_output, spread, slope = moments.fit(module.running_var)
        if name in self._norms:
            plain = module.weight.double() / torch.sqrt(variance + module.eps)
            self.merge(name, torch.where(slope.isnan(), plain, slope), mean, mean_output, spread)
            return self._merged[name].restore()
        unbiased = variance * moments.count / max(1, moments.count - 1)
        values = {"running_mean": mean.float(), "running_var": unbiased.float()}
        self._exact.update({f"{name}.{key}": value for key, value in values.items()})
        return values

    def finish(self, state: Mapping[str, Tensor]) -> None:
        """Quantize as it is everything that calibration did not reach; all of it where there was none."""
        for encoder in self._chains:
            chain = encoder._chain
            for name in chain.layers[self._next[id(encoder)] :]:
                self.quantize(name, state[f"{name}.weight"])
        for name, info in self._grid.items():
            if info.name not in self._on_grid:
                self.quantize(name, state[f"{name}.weight"])
        for name, info in self._biases.items():
            if info.name not in self._on_grid:
                self.quantize_bias(name, state[f"{name}.bias"])
        for name, norm in self._norms.items():
            if name not in self._merged:
                weight, bias, mean, variance = (state[key] for key in norm.keys[:4])
                scale, _ = merge_batch_norm(weight, bias, mean, variance, norm.eps)
                self.merge(name, scale, mean, bias, weight)

    def sections(self) -> tuple[list[ChainSection], GridSection | None, BatchNormSection | None]:
        """What was quantized."""
        chains = [encoder.section() for encoder in self._chains]
        entries = [*self._given, *(self._on_grid[info.name] for info in self._ordered())]
        grid = norms = None
        coder = self._config.coder
        if entries:
            grid = GridSection(tuple(info for info, _ in entries), tuple(value for _, value in entries), coder)
        if self._merged:
            names = [name for name in self._norms if name in self._merged]
            infos = tuple(tuple(self._directory[key] for key in self._norms[name].keys) for name in names)
            norms = BatchNormSection(infos, tuple(self._merged[name] for name in names), coder)
        return chains, grid, norms

    def _ordered(self) -> list[TensorInfo]:
        """Weights on the grid, then biases, each in the order of the directory."""
        return [info for kind in (self._grid, self._biases) for info in kind.values() if info.name in self._on_grid]


def finite_kernels(name: str, weight: Tensor, taps: int) -> Tensor:
    """A weight as kernels on the CPU, see `method.quantization.as_kernels`. Raises TensorError on NaN or infinity."""
    _check_finite(name, weight)
    kernels = as_kernels(weight.cpu(), taps)
    if not bool(kernels.isfinite().all()):
        raise TensorError(f"tensor {name!r}: values beyond the range of float32")
    return kernels


def _check_finite(name: str, weight: Tensor) -> None:
    bad = int((~weight.isfinite()).sum())
    if bad:
        raise TensorError(
            f"tensor {name!r}: {bad} of its {weight.numel()} values are NaN or infinite; mend the model, or leave the "
            "layer out with `ignored_scopes`"
        )
