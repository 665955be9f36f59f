"""Train with the inter-layer loss, then with closed-loop quantization, and write the file.

    python examples/train.py                 digits, about a minute
    python examples/train.py --bits 4 --data fashion-mnist --data-folder FOLDER

Copy the loop: the lines that add ILWP to it are marked.
"""

import argparse

import torch
import torch.nn.functional as F

from ilwp_plugin import IlwpConfig, load
from ilwp_plugin.training import FakeQuantizer, InterLayerLoss, TrainingRun
from ilwp_plugin.zoo import accuracy, build_model, load_data

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--bits", type=int, default=4)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", default="model.ilwp")
options = parser.parse_args()

torch.manual_seed(0)
data = load_data(options.data, options.data_folder)
model = build_model("mobilenet", width=0.25, in_channels=data.channels, classes=data.classes)
steps_per_epoch = len(data.train_images) // 64
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps_per_epoch)

config = IlwpConfig.paper(bits=options.bits)  # ILWP
run = TrainingRun.of(optimizer, options.epochs * steps_per_epoch, schedule)  # ILWP
regularizer = InterLayerLoss(model, config, run=run)  # ILWP
print(f"weight of the inter-layer loss: {regularizer.loss_weight:.3g}")

for epoch in range(options.epochs):
    if epoch == options.epochs * 3 // 4:
        quantizer = FakeQuantizer(model, config)  # ILWP: from here on with the weights that the file will hold
    model.train()
    order = torch.randperm(len(data.train_images))
    for step in range(steps_per_epoch):
        batch = order[step * 64 : (step + 1) * 64]
        loss = F.cross_entropy(model(data.train_images[batch]), data.train_labels[batch])
        loss = loss + regularizer()  # ILWP
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    residual = float(regularizer.value().detach())
    print(f"epoch {epoch + 1}: mean residual {residual:.4f}, accuracy {accuracy(model, data):.2f} %")

quantizer.remove()  # ILWP
ledger = quantizer.compressed().save(options.out)  # ILWP

restored = build_model("mobilenet", width=0.25, in_channels=data.channels, classes=data.classes)
load(options.out).apply_to(restored)
print(
    f"{options.out}: depthwise layers {ledger.total_bytes:,} bytes, file {ledger.file_bytes:,} bytes, "
    f"accuracy of the restored model {accuracy(restored, data):.2f} %"
)
