"""What Neural Compressor and ilwp make of one network: accuracy, bytes as the toolkit holds them, bytes of the file.

    pip install 'ilwp-plugin[inc,report]'
    python examples/neural_compressor/compare.py                        digits, some minutes
    python examples/neural_compressor/compare.py --data fashion-mnist   the table of docs/neural_compressor.md

Without --checkpoint, a state dict of the network, it is trained first.
"""

import argparse
import copy
import logging
import tempfile
from pathlib import Path

import torch
from ilwp_integrations.neural_compressor import IlwpConfig, compose, load, save, stack
from ilwp_integrations.neural_compressor.exported import activations, integer_weights, other_tensors
from neural_compressor.torch.quantization import (
    DynamicQuantConfig,
    INT8StaticQuantConfig,
    MixedPrecisionConfig,
    RTNConfig,
    quantize,
)
from torch import nn

from ilwp_plugin.demo import initial_model, preset
from ilwp_plugin.zoo import Recipe, accuracy, load_data, train

logging.getLogger("neural_compressor").setLevel(logging.ERROR)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--model", default="mobilenetv2")
parser.add_argument("--checkpoint")
parser.add_argument("--epochs", type=int)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--step", type=float, help="of the grids, in the mean; one that the outputs bear if not given")
options = parser.parse_args()

settings = preset(options.data, model=options.model, epochs=options.epochs, seed=options.seed)
data = load_data(options.data, options.data_folder)
model = initial_model(settings, data)
if options.checkpoint:
    model.load_state_dict(torch.load(options.checkpoint, weights_only=True))
else:
    train(model, data, Recipe(settings.epochs, settings.batch, seed=settings.seed))
model = model.eval()
examples = data.train_images[:512]


def toolkit_bytes(network: nn.Module) -> int:
    """Weights in the dtype in which the toolkit computes with them, its scales, and everything else as it is."""
    if isinstance(network, torch.fx.GraphModule):
        weights = integer_weights(network)
        others = sum(t.nbytes for t in other_tensors(network, weights).values())
        codes = sum(w.value.codes.size + 4 * w.value.scale.size for w in weights.values())
        return codes + others + 5 * len(activations(network)[0])
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def row(title: str, kind: str, network: nn.Module, raw: int | None = None, saved: bool = True) -> None:
    """One line of the table; what is saved is restored into a fresh network, and that is evaluated."""
    file = "-"
    raw = toolkit_bytes(network) if raw is None else raw
    if saved:
        with tempfile.TemporaryDirectory() as folder:
            file = f"{save(network, folder).file_bytes:,}"
            network = load(Path(folder), initial_model(settings, data).eval(), examples)
    print(f"| {title} | {kind} | {accuracy(network, data):.2f} | {raw:,} | {file} |", flush=True)


def fresh() -> nn.Module:
    """The trained network, for INC to change."""
    return copy.deepcopy(model)


layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
half = toolkit_bytes(model) - sum(2 * p.numel() for layer in layers for p in layer.parameters())
chains = IlwpConfig(preset="paper")
grid = IlwpConfig() if options.step is None else IlwpConfig(weight_step=options.step)
static, dynamic = INT8StaticQuantConfig(), DynamicQuantConfig()
per_channel = DynamicQuantConfig(w_granularity="per_channel")
rtn = RTNConfig(use_layer_wise=False, bits=8)

print(f"{settings}\n\n| file | computes in | accuracy % | bytes in the toolkit | bytes of the file |")
print("| --- | --- | --- | --- | --- |")
row("fp32", "fp32", model, saved=False)
row("INC fp16", "fp16", quantize(fresh(), MixedPrecisionConfig()), half, saved=False)
row("ilwp, depthwise layers, 8 bits", "fp32", quantize(fresh(), chains, example_inputs=examples))
row("ilwp", "fp32", quantize(fresh(), grid, example_inputs=examples))
row("ilwp + RTN of linear layers", "fp32", quantize(fresh(), compose(grid, rtn), example_inputs=examples))
row("INC dynamic INT8", "INT8", stack(fresh(), [dynamic], examples))
row("ilwp + dynamic INT8 per channel", "INT8", stack(fresh(), [grid, per_channel], examples))
row("INC static INT8", "INT8", stack(fresh(), [static], examples))
row("ilwp, depthwise layers, 8 bits + static INT8", "INT8", stack(fresh(), [chains, static], examples))
row("ilwp + static INT8", "INT8", stack(fresh(), [grid, static], examples))
