"""Coding whole tensors: chunks of codewords by a codebook, several decoded at a time.

The bits are those of docs/format.md, chapter 1. A codeword's length is known only after its prefix,
so that a stream alone cannot be decoded faster than one such dependence after the other. Chunks are
independent: one thread decodes four of them in turns, and threads share them.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit
from numpy.typing import NDArray

from egret.codebook import MAX_VALUE, MIN_VALUE, Codebook, from_zigzag
from egret.errors import EgretError, FormatError
from egret.intrinsics import leading_zeros, load_word, store_word
from egret.prefix_code import LONGEST_CODEWORD, PrefixCode

__all__ = ["MAX_CHUNK", "choose_chunk", "decode", "encode"]

MAX_CHUNK = 1 << 16
"""Most weights of a chunk."""

# Chunks that one thread decodes in turns.
_LANES = 4
# Bytes of code below which a tensor is one chunk, as far as the format allows.
_WHOLE_BYTES = 4096
# A decoder reads eight bytes at the position of each of two codewords.
_SPARE_BYTES = 32
# An encoder looks values up in a table of all between the smallest and largest, unless it is
# wider than this.
_TABLE_SPAN = 1 << 20
# First bits of a codeword that a decoder looks up; longer ones are worked out.
_LEVEL_BITS = 12
_RUN_BITS = 11
_PAIR_BITS = _LEVEL_BITS + _RUN_BITS
# An entry of those tables: the length, a bit that says that there is one, and value or run.
_LENGTH = 31
_HIT = 32
_PAYLOAD = 6
# Length of "no codeword" in an encoder's table entry of codeword · 64 + length.
_ABSENT = 63

_OK, _LONG, _PREFIX, _INDEX, _RUN = range(5)
_FAULTS = {
    _LONG: "the codewords take another number of bits than the index says",
    _PREFIX: "found a prefix that no codeword has",
    _INDEX: "found an index that stands for no value",
    _RUN: "found a run of zeros that goes on beyond its chunk",
}


@njit(inline="always")
def _window(data: Any, position: Any) -> Any:
    """Read the 57 or more bits from a position on, left-aligned."""
    return load_word(data, np.int64(position >> np.uint64(3))) << (position & np.uint64(7))


@njit(inline="always")
def _codeword(window: Any, rows: Any) -> Any:
    """Return the symbol that a left-aligned window begins with, and its codeword's length."""
    row = rows[leading_zeros(window)]
    before = (row >> np.uint64(16)) & np.uint64(63)
    shift = (row >> np.uint64(8)) & np.uint64(63)
    symbol = (((window << before) >> np.uint64(1)) >> shift) + (row >> np.uint64(32))
    return symbol, row & np.uint64(255)


@njit(inline="always")
def _value(index: Any, values: Any, skip: Any) -> Any:
    """Return the value of an index; `values` is empty for a zigzag map."""
    if values.size:
        return np.int32(values[index])
    number = np.int64(index) + skip
    return np.int32((number >> 1) ^ -(number & 1))


@njit(cache=True, nogil=True)
def _fill(
    suffix_bits: Any, has_ones: Any, width: Any, limit: Any, payloads: Any, table: Any
) -> Any:
    """Fill a table by the first `width` bits of the stream for symbols below `limit`."""
    table[:] = 0
    symbol = 0
    last = suffix_bits.size - 1
    for number in range(suffix_bits.size):
        suffix = suffix_bits[number]
        one = 1 if has_ones or number < last else 0
        length = number + one + suffix
        if number + one > width:
            break
        # The codewords of a class are one after the other.
        head = 1 << (width - number - one) if one else 0
        if length <= width:
            span = 1 << (width - length)
            for place in range(min(1 << suffix, limit - symbol)):
                entry = payloads[symbol + place] << _PAYLOAD | _HIT | length
                for spot in range(head + place * span, head + (place + 1) * span):
                    table[spot] = entry
        symbol += 1 << suffix
        if symbol >= limit:
            break


