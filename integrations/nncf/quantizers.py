"""The quantizers of a stripped model: what a file keeps of them, and back out of it.

A file holds weights as codes with their scales. What else a quantizer knows follows from these, or is a handful of
numbers: those are in the metadata of the file, so that its tensors are those of the plain network.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver

from ilwp_plugin import CompressedModel
from ilwp_plugin.errors import FormatError, TensorError

__all__ = [
    "METADATA",
    "Quantizer",
    "added_state",
    "described",
    "padding_values_of",
    "quantizers_of",
    "read_description",
]

METADATA = "quantizers"
"""Key of the metadata."""
_MOST = 1 << 24


@dataclass(frozen=True)
class Quantizer:
    """One quantizer.

    Attributes:
        path: of its module in the stripped model.
        weight: key of the weight that it quantizes; None for activations.
        low: the smallest code.
        high: the largest one.
        dtype: of torch, by name.
        scheme: of torch, by name.
        axis: of the scales.
        scale: float32; of a weight that the file holds as codes it is with these, and None here.
        zero_point: likewise.
    """

    path: str
    weight: str | None
    low: int
    high: int
    dtype: str
    scheme: str
    axis: int
    scale: np.ndarray[Any, np.dtype[np.float32]] | None = None
    zero_point: tuple[int, ...] | None = None

    @classmethod
    def of(cls, path: str, weight: str | None, module: FakeQuantize, stored: bool) -> Quantizer:
        """Of torch's module; `stored` says whether the file holds the weight as codes."""
        dtype, scheme = (str(value).removeprefix("torch.") for value in (module.dtype, module.qscheme))
        scale = zero = None
        if not stored:
            scale = module.scale.detach().flatten().float().cpu().numpy()
            zero = tuple(int(value) for value in module.zero_point.flatten())
        low, high = int(module.quant_min), int(module.quant_max)
        return cls(path, weight, low, high, dtype, scheme, int(module.ch_axis), scale, zero)

    def parameters(self, file: CompressedModel) -> tuple[Tensor, Tensor]:
        """Scale and zero point, flat."""
        if self.scale is not None and self.zero_point is not None:
            return torch.from_numpy(self.scale.copy()), torch.tensor(self.zero_point, dtype=torch.int32)
        value = file.quantized.get(self.weight or "")
        if value is None:
            raise TensorError(f"the file does not hold the codes of {self.weight!r}, which {self.path!r} quantizes")
        scale = torch.from_numpy(value.scale.copy()).flatten()
        zero = torch.zeros_like(scale) if value.zero_point is None else torch.from_numpy(value.zero_point.copy())
        return scale, zero.flatten().to(torch.int32)

    def module(self, file: CompressedModel) -> FakeQuantize:
        """As NNCF makes it when it strips a model."""
        scheme, dtype = getattr(torch, self.scheme), getattr(torch, self.dtype)
        per_channel = "channel" in self.scheme
        made: Any = FakeQuantize(  # type: ignore[no-untyped-call]
            observer=PerChannelMinMaxObserver if per_channel else MinMaxObserver,
            quant_min=self.low,
            quant_max=self.high,
            dtype=dtype,
            qscheme=scheme,
        )
        scale, zero = self.parameters(file)
        made.ch_axis = self.axis
        made.scale, made.zero_point = (scale, zero) if per_channel else (scale.squeeze(), zero.squeeze())
        made.disable_observer()
        found: FakeQuantize = made
        return found


