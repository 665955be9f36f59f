"""Figures of alignment: residuals before and after, where the best references are, rate and accuracy.

pip install 'ilwp-plugin[pruning,report]'
python examples/alignment_figures.py --out figures                         digits, a minute
python examples/alignment_figures.py --data fashion-mnist --model trained.pt
"""

import argparse
import copy
from pathlib import Path

import matplotlib
import torch
from ilwp_integrations.torch_pruning import align

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.analysis import analyze
from ilwp_plugin.demo import preset, trained_model
from ilwp_plugin.zoo import accuracy, load_data

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--model", help="state dict of the trained network; trains it first if not given")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("figures"))
options = parser.parse_args()

settings = preset(options.data, seed=options.seed)
data = load_data(options.data, options.data_folder)
model = trained_model(settings, data, options.model)
aligned = copy.deepcopy(model)
align(aligned, data.train_images[:16])
options.out.mkdir(parents=True, exist_ok=True)
analyze({"as trained": model, "aligned": aligned}, options.out)  # histograms and heat maps

figure, axes = plt.subplots(figsize=(6, 4))
best = accuracy(model, data)
variants = (("none", model, "none"), ("collocated", model, "collocated"), ("aligned", aligned, "collocated"))
for title, network, mode in variants:
    sizes, accuracies = [], []
    for bits in range(3, 9):
        compressed = compress(network, IlwpConfig.paper(mode=mode, bits=bits, anchor="fp16"))
        restored = copy.deepcopy(network)
        compressed.apply_to(restored)
        with torch.no_grad():
            accuracies.append(accuracy(restored, data))
        sizes.append(compressed.ledger.total_bytes)
        print(f"| {title} | {bits} | {sizes[-1]:,} | {accuracies[-1]:.2f} |", flush=True)
    axes.plot(sizes, accuracies, marker="o", label=title)
axes.set(xlabel="bytes of the depthwise layers", ylabel="accuracy, %", title="3 to 8 bits, without any training")
axes.set_ylim(best - 4, best + 0.3)  # 3 bits without alignment fall far below
axes.legend()
figure.savefig(options.out / "rate_accuracy.png", dpi=120, bbox_inches="tight")
