"""Make a trained network small: align, train on for three epochs with loss and quantizer, write the file.

pip install 'ilwp-plugin[pruning,report]'
python examples/fine_tune.py                                       digits: trains first, a minute in all
python examples/fine_tune.py --data fashion-mnist                  MobileNet width 0.5, 8 epochs first
python examples/fine_tune.py --data fashion-mnist --model trained.pt     or a state dict of that network
torchrun --nproc_per_node 2 examples/fine_tune.py                  every batch shared by two processes

Interrupted and called again with --checkpoint, it goes on where it was.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.demo import preset, trained_model
from ilwp_plugin.training import FineTuning, distillation_loss, fine_tune
from ilwp_plugin.zoo import accuracy, load_data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--model", help="state dict of the trained network; trains it first if not given")
parser.add_argument("--network", default="mobilenet")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--bits", type=int, default=4)
parser.add_argument("--residual-step", type=float, help="one step for all layers, instead of bits and range")
parser.add_argument("--anchor", default="fp16")
parser.add_argument("--range", default="max")
parser.add_argument("--loss-weight", type=float, help="automatic if not given")
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--quantize-from", type=float, default=0.0)
parser.add_argument("--distill", type=float, default=0.5, help="weight of the trained network's own outputs as targets")
parser.add_argument("--checkpoint", type=Path)
parser.add_argument("--out", type=Path, default=Path("model.ilwp"))
options = parser.parse_args()

if "RANK" in os.environ:  # set by torchrun
    dist.init_process_group("gloo")
first = int(os.environ.get("RANK", "0")) == 0

settings = preset(options.data, model=options.network, seed=options.seed)
data = load_data(options.data, options.data_folder)
model = trained_model(settings, data, options.model)
model.to(memory_format=torch.channels_last)
images = data.train_images.contiguous(memory_format=torch.channels_last)
with torch.no_grad():
    model.eval()
    teacher = torch.cat([model(part) for part in images.split(1000)])
baseline, before = (
    compress(model, IlwpConfig.paper(mode="none", coder="huffman")).ledger.total_bytes,
    accuracy(model, data),
)

config = IlwpConfig.paper(
    bits=options.bits,
    anchor=options.anchor,
    range=options.range,
    residual_step=options.residual_step,
    align=True,
    loss_weight="auto" if options.loss_weight is None else options.loss_weight,
)
plan = FineTuning(
    epochs=options.epochs, batch=settings.batch, lr=options.lr, quantize_from=options.quantize_from, seed=options.seed
)


def loss(network: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Of labels, and of the outputs that the network had before."""
    return distillation_loss(network(batch[0]), batch[1], batch[2], share=options.distill)


result = fine_tune(
    model,
    TensorDataset(images, data.train_labels, teacher),
    loss,
    config,
    plan,
    example_inputs=data.train_images[:16],
    checkpoint=options.checkpoint,
    out=options.out,
)
if first:
    total = result.compressed.ledger.total_bytes
    print(f"{settings}\n{plan}\n{config!r}\nloss weight {result.loss_weight:.4g}")
    print(f"before: {baseline:,} bytes (none, 8 bits, Huffman) at {before:.2f} %")
    print(f"after: {total:,} bytes, {total / baseline:.3f} of that, at {accuracy(model, data):.2f} %")
if dist.is_initialized():
    dist.destroy_process_group()
