"""Choosing codebooks: which code, tables and value map take the fewest bits for given tensors.

Costs are exact, those of the codebook itself included. A table's suffix bits are found by
dynamic programming over the histogram: every class costs one bit for all symbols in it and beyond
it, and its suffix bits for those in it, so that the best classes from a symbol on do not depend on
those before.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from egret.codebook import (
    MAP_KINDS,
    MAX_MEMBERS,
    MAX_VALUE,
    MIN_VALUE,
    Codebook,
    class_pairs,
    from_zigzag,
    golomb_costs,
    pairs_cost,
    set_pairs,
    zigzag,
)
from egret.errors import EgretError
from egret.intrinsics import leading_zeros
from egret.params import MAX_ORDER
from egret.prefix_code import MAX_CLASSES, MAX_GOLOMB_SUFFIX, MAX_TABLE_SUFFIX, PrefixCode
from egret.statistics import entropy_bits

__all__ = [
    "CODE_NAMES",
    "Codes",
    "Plan",
    "Statistics",
    "parse_codes",
    "plan",
    "plan_shared",
]

CODE_NAMES = ("eg-k", "eg-run", "eg-table")
"""The codes, simplest first."""

# Holes up to so many numbers that a set may include although they do not occur.
_FILLS = (0, 1, 3, 7, 15, 31, 127)
# Histograms over a wider span are made by sorting.
_SPAN = 1 << 22
# Tables: classes may begin anywhere below this, and at so many places in each octave above.
_FINE = 64
_PER_OCTAVE = 32
_OCTAVE_SHIFT = 5
_FINE_LOG2 = 6
# Tensors whose codebook is a smaller share of their bits gain nothing from sharing it.
_NEGLIGIBLE = 0.001
# How far apart, in the order of their scales, tensors may be that are tried together.
_REACH = 2
_INFINITE = 1 << 62


@dataclass(frozen=True)
class Codes:
    """Codes that may be used.

    Parameters
    ----------
    orders : tuple of int
        Orders of plain exp-Golomb codes, ascending.
    run : bool
        Whether `eg-run` may be used.
    table : bool
        Whether `eg-table` may be used, in both forms.
    """

    orders: tuple[int, ...] = tuple(range(MAX_ORDER + 1))
    run: bool = True
    table: bool = True

    AUTO: ClassVar["Codes"]


Codes.AUTO = Codes()


def parse_codes(codes: "str | Sequence[str] | Codes") -> Codes:
    """Return the codes that a user names.

    Parameters
    ----------
    codes : str, sequence of str, or Codes
        "auto" for all, or names, in a string separated by commas: "eg-k", "eg-0" to "eg-7" for one
        order, "eg-run", "eg-table".

    Raises
    ------
    EgretError
        A name is unknown, or there is none.
    """
    if isinstance(codes, Codes):
        return codes
    names = codes.split(",") if isinstance(codes, str) else codes
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise EgretError(f"codes: found {codes!r}, expected names such as 'auto' or 'eg-run'")
    orders: set[int] = set()
    run = table = False
    for name in (name.strip() for name in names):
        order = name.removeprefix("eg-")
        if name == "auto":
            return Codes.AUTO
        if name == "eg-k":
            orders |= set(Codes.AUTO.orders)
        elif name == "eg-run":
            run = True
        elif name == "eg-table":
            table = True
        elif name != order and order.isascii() and order.isdigit() and int(order) <= MAX_ORDER:
            orders.add(int(order))
        else:
            raise EgretError(
                f"codes: found {name!r}, expected auto, {', '.join(CODE_NAMES)} or eg-0 to "
                f"eg-{MAX_ORDER}"
            )
    if not (orders or run or table):
        raise EgretError("codes: found none, expected at least one")
    return Codes(tuple(sorted(orders)), run, table)


@njit(cache=True, nogil=True)
def _count(values: Any, low: Any, chunk: Any, histogram: Any, runs: Any) -> Any:
    """Count values and, in chunks, the runs of zeros before those that are not 0."""
    for first in range(0, values.size, chunk):
        start = first
        stop = min(values.size, first + chunk)
        for place in range(first, stop):
            value = values[place]
            histogram[np.uint64(value - low)] += 1
            # Without a branch, which half the values would mispredict.
            other = value != 0
            runs[np.uint64(place - start)] += other
            start = place + 1 if other else start
        if start < stop:
            runs[stop - start] += 1


@njit(cache=True, nogil=True)
def _count_runs(values: Any, chunk: Any, runs: Any) -> Any:
    zeros = 0
    for first in range(0, values.size, chunk):
        start = first
        stop = min(values.size, first + chunk)
        for place in range(first, stop):
            if values[place] != 0:
                runs[place - start] += 1
                zeros += place - start
                start = place + 1
        if start < stop:
            runs[stop - start] += 1
            zeros += stop - start
    return zeros


def _merge(
    numbers: Sequence[NDArray[np.int64]], counts: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    distinct, places = np.unique(np.concatenate(numbers), return_inverse=True)
    total = np.zeros(distinct.size, np.int64)
    np.add.at(total, places, np.concatenate(counts))
    return distinct, total


@dataclass(frozen=True, eq=False)
class Statistics:
    """How often values and runs of zeros occur, in one tensor or several.

    Parameters
    ----------
    numbers : ndarray of int64, shape (distinct,)
        Zigzag numbers of the values that occur, ascending.
    counts : ndarray of int64, shape (distinct,)
        Their numbers of occurrences.
    runs : ndarray of int64, shape (different runs,)
        Lengths of runs before non-zero values, 0 among them, and at the end of chunks; ascending.
    run_counts : ndarray of int64, shape (different runs,)
        Their numbers of occurrences.
    """

    numbers: NDArray[np.int64]
    counts: NDArray[np.int64]
    runs: NDArray[np.int64]
    run_counts: NDArray[np.int64]

    @classmethod
    def empty(cls) -> "Statistics":
        """Return those of no values."""
        none = np.empty(0, np.int64)
        return cls(none, none, none, none)

    @classmethod
    def of(cls, values: NDArray[np.int32], chunk: int) -> "Statistics":
        """Count values.

        Parameters
        ----------
        values : ndarray of int32, any shape
            Quantised weights in C order: a whole tensor, or a whole number of its chunks.
        chunk : int
            Weights in a chunk; runs end with it.

        Raises
        ------
        EgretError
            A value is outside the range that can be coded.
        """
        flat = np.ascontiguousarray(values).reshape(-1)
        if flat.size == 0:
            return cls.empty()
        low, high = int(flat.min()), int(flat.max())
        if low < MIN_VALUE or high > MAX_VALUE:
            raise EgretError(
                f"found value {low if low < MIN_VALUE else high}, "
                f"expected {MIN_VALUE} to {MAX_VALUE}"
            )
        runs = np.zeros(min(chunk, flat.size) + 1, np.int64)
        if high - low < _SPAN:
            reach = max(-low, high)
            # Every value from -reach to reach, so that numbers alternate between two slices.
            histogram = np.zeros(2 * reach + 1, np.int64)
            _count(flat, -reach, chunk, histogram, runs)
            by_number = np.empty(2 * reach + 1, np.int64)
            by_number[::2] = histogram[reach:]
            by_number[1::2] = histogram[:reach][::-1]
            numbers = np.flatnonzero(by_number)
            counts = by_number[numbers]
        else:
            _count_runs(flat, chunk, runs)
            distinct, counts = np.unique(flat, return_counts=True)
            order = np.argsort(zigzag(distinct))
            numbers, counts = zigzag(distinct)[order], counts[order].astype(np.int64)
        used = np.flatnonzero(runs)
        return cls(numbers, counts, used, runs[used])

    def __add__(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both together."""
        numbers, counts = _merge((self.numbers, other.numbers), (self.counts, other.counts))
        runs, run_counts = _merge((self.runs, other.runs), (self.run_counts, other.run_counts))
        return Statistics(numbers, counts, runs, run_counts)

    @property
    def weights(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """Number of values that are 0."""
        return int(self.counts[0]) if self.numbers.size and self.numbers[0] == 0 else 0

    @property
    def distinct(self) -> NDArray[np.int32]:
        """The values that occur, by ascending zigzag number: shape (distinct,), int32."""
        return from_zigzag(self.numbers)


@njit(inline="always")
def _length(number: Any) -> Any:
    """Return the length of a whole number in binary."""
    return 64 - np.int64(leading_zeros(np.uint64(number)))


@njit(cache=True, nogil=True)
def _golomb_length(symbol: Any, order: Any) -> Any:
    return 2 * _length(symbol + (1 << order)) - 1 - order


@njit(cache=True, nogil=True)
def _slot(place: Any) -> Any:
    """Return the number of a place where a class may begin, -1 for another place."""
    if place < _FINE:
        return place
    octave = _length(place) - 1
    step = octave - _OCTAVE_SHIFT
    if (place >> step) << step != place:
        return -1
    return _FINE + (octave - _FINE_LOG2) * _PER_OCTAVE + (place >> step) - _PER_OCTAVE


@njit(cache=True, nogil=True)
def _place(slot: Any) -> Any:
    if slot < _FINE:
        return slot
    octave = (slot - _FINE) // _PER_OCTAVE + _FINE_LOG2
    return ((slot - _FINE) % _PER_OCTAVE + _PER_OCTAVE) << (octave - _OCTAVE_SHIFT)


@njit(cache=True, nogil=True)
def _table(symbols: Any, counts: Any, layers: Any) -> Any:
    """Find the suffix bits with the fewest code bits, of any number of classes or of `layers`.

    `layers` is 1 for any number. Symbols ascend.
    """
    end = symbols[symbols.size - 1] + 1
    slots = 0
    while _place(slots) < end:
        slots += 1
    # Occurrences from each place on.
    beyond = np.zeros(slots + 1, np.int64)
    item = symbols.size - 1
    for slot in range(slots - 1, -1, -1):
        total = beyond[slot + 1]
        while item >= 0 and symbols[item] >= _place(slot):
            total += counts[item]
            item -= 1
        beyond[slot] = total
    best = np.full((layers, slots), _INFINITE, np.int64)
    chosen = np.zeros((layers, slots), np.int64)
    for layer in range(layers - 1, -1, -1):
        following = 0 if layers == 1 else layer + 1
        for slot in range(slots - 1, -1, -1):
            place = _place(slot)
            for suffix in range(MAX_TABLE_SUFFIX + 1):
                after = place + (1 << suffix)
                if after >= end:
                    bits = suffix * beyond[slot]
                    if bits < best[layer, slot]:
                        best[layer, slot] = bits
                        chosen[layer, slot] = suffix
                    break
                if layers > 1 and following == layers:
                    continue
                target = _slot(after)
                if target < 0 or best[following, target] >= _INFINITE:
                    continue
                bits = (
                    beyond[slot]
                    + suffix * (beyond[slot] - beyond[target])
                    + best[following, target]
                )
                if bits < best[layer, slot]:
                    best[layer, slot] = bits
                    chosen[layer, slot] = suffix
    suffix_bits = np.empty(slots + 1, np.int64)
    classes = 0
    layer = 0
    place = 0
    while place < end:
        suffix = chosen[layer, _slot(place)]
        suffix_bits[classes] = suffix
        classes += 1
        place += 1 << suffix
        layer = 0 if layers == 1 else layer + 1
    return best[0, 0], suffix_bits[:classes]


@njit(cache=True, nogil=True)
def _table_bits(suffix_bits: Any) -> Any:
    bits = _golomb_length(suffix_bits.size - 1, 0) + _golomb_length(suffix_bits[0], 0)
    for place in range(1, suffix_bits.size):
        change = suffix_bits[place] - suffix_bits[place - 1]
        bits += _golomb_length(2 * change if change >= 0 else -2 * change - 1, 0)
    return bits


@njit(cache=True, nogil=True)
def _best_table(symbols: Any, counts: Any) -> Any:
    """Return code bits, the suffix bits of the best table and the bits that it takes itself."""
    if symbols.size == 0:
        return 0, np.zeros(1, np.int64), 2
    bits, suffix_bits = _table(symbols, counts, 1)
    if suffix_bits.size > MAX_CLASSES:
        bits, suffix_bits = _table(symbols, counts, MAX_CLASSES)
    return bits, suffix_bits, _table_bits(suffix_bits)


@njit(cache=True, nogil=True)
def _set_bits(members: Any) -> Any:
    pairs = set_pairs(members)
    return 6 + _golomb_length(pairs.shape[0], 0) + pairs_cost(pairs)[0]


@njit(cache=True, nogil=True)
def _filled(numbers: Any, hole: Any) -> Any:
    """Return ascending numbers with every hole between them, or before them, that is short."""
    size = numbers.size
    end = 0
    for number in numbers:
        if number - end <= hole:
            size += number - end
        end = number + 1
    members = np.empty(size, np.int64)
    place = 0
    end = 0
    for number in numbers:
        start = end if number - end <= hole else number
        for member in range(start, number + 1):
            members[place] = member
            place += 1
        end = number + 1
    return members


@njit(cache=True, nogil=True)
def _code_cost(symbols: Any, counts: Any, orders: Any, table: Any) -> Any:
    """Return the cheapest code's bits, bits that it takes itself, order (or -1) and suffix bits."""
    best = _INFINITE
    own = 0
    chosen = -1
    suffix_bits = np.zeros(1, np.int64)
    if orders:
        golomb = golomb_costs(symbols, counts)
        for order in range(8):
            if orders >> order & 1 and golomb[order] < best:
                best, own, chosen = golomb[order], 3, order
    if table:
        bits, suffix, extra = _best_table(symbols, counts)
        if bits + extra < best + own:
            best, own, chosen, suffix_bits = bits, extra, -1, suffix
    if chosen >= 0:
        suffix_bits = np.arange(chosen, MAX_GOLOMB_SUFFIX + 1)
    return best, own, chosen, suffix_bits


@njit(cache=True, nogil=True)
def _positions(numbers: Any, members: Any) -> Any:
    """Return where ascending numbers stand among ascending members that hold them all."""
    places = np.empty(numbers.size, np.int64)
    place = 0
    for item in range(numbers.size):
        while members[place] != numbers[item]:
            place += 1
        places[item] = place
    return places


@njit(cache=True, nogil=True)
def _best_levels(numbers: Any, counts: Any, orders: Any, table: Any) -> Any:
    """Find the cheapest code and map for numbers.

    Returns all bits, those of the codewords, order (or -1), suffix bits, the kind of map, and the
    numbers in the order of their indices, with unused ones in a set.
    """
    bits, own, order, suffix_bits = _code_cost(numbers, counts, orders, table)
    cost = bits + own + 2
    kind = 0
    members = numbers
    if numbers.size == 0 or numbers.size > MAX_MEMBERS:
        return cost, bits, order, suffix_bits, kind, members
    before = -1
    latest = _INFINITE
    for hole in _FILLS:
        some = _filled(numbers, hole)
        if some.size == before:
            continue
        if some.size > MAX_MEMBERS:
            break
        before = some.size
        now, own, k, suffix = _code_cost(_positions(numbers, some), counts, orders, table)
        total = now + own + 2 + _set_bits(some)
        if total < cost:
            cost, bits, order, suffix_bits, kind, members = total, now, k, suffix, 1, some
        if total > latest + 8:
            break
        latest = total
    ranking = np.argsort(-counts, kind="mergesort")
    ranks = np.empty(numbers.size, np.int64)
    for rank in range(numbers.size):
        ranks[ranking[rank]] = rank
    now, own, k, suffix = _code_cost(np.arange(numbers.size), counts[ranking], orders, table)
    total = now + own + 2 + _set_bits(numbers) + 6 + pairs_cost(class_pairs(ranks, suffix))[0]
    if total < cost:
        cost, bits, order, suffix_bits, kind = total, now, k, suffix, 2
        members = numbers[ranking]
    return cost, bits, order, suffix_bits, kind, members


@njit(cache=True, nogil=True)
def _best_runs(runs: Any, counts: Any, table: Any) -> Any:
    """Return all bits, those of the codewords, order (or -1) and suffix bits of a code for runs."""
    bits, own, order, suffix_bits = _code_cost(runs, counts, 0 if table else 255, table)
    return bits + own, bits, order, suffix_bits


@dataclass(frozen=True)
class Plan:
    """A codebook and its cost.

    Parameters
    ----------
    code_bits : int
        Bits of the codewords alone.
    book_bits : int
        Bits of the codebook.
    is_run : bool
        Whether runs of zeros have codewords.
    make : Callable
        Makes the codebook.
    """

    code_bits: int
    book_bits: int
    is_run: bool
    make: Callable[[], Codebook] = field(repr=False)

    @property
    def cost(self) -> int:
        """All bits together."""
        return self.code_bits + self.book_bits

    @cached_property
    def book(self) -> Codebook:
        """The codebook."""
        return self.make()


def _code(order: int, suffix_bits: NDArray[np.int64]) -> PrefixCode:
    return PrefixCode.golomb(order) if order >= 0 else PrefixCode.table(tuple(suffix_bits.tolist()))


def _least_bits(counts: NDArray[np.int64]) -> float:
    """Return what no prefix code can go below: the entropy, and a bit each if they differ."""
    return max(entropy_bits(counts), float(counts.sum())) if counts.size > 1 else 0.0


def plan(statistics: Statistics, codes: Codes = Codes.AUTO) -> Plan:
    """Find the cheapest codebook, the simplest of equally cheap ones.

    Parameters
    ----------
    statistics : Statistics
        What is to be coded.
    codes : Codes
        Codes that may be used.

    Returns
    -------
    Plan
        Codebook and exact cost.
    """
    numbers, counts = statistics.numbers, statistics.counts
    first = 1 if statistics.zeros else 0
    orders = sum(1 << order for order in codes.orders)
    floor = _least_bits(counts)
    run_floor = _least_bits(counts[first:]) + _least_bits(statistics.run_counts)
    # Least bits, then the simplest first.
    forms = sorted(
        (bits, simple, is_run, table)
        for bits, simple, is_run, table, allowed in (
            (floor, 0, False, False, orders > 0),
            (run_floor, 1, True, False, codes.run),
            (floor, 2, False, True, codes.table),
            (run_floor, 3, True, True, codes.table),
        )
        if allowed
    )
    best: tuple[Any, ...] = (_INFINITE, 0)
    for bits, simple, is_run, table in forms:
        if bits >= best[0]:
            continue
        some = 0 if table else 255 if is_run else orders
        if is_run:
            levels = _best_levels(numbers[first:] - 1, counts[first:], some, table)
            zeros = _best_runs(statistics.runs, statistics.run_counts, table)
        else:
            levels = _best_levels(numbers, counts, some, table)
            zeros = (0, 0, -1, None)
        if (levels[0] + zeros[0], simple) < best[:2]:
            best = (levels[0] + zeros[0], simple, is_run, levels, zeros)
    cost, _, is_run, levels, zeros = best
    _, level_bits, order, suffix_bits, kind, members = levels

    def make() -> Codebook:
        return Codebook(
            _code(order, suffix_bits),
            _code(*zeros[2:]) if is_run else None,
            None if kind == 0 else from_zigzag(members + (1 if is_run else 0)),
            MAP_KINDS[kind],
        )

    code_bits = int(level_bits + zeros[1])
    # Two bits say which code it is, and the codebook ends with a whole byte.
    return Plan(code_bits, 8 * math.ceil((cost - code_bits + 2) / 8), is_run, make)


def plan_shared(
    statistics: Sequence[Statistics], codes: Codes = Codes.AUTO
) -> tuple[list[Codebook], list[int], list[int]]:
    """Find codebooks for several tensors, shared where that is cheaper.

    Tensors are ordered by the scale of their levels, and near ones are joined as long as one
    codebook for both takes fewer bits than two.

    Parameters
    ----------
    statistics : sequence of Statistics
        Those of each tensor.
    codes : Codes
        Codes that may be used.

    Returns
    -------
    books : list of Codebook
        The codebooks.
    numbers : list of int
        Number of each tensor's codebook.
    code_bits : list of int
        Bits of each tensor's codewords.
    """
    plans = [plan(one, codes) for one in statistics]
    books: list[Codebook] = []
    numbers = [0] * len(plans)
    for is_run in (False, True):
        form = replace(codes, orders=()) if is_run else replace(codes, run=False)
        groups = [
            ([place], one, own)
            for place, (one, own) in enumerate(zip(statistics, plans, strict=True))
            if own.is_run == is_run
        ]
        groups.sort(key=lambda group: _scale(group[1]))
        joined: dict[tuple[int, int], tuple[Statistics, Plan]] = {}
        while True:
            best: tuple[int, int, int] | None = None
            for near, far in _neighbours(len(groups)):
                (_, one, own), (_, other, others) = groups[near], groups[far]
                if (
                    own.book_bits < _NEGLIGIBLE * own.cost
                    and others.book_bits < _NEGLIGIBLE * others.cost
                ):
                    continue
                pair = (id(one), id(other))
                if pair not in joined:
                    both = one + other
                    joined[pair] = (both, plan(both, form))
                gain = own.cost + others.cost - joined[pair][1].cost
                if gain > 0 and (best is None or gain > best[0]):
                    best = (gain, near, far)
            if best is None:
                break
            left, right = groups[best[1]], groups.pop(best[2])
            groups[best[1]] = (left[0] + right[0], *joined[id(left[1]), id(right[1])])
        for members, _, own in groups:
            for place in members:
                numbers[place] = len(books)
            books.append(own.book)
    return (
        books,
        numbers,
        [_bits(one, books[number]) for one, number in zip(statistics, numbers, strict=True)],
    )


def _neighbours(count: int) -> Iterator[tuple[int, int]]:
    for far in range(count):
        for near in range(max(0, far - _REACH), far):
            yield near, far


def _scale(statistics: Statistics) -> float:
    """Return the mean magnitude of the values that are not 0."""
    counts = statistics.counts * (statistics.numbers > 0)
    return float(np.dot(counts, statistics.numbers + 1)) / max(1, int(counts.sum()))


def _bits(statistics: Statistics, book: Codebook) -> int:
    """Return the bits of the codewords of everything counted."""
    if book.run is None:
        lengths = book.level.lengths(book.indices(statistics.distinct))
        return int(np.dot(lengths, statistics.counts))
    used = statistics.numbers > 0
    levels = book.level.lengths(book.indices(statistics.distinct[used]))
    runs = book.run.lengths(statistics.runs)
    return int(np.dot(levels, statistics.counts[used]) + np.dot(runs, statistics.run_counts))
