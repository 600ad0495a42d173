"""The value map: a value's rank by frequency is the index that gets coded.

Source: arXiv 2504.16968; few of the possible quantised values occur, and frequent ones shall
have short codewords.
"""

import numpy as np
from numpy.typing import NDArray

from egret.errors import FormatError, QuantizationError

__all__ = ["count_values", "from_indices", "rank_values", "to_indices"]

# Up to so many values between the smallest and the largest, a table beats sorting.
_TABLE_SPAN = 1 << 24


def count_values(
    values: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Count how often each value occurs.

    Parameters
    ----------
    values : ndarray of int32, any shape
        Quantised weights.

    Returns
    -------
    distinct : ndarray of int32, shape (entries,)
        The values that occur, most frequent first. Of equally frequent ones the smaller
        magnitude comes first, and of v and -v the positive one.
    counts : ndarray of int64, shape (entries,)
        Their numbers of occurrences.
    """
    flat = values.reshape(-1)
    if flat.size == 0:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    low, high = int(flat.min()), int(flat.max())
    if high - low < max(_TABLE_SPAN, 4 * flat.size):
        table = np.bincount(flat.astype(np.int64) - low)
        distinct = np.flatnonzero(table)
        counts = table[distinct]
        distinct = distinct + low
    else:
        distinct, counts = np.unique(flat.astype(np.int64), return_counts=True)
    order = np.lexsort((distinct < 0, np.abs(distinct), -counts))
    return distinct[order].astype(np.int32), counts[order].astype(np.int64)


def rank_values(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the distinct values, most frequent first.

    Parameters
    ----------
    values : ndarray of int32, any shape
        Quantised weights.

    Returns
    -------
    ndarray of int32, shape (entries,)
        The value map: entry i is the value of index i. Of equally frequent values the smaller
        magnitude comes first, and of v and -v the positive one.
    """
    return count_values(values)[0]


def to_indices(values: NDArray[np.int32], table: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Replace every value by its place in the value map.

    Parameters
    ----------
    values : ndarray of int32, any shape
        Quantised weights.
    table : ndarray of int32, shape (entries,)
        Value map with distinct entries.

    Returns
    -------
    ndarray of uint32
        Indices, in the shape of `values`.

    Raises
    ------
    QuantizationError
        A value is not in the map.
    """
    if values.size == 0:
        return np.zeros(values.shape, np.uint32)
    wide = table.astype(np.int64)
    low, high = (int(wide.min()), int(wide.max())) if wide.size else (0, -1)
    outside = (values < low) | (values > high)
    if outside.any():
        raise _not_in_map(values[outside][0])
    if high - low < max(_TABLE_SPAN, 4 * values.size):
        ranks = np.full(high - low + 1, -1, np.int64)
        ranks[wide - low] = np.arange(wide.size)
        indices = ranks[values.astype(np.int64) - low]
        missing = indices < 0
    else:
        ascending = np.argsort(wide)
        indices = ascending[np.searchsorted(wide, values, sorter=ascending)]
        missing = table[indices] != values
    if missing.any():
        raise _not_in_map(values[missing][0])
    return indices.astype(np.uint32)


def _not_in_map(value: np.int32) -> QuantizationError:
    return QuantizationError(f"value {int(value)} is not in the value map")


def from_indices(indices: NDArray[np.uint32], table: NDArray[np.int32]) -> NDArray[np.int32]:
    """Replace every index by its value; the inverse of `to_indices`.

    Parameters
    ----------
    indices : ndarray of uint32, any shape
        Places in the value map.
    table : ndarray of int32, shape (entries,)
        Value map.

    Returns
    -------
    ndarray of int32
        Values, in the shape of `indices`.

    Raises
    ------
    FormatError
        An index lies beyond the map.
    """
    if indices.size and int(indices.max()) >= table.size:
        raise FormatError(
            f"index {int(indices.max())} lies beyond the value map of {table.size} entries"
        )
    return table[indices]
