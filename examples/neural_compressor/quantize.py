"""ilwp as an algorithm of Intel Neural Compressor: after training, with training, tuned, and under static INT8.

    pip install 'ilwp-plugin[inc,report]'
    python examples/neural_compressor/quantize.py                        digits, about a minute
    python examples/neural_compressor/quantize.py --data fashion-mnist   MobileNet width 0.5, half an hour

With --checkpoint, a state dict of the network, the first training is not needed; --only runs some of the parts.
"""

import argparse
import copy
import logging
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from ilwp_integrations.neural_compressor import IlwpConfig, autotune, load, regularizer, save, stack
from neural_compressor.torch.quantization import INT8StaticQuantConfig, TuningConfig, quantize
from torch import Tensor, nn, optim, randperm

from ilwp_plugin.demo import initial_model, preset
from ilwp_plugin.training import TrainingRun
from ilwp_plugin.zoo import Recipe, accuracy, load_data, train

logging.getLogger("neural_compressor").setLevel(logging.ERROR)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits")
parser.add_argument("--data-folder")
parser.add_argument("--model", default="mobilenet")
parser.add_argument("--checkpoint")
parser.add_argument("--epochs", type=int, help="of each of the two trainings")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out", help="folder for the files")
EPOCHS_WITH_RATE = 3
PARTS = ("after", "with", "rate", "tune", "static")
parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which parts to run; all if not given")
options = parser.parse_args()

settings = preset(options.data, model=options.model, epochs=options.epochs, seed=options.seed)
data = load_data(options.data, options.data_folder)
model = initial_model(settings, data)
if options.checkpoint:
    model.load_state_dict(torch.load(options.checkpoint, weights_only=True))
else:
    train(model, data, Recipe(settings.epochs, settings.batch, seed=settings.seed))
model.eval()
examples = data.train_images[:256]  # traces the model; also calibrates it


def report(title: str, quantized: nn.Module) -> None:
    """Save, load into a fresh model, and evaluate that."""
    ledger = save(quantized, Path(options.out) / f"{title}.ilwp")
    restored = load(Path(options.out) / f"{title}.ilwp", initial_model(settings, data).eval(), examples)
    print(f"{title}: {ledger.file_bytes:,} bytes, accuracy {accuracy(restored, data):.2f} %", flush=True)


def train_epochs(
    network: nn.Module,
    epochs: int,
    optimizer: optim.Optimizer,
    schedule: optim.lr_scheduler.LRScheduler,
    losses: Callable[[], Tensor],
) -> None:
    """The loop of both trainings."""
    batches = len(data.train_images) // settings.batch
    network.train()
    for _ in range(epochs):
        for batch in randperm(len(data.train_images)).split(settings.batch)[:batches]:
            loss = F.cross_entropy(network(data.train_images[batch]), data.train_labels[batch]) + losses()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def train_with_loss(network: nn.Module) -> None:
    """The user's own training loop; INC calls it between `prepare` and `convert`."""
    batches = len(data.train_images) // settings.batch
    steps = settings.epochs * batches
    optimizer = optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, cycle_momentum=False)
    losses = regularizer(network, TrainingRun.of(optimizer, steps, schedule))
    train_epochs(network, settings.epochs, optimizer, schedule, losses)


def train_with_rate(network: nn.Module) -> None:
    """Likewise, for a network that is trained already and a configuration with a rate, which wants AdamW."""
    batches = len(data.train_images) // settings.batch
    steps = EPOCHS_WITH_RATE * batches
    optimizer = optim.AdamW(network.parameters(), 0.001, weight_decay=0.0)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    train_epochs(network, EPOCHS_WITH_RATE, optimizer, schedule, regularizer(network))


def tune(title: str, config: IlwpConfig, describe: Callable[[IlwpConfig], str]) -> None:
    """The smallest file of a set of configurations that costs half a point of accuracy at most."""
    tuned = autotune(
        model,
        TuningConfig(config_set=[config]),
        eval_fn=lambda network: accuracy(network, data),
        criterion=lambda before, after: after >= before - 0.5,
        example_inputs=examples,
    )
    for trial in tuned.trials:
        verdict = "passes" if trial.passed else "fails"
        print(f"  {describe(trial.config)}: {trial.file_bytes:,} bytes, {trial.result:.2f} %, {verdict}")
    report(title, tuned.model)


size = sum(tensor.nbytes for tensor in model.state_dict().values())
print(f"{settings}\nfp32: {size:,} bytes, accuracy {accuracy(model, data):.2f} %")

if "after" in options.only:
    report("after training", quantize(copy.deepcopy(model), IlwpConfig(), example_inputs=examples))
if "with" in options.only:
    untrained = initial_model(settings, data)
    report("with training", quantize(untrained, IlwpConfig(), run_fn=train_with_loss, example_inputs=examples))
if "rate" in options.only:
    smallest = IlwpConfig(weight_step=0.1, rate=0.5)
    model_under_rate = quantize(copy.deepcopy(model), smallest, run_fn=train_with_rate, example_inputs=examples)
    report("with a rate", model_under_rate)
    stacked = [IlwpConfig(weight_step=0.1, rate=0.5), INT8StaticQuantConfig()]
    report("with a rate, and static INT8", stack(copy.deepcopy(model), stacked, examples, run_fn=train_with_rate))
if "tune" in options.only:
    depthwise = IlwpConfig(preset="paper", bits=[3, 4, 5, 6, 7, 8], mode=["collocated", "none"])
    tune("tuned", depthwise, lambda trial: f"{trial.mode}, {trial.bits} bits")
    steps = [0.04, 0.05, 0.06, 0.07, 0.08, 0.1]
    tune("tuned, all layers", IlwpConfig(weight_step=steps), lambda trial: f"step {trial.weight_step}")
if "static" in options.only:
    report("static INT8 alone", stack(copy.deepcopy(model), [INT8StaticQuantConfig()], examples))
    report("ilwp and static INT8", stack(copy.deepcopy(model), [IlwpConfig(), INT8StaticQuantConfig()], examples))