@njit(nogil=True)
def _slow_level(data: Any, position: Any, end: Any, rows: Any, values: Any, limit: Any) -> Any:
    """Read one codeword of the direct form whatever it is: position, value, fault."""
    if position > end:
        return position, np.int32(0), _LONG
    index, length = _codeword(_window(data, position), rows)
    position += length
    if length > np.uint64(LONGEST_CODEWORD):
        return position, np.int32(0), _PREFIX
    if position > end:
        return position, np.int32(0), _LONG
    if index >= np.uint64(limit):
        return position, np.int32(0), _INDEX
    return position, _value(index, values, 0), _OK


@njit(nogil=True)
def _slow_pair(
    data: Any,
    position: Any,
    end: Any,
    place: Any,
    stop: Any,
    run_rows: Any,
    rows: Any,
    values: Any,
    limit: Any,
    out: Any,
) -> Any:
    """Read a run and the level after it, if any, whatever they are: position, place, fault."""
    if position > end:
        return position, place, _LONG
    run, length = _codeword(_window(data, position), run_rows)
    position += length
    if length > np.uint64(LONGEST_CODEWORD):
        return position, place, _PREFIX
    if position > end:
        return position, place, _LONG
    if run > stop - place:
        return position, place, _RUN
    place += run
    if place == stop:
        return position, place, _OK
    index, length = _codeword(_window(data, position), rows)
    position += length
    if length > np.uint64(LONGEST_CODEWORD):
        return position, place, _PREFIX
    if position > end:
        return position, place, _LONG
    if index >= np.uint64(limit):
        return position, place, _INDEX
    out[place] = _value(index, values, 1)
    return position, place + np.uint64(1), _OK


@njit(cache=True, nogil=True)
def _direct_chunk(
    data: Any,
    position: Any,
    end: Any,
    place: Any,
    stop: Any,
    rows: Any,
    values: Any,
    limit: Any,
    table: Any,
    out: Any,
) -> Any:
    """Decode what is left of one chunk of the direct form; return a fault."""
    shift = np.uint64(64 - _LEVEL_BITS)
    while place < stop:
        # A hit takes at most so many bits: none of these can go beyond the end.
        sure = (end - position) // np.uint64(_LEVEL_BITS) if position < end else np.uint64(0)
        sure = place + min(sure, stop - place)
        while place < sure:
            entry = table[_window(data, position) >> shift]
            if entry & _HIT == 0:
                break
            out[place] = entry >> _PAYLOAD
            position += np.uint64(entry & _LENGTH)
            place += np.uint64(1)
        if place < stop:
            position, value, fault = _slow_level(data, position, end, rows, values, limit)
            if fault != _OK:
                return fault
            out[place] = value
            place += np.uint64(1)
    return _OK if position == end else _LONG


