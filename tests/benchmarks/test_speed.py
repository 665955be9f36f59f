"""What the package promises about speed. Run by `make bench`; ratios are measured within one run."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress

from ilwp_plugin import IlwpConfig, compress, load
from ilwp_plugin.format.coding import AnsCoder, HuffmanCoder, Run, Segment, fast
from ilwp_plugin.format.stream import ByteReader
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
    loss = InterLayerLoss(model, IlwpConfig.paper(loss_weight=1.0))
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
    segments = (Segment.flat(len(symbols)),)
    model = coder.fit(Run.of(symbols))
    payload = memoryview(coder.encode(model, symbols, segments))
    reader = ByteReader(memoryview(b""), "bench")
    encode = 1 / best_of(5, lambda: coder.encode(model, symbols, segments))
    decode = 1 / best_of(5, lambda: coder.decode(model, payload, segments, reader))
    print(f"\nHuffman, 1M symbols: encode {encode:.1f}, decode {decode:.1f} Msymbols/s")
    assert encode >= 10 and decode >= 10


def test_ten_thousand_layers() -> None:
    """What a layer costs besides its weights; time that grew with the square of their number would show."""
    generator = torch.Generator().manual_seed(0)
    state = {f"b{i}.weight": torch.randn(4, 1, 3, 3, generator=generator) for i in range(10_000)}
    duration = best_of(1, lambda: compress(state, {"mode": "none"}).ledger)
    print(f"\n10,000 layers of 36 weights: {duration:.1f} s")
    assert duration < 5


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
            IlwpConfig.paper(mode="full"),
            progress=lambda _, done, total: progress.update(task, completed=done, total=total),
        )
    duration = time.perf_counter() - start
    print(f"\nfull search, 100,000 kernels: {duration:.1f} s")
    assert duration < 60


@pytest.mark.parametrize("compiled", [False, True], ids=["constriction", "numba"])
def test_ans_codes_a_million_symbols_at_what_the_package_promises(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "available", lambda count: compiled)
    symbols = np.rint(np.random.default_rng(0).laplace(scale=1.2, size=1_000_000)).clip(-127, 127).astype(np.int64)
    run, coder = Run.of(symbols), AnsCoder()
    histogram, segments = run.histogram, run.segments
    model = coder.fit(run)
    payload = memoryview(coder.encode(model, symbols, segments))
    reader = ByteReader(memoryview(b""), "bench")
    encode = 1 / best_of(5, lambda: coder.encode(model, symbols, segments))
    decode = 1 / best_of(5, lambda: coder.decode(model, payload, segments, reader))
    over = 8 * (len(payload) + len(coder.table(model))) / (histogram.entropy * len(symbols)) - 1
    print(f"\nANS, 1M symbols: encode {encode:.0f}, decode {decode:.0f} Msymbols/s, {over:.2%} over the entropy")
    assert encode >= (100 if compiled else 40) and decode >= (100 if compiled else 40) and over < 0.005


@pytest.mark.parametrize(("compiled", "most"), [(False, 8), (True, 3)], ids=["constriction", "numba"])
def test_loading_against_torch_load(
    compiled: bool, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "available", lambda count: compiled and count > 1 << 16)
    torch.manual_seed(0)
    model = build_model("mobilenet")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    config = IlwpConfig(weight_step=0.06, residual_step=0.03, anchor="quantized", batch_norm="merged", mode="none")
    compressed = compress(model, config)
    size = compressed.save(tmp_path / "model.ilwp").file_bytes
    ours = best_of(10, lambda: load(tmp_path / "model.ilwp").state_dict())
    theirs = best_of(10, lambda: torch.load(tmp_path / "model.pt"))
    print(f"\n{size:,} bytes to a state dict: {ours * 1e3:.1f} ms, {ours / theirs:.1f} times torch.load of fp32")
    assert ours <= most * theirs
