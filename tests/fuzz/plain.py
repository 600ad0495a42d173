"""Run the compiled loops as plain Python, so that a fuzzer sees their branches.

`NUMBA_DISABLE_JIT=1` does that for all but the machine operations, which stand here, and check that
no address lies outside its array.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def leading_zeros(number: np.uint64) -> np.uint64:
    return np.uint64(64 - int(number).bit_length())


def _bounded(array: NDArray[np.uint8], index: Any) -> slice:
    start = int(index)
    assert 0 <= start <= array.size - 8, f"a word at {start} of {array.size} bytes"
    return slice(start, start + 8)


def load_word(array: NDArray[np.uint8], index: Any) -> np.uint64:
    return np.uint64(int.from_bytes(array[_bounded(array, index)].tobytes(), "big"))


def store_word(array: NDArray[np.uint8], index: Any, number: np.uint64) -> None:
    array[_bounded(array, index)] = np.frombuffer(int(number).to_bytes(8, "big"), np.uint8)


def install() -> None:
    """Put these in the place of the machine operations; before the codec is imported."""
    from egret import intrinsics

    for function in (leading_zeros, load_word, store_word):
        assert hasattr(intrinsics, function.__name__)
        setattr(intrinsics, function.__name__, function)
    # Wrapping around is what the machine does.
    np.seterr(over="ignore")


def return_python_numbers() -> None:
    """Let a compiled function that Python calls return Python's numbers, as a compiled one does."""
    from egret import codebook

    def returning(function: Callable[..., Any]) -> Callable[..., tuple[int, ...]]:
        return lambda *arguments: tuple(map(int, function(*arguments)))

    for name in ("_golomb_at", "_take_places"):
        setattr(codebook, name, returning(getattr(codebook, name)))
