import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ilwp_plugin.errors import TensorError
from ilwp_plugin.method.provenance import Origin, ancestral_references, family_scores, given_references


def literal(origins: list[Origin]) -> list[list[int]]:
    """Kernel by kernel, walking up."""
    numbers, count = [], 0
    for origin in origins:
        numbers.append({int(o): count + j for j, o in enumerate(origin.survivors)})
        count += len(origin.survivors)
    result = [[-1] * len(origins[0].survivors)]
    for i in range(1, len(origins)):
        row = []
        for j, original in enumerate(origins[i].survivors.tolist()):
            ancestor, layer = original, i
            while layer > 0:
                layer -= 1
                ancestor %= origins[layer].channels
                if ancestor in numbers[layer]:
                    row.append(numbers[layer][ancestor])
                    break
            else:
                before = list(numbers[i - 1].values())
                row.append(before[j % len(before)])
        result.append(row)
    return result


@st.composite
def pruned(draw: st.DrawFn) -> list[Origin]:
    origins = []
    for channels in draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        order = draw(st.permutations(range(channels)))
        left = draw(st.integers(1, channels))
        origins.append(Origin(torch.tensor(order[:left]), channels))
    return origins


@given(pruned())
def test_against_walking_up(origins: list[Origin]) -> None:
    assert [r.tolist() for r in ancestral_references(origins)] == literal(origins)


def test_nothing_pruned_is_the_collocated_rule() -> None:
    references = ancestral_references([Origin.whole(2), Origin.whole(5), Origin.whole(3)])
    assert references[1].tolist() == [0, 1, 0, 1, 0] and references[2].tolist() == [2, 3, 4]


def test_pruning_twice() -> None:
    origin = Origin.whole(8).without([0, 3]).without([1, 5])
    assert origin.survivors.tolist() == [1, 4, 5, 6] and origin.channels == 8


def test_given() -> None:
    maps = given_references(["a", "b", "c"], [2, 2, 2], {"b.weight": torch.tensor([1, -1])})
    assert maps[0] is None and maps[2] is None and maps[1] is not None and maps[1].tolist() == [1, -1]
    origin = Origin(torch.tensor([1, 0]), 2)
    maps = given_references(["a", "b", "c"], [2, 2, 2], {"b": origin})
    assert maps[0] is None and [m.tolist() for m in maps[1:] if m is not None] == [[1, 0], [3, 2]]
    with pytest.raises(TensorError, match="'b' has 3 kernels, its provenance 2 channels"):
        given_references(["a", "b"], [2, 3], {"b": origin})
    with pytest.raises(TensorError, match="this one an index map"):
        given_references(["a", "b"], [2, 2], {"a": origin, "b": torch.tensor([0, 1])})


@pytest.mark.parametrize("wrong", [[], [0, 0], [-1], [3], [[0]], [0.5]])
def test_survivors_are_distinct_original_channels(wrong: list[float]) -> None:
    with pytest.raises(TensorError, match="survivors: expected"):
        Origin(torch.tensor(wrong) if wrong != [] else torch.zeros(0, dtype=torch.int64), 3)
    with pytest.raises(TensorError, match="survivors: expected"):
        Origin.whole(2).without([0, 1])


def test_family_scores() -> None:
    """Two anchors; kernel 0 predicts 2 and 4, 1 predicts 3; then 2 predicts 5, and 6 has no reference."""
    values = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]), torch.tensor([6.0, 7.0])]
    references = [torch.tensor([-1, -1]), torch.tensor([0, 1, 0]), torch.tensor([2, -1])]
    first, second, third = family_scores(values, references)
    assert first.tolist() == [(1 + 3 + 5 + 6) / 4, (2 + 4) / 2]
    means = [(3 + 6) / 2, 4, 5]
    parents = [3.75, 3, 3.75]
    assert second.tolist() == pytest.approx([0.999 * p + 0.001 * m for p, m in zip(parents, means, strict=True)])
    assert third.tolist() == pytest.approx([0.999 * float(second[0]) + 0.001 * 6, 7])
