"""Codebooks: how values become bits, and how that is written down.

docs/format.md, chapter 1, "Codebooks". Which codebook suits which tensor is the business of
`egret.code_search`.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from egret.errors import FormatError
from egret.prefix_code import MAX_CLASSES, MAX_TABLE_SUFFIX, PrefixCode

__all__ = [
    "MAP_KINDS",
    "MAX_MEMBERS",
    "MAX_VALUE",
    "MIN_VALUE",
    "BitReader",
    "BitWriter",
    "Codebook",
    "from_zigzag",
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
    """Return the zigzag numbers of values: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4."""
    wide = np.asarray(values, np.int64)
    return np.where(wide >= 0, 2 * wide, -2 * wide - 1)


def from_zigzag(numbers: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return the values that have these zigzag numbers, as int32."""
    wide = np.asarray(numbers, np.int64)
    return ((wide >> 1) ^ -(wide & 1)).astype(np.int32)


class BitWriter:
    """Collects bits, most significant first."""

    def __init__(self) -> None:
        self._number = 0
        self.bits = 0

    def put(self, number: int, width: int) -> None:
        """Append `number` in `width` bits."""
        self._number = self._number << width | number
        self.bits += width

    def put_golomb(self, symbol: int, order: int) -> None:
        """Append the exp-Golomb codeword of `symbol`."""
        number = symbol + (1 << order)
        self.put(number, 2 * number.bit_length() - 1 - order)

    def data(self) -> bytes:
        """Return the bits, filled up with zeros to a whole byte."""
        fill = -self.bits % 8
        return (self._number << fill).to_bytes((self.bits + fill) // 8, "big")


class BitReader:
    """Takes bits off bytes, most significant first; `FormatError` when they end."""

    def __init__(self, data: bytes) -> None:
        self._number = int.from_bytes(data, "big")
        self.left = 8 * len(data)

    def take(self, width: int) -> int:
        """Take a number of `width` bits."""
        if width > self.left:
            raise FormatError("ends too early")
        self.left -= width
        number = self._number >> self.left
        self._number &= (1 << self.left) - 1
        return number

    def take_golomb(self, order: int) -> int:
        """Take an exp-Golomb codeword and return its symbol."""
        zeros = self.left - self._number.bit_length()
        code = PrefixCode.golomb(order)
        if zeros >= len(code.suffix_bits):
            raise FormatError("ends too early or holds a prefix that no codeword has")
        self.take(zeros)
        return self.take(zeros + 1 + order) - (1 << order)


def _put_table(writer: BitWriter, code: PrefixCode) -> None:
    writer.put_golomb(len(code.suffix_bits) - 1, 0)
    before = None
    for bits in code.suffix_bits:
        change = bits if before is None else int(zigzag(np.array(bits - before)))
        writer.put_golomb(change, 0)
        before = bits


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


def _golomb_lengths(symbols: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    # frexp's exponent of a whole number below 2^53 is its length in binary.
    return 2 * np.frexp(symbols + float(1 << order))[1].astype(np.int64) - 1 - order


def _runs(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the gap before each run of consecutive ascending places, and its length."""
    first = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    starts = places[first]
    lengths = np.diff(first, append=places.size)
    gaps = starts - np.concatenate(([0], (starts + lengths)[:-1]))
    return gaps, lengths


@dataclass(frozen=True)
class _Pairs:
    """Runs of what is left out and what is taken, as they are coded."""

    gaps: NDArray[np.int64]
    members: NDArray[np.int64]

    @classmethod
    def of(cls, places: NDArray[np.int64]) -> "_Pairs":
        gaps, lengths = _runs(places)
        gaps[1:] -= 1
        return cls(gaps, lengths - 1)


def _best_order(symbols: NDArray[np.int64]) -> tuple[int, int]:
    """Return the order with the fewest bits, and those."""
    bits, order = min((int(_golomb_lengths(symbols, k).sum()), k) for k in range(8))
    return order, bits


def _put_orders(writer: BitWriter, groups: list[_Pairs]) -> tuple[int, int]:
    gap_order, _ = _best_order(np.concatenate([g.gaps for g in groups] or [np.empty(0, np.int64)]))
    run_order, _ = _best_order(
        np.concatenate([g.members for g in groups] or [np.empty(0, np.int64)])
    )
    writer.put(gap_order, 3)
    writer.put(run_order, 3)
    return gap_order, run_order


def _put_pairs(writer: BitWriter, pairs: _Pairs, orders: tuple[int, int]) -> None:
    for gap, members in zip(pairs.gaps.tolist(), pairs.members.tolist(), strict=True):
        writer.put_golomb(gap, orders[0])
        writer.put_golomb(members, orders[1])


def _class_members(
    numbers: NDArray[np.int64], code: PrefixCode
) -> tuple[list[_Pairs], NDArray[np.int64]]:
    """Return the classes of a ranked map as pairs, and the numbers in the order they get."""
    left = np.sort(numbers)
    groups = []
    ordered = []
    for first, last in zip(code.bases[:-1].tolist(), code.bases[1:].tolist(), strict=True):
        if left.size <= last - first:
            ordered.append(left)
            break
        mine = np.sort(numbers[first:last])
        places = np.searchsorted(left, mine)
        groups.append(_Pairs.of(places))
        left = np.delete(left, places)
        ordered.append(mine)
    return groups, np.concatenate(ordered) if ordered else numbers


def _take_places(
    reader: BitReader,
    orders: tuple[int, int],
    limit: int,
    *,
    pairs: int | None = None,
    members: int | None = None,
) -> NDArray[np.int64]:
    """Take so many pairs, or so many members; return their places from 0, all below `limit`."""
    spans: list[tuple[int, int]] = []
    end = found = 0
    while len(spans) != pairs and (members is None or found < members):
        start = end + reader.take_golomb(orders[0]) + (1 if spans else 0)
        length = reader.take_golomb(orders[1]) + 1
        end = start + length
        found += length
        if end > limit or found > MAX_MEMBERS:
            raise FormatError("found a value map that reaches beyond what there is to map")
        spans.append((start, end))
    if members is not None and found != members:
        raise FormatError(f"found a class of {found} values, expected {members}")
    return np.concatenate([np.arange(*span) for span in spans] or [np.empty(0, np.int64)])


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
            ordered = _class_members(numbers, self.level)[1]
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
            pairs = _Pairs.of(np.sort(numbers))
            orders = _put_orders(writer, [pairs])
            writer.put_golomb(pairs.gaps.size, 0)
            _put_pairs(writer, pairs, orders)
            if self.map_kind == "ranked":
                groups = _class_members(numbers, self.level)[0]
                orders = _put_orders(writer, groups)
                for group in groups:
                    _put_pairs(writer, group, orders)
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
    return _take_places(reader, orders, limit, pairs=reader.take_golomb(0))


def _take_classes(
    reader: BitReader, numbers: NDArray[np.int64], code: PrefixCode
) -> NDArray[np.int64]:
    orders = _take_orders(reader)
    left = numbers
    ordered = []
    for bits in code.suffix_bits:
        size = 1 << bits
        if left.size <= size:
            ordered.append(left)
            break
        places = _take_places(reader, orders, left.size, members=size)
        ordered.append(left[places])
        left = np.delete(left, places)
    return np.concatenate(ordered)
