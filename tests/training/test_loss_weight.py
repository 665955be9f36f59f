from dataclasses import replace

import pytest
import torch
from torch import nn

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.testing import settle
from ilwp_plugin.training import InterLayerLoss, TrainingRun, automatic_loss_weight, gradient_rms, is_trained
from ilwp_plugin.zoo import build_model


def sgd(lr: float = 0.1, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr, momentum=momentum)


def test_reach_of_a_constant_rate() -> None:
    assert TrainingRun.of(sgd(), 100).reach == pytest.approx(100 * 0.1 / 0.1)
    assert TrainingRun.of(sgd(momentum=0), 100).reach == pytest.approx(10)


def test_reach_of_a_schedule_is_its_sum() -> None:
    optimizer = sgd()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    simulated = TrainingRun.of(optimizer, 50, schedule).reach
    total = 0.0
    for _ in range(50):
        total += optimizer.param_groups[0]["lr"] / 0.1
        optimizer.step()
        schedule.step()
    assert simulated == pytest.approx(total)


def test_simulation_leaves_the_optimizer_alone() -> None:
    optimizer = sgd()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    before = dict(optimizer.param_groups[0])
    TrainingRun.of(optimizer, 20, schedule)
    assert dict(optimizer.param_groups[0]) == before and schedule.last_epoch == 0


def test_schedule_by_epochs() -> None:
    optimizer = sgd()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    assert TrainingRun.of(optimizer, 20, schedule, steps_per_schedule=10).reach == pytest.approx(10 * 1 + 10 * 0.5)


def test_pull_moves_a_weight_as_far_as_promised() -> None:
    """One pair of weights, nothing but the loss: the pull over the run is the multiple of the residual."""
    for momentum in (0.0, 0.9):
        a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.full((1,), 1000.0))
        optimizer = torch.optim.SGD([a, b], 0.1, momentum=momentum)
        weight = automatic_loss_weight(TrainingRun.of(optimizer, 500), 1, 1000.0)
        for _ in range(500):
            optimizer.zero_grad()
            (weight * (b - a).detach().sign() * (b - a)).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if float((b - a).detach()) < 0:
                break
        else:
            pytest.fail("the pull has not closed the residual")


def test_weight_grows_as_training_shrinks() -> None:
    long, short = (automatic_loss_weight(TrainingRun.of(sgd(), steps), 1000, 0.2) for steps in (1600, 100))
    assert short == pytest.approx(16 * 4 * long), "by the reach, and by the square root of the steps"
    assert long == pytest.approx(78 / 40 * 0.2 * 1000 / 1600)
    longest = automatic_loss_weight(TrainingRun.of(sgd(), 10_000), 1000, 0.2)
    assert longest == pytest.approx(0.2 * 1000 / 10_000), "the reach alone"


def test_the_paper_gets_its_weight() -> None:
    """200 epochs of 196 steps from lr 0.1 on, times 0.98 an epoch; MobileNet in its initial state: lambda 1."""
    optimizer = sgd()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    run = TrainingRun.of(optimizer, 200 * 196, schedule, steps_per_schedule=196)
    assert automatic_loss_weight(run, 44352, 0.22) == pytest.approx(1.0, rel=0.1)


def test_adaptive_optimizers_need_the_gradient() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    adam = torch.optim.Adam([parameter], 0.01)
    with pytest.raises(TrainingError, match="Adam moves weights by its learning rate.*gradient_rms"):
        TrainingRun.of(adam, 100)
    with pytest.raises(TrainingError, match="no gradients"):
        gradient_rms([parameter])
    parameter.grad = torch.tensor([3.0, 4.0, 0.0, 0.0])
    assert gradient_rms([parameter]) == pytest.approx(2.5)
    run = TrainingRun.of(adam, 100, gradient_rms=2.5)
    assert run.reach == pytest.approx(1.0)
    weak = automatic_loss_weight(run, 10, 0.1 / 7.8)
    assert weak == pytest.approx(2.5 * 10 * 0.1, rel=0.01), "far below saturation the ratio of gradients is the pull"
    assert automatic_loss_weight(run, 10, 100.0) == pytest.approx(3 * 2.5 * 10), "what cannot be reached is capped"


def test_schedules_that_cannot_be_simulated() -> None:
    optimizer = sgd()
    waiting = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(TrainingError, match="cannot be simulated for 10 steps .*set loss_weight to a number"):
        TrainingRun.of(optimizer, 10, waiting)
    with pytest.raises(TrainingError, match="cannot be simulated"):
        TrainingRun.of(optimizer, 30, torch.optim.lr_scheduler.OneCycleLR(sgd(), 0.1, total_steps=20))
    with pytest.raises(TrainingError, match="ZeroDivisionError"):
        TrainingRun.of(sgd(momentum=1.0), 10)


@pytest.mark.parametrize(("steps", "every"), [(0, 1), (10, 0), (1e2, 1)])
def test_no_steps(steps: int, every: int) -> None:
    with pytest.raises(TrainingError, match="expected"):
        TrainingRun.of(sgd(), steps, steps_per_schedule=every)
    with pytest.raises(TrainingError, match="expected more than 0"):
        automatic_loss_weight(TrainingRun(1, 0.0), 10, 0.1)


def test_the_pull_can_be_given() -> None:
    """Twice the pull is twice the weight; 78 / sqrt(steps) is the pull of a short run."""
    run = TrainingRun(steps=400, reach=2.0)
    assert automatic_loss_weight(run, 90, 0.1) == pytest.approx(78 / 20 * 0.1 / 2.0 * 90)
    assert automatic_loss_weight(replace(run, pull=1.5), 90, 0.1) == pytest.approx(1.5 * 0.1 / 2.0 * 90)


def test_a_trained_network_is_pulled_less_the_shorter_the_run() -> None:
    pulls = {steps: TrainingRun.of(sgd(), steps, fine_tuning=True).pull for steps in (44, 110, 440, 550, 5500)}
    assert pulls == pytest.approx({44: 0.1, 110: 0.25, 440: 1.0, 550: 1.25, 5500: 1.25})
    begun = TrainingRun.of(sgd(), 400, fine_tuning=False)
    assert begun.pull == pytest.approx(78 / 20)
    assert automatic_loss_weight(begun, 9, 0.1) == automatic_loss_weight(TrainingRun.of(sgd(), 400), 9, 0.1)


def test_a_trained_network_is_known_by_its_batch_norms() -> None:
    torch.manual_seed(0)
    model = build_model("mobilenet", width=0.25, stem_stride=2)
    run = TrainingRun.of(sgd(), 110)
    new = InterLayerLoss(model, IlwpConfig(), run=run)
    assert not is_trained(model) and new.loss_weight == pytest.approx(
        automatic_loss_weight(run, new.predicted_weights, new.value().item())
    )
    settle(model, torch.randn(4, 3, 32, 32))
    assert is_trained(model)
    trained = InterLayerLoss(model, IlwpConfig(), run=run).loss_weight
    assert trained == pytest.approx(new.loss_weight * (110 / 440) / (78 / 110**0.5))
    told = InterLayerLoss(model, IlwpConfig(), run=TrainingRun.of(sgd(), 110, fine_tuning=False))
    assert told.loss_weight == new.loss_weight
    assert not is_trained(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Linear(2, 2)))
