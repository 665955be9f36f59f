"""Whatever a user has set up around a call, the file is the same; the user's own code notices nothing of that."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin import compress
from ilwp_plugin.models.surroundings import as_user, exact

X = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def state() -> tuple[Any, ...]:
    inference, autocast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    return torch.get_default_device(), torch.get_default_dtype(), inference, autocast


class Watching(nn.Module):
    """Remembers what it ran in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 3, 3, groups=3) for _ in range(2)), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5)
        )
        self.seen: set[Any] = set()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(state())
        with torch.autocast("cpu", enabled=False):  # else the outputs themselves are others
            return self.layers(x)


AROUND: list[Callable[[], AbstractContextManager[Any]]] = [
    lambda: torch.device("meta"),
    lambda: default_dtype(torch.float64),
    lambda: default_dtype(torch.bfloat16),
    lambda: torch.autocast("cpu"),
    lambda: torch.inference_mode(),
]


@pytest.mark.parametrize("around", AROUND, ids=["device", "double", "bfloat16", "autocast", "inference"])
@pytest.mark.parametrize(
    "options",
    [{"calibration": X}, {"calibration": X, "target_bytes": 700}, {}],
    ids=["calibrated", "target", "plain"],
)
def test_the_file_is_the_same(around: Callable[[], AbstractContextManager[Any]], options: dict[str, Any]) -> None:
    model, inside = Watching(), set[Any]()

    def evaluate(model: nn.Module) -> float:
        inside.add(state())
        return 1.0

    expected = compress(Watching(), evaluate=lambda model: 1.0, **options).to_bytes()
    model.seen.clear()
    with around():
        own = state()
        assert compress(model, evaluate=evaluate, **options).to_bytes() == expected
        assert state() == own
    assert model.seen <= {own} and inside <= {own}
    assert state() == (torch.device("cpu"), torch.float32, False, False)


def test_nesting() -> None:
    with torch.device("meta"), exact(), exact():
        assert torch.zeros(1).device.type == "cpu"
        with as_user():
            assert torch.zeros(1).is_meta
            with exact():
                assert torch.zeros(1).device.type == "cpu"
    with as_user():
        assert torch.zeros(1).device.type == "cpu"
