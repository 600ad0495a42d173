import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egret.errors import QuantizationError
from egret.quantize import QuantizedTensor, quantize


def test_rounds_halves_to_even() -> None:
    weights = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, -0.51]) / 256
    assert quantize(weights, 8, name="w").values.tolist() == [0, 2, 2, 0, -2, 0, -1]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.integers(-4, 14))
def test_equals_exact_rounding(weights: list[float], step: int) -> None:
    found = quantize(np.array(weights, np.float32), step, name="w", bits=24)
    expected = [round(Fraction(weight) * Fraction(2) ** step) for weight in weights]
    assert found.values.tolist() == expected
    restored = [Fraction(float(weight)) for weight in found.dequantize()]
    assert restored == [Fraction(value) / Fraction(2) ** step for value in expected]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_names_tensor_and_place(value: float) -> None:
    weights = np.zeros((3, 4), np.float32)
    weights[1, 2] = value
    with pytest.raises(QuantizationError, match=r"tensor 'fc\.weight': weight \[1, 2\] is"):
        quantize(weights, name="fc.weight")


@pytest.mark.parametrize(
    ("steps", "bits", "fits"),
    [(127, 8, True), (128, 8, False), (-128, 8, True), (-129, 8, False), (32768, 16, False)],
)
def test_range_of_the_quantiser(steps: int, bits: int, fits: bool) -> None:
    weights = np.array([0.0, steps / 256])
    if fits:
        assert quantize(weights, 8, name="w", bits=bits).values[1] == steps
    else:
        with pytest.raises(QuantizationError, match=rf"\[1\].* {steps} steps.*{bits} bits"):
            quantize(weights, 8, name="w", bits=bits)


@pytest.mark.parametrize("bits", [1, 25])
def test_refuses_a_wrong_width(bits: int) -> None:
    with pytest.raises(QuantizationError, match="expected 2 to 24"):
        quantize(np.zeros(1), name="w", bits=bits)


@pytest.mark.parametrize("step", [-65, 65])
def test_refuses_a_wrong_step(step: int) -> None:
    with pytest.raises(QuantizationError, match=r"expected 2\^-n with n from -64 to 64"):
        quantize(np.zeros(1), step, name="w")


def test_tensor_checks_its_parts() -> None:
    with pytest.raises(QuantizationError, match="expected int32"):
        QuantizedTensor(np.zeros(2, np.int64), 8)
    with pytest.raises(QuantizationError, match="dtype 'I8'"):
        QuantizedTensor(np.zeros(2, np.int32), 8, "I8")


def test_keeps_the_shape_and_takes_empty_ones() -> None:
    assert quantize(np.zeros((0, 3)), name="w").shape == (0, 3)
    assert quantize(np.float32(0.5), name="w").values.item() == 128


def test_refuses_what_overflows_half_precision() -> None:
    # 65504 is 63.97 steps of 1024 and rounds to 64 of them: 65536, infinity as F16.
    weights = np.array([1.0, 65504.0], np.float16)
    with pytest.raises(QuantizationError, match=r"'w': rounds to 65536 .* F16 number, 65504"):
        quantize(weights, -10, name="w", dtype="F16")
    assert quantize(weights, 0, name="w", bits=18, dtype="F16").values.tolist() == [1, 65504]