def quantizers_of(model: nn.Module) -> Iterator[tuple[str, FakeQuantize]]:
    """Those of torch in a stripped model, by path."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FakeQuantize))


def padding_values_of(model: nn.Module) -> list[str]:
    """Names of the tensors in which convolutions of NNCF 2 keep what they pad with: follows from the quantizers."""
    return [name for name in model.state_dict() if name.rpartition(".")[2] == "nncf_padding_value"]


def described(quantizers: list[Quantizer], **more: Any) -> dict[str, str]:
    """As the metadata of a file has it.

    Args:
        quantizers: of a model.
        more: what else it takes to make them again, as JSON has it.
    """
    if not quantizers and not more:
        return {}
    kinds = list(dict.fromkeys(_kind(quantizer) for quantizer in quantizers))
    scales = b"".join(quantizer.scale.tobytes() for quantizer in quantizers if quantizer.scale is not None)
    entries = [
        [q.path, q.weight, kinds.index(_kind(q)), None if q.zero_point is None else list(q.zero_point)]
        for q in quantizers
    ]
    value = {**more, "kinds": kinds, "quantizers": entries, "scales": base64.b64encode(scales).decode()}
    text = json.dumps(value, separators=(",", ":")).encode()
    return {METADATA: base64.b85encode(zlib.compress(text, 9)).decode()}


def _kind(quantizer: Quantizer) -> tuple[Any, ...]:
    return quantizer.low, quantizer.high, quantizer.dtype, quantizer.scheme, quantizer.axis


def read_description(file: CompressedModel) -> tuple[list[Quantizer], Mapping[str, Any]]:
    """The inverse: quantizers, and what else was said; nothing of a file without them.

    Raises:
        FormatError: it is damaged.
    """
    text = file.metadata.get(METADATA)
    if text is None:
        return [], {}
    try:
        unpacked = zlib.decompressobj()
        value = json.loads(unpacked.decompress(base64.b85decode(text), _MOST))
        scales = np.frombuffer(base64.b64decode(value.pop("scales")), "<f4")
        kinds, found, place = value.pop("kinds"), list[Quantizer](), 0
        for path, weight, kind, zero in value.pop("quantizers"):
            low, high, dtype, scheme, axis = kinds[kind]
            known = dtype in ("qint8", "quint8") and scheme in _SCHEMES
            if not known or not isinstance(path, str) or not isinstance(weight, str | None):
                raise ValueError(f"{dtype}, {scheme}")
            own = None if zero is None else scales[place : place + len(zero)].astype(np.float32)
            place += 0 if zero is None else len(zero)
            levels = int(low), int(high), dtype, scheme, int(axis)
            found.append(Quantizer(path, weight, *levels, own, None if zero is None else tuple(map(int, zero))))
        if place != len(scales):
            raise ValueError(f"{len(scales)} scales for {place}")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, binascii.Error, zlib.error) as error:
        raise FormatError(f"the quantizers in the metadata of the file are damaged: {error}") from None
    return found, value


_SCHEMES = "per_tensor_symmetric", "per_tensor_affine", "per_channel_symmetric", "per_channel_affine"


def added_state(model: nn.Module, file: CompressedModel) -> dict[str, Tensor]:
    """The tensors of a stripped model that are NNCF's, as a file of such a model has them.

    Raises:
        TensorError: the model has other quantizers than that of the file.
    """
    own, state = dict(quantizers_of(model)), model.state_dict()
    found: dict[str, Tensor] = {name: state[name] for name in padding_values_of(model)}
    if not own:
        return found
    known, _ = read_description(file)
    paths = {quantizer.path for quantizer in known}
    if paths != own.keys():
        missing, unexpected = sorted(own.keys() - paths), sorted(paths - own.keys())
        raise TensorError(
            f"the file does not fit {type(model).__name__}: quantizers not in the file: {missing[:3] or 'none'}; not "
            f"in the model: {unexpected[:3] or 'none'}"
        )
    for quantizer in known:
        found.update({name: state[name] for name in state if name.startswith(f"{quantizer.path}.")})
        for role, value in zip(("scale", "zero_point"), quantizer.parameters(file), strict=True):
            mine = state[f"{quantizer.path}.{role}"]
            if mine.numel() != value.numel():
                raise TensorError(
                    f"quantizer {quantizer.path!r}: expected {mine.numel()} scales, the file has {value.numel()}"
                )
            found[f"{quantizer.path}.{role}"] = value.reshape(mine.shape).to(mine.dtype)
    return found
