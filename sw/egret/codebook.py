"""Codebooks: how values become bits, and how that is written down.

docs/format.md, chapter 1, "Codebooks". Which codebook suits which tensor is the business of
`egret.code_search`.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from egret.errors import FormatError
from egret.intrinsics import leading_zeros, load_word
from egret.params import MAX_ORDER
from egret.prefix_code import MAX_CLASSES, MAX_GOLOMB_SUFFIX, MAX_TABLE_SUFFIX, PrefixCode

__all__ = [
    "MAP_KINDS",
    "MAX_MEMBERS",
    "MAX_VALUE",
    "MIN_VALUE",
    "BitReader",
    "BitWriter",
    "Codebook",
    "class_pairs",
    "from_zigzag",
    "golomb_costs",
    "pairs_cost",
    "set_pairs",
    "zigzag",
]

MAX_VALUE = (1 << 23) - 1
"""Largest value that can be coded."""
MIN_VALUE = -(1 << 23)
"""Smallest value that can be coded."""
MAX_MEMBERS = 1 << 20
"""Most members of a set, which is what a value map holds."""

_NUMBERS = 1 << 24
_RUN_FORM = 1
_TABLES = 2
_ZIGZAG, _SET, _RANKED = range(3)
MAP_KINDS = ("zigzag", "set", "ranked")
"""Kinds of value maps, by their numbers in a codebook."""


def zigzag(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the zigzag numbers of values: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4.

    Parameters
    ----------
    values : ndarray of integers, any shape
        Values.

    Returns
    -------
    ndarray of int64
        Numbers, in the same shape.
    """
    wide = np.asarray(values, np.int64)
    return np.where(wide >= 0, 2 * wide, -2 * wide - 1)


