"""Numbers, figures and sentences of the report, without drawing: against computations of their own, both ways round."""

import doctest
import json
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilwp_plugin.analysis import Distribution, ReferenceShares
from ilwp_plugin.compare import CompareConfig
from ilwp_plugin.compare.report import figures as figure_module
from ilwp_plugin.compare.report import text as text_module
from ilwp_plugin.compare.report.figures import (
    Bars,
    Chart,
    Figure,
    Heatmap,
    Histograms,
    Missing,
    figures,
    headline,
    ilwp_curves,
)
from ilwp_plugin.compare.report.summary import Change, Section, Summary, pareto_front, sections
from ilwp_plugin.compare.report.tables import (
    Table,
    baselines_table,
    markdown,
    methods_table,
    paper_table,
    settings_table,
)
from ilwp_plugin.compare.results import Accuracy, MethodResult, TrainingResult
from tests.compare.synthetic import HOSTILE, Results, results


@pytest.fixture(scope="module")
def everything() -> Results:
    return results()


def section(found: Results, name: str = "mobilenet x0.5, fashion-mnist") -> Section:
    return next(s for s in sections(found) if s.name == name)


def methods_of(found: Results, **wanted: Any) -> list[MethodResult]:
    return [
        r for r in found if isinstance(r, MethodResult) and all(getattr(r, k) == value for k, value in wanted.items())
    ]


def without(found: Results, drop: Callable[[MethodResult], bool]) -> Results:
    return [r for r in found if isinstance(r, TrainingResult) or not drop(r)]


def changed(found: Results, title: str, **accuracy_or_sizes: Any) -> Results:
    """Fields of the sizes or of the accuracy of every result whose title begins so, set to a value or by a function."""
    result: Results = []
    for r in found:
        if isinstance(r, MethodResult) and r.title.startswith(title):
            values = r.model_dump()
            for part in ("sizes", "accuracy"):
                for name, value in accuracy_or_sizes.items():
                    if name in values[part]:
                        values[part][name] = value(values[part]) if callable(value) else value
            r = MethodResult.model_validate(values)
        result.append(r)
    return result


def by_title(where: Section, title: str) -> Summary:
    (found,) = (m for m in where.methods if m.title == title)
    return found


def figure(where: Section, name: str) -> Figure:
    (found,) = (f for f in figures(where) if isinstance(f, Figure) and f.name == name)
    return found


def missing(where: Section, title: str) -> Missing:
    (found,) = (f for f in figures(where) if isinstance(f, Missing) and f.title.startswith(title))
    return found


# --- summaries


def test_means_and_deviations_over_seeds(everything: Results) -> None:
    where = section(everything)
    for m in where.methods:
        found = [
            r
            for r in methods_of(everything, method=m.method, group=m.group, options=m.options)
            if r.network.data == "fashion-mnist" and r.network.loss_weight == m.asked_loss
        ]
        assert m.seeds == (0, 1, 2) and len(found) == 3
        files = [r.sizes.file_bytes for r in found]
        assert (m.file.mean, m.file.deviation) == pytest.approx((np.mean(files), np.std(files, ddof=1)))
        percents = [100 * r.accuracy.right / 10_000 for r in found]
        assert (m.accuracy.mean, m.accuracy.deviation) == pytest.approx((np.mean(percents), np.std(percents, ddof=1)))
        assert m.loading_seconds.mean == pytest.approx(np.mean([r.loading.seconds for r in found]))
    fp32 = {r.network.seed: r.sizes.file_bytes for r in methods_of(everything, method="fp32")[:3]}
    qat = methods_of(everything, title="QAT int8")[:3]
    assert {r.network.data for r in qat} == {"fashion-mnist"}
    ratios = [r.sizes.file_bytes / fp32[r.network.seed] for r in qat]
    ratio = by_title(where, "QAT int8").ratio
    assert ratio is not None and (ratio.mean, ratio.deviation) == pytest.approx(
        (np.mean(ratios), np.std(ratios, ddof=1))
    )


def answers(accuracy: Accuracy) -> tuple[np.ndarray, np.ndarray]:
    """Answers, image by image, that have these counts: of the restored model and of the one before."""
    before = np.arange(accuracy.images) < accuracy.fp32
    restored = before.copy()
    restored[: accuracy.worse] = False
    restored[accuracy.fp32 : accuracy.fp32 + accuracy.better] = True
    assert restored.sum() == accuracy.right
    return restored, before


