import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egret.errors import QuantizationError
from egret.quantize import (
    INTEGER_DTYPES,
    QuantizedTensor,
    extremes,
    finest_step,
    quantize,
    quantize_words,
)


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
    wrong_values: Any = [1, 2]
    with pytest.raises(QuantizationError, match="found list, expected int32"):
        QuantizedTensor(wrong_values, 8)
    with pytest.raises(QuantizationError, match="dtype 'I64'"):
        QuantizedTensor(np.zeros(2, np.int32), 0, "I64")
    with pytest.raises(
        QuantizationError, match=r"of I8: found steps of 2\^-8, expected steps of 1"
    ):
        QuantizedTensor(np.zeros(2, np.int32), 8, "I8")
    wrong: Any
    for wrong in (1.5, True, None, "8"):
        with pytest.raises(QuantizationError, match=r"found step_log2 .*expected a whole number"):
            QuantizedTensor(np.zeros(2, np.int32), wrong)


def test_keeps_the_shape_and_takes_empty_ones() -> None:
    assert quantize(np.zeros((0, 3)), name="w").shape == (0, 3)
    assert quantize(np.float32(0.5), name="w").values.item() == 128


def test_refuses_what_overflows_half_precision() -> None:
    # 65504 is 63.97 steps of 1024 and rounds to 64 of them: 65536, infinity as F16.
    weights = np.array([1.0, 65504.0], np.float16)
    with pytest.raises(QuantizationError, match=r"\[1\] .* rounds to 65536 .* F16 number, 65504"):
        quantize(weights, -10, name="w", dtype="F16")
    assert quantize(weights, 0, name="w", bits=18, dtype="F16").values.tolist() == [1, 65504]


def words_of(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Return numbers that the dtype holds exactly, as its words."""
    if dtype == "BF16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return numbers.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype])


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_every_half_precision_number_rounds_exactly(dtype: str) -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        numbers = (
            words.view(np.float16).astype(np.float64)
            if dtype == "F16"
            else (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        )
    for step in (-3, 8, 40):
        fit = [n for n in numbers if math.isfinite(n) and abs(n) * 2.0**step < 8_000_000]
        expected = [round(Fraction(n) * Fraction(2) ** step) for n in fit]
        found = quantize_words(words_of(np.array(fit), dtype), dtype, step, bits=24, name="w")
        assert found.tolist() == expected, (dtype, step)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_names_the_first_wrong_weight_of_a_later_block(dtype: str) -> None:
    for value, message in ((math.nan, "is nan, expected a finite"), (512.0, "is 512, which is")):
        numbers = np.zeros(40)
        numbers[[17, 30]] = value
        with pytest.raises(QuantizationError, match=rf"'fc': weight \[2, 1, 7\] {message}"):
            quantize_words(
                words_of(numbers, dtype), dtype, 8, bits=16, name="fc", shape=(3, 2, 30), start=140
            )


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_range_is_exact_at_both_ends(dtype: str) -> None:
    # 2^7 and 2^7 + 2^-1 halves are exact in every dtype: 127.5 rounds to 128.
    good = words_of(np.array([-128.5, 127.0, -128.0, 126.5]), dtype)
    assert quantize_words(good, dtype, 0, bits=8, name="w").tolist() == [-128, 127, -128, 126]
    for wrong in (127.5, -129.0):
        with pytest.raises(QuantizationError, match=r"weight \[0\]"):
            quantize_words(words_of(np.array([wrong]), dtype), dtype, 0, bits=8, name="w")


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_integers_stay_as_they_are(dtype: str) -> None:
    kind = np.dtype({"I": "i", "U": "u"}[dtype[0]] + str(int(dtype[1:]) // 8))
    ends = np.iinfo(kind)
    low, high = max(ends.min, -(1 << 23)), min(ends.max, (1 << 23) - 1)
    words = np.array([low, high, 0, 1], kind)
    assert quantize_words(words, dtype, 0, bits=24, name="w").tolist() == [low, high, 0, 1]
    if dtype == "I32":
        for wrong in (high + 1, low - 1):
            with pytest.raises(QuantizationError, match=rf"weight \[0\] is {wrong}"):
                quantize_words(np.array([wrong], kind), dtype, 0, bits=24, name="w")


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9),
    st.integers(2, 24),
    st.sampled_from(["F32", "F64"]),
)
def test_finest_step_is_the_finest_that_fits(weights: list[float], bits: int, dtype: str) -> None:
    array = words_of(np.array(weights), dtype)
    low, high = extremes(array, dtype, name="w")
    assert (low, high) == (min(weights), max(weights))
    try:
        step = finest_step(low, high, bits, dtype, name="w")
    except QuantizationError:
        with pytest.raises(QuantizationError):
            quantize_words(array, dtype, -64, bits=bits, name="w")
        return
    quantize_words(array, dtype, step, bits=bits, name="w")
    if step < 64 and any(weights):
        with pytest.raises(QuantizationError):
            quantize_words(array, dtype, step + 1, bits=bits, name="w")


def test_finest_step_of_zeros_and_of_half_precision() -> None:
    assert finest_step(0.0, 0.0, 8, "F32", name="w") == 8
    assert finest_step(-128.0, 0.0, 8, "F32", name="w") == 0
    assert finest_step(-128.0, 128.0, 8, "F32", name="w") == -1
    # At 2^16 the largest F16 number would round to 2^16, which F16 does not have.
    assert finest_step(0.0, 65504.0, 2, "F16", name="w") == -17
    assert finest_step(0.0, 65504.0, 2, "F32", name="w") == -16
    with pytest.raises(QuantizationError, match=r"'w': weight \[0, 1\] is inf"):
        extremes(np.array([[1, np.inf]], np.float16), "F16", name="w")


def test_values_that_are_given_must_fit_their_dtype() -> None:
    values = np.array([0, 200], np.int32)
    for dtype in ("F32", "BF16", "F16", "U8"):
        found = quantize_words(values, dtype, 0, bits=24, name="w")
        assert found.tolist() == [0, 200], dtype
    with pytest.raises(QuantizationError, match=r"\[1\] is 200, expected -128 to 127 \(I8\)"):
        quantize_words(values, "I8", 0, bits=24, name="w")
    with pytest.raises(QuantizationError, match=r"\[1\] is 200, which rounds to 204800 in"):
        quantize_words(values, "F16", -10, bits=24, name="w")
