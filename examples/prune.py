"""Prune a network with torch-pruning, with and without inter-layer weight prediction.

pip install 'ilwp-plugin[pruning,report]'
python examples/prune.py                                          digits, some minutes
python examples/prune.py --data fashion-mnist --model trained.pt  a state dict of MobileNet width 0.5, half an hour

none: channels of the trained network are pruned by magnitude, and the rest is trained on.

aligned: the same pruned network is aligned, and trained on with the loss, quantized in the loop: no more training than
without ilwp. This is the recipe for a network that was trained without the loss.

whole: like aligned, with every layer quantized in the loop, at steps that 2,000 training images choose: the whole file
is small, not the depthwise layers alone. This is what to use.

provenance: the network was made fit by `fine_tune` before it is pruned, its channels aligned so that kernels and
references are equally important. Then families of kernels are pruned, and the rest is trained on with the loss between
every survivor and the reference that it had. This is the recipe for a network that has ilwp already.

All are trained towards the labels and the outputs of the network as it was.
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
import torch_pruning as tp
from ilwp_integrations.torch_pruning import Coupling, IlwpImportance, IlwpPruner, ProvenanceTracker, align
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
parser.add_argument("--strength", type=float, default=0.0, help="of prediction costs in the importance of families")
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

predicted = IlwpConfig.paper(bits=4, anchor="fp16")  # the weight of the loss is chosen anew for each fine-tuning
plain = IlwpConfig.paper(mode="none", loss_weight=0.0)
inputs = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:2000]]
plan = FineTuning(epochs=options.epochs, batch=settings.batch, seed=options.seed)
magnitude = tp.importance.MagnitudeImportance()


def distilled(network, batch):
    return distillation_loss(network(batch[0]), batch[1], batch[2])


def mean_residual(network, references=None):
    return InterLayerLoss(network, predicted.replace(loss_weight=0.0), references=references).value().item()


def row(pruned, method, network, compressed, after=None, whole=None):
    """A line of the table; with the mean residual right after pruning, and relative to that of the whole network."""
    residual = "" if after is None else f"{after:.4f}" if whole is None else f"{after:.4f}, {after / whole:.2f} x"
    print(
        f"| {pruned} | {method} | {compressed.ledger.total_bytes:,} | {compressed.ledger.file_bytes:,} | "
        f"{accuracy(network, data):.2f} | {residual} |",
        flush=True,
    )


def check(path, network):
    """The file alone restores into the original class."""
    restored = load(path).restore(initial_model(settings, data))
    assert accuracy(restored, data) == accuracy(network, data)


def pruner_of(network, importance, ratio):
    return tp.pruner.BasePruner(network, example, importance, pruning_ratio=ratio, ignored_layers=[network.classifier])


print(f"{settings}\n{plan}\n")
print("| pruned | method | depthwise B | file B | accuracy % | residual right after pruning |")
print("| --- | --- | --- | --- | --- | --- |")
row("0 %", "none, 8 bits", model, compress(model, plain))

aligned = copy.deepcopy(model)
align(aligned, example, predicted)
residual_aligned = mean_residual(aligned)

with_ilwp = copy.deepcopy(model)
coupler = partial(Coupling, importance=magnitude)  # brings together what is to be pruned together
whole = fine_tune(with_ilwp, samples, distilled, predicted, plan, example_inputs=example, coupler=coupler)
residual_trained = mean_residual(with_ilwp)
row("0 %", "provenance, 4 bits", with_ilwp, whole.compressed, residual_trained)

for ratio in options.ratios:
    pruned = copy.deepcopy(model)
    pruner_of(pruned, magnitude, ratio).step()

    network = copy.deepcopy(pruned)
    row(f"{ratio:.0%}", "none, 8 bits", network, fine_tune(network, samples, distilled, plain, plan).compressed)

    network, path = copy.deepcopy(pruned), options.out / f"aligned_{ratio:.0%}.ilwp"
    align(network, example, predicted)
    after = mean_residual(network)
    result = fine_tune(network, samples, distilled, predicted, plan, out=path)
    row(f"{ratio:.0%}", "aligned, 4 bits", network, result.compressed, after, residual_aligned)
    check(path, network)

    network, path = copy.deepcopy(pruned), options.out / f"whole_{ratio:.0%}.ilwp"
    align(network, example)
    after = mean_residual(network)
    result = fine_tune(network, samples, distilled, IlwpConfig(), plan, calibration=inputs, out=path)
    row(f"{ratio:.0%}", "whole", network, result.compressed, after, residual_aligned)
    check(path, network)

    network, path = copy.deepcopy(with_ilwp), options.out / f"provenance_{ratio:.0%}.ilwp"
    tracker = ProvenanceTracker(network)
    IlwpPruner(pruner_of(network, IlwpImportance(magnitude, tracker, strength=options.strength), ratio), tracker).step()
    origins = tracker.provenance
    after = mean_residual(network, origins)
    result = fine_tune(network, samples, distilled, predicted, plan, references=origins, out=path)
    row(f"{ratio:.0%}", "provenance, 4 bits", network, result.compressed, after, residual_trained)
    check(path, network)