def test_change_of_one_seed_is_a_paired_difference(everything: Results) -> None:
    one = [r for r in everything if r.network.seed == 1]
    where = section(one)
    for r in methods_of(one, method="nncf.quantize"):
        if r.network.data != "fashion-mnist":
            continue
        restored, before = answers(r.accuracy)
        difference = 100 * (restored.astype(float) - before)
        change = by_title(where, r.title).change
        assert change.points == pytest.approx(difference.mean())
        assert change.standard_error == pytest.approx(difference.std() / np.sqrt(len(difference)))
        assert change.noise == (abs(change.points) < 2 * change.standard_error)


def test_change_of_another_training_is_against_fp32_without_the_loss(everything: Results) -> None:
    one = [r for r in everything if r.network.seed == 2 and r.network.data == "fashion-mnist"]
    (plain,) = (r for r in one if isinstance(r, TrainingResult) and r.network.loss_weight == 0)
    (r,) = methods_of(one, title="ilwp collocated, 8 bits, trained with loss auto")
    change = by_title(section(one), r.title).change
    p, q = r.accuracy.right / 10_000, plain.right / 10_000
    assert change.points == pytest.approx(100 * (p - q))
    assert change.standard_error == pytest.approx(100 * np.sqrt((p * (1 - p) + q * (1 - q)) / 10_000))
    alone = [x for x in one if x.network.loss_weight == "auto"]
    assert by_title(section(alone), r.title).change.points == pytest.approx(r.accuracy.change), "nothing else is there"


def test_change_over_seeds_takes_the_larger_error() -> None:
    assert Change.of([(-1.0, 0.1), (-1.0, 0.1)]).standard_error == pytest.approx(0.1 / np.sqrt(2))
    spread = Change.of([(-1.0, 0.1), (1.0, 0.1), (3.0, 0.1)])
    assert (spread.points, spread.standard_error) == pytest.approx((1.0, 2 / np.sqrt(3)))
    assert spread.noise and not Change(-1.0, 0.1).noise and not Change(0.0, 0.0).noise


@pytest.mark.parametrize(
    ("points", "error", "fits"),
    [(-0.4, 0.01, True), (-0.6, 0.01, False), (-0.9, 0.5, True), (-1.1, 5.0, False), (2.0, 0.1, True)],
)
def test_a_large_loss_is_not_excused_by_noise(points: float, error: float, fits: bool) -> None:
    assert Change(points, error).fits is fits


def test_the_order_of_results_does_not_matter(everything: Results) -> None:
    shuffled = list(everything)
    random.Random(0).shuffle(shuffled)
    assert sections(shuffled) == sections(everything)


def test_ilwp_in_a_toolkit_is_told_from_the_toolkit_alone(everything: Results) -> None:
    trained = methods_of(everything, title="QAT int8")
    steps = [{"algorithm": "quantization"}, {"algorithm": "ilwp", "bits": 6}]
    stacked = [r.model_copy(update={"options": {"compression": steps}, "key": f"{r.key}s"}) for r in trained]
    owners = {m.options.get("compression") is not None: m.owner for m in section([*trained, *stacked]).methods}
    assert owners == {False: "NNCF", True: "NNCF + ilwp"}


def test_groups_come_in_one_order(everything: Results) -> None:
    kinds = list(dict.fromkeys(m.owner for m in section(everything).methods))
    assert kinds == ["fp32", "no toolkit", "INC", "NNCF", "NNCF + ilwp", "torch-pruning", "ilwp"]


def test_missing_seeds_are_paired_and_named(everything: Results) -> None:
    partial = without(everything, lambda r: r.title == "QAT int8" and r.network.seed == 0)
    where = section(partial)
    qat = by_title(where, "QAT int8")
    assert qat.seeds == (1, 2) and qat.accuracy.deviation is not None
    assert any(row.cells[1] == "QAT int8 (2 of 3 seeds)" for row in baselines_table(where).rows)


