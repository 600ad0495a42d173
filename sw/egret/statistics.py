"""What other codes, and the entropy, would take for the same symbols."""

import heapq

import numpy as np
from numpy.typing import NDArray

__all__ = ["entropy_bits", "fixed_length_bits", "huffman_bits"]


def _positive(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    whole = np.asarray(counts, np.int64).reshape(-1)
    return whole[whole > 0]


def entropy_bits(counts: NDArray[np.integer]) -> float:
    """Return the empirical entropy of all symbols together.

    Parameters
    ----------
    counts : ndarray of integers
        How often each symbol occurs; zeros are allowed.

    Returns
    -------
    float
        Bits: the sum over symbols of count · log2(total / count).
    """
    used = _positive(counts).astype(np.float64)
    return float(np.sum(used * (np.log2(used.sum()) - np.log2(used)))) if used.size else 0.0


def huffman_bits(counts: NDArray[np.integer]) -> int:
    """Return the length of all symbols in a Huffman code made for them, its table not counted.

    Parameters
    ----------
    counts : ndarray of integers
        How often each symbol occurs; zeros are allowed.

    Returns
    -------
    int
        Bits of the codewords. A lone symbol takes one bit each time.
    """
    heap = _positive(counts).tolist()
    if len(heap) == 1:
        return int(heap[0])
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        # Each merge puts one bit before every symbol below it.
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return int(total)


def fixed_length_bits(counts: NDArray[np.integer]) -> int:
    """Return the length of all symbols at one width, just enough to number those that occur.

    Parameters
    ----------
    counts : ndarray of integers
        How often each symbol occurs; zeros are allowed.

    Returns
    -------
    int
        Bits: total · max(1, ceil(log2(distinct))). The paper's "FL" (arXiv 2504.16968).
    """
    used = _positive(counts)
    width = max(1, (used.size - 1).bit_length()) if used.size else 0
    return int(used.sum()) * width
