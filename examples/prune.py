"""Prune a network with torch-pruning, with and without inter-layer weight prediction.

pip install 'ilwp-plugin[pruning,report]'
python examples/prune.py                                          digits, some minutes
python examples/prune.py --data fashion-mnist --model trained.pt  a state dict of MobileNet width 0.5, 40 minutes

The network is made fit by `fine_tune` first; then channels are pruned and the rest is trained on: once plainly, stored
without prediction, and once with the loss between every survivor and its reference, quantized in the loop.
"""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_pruning as tp
from ilwp_integrations.torch_pruning import IlwpImportance, IlwpPruner, ProvenanceTracker
from torch.utils.data import TensorDataset

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.demo import initial_model, preset, trained_model
from ilwp_plugin.training import FineTuning, InterLayerLoss, fine_tune
from ilwp_plugin.zoo import accuracy, load_data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--model", help="state dict of the trained network; trains it first if not given")
parser.add_argument("--network", default="mobilenet")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=3, help="of each fine-tuning")
parser.add_argument("--loss-weight", type=float, default=25.0)
parser.add_argument("--out", type=Path, default=Path())
options = parser.parse_args()

settings = preset(options.data, model=options.network, seed=options.seed)
data = load_data(options.data, options.data_folder)
model = trained_model(settings, data, options.model)
model.to(memory_format=torch.channels_last)
images = data.train_images.contiguous(memory_format=torch.channels_last)
samples, example = TensorDataset(images, data.train_labels), data.train_images[:16]

predicted = IlwpConfig(bits=4, anchor="fp16", loss_weight=options.loss_weight)
plain = IlwpConfig(mode="none", loss_weight=0.0, coder="huffman")
plan = FineTuning(epochs=options.epochs, batch=settings.batch, seed=options.seed)


def task(network, batch):
    return F.cross_entropy(network(batch[0]), batch[1])


def row(pruned, method, network, result, references=None):
    residual = InterLayerLoss(network, predicted, references=references).value().item()
    ledger = result.compressed.ledger
    print(
        f"| {pruned} | {method} | {ledger.total_bytes:,} | {ledger.file_bytes:,} | {accuracy(network, data):.2f} | "
        f"{residual:.4f} |",
        flush=True,
    )


print(
    f"{settings}\n{plan}\nbefore: {accuracy(model, data):.2f} %, {compress(model, plain).ledger.total_bytes:,} bytes\n"
)
print("| pruned | method | depthwise B | file B | accuracy % | mean residual |\n| --- | --- | --- | --- | --- | --- |")
without, with_ilwp = copy.deepcopy(model), copy.deepcopy(model)
row("0 %", "none, 8 bits", without, fine_tune(without, samples, task, plain, plan))
whole = fine_tune(with_ilwp, samples, task, predicted.replace(align=True), plan, example_inputs=example)
row("0 %", "ilwp, 4 bits", with_ilwp, whole)

for ratio in (0.3, 0.5):
    network = copy.deepcopy(without)
    tp.pruner.BasePruner(
        network, example, tp.importance.MagnitudeImportance(), pruning_ratio=ratio, ignored_layers=[network.classifier]
    ).step()
    row(f"{ratio:.0%}", "none, 8 bits", network, fine_tune(network, samples, task, plain, plan))

    network = copy.deepcopy(with_ilwp)
    tracker = ProvenanceTracker(network)
    importance = IlwpImportance(tp.importance.MagnitudeImportance(), tracker)
    pruner = tp.pruner.BasePruner(
        network, example, importance, pruning_ratio=ratio, ignored_layers=[network.classifier]
    )
    IlwpPruner(pruner, tracker).step()
    origins = tracker.provenance
    path = options.out / f"pruned_{ratio:.0%}.ilwp"
    result = fine_tune(network, samples, task, predicted, plan, references=origins, out=path)
    row(f"{ratio:.0%}", "ilwp, 4 bits", network, result, origins)

    restored = load(path).restore(initial_model(settings, data))
    assert accuracy(restored, data) == accuracy(network, data), "the file alone restores into the original class"
