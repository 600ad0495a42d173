"""Rounding weights to integers: Q = round(2^n · θ) (arXiv 2504.16968, section on quantisation)."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from egret.errors import QuantizationError

__all__ = [
    "DEFAULT_BITS",
    "DEFAULT_STEP_LOG2",
    "FLOAT_DTYPES",
    "MAX_BITS",
    "STEP_LOG2_RANGE",
    "QuantizedTensor",
    "check_step",
    "quantize",
]

FLOAT_DTYPES = ("F32", "F16", "BF16", "F64")
"""Names, as in safetensors, of the dtypes whose tensors can be coded."""
DEFAULT_STEP_LOG2 = 8
"""n of the paper's step, 2^-8."""
DEFAULT_BITS = 16
"""Range of the quantiser when none is asked for, in bits of a signed integer."""
MAX_BITS = 24
"""Widest quantised value: every 24-bit integer times a power of two is exact in float32."""
STEP_LOG2_RANGE = (-64, 64)
"""Smallest and largest n of a step 2^-n."""

_LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers that stand for weights: weight = value · 2^-step_log2.

    Parameters
    ----------
    values : ndarray of int32, any shape
        The integers.
    step_log2 : int
        n of the step 2^-n.
    dtype : str
        Dtype of the original tensor, one of `FLOAT_DTYPES`.

    Raises
    ------
    QuantizationError
        `values` is not int32, the step is outside `STEP_LOG2_RANGE`, or the dtype is not one
        of `FLOAT_DTYPES`.
    """

    values: NDArray[np.int32] = field(repr=False)
    step_log2: int
    dtype: str = "F32"

    def __post_init__(self) -> None:
        if self.values.dtype != np.int32:
            raise QuantizationError(f"quantised values: found {self.values.dtype}, expected int32")
        check_step(self.step_log2, "quantised tensor")
        if self.dtype not in FLOAT_DTYPES:
            raise QuantizationError(
                f"quantised tensor: found dtype {self.dtype!r}, "
                f"expected one of {', '.join(FLOAT_DTYPES)}"
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
        The step is out of range.
    """
    low, high = STEP_LOG2_RANGE
    if not low <= step_log2 <= high:
        raise QuantizationError(
            f"{where}: found steps of 2^{-step_log2}, expected 2^-n with n from {low} to {high}"
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
        Range of the result: a signed integer of so many bits, 2 to `MAX_BITS`.
    dtype : str
        Dtype of the original tensor, kept for unpacking.

    Returns
    -------
    QuantizedTensor
        Values of the same shape.

    Raises
    ------
    QuantizationError
        A weight is NaN or infinite, or its integer needs more than `bits` bits; the message
        names the tensor and the first such weight. Or a weight rounds beyond the largest F16
        number of an F16 tensor. Or `step_log2` or `bits` is out of range.

    Notes
    -----
    Source: arXiv 2504.16968, where n = 8.
    """
    weights = np.asarray(array)
    check_step(step_log2, f"tensor {name!r}")
    if not 2 <= bits <= MAX_BITS:
        raise QuantizationError(f"tensor {name!r}: found {bits} bits, expected 2 to {MAX_BITS}")
    # float64 holds every float32 times a power of two, so that nothing but rint rounds.
    scaled = np.rint(np.ldexp(weights.astype(np.float64), step_log2))
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    wrong = ~((scaled >= low) & (scaled <= high))
    if wrong.any():
        index = tuple(map(int, np.unravel_index(int(np.argmax(wrong)), wrong.shape)))
        weight = float(weights[index])
        place = f"tensor {name!r}: weight {list(index)} is {weight:g}"
        if not np.isfinite(weight):
            raise QuantizationError(f"{place}, expected a finite number")
        raise QuantizationError(
            f"{place}, which is {scaled[index]:.0f} steps of 2^{-step_log2}; "
            f"expected {low} to {high} ({bits} bits)"
        )
    if dtype == "F16" and scaled.size:
        largest = float(np.abs(np.ldexp(scaled, -step_log2)).max())
        if largest > _LARGEST_F16:
            raise QuantizationError(
                f"tensor {name!r}: rounds to {largest:g} in steps of 2^{-step_log2}, expected at "
                f"most the largest F16 number, {_LARGEST_F16:g}"
            )
    return QuantizedTensor(scaled.astype(np.int32), step_log2, dtype)