def test_the_same_name_is_told_apart(everything: Results) -> None:
    longer = [
        r.model_copy(update={"network": r.network.model_copy(update={"epochs": 30}), "key": f"{r.key}30"})
        for r in everything
        if r.network.data == "digits" and r.network.seed == 0
    ]
    names = [s.name for s in sections([*everything, *longer])]
    assert "mobilenetv2 x0.25, digits (epochs 8)" in names and "mobilenetv2 x0.25, digits (epochs 30)" in names
    (one,) = (r for r in methods_of(everything, title="INC bf16") if r.network.seed == 0 and r.network.data == "digits")
    other = one.model_copy(update={"options": {"images": 7}, "key": "other"})
    titles = {m.title for m in section([*everything, other], "mobilenetv2 x0.25, digits").methods}
    assert "INC bf16 (images 7)" in titles and "INC bf16" in titles


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_front_against_brute_force(points: list[tuple[int, int]]) -> None:
    expected = {
        i
        for i, (size, right) in enumerate(points)
        if not any(s <= size and r >= right and (s, r) != (size, right) for s, r in points)
    }
    front = pareto_front(points)
    assert set(front) == expected and len(front) == len(expected)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


# --- the headline


def head(found: Results) -> Figure:
    result = headline(section(found))
    assert isinstance(result, Figure)
    return result


def test_headline_bars_are_the_smallest_that_keep_the_accuracy(everything: Results) -> None:
    where = section(everything)
    (bars,) = head(everything).panels
    assert isinstance(bars, Bars)
    sizes = [bar.method.file.mean for bar in bars.bars]
    assert sizes == sorted(sizes, reverse=True) and bars.bars[0].label == "fp32"
    for bar in bars.bars:
        rivals = [m for m in where.methods if m.owner == bar.label]
        keeping = [m for m in rivals if m.change.fits]
        best = min(keeping, key=lambda m: m.file.mean) if keeping else max(rivals, key=lambda m: m.change.points)
        assert bar.method == best
    assert {bar.label for bar in bars.bars if not bar.method.change.fits} == {"torch-pruning"}


def test_headline_when_ilwp_wins(everything: Results) -> None:
    ours, zstd = (
        np.mean([r.sizes.file_bytes for r in methods_of(everything, title=title) if r.network.data == "fashion-mnist"])
        for title in ("ilwp collocated, residual step 0.028, all layers, step 0.047", "int8 + zstd -19")
    )
    text = head(everything)
    assert text.sentence == (
        f"ilwp would save {100 * (1 - ours / zstd):.0f} % of the smallest file without it: {ours / 1000:.0f} kB "
        f"instead of {zstd / 1000:.0f} kB, 1/22.2 of fp32."
    )
    assert "step 0.047; -0.2" in text.more and "int8 + zstd -19; -0.0" in text.more, "each with its accuracy"
    assert "On top of NNCF: PTQ int8 it saves 27 %: 880 kB (-0.1" in text.more
    assert "No method of torch-pruning keeps the accuracy of fp32" in text.more
    assert re.search(
        r"Against the best of INC \(1\.68 MB\) it is 91 % less, of NNCF \(880 kB\) it is 83 % less", text.more
    )


def test_headline_when_ilwp_loses() -> None:
    alone = without(results(networks=[0], whole=0.3), lambda r: "+ ilwp" in r.title)
    text = head(alone)
    assert "would save nothing here; its smallest file is 28 % larger: 1.01 MB instead of 789 kB" in text.sentence
    assert "of NNCF (880 kB) it is 15 % more" in text.more and "On top of" not in text.more
    only_layers = without(alone, lambda r: "weight_step" in r.options)
    assert "its smallest file is 4.15 times as large: 3.28 MB instead of 789 kB" in head(only_layers).sentence


def test_headline_counts_ilwp_on_top_of_a_toolkit() -> None:
    text = head(results(networks=[0], whole=0.3))
    assert text.sentence.startswith("ilwp would save 19 % of the smallest file without it: 638 kB instead of 789 kB")
    assert "compares 638 kB (NNCF: PTQ int8 + ilwp; -0.2" in text.more


def test_headline_when_both_are_the_same(everything: Results) -> None:
    same = changed(everything, "int8 + zstd", file_bytes=100_000)
    same = changed(same, "ilwp collocated, residual step 0.028, all layers, step 0.0", file_bytes=100_000)
    assert "as large as the smallest without it: 100 kB instead of 100 kB" in head(same).sentence


