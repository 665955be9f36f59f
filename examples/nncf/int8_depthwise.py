"""How depthwise layers are best stored beside int8: on ilwp's grid, or as int8 codes that predict each other?

    python examples/nncf/int8_depthwise.py out/nncf-table/aligned.pt out/nncf-table/ilwp/checkpoint.pt

Each file holds a MobileNetV2 of width 0.5 from `table.py`: before fine-tuning with the inter-layer loss, and after it.
int8 is NNCF's: symmetric, one scale for each channel.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

import torch
from nncf.common.quantization.structs import QuantizationScheme

from ilwp_plugin import CompressedModel, IlwpConfig, IntegerTensor, compress
from ilwp_plugin.zoo import build_model


def bytes_of(file: CompressedModel, layers: list[str]) -> int:
    sizes = file.ledger.layers
    return sum(sizes[f"{layer}.weight"].file_bytes for layer in layers)


safe: list[type] = [QuantizationScheme]  # what is in the state of NNCF beside plain values
if find_spec("nncf.api") is not None:  # 2.19
    safe.append(import_module("nncf.api.compression").CompressionStage)
torch.serialization.add_safe_globals(safe)
print("| weights | bits on ilwp's grid | depthwise B | as int8 codes, B |")
print("| --- | --- | --- | --- |")
for path in sys.argv[1:]:
    loaded = torch.load(path, weights_only=True)
    model = build_model("mobilenetv2", width=0.5, stem_stride=2, in_channels=1)
    found = loaded.get("model", loaded)
    model.load_state_dict({key: found[key] for key in model.state_dict()})
    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and m.groups == m.in_channels > 1]
    state, codes = dict(model.state_dict()), {}
    for layer in layers:
        weight = state[f"{layer}.weight"]
        scale = weight.abs().amax(dim=(1, 2, 3)) / 127
        codes[layer] = IntegerTensor(torch.round(weight / scale.clamp(min=1e-12)[:, None, None, None]).short(), scale)

    on_grid = {f"{layer}.weight": value.restore() for layer, value in codes.items()}
    int8 = bytes_of(compress({**state, **on_grid}, IlwpConfig.paper(bits=None), quantized=codes), layers)
    for bits in (8, 6, 4):
        stored = bytes_of(compress(state, IlwpConfig.paper(bits=bits, layers=layers)), layers)
        print(f"| {path} | {bits} | {stored:,} | {int8:,} |")
