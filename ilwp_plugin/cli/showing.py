"""What a file holds and what each part costs, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ilwp_plugin.cli import console as ui
from ilwp_plugin.cli.console import output
from ilwp_plugin.format import Section, Summary
from ilwp_plugin.ledger import PARTS, LayerBytes, Ledger

__all__ = ["report_of", "sentence", "show"]

_AS_IT_IS = "raw"
"""The kind of sections whose tensors are listed by their bytes alone."""


class Shown(Protocol):
    """A file that was read, or a model that was compressed."""

    @property
    def sections(self) -> Sequence[Section]: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def left(self) -> Mapping[str, str]: ...


def _layers(file: Shown) -> list[Summary]:
    found = [summary for section in file.sections for summary in section.summaries()]
    return [summary for summary in found if summary.kind != _AS_IT_IS]


def report_of(file: Shown) -> dict[str, Any]:
    """The ledger, with a description of each compressed layer; `tensors` are the bytes of all the others."""
    by_layer = file.ledger.layers
    layers = {
        layer.name: {
            "kind": layer.kind,
            "shape": list(layer.shape),
            **layer.details,
            **_bytes(layer, by_layer).to_dict(),
        }
        for layer in _layers(file)
    }
    tensors = {name: parts.file_bytes for name, parts in by_layer.items() if name not in layers}
    report = {**file.ledger.whole.to_dict(), "layers": layers, "tensors": tensors, "metadata": file.metadata}
    return {**report, "left": dict(file.left)} if file.left else report


def _bytes(layer: Summary, by_layer: Mapping[str, LayerBytes]) -> LayerBytes:
    """What all tensors of a layer take."""
    names = layer.details.get("tensors", [layer.name])
    sizes: dict[str, int] = {}
    for name in names:
        for part, count in (by_layer[name].to_dict() if name in by_layer else {}).items():
            sizes[part] = sizes.get(part, 0) + count
    return LayerBytes(**{f"{part}_bytes": sizes.get(f"{part}_bytes", 0) for part in PARTS})


def sentence(file: Shown, before: int, snr: float | None, outputs: str | None = None) -> str:
    """What a compression has done, in one line.

    Args:
        file: the result.
        before: bytes of the model's own file.
        snr: see `pipeline.fidelity.weights_snr`.
        outputs: what is known of the outputs, if the file was calibrated.
    """
    ledger, by_layer = file.ledger, file.ledger.layers
    sizes: dict[str, int] = {}
    for layer in _layers(file):
        sizes[layer.kind] = sizes.get(layer.kind, 0) + _bytes(layer, by_layer).file_bytes
    sizes["names and the rest"] = ledger.file_bytes - sum(sizes.values())
    shares = ", ".join(f"{kind.replace('_', ' ')} {size / ledger.file_bytes:.1%}" for kind, size in sizes.items())
    kept = "no weight has changed"
    if snr is not None and outputs is not None:
        kept = f"weights at {snr:.1f} dB, {outputs}"
    elif snr is not None:
        kept = (
            f"weights at {snr:.1f} dB; several times smaller at about the same outputs with calibration inputs "
            "(--calibration of an .onnx or .pt2 model, compress(model, calibration=...) in Python)"
        )
    return f"{ledger.file_bytes:,} bytes, {before / ledger.file_bytes:.2f} times smaller ({shares}); {kept}"


_COLUMNS: dict[str, list[str]] = {
    "chain": ["mode", "bits", "step", "zeros", "entropy"],
    "grid": ["step", "zeros", "entropy"],
    "batch_norm": ["channels", "mantissa_bits", "shift_step"],
}
"""What is shown of each kind; of other kinds everything."""

_MANY = 20
"""Names that are listed at most."""

_LISTED = ("floats",)
"""Kinds of tensors that are stored in their own dtype: of these only the sum is shown."""


def show(file: Shown, title: str) -> None:
    """Tables on stdout."""
    by_layer, all_layers = file.ledger.layers, _layers(file)
    for kind in dict.fromkeys(layer.kind for layer in all_layers):
        layers = [layer for layer in all_layers if layer.kind == kind]
        if kind in _LISTED:
            size = sum(_bytes(layer, by_layer).file_bytes for layer in layers)
            output.print(f"{kind}: {len(layers)} tensors in their own dtype, {size:,} bytes", soft_wrap=True)
            continue
        columns = _COLUMNS.get(kind) or list(dict.fromkeys(key for layer in layers for key in layer.details))
        rows = [
            [
                layer.name,
                "x".join(map(str, layer.shape)),
                *(_cell(layer.details.get(column)) for column in columns),
                f"{_bytes(layer, by_layer).file_bytes:,}",
            ]
            for layer in layers
        ]
        heads = ["layer", "shape", *(column.replace("_", " ") for column in columns), "bytes"]
        name = kind.replace("_", " ")
        ui.table(f"{name} (entropy in bits a value)" if "entropy" in columns else name, heads, rows)
    reasons: dict[str, list[str]] = {}
    for layer_name, reason in file.left.items():
        reasons.setdefault(reason, []).append(layer_name)
    for reason, names in reasons.items():
        more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
        output.print(f"{reason}: {', '.join(names[:_MANY])}{more}", soft_wrap=True)
    sizes = {part: count for part, count in file.ledger.whole.to_dict().items() if count}
    rows = [[part.removesuffix("_bytes").replace("_", " "), f"{count:,}"] for part, count in sizes.items()]
    ui.table(title, ["part", "bytes"], rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
