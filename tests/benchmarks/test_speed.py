"""What the package promises about speed. Run by `make bench`; ratios are measured within one run."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.coding import Histogram, HuffmanCoder
from ilwp_plugin.stream import ByteReader
from ilwp_plugin.training import InterLayerLoss
from ilwp_plugin.zoo import build_model

pytestmark = pytest.mark.bench


def best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    durations = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)


def test_loss_costs_at_most_one_per_cent_of_a_step() -> None:
    torch.manual_seed(0)
    model = build_model("mobilenet")
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    loss = InterLayerLoss(model, IlwpConfig(loss_weight=1.0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    whole, extra = best_of(10, step), best_of(50, lambda: loss().backward())
    print(
        f"\ninter-layer loss, forward and backward: {extra * 1e3:.2f} ms; a step without it: {whole * 1e3:.0f} ms; "
        f"{extra / whole:.2%}"
    )
    assert extra <= 0.01 * whole


def test_huffman_codes_ten_million_symbols_a_second() -> None:
    symbols = np.rint(np.random.default_rng(0).laplace(scale=1.2, size=1_000_000)).clip(-127, 127).astype(np.int64)
    coder = HuffmanCoder()
    model = coder.fit(Histogram.of(symbols))
    payload = memoryview(coder.encode(model, symbols))
    reader = ByteReader(memoryview(b""), "bench")
    encode = 1 / best_of(5, lambda: coder.encode(model, symbols))
    decode = 1 / best_of(5, lambda: coder.decode(model, payload, len(symbols), reader))
    print(f"\nHuffman, 1M symbols: encode {encode:.1f}, decode {decode:.1f} Msymbols/s")
    assert encode >= 10 and decode >= 10


@pytest.mark.parametrize("related", [True, False], ids=["smooth", "independent"])
def test_full_search_of_100_000_kernels(related: bool) -> None:
    """Twenty layers of 5,000 kernels; independent ones are the worst case."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.randn(5000, 1, 3, 3, generator=generator)
    state = {}
    for i in range(20):
        noise = torch.randn(5000, 1, 3, 3, generator=generator)
        layer = layer[torch.randperm(5000, generator=generator)] + 0.1 * noise if related else noise
        state[f"{i}.weight"] = layer
    start = time.perf_counter()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("kernels")
        compress(
            state,
            IlwpConfig(mode="full"),
            progress=lambda _, done, total: progress.update(task, completed=done, total=total),
        )
    duration = time.perf_counter() - start
    print(f"\nfull search, 100,000 kernels: {duration:.1f} s")
    assert duration < 60
