"""Prune a network with torch-pruning, with and without inter-layer weight prediction.

pip install 'ilwp-plugin[pruning,report]'
python examples/prune.py                                          digits, some minutes
python examples/prune.py --data fashion-mnist --model trained.pt  a state dict of MobileNet width 0.5, 40 minutes

Without: channels of the trained network are pruned by magnitude, and the rest is trained on.

With: the network is made fit by `fine_tune` first, its channels aligned so that kernels and references are equally
important; then families of kernels are pruned, and the rest is trained on with the loss between every survivor and its
reference, quantized in the loop.

All are trained towards the labels and the outputs of the network as it was.
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
import torch_pruning as tp
from ilwp_integrations.torch_pruning import Coupling, IlwpImportance, IlwpPruner, ProvenanceTracker
from torch.utils.data import TensorDataset

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.demo import initial_model, preset, trained_model
from ilwp_plugin.training import FineTuning, InterLayerLoss, distillation_loss, fine_tune
from ilwp_plugin.zoo import accuracy, load_data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--model", help="state dict of the trained network; trains it first if not given")
parser.add_argument("--network", default="mobilenet")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=3, help="of each fine-tuning")
parser.add_argument("--ratios", type=float, nargs="*", default=[0.3, 0.5])
parser.add_argument("--out", type=Path, default=Path())
options = parser.parse_args()

settings = preset(options.data, model=options.network, seed=options.seed)
data = load_data(options.data, options.data_folder)
model = trained_model(settings, data, options.model)
model.to(memory_format=torch.channels_last)
images = data.train_images.contiguous(memory_format=torch.channels_last)
with torch.no_grad():
    model.eval()
    teacher = torch.cat([model(part) for part in images.split(1000)])
samples, example = TensorDataset(images, data.train_labels, teacher), data.train_images[:16]

predicted = IlwpConfig(bits=4, anchor="fp16")  # the weight of the loss is chosen anew for each fine-tuning
plain = IlwpConfig(mode="none", loss_weight=0.0)
plan = FineTuning(epochs=options.epochs, batch=settings.batch, seed=options.seed)
magnitude = tp.importance.MagnitudeImportance()


def distilled(network, batch):
    return distillation_loss(network(batch[0]), batch[1], batch[2])


def mean_residual(network, references=None):
    return InterLayerLoss(network, predicted.replace(loss_weight=0.0), references=references).value().item()


def row(pruned, method, network, compressed, references=None, before=None):
    """A line of the table; with the mean residual before training."""
    residual = mean_residual(network, references)
    print(
        f"| {pruned} | {method} | {compressed.ledger.total_bytes:,} | {compressed.ledger.file_bytes:,} | "
        f"{accuracy(network, data):.2f} | {'' if before is None else f'{before:.4f}'} | {residual:.4f} |",
        flush=True,
    )


print(f"{settings}\n{plan}\n")
print("| pruned | method | depthwise B | file B | accuracy % | residual before training | after |")
print("| --- | --- | --- | --- | --- | --- | --- |")
row("0 %", "none, 8 bits", model, compress(model, plain))

with_ilwp = copy.deepcopy(model)
coupler = partial(Coupling, importance=magnitude)  # brings together what is to be pruned together
whole = fine_tune(with_ilwp, samples, distilled, predicted, plan, example_inputs=example, coupler=coupler)
row("0 %", "ilwp, 4 bits", with_ilwp, whole.compressed)

for ratio in options.ratios:
    network = copy.deepcopy(model)
    tp.pruner.BasePruner(network, example, magnitude, pruning_ratio=ratio, ignored_layers=[network.classifier]).step()
    row(f"{ratio:.0%}", "none, 8 bits", network, fine_tune(network, samples, distilled, plain, plan).compressed)

    network = copy.deepcopy(with_ilwp)
    tracker = ProvenanceTracker(network)
    importance = IlwpImportance(magnitude, tracker)
    pruner = tp.pruner.BasePruner(
        network, example, importance, pruning_ratio=ratio, ignored_layers=[network.classifier]
    )
    IlwpPruner(pruner, tracker).step()
    origins = tracker.provenance
    before = mean_residual(network, origins)
    path = options.out / f"pruned_{ratio:.0%}.ilwp"
    result = fine_tune(network, samples, distilled, predicted, plan, references=origins, out=path)
    row(f"{ratio:.0%}", "ilwp, 4 bits", network, result.compressed, origins, before)

    restored = load(path).restore(initial_model(settings, data))
    assert accuracy(restored, data) == accuracy(network, data), "the file alone restores into the original class"
