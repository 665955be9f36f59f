"""Every stack with and without ilwp, on Fashion-MNIST: fine-tunings of one trained, aligned MobileNetV2.

    OMP_NUM_THREADS=1 python examples/nncf/table.py --out out/nncf-table

The same command runs on NNCF 2.19 and on NNCF 3. The network is trained and aligned once, by the first of them that has
torch-pruning. Runs that are done already (their result.json is there) are not run again, so an interrupted table goes
on where it was. Without ilwp in the config the file stores the depthwise layers in 8 bits without prediction, or in
NNCF's int8.
"""

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from ilwp_plugin.demo import initial_model, preset
from ilwp_plugin.zoo import Recipe, load_data, train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", default="out/nncf-table", type=Path)
parser.add_argument("--data-folder")
parser.add_argument("--images", type=int, default=7500)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--stacks", nargs="*", help="names of configs; all by default")
options = parser.parse_args()

here = Path(__file__).parent
stacks = options.stacks or ["ilwp", "magnitude_sparsity", "rb_sparsity", "filter_pruning", "int8", "all"]
configs = [here / "configs" / f"{name}.json" for name in stacks]
base, aligned = options.out / "base.pt", options.out / "aligned.pt"
options.out.mkdir(parents=True, exist_ok=True)
if not aligned.exists():
    from ilwp_integrations.torch_pruning import align

    data = load_data("fashion-mnist", options.data_folder)
    settings = preset("fashion-mnist", model="mobilenetv2")
    model = initial_model(settings, data)
    if base.exists():
        model.load_state_dict(torch.load(base, weights_only=True))
    else:
        train(model, data, Recipe(epochs=settings.epochs, batch=settings.batch, seed=settings.seed))
        torch.save(model.state_dict(), base)
    align(model, data.train_images[:2])
    torch.save(model.state_dict(), aligned)


def run(config: Path, without: str) -> dict[str, float]:
    out = options.out / f"nncf-{version('nncf')}" / (config.stem + ("-without" if without else ""))
    if not (out / "result.json").exists():
        command = [Path(sys.executable).parent / "ilwp", "run", "--toolkit", "nncf", here / "train.py"]
        command += ["--config", config, "--data", "fashion-mnist", "--width", "0.5", "--start", aligned, "--out", out]
        command += ["--images", options.images, "--epochs", options.epochs, "--batch", options.batch, "--lr", 0.05]
        command += ["--data-folder", options.data_folder] if options.data_folder else []
        command += ["--without", without] if without else []
        command += ["--resume", out / "checkpoint.pt"] if (out / "checkpoint.pt").exists() else []
        subprocess.run([*map(str, command)], check=True)
    return json.loads((out / "result.json").read_text())


print(f"NNCF {version('nncf')}\n")
print(
    "| stack | accuracy %, without | with | sparsity % | depthwise B, without | with | ratio | file B, without | with |"
)
print("|" + " --- |" * 9)
for config in configs:
    before, after = run(config, "ilwp"), run(config, "")
    print(
        f"| {config.stem} | {before['accuracy']:.2f} | {after['accuracy']:.2f} | {100 * after['sparsity']:.0f} "
        f"| {before['depthwise_bytes']:,} | {after['depthwise_bytes']:,} "
        f"| {after['depthwise_bytes'] / before['depthwise_bytes']:.3f} "
        f"| {before['file_bytes']:,} | {after['file_bytes']:,} |",
        flush=True,
    )
