from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egret.errors import FormatError, QuantizationError
from egret.value_map import count_values, from_indices, rank_values, to_indices

VALUES = st.lists(
    st.one_of(st.integers(-4, 4), st.integers(-(2**31), 2**31 - 1)), min_size=0, max_size=60
)


def test_most_frequent_first_then_smaller_then_positive() -> None:
    values = np.array([3, 3, 3, -1, 1, 0, -2, 2, -2, 2, 7], np.int32)
    assert rank_values(values).tolist() == [3, 2, -2, 0, 1, -1, 7]


@settings(derandomize=True, deadline=None)
@given(VALUES)
def test_ranks_counts_and_round_trip(numbers: list[int]) -> None:
    values = np.array(numbers, np.int32)
    counter = Counter(numbers)
    expected = sorted(counter, key=lambda v: (-counter[v], abs(v), v < 0))
    table, counts = count_values(values)
    assert table.tolist() == expected
    assert counts.tolist() == [counter[v] for v in expected]
    indices = to_indices(values, table)
    assert indices.tolist() == [expected.index(v) for v in numbers]
    assert from_indices(indices, table).tolist() == numbers


def test_keeps_the_shape() -> None:
    values = np.array([[1, 2], [2, 2]], np.int32)
    indices = to_indices(values, rank_values(values))
    assert indices.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("table", [[0, 2], [0, 2**31 - 1, -(2**31)], []])
def test_value_that_is_not_in_the_map(table: list[int]) -> None:
    with pytest.raises(QuantizationError, match="value 1 is not in the value map"):
        to_indices(np.array([1], np.int32), np.array(table, np.int32))


def test_index_beyond_the_map() -> None:
    with pytest.raises(FormatError, match="index 2 lies beyond the value map of 2 entries"):
        from_indices(np.array([0, 2], np.uint32), np.array([5, 6], np.int32))
