"""Train under NNCF's JSON config, on NNCF 2.19 and on NNCF 3.

    ilwp run examples/nncf/train.py --config examples/nncf/configs/ilwp.json

The loop is NNCF's own and knows nothing of ilwp: what to do stands in the JSON. Only the last lines, which write the
`.ilwp` file, do.
"""

import argparse
import json
import logging
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from nncf import NNCFConfig
from nncf.common.quantization.structs import QuantizationScheme
from nncf.torch import create_compressed_model, register_default_init_args
from torch.utils.data import DataLoader, TensorDataset

from ilwp_plugin import load
from ilwp_plugin.zoo import Recipe, accuracy, build_model, load_data, train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--config", required=True, help="NNCF's JSON")
parser.add_argument("--data", default="digits", help="digits or fashion-mnist")
parser.add_argument("--data-folder")
parser.add_argument("--images", type=int, help="train on so many of the images only")
parser.add_argument("--model", default="mobilenetv2")
parser.add_argument("--width", type=float, default=0.25)
parser.add_argument("--stem-stride", type=int, default=2)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--lr", type=float, default=0.02)
parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="adamw, at .001, for a rate")
parser.add_argument("--start", help="state dict of a trained model to start from")
parser.add_argument("--pretrain", type=int, default=30, help="else so many epochs without NNCF come first")
parser.add_argument("--without", default="", help="leave out this algorithm of the config, to compare")
parser.add_argument("--resume", help="go on from a run's checkpoint; not with Python 3.11.0 to 3.11.3")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/nncf", help="folder")
options = parser.parse_args()

logging.getLogger("nncf").setLevel(logging.WARNING)
torch.manual_seed(options.seed)
out = Path(options.out)
out.mkdir(parents=True, exist_ok=True)
data = load_data(options.data, options.data_folder)
images, labels = data.train_images[: options.images], data.train_labels[: options.images]
model = build_model(
    options.model,
    width=options.width,
    stem_stride=options.stem_stride,
    in_channels=data.channels,
    classes=data.classes,
)
if options.start:
    model.load_state_dict(torch.load(options.start, weights_only=True))
elif not options.resume:
    train(model, data, Recipe(epochs=options.pretrain, batch=options.batch, seed=options.seed))
    print(f"before compression: accuracy {accuracy(model, data):.2f} %", flush=True)
model.to(memory_format=torch.channels_last)  # faster on a CPU
images = images.contiguous(memory_format=torch.channels_last)

values = json.loads(Path(options.config).read_text())
sections = values["compression"] if isinstance(values["compression"], list) else [values["compression"]]
values["compression"] = [section for section in sections if section["algorithm"] != options.without]
values |= {"input_info": {"sample_size": [2, *images.shape[1:]]}, "log_dir": str(out)}
config = NNCFConfig.from_dict(values)
loader = DataLoader(TensorDataset(images, labels), batch_size=options.batch)
config = register_default_init_args(config, loader)
# What is in the state of NNCF beside plain values.
torch.serialization.add_safe_globals([QuantizationScheme, import_module("nncf.api.compression").CompressionStage])
checkpoint = torch.load(options.resume, weights_only=True) if options.resume else None
state = checkpoint["compression"] if checkpoint else None
compression_ctrl, model = create_compressed_model(model, config, compression_state=state, dump_graphs=False)

steps = len(images) // options.batch
trained = [p for p in model.parameters() if p.requires_grad]
optimizer: torch.optim.Optimizer
if options.optimizer == "adamw":
    optimizer = torch.optim.AdamW(trained, options.lr, weight_decay=0.0)
else:
    optimizer = torch.optim.SGD(trained, options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
first = 0
if checkpoint:
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    schedule.load_state_dict(checkpoint["schedule"])
    first = checkpoint["epoch"] + 1
    torch.set_rng_state(checkpoint["random"])  # the masks of rb_sparsity are drawn

for epoch in range(first, options.epochs):
    compression_ctrl.scheduler.epoch_step(epoch)
    model.train()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
    for step in range(steps):
        compression_ctrl.scheduler.step()
        batch = order[step * options.batch : (step + 1) * options.batch]
        loss = F.cross_entropy(model(images[batch]), labels[batch]) + compression_ctrl.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    torch.save(
        {
            "model": model.state_dict(),
            "compression": compression_ctrl.get_compression_state(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "epoch": epoch,
            "random": torch.get_rng_state(),
        },
        out / "checkpoint.pt",
    )

print(compression_ctrl.statistics().to_str())
model.eval()
with torch.no_grad():
    expected = model(data.test_images[:1000])
compression_ctrl.export_model(str(out / "model.onnx"))
ledger = compression_ctrl.save_ilwp(out / "model.ilwp")

restored = compression_ctrl.strip()
with torch.no_grad():
    difference = (restored.eval()(data.test_images[:1000]) - expected).abs() / expected.abs().max()
for parameter in restored.parameters():
    torch.nn.init.zeros_(parameter)  # so that what is measured can only come from the file
load(out / "model.ilwp").apply_to(restored)
convolutions = {f"{n}.weight": m for n, m in restored.named_modules() if isinstance(m, torch.nn.Conv2d)}
depthwise = {n for n, m in convolutions.items() if m.groups == m.in_channels > 1}


def zeros(names: Iterable[str]) -> float:
    weights = [convolutions[name].weight for name in names]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


result = {
    "accuracy": accuracy(restored, data),
    "strip_difference": float(difference.max()),
    "mean_strip_difference": float(difference.mean()),
    "sparsity": zeros(convolutions),
    "depthwise_sparsity": zeros(depthwise),
    "depthwise_bytes": sum(size.file_bytes for name, size in ledger.layers.items() if name in depthwise),
    "file_bytes": ledger.file_bytes,
}
(out / "result.json").write_text(json.dumps(result, indent=1))
print(json.dumps(result))
