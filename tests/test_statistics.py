import math
from itertools import product

import numpy as np
import pytest

from egret.statistics import entropy_bits, fixed_length_bits, huffman_bits


def best_prefix_code_bits(counts: tuple[int, ...]) -> int:
    """Try every set of codeword lengths that satisfies Kraft's inequality."""
    size = len(counts)
    lengths = product(range(1, size + 1), repeat=size)
    return min(
        sum(count * length for count, length in zip(counts, choice, strict=True))
        for choice in lengths
        if sum(2.0**-length for length in choice) <= 1
    )


@pytest.mark.parametrize(
    "counts", [(5,), (1, 1), (9, 1, 1), (45, 13, 12, 16, 9, 5), (1, 1, 1, 1, 1), (8, 4, 2, 1)]
)
def test_huffman_is_the_best_prefix_code(counts: tuple[int, ...]) -> None:
    assert huffman_bits(np.array(counts)) == best_prefix_code_bits(counts)


def test_known_values() -> None:
    counts = np.array([4, 2, 0, 1, 1])
    assert entropy_bits(counts) == pytest.approx(14.0)
    assert huffman_bits(counts) == 14
    assert fixed_length_bits(counts) == 16


def test_fixed_length_numbers_the_values_that_occur() -> None:
    # The paper's BERT: 641 values occur, so 10 bits each.
    assert fixed_length_bits(np.ones(641, int)) == 641 * 10
    assert fixed_length_bits(np.ones(512, int)) == 512 * 9
    assert fixed_length_bits(np.ones(513, int)) == 513 * 10


def test_one_symbol_and_none() -> None:
    assert entropy_bits(np.array([7])) == 0.0
    assert huffman_bits(np.array([7])) == fixed_length_bits(np.array([7])) == 7
    empty = np.array([], int)
    assert entropy_bits(empty) == huffman_bits(empty) == fixed_length_bits(empty) == 0


def test_entropy_bounds_huffman() -> None:
    counts = np.random.default_rng(3).integers(1, 1000, 300)
    entropy = entropy_bits(counts)
    assert entropy <= huffman_bits(counts) < entropy + counts.sum()
    assert entropy == pytest.approx(
        math.fsum(c * math.log2(counts.sum() / c) for c in counts.tolist())
    )
