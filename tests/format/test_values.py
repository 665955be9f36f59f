"""Dtypes, and how values are restored from codes: against formulas in Python's numbers, and against ml_dtypes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format import IntegerTensor, MergedBatchNorm, Origin, QuantizedLayer
from ilwp_plugin.format.dtypes import DTYPES, cast, is_finite, is_real, largest_value, name_of, to_float32
from ilwp_plugin.format.integers import kernel_residual, kernel_sum, largest_magnitude
from ilwp_plugin.format.kernels import BITS, KernelPool, collocated_references, largest_code, reconstruct
from ilwp_plugin.format.origins import GENERATIONS, ancestral_references, chain_origins

FLOATS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32))


def test_dtypes_keep_their_numbers() -> None:
    assert [(d.number, d.name) for d in DTYPES.values()] == list(
        enumerate(
            [
                *("float32", "float16", "bfloat16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"),
                *("complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"),
                *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
            ]
        )
    )
    assert {name for name in DTYPES if is_real(name)} == {"float32", "float16", "bfloat16", "float64"}
    assert name_of(np.zeros(1, np.uint16)) == "uint16"
    with pytest.raises(TensorError, match="cannot hold values of dtype str"):
        name_of(np.array(["x"]))
    with pytest.raises(TensorError, match="weights cannot be restored to int8"):
        cast(np.zeros(1, np.float32), "int8")


@given(FLOATS)
def test_bfloat16_as_ml_dtypes_has_it(values: NDArray[np.float32]) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with np.errstate(all="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    mine = cast(values, "bfloat16")
    numbers = ~np.isnan(values)
    assert np.array_equal(mine[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(to_float32(mine, "bfloat16")[~numbers]).all()
    assert np.array_equal(to_float32(mine, "bfloat16")[numbers], expected.astype(np.float32)[numbers])
    assert is_finite(mine, "bfloat16") == bool(np.isfinite(expected.astype(np.float32)).all())


@pytest.mark.parametrize(
    ("value", "bits"),
    [(1.0, 0x3F80), (1.00390625, 0x3F80), (1.01171875, 0x3F82), (1.0039064, 0x3F81), (-0.0, 0x8000), (3.4e38, 0x7F80)],
)
def test_bfloat16_ties_to_even(value: float, bits: int) -> None:
    assert int(cast(np.array([value], np.float32), "bfloat16")[0]) == bits
    assert int(cast(np.array(value, np.float32), "bfloat16")) == bits


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_largest_values(dtype: str) -> None:
    largest = np.array([largest_value(dtype)], np.float32)
    assert is_finite(cast(largest, dtype), dtype)
    with np.errstate(over="ignore"):
        beyond = largest * np.float32(1 + 2**-7)
    assert not is_finite(cast(beyond, dtype), dtype)


def test_integers_restore_as_their_formula_says() -> None:
    random = np.random.default_rng(0)
    codes, scale = random.integers(0, 255, (4, 3, 2, 2)), random.random(3).astype(np.float32)
    zero = np.array([5, 120, 0])
    value = IntegerTensor(codes, scale, zero, axis=1)
    expected = (codes - zero[None, :, None, None]).astype(np.float32) * scale[None, :, None, None]
    assert np.array_equal(value.restore(), expected) and value.restore().dtype == np.float32
    assert np.array_equal(IntegerTensor.from_centred(value.centred, scale, zero, 1).codes, value.codes)
    assert np.array_equal(IntegerTensor(codes, scale, zero, axis=-3).restore(), expected)
    one = IntegerTensor(codes, np.array([0.5]), np.array([3]))
    assert one.scale.shape == () and np.array_equal(one.restore(), (codes - 3).astype(np.float32) / 2)
    assert not np.signbit(IntegerTensor(np.zeros(2, int), np.float32(-0.0)).scale)


def test_integers_that_fit() -> None:
    value = IntegerTensor(np.array([32767]), np.float32(2))
    assert value.fits("float32") and not value.fits("float16") and value.fits("bfloat16")
    assert not IntegerTensor(np.array([2]), np.float32(3e38)).fits("float64"), "beyond float32 already"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 2)), np.float32(1)), "integer dtype"),
        ((np.ones((2, 2), bool), np.float32(1)), "integer dtype"),
        ((np.ones((2, 2), np.int8), np.ones(3)), "3 scales for codes of shape"),
        ((np.ones((2, 2), np.int8), np.ones(2), None, 2), "2 scales for codes of shape"),
        ((np.ones((2, 2), np.int8), np.float32(-1)), "finite scales"),
        ((np.ones((2, 2), np.int8), np.float32("nan")), "finite scales"),
        ((np.ones((2, 2), np.int8), np.ones(0)), "finite scales"),
        ((np.full(2, 40000), np.float32(1)), "codes beyond 32767"),
        ((np.full(2, -(1 << 63)), np.float32(1)), "codes beyond 32767"),
        ((np.full(2, 5), np.float32(1), np.array(40000)), "zero points beyond 32767"),
        ((np.full(2, 32767), np.float32(1), np.array(-5)), "differences beyond 32767"),
        ((np.ones((2, 2), np.int8), np.ones(2), np.array(1)), "1 zero points for 2 scales"),
        ((np.ones((2, 2), np.int8), np.ones(2), np.ones(2)), "integer dtype"),
    ],
)
def test_integers_that_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(TensorError, match=message):
        IntegerTensor(*arguments)  # type: ignore[arg-type]


def test_prediction_of_integers_loses_nothing() -> None:
    random = np.random.default_rng(0)
    reference, codes = random.integers(-32767, 32768, (4, 1, 3, 3)), random.integers(-32767, 32768, (10, 1, 3, 3))
    residual = kernel_residual(codes.astype(np.int16), reference.astype(np.int16))
    assert np.array_equal(residual[9], codes[9] - reference[1]) and largest_magnitude(residual) > 32767
    assert np.array_equal(kernel_sum(residual, reference.astype(np.int16)), codes)
    assert largest_magnitude(np.array([-128, 3], np.int8)) == 128 and largest_magnitude(np.empty(0, int)) == 0


@pytest.mark.parametrize("mantissa", [1, 4, 12])
def test_batch_norms_restore_as_their_formula_says(mantissa: int) -> None:
    codes = np.array([0, 1, -1, 1 << mantissa, (1 << mantissa) + 1, -(24 << mantissa)])
    norm = MergedBatchNorm(codes, np.array([0, 1, -1, 4095, -4095, 7]), -5, mantissa, 0.1, float(np.float32(1e-3)))
    exact = []
    for code in codes.tolist():
        e, f = divmod(abs(code) - 1, 1 << mantissa)
        value = ((1 << mantissa) + f) * 2.0 ** (e - mantissa - 5) if code else 0.0
        exact.append(-value if code < 0 else value)
    restored = norm.restore()
    assert restored["weight"].tolist() == exact and restored["weight"].dtype == np.float32
    assert restored["bias"].tolist() == [float(np.float32(c) * np.float32(0.1)) for c in [0, 1, -1, 4095, -4095, 7]]
    assert not restored["running_mean"].any() and int(restored["num_batches_tracked"]) == 0
    assert (restored["running_var"] == np.float32(1) - np.float32(1e-3)).all()
    assert MergedBatchNorm(codes, codes, 100, mantissa, 0.1, 0.0).scale.dtype == np.float32


def test_reconstruction_is_one_operation_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused product and sum would round once, and give other values."""
    monkeypatch.setattr("ilwp_plugin.format.kernels._ROWS", 7)
    random = np.random.default_rng(0)
    pool, step = random.standard_normal((50, 9)).astype(np.float32), np.float32(0.1234567)
    codes = random.integers(-99, 100, (30, 9)).astype(np.int16)
    references, zeros = random.integers(-1, 50, 30), random.random((30, 9)) < 0.2
    layer = QuantizedLayer(codes, float(step), 8, references, zeros)
    restored = reconstruct(layer, pool)
    fused = 0
    for j in range(30):
        for tap in range(9):
            other = pool[references[j], tap] if references[j] >= 0 else np.float32(0)
            expected = np.float32(np.float32(np.float32(codes[j, tap]) * step) + other)
            once = np.float32(float(codes[j, tap]) * float(step) + float(other))
            fused += int(once != expected)
            assert restored[j, tap] == (0 if zeros[j, tap] else expected)
    assert fused > 5 and not np.signbit(restored[restored == 0]).any()


