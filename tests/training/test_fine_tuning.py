import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ilwp_integrations.torch_pruning import Coupling
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.errors import ConfigError, FileError, IlwpWarning, TrainingError
from ilwp_plugin.training import FakeQuantizer, FineTuning, Progress, fine_tune, reestimate_batch_norms
from ilwp_plugin.training.fine_tuning import DEFAULT_RATE, drawn_inputs

from . import fine_tuning_process as process

ROOT = Path(__file__).parent.parent.parent


class Killed(BaseException):
    pass


def kill_at(step: int) -> Any:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return report


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(a, Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def checkpoint(folder: Path) -> Any:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def folders(tmp_path: Path, *names: str) -> list[Path]:
    made = [tmp_path / name for name in names]
    for folder in made:
        folder.mkdir()
    return made


@pytest.mark.parametrize("kill", [1, 3, 4, 5, 6, 10], ids=lambda step: f"after step {step}")
def test_resumed_run_ends_with_the_same_bits(tmp_path: Path, kill: int) -> None:
    """Weights, batch norms, optimizer, schedule, all random generators, and the file."""
    whole, broken = folders(tmp_path, "whole", "broken")
    model, result = process.run(whole, norms=True)
    with pytest.raises(Killed):
        process.run(broken, norms=True, report=kill_at(kill))
    torch.rand(7)
    resumed, again = process.run(broken, norms=True)
    assert same(dict(model.state_dict()), dict(resumed.state_dict()))
    assert same(checkpoint(whole), checkpoint(broken))
    assert (whole / "model.ilwp").read_bytes() == (broken / "model.ilwp").read_bytes()
    assert result.loss_weight == again.loss_weight and again.steps == process.STEPS


def start(folder: Path, *arguments: object, processes: int = 0) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes else []
    command = [sys.executable, *launcher, "-m", "tests.training.fine_tuning_process", str(folder)]
    command += [str(argument) for argument in arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)


@pytest.mark.parametrize("where", [("step", 5), ("write", 3)])
def test_killed_process(tmp_path: Path, where: tuple[str, int]) -> None:
    """SIGKILL between two checkpoints, and while one is being written."""
    whole, broken = folders(tmp_path, "whole", "broken")
    process.run(whole, norms=True)
    first = start(broken, "--norms", "--kill-in", where[0], "--kill-at", where[1])
    assert first.returncode == -9, first.stderr
    assert checkpoint(broken)["step"] in (0, 3)
    assert not (broken / "model.ilwp").exists()
    second = start(broken, "--norms")
    assert second.returncode == 0, second.stderr
    assert (whole / "model.ilwp").read_bytes() == (broken / "model.ilwp").read_bytes()
    assert same(checkpoint(whole), checkpoint(broken))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Without batch norms, whose statistics are those of a share of the batch.

    In float64 the sums differ by 1e-16 relative for each of some thousand terms and 10 steps; 1e-10 leaves room for
    that and for nothing else. In float32 a difference of 1e-7 moves some weight across a rounding threshold.
    """
    one, two = folders(tmp_path, "one", "two")
    process.run(one, norms=False)
    finished = start(two, processes=2)
    assert finished.returncode == 0, finished.stderr
    ranks = [torch.load(two / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(dict(ranks[0]), dict(ranks[1]))
    expected = load(one / "model.ilwp").state_dict()
    for name, tensor in load(two / "model.ilwp").state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-10)
        assert same(tensor, ranks[0][name])


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that nothing interrupts."""
    folder = tmp_path_factory.mktemp("two")
    finished = start(folder, "--norms", processes=2)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_two_processes_with_batch_norms(two_processes: Path) -> None:
    """Each process ends with the same bits, also with dropout and batch norms of its own share."""
    ranks = [torch.load(two_processes / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert same(dict(ranks[0]), dict(ranks[1]))
    assert same(load(two_processes / "model.ilwp").state_dict(), dict(ranks[0]))


def test_processes_of_torchrun_make_their_group(tmp_path: Path, two_processes: Path) -> None:
    """Without one each would train on everything, and write the same files."""
    finished = start(tmp_path, "--norms", "--without-group", processes=2)
    assert finished.returncode == 0, finished.stderr
    assert (two_processes / "model.ilwp").read_bytes() == (tmp_path / "model.ilwp").read_bytes()
    assert same(checkpoint(two_processes), checkpoint(tmp_path))


def test_processes_without_a_group_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(TrainingError, match="one of 2 processes .*MASTER_ADDR.*start them with torchrun"):
        process.run(tmp_path, norms=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("where", ["report", "loss"])
def test_the_model_is_usable_after_an_exception(tmp_path: Path, error: type[BaseException], where: str) -> None:
    torch.manual_seed(0)
    model = process.network(norms=True).eval()
    model[0].train()
    names, calls = list(model.state_dict()), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise error("stop")

    def loss(network: nn.Module, batch: list[Tensor]) -> Tensor:
        if where == "loss":
            fail()
        return process.loss(network, batch)

    def train(**options: Any) -> Any:
        return fine_tune(model, process.data(), loss, process.CONFIG, process.PLAN, **options)

    with pytest.raises(error, match="stop"):
        train(report=fail if where == "report" else None)
    assert list(model.state_dict()) == names and model[0].training and not model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    compress(model, process.CONFIG)
    where = ""
    train()


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_leaves_the_last_checkpoint(tmp_path: Path, two_processes: Path, rank: int) -> None:
    """And the two go on from it to the same bits; only the first process writes."""
    assert start(tmp_path, "--norms", "--kill-at", 5, "--kill-rank", rank, processes=2).returncode != 0
    assert checkpoint(tmp_path)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    finished = start(tmp_path, "--norms", processes=2)
    assert finished.returncode == 0, finished.stderr
    assert same(checkpoint(two_processes), checkpoint(tmp_path))
    assert (two_processes / "model.ilwp").read_bytes() == (tmp_path / "model.ilwp").read_bytes()
    with pytest.raises(TrainingError, match="its processes: 2, now: 1"):
        process.run(tmp_path, norms=True)


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_the_file_holds_what_the_model_computes_with(
    preset: str, tmp_path: Path, mobilenet: nn.Module, images: Tensor
) -> None:
    data = torch.utils.data.TensorDataset(images.repeat(4, 1, 1, 1), torch.arange(4).repeat(4))
    result = fine_tune(
        mobilenet,
        data,
        process.loss,
        {"preset": preset, "bits": 4, "anchor": "fp16"},
        FineTuning(epochs=2, batch=4, norm_batches=0),
        example_inputs=images,
        coupler=Coupling,
        out=tmp_path / "x.ilwp",
    )
    assert result.alignment is not None and len(result.alignment.aligned) == 13 and not result.alignment.refused
    restored = load(tmp_path / "x.ilwp").state_dict()
    assert same(restored, dict(mobilenet.state_dict()))
    bits = [layer.details.get("bits") for layer in result.compressed.layers if layer.kind == "chain"]
    assert (bits == [None, *[4] * 12] or preset == "small") and result.loss_weight > 0


class Square(Dataset[Tensor]):
    """A data set without batches."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((4, 4, 4), float(i)), i % 4


def small() -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(4, 4, 3, padding=1, groups=4) for _ in range(2)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("workers", [0, 1])
def test_any_data_set(workers: int) -> None:
    seen = []

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        seen.append(batch[0][:, 0, 0, 0].long())
        return F.cross_entropy(model(batch[0] / 10), batch[1])

    plan = FineTuning(epochs=2, batch=5, lr=1e-3, norm_batches=0, workers=workers)
    fine_tune(small(), Square(), loss, {}, plan)
    epochs = [torch.cat(seen[i : i + 2]) for i in (0, 2)]
    assert all(torch.equal(epoch.sort().values, torch.arange(10)) for epoch in epochs)
    assert not torch.equal(*epochs), "another order in every epoch"


def test_quantization_begins_when_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[FakeQuantizer] = []
    original = FakeQuantizer.__init__

    def remember(self: FakeQuantizer, *args: Any, **options: Any) -> None:
        made.append(self)
        original(self, *args, **options)

    monkeypatch.setattr(FakeQuantizer, "__init__", remember)
    states: list[bool] = []

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        states.append(made[0].enabled)
        return F.cross_entropy(model(batch[0] / 10), batch[1])

    fine_tune(small(), Square(), loss, {}, FineTuning(epochs=2, batch=2, norm_batches=0, quantize_from=0.3))
    assert states == [False] * 3 + [True] * 7


def test_other_optimizers() -> None:
    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), 1e-3)

    plan = FineTuning(epochs=1, batch=5, norm_batches=0)
    loss = process.loss
    result = fine_tune(small(), Square(), loss, {"loss_weight": 2.0}, plan, optimizer=adam)
    assert result.loss_weight == 2.0
    assert fine_tune(small(), Square(), loss, {}, plan, optimizer=adam).loss_weight > 0


def test_batch_norms_are_those_of_the_data() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    batches = [torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(i)) * 2 + 1 for i in range(5)]
    assert reestimate_batch_norms(model, batches, lambda m, b: m(b)) == 1
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm2d) and norm.momentum == 0.1 and not norm.training
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    with pytest.raises(TrainingError, match="no batch"):
        reestimate_batch_norms(model, [], lambda m, b: m(b))


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(())


def test_errors(tmp_path: Path) -> None:
    def tune(data: Any = None, plan: FineTuning | None = None, **options: Any) -> None:
        plan = plan or FineTuning(epochs=1, batch=5, norm_batches=0)
        fine_tune(small(), data or Square(), options.pop("loss", process.loss), plan=plan, **options)

    with pytest.raises(ConfigError, match="quantizes nothing"):
        tune(config=IlwpConfig.paper(bits=None))
    with pytest.raises(TrainingError, match="Stream has no length"):
        tune(Stream())
    with pytest.raises(TrainingError, match="batches of 11 of 10 samples"):
        tune(plan=FineTuning(batch=11))
    with pytest.raises(FileError, match="there is no folder"):
        tune(out=tmp_path / "absent" / "x.ilwp")
    with pytest.raises(TrainingError, match="the loss is nan at step 1; lower the learning rate"):
        tune(loss=lambda model, batch: model(batch[0]).sum() * float("nan"))
    with pytest.raises(TrainingError, match="references and a coupler"):
        tune(coupler=Coupling, references={"1": torch.zeros(4)}, example_inputs=torch.zeros(1, 4, 4, 4))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"x")
    with pytest.raises(FileError, match="no checkpoint of a fine-tuning"):
        tune(checkpoint=path)
    path.unlink()
    tune(checkpoint=path)
    with pytest.raises(TrainingError, match="another run; its config: .*, now: "):
        tune(checkpoint=path, config={"bits": 5})
    for wrong in ({"epochs": 0}, {"checkpoint_steps": 0}, {"quantize_from": 1.5}, {"seed": -1}, {"lr": 0.0}):
        with pytest.raises(TrainingError, match="expected"):
            FineTuning(**wrong)  # type: ignore[arg-type]


def mixed() -> nn.Module:
    """A chain, and a layer outside."""
    return nn.Sequential(*small(), nn.Linear(4, 4))


def test_the_shortest_call_is_that_of_the_best_settings() -> None:
    """Steps by what the data say, and a rate."""
    plan = FineTuning(epochs=1, batch=5, norm_batches=0)
    result = fine_tune(mixed(), Square(), process.loss, plan=plan)
    drawn = drawn_inputs(mixed(), Square(), process.loss, plan.seed)
    config = IlwpConfig(rate=DEFAULT_RATE)
    same = fine_tune(mixed(), Square(), process.loss, config, plan, calibration=drawn)
    assert result.compressed.to_bytes() == same.compressed.to_bytes()
    assert result.rate == DEFAULT_RATE and result.loss_weight == 0
    larger = fine_tune(mixed(), Square(), process.loss, {}, plan).compressed.ledger
    assert result.compressed.ledger.grid_bytes + result.compressed.ledger.texture_bytes < larger.file_bytes


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("others", [None, "slq", "grid"])
def test_the_automatic_loss_is_for_chains_that_are_trained_alone(others: str | None, rate: float) -> None:
    """Beside a quantizer of other weights the rate makes residuals small."""
    recipes = [{"name": "ilwp", "residual_step": 0.1, "rate": rate}, *([{"name": others}] if others else [])]
    plan = FineTuning(epochs=1, batch=5, norm_batches=0)
    result = fine_tune(mixed(), Square(), process.loss, {"recipes": recipes}, plan)
    assert (result.loss_weight == 0) == (others is not None and rate > 0)


def test_inputs_are_drawn_from_what_the_loss_does() -> None:
    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        noise = torch.rand(())
        return model(input=batch[0]).sum() + model(-batch[0]).sum() * noise

    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).train()
    before = torch.get_rng_state()
    drawn = drawn_inputs(model, Square(), loss, 3)
    assert drawn is not None and isinstance(drawn.batch, dict)
    assert sorted(drawn.batch["input"][:, 0, 0, 0].tolist()) == list(range(10))
    assert torch.equal(torch.get_rng_state(), before) and model.training and not model._forward_pre_hooks
    assert torch.equal(model.get_buffer("1.num_batches_tracked"), torch.tensor(0))

    def never(_: nn.Module, batch: list[Tensor]) -> Tensor:
        return batch[0].sum()

    with pytest.warns(IlwpWarning, match="the data choose no steps"):
        assert drawn_inputs(model, Square(), never, 0) is None


@pytest.mark.parametrize(("config", "needs"), [({"rate": 0.5}, False), ({"preset": "paper", "rate": 0.5}, True)])
def test_the_loss_is_for_chains_alone_and_for_trainings_without_a_rate(config: dict[str, Any], needs: bool) -> None:
    plan = FineTuning(epochs=1, batch=5, norm_batches=0)
    assert (fine_tune(mixed(), Square(), process.loss, config, plan).loss_weight > 0) == needs
