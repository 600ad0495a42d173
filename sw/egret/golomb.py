"""Exp-Golomb codes of order k over indices, bits most significant first.

An index i is written as the binary number x = i + 2^k of n bits, preceded by n - 1 - k zero
bits; docs/format.md, "Codewords".
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from egret.errors import FormatError
from egret.intrinsics import leading_zeros
from egret.params import MAX_ORDER

__all__ = ["MAX_SUFFIX_BITS", "best_order", "decode_golomb", "encode_golomb", "golomb_bits"]

MAX_SUFFIX_BITS = 31
"""Most suffix bits this codec reads or writes: i + 2^k is below 2^32."""

_OVERRUN = -1
_PREFIX = -2


@njit(cache=True, nogil=True)
def _count_bits(indices: Any, order: Any) -> Any:
    total: Any = 0
    for position in range(indices.size):
        number = np.uint64(indices[position]) + (np.uint64(1) << np.uint64(order))
        total += 127 - 2 * np.int64(leading_zeros(number)) - order
    return total


@njit(cache=True, nogil=True)
def _encode(indices: Any, order: Any, out: Any) -> None:
    # Bits wait right-aligned in `held`, fewer than 32 of them between codewords.
    held = np.uint64(0)
    count: Any = 0
    place = 0
    offset = np.uint64(1) << np.uint64(order)
    for position in range(indices.size):
        number = np.uint64(indices[position]) + offset
        width = 64 - np.int64(leading_zeros(number))
        length = 2 * width - 1 - order
        if length > 32:
            count += length - width
            held = held << np.uint64(length - width)
            length = width
            if count >= 32:
                count -= 32
                for shift in range(24, -8, -8):
                    out[place] = (held >> np.uint64(count + shift)) & np.uint64(255)
                    place += 1
        held = (held << np.uint64(length)) | number
        count += length
        if count >= 32:
            count -= 32
            for shift in range(24, -8, -8):
                out[place] = (held >> np.uint64(count + shift)) & np.uint64(255)
                place += 1
    while count >= 8:
        count -= 8
        out[place] = (held >> np.uint64(count)) & np.uint64(255)
        place += 1
    if count > 0:
        out[place] = (held << np.uint64(8 - count)) & np.uint64(255)


@njit(cache=True, nogil=True)
def _window(data: Any, position: int) -> Any:
    """Read the 57 or more bits from `position`, left-aligned; `data` has 8 spare bytes."""
    first = position >> 3
    word = np.uint64(0)
    for step in range(8):
        word = (word << np.uint64(8)) | np.uint64(data[first + step])
    return word << np.uint64(position & 7)


@njit(cache=True, nogil=True)
def _decode(data: Any, bits: Any, order: Any, suffix_limit: Any, out: Any) -> Any:
    """Fill `out`; return the bits read, or a negative code for what is wrong."""
    position: Any = 0
    offset = np.uint64(1) << np.uint64(order)
    for place in range(out.size):
        if position >= bits:
            return _OVERRUN
        word = _window(data, position)
        zeros = np.int64(leading_zeros(word))
        if zeros + order > suffix_limit:
            return _OVERRUN if position + suffix_limit - order >= bits else _PREFIX
        # From the one bit on: at most 32 bits, so that one more window holds them all.
        width = zeros + 1 + order
        inside = zeros + width <= 57
        word = word << np.uint64(zeros) if inside else _window(data, position + zeros)
        position += zeros + width
        if position > bits:
            return _OVERRUN
        out[place] = (word >> np.uint64(64 - width)) - offset
    return position


def _check_order(order: int) -> None:
    if not 0 <= order <= MAX_ORDER:
        raise FormatError(f"found exp-Golomb order {order}, expected 0 to {MAX_ORDER}")


def encode_golomb(
    indices: NDArray[np.unsignedinteger], order: int
) -> tuple[NDArray[np.uint8], int]:
    """Write indices as exp-Golomb codewords of one order.

    Parameters
    ----------
    indices : ndarray of unsigned integers, any shape
        Indices in C order, each below 2^31.
    order : int
        k, 0 to `egret.params.MAX_ORDER`.

    Returns
    -------
    data : ndarray of uint8, shape (ceil(bits / 8),)
        The codewords, most significant bit first, filled with zero bits to a whole byte.
    bits : int
        Bits of the codewords alone.

    Raises
    ------
    FormatError
        The order or an index is out of range.
    """
    _check_order(order)
    flat = np.ascontiguousarray(indices).reshape(-1)
    if flat.size and int(flat.max()) >= 1 << MAX_SUFFIX_BITS:
        raise FormatError(f"found index {int(flat.max())}, expected one below 2^{MAX_SUFFIX_BITS}")
    flat = flat.astype(np.uint32, copy=False)
    bits = int(_count_bits(flat, order))
    data = np.empty((bits + 7) // 8, np.uint8)
    _encode(flat, order, data)
    return data, bits


def decode_golomb(
    data: NDArray[np.uint8] | bytes | memoryview,
    count: int,
    order: int,
    *,
    suffix_limit: int = MAX_SUFFIX_BITS,
    bits: int,
) -> NDArray[np.uint32]:
    """Read exp-Golomb codewords; the inverse of `encode_golomb`.

    Parameters
    ----------
    data : ndarray of uint8 or bytes
        The codewords.
    count : int
        Number of codewords. They must take up exactly `bits` bits.
    order : int
        k, 0 to `egret.params.MAX_ORDER`.
    suffix_limit : int
        Most suffix bits of a legal codeword, k to `MAX_SUFFIX_BITS`.
    bits : int
        Bits of the codewords, at most eight times the bytes of `data`.

    Returns
    -------
    ndarray of uint32, shape (count,)
        The indices.

    Raises
    ------
    FormatError
        The codewords go on beyond `bits` or end before it, a prefix asks for more suffix bits
        than `suffix_limit`, or an argument is out of range. Nothing is allocated for a
        `count` that `bits` cannot hold.
    """
    _check_order(order)
    if not order <= suffix_limit <= MAX_SUFFIX_BITS:
        raise FormatError(
            f"found suffix limit {suffix_limit}, expected {order} to {MAX_SUFFIX_BITS}"
        )
    stored = np.frombuffer(data, np.uint8)
    if not 0 <= bits <= 8 * stored.size:
        raise FormatError(f"found {bits} code bits, expected at most {8 * stored.size}")
    if not 0 <= count <= bits // (order + 1):
        raise FormatError(
            f"found {count} codewords in {bits} bits, expected at most {bits // (order + 1)}"
        )
    out = np.empty(count, np.uint32)
    spare = np.zeros(8, np.uint8)
    used = int(_decode(np.concatenate((stored, spare)), bits, order, suffix_limit, out))
    if used == _OVERRUN:
        raise FormatError(f"the codewords do not end within their {bits} bits")
    if used == _PREFIX:
        raise FormatError(f"a codeword's prefix asks for more than {suffix_limit} suffix bits")
    if used != bits:
        raise FormatError(f"{count} codewords take {used} bits, expected {bits}")
    return out


def golomb_bits(histogram: NDArray[np.integer], order: int) -> int:
    """Count the bits that codewords of one order take.

    Parameters
    ----------
    histogram : ndarray of integers, shape (entries,)
        How often each index occurs.
    order : int
        k, 0 to `egret.params.MAX_ORDER`.

    Returns
    -------
    int
        Bits of the codewords alone.

    Raises
    ------
    FormatError
        The order is out of range.
    """
    _check_order(order)
    counts = np.asarray(histogram, np.int64)
    # frexp's exponent of a whole number below 2^53 is its length in binary.
    widths = np.frexp(np.arange(counts.size) + float(1 << order))[1].astype(np.int64)
    return int(np.dot(counts, 2 * widths - 1 - order))


def best_order(histogram: NDArray[np.integer]) -> tuple[int, int]:
    """Find the order with the fewest code bits, the smallest of equal ones.

    Parameters
    ----------
    histogram : ndarray of integers, shape (entries,)
        How often each index occurs.

    Returns
    -------
    order : int
        k.
    bits : int
        Bits of the codewords at that order.
    """
    bits, order = min((golomb_bits(histogram, order), order) for order in range(MAX_ORDER + 1))
    return order, bits
