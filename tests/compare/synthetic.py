"""Results as a comparison leaves them, with invented but plausible numbers, for tests of the report."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ilwp_plugin.analysis import distributions, reference_shares
from ilwp_plugin.compare.config import Network
from ilwp_plugin.compare.results import Accuracy, MethodResult, Sizes, TrainingResult, Usage

Results = list[TrainingResult | MethodResult]

VERSIONS = {"ilwp-plugin": "0.1.0", "python": "3.11.7", "torch": "2.13.0"}
NETWORKS = (
    ("fashion-mnist", "mobilenet", 0.5, 834_490, 22_464, 10_000),
    ("digits", "mobilenetv2", 0.25, 260_042, 9_270, 360),
)
HOSTILE = "<script>alert('x')</script> & $b_1$ | *PTQ*"
WEIGHTS = {0: 0.0, 3.0: 3.0, "auto": 9.3}

# method, group, title, options, file bytes of fp32, points, churn in points
TOOLKITS: tuple[tuple[str, str, str, dict[str, Any], float, float, float], ...] = (
    ("fp32", "baseline", "fp32", {}, 1.0, 0.0, 0.0),
    ("zstd", "baseline", "fp32 + zstd -19", {}, 0.92, 0.0, 0.0),
    ("zstd", "baseline", "int8 + zstd -19", {"dtype": "int8"}, 0.235, -0.02, 0.3),
    ("nncf.quantize", "nncf", "PTQ int8", {}, 0.262, -0.1, 0.8),
    ("nncf.qat", "nncf", "QAT int8", {}, 0.262, 0.05, 1.5),
    ("nncf.quantize", "nncf", "PTQ int8 + ilwp", {"ilwp": {"bits": 4}}, 0.19, -0.25, 1.0),
    ("nncf.prune", "nncf", HOSTILE, {"ratio": 0.5}, 0.5, -4.0, 6.0),
    ("inc.static", "inc", "INC static int8", {}, 0.27, -0.6, 1.2),
    ("inc.bf16", "inc", "INC bf16", {}, 0.5, 0.0, 0.05),
    (
        "pruning.prune",
        "torch-pruning",
        "50 % of the channels, pruned by their L2 norm, then fine-tuned",
        {},
        0.27,
        -2.5,
        5.0,
    ),
)


def results(
    *,
    networks: Sequence[int] = (0, 1),
    seeds: Sequence[int] = (0, 1, 2),
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    whole: float = 0.045,
    gain: float = 0.5,
) -> Results:
    """Of a whole comparison.

    Args:
        networks: positions in NETWORKS.
        seeds: of each network.
        bits: of ilwp's methods.
        whole: bytes of ilwp's smallest file, of those of fp32.
        gain: bytes of collocated residuals with the loss, of those without prediction; more than 1 is a loss.
    """
    found: Results = []
    for number in networks:
        for seed in seeds:
            found += _of_network(number, seed, bits, whole, gain)
    return found


def _of_network(number: int, seed: int, bits: Sequence[int], whole: float, gain: float) -> Iterator[Any]:
    data, model, width, parameters, depthwise, images = NETWORKS[number]
    rng = np.random.default_rng([number, seed])
    right = {w: int(images * (0.92 - 0.002 * (w != 0))) + int(rng.integers(-9, 9)) for w in WEIGHTS}

    def network(weight: float | str) -> Network:
        return Network(
            data=data, model=model, width=width, stem_stride=1, epochs=8, batch=256, seed=seed, loss_weight=weight
        )

    for weight, chosen in WEIGHTS.items():
        yield TrainingResult(
            key=_key(number, seed, weight),
            network=network(weight),
            loss_weight=chosen,
            parameters=parameters,
            depthwise_parameters=depthwise,
            images=images,
            right=right[weight],
            analysis=analysis(rng, chosen),
            versions=VERSIONS,
        )

    def method(
        name: str,
        group: str,
        title: str,
        options: dict[str, Any],
        weight: float | str,
        size: int,
        points: float,
        churn: float,
        parts: dict[str, int],
    ) -> MethodResult:
        both = max(churn, abs(points)) * images / 100
        worse, better = (round((both + sign * points * images / 100) / 2) for sign in (-1, 1))
        noise = int(rng.integers(0, 3)) if churn else 0
        return MethodResult(
            key=_key(number, seed, weight, name, options),
            network=network(weight),
            method=name,
            group=group,
            title=title + ("" if weight == 0 else f", trained with loss {weight}"),
            options=options,
            loss_weight=WEIGHTS[weight],
            sizes=Sizes(raw_bytes=int(size * 1.1), raw_depthwise_bytes=depthwise, file_bytes=size, **parts),
            accuracy=Accuracy(
                images=images,
                right=right[weight] + better - worse - noise,
                fp32=right[weight],
                worse=worse + noise,
                better=better,
            ),
            compression=Usage(seconds=float(1 + rng.random()), peak_bytes=int(80e6 + 1e6 * rng.random())),
            loading=Usage(seconds=float(0.1 + rng.random() / 10), peak_bytes=int(9e6 + 1e6 * rng.random())),
            versions={**VERSIONS, **({"nncf": "3.4.0"} if group == "nncf" else {})},
        )

    full = 4 * parameters + 20_000
    for name, group, title, options, share, points, churn in TOOLKITS:
        yield method(name, group, title, options, 0, int(share * full) + int(rng.integers(0, 50)), points, churn, {})
    shares = {"none": 1.0, "local": 0.9, "full": 0.89, "collocated": 0.98}
    for mode, share in shares.items():
        for b in bits:
            for weight in WEIGHTS if mode == "collocated" else (0,):
                factor = share if weight == 0 else share + (gain - share) * (1.0 if weight == "auto" else 0.6)
                texture = int(depthwise * b / 8 * factor) + int(rng.integers(0, 40))
                indices = int(depthwise / 9 * {"local": 0.9, "full": 1.3}.get(mode, 0))
                layers = texture + indices + 900
                options = {k: v for k, v in (("mode", mode), ("bits", b)) if v not in ("collocated", 8)}
                points = -40 * 3.0**-b - 3e-4
                yield method(
                    "ilwp", "ilwp", f"ilwp {mode}, {b} bits", options, weight, full - 4 * depthwise + layers, points,
                    abs(points) + 0.2,
                    {"depthwise_bytes": layers, "texture_bytes": texture, "non_texture_bytes": indices},
                )  # fmt: skip
    for b in bits:
        layers = int(depthwise * b / 8 * 0.8) + 700
        options = {"align": True, **({"bits": b} if b != 8 else {})}
        yield method(
            "ilwp", "ilwp", f"ilwp collocated, {b} bits, aligned", options, 0, full - 4 * depthwise + layers,
            -30 * 3.0**-b, 30 * 3.0**-b + 0.2,
            {"depthwise_bytes": layers, "texture_bytes": layers - 700, "non_texture_bytes": 0},
        )  # fmt: skip
    for step, scale, points in ((0.047, 1.0, -0.2), (0.06, 0.8, -0.9), (0.03, 1.5, -0.02)):
        options = {"weight_step": step, "residual_step": 0.028, "batch_norm": "merged", "calibration": 256}
        title = f"ilwp collocated, residual step 0.028, all layers, step {step:g}"
        size = int(whole * scale * full) + int(rng.integers(0, 99))
        yield method("ilwp", "ilwp", title, options, 0, size, points, 2.0, {"depthwise_bytes": size // 9})


def analysis(rng: np.random.Generator, loss: float) -> dict[str, Any]:
    """Of a chain whose layers resemble each other more with the loss."""
    kernels = [torch.from_numpy(rng.laplace(0, 0.08, (16, 9))).float()]
    for _ in range(8):
        mixed = 0.3 if loss == 0 else 0.9
        fresh = torch.from_numpy(rng.laplace(0, 0.08, (16, 9))).float()
        kernels.append(mixed * kernels[-1] + (1 - mixed) * fresh)
    layers = [f"features.{i}.0" for i in range(len(kernels))]
    return {
        "3x3": {
            "references": reference_shares((3, 3), layers, kernels).to_dict(),
            "distributions": [d.to_dict() for d in distributions(kernels)],
        }
    }


def _key(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