def test_pool() -> None:
    pool = KernelPool(5, 2)
    pool.append(np.array([[1, 2], [3, 4]], np.float32))
    codes = np.ones((3, 2), np.int16)
    pool.append(QuantizedLayer(codes, 0.5, 2, np.array([1, -1, 0])))
    assert [layer.tolist() for layer in pool.layers] == [[[1, 2], [3, 4]], [[3.5, 4.5], [0.5, 0.5], [1.5, 2.5]]]
    assert [largest_code(bits) for bits in (BITS[0], 8, BITS[-1])] == [1, 127, 16383] and len(BITS) == 14
    assert collocated_references(5, [4, 3]).tolist() == [4, 5, 6, 4, 5]


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
            while layer > max(0, i - GENERATIONS):
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
    for channels in draw(st.lists(st.integers(1, 12), min_size=1, max_size=24)):
        order = draw(st.permutations(range(channels)))
        left = draw(st.integers(1, channels))
        origins.append(Origin(np.array(order[:left]), channels))
    return origins


@given(pruned())
def test_ancestors_against_walking_up(origins: list[Origin]) -> None:
    assert [r.tolist() for r in ancestral_references(origins)] == literal(origins)


def test_ancestors_too_far_away_do_not_count() -> None:
    far = [Origin.whole(2), *[Origin(np.array([0]), 2)] * GENERATIONS, Origin(np.array([1]), 2)]
    assert ancestral_references(far)[-1].tolist() == [GENERATIONS + 1], "the kernel of the layer before"
    assert ancestral_references(far[:-2] + far[-1:])[-1].tolist() == [1], "one nearer, and it is found"


def test_origins() -> None:
    origin = Origin.whole(8).without([0, 3]).without([1, 5])
    assert origin.survivors.tolist() == [1, 4, 5, 6] and origin.channels == 8 and not origin.is_whole
    assert Origin.whole(3).is_whole and not Origin(np.array([0, 2, 1]), 3).is_whole
    for wrong in ([], [0, 0], [-1], [3], [[0]], [0.5]):
        with pytest.raises(TensorError, match="survivors: expected"):
            Origin(np.array(wrong, None if wrong else np.int64), 3)
    with pytest.raises(TensorError, match="survivors: expected"):
        Origin.whole(2).without([0, 1])
    assert chain_origins(["a", "b"], [2, 3], {"c": origin}) is None
    found = chain_origins(["a", "b"], [2, 4], {"b": origin})
    assert found is not None and found[0].is_whole and found[1] is origin
    with pytest.raises(TensorError, match="'b' has 3 kernels, its provenance 4 channels"):
        chain_origins(["a", "b"], [2, 3], {"b": origin})