@njit(cache=True, nogil=True)
def _decode_direct(
    data: Any,
    starts: Any,
    ends: Any,
    chunk: Any,
    rows: Any,
    values: Any,
    limit: Any,
    table: Any,
    out: Any,
) -> Any:
    """Decode chunks of the direct form; return a fault and the chunk that has it."""
    shift = np.uint64(64 - _LEVEL_BITS)
    count = np.uint64(out.size)
    chunk = np.uint64(chunk)
    one = np.uint64(1)
    for first in range(0, starts.size, _LANES):
        last = min(first + _LANES, starts.size)
        # Lanes without a chunk of their own repeat the first one.
        c1 = first + 1 if first + 1 < last else first
        c2 = first + 2 if first + 2 < last else first
        c3 = first + 3 if first + 3 < last else first
        p0, p1, p2, p3 = starts[first], starts[c1], starts[c2], starts[c3]
        e0, e1, e2, e3 = ends[first], ends[c1], ends[c2], ends[c3]
        o0, o1 = np.uint64(first) * chunk, np.uint64(c1) * chunk
        o2, o3 = np.uint64(c2) * chunk, np.uint64(c3) * chunk
        common = min(chunk, count - np.uint64(last - 1) * chunk)
        if last - first == 1:
            common = np.uint64(0)
        done = np.uint64(0)
        while done < common:
            sure = common - done
            if (p0 < e0) & (p1 < e1) & (p2 < e2) & (p3 < e3):
                room = min(min(e0 - p0, e1 - p1), min(e2 - p2, e3 - p3))
                sure = done + min(sure, room // np.uint64(_LEVEL_BITS))
            else:
                sure = done
            while done < sure:
                t0 = table[_window(data, p0) >> shift]
                t1 = table[_window(data, p1) >> shift]
                t2 = table[_window(data, p2) >> shift]
                t3 = table[_window(data, p3) >> shift]
                if t0 & t1 & t2 & t3 & _HIT == 0:
                    break
                out[o0 + done] = t0 >> _PAYLOAD
                out[o1 + done] = t1 >> _PAYLOAD
                out[o2 + done] = t2 >> _PAYLOAD
                out[o3 + done] = t3 >> _PAYLOAD
                p0 += np.uint64(t0 & _LENGTH)
                p1 += np.uint64(t1 & _LENGTH)
                p2 += np.uint64(t2 & _LENGTH)
                p3 += np.uint64(t3 & _LENGTH)
                done += one
            if done < common:
                p0, v0, f0 = _slow_level(data, p0, e0, rows, values, limit)
                p1, v1, f1 = _slow_level(data, p1, e1, rows, values, limit)
                p2, v2, f2 = _slow_level(data, p2, e2, rows, values, limit)
                p3, v3, f3 = _slow_level(data, p3, e3, rows, values, limit)
                if f0 != _OK:
                    return f0, first
                if f1 != _OK:
                    return f1, c1
                if f2 != _OK:
                    return f2, c2
                if f3 != _OK:
                    return f3, c3
                out[o0 + done] = v0
                out[o1 + done] = v1
                out[o2 + done] = v2
                out[o3 + done] = v3
                done += one
        for number in range(first, last):
            lane = number - first
            position = p0 if lane == 0 else p1 if lane == 1 else p2 if lane == 2 else p3
            base = np.uint64(number) * chunk
            fault = _direct_chunk(
                data,
                position,
                ends[number],
                base + done,
                min(count, base + chunk),
                rows,
                values,
                limit,
                table,
                out,
            )
            if fault != _OK:
                return fault, number
    return _OK, 0


@njit(cache=True, nogil=True)
def _run_chunk(
    data: Any,
    position: Any,
    end: Any,
    place: Any,
    stop: Any,
    run_rows: Any,
    rows: Any,
    values: Any,
    limit: Any,
    run_table: Any,
    table: Any,
    out: Any,
) -> Any:
    """Decode what is left of one chunk of the run form, zeroed before; return a fault."""
    run_shift = np.uint64(64 - _RUN_BITS)
    shift = np.uint64(64 - _LEVEL_BITS)
    one = np.uint64(1)
    while place < stop:
        sure = (end - position) // np.uint64(_PAIR_BITS) if position < end else np.uint64(0)
        while sure > 0:
            window = _window(data, position)
            run = run_table[window >> run_shift]
            taken = np.uint64(run) & np.uint64(_LENGTH)
            entry = table[(window << taken) >> shift]
            here = place + np.uint64(run >> np.uint32(_PAYLOAD))
            if (np.uint32(entry) & run & np.uint32(_HIT) == 0) | (here >= stop):
                break
            out[here] = entry >> _PAYLOAD
            position += taken + np.uint64(entry & _LENGTH)
            place = here + one
            sure -= one
        if place < stop:
            position, place, fault = _slow_pair(
                data, position, end, place, stop, run_rows, rows, values, limit, out
            )
            if fault != _OK:
                return fault
    return _OK if position == end else _LONG


@njit(cache=True, nogil=True)
def _decode_run(
    data: Any,
    starts: Any,
    ends: Any,
    chunk: Any,
    run_rows: Any,
    rows: Any,
    values: Any,
    limit: Any,
    run_table: Any,
    table: Any,
    out: Any,
) -> Any:
    """Decode chunks of the run form; return a fault and the chunk that has it."""
    run_shift = np.uint64(64 - _RUN_BITS)
    shift = np.uint64(64 - _LEVEL_BITS)
    payload = np.uint32(_PAYLOAD)
    low = np.uint64(_LENGTH)
    one = np.uint64(1)
    count = np.uint64(out.size)
    chunk = np.uint64(chunk)
    # Chunks differ in their number of pairs: a lane that has finished takes the next chunk.
    numbers = np.full(_LANES, -1, np.int64)
    positions = np.zeros(_LANES, np.uint64)
    places = np.zeros(_LANES, np.uint64)
    waiting = 0
    while True:
        for lane in range(_LANES):
            if numbers[lane] < 0 and waiting < starts.size:
                base = np.uint64(waiting) * chunk
                numbers[lane] = waiting
                positions[lane] = starts[waiting]
                places[lane] = base
                out[base : min(count, base + chunk)] = 0
                waiting += 1
        if numbers.min() < 0:
            break
        c0, c1, c2, c3 = numbers[0], numbers[1], numbers[2], numbers[3]
        p0, p1, p2, p3 = positions[0], positions[1], positions[2], positions[3]
        o0, o1, o2, o3 = places[0], places[1], places[2], places[3]
        e0, e1, e2, e3 = ends[c0], ends[c1], ends[c2], ends[c3]
        s0 = min(count, (np.uint64(c0) + one) * chunk)
        s1 = min(count, (np.uint64(c1) + one) * chunk)
        s2 = min(count, (np.uint64(c2) + one) * chunk)
        s3 = min(count, (np.uint64(c3) + one) * chunk)
        while (o0 < s0) & (o1 < s1) & (o2 < s2) & (o3 < s3):
            sure = np.uint64(0)
            if (p0 < e0) & (p1 < e1) & (p2 < e2) & (p3 < e3):
                room = min(min(e0 - p0, e1 - p1), min(e2 - p2, e3 - p3))
                sure = room // np.uint64(_PAIR_BITS)
            while sure > 0:
                w0, w1 = _window(data, p0), _window(data, p1)
                w2, w3 = _window(data, p2), _window(data, p3)
                r0, r1 = run_table[w0 >> run_shift], run_table[w1 >> run_shift]
                r2, r3 = run_table[w2 >> run_shift], run_table[w3 >> run_shift]
                n0, n1, n2, n3 = (
                    np.uint64(r0) & low,
                    np.uint64(r1) & low,
                    np.uint64(r2) & low,
                    np.uint64(r3) & low,
                )
                t0, t1 = table[(w0 << n0) >> shift], table[(w1 << n1) >> shift]
                t2, t3 = table[(w2 << n2) >> shift], table[(w3 << n3) >> shift]
                q0 = o0 + np.uint64(r0 >> payload)
                q1 = o1 + np.uint64(r1 >> payload)
                q2 = o2 + np.uint64(r2 >> payload)
                q3 = o3 + np.uint64(r3 >> payload)
                hits = (r0 & r1) & (r2 & r3) & np.uint32((t0 & t1) & (t2 & t3))
                # One test for all lanes: a branch for each would be mispredicted by each.
                if not (
                    (hits & np.uint32(_HIT) != 0) & (q0 < s0) & (q1 < s1) & (q2 < s2) & (q3 < s3)
                ):
                    break
                out[q0] = t0 >> _PAYLOAD
                out[q1] = t1 >> _PAYLOAD
                out[q2] = t2 >> _PAYLOAD
                out[q3] = t3 >> _PAYLOAD
                p0 += n0 + np.uint64(t0 & _LENGTH)
                p1 += n1 + np.uint64(t1 & _LENGTH)
                p2 += n2 + np.uint64(t2 & _LENGTH)
                p3 += n3 + np.uint64(t3 & _LENGTH)
                o0, o1, o2, o3 = q0 + one, q1 + one, q2 + one, q3 + one
                sure -= one
            if (o0 < s0) & (o1 < s1) & (o2 < s2) & (o3 < s3):
                p0, o0, f0 = _slow_pair(data, p0, e0, o0, s0, run_rows, rows, values, limit, out)
                p1, o1, f1 = _slow_pair(data, p1, e1, o1, s1, run_rows, rows, values, limit, out)
                p2, o2, f2 = _slow_pair(data, p2, e2, o2, s2, run_rows, rows, values, limit, out)
                p3, o3, f3 = _slow_pair(data, p3, e3, o3, s3, run_rows, rows, values, limit, out)
                if f0 != _OK:
                    return f0, c0
                if f1 != _OK:
                    return f1, c1
                if f2 != _OK:
                    return f2, c2
                if f3 != _OK:
                    return f3, c3
        positions[:] = (p0, p1, p2, p3)
        places[:] = (o0, o1, o2, o3)
        for lane in range(_LANES):
            number = numbers[lane]
            if places[lane] == min(count, (np.uint64(number) + one) * chunk):
                if positions[lane] != ends[number]:
                    return _LONG, number
                numbers[lane] = -1
    for lane in range(_LANES):
        number = numbers[lane]
        if number >= 0:
            fault = _run_chunk(
                data,
                positions[lane],
                ends[number],
                places[lane],
                min(count, (np.uint64(number) + one) * chunk),
                run_rows,
                rows,
                values,
                limit,
                run_table,
                table,
                out,
            )
            if fault != _OK:
                return fault, number
    return _OK, 0


@njit(inline="always")
def _put(out: Any, place: Any, held: Any, filled: Any, entry: Any) -> Any:
    """Append a table entry's codeword; fewer than eight bits stay in `held`, left-aligned."""
    length = entry & np.uint64(63)
    filled += length
    held |= (entry >> np.uint64(6)) << ((np.uint64(64) - filled) & np.uint64(63))
    store_word(out, place, held)
    whole = filled & np.uint64(120)
    place += np.int64(whole >> np.uint64(3))
    # Up to 64 bits leave, in two shifts: one by 64 would be none.
    half = whole >> np.uint64(1)
    held = (held << half) << half
    return place, held, filled & np.uint64(7)


@njit(cache=True, nogil=True)
def _encode_direct(symbols: Any, low: Any, table: Any, chunk: Any, out: Any, bits: Any) -> Any:
    """Write chunks of the direct form; return the bytes, or -1 - n if symbol n has no codeword."""
    place = np.int64(0)
    for number in range(bits.size):
        begin = place
        held = np.uint64(0)
        filled = np.uint64(0)
        for item in range(number * chunk, min(symbols.size, (number + 1) * chunk)):
            entry = table[np.uint64(symbols[item] - low)]
            if entry & np.uint64(63) == _ABSENT:
                return -1 - item
            place, held, filled = _put(out, place, held, filled, entry)
        bits[number] = 8 * (place - begin) + np.int64(filled)
        if filled:
            out[place] = held >> np.uint64(56)
            place += 1
    return place


@njit(cache=True, nogil=True)
def _encode_run(
    symbols: Any, low: Any, zero: Any, table: Any, runs: Any, chunk: Any, out: Any, bits: Any
) -> Any:
    """Write chunks of the run form; results as of `_encode_direct`."""
    six, low_bits, absent = np.uint64(6), np.uint64(63), np.uint64(_ABSENT)
    longest = np.uint64(LONGEST_CODEWORD)
    place = np.int64(0)
    for number in range(bits.size):
        begin = place
        held = np.uint64(0)
        filled = np.uint64(0)
        stop = min(symbols.size, (number + 1) * chunk)
        start = number * chunk
        for item in range(start, stop):
            symbol = symbols[item]
            if symbol != zero:
                entry = table[np.uint64(symbol - low)]
                run = runs[np.uint64(item - start)]
                length = entry & low_bits
                total = length + (run & low_bits)
                if total <= longest:
                    both = ((run >> six) << length | entry >> six) << six | total
                    place, held, filled = _put(out, place, held, filled, both)
                else:
                    if (length == absent) | (run & low_bits == absent):
                        return -1 - item
                    place, held, filled = _put(out, place, held, filled, run)
                    place, held, filled = _put(out, place, held, filled, entry)
                start = item + 1
        if start < stop:
            run = runs[stop - start]
            if run & np.uint64(63) == _ABSENT:
                return -1 - (stop - 1)
            place, held, filled = _put(out, place, held, filled, run)
        bits[number] = 8 * (place - begin) + np.int64(filled)
        if filled:
            out[place] = held >> np.uint64(56)
            place += 1
    return place


def choose_chunk(shape: tuple[int, ...], zeros: int = 0) -> int:
    """Choose the weights of a chunk for a tensor.

    Small tensors are one chunk; larger ones a multiple of four where that fits, which is what one
    thread decodes at a time. A chunk is a whole number of rows where rows are short enough.

    Parameters
    ----------
    shape : tuple of int
        Shape of the tensor.
    zeros : int
        How many of its weights are 0, for a guess of the code's length.

    Returns
    -------
    int
        Weights, 1 to `MAX_CHUNK`.
    """
    size = math.prod(shape)
    # About five and a half bits a weight, and a third of a bit for every zero.
    likely = (5.5 * (size - zeros) + 0.3 * zeros) / 8
    if size <= MAX_CHUNK and likely < _WHOLE_BYTES:
        return max(1, size)
    groups = math.ceil(size / (_LANES * MAX_CHUNK))
    chunk = math.ceil(size / (_LANES * groups))
    row = math.prod(shape[1:])
    if row <= chunk:
        up, down = math.ceil(chunk / row) * row, chunk // row * row
        return up if up <= MAX_CHUNK else down
    return chunk


@njit(cache=True, nogil=True)
def _fill_entries(suffix_bits: Any, has_ones: Any, symbols: Any, entries: Any) -> Any:
    """Write an encoder's entry for each symbol; return the bits of the longest codeword."""
    longest = 0
    last = suffix_bits.size - 1
    number = 0
    first = 0
    for item in range(symbols.size):
        symbol = symbols[item]
        entries[item] = _ABSENT
        if symbol < 0:
            continue
        if symbol < first:
            number = first = 0
        while number <= last and symbol - first >= 1 << suffix_bits[number]:
            first += 1 << suffix_bits[number]
            number += 1
        if number > last:
            number = first = 0
            continue
        one = 1 if has_ones or number < last else 0
        length = number + one + suffix_bits[number]
        entries[item] = ((one << suffix_bits[number]) + symbol - first) << 6 | length
        longest = max(longest, length)
    return longest


def _entries(code: PrefixCode, symbols: NDArray[np.int64]) -> tuple[NDArray[np.uint64], int]:
    """Return an encoder's entries, and the bits of the longest codeword; -1 is no symbol."""
    entries = np.empty(symbols.size, np.uint64)
    longest = _fill_entries(*code.classes, symbols, entries)
    return entries, int(longest)


def _table_of(book: Codebook, low: int, high: int) -> tuple[int, NDArray[np.uint64], int]:
    """Return the first value of a table that holds `low` to `high`, the table, longest codeword."""
    kept = _TABLES.get(book)
    if kept is None or low < kept[0] or high >= kept[0] + kept[1].size:
        if kept is not None:
            low, high = min(low, kept[0]), max(high, kept[0] + kept[1].size - 1)
        kept = (low, *_entries(book.level, book.indices(np.arange(low, high + 1, dtype=np.int32))))
        _TABLES[book] = kept
    return kept


@lru_cache(maxsize=64)
def _run_entries(code: PrefixCode, count: int) -> tuple[NDArray[np.uint64], int]:
    return _entries(code, np.arange(count))


_TABLES: WeakKeyDictionary[Codebook, tuple[int, NDArray[np.uint64], int]] = WeakKeyDictionary()


def encode(
    values: NDArray[np.int32], book: Codebook, chunk: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Write values as chunks of codewords.

    Parameters
    ----------
    values : ndarray of int32, any shape
        Quantised weights, in C order.
    book : Codebook
        Codes and value map.
    chunk : int
        Weights in a chunk, 1 to `MAX_CHUNK`.

    Returns
    -------
    data : ndarray of uint8
        The chunks, one after the other, each filled with zero bits to a whole byte.
    bits : ndarray of uint32, shape (chunks,)
        Bits of the codewords of each chunk.

    Raises
    ------
    EgretError
        A value, or a run of zeros, has no codeword in this codebook, or `chunk` is out of range.
    """
    if not 1 <= chunk <= MAX_CHUNK:
        raise EgretError(f"found chunks of {chunk} weights, expected 1 to {MAX_CHUNK}")
    flat = np.ascontiguousarray(values, np.int32).reshape(-1)
    bits = np.zeros(math.ceil(flat.size / chunk), np.uint32)
    if flat.size == 0:
        return np.empty(0, np.uint8), bits
    low, high = int(flat.min()), int(flat.max())
    if low < MIN_VALUE or high > MAX_VALUE:
        raise EgretError(
            f"found value {low if low < MIN_VALUE else high}, expected {MIN_VALUE} to {MAX_VALUE}"
        )
    if high - low < _TABLE_SPAN:
        symbols, zero = flat, 0
        low, table, longest = _table_of(book, low, high)
    else:
        # A table of the weights themselves instead of one of the values.
        low, zero = 0, -1
        table, longest = _entries(book.level, book.indices(flat))
        symbols = np.arange(flat.size, dtype=np.int32)
        if book.is_run:
            symbols[flat == 0] = zero
    if book.run is None:
        out = np.empty((longest * flat.size + 7 * bits.size) // 8 + _SPARE_BYTES, np.uint8)
        used = _encode_direct(symbols, low, table, chunk, out, bits)
    else:
        runs, longest_run = _run_entries(book.run, min(chunk, flat.size) + 1)
        # At most as many pairs as weights, one run more at the end of each chunk, and its filling.
        most = (longest + longest_run) * flat.size + (longest_run + 7) * bits.size
        out = np.empty(most // 8 + _SPARE_BYTES, np.uint8)
        used = _encode_run(symbols, low, zero, table, runs, chunk, out, bits)
    if used < 0:
        place = -1 - int(used)
        raise EgretError(
            f"value {int(flat[place])} (weight {place}), or the run of zeros before it, has no "
            "codeword in this codebook"
        )
    return out[:used].copy(), bits


@dataclass(frozen=True)
class _Lookup:
    """What the kernels need of a codebook."""

    values: NDArray[np.int32]
    levels: NDArray[np.int32]
    runs: NDArray[np.uint32]

    @classmethod
    def of(cls, book: Codebook) -> "_Lookup":
        values = np.empty(0, np.int32) if book.values is None else book.padded_values
        known = min(book.limit, 1 << _LEVEL_BITS)
        if book.values is None:
            first = 1 if book.is_run else 0
            payloads = from_zigzag(np.arange(first, known + first))
        else:
            payloads = book.values
        levels = np.empty(1 << _LEVEL_BITS, np.int32)
        _fill(*book.level.classes, _LEVEL_BITS, known, payloads, levels)
        runs = np.empty(1 << _RUN_BITS if book.run is not None else 0, np.uint32)
        if book.run is not None:
            known = min(book.run.symbols, 1 << _RUN_BITS)
            _fill(*book.run.classes, _RUN_BITS, known, np.arange(known, dtype=np.int32), runs)
        return cls(values, levels, runs)


_LOOKUPS: WeakKeyDictionary[Codebook, _Lookup] = WeakKeyDictionary()


def _decode_span(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    bits: NDArray[np.uint32],
    book: Codebook,
    chunk: int,
    out: NDArray[np.int32],
    first: int,
) -> None:
    lookup = _LOOKUPS[book]
    ends = starts + bits
    level = (book.level.decode_rows, lookup.values, book.limit)
    where = (data, starts.astype(np.uint64), ends.astype(np.uint64), chunk)
    if book.run is None:
        fault, number = _decode_direct(*where, *level, lookup.levels, out)
    else:
        fault, number = _decode_run(
            *where, book.run.decode_rows, *level, lookup.runs, lookup.levels, out
        )
    if fault != _OK:
        raise FormatError(f"chunk {first + int(number)}: {_FAULTS[int(fault)]}")
    fill = (-bits.astype(np.int64)) % 8
    tails = data[np.maximum((ends + fill) // 8 - 1, 0)]
    wrong = (fill > 0) & ((tails & ((1 << fill) - 1).astype(np.uint8)) != 0)
    if wrong.any():
        raise FormatError(f"chunk {first + int(np.argmax(wrong))}: is not filled up with zero bits")


def decode(
    data: NDArray[np.uint8] | bytes | memoryview,
    bits: NDArray[np.uint32],
    book: Codebook,
    chunk: int,
    out: NDArray[np.int32],
    *,
    threads: int = 1,
    first: int = 0,
) -> None:
    """Read chunks of codewords; the inverse of `encode`.

    Parameters
    ----------
    data : ndarray of uint8 or bytes
        The chunks, one after the other, each beginning on a byte.
    bits : ndarray of uint32, shape (chunks,)
        Bits of the codewords of each chunk.
    book : Codebook
        Codes and value map.
    chunk : int
        Weights in a chunk, 1 to `MAX_CHUNK`; the last may have fewer.
    out : ndarray of int32, shape (count,)
        Filled with the values.
    threads : int
        Threads that share the chunks.
    first : int
        Number of the first of these chunks in its tensor, for error messages.

    Raises
    ------
    FormatError
        The codewords take more or fewer bits than `bits`, are none of the codebook's, or an
        argument does not fit the others; the message names the chunk. `out` then holds anything.
    """
    if not 1 <= chunk <= MAX_CHUNK:
        raise FormatError(f"found chunks of {chunk} weights, expected 1 to {MAX_CHUNK}")
    count = math.ceil(out.size / chunk)
    if bits.shape != (count,):
        raise FormatError(f"found {bits.size} chunks, expected {count}")
    stored = np.frombuffer(data, np.uint8)
    lengths = (bits.astype(np.int64) + 7) // 8
    if int(lengths.sum()) != stored.size:
        raise FormatError(f"found {stored.size} bytes of code, expected {int(lengths.sum())}")
    if count == 0:
        return
    starts = 8 * (np.cumsum(lengths) - lengths)
    if book not in _LOOKUPS:
        _LOOKUPS[book] = _Lookup.of(book)
    spans = max(1, min(threads, math.ceil(count / _LANES)))
    step = math.ceil(math.ceil(count / spans) / _LANES) * _LANES

    def run(begun: int) -> None:
        last = min(begun + step, count)
        begin = int(starts[begun]) // 8
        end = int(starts[last - 1]) // 8 + int(lengths[last - 1])
        # A copy with spare bytes: the kernels read eight bytes at a time.
        own = np.zeros(end - begin + _SPARE_BYTES, np.uint8)
        own[: end - begin] = stored[begin:end]
        _decode_span(
            own,
            starts[begun:last] - 8 * begin,
            bits[begun:last],
            book,
            chunk,
            out[begun * chunk : last * chunk],
            first + begun,
        )

    if spans == 1:
        run(0)
        return
    with ThreadPoolExecutor(spans) as pool:
        for done in [pool.submit(run, begun) for begun in range(0, count, step)]:
            done.result()
