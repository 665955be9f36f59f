"""The page of the results of `published.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from published_networks import NETWORKS

__all__ = ["page"]

_HEAD = """# Published networks

This page takes networks that others have trained and published, and shows what their files become. Anybody can download
them: they are in packages of the package index. Nothing of them is in this repository, and each package has its own
licence.

One command downloads and measures, row by row, and goes on where it was stopped. Another makes this page from
[results/published/results.jsonl](results/published/results.jsonl), which the first one writes:

```sh
pip install 'ilwp-plugin[published]'
python examples/published.py
python examples/published.py --page docs/published.md
```

"""

_WEIGHTS = """## Without data

Each network is stored in three ways:

- *int8*: its weights as 8-bit integers with a scale for each output, and everything packed by zstd -19.
- *ilwp*: `ilwp compress` without options. The error of the weights is about that of int8.
- *half*: ilwp at half of int8's bytes, all weights on one grid. It shows what happens where a size is forced without
  data: some of these networks are of no use any more.

B are bytes. *cos* is the cosine between all outputs before and after, the mean over real inputs. *Error* is the squared
error of the outputs, relative to their variance over the inputs.

| network | published, B | zstd -19 | int8, B | cos, error | ilwp, B | cos, error | half, B | cos, error |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

_CALIBRATED = """
## With calibration

| network | published, B | ilwp, B | cos | error | most likely class agrees |
| --- | --- | --- | --- | --- | --- |
"""

_TOOLKITS = """
## Files that toolkits have quantized

With preset `lossless` not one value changes. An ONNX model gives the same outputs bit for bit, and of an OpenVINO model
`.xml` and `.bin` come back as they were. *QDQ* files are those of ONNX Runtime's `quantize_static` and of NNCF's
`nncf.quantize`: 8-bit integers by channel. *IR* are OpenVINO's files, quantized by NNCF or with weights of 16 bits.
Every file is smaller than what zstd and brotli make of it. Codes with a scale for each channel are spread differently
from row to row, so they are coded by classes of rows.

| file | as it is, B | zstd -19 | brotli 11 | ilwp lossless | of the best other | the same |
| --- | --- | --- | --- | --- | --- | --- |
"""

_PACKAGES = """
## Packages, licences, inputs

| network | package | file | licence | inputs |
| --- | --- | --- | --- | --- |
"""


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown.

    Args:
        rows: results by name.
    """
    networks = [(name, rows[name]) for name in NETWORKS if name in rows]
    text = _HEAD + _WEIGHTS + "".join(_network(name, row) for name, row in networks)
    if missing := [name for name in NETWORKS if name not in rows]:
        text += f"\nNot measured so far: {', '.join(missing)}.\n"
    calibrated = [row for row in rows.values() if row.get("kind") == "calibrated"]
    if calibrated:
        text += _CALIBRATED + "".join(_calibrated(row) for row in calibrated)
        text += "".join(_photos(row) for row in calibrated)
    toolkits = [(name, row) for name, row in rows.items() if "same" in row]
    if toolkits:
        text += _TOOLKITS + "".join(_toolkit(name, row) for name, row in toolkits)
    text += _PACKAGES
    for name, _ in networks:
        own = NETWORKS[name]
        member = f"*{own.member}" if own.member.startswith(".") else own.member
        text += f"| {name} | {own.package} | `{member}` | {own.licence} | {own.data} |\n"
    versions = sorted({tuple(sorted(row["versions"].items())) for row in rows.values()})
    lines = "".join(f"- {', '.join(f'{key} {value}' for key, value in own)}\n" for own in versions)
    return f"{text}\nVersions:\n\n{lines}"


def _network(name: str, row: Mapping[str, Any]) -> str:
    cells = [f"{row['bytes']:,}", f"{row['zstd']:,}"]
    for kind in ("int8", "ilwp", "half"):
        own = row[kind]
        cells += [f"{own['bytes']:,}", f"{own['cosine']:.4f}, {own['relative_error']:.2g}"]
    return f"| {name} | {' | '.join(cells)} |\n"


def _photos(row: Mapping[str, Any]) -> str:
    chosen, held_out = row["photos"]
    calibrated = f"It was calibrated on {row['inputs']} crops of {chosen} photos, and measured on {held_out} others."
    return f"\nThe step of {row['network']} is {row['step']}. {calibrated}\n"


def _calibrated(row: Mapping[str, Any]) -> str:
    own = row["ilwp"]
    agree = f"{own['agree']:.0%}"
    numbers = f"{own['cosine']:.4f} | {own['relative_error']:.3f} | {agree}"
    return f"| {row['network']} | {row['bytes']:,} | {own['bytes']:,} | {numbers} |\n"


def _toolkit(name: str, row: Mapping[str, Any]) -> str:
    best = min(row["bytes"], row["zstd"], row["brotli"])
    same = "yes" if row["same"] else "NO"
    sizes = " | ".join(f"{row[kind]:,}" for kind in ("bytes", "zstd", "brotli", "ilwp"))
    return f"| {name} | {sizes} | {row['ilwp'] / best:.3f} | {same} |\n"