def from_zigzag(numbers: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return the values that have these zigzag numbers; the inverse of `zigzag`.

    Parameters
    ----------
    numbers : ndarray of integers, any shape
        Numbers below 2^32.

    Returns
    -------
    ndarray of int32
        Values, in the same shape.
    """
    wide = np.asarray(numbers, np.int64)
    return ((wide >> 1) ^ -(wide & 1)).astype(np.int32)


@njit(cache=True, nogil=True)
def _pack(numbers: Any, widths: Any, out: Any) -> None:
    place = 0
    for item in range(numbers.size):
        for shift in range(widths[item] - 1, -1, -1):
            if shift < 64 and numbers[item] >> np.uint64(shift) & np.uint64(1):
                out[place >> 3] |= np.uint8(128 >> (place & 7))
            place += 1


@njit(cache=True, nogil=True)
def _golomb_at(data: Any, position: Any, end: Any, order: Any) -> Any:
    """Read an exp-Golomb codeword: its symbol, -1 if there is none, and the next position."""
    window = load_word(data, position >> 3) << np.uint64(position & 7)
    zeros = np.int64(leading_zeros(window))
    length = 2 * zeros + 1 + order
    if zeros + order > MAX_GOLOMB_SUFFIX or position + length > end:
        return np.int64(-1), position
    number = (window << np.uint64(zeros)) >> np.uint64(63 - zeros - order)
    return np.int64(number) - (1 << order), position + length


@njit(cache=True, nogil=True)
def golomb_costs(symbols: Any, counts: Any) -> Any:
    """Return the bits of symbols in the exp-Golomb codes of each order.

    Parameters
    ----------
    symbols : ndarray of int64, shape (n,)
        Symbols, in any order.
    counts : ndarray of int64, shape (n,)
        How often each occurs.

    Returns
    -------
    ndarray of int64, shape (MAX_ORDER + 1,)
        Bits of the codewords of orders 0 to `egret.params.MAX_ORDER`.
    """
    bits = np.zeros(MAX_ORDER + 1, np.int64)
    for order in range(bits.size):
        for place in range(symbols.size):
            width = 64 - np.int64(leading_zeros(np.uint64(symbols[place] + (1 << order))))
            bits[order] += counts[place] * (2 * width - 1 - order)
    return bits


@njit(cache=True, nogil=True)
def set_pairs(members: Any) -> Any:
    """Return how a set is written (docs/format.md, "Codebooks").

    Parameters
    ----------
    members : ndarray of int64, shape (members,)
        Numbers in the set, ascending.

    Returns
    -------
    ndarray of int64, shape (pairs, 2)
        Symbols of each pair: numbers left out, and members, each as it is coded.
    """
    pairs = np.empty((members.size, 2), np.int64)
    count = 0
    end = 0
    place = 0
    while place < members.size:
        start = members[place]
        length = 1
        while place + length < members.size and members[place + length] == start + length:
            length += 1
        pairs[count, 0] = start - end - (1 if count else 0)
        pairs[count, 1] = length - 1
        count += 1
        end = start + length
        place += length
    return pairs[:count]


@njit(cache=True, nogil=True)
def class_pairs(ranks: Any, suffix_bits: Any) -> Any:
    """Return how the classes of a ranked map are written (docs/format.md, "Codebooks").

    Parameters
    ----------
    ranks : ndarray of int64, shape (members,)
        Index of each member, by ascending number.
    suffix_bits : ndarray of int64, shape (classes,)
        Suffix bits of the level code.

    Returns
    -------
    ndarray of int64, shape (pairs, 2)
        Symbols of the pairs of all classes, as of `set_pairs`.
    """
    pairs = np.empty((ranks.size, 2), np.int64)
    count = 0
    first = 0
    left = ranks.copy()
    for number in range(suffix_bits.size):
        size = 1 << suffix_bits[number]
        if left.size <= size:
            break
        last = first + size
        found = 0
        gap = 0
        run = 0
        begun = count
        for rank in left:
            if rank < last:
                run += 1
                found += 1
                if run == 1:
                    pairs[count, 0] = gap - (1 if count > begun else 0)
                if found == size:
                    break
            else:
                if run:
                    pairs[count, 1] = run - 1
                    count += 1
                    run = gap = 0
                gap += 1
        pairs[count, 1] = run - 1
        count += 1
        left = left[left >= last]
        first = last
    return pairs[:count]


@njit(cache=True, nogil=True)
def pairs_cost(pairs: Any) -> Any:
    """Return what pairs take at their best orders.

    Parameters
    ----------
    pairs : ndarray of int64, shape (pairs, 2)
        As of `set_pairs` or `class_pairs`.

    Returns
    -------
    bits : int
        Bits of the codewords, the two orders not counted.
    gap_order, run_order : int
        Orders of the first and the second column.
    """
    ones = np.ones(pairs.shape[0], np.int64)
    gaps = golomb_costs(pairs[:, 0], ones)
    runs = golomb_costs(pairs[:, 1], ones)
    return gaps.min() + runs.min(), np.argmin(gaps), np.argmin(runs)


@njit(cache=True, nogil=True)
def _take_places(
    data: Any,
    position: Any,
    end: Any,
    gap_order: Any,
    run_order: Any,
    pairs: Any,
    members: Any,
    limit: Any,
    out: Any,
) -> Any:
    """Read so many pairs, or (where not negative) members: count and position, or -1."""
    after = 0
    found = 0
    number = 0
    while number != pairs and (members < 0 or found < members):
        gap, position = _golomb_at(data, position, end, gap_order)
        if gap < 0:
            return np.int64(-1), position
        run, position = _golomb_at(data, position, end, run_order)
        start = after + gap + (1 if number else 0)
        after = start + run + 1
        if run < 0 or after > limit or found + run + 1 > out.size:
            return np.int64(-1), position
        for place in range(start, after):
            out[found] = place
            found += 1
        number += 1
    return np.int64(found), position


class BitWriter:
    """Collects numbers of given widths, most significant bit first."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._widths: list[int] = []
        self.bits = 0

    def put(self, number: int, width: int) -> None:
        """Append `number` in `width` bits."""
        self._numbers.append(number)
        self._widths.append(width)
        self.bits += width

    def put_golomb(self, symbol: int, order: int) -> None:
        """Append the exp-Golomb codeword of a symbol."""
        number = symbol + (1 << order)
        self.put(number, 2 * number.bit_length() - 1 - order)

    def data(self) -> bytes:
        """Return the bits, filled up with zeros to a whole byte."""
        out = np.zeros((self.bits + 7) // 8, np.uint8)
        _pack(np.array(self._numbers, np.uint64), np.array(self._widths, np.int64), out)
        return out.tobytes()


class BitReader:
    """Takes numbers off bytes, most significant bit first; `FormatError` when they end."""

    def __init__(self, data: bytes) -> None:
        # Spare bytes, because eight are read at a time.
        self._data = np.concatenate((np.frombuffer(data, np.uint8), np.zeros(8, np.uint8)))
        self._end = 8 * len(data)
        self._position = 0

    @property
    def left(self) -> int:
        """Bits that have not been taken."""
        return self._end - self._position

    def take(self, width: int) -> int:
        """Take a number of at most 32 bits."""
        if width > self.left:
            raise FormatError("ends too early")
        first = self._position >> 3
        window = int.from_bytes(self._data[first : first + 8].tobytes(), "big")
        number = window >> (64 - (self._position & 7) - width) & ((1 << width) - 1)
        self._position += width
        return number

    def take_golomb(self, order: int) -> int:
        """Take an exp-Golomb codeword and return its symbol."""
        symbol, self._position = _golomb_at(self._data, self._position, self._end, order)
        if symbol < 0:
            raise FormatError("ends too early, or holds a prefix that no codeword has")
        return int(symbol)

    def take_places(
        self, orders: tuple[int, int], limit: int, *, pairs: int = -1, members: int = -1
    ) -> NDArray[np.int64]:
        """Take so many pairs, or so many members, of places below `limit`; int64, ascending."""
        out = np.empty(min(limit, MAX_MEMBERS) if members < 0 else members, np.int64)
        found, self._position = _take_places(
            self._data, self._position, self._end, *orders, pairs, members, limit, out
        )
        if found < 0:
            raise FormatError(
                "ends too early, or holds a value map that reaches beyond what there is to map"
            )
        return out[:found].copy()


def _put_table(writer: BitWriter, code: PrefixCode) -> None:
    writer.put_golomb(len(code.suffix_bits) - 1, 0)
    writer.put_golomb(code.suffix_bits[0], 0)
    for before, bits in pairwise(code.suffix_bits):
        change = bits - before
        writer.put_golomb(2 * change if change >= 0 else -2 * change - 1, 0)


def _take_table(reader: BitReader) -> PrefixCode:
    classes = reader.take_golomb(0) + 1
    if classes > MAX_CLASSES:
        raise FormatError(f"found a table of {classes} classes, expected at most {MAX_CLASSES}")
    suffix_bits = [reader.take_golomb(0)]
    for _ in range(classes - 1):
        change = reader.take_golomb(0)
        suffix_bits.append(suffix_bits[-1] + ((change >> 1) ^ -(change & 1)))
    if not all(0 <= bits <= MAX_TABLE_SUFFIX for bits in suffix_bits):
        raise FormatError(f"found suffix bits {suffix_bits}, expected 0 to {MAX_TABLE_SUFFIX}")
    return PrefixCode.table(tuple(suffix_bits))


def _put_code(writer: BitWriter, code: PrefixCode) -> None:
    if code.order is None:
        _put_table(writer, code)
    else:
        writer.put(code.order, 3)


def _take_code(reader: BitReader, is_table: bool) -> PrefixCode:
    return _take_table(reader) if is_table else PrefixCode.golomb(reader.take(3))


def _put_pairs(writer: BitWriter, pairs: NDArray[np.int64], *, counted: bool) -> None:
    _, *orders = pairs_cost(pairs)
    for order in orders:
        writer.put(int(order), 3)
    if counted:
        writer.put_golomb(len(pairs), 0)
    gap_order, run_order = map(int, orders)
    for gap, run in pairs.tolist():
        writer.put_golomb(gap, gap_order)
        writer.put_golomb(run, run_order)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Codes and value map of one or more tensors.

    Parameters
    ----------
    level : PrefixCode
        Code of the values' indices.
    run : PrefixCode or None
        Code of the runs of zeros before them; None in the direct form.
    values : ndarray of int32, shape (entries,), or None
        Value of each index. None for the zigzag map, which needs no table. Without 0 in the
        run form.
    map_kind : str
        How the values are written: "zigzag", "set" (in the order of their zigzag) or "ranked".
        A ranked map is brought into the format's order, ascending within every class.

    Raises
    ------
    FormatError
        The codes are of different kinds, or the map has more entries than codewords, too many,
        one twice or out of range, or is not in the order that its kind demands.
    """

    level: PrefixCode
    run: PrefixCode | None = None
    values: NDArray[np.int32] | None = field(default=None, repr=False)
    map_kind: str = "zigzag"

    def __post_init__(self) -> None:
        if self.run is not None and (self.run.order is None) != (self.level.order is None):
            raise FormatError("found a table with an exp-Golomb code, expected two of a kind")
        if (self.values is None) != (self.map_kind == "zigzag"):
            raise FormatError(f"found map {self.map_kind!r}, which does not fit its values")
        if self.values is None:
            return
        numbers = self._numbers(self.values)
        if numbers.size > min(MAX_MEMBERS, self.level.symbols):
            raise FormatError(
                f"found {numbers.size} values, expected at most "
                f"{min(MAX_MEMBERS, self.level.symbols)}"
            )
        ascending = np.sort(numbers)
        if numbers.size and (
            ascending[0] < 0 or ascending[-1] >= _NUMBERS or (np.diff(ascending) == 0).any()
        ):
            raise FormatError("found a value twice or out of range in the value map")
        if self.map_kind == "set" and (numbers != ascending).any():
            raise FormatError("found a set that is not in ascending order")
        if self.map_kind == "ranked":
            # Any order within a class is as good; the format has one.
            bounds = np.minimum(self.level.bases, numbers.size)
            ordered = np.concatenate([np.sort(part) for part in np.split(numbers, bounds[1:-1])])
            object.__setattr__(self, "values", from_zigzag(ordered + self._skip))

    @property
    def is_run(self) -> bool:
        """Whether runs of zeros have codewords of their own."""
        return self.run is not None

    @property
    def name(self) -> str:
        """Name of the code: eg-0 … eg-7, eg-run, eg-table or eg-table-run."""
        if self.level.order is None:
            return "eg-table-run" if self.is_run else "eg-table"
        return "eg-run" if self.is_run else f"eg-{self.level.order}"

    @property
    def _skip(self) -> int:
        return 1 if self.is_run else 0

    def _numbers(self, values: NDArray[np.int32]) -> NDArray[np.int64]:
        return zigzag(values) - self._skip

    @property
    def limit(self) -> int:
        """Number of indices that stand for a value."""
        if self.values is None:
            return min(self.level.symbols, _NUMBERS - self._skip)
        return self.values.size

    @cached_property
    def padded_values(self) -> NDArray[np.int32]:
        """The values and one more entry, which decoders read for every index beyond the map.

        Raises
        ------
        FormatError
            This is a zigzag map.
        """
        if self.values is None:
            raise FormatError("a zigzag map has no values")
        return np.append(self.values, np.int32(0))

    def indices(self, values: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the index of each value, -1 where it has none; int64, same shape."""
        numbers = self._numbers(values)
        if self.values is None:
            return np.where(numbers < self.limit, numbers, -1)
        known = self._numbers(self.values)
        order = np.argsort(known)
        places = np.searchsorted(known, numbers, sorter=order)
        places = order[np.minimum(places, max(0, known.size - 1))] if known.size else places
        found = (known[places] == numbers) if known.size else np.zeros(numbers.shape, bool)
        return np.where(found, places, -1)

    @cached_property
    def _written(self) -> tuple[bytes, int]:
        """The bytes, and how many bits of them describe the map."""
        writer = BitWriter()
        tables = self.level.order is None
        writer.put((_TABLES if tables else 0) | (_RUN_FORM if self.is_run else 0), 2)
        _put_code(writer, self.level)
        if self.run is not None:
            _put_code(writer, self.run)
        before = writer.bits
        writer.put(MAP_KINDS.index(self.map_kind), 2)
        if self.values is not None:
            numbers = self._numbers(self.values)
            _put_pairs(writer, set_pairs(np.sort(numbers)), counted=True)
            if self.map_kind == "ranked":
                ranks = np.argsort(numbers)
                _put_pairs(writer, class_pairs(ranks, self.level.classes[0]), counted=False)
        return writer.data(), writer.bits - before

    @property
    def data(self) -> bytes:
        """The codebook as it is written in the container."""
        return self._written[0]

    @property
    def map_bits(self) -> int:
        """Bits of the codebook that describe the value map."""
        return self._written[1]

    @property
    def table_bits(self) -> int:
        """The other bits of the codebook, filling included."""
        return 8 * len(self.data) - self.map_bits

    @classmethod
    def from_bytes(cls, data: bytes) -> "Codebook":
        """Read a codebook.

        Parameters
        ----------
        data : bytes
            Exactly the codebook's bytes.

        Returns
        -------
        Codebook
            What was written.

        Raises
        ------
        FormatError
            The bytes are no codebook, or more or fewer than it needs.
        """
        reader = BitReader(data)
        code = reader.take(2)
        level = _take_code(reader, bool(code & _TABLES))
        run = _take_code(reader, bool(code & _TABLES)) if code & _RUN_FORM else None
        kind = reader.take(2)
        if kind >= len(MAP_KINDS):
            raise FormatError(f"found value map {kind}, expected 0 to {len(MAP_KINDS) - 1}")
        values = None
        if kind != _ZIGZAG:
            skip = 0 if run is None else 1
            numbers = _take_set(reader, _NUMBERS - skip)
            if numbers.size > level.symbols:
                raise FormatError(
                    f"found {numbers.size} values for the {level.symbols} codewords of the code"
                )
            if kind == _RANKED:
                numbers = _take_classes(reader, numbers, level)
            values = from_zigzag(numbers + skip)
        if reader.left >= 8 or reader.take(reader.left):
            raise FormatError("goes on after its end")
        return cls(level, run, values, MAP_KINDS[kind])


def _take_orders(reader: BitReader) -> tuple[int, int]:
    return reader.take(3), reader.take(3)


def _take_set(reader: BitReader, limit: int) -> NDArray[np.int64]:
    orders = _take_orders(reader)
    return reader.take_places(orders, limit, pairs=reader.take_golomb(0))


def _take_classes(
    reader: BitReader, numbers: NDArray[np.int64], code: PrefixCode
) -> NDArray[np.int64]:
    orders = _take_orders(reader)
    left = numbers
    ordered = []
    for bits in code.suffix_bits:
        if left.size <= 1 << bits:
            ordered.append(left)
            break
        places = reader.take_places(orders, left.size, members=1 << bits)
        ordered.append(left[places])
        left = np.delete(left, places)
    return np.concatenate(ordered)
