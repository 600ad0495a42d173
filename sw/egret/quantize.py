"""Rounding weights to integers: Q = round(2^n · θ) (arXiv 2504.16968, section on quantisation)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from egret.errors import EgretError, QuantizationError

__all__ = [
    "CODED_DTYPES",
    "DEFAULT_BITS",
    "DEFAULT_STEP_LOG2",
    "FLOAT_DTYPES",
    "INTEGER_DTYPES",
    "MAX_BITS",
    "MIN_BITS",
    "STEP_LOG2_RANGE",
    "QuantizedTensor",
    "check_bits",
    "check_step",
    "exact_numbers",
    "extremes",
    "finest_step",
    "quantize",
    "quantize_words",
    "steps_by_name",
    "value_limits",
]

FLOAT_DTYPES = ("F32", "F16", "BF16", "F64")
"""Names, as in safetensors, of the floating dtypes whose tensors can be coded."""
INTEGER_DTYPES = ("I8", "U8", "I16", "U16", "I32")
"""Names of the integer dtypes whose tensors can be coded, without loss."""
CODED_DTYPES = FLOAT_DTYPES + INTEGER_DTYPES
"""Names of all dtypes whose tensors can be coded."""
DEFAULT_STEP_LOG2 = 8
"""n of the paper's step, 2^-8."""
DEFAULT_BITS = 16
"""Range of the quantiser when none is asked for, in bits of a signed integer."""
MIN_BITS = 2
"""Narrowest range of the quantiser."""
MAX_BITS = 24
"""Widest quantised value: every 24-bit integer times a power of two is exact in float32."""
STEP_LOG2_RANGE = (-64, 64)
"""Smallest and largest n of a step 2^-n."""

_LARGEST_F16 = 65504
_INTEGER_LIMITS = {
    "I8": (-(1 << 7), (1 << 7) - 1),
    "U8": (0, (1 << 8) - 1),
    "I16": (-(1 << 15), (1 << 15) - 1),
    "U16": (0, (1 << 16) - 1),
    "I32": (-(1 << 31), (1 << 31) - 1),
}
# Stands in a table for a word that no value within the limits belongs to.
_WRONG = np.int32(-(1 << 31))


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers that stand for weights: weight = value · 2^-step_log2.

    Parameters
    ----------
    values : ndarray of int32, any shape
        The integers.
    step_log2 : int
        n of the step 2^-n; 0 for the integer dtypes.
    dtype : str
        Dtype of the original tensor, one of `CODED_DTYPES`.

    Raises
    ------
    QuantizationError
        `values` is not an array of int32, the step is outside `STEP_LOG2_RANGE` or not 0 for an
        integer dtype, or the dtype is not one of `CODED_DTYPES`.
    """

    values: NDArray[np.int32] = field(repr=False)
    step_log2: int
    dtype: str = "F32"

    def __post_init__(self) -> None:
        if not isinstance(self.values, np.ndarray) or self.values.dtype != np.int32:
            found = getattr(self.values, "dtype", type(self.values).__name__)
            raise QuantizationError(f"quantised values: found {found}, expected int32")
        check_step(self.step_log2, "quantised tensor")
        if self.dtype not in CODED_DTYPES:
            raise QuantizationError(
                f"quantised tensor: found dtype {self.dtype!r}, "
                f"expected one of {', '.join(CODED_DTYPES)}"
            )
        if self.dtype in INTEGER_DTYPES and self.step_log2 != 0:
            raise QuantizationError(
                f"quantised tensor of {self.dtype}: found steps of 2^{-self.step_log2}, expected "
                "steps of 1"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.values.shape

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights, values · 2^-step_log2, as float32 of the same shape."""
        return np.ldexp(self.values.astype(np.float64), -self.step_log2).astype(np.float32)


def check_step(step_log2: int, where: str) -> None:
    """Refuse a step outside `STEP_LOG2_RANGE`; `where` begins the message.

    Raises
    ------
    QuantizationError
        The step is out of range or no whole number.
    """
    low, high = STEP_LOG2_RANGE
    if not _is_whole(step_log2):
        raise QuantizationError(
            f"{where}: found step_log2 {step_log2!r}, expected a whole number from {low} to {high}"
        )
    if not low <= step_log2 <= high:
        raise QuantizationError(
            f"{where}: found steps of 2^{-step_log2}, expected 2^-n with n from {low} to {high}"
        )


