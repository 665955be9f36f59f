"""Integer codes times a scale."""

from typing import Any

import numpy as np
import pytest

from ilwp_plugin.errors import TensorError
from ilwp_plugin.format import IntegerTensor
from ilwp_plugin.format.integers import kernel_residual, kernel_sum

RANDOM = np.random.default_rng(0)
CODES = np.ones((2, 2), np.int8)


def test_restores_as_its_formula_says() -> None:
    codes = RANDOM.integers(0, 255, (4, 3, 2, 2), dtype=np.uint8)
    scale, zero = RANDOM.random(3, np.float32), np.array([5, 120, 0])
    value = IntegerTensor(codes, scale, zero, axis=1)
    expected = (codes.astype("f4") - zero.astype("f4")[None, :, None, None]) * scale[None, :, None, None]
    assert np.array_equal(value.restore(), expected)
    assert np.array_equal(IntegerTensor.from_centred(value.centred, scale, zero, 1).codes, value.codes)


def test_prediction_of_integers_loses_nothing() -> None:
    reference, codes = RANDOM.integers(-127, 128, (4, 1, 3, 3)), RANDOM.integers(-127, 128, (10, 1, 3, 3))
    residual = kernel_residual(codes, reference)
    assert np.array_equal(residual[9], codes[9] - reference[1])
    assert np.array_equal(kernel_sum(residual, reference), codes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 2)), 1.0), "integer dtype"),
        ((CODES, np.ones(3)), "3 scales for codes of shape"),
        ((CODES, -1.0), "finite scales"),
        ((CODES, float("nan")), "finite scales"),
        ((np.full(2, 40000), 1.0), "beyond 32767"),
        ((CODES, np.ones(2), 1), "1 zero points for 2 scales"),
    ],
)
def test_refused(arguments: tuple[Any, ...], message: str) -> None:
    codes, scale, *zero = arguments
    with pytest.raises(TensorError, match=message):
        IntegerTensor(codes, np.asarray(scale, np.float32), *map(np.asarray, zero))
