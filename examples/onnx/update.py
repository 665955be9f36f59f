"""An update over the air as a small difference: what changed in the codes, entropy-coded.

python examples/onnx/update.py make OLD.ilwp NEW.onnx -o DIFFERENCE.ilwp    where models are made
python examples/onnx/update.py apply OLD.ilwp DIFFERENCE.ilwp -o NEW.ilwp   on the device: numpy alone

The new model is rounded to the steps of the old one, so that most codes stay or change by one. The difference is small
where the new model is near the old one: fine-tuned for a while at a small learning rate, or some layers only. It is a
.ilwp file itself, with all its checksums, and says which file it belongs to; what comes out is read back.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import ChainSection, GraphSection, GridSection, IlwpFile, IntegerTensor, RawSection, read, write


def grid_of(file: IlwpFile) -> dict[str, IntegerTensor]:
    """The tensors that are codes times a step, by name; kernels that others predict are near such."""
    found: dict[str, IntegerTensor] = {}
    for section in file.sections:
        if isinstance(section, GridSection):
            found.update({info.name: value for info, value in zip(section.infos, section.values, strict=True)})
        elif isinstance(section, ChainSection):
            for layer in section.layers:
                step = np.float32(0 if layer.quantized is None else layer.quantized.step)
                if step > 0:
                    restored = section.restore(layer.info.name)
                    codes = np.rint(restored.astype(np.float32) / step).astype(np.int16)
                    found[layer.info.name] = IntegerTensor(codes, np.asarray(step))
    return found


def make(old_path: Path, model: Path, out: Path) -> tuple[int, int]:
    """Write the difference; returns its bytes, and those of the new model as a file of its own."""
    import torch
    from ilwp_integrations.onnx import open_model

    from ilwp_plugin import compress

    old = read(old_path)
    network = open_model(model)
    if set(network.state) != set(old.names) or b"".join(graphs(old)) != network.rest[0].content:
        raise SystemExit("the two models differ in more than the values of their tensors: send the new one whole")
    state, changed = dict(network.state), {}
    for name, value in grid_of(old).items():
        scale = value.scale
        if scale.ndim:  # along its axis
            scale = scale.reshape([-1 if dim == value.axis else 1 for dim in range(value.codes.ndim)])
        weight = state[name].float().numpy()
        centred = np.rint(np.divide(weight, scale, out=np.zeros_like(weight), where=scale > 0)).clip(-32767, 32767)
        changed[name] = torch.from_numpy((centred - value.centred).astype(np.int16))
    others = {name: state[name] for name in old.names if name not in changed and old.info(name).storage != "alias"}
    same = [name for name, tensor in others.items() if np.array_equal(old.tensor(name), tensor.numpy())]
    for name in same:
        del others[name]
    difference = compress({**changed, **others}, "lossless", metadata={"difference_to": old.digest})
    return difference.save(out).file_bytes, compress(network).ledger.file_bytes


def graphs(file: IlwpFile) -> list[bytes]:
    """What the model is besides its tensors."""
    return [section.content for section in file.sections if isinstance(section, GraphSection)]


def apply(old_path: Path, difference_path: Path, out: Path) -> int:
    """Write the new model's file; returns its bytes. Needs numpy alone.

    Raises:
        FormatError: a file is damaged, or the difference belongs to another one.
    """
    old, difference = read(old_path), read(difference_path)
    if difference.metadata.get("difference_to") != old.digest:
        raise FormatError(f"{difference_path} is no difference to {old_path}", "form")
    changes, grid = difference.state(as_bits=True), grid_of(old)
    values = {
        name: IntegerTensor.from_centred(value.centred + changes[name], value.scale, value.zero_point, value.axis)
        for name, value in grid.items()
    }
    raw = {name: changes[name] for name in changes if name not in grid}
    for section in old.sections:
        raw.update({name: section.restore(name) for name in section.names if name not in changes})
    infos = [
        info if info.storage == "alias" else replace(info, storage="coded" if info.name in grid else "raw")
        for info in old.infos
    ]
    others = [section for section in old.sections if not section.names]
    coded = [
        GridSection([i for i in infos if i.name in values], [values[i.name] for i in infos if i.name in values], "auto")
    ]
    return write(out, infos, [*coded, *RawSection.split(infos, raw), *others]).file_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "apply"])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.what == "make":
        nbytes, whole = make(options.old, options.new, options.output)
        print(f"{options.output}: {nbytes:,} bytes; the new model alone takes {whole:,}")
    else:
        print(f"{options.output}: {apply(options.old, options.new, options.output):,} bytes")


if __name__ == "__main__":
    main()