def test_headline_when_ilwp_keeps_the_accuracy_nowhere() -> None:
    alone = without(results(networks=[0]), lambda r: "+ ilwp" in r.title)
    broken = changed(alone, "ilwp", worse=900, better=0, right=lambda a: a["fp32"] - 900)
    text = head(broken).sentence
    assert "would save nothing here at the accuracy of fp32" in text and "points" in text


def test_headline_when_stacking_adds(everything: Results) -> None:
    larger = changed(everything, "PTQ int8 + ilwp", file_bytes=1_000_000)
    assert re.search(r"PTQ int8 it adds 14 %: 880 kB \(.*?\) become 1.00 MB \(.*?points\)\.", head(larger).more)


def test_stacked_methods_are_compared_with_what_they_are_on_top_of(everything: Results) -> None:
    """Not with the toolkit's best one: of pruning and quantization one cannot be said to become the other."""
    steps = [{"algorithm": "quantization"}, {"algorithm": "ilwp", "bits": 6}]
    alone = [
        r.model_copy(update={"options": {"compression": steps[:1], "epochs": 2}})
        for r in methods_of(everything, title="QAT int8")
    ]
    stacked = [
        r.model_copy(
            update={
                "options": {"compression": steps, "epochs": 2},
                "title": "QAT int8 + ilwp",
                "key": f"{r.key}s",
                "sizes": r.sizes.model_copy(update={"file_bytes": r.sizes.file_bytes // 2}),
            }
        )
        for r in alone
    ]
    others = without(everything, lambda r: r.title == "QAT int8")
    assert "On top of NNCF: QAT int8 it saves 50 %" in head([*others, *alone, *stacked]).more
    assert "On top of" not in head([*others, *stacked]).more


def test_headline_of_little(everything: Results) -> None:
    ours = without(everything, lambda r: r.group != "ilwp")
    assert "nothing without ilwp was measured" in head(ours).sentence
    assert head(without(everything, lambda r: r.group == "ilwp" or "+ ilwp" in r.title)).sentence.startswith(
        "No method with"
    )
    stacked = head(without(everything, lambda r: r.group == "ilwp"))
    assert "PTQ int8 + ilwp" in stacked.more and "would save" in stacked.sentence
    nothing = headline(section(without(everything, lambda r: True)))
    assert isinstance(nothing, Missing) and '{"method": "fp32"}' in nothing.needs


# --- figures


def test_figures_come_in_the_order_of_the_paper(everything: Results) -> None:
    names = [f.name if isinstance(f, Figure) else f.title for f in figures(section(everything))]
    assert names == ["figure_2_3_3x3", "figure_4", "figure_5", "figure_6_files", "figure_6_layers", "figure_7_3x3"]


def test_heat_maps_are_means_over_seeds(everything: Results) -> None:
    found = figure(section(everything), "figure_2_3_3x3")
    for panel, weight in zip(found.panels, (0, "auto"), strict=True):
        assert isinstance(panel, Heatmap)
        maps = [
            r.analysis["3x3"]["references"]["shares"]
            for r in everything
            if isinstance(r, TrainingResult) and r.network.data == "fashion-mnist" and r.network.loss_weight == weight
        ]
        assert len(maps) == 3 and np.allclose(panel.shares.shares, np.mean(maps, axis=0))
    plain, regularized = (p.shares.previous_layer_share for p in found.panels if isinstance(p, Heatmap))
    assert plain is not None and regularized is not None
    assert f"{100 * plain:.0f} % without the inter-layer loss and {100 * regularized:.0f} % with" in found.sentence
    chance = np.mean([1 / layers for layers in range(2, 9)])
    assert f"it would be {100 * chance:.0f} %" in found.sentence
    assert "as the paper's hypothesis says. The loss raises it." in found.sentence


def test_heat_maps_against_the_hypothesis(everything: Results) -> None:
    turned = [swap_analysis(r, share=0.01) if isinstance(r, TrainingResult) else r for r in everything]
    sentence = figure(section(turned), "figure_2_3_3x3").sentence
    assert "the paper's hypothesis does not hold here" in sentence and "does not raise it" in sentence


def swap_analysis(result: TrainingResult, share: float) -> TrainingResult:
    """All references but a share of them are in the first layer; residuals are wider than the weights."""
    analysis = json.loads(json.dumps(result.analysis))
    shares = analysis["3x3"]["references"]["shares"]
    for i in range(2, len(shares)):
        shares[i] = [1 - share, *[0.0] * (i - 2), share, *[0.0] * (len(shares) - i)]
    weights, residuals = analysis["3x3"]["distributions"]
    residuals["laplace_scale"] = 2 * weights["laplace_scale"]
    return result.model_copy(update={"analysis": analysis})


def test_histograms_and_their_sentence(everything: Results) -> None:
    found = figure(section(everything), "figure_7_3x3")
    (panel,) = found.panels
    assert isinstance(panel, Histograms)
    assert list(panel.panels) == ["without the inter-layer loss", "with the inter-layer loss"]
    scales = [
        [d["laplace_scale"] for d in r.analysis["3x3"]["distributions"]]
        for r in everything
        if isinstance(r, TrainingResult) and r.network.data == "fashion-mnist" and r.network.loss_weight == "auto"
    ]
    weights, residuals = np.log2(2 * np.e * np.array(scales)).mean(axis=0)
    assert (
        f"With the inter-layer loss, predicting a kernel from the collocated one saves {weights - residuals:.2f} bits"
        in found.sentence
    )
    assert "Without the inter-layer loss, predicting a kernel from the collocated one costs" in found.sentence
    turned = [swap_analysis(r, share=0.01) if isinstance(r, TrainingResult) else r for r in everything]
    assert "costs 1.00 bits a weight" in figure(section(turned), "figure_7_3x3").sentence


def test_dictionaries_restore_what_they_came_from(everything: Results) -> None:
    analysis = everything[0].analysis["3x3"] if isinstance(everything[0], TrainingResult) else {}
    assert ReferenceShares.from_dict(analysis["references"]).to_dict() == analysis["references"]
    for values in analysis["distributions"]:
        assert Distribution.from_dict(values).to_dict() == values


@pytest.mark.parametrize(("gain", "word"), [(0.5, "less"), (1.4, "more")])
def test_loss_weight(gain: float, word: str) -> None:
    found = results(networks=[0], gain=gain)
    chart, accuracy = figure(section(found), "figure_4").panels
    assert isinstance(chart, Chart) and isinstance(accuracy, Chart)
    assert [s.label for s in chart.series] == ["8 bits", "6 bits", "4 bits", "3 bits", "2 bits"]
    for series in chart.series:
        bits = int(series.label.split()[0])
        for point, weight in zip(series.points, (0, 3.0, "auto"), strict=True):
            sizes = [
                r.sizes.depthwise_bytes
                for r in methods_of(found, method="ilwp")
                if r.title.startswith(f"ilwp collocated, {bits} bits")
                and not r.options.get("align")
                and r.network.loss_weight == weight
            ]
            assert len(sizes) == 3 and point.x.mean == (9.3 if weight == "auto" else weight)
            assert point.y.mean == pytest.approx(np.mean(sizes) / 1000)
    sentence = figure(section(found), "figure_4").sentence
    first, *others = chart.series[0].points
    smallest = min(others, key=lambda p: p.y.mean)
    ratio = smallest.y.mean / first.y.mean
    assert f"of weight {smallest.x.mean:.3g}" in sentence and f"{100 * abs(1 - ratio):.0f} % {word}" in sentence


def test_bits(everything: Results) -> None:
    (chart,) = figure(section(everything), "figure_5").panels
    assert isinstance(chart, Chart)
    labels = [s.label for s in chart.series]
    assert labels == [
        "no prediction",
        "local",
        "full",
        "collocated",
        "collocated (aligned)",
        "collocated (with the loss)",
    ]
    assert all([p.x.mean for p in s.points] == [2, 3, 4, 6, 8] for s in chart.series)
    sizes = {s.label: [p.y.mean for p in s.points] for s in chart.series}
    ratios = np.array(sizes["collocated (with the loss)"]) / np.array(sizes["no prediction"])
    sentence = figure(section(everything), "figure_5").sentence
    assert f"collocated (with the loss) takes {ratios.min():.2f} to {ratios.max():.2f} of its bytes (always" in sentence
    assert re.search(r"full takes 1\.\d\d to 1\.\d\d of its bytes \(always larger\)", sentence)
    assert {s.label: [p.y.mean / 1000 for p in s.points] for s in ilwp_curves(section(everything))} == sizes


def test_bits_when_prediction_loses_or_wins_here_and_there() -> None:
    text = figure(section(results(networks=[0], gain=1.4)), "figure_5").sentence
    assert re.search(r"collocated \(with the loss\) takes 1\.\d\d to 1\.\d\d of its bytes \(always larger\)", text)
    mixed = changed(results(networks=[0]), "ilwp local, 2 bits", depthwise_bytes=1000)
    assert "(smaller at 1 of 5 numbers of bits)" in figure(section(mixed), "figure_5").sentence
    same = [
        r.model_copy(update={"sizes": r.sizes.model_copy(update={"depthwise_bytes": 5000})})
        for r in methods_of(results(networks=[0]), method="ilwp")
    ]
    assert "full takes 1.00 of its bytes (the same)" in figure(section(list(same)), "figure_5").sentence
    no_reference = without(results(networks=[0]), lambda r: r.options.get("mode") == "none")
    assert "The smallest depthwise layers" in figure(section(no_reference), "figure_5").sentence


def test_one_number_of_bits_is_compared_where_others_have_it() -> None:
    found = without(results(networks=[0]), lambda r: r.options.get("mode") == "none" and r.options.get("bits", 8) != 8)
    where = section(found)
    (chart,) = figure(where, "figure_5").panels
    assert isinstance(chart, Chart)
    none, *others = chart.series
    assert none.label == "no prediction" and len(none.points) == 1 and len(others) == 5
    full, plain = (by_title(where, f"ilwp {mode}, 8 bits").depthwise for mode in ("full", "none"))
    assert full is not None and plain is not None
    assert f"full takes {full.mean / plain.mean:.2f} of its bytes" in figure(where, "figure_5").sentence


def test_trade_off_of_whole_files(everything: Results) -> None:
    where = section(everything)
    found = figure(where, "figure_6_files")
    (chart,) = found.panels
    assert isinstance(chart, Chart)
    assert sum(len(s.points) for s in chart.series) == len(where.methods)
    front = [
        m
        for m in where.methods
        if not any(
            o.file.mean <= m.file.mean and o.accuracy.mean >= m.accuracy.mean and o is not m for o in where.methods
        )
    ]
    assert {(p.x.mean, p.y.mean) for p in chart.front} == {(m.file.mean / 1000, m.accuracy.mean) for m in front}
    ours = sum(m.owner == "ilwp" for m in front)
    assert f"{len(front)} are on the Pareto front" in found.sentence and f"{ours} of ilwp" in found.sentence
    assert "beaten" not in found.sentence


def test_trade_off_when_ilwp_is_beaten(everything: Results) -> None:
    beaten = changed(everything, "INC bf16", file_bytes=10_000, worse=0, better=20, right=lambda a: a["fp32"] + 20)
    sentence = figure(section(beaten), "figure_6_files").sentence
    assert "ilwp is beaten everywhere here" in sentence and "None is of fp32, ilwp, NNCF" in sentence


def test_trade_off_of_layers(everything: Results) -> None:
    where = section(everything)
    found = figure(where, "figure_6_layers")
    assert "of collocated (with the loss)" in found.sentence and "none of no prediction, local" in found.sentence
    fitting = [
        m
        for m in where.methods
        if m.kind == "ilwp" and m.asked_loss in (0, "auto") and "weight_step" not in m.options and m.change.fits
    ]
    best = min(fitting, key=lambda m: m.depthwise.mean if m.depthwise else np.inf)
    assert best.depthwise is not None and f"take {best.depthwise.mean / 1000:.2f} kB" in found.sentence
    broken = changed(results(networks=[0]), "ilwp", worse=900, better=0, right=lambda a: a["fp32"] - 900)
    assert "None keeps the accuracy of fp32" in figure(section(broken), "figure_6_layers").sentence


def test_what_is_missing_is_named_with_what_the_configuration_needs(everything: Results) -> None:
    plain = [r for r in everything if r.network.loss_weight == 0]
    cases = [
        (missing(section(plain), "Fig. 3"), "the same with the inter-layer loss"),
        (missing(section(plain), "Fig. 7 with"), "loss"),
        (missing(section(plain), "Fig. 4"), "weight"),
        (missing(section(results(networks=[0], bits=[8])), "Fig. 5"), "bits"),
        (missing(section(results(networks=[0], bits=[8])), "Fig. 6: accuracy against size, depthwise"), "layers"),
    ]
    table = paper_table(section(plain))
    assert isinstance(table, Missing)
    for case, word in [*cases, (table, "Table 1")]:
        assert word in case.title
    decoder, snippets = json.JSONDecoder(), 0
    for case, _ in [*cases, (table, "")]:
        for match in re.finditer(r'\{"method"', case.needs):
            entry, _ = decoder.raw_decode(case.needs[match.start() :])
            assert CompareConfig.from_dict({"methods": [entry]}).tasks()
            snippets += 1
    assert snippets >= 5


# --- tables


def test_paper_table(everything: Results) -> None:
    table = paper_table(section(everything))
    assert isinstance(table, Table)
    assert [row.cells[0] for row in table.rows] == [
        "none",
        "local",
        "full",
        "collocated, loss weight 9.3",
        "collocated, without the loss",
    ]
    total, none = (
        np.mean(
            [r.sizes.depthwise_bytes for r in methods_of(everything, title=title) if r.network.data == "fashion-mnist"]
        )
        for title in ("ilwp collocated, 8 bits, trained with loss auto", "ilwp none, 8 bits")
    )
    row = table.rows[3].cells
    assert row[3].startswith(f"{total:,.0f} ±") and row[4] == f"{total / none:.3f}"


def test_paper_table_prefers_the_coder_of_the_paper(everything: Results) -> None:
    huffman = [
        r.model_copy(
            update={
                "options": {**r.options, "coder": "huffman"},
                "key": f"{r.key}h",
                "sizes": r.sizes.model_copy(update={"depthwise_bytes": 77_777}),
            }
        )
        for r in methods_of(everything, method="ilwp")
        if not {"align", "weight_step"} & set(r.options)
    ]
    table = paper_table(section([*everything, *huffman]))
    assert isinstance(table, Table) and len(table.rows) == 5
    assert all(row.cells[3] == "77,777" for row in table.rows)
    labels = [s.label for s in ilwp_curves(section([*everything, *huffman]))]
    assert labels == [s.label for s in ilwp_curves(section(everything))], "one curve a mode"


def test_baselines_table_has_every_method_once(everything: Results) -> None:
    where = section(everything)
    table = baselines_table(where, [where.methods[-1]])
    rows = [*table.rows, *table.more]
    assert sorted(row.cells[1] for row in rows) == sorted(m.title for m in where.methods)
    shown = {row.cells[1] for row in table.rows}
    assert {m.title for m in where.methods if m.kind != "ilwp"} <= shown and where.methods[-1].title in shown
    column = {name: i for i, name in enumerate(table.columns)}
    for row in rows:
        m = by_title(where, row.cells[1])
        assert row.cells[column["file, B"]].startswith(f"{m.file.mean:,.0f}")
        assert row.cells[column["raw depthwise, B"]] == "22,464"
        assert row.cells[column["change, points"]].endswith("noise") == m.change.noise
        assert (row.cells[column["depthwise, B"]] == "-") == (m.depthwise is None)


def test_how_it_was_measured(everything: Results) -> None:
    found = sections(everything)
    rows = [row.cells for row in settings_table(found).rows]
    assert rows[0][:1] + rows[0][4:] == (
        "mobilenet x0.5, fashion-mnist", "0, 1, 2", "10,000", "100 images", "0, 3, auto = 9.3", "834,490",
    )  # fmt: skip
    assert rows[1][6] == "3.6 images"
    options = [row.cells for row in methods_table(found).more]
    assert len(options) == len(set(options)) and ("NNCF", "nncf.prune", '{"ratio": 0.5}') in options


def test_markdown_keeps_its_columns_whatever_the_titles(everything: Results) -> None:
    table = baselines_table(section(everything))
    lines = markdown(table).splitlines()[: 2 + len(table.rows) + len(table.more)]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 1}
    (line,) = (line for line in lines if "alert" in line)
    cell = re.split(r"(?<!\\)\|", line)[2].strip()
    assert re.sub(r"\\(.)", r"\1", cell) == HOSTILE and "<" not in cell.replace("\\<", "")


@pytest.mark.parametrize("module", [text_module, figure_module])
def test_examples(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
