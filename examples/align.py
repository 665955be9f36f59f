"""Align a network that was trained without the inter-layer loss, and compress it without any training.

pip install 'ilwp-plugin[pruning,report]'
python examples/align.py                         digits, half a minute
python examples/align.py --data fashion-mnist    MobileNet width 0.5, 8 epochs, some minutes
"""

import argparse
import copy

from ilwp_integrations.torch_pruning import align

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.demo import preset, trained_model
from ilwp_plugin.zoo import accuracy, load_data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--model", help="state dict of the trained network; trains it first if not given")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int)
options = parser.parse_args()

settings = preset(options.data, epochs=options.epochs, seed=options.seed)
data = load_data(options.data, options.data_folder)
model = trained_model(settings, data, options.model)
baseline = compress(model, IlwpConfig.paper(mode="none", coder="huffman")).ledger.total_bytes
print(f"{settings}\nfp32 accuracy {accuracy(model, data):.2f} %, baseline (none, 8 bits) {baseline:,} bytes")

print("| bits | weights | total B | of baseline | accuracy % |\n| --- | --- | --- | --- | --- |")
for bits in (8, 6, 5, 4):
    for title in ("none", "collocated", "aligned"):
        config = IlwpConfig.paper(
            mode="none" if title == "none" else "collocated", bits=bits, anchor="fp16", coder="huffman"
        )
        network = copy.deepcopy(model)
        if title == "aligned":
            report = align(network, data.train_images[:16], config)
        compressed = compress(network, config)
        compressed.apply_to(network)
        total = compressed.ledger.total_bytes
        print(f"| {bits} | {title} | {total:,} | {total / baseline:.3f} | {accuracy(network, data):.2f} |")
print(
    f"alignment: {len(report.aligned)} layers, refused {dict(report.refused)}, outputs changed by {report.change:.1e}"
)
