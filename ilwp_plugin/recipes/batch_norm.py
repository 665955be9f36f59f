"""The recipe `batch_norm`: batch norms as the one scale and one shift a channel that they are at inference."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ilwp_plugin.errors import ConfigError, TensorError
from ilwp_plugin.format.container import TensorInfo
from ilwp_plugin.format.norms import MergedBatchNorm
from ilwp_plugin.format.sections import BatchNormSection, FloatSection, Section
from ilwp_plugin.method.batch_norm import (
    MANTISSA_BITS,
    merge_batch_norm,
    restored_batch_norm,
    round_batch_norm,
    round_mantissa,
)
from ilwp_plugin.method.error_feedback import Feedback
from ilwp_plugin.models.network import Network, Norm
from ilwp_plugin.models.tensors import Place, array_of, dtype_name, place_of
from ilwp_plugin.recipes.base import (
    AUTO,
    RECIPES,
    Claims,
    Encoding,
    EncodingContext,
    NormFit,
    Options,
    Recipe,
    Request,
    check_finite,
)

__all__ = ["BatchNorm", "BatchNormOptions"]

CALIBRATED_BITS, PLAIN_BITS = 4, 8
"""Bits of mantissa: later layers make up for errors that calibration sees."""

TRAINED_BITS = 3
"""The same after a training with calibration inputs."""


class BatchNormOptions(Options):
    """Of `BatchNorm`."""

    batch_norm: Literal["auto", "exact", "merged"] = Field(
        default=AUTO,
        description="'merged' stores a batch norm as the scale and shift that it is at inference; 'auto' does so where "
        "its eps is known, and rounds its four vectors elsewhere.",
    )
    batch_norm_bits: Annotated[int, Field(strict=True, ge=MANTISSA_BITS[0], le=MANTISSA_BITS[-1])] | Literal["auto"] = (
        Field(
            default=AUTO,
            description="Bits of mantissa of a merged scale: its relative error, and that of the shift against the "
            f"spread of the output, is at most 2^-(bits + 1). 'auto' is {CALIBRATED_BITS} with calibration inputs, "
            f"{TRAINED_BITS} where the model trains with them, else {PLAIN_BITS}.",
        )
    )
    batch_norm_eps: Annotated[float, Field(strict=True, ge=0, lt=1)] | None = Field(
        default=None, description="The eps of the batch norms of a state dict, which does not tell it; to merge them."
    )


@dataclass(frozen=True)
class NormClaims(Claims):
    """Batch norms.

    Attributes:
        norms: those to merge, by name.
        rounded: keys of the tensors of those whose eps is not known.
    """

    norms: Mapping[str, Norm] = field(default_factory=dict)
    rounded: tuple[str, ...] = ()


@RECIPES.register("batch_norm")
class BatchNorm(Recipe):
    """Merges batch norms."""

    name: ClassVar[str] = "batch_norm"
    options_type: ClassVar[type[Options]] = BatchNormOptions
    options: BatchNormOptions

    def quantizes(self) -> bool:
        return self.options.batch_norm != "exact"

    def resolved(self, calibrated: bool, trains: bool = False) -> Recipe:
        if self.options.batch_norm_bits != AUTO:
            return self
        bits = (TRAINED_BITS if trains else CALIBRATED_BITS) if calibrated else PLAIN_BITS
        return BatchNorm(self.options.changed(batch_norm_bits=bits))

    def claim(self, network: Network, free: Collection[str], request: Request) -> Claims:
        norms = {name: norm for name, norm in network.norms.items() if all(key in free for key in norm.keys)}
        if self.options.batch_norm == "exact":
            return NormClaims(left=dict.fromkeys(norms, "kept: batch_norm is 'exact'"))
        left = self.options.outside_scopes(norms)
        norms = {name: norm for name, norm in norms.items() if name not in left}
        eps = self.options.batch_norm_eps
        norms = {name: Norm(norm.keys, eps if norm.eps is None else norm.eps) for name, norm in norms.items()}
        unknown = [name for name, norm in norms.items() if norm.eps is None]
        if self.options.batch_norm == "merged" and unknown:
            raise ConfigError(
                "batch_norm_eps: a state dict does not tell the eps of its batch norms, which merging needs; it is "
                "1e-5 in PyTorch's own modules"
            )
        open_norms = {name: norm for name, norm in norms.items() if norm.eps is not None}
        refused = _refused(network, open_norms)
        known = _once(network, {name: norm for name, norm in open_norms.items() if name not in refused})
        merged = tuple(key for norm in known.values() for key in norm.keys)
        rounded = tuple(key for name in unknown for key in norms[name].keys[:4])
        return NormClaims((*merged, *rounded), {**left, **refused}, known, rounded)

    def encode(self, claims: Claims, context: EncodingContext) -> Encoding:
        return _BatchNormEncoding(self, claims, context)


def _refused(network: Network, norms: Mapping[str, Norm]) -> dict[str, str]:
    """Why batch norms cannot be merged, by name."""
    state, users = network.state, dict[Place, list[str]]()
    for key, tensor in state.items():
        users.setdefault(place_of(key, tensor), []).append(key)

    def reason(name: str, norm: Norm) -> str | None:
        shapes = {tuple(state[key].shape) for key in norm.keys[:4]}
        assert norm.eps is not None
        if not 0 <= float(torch.tensor(norm.eps)) < 1:  # as float32, which a file holds
            return f"its eps is {norm.eps}"
        if len(shapes) > 1 or len(*shapes) != 1 or any(state[key].dim() for key in norm.keys[4:]):
            return f"its tensors are of the shapes {sorted(shapes)}, not one number for each channel"
        places = [place_of(key, state[key]) for key in norm.keys]
        for key, place in zip(norm.keys, places, strict=True):
            role = key.removeprefix(name).removeprefix(".")
            for user in users[place]:  # the same batch norm may have another name
                twin = user.removesuffix(role)
                own = [f"{twin}{k.removeprefix(name).removeprefix('.')}" for k in norm.keys]
                if [place_of(k, state[k]) for k in own if k in state] != places:
                    return f"its {role} is also {user!r}, which would change with it"
        return None

    found = {name: reason(name, norm) for name, norm in norms.items()}
    return {name: why for name, why in found.items() if why is not None}


def _once(network: Network, norms: Mapping[str, Norm]) -> dict[str, Norm]:
    """Without batch norms that are others under another name."""
    owners: dict[Place, str] = {}
    for name, norm in norms.items():
        owners.setdefault(place_of(norm.keys[0], network.state[norm.keys[0]]), name)
    return {name: norms[name] for name in owners.values()}


class _BatchNormEncoding(Encoding):
    def __init__(self, recipe: BatchNorm, claims: Claims, context: EncodingContext) -> None:
        super().__init__(claims, context)
        self._recipe = recipe
        self._norms = claims.norms if isinstance(claims, NormClaims) else {}
        self._merged: dict[str, MergedBatchNorm] = {}
        self._rounded: dict[str, tuple[TensorInfo, Tensor]] = {}

    def quantize(self, key: str, value: Tensor, feedback: Feedback | None = None) -> Tensor:
        bits = self._recipe.options.batch_norm_bits
        assert bits != AUTO
        info = self.context.infos[key]
        check_finite(info.name, value)
        rounded = round_mantissa(value.detach().cpu(), bits)
        self._rounded[info.name] = (info, rounded)
        self.done.add(info.name)
        return rounded

    def norm(self, name: str, fit: NormFit) -> Mapping[str, Tensor]:
        norm = self._norms[name]
        bits, eps = self._recipe.options.batch_norm_bits, norm.eps
        assert bits != AUTO and eps is not None
        try:
            merged = round_batch_norm(fit.scale, fit.mean_input, fit.mean_output, fit.spread, bits, eps)
            restored = restored_batch_norm(merged)
            for key, value in zip(norm.keys, restored.values(), strict=False):
                dtype = self.context.network.state[key].dtype
                if not bool(value.to(dtype).isfinite().all()):
                    raise TensorError(f"batch norm: merged, {key!r} is beyond the range of {dtype_name(dtype)}")
        except TensorError as error:
            raise TensorError(f"{name}: {error}; keep it with batch_norm='exact'") from None
        self._merged[name] = merged
        self.done.update(self.context.infos[key].name for key in norm.keys)
        return restored

    def finish(self, state: Mapping[str, Tensor]) -> None:
        for name, norm in self._norms.items():
            if name not in self._merged:
                weight, bias, mean, variance = (state[key] for key in norm.keys[:4])
                assert norm.eps is not None
                scale, _ = merge_batch_norm(weight, bias, mean, variance, norm.eps)
                self.norm(name, NormFit(scale, mean, bias, weight))
        for key in self.claims.rounded if isinstance(self.claims, NormClaims) else ():
            self.quantize(key, state[key])

    def sections(self) -> Sequence[Section]:
        return [*self._merged_sections(), *self._rounded_sections()]

    def _rounded_sections(self) -> Sequence[Section]:
        if not self._rounded:
            return ()
        infos = [info for info, _ in self._rounded.values()]
        return [FloatSection(infos, {info.name: array_of(value) for info, value in self._rounded.values()})]

    def _merged_sections(self) -> Sequence[Section]:
        names = [name for name in self._norms if name in self._merged]
        if not names:
            return ()
        infos: tuple[tuple[TensorInfo, ...], ...] = tuple(
            tuple(self.context.infos[key] for key in self._norms[name].keys) for name in names
        )
        values: Any = tuple(self._merged[name] for name in names)
        return [BatchNormSection(infos, values, self._recipe.options.coder)]
