"""Time and memory of a piece of work, and right answers image by image."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin._imports import optional
from ilwp_plugin.compare.results import Accuracy, Usage
from ilwp_plugin.zoo import Dataset

__all__ = ["Meter", "compare_answers", "right_answers", "watch"]

_INTERVAL = 0.005
"""Seconds between two looks at the memory."""


class Meter:
    """Holds the usage, once the work is done."""

    usage: Usage


@contextmanager
def watch() -> Iterator[Meter]:
    """Measure what the body of the `with` takes: wall-clock time, and the growth of resident memory at its highest."""
    process: Any = optional("psutil", "compare").Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(_INTERVAL):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    meter = Meter()
    thread.start()
    start = time.perf_counter()
    try:
        yield meter
    finally:
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
        peak = max(peak, process.memory_info().rss)
        meter.usage = Usage(seconds=round(seconds, 4), peak_bytes=peak - before)


@torch.no_grad()
def right_answers(model: nn.Module, data: Dataset, batch: int = 1000) -> Tensor:
    """(test images,) bool: which are classified right.

    The model is in eval mode already: exported programs cannot be switched.
    """
    found = []
    for at in range(0, len(data.test_images), batch):
        guess = model(data.test_images[at : at + batch]).argmax(dim=1)
        found.append(guess == data.test_labels[at : at + batch])
    return torch.cat(found)


def compare_answers(restored: Tensor, before: Tensor) -> Accuracy:
    """Count what changed.

    Args:
        restored, before: (images,) bool, right answers of the restored model and of the network before.
    """
    return Accuracy(
        images=len(before),
        right=int(restored.sum()),
        fp32=int(before.sum()),
        worse=int((before & ~restored).sum()),
        better=int((restored & ~before).sum()),
    )
