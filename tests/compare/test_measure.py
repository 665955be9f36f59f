"""Time, memory, right answers."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from ilwp_plugin.compare.measure import compare_answers, right_answers, watch
from ilwp_plugin.zoo import Dataset


def test_watch_sees_time_and_memory() -> None:
    with watch() as meter:
        block = np.ones(50_000_000, np.uint8)
        time.sleep(0.05)
        del block
    assert 0.05 <= meter.usage.seconds < 5
    assert 45_000_000 < meter.usage.peak_bytes < 200_000_000


def test_watch_keeps_errors() -> None:
    with pytest.raises(ZeroDivisionError), watch() as meter:
        _ = 1 / 0
    assert meter.usage.seconds >= 0


def test_right_answers_in_any_batch_size() -> None:
    images = torch.randn(23, 4, 1, 1)
    labels = images.flatten(1).argmax(1)
    labels[::3] = 0
    data = Dataset("made up", images, labels, images, labels, 4)
    expected = images.flatten(1).argmax(1) == labels
    for batch in (1, 7, 100):
        assert torch.equal(right_answers(nn.Flatten(), data, batch), expected)


def test_paired_differences_against_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = torch.rand(500, generator=generator) < 0.9, torch.rand(500, generator=generator) < 0.85
    found = compare_answers(after, before)
    difference = after.double() - before.double()
    assert found.change == pytest.approx(100 * float(difference.mean()))
    assert found.standard_error == pytest.approx(100 * float(difference.std(correction=0)) / 500**0.5)
    assert (found.right, found.fp32, found.images) == (int(after.sum()), int(before.sum()), 500)
    assert found.percent == pytest.approx(100 * float(after.double().mean()))
