"""Results summed up: a section for each network, in it each method over all seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ilwp_plugin.compare.config import Network
from ilwp_plugin.compare.results import MethodResult, TrainingResult, Usage
from ilwp_plugin.zoo import LAYERS

__all__ = ["TOLERANCE", "Change", "Estimate", "Section", "Summary", "pareto_front", "sections"]

TOLERANCE = 0.5
"""Points of accuracy that a method may lose against fp32 and still count as keeping it; twice that if it is noise."""

_NAMES = {"nncf": "NNCF", "inc": "INC", "pruning": "torch-pruning"}
"""What the toolkits of the integrations are called."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        deviation: their standard deviation (with n - 1); None of a single one.
    """

    mean: float
    deviation: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """Of at least one value."""
        found = list(values)
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)


@dataclass(frozen=True)
class Change:
    """Points of accuracy against fp32.

    Attributes:
        points: mean over seeds.
        standard_error: of `points`.
    """

    points: float
    standard_error: float

    @property
    def noise(self) -> bool:
        """Whether it is less than two standard errors, and so may well be none."""
        return abs(self.points) < 2 * self.standard_error

    @property
    def fits(self) -> bool:
        """Whether it counts as none.

        That a large loss is noise is no reason to choose it: errors are larger for methods that train anew, and a
        small test set would excuse anything.
        """
        return self.points >= -TOLERANCE * (2 if self.noise else 1)

    @classmethod
    def of(cls, changes: Sequence[tuple[float, float]]) -> Change:
        """Of (points, standard error) for each seed.

        The standard error of the mean is the larger of two estimates: what follows from that of each seed, whose
        sample are the test images, and what the spread between the seeds shows.
        """
        points = Estimate.of(change for change, _ in changes)
        images = math.sqrt(sum(error**2 for _, error in changes)) / len(changes)
        spread = 0.0 if points.deviation is None else points.deviation / math.sqrt(len(changes))
        return cls(points.mean, max(images, spread))


@dataclass(frozen=True)
class Summary:
    """A method with its options on a network trained in one way, over seeds.

    Attributes:
        method, group, title, options: of the method; no two titles in a section are the same.
        asked_loss: weight of the inter-layer loss in training, as the configuration has it: a number, or "auto".
        loss_weight: as chosen; mean over seeds.
        seeds: that were measured.
        raw, raw_depthwise, file: bytes, see `Sizes`; for `depthwise` read `Section.layers`.
        depthwise, texture, non_texture: the same; None where the file does not tell them apart.
        ratio: of the file's bytes to those of fp32 of the same seed; None where fp32 was not measured.
        accuracy: of the restored model, in per cent.
        fp32: accuracy in per cent of the network that was compressed, before.
        change: against the fp32 network of the same seed that was trained without the loss; where that is absent,
            against the network that was compressed.
        compression_seconds, compression_bytes, loading_seconds, loading_bytes: time, and peak of memory.
    """

    method: str
    group: str
    title: str
    options: Mapping[str, Any]
    asked_loss: float | str
    loss_weight: float
    seeds: tuple[int, ...]
    raw: Estimate
    raw_depthwise: Estimate
    file: Estimate
    depthwise: Estimate | None
    texture: Estimate | None
    non_texture: Estimate | None
    ratio: Estimate | None
    accuracy: Estimate
    fp32: Estimate
    change: Change
    compression_seconds: Estimate
    compression_bytes: Estimate
    loading_seconds: Estimate
    loading_bytes: Estimate

    @property
    def kind(self) -> str:
        """fp32, baseline, toolkit, stacked (a toolkit, and ilwp on top of it) or ilwp."""
        if self.group == "baseline":
            return "fp32" if self.method == "fp32" else "baseline"
        if self.group == "ilwp":
            return "ilwp"
        return "stacked" if '"ilwp"' in json.dumps(self.options) or "+ ilwp" in self.title else "toolkit"

    @property
    def toolkit(self) -> str:
        """The name of the group, as readers know it."""
        return _NAMES.get(self.group, self.group)

    @property
    def owner(self) -> str:
        """Whose method it is, for a reader."""
        kinds = {"fp32": "fp32", "baseline": "no toolkit", "ilwp": "ilwp", "stacked": f"{self.toolkit} + ilwp"}
        return kinds.get(self.kind, self.toolkit)


@dataclass(frozen=True)
class Section:
    """What was measured of one network, on one data set.

    Attributes:
        name: no two sections have the same.
        network: how it is trained; seed and loss weight are those of one of the trainings.
        seeds: of all results.
        images: in the test set.
        methods: sorted: what anyone has, the toolkits by name, alone and with ilwp, ilwp; each by bytes of the file.
        trainings: by loss weight as asked, those of all seeds.
    """

    name: str
    network: Network
    seeds: tuple[int, ...]
    images: int
    methods: tuple[Summary, ...]
    trainings: Mapping[float | str, tuple[TrainingResult, ...]]

    @property
    def fp32(self) -> Summary | None:
        """The network as it is, of the training without the loss where there is one."""
        found = [m for m in self.methods if m.kind == "fp32"]
        return min(found, key=lambda m: m.asked_loss != 0, default=None)

    @property
    def layers(self) -> str:
        """What the layers are called whose bytes are counted apart; see `zoo.scope_layers`."""
        return LAYERS["conv" if any(m.options.get("scope") == "conv" for m in self.methods) else "depthwise"]

    @property
    def loss(self) -> float | str | None:
        """The loss weight that stands for all: "auto", else the largest; None without any."""
        weights = [*self.trainings, *(m.asked_loss for m in self.methods)]
        if "auto" in weights:
            return "auto"
        return max((w for w in weights if isinstance(w, float | int) and w > 0), default=None)


def sections(results: Sequence[TrainingResult | MethodResult]) -> list[Section]:
    """One section for each network and data set, sorted by name, whatever the order of the results."""
    by_network: dict[str, list[TrainingResult | MethodResult]] = {}
    for result in results:
        by_network.setdefault(result.network.model_dump_json(exclude={"seed", "loss_weight"}), []).append(result)
    networks = {key: found[0].network for key, found in by_network.items()}
    names = _distinct({k: n.name for k, n in networks.items()}, {k: json.loads(k) for k in networks})
    return sorted((_section(names[key], found) for key, found in by_network.items()), key=lambda s: s.name)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points (bytes, accuracy) for which no other is as good in both and better in one.

    Sorted by bytes; of equal points each is on the front.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


def _section(name: str, results: list[TrainingResult | MethodResult]) -> Section:
    results = sorted(results, key=lambda r: (r.network.seed, r.key))
    trainings: dict[float | str, list[TrainingResult]] = {}
    methods: dict[str, list[MethodResult]] = {}
    for result in results:
        if isinstance(result, TrainingResult):
            trainings.setdefault(result.network.loss_weight, []).append(result)
        else:
            key = json.dumps([result.method, result.network.loss_weight, result.options], sort_keys=True)
            methods.setdefault(key, []).append(result)
    plain = {t.network.seed: t.percent for t in trainings.get(0, ())}
    measured = [r for r in results if isinstance(r, MethodResult)]
    for result in measured:
        if result.network.loss_weight == 0:
            plain.setdefault(result.network.seed, 100 * result.accuracy.fp32 / result.accuracy.images)
    fp32 = {r.network.seed: r.sizes.file_bytes for r in measured if (r.group, r.method) == ("baseline", "fp32")}
    titles = _distinct(
        {key: found[0].title for key, found in methods.items()},
        {key: {"loss": found[0].network.loss_weight, **found[0].options} for key, found in methods.items()},
    )
    order = {group: i for i, group in enumerate(sorted({r.group for r in measured}, key=_group_order))}
    summaries = [_summary(titles[key], methods[key], plain, fp32) for key in sorted(methods)]
    summaries.sort(key=lambda m: (order[m.group], m.kind in ("baseline", "stacked"), m.file.mean))
    return Section(
        name=name,
        network=results[0].network,
        seeds=tuple(sorted({r.network.seed for r in results})),
        images=max(r.accuracy.images if isinstance(r, MethodResult) else r.images for r in results),
        methods=tuple(summaries),
        trainings={w: tuple(trainings[w]) for w in sorted(trainings, key=lambda w: (isinstance(w, str), w))},
    )


def _group_order(group: str) -> tuple[int, str]:
    return {"baseline": 0, "ilwp": 2}.get(group, 1), _NAMES.get(group, group).casefold()


def _summary(title: str, results: list[MethodResult], plain: Mapping[int, float], fp32: Mapping[int, int]) -> Summary:
    first = results[0]

    def size(name: str) -> Estimate | None:
        values = [getattr(r.sizes, name) for r in results]
        return None if None in values else Estimate.of(values)

    depthwise = size("depthwise_bytes")

    def usage(piece: str, name: str) -> Estimate:
        usages: list[Usage] = [getattr(r, piece) for r in results]
        return Estimate.of(getattr(u, name) for u in usages)

    ratios = [r.sizes.file_bytes / fp32[r.network.seed] for r in results if r.network.seed in fp32]
    return Summary(
        method=first.method,
        group=first.group,
        title=title,
        options=first.options,
        asked_loss=first.network.loss_weight,
        loss_weight=statistics.fmean(r.loss_weight for r in results),
        seeds=tuple(r.network.seed for r in results),
        raw=Estimate.of(r.sizes.raw_bytes for r in results),
        raw_depthwise=Estimate.of(r.sizes.raw_depthwise_bytes for r in results),
        file=Estimate.of(r.sizes.file_bytes for r in results),
        depthwise=depthwise if depthwise and depthwise.mean else None,  # 0 bytes are nothing to compare with
        texture=size("texture_bytes"),
        non_texture=size("non_texture_bytes"),
        ratio=Estimate.of(ratios) if ratios else None,
        accuracy=Estimate.of(r.accuracy.percent for r in results),
        fp32=Estimate.of(100 * r.accuracy.fp32 / r.accuracy.images for r in results),
        change=Change.of([_change(r, plain.get(r.network.seed)) for r in results]),
        compression_seconds=usage("compression", "seconds"),
        compression_bytes=usage("compression", "peak_bytes"),
        loading_seconds=usage("loading", "seconds"),
        loading_bytes=usage("loading", "peak_bytes"),
    )


def _change(result: MethodResult, plain: float | None) -> tuple[float, float]:
    """Points against the network trained without the loss, with the standard error for the images as a sample."""
    accuracy = result.accuracy
    if result.network.loss_weight == 0 or plain is None:
        return accuracy.change, accuracy.standard_error
    # Another training: answers are not paired image by image, so the errors of both networks add up.
    variance = sum(p * (100 - p) / accuracy.images for p in (accuracy.percent, plain))
    return accuracy.percent - plain, math.sqrt(variance)


def _distinct(names: Mapping[str, str], details: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Names that are the same get the details that tell them apart."""
    result = {}
    for key, name in names.items():
        rivals = [details[other] for other, same in names.items() if same == name and other != key]
        own = details[key]
        telling = {
            k: own.get(k)
            for k in sorted({k for d in [own, *rivals] for k in d})
            if any(d.get(k) != own.get(k) for d in rivals)
        }
        words = ", ".join(f"{k} {json.dumps(v)}" for k, v in telling.items() if v is not None)
        result[key] = f"{name} ({words})" if words else name
    return result
