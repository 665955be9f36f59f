"""Error feedback against its definition: one weight after the other, by hand, and what it is for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ilwp_plugin.method.error_feedback import MOST_GROWTH, ROUNDING_DAMPING, Feedback, Moments, input_columns
from ilwp_plugin.method.rounding import dead_zone_rounding


def layers(seed: int) -> dict[str, nn.Conv2d | nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {
            "dense": nn.Conv2d(6, 8, 3, stride=2, padding=1),
            "grouped": nn.Conv2d(6, 4, 3, groups=2, dilation=2, padding=2),
            "depthwise": nn.Conv2d(6, 6, (5, 3), groups=6, padding=(2, 1), padding_mode="reflect"),
            "pointwise": nn.Conv2d(6, 9, 1, stride=2),
            "linear": nn.Linear(6, 7),
            "lines": nn.Conv1d(6, 8, 3, stride=2, dilation=2, padding=1),
            "depthwise lines": nn.Conv1d(6, 6, 5, groups=6, padding=2, padding_mode="circular"),
            "volumes": nn.Conv3d(6, 4, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 1), groups=2),
        }


LAYERS = layers(0)


def inputs_of(name: str, count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    x = torch.randn(count, 10, 11, 6, generator=generator) @ mixing
    if name == "linear":
        return x
    x = x.permute(0, 3, 1, 2).contiguous()
    if "lines" in name:  # neighbours resemble each other, as they do in sound
        return x.flatten(2) + x.flatten(2).roll(1, 2)
    return x.unflatten(2, (2, 5)) if name == "volumes" else x


@pytest.mark.parametrize("name", LAYERS)
def test_columns_give_the_outputs(name: str) -> None:
    layer, x = LAYERS[name], inputs_of(name, 3)
    columns = input_columns(layer, x)
    groups = columns.shape[0]
    weight = layer.weight.detach().reshape(groups, -1, columns.shape[1])
    product = (weight @ columns).reshape(layer.weight.shape[0], -1)
    with torch.no_grad():
        y = F.linear(x, layer.weight) if name == "linear" else layer._conv_forward(x, layer.weight, None)
    expected = y.reshape(-1, layer.weight.shape[0]).T if name == "linear" else y.transpose(0, 1).flatten(1)
    assert torch.allclose(product, expected, atol=1e-4)


def test_one_weight_after_the_other() -> None:
    """The definition (OBS): quantize, spread the error over the weights left, drop the weight; inverse recomputed."""
    layer, x = nn.Linear(6, 3), inputs_of("linear")
    moments = Moments()
    moments.add(layer, x, x)
    feedback = Feedback(moments, layer.weight)
    weight, step = layer.weight.detach(), 0.2
    codes = feedback.codes(weight, torch.zeros_like(weight), step, dead_zone_rounding(0.5, 1000))
    gram = moments.gram[0] / moments.count
    gram = gram + ROUNDING_DAMPING * torch.eye(6) * gram.diagonal().mean()
    rest, expected = weight.double().clone(), torch.zeros_like(codes)
    left = gram.diagonal().argsort(descending=True).tolist()
    while left:
        inverse = torch.linalg.inv(gram[left][:, left])
        first, others = left[0], left[1:]
        code = torch.round(rest[:, first] / step)
        expected[:, first] = code.long()
        error = rest[:, first] - code * step
        for i, other in enumerate(others, start=1):
            rest[:, other] -= error / inverse[0, 0] * inverse[0, i]
        left = others
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_nearer_than_by_rounding(name: str) -> None:
    """On the whole: the few weights of a single layer may be lucky."""
    x, step = inputs_of(name), 0.15
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    ratios = []
    for seed in range(10):
        layer = layers(seed)[name]
        moments = Moments()
        moments.add(layer, noisy, x)
        feedback, weight = Feedback(moments, layer.weight), layer.weight.detach()
        codes = feedback.codes(feedback.target(weight), torch.zeros_like(weight), step, dead_zone_rounding(0.5, 1000))
        original, quantized = input_columns(layer, x), input_columns(layer, noisy)
        shape = (original.shape[0], -1, original.shape[1])
        expected = weight.reshape(shape) @ original
        errors = [
            float((expected - weights.reshape(shape) @ quantized).square().mean())
            for weights in (codes.float() * step, torch.round(weight / step) * step)
        ]
        ratios.append(errors[0] / errors[1])
    assert sum(ratios) / len(ratios) < 1, ratios


def test_bias_correction_keeps_the_mean() -> None:
    layer, x = LAYERS["pointwise"], inputs_of("pointwise") + 1
    moments = Moments()
    moments.add(layer, x, x)
    weight = layer.weight.detach()
    rounded = torch.round(weight / 0.3) * 0.3
    correction = Feedback(moments, weight).bias_correction(weight, rounded)
    with torch.no_grad():
        before = layer._conv_forward(x, weight, None).mean((0, 2, 3))
        after = layer._conv_forward(x, rounded, correction).mean((0, 2, 3))
    assert torch.allclose(before, after, atol=1e-4)


def test_inputs_that_have_nearly_died_are_not_made_up_for_at_any_price() -> None:
    layer, x = nn.Conv2d(2, 2, 3, padding=1, groups=2), torch.randn(40, 2, 8, 8)
    left = x.clone()
    left[:, 0] *= 1e-3
    left[:, 1] *= 0.7
    moments = Moments()
    moments.add(layer, left, x)
    weight = layer.weight.detach()
    dead, alive = Feedback(moments, weight).target(weight).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    assert float(dead) <= MOST_GROWTH * (1 + 1e-6) and 1.2 < float(alive) < 1 / 0.7