def steps_by_name(step_log2: int | Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Return the step of each tensor.

    Parameters
    ----------
    step_log2 : int or mapping of str to int
        n of the steps 2^-n: one for all, or by name; names that a mapping lacks take
        `DEFAULT_STEP_LOG2`.
    names : sequence of str
        Names of the tensors.

    Returns
    -------
    dict of str to int
        n by name, in the order of `names`.

    Raises
    ------
    EgretError
        A name in the mapping is none of `names`.
    QuantizationError
        A step is out of range.
    """
    if not isinstance(step_log2, Mapping):
        check_step(step_log2, "step_log2")
        return dict.fromkeys(names, int(step_log2))
    unknown = sorted(set(step_log2) - set(names))
    if unknown:
        raise EgretError(
            f"step_log2: no tensor is named {unknown[0]!r}, expected one of {', '.join(names)}"
        )
    for name, step in step_log2.items():
        check_step(step, f"step_log2 of {name!r}")
    return {name: int(step_log2.get(name, DEFAULT_STEP_LOG2)) for name in names}


def check_bits(bits: int, where: str) -> None:
    """Refuse a range outside `MIN_BITS` to `MAX_BITS`; `where` begins the message.

    Raises
    ------
    QuantizationError
        The number of bits is out of range or no whole number.
    """
    if not _is_whole(bits) or not MIN_BITS <= bits <= MAX_BITS:
        raise QuantizationError(f"{where}: found {bits!r} bits, expected {MIN_BITS} to {MAX_BITS}")


def _is_whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def value_limits(dtype: str, step_log2: int, bits: int) -> tuple[int, int]:
    """Return the smallest and the largest integer that a tensor of a dtype may hold.

    Parameters
    ----------
    dtype : str
        One of `CODED_DTYPES`.
    step_log2 : int
        n of the step 2^-n.
    bits : int
        Range, in bits of a signed integer.

    Returns
    -------
    tuple of two int
        The range, narrowed to what the dtype itself holds: an F16 weight must not round to
        infinity, an integer must not leave its type.
    """
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if dtype in _INTEGER_LIMITS:
        return max(low, _INTEGER_LIMITS[dtype][0]), min(high, _INTEGER_LIMITS[dtype][1])
    if dtype == "F16":
        largest = math.floor(math.ldexp(_LARGEST_F16, step_log2))
        return max(low, -largest), min(high, largest)
    return low, high


@njit(cache=True, nogil=True)
def _round(words: Any, scale: Any, low: Any, high: Any, out: Any) -> Any:
    """Round every word times `scale`, halves to even; tell whether any is out of the limits."""
    wrong = False
    for place in range(words.size):
        scaled = np.rint(words[place] * scale)
        wrong |= not (scaled >= low and scaled <= high)
        out[place] = np.int32(scaled)
    return wrong


@njit(cache=True, nogil=True)
def _look_up(words: Any, table: Any, wrong_value: Any, out: Any) -> Any:
    wrong = False
    for place in range(words.size):
        value = table[words[place]]
        wrong |= value == wrong_value
        out[place] = value
    return wrong


@njit(cache=True, nogil=True)
def _copy(words: Any, low: Any, high: Any, out: Any) -> Any:
    wrong = False
    for place in range(words.size):
        value = words[place]
        wrong |= not (value >= low and value <= high)
        out[place] = np.int32(value)
    return wrong


def exact_numbers(words: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return a tensor's elements as numbers: of BF16, given as uint16, as float32.

    Parameters
    ----------
    words : ndarray
        The elements, as `egret.checkpoint.TensorSource.read` gives them.
    dtype : str
        Dtype of the tensor, one of `CODED_DTYPES`.
    """
    if dtype == "BF16" and words.dtype.kind == "u":
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return words


def _scaled(numbers: NDArray[Any], step_log2: int) -> NDArray[np.float64]:
    # float64 holds every float32 times a power of two, so that nothing but rint rounds. What
    # overflows or is no number is refused by its size.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.rint(np.ldexp(numbers.astype(np.float64), step_log2))


@lru_cache(maxsize=16)
def _table(dtype: str, step_log2: int, low: int, high: int) -> NDArray[np.int32]:
    """Tabulate the value of every 16-bit floating word."""
    words = np.arange(1 << 16, dtype=np.uint16)
    numbers = exact_numbers(words, dtype) if dtype == "BF16" else words.view(np.float16)
    scaled = _scaled(numbers, step_log2)
    right = (scaled >= low) & (scaled <= high)
    return np.where(right, scaled, _WRONG).astype(np.int32)


def quantize_words(
    words: NDArray[Any],
    dtype: str,
    step_log2: int,
    *,
    bits: int,
    name: str,
    shape: tuple[int, ...] | None = None,
    start: int = 0,
    out: NDArray[np.int32] | None = None,
) -> NDArray[np.int32]:
    """Round a run of a tensor's elements to multiples of 2^-step_log2, halves to even.

    Parameters
    ----------
    words : ndarray, shape (count,)
        Elements in C order: floating numbers, or for BF16 also its 16-bit words as uint16. Of
        signed integers, and of any of an integer dtype, each is its value already.
    dtype : str
        Dtype of the tensor, one of `CODED_DTYPES`.
    step_log2 : int
        n of the step 2^-n, in `STEP_LOG2_RANGE`; 0 for the integer dtypes.
    bits : int
        Range of the result: a signed integer of so many bits, `MIN_BITS` to `MAX_BITS`.
    name : str
        Name of the tensor, for error messages.
    shape : tuple of int, optional
        Shape of the whole tensor, for error messages; that of `words` when absent.
    start : int
        Number of elements of the tensor before `words`.
    out : ndarray of int32, shape (count,), optional
        Where to put the result, instead of in a new array.

    Returns
    -------
    ndarray of int32, shape (count,)
        The integers.

    Raises
    ------
    QuantizationError
        An element is NaN or infinite, its integer needs more than `bits` bits, or it rounds
        beyond the largest F16 number of an F16 tensor. The message names the tensor and the
        first such element.
    """
    low, high = value_limits(dtype, step_log2, bits)
    words = np.ascontiguousarray(words).reshape(-1)
    out = np.empty(words.size, np.int32) if out is None else out
    integers = words.dtype.kind == "i" or dtype in INTEGER_DTYPES
    if integers:
        wrong = _copy(words, low, high, out)
    elif words.dtype.itemsize == 2:
        table = _table("BF16" if words.dtype.kind == "u" else "F16", step_log2, low, high)
        wrong = _look_up(words.view(np.uint16), table, _WRONG, out)
    else:
        # A power of two scales exactly, unless it leaves the type's range: then the result is out
        # of the limits, or a number that is rounded to 0 anyway.
        scale = words.dtype.type(math.ldexp(1.0, step_log2))
        wrong = _round(words, scale, words.dtype.type(low), words.dtype.type(high), out)
    if wrong:
        numbers = words if integers else exact_numbers(words, dtype)
        scaled = numbers if integers else _scaled(numbers, step_log2)
        first = int(np.argmax(~((scaled >= low) & (scaled <= high))))
        where = np.unravel_index(start + first, words.shape if shape is None else shape)
        found = f"{numbers[first]}" if integers else f"{numbers[first]:g}"
        _refuse(
            f"tensor {name!r}: weight {[int(i) for i in where]} is {found}",
            float(numbers[first]),
            float(scaled[first]),
            dtype,
            step_log2,
            bits,
        )
    return out


def _refuse(
    place: str, number: float, scaled: float, dtype: str, step_log2: int, bits: int
) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if not math.isfinite(number):
        raise QuantizationError(f"{place}, expected a finite number")
    if not low <= scaled <= high:
        raise QuantizationError(
            f"{place}, which is {scaled:.0f} steps of 2^{-step_log2}; "
            f"expected {low} to {high} ({bits} bits)"
        )
    if dtype == "F16":
        raise QuantizationError(
            f"{place}, which rounds to {math.ldexp(scaled, -step_log2):g} in steps of "
            f"2^{-step_log2}; expected at most the largest F16 number, {_LARGEST_F16:g}"
        )
    low, high = _INTEGER_LIMITS[dtype]
    raise QuantizationError(f"{place}, expected {low} to {high} ({dtype})")


def extremes(
    words: NDArray[Any],
    dtype: str,
    *,
    name: str,
    shape: tuple[int, ...] | None = None,
    start: int = 0,
) -> tuple[float, float]:
    """Return the smallest and the largest of a run of a tensor's elements.

    Parameters
    ----------
    words, dtype, name, shape, start
        As for `quantize_words`, of a floating dtype and with at least one element.

    Returns
    -------
    tuple of two float
        Smallest and largest element.

    Raises
    ------
    QuantizationError
        An element is NaN or infinite; the message names the first.
    """
    numbers = exact_numbers(words.reshape(-1), dtype)
    if numbers.dtype.itemsize == 2:
        numbers = numbers.astype(np.float32)
    low, high = float(numbers.min()), float(numbers.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        first = int(np.argmax(~np.isfinite(numbers)))
        where = np.unravel_index(start + first, words.shape if shape is None else shape)
        raise QuantizationError(
            f"tensor {name!r}: weight {[int(i) for i in where]} is {numbers[first]:g}, expected a "
            "finite number"
        )
    return low, high


def finest_step(lowest: float, highest: float, bits: int, dtype: str, *, name: str) -> int:
    """Find the finest step at which weights fit a number of bits.

    Parameters
    ----------
    lowest, highest : float
        The smallest and the largest weight, finite.
    bits : int
        Range, in bits of a signed integer.
    dtype : str
        Dtype of the tensor, one of `FLOAT_DTYPES`.
    name : str
        Name of the tensor, for error messages.

    Returns
    -------
    int
        The largest n in `STEP_LOG2_RANGE` whose step 2^-n does. `DEFAULT_STEP_LOG2` where all
        weights are 0, which fit at every step.

    Raises
    ------
    QuantizationError
        The weights fit at no step of that range.
    """
    if lowest == highest == 0:
        return DEFAULT_STEP_LOG2
    coarsest, finest = STEP_LOG2_RANGE
    for step_log2 in range(finest, coarsest - 1, -1):
        low, high = value_limits(dtype, step_log2, bits)
        ends = _scaled(np.array([lowest, highest]), step_log2)
        if ends[0] >= low and ends[1] <= high:
            return step_log2
    raise QuantizationError(
        f"tensor {name!r}: found weights from {lowest:g} to {highest:g}, expected some that fit "
        f"{bits} bits in steps of at most 2^{-coarsest}"
    )


def quantize(
    array: ArrayLike,
    step_log2: int = DEFAULT_STEP_LOG2,
    *,
    name: str,
    bits: int = DEFAULT_BITS,
    dtype: str = "F32",
) -> QuantizedTensor:
    """Round weights to multiples of 2^-step_log2, halves to even.

    Parameters
    ----------
    array : array_like of floating point, any shape
        Weights.
    step_log2 : int
        n of the step 2^-n.
    name : str
        Name of the tensor, for error messages.
    bits : int
        Range of the result: a signed integer of so many bits, `MIN_BITS` to `MAX_BITS`.
    dtype : str
        Dtype of the original tensor, kept for unpacking.

    Returns
    -------
    QuantizedTensor
        Values of the same shape.

    Raises
    ------
    QuantizationError
        As from `quantize_words`; or `step_log2` or `bits` is out of range.

    Notes
    -----
    Source: arXiv 2504.16968, where n = 8.
    """
    weights = np.asarray(array)
    check_step(step_log2, f"tensor {name!r}")
    check_bits(bits, f"tensor {name!r}")
    if weights.dtype.kind != "f" or weights.dtype.itemsize > np.dtype(np.float64).itemsize:
        weights = weights.astype(np.float64)
    values = quantize_words(
        weights.reshape(-1), dtype, step_log2, bits=bits, name=name, shape=weights.shape
    )
    return QuantizedTensor(values.reshape(weights.shape), step_log2, dtype)
