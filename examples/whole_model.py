"""A whole trained network in one small file, without training it any further: bytes and accuracy at given steps.

pip install 'ilwp-plugin[report]'
python examples/whole_model.py                                        digits: trains first, a minute in all
python examples/whole_model.py --data fashion-mnist --steps 0.06 0.09
python examples/whole_model.py --data fashion-mnist --model trained.pt     a state dict of that network
python examples/whole_model.py --data fashion-mnist --max-drop 0.3 0.7     searches, a minute or two each
"""

import argparse
import copy
import json
import time

import torch

from ilwp_plugin import IlwpConfig, compress, loads
from ilwp_plugin.demo import preset, trained_model
from ilwp_plugin.zoo import accuracy, load_data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--network", default="mobilenet")
parser.add_argument("--model", help="state dict of the trained network; trains it first if not given")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--images", type=int, default=2000, help="calibration images, of the training set")
parser.add_argument("--steps", type=float, nargs="+", default=[0.06, 0.09])
parser.add_argument("--max-drop", type=float, nargs="+", help="points of accuracy; finds the steps, instead of --steps")
parser.add_argument(
    "--set", nargs=2, action="append", default=[], metavar=("FIELD", "JSON"), help="of the configuration"
)
options = parser.parse_args()

settings = preset(options.data, model=options.network, seed=options.seed)
data = load_data(options.data, options.data_folder)
model = trained_model(settings, data, options.model)
model.eval()
chosen = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(0))[: options.images]
calibration = data.train_images[chosen]
fp32 = 4 * sum(parameter.numel() for parameter in model.parameters())
before = accuracy(model, data)
print(f"{settings}\nfp32: {fp32:,} bytes, {before:.2f} %, {len(calibration)} calibration images")

trials = [(f"{step}", step, {}) for step in options.steps]
if options.max_drop:
    evaluate = {"evaluate": lambda network: accuracy(network, data)}
    trials = [(f"for {drop} points", None, {"max_drop": drop, **evaluate}) for drop in options.max_drop]
print("| step | bytes | of fp32 | depthwise | other layers | batch norms | accuracy % | change | seconds |")
print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
for title, step, target in trials:
    config = IlwpConfig.whole_model(step, **{field: json.loads(value) for field, value in options.set})
    start = time.perf_counter()
    file = compress(model, config, calibration=calibration, example_inputs=calibration[:2], **target).to_bytes()
    seconds = time.perf_counter() - start
    restored = copy.deepcopy(model)
    stored = loads(file)
    stored.apply_to(restored)
    after, ledger = accuracy(restored, data), stored.ledger
    print(
        f"| {title} | {len(file):,} | 1/{fp32 / len(file):.1f} | {ledger.total_bytes:,} | {ledger.grid_bytes:,} "
        f"| {ledger.batch_norm_bytes:,} | {after:.2f} | {after - before:+.2f} | {seconds:.0f} |"
    )
