"""Substreams: where a matrix is cut, and the bits that every piece becomes.

docs/format.md, chapter 2, "Starts" and "Payload".
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from egret.image_code import HardwareCode, codewords
from egret.params import AcceleratorParams

__all__ = ["Substreams", "make_substreams"]


@dataclass(frozen=True, eq=False)
class Substreams:
    """A matrix as its substreams.

    Parameters
    ----------
    starts : ndarray of int64, shape (substreams,)
        Position, row by row, of the first weight of each; 0 for one without codewords.
    bits : ndarray of int64, shape (substreams,)
        Bits of its codewords.
    work : ndarray of int64, shape (lanes,)
        Cycles in which each lane multiplies, or sends a row's sum.
    payload : bytes
        The interleaved substreams in whole bus words.
    multiplied : int
        Weights that are multiplied.
    fillers : int
        Codewords that interrupt runs which are too long for the code.
    """

    starts: NDArray[np.int64]
    bits: NDArray[np.int64]
    work: NDArray[np.int64]
    payload: bytes = field(repr=False)
    multiplied: int
    fillers: int


@njit(cache=True, nogil=True)
def _fill_lanes(
    begins: Any, ends: Any, works: Any, lanes: Any, slots: Any, room: Any, limit: Any
) -> Any:
    """Give each lane, in turn, as many events as fit; return the first event of each slot.

    A slot has room for so many bits, a lane for so much work. `works` counts the multiplications
    and ends of rows up to each event. The last number returned is the first event that did not fit.
    """
    cuts = np.empty(lanes * slots + 1, np.int64)
    event = 0
    for lane in range(lanes):
        left = limit
        for slot in range(slots):
            cuts[lane * slots + slot] = event
            if event == begins.size:
                continue
            stop = np.searchsorted(ends, begins[event] + room, side="right")
            before = works[event] - 2
            stop = min(stop, np.searchsorted(works, left + before, side="right"))
            if stop > event:
                left -= works[stop - 1] - before
                event = stop
    cuts[lanes * slots] = event
    return cuts


@njit(cache=True, nogil=True)
def _fill_slots(
    begins: Any, ends: Any, first: Any, last: Any, slots: Any, room: Any, cuts: Any, lane: Any
) -> Any:
    """Give the slots of a lane, in turn, as many of its events as fit; whether all do."""
    event = first
    for slot in range(slots):
        cuts[lane * slots + slot] = event
        if event < last:
            event = min(last, np.searchsorted(ends, begins[event] + room, side="right"))
    return event == last


@njit(cache=True, nogil=True)
def _balance(begins: Any, ends: Any, works: Any, lanes: Any, slots: Any, width: Any) -> Any:
    """Cut a sequence of events so that the slowest lane is quickest; then in the fewest bits."""
    count = begins.size
    # In groups of `slots` cycles, in which each slot gets `width` bits.
    low, high = 0, 1
    while True:
        cuts = _fill_lanes(begins, ends, works, lanes, slots, high * width, high * slots)
        if cuts[-1] == count:
            break
        low, high = high, 2 * high
    while low + 1 < high:
        middle = (low + high) // 2
        cuts = _fill_lanes(begins, ends, works, lanes, slots, middle * width, middle * slots)
        if cuts[-1] == count:
            high = middle
        else:
            low = middle
    groups = high
    low = 0
    while low + 1 < high:
        middle = (low + high) // 2
        cuts = _fill_lanes(begins, ends, works, lanes, slots, middle * width, groups * slots)
        if cuts[-1] == count:
            high = middle
        else:
            low = middle
    cuts = _fill_lanes(begins, ends, works, lanes, slots, high * width, groups * slots)
    widest = high
    for lane in range(lanes):
        # The same lanes, each with slots that last about equally long.
        first, last = cuts[lane * slots], cuts[(lane + 1) * slots]
        low = 0
        while low + 1 < high:
            middle = (low + high) // 2
            if _fill_slots(begins, ends, first, last, slots, middle * width, cuts, lane):
                high = middle
            else:
                low = middle
        _fill_slots(begins, ends, first, last, slots, high * width, cuts, lane)
        high = widest
    return cuts


@njit(cache=True, nogil=True)
def _write(words: Any, lengths: Any, firsts: Any, lasts: Any, padding: Any, out: Any) -> None:
    """Write codewords as one bit a byte, then padding codewords to the end of each row."""
    for row in range(out.shape[0]):
        place = 0
        for item in range(firsts[row], lasts[row]):
            for shift in range(lengths[item] - 1, -1, -1):
                out[row, place] = (words[item] >> np.uint32(shift)) & np.uint32(1)
                place += 1
        number = 0
        while place < out.shape[1]:
            out[row, place] = padding[number]
            place += 1
            number += 1
            if number == padding.size:
                number = 0


def _bit_list(word: int, length: int) -> list[int]:
    return [word >> shift & 1 for shift in range(length - 1, -1, -1)]


def _interleaved(table: NDArray[np.uint8], params: AcceleratorParams) -> bytes:
    """Interleave substreams of equal length, one bit a byte, into bus words."""
    groups = table.shape[1] // params.parser_bits
    ordered = table.reshape(params.lanes, params.slots, groups, params.parser_bits)
    # By beat, then by lane; in a beat the first bit in time is the most significant one.
    return np.packbits(
        ordered.transpose(2, 1, 0, 3)[..., ::-1].ravel(), bitorder="little"
    ).tobytes()


def _split_runs(
    positions: NDArray[np.int64], longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions with fillers among them, and where the true ones stand."""
    runs = np.diff(positions, prepend=positions[:1] - 1) - 1
    fillers = runs // (longest + 1)
    places = np.arange(positions.size) + np.cumsum(fillers)
    if not fillers.any():
        return positions, places
    every = np.empty(positions.size + int(fillers.sum()), np.int64)
    every[places] = positions
    for event in np.flatnonzero(fillers).tolist():
        count = int(fillers[event])
        steps = (longest + 1) * np.arange(1, count + 1)
        every[places[event] - count : places[event]] = positions[event - 1] + steps
    return every, places


def make_substreams(
    indices: NDArray[np.int64],
    positions: NDArray[np.int64],
    columns: int,
    entries: int,
    code: HardwareCode,
    params: AcceleratorParams,
) -> Substreams:
    """Cut a matrix and encode the pieces.

    Parameters
    ----------
    indices : ndarray of int64, shape (weights,)
        Indices, row by row; those of zeros do not matter in the run form.
    positions : ndarray of int64, shape (non-zeros,)
        Where the weights are that are not 0, ascending.
    columns : int
        Weights in a row.
    entries : int
        Indices in use; this one is the filler.
    code : HardwareCode
        The code.
    params : AcceleratorParams
        The accelerator.

    Returns
    -------
    Substreams
        The pieces, cut such that the lane that takes longest, over its bits or its
        multiplications, takes as little as contiguous pieces allow.
    """
    level_words, level_lengths = codewords(code.level, min(entries + 1, code.level.symbols))
    padding = [0]
    # Where the codewords of each weight that is not 0 begin and end, among all and in bits.
    if code.run is None:
        first = int(positions[0]) if positions.size else 0
        used = indices[first : int(positions[-1]) + 1] if positions.size else indices[:0]
        words, lengths = level_words[used], level_lengths[used]
        items = positions - first
        item_ends = items + 1
        bounds = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        begins, ends = bounds[items], bounds[item_ends]
        # Where all weights are multiplied, those between two that are not 0 count too.
        events = positions if code.dense else np.arange(positions.size)
        if code.level.order is None:
            padded = entries if code.dense else 0
            padding = _bit_list(int(level_words[padded]), int(level_lengths[padded]))
    else:
        every, events = _split_runs(positions, code.run.symbols - 1)
        levels = np.full(every.size, entries, np.int64)
        levels[events] = indices[positions]
        runs = np.diff(every, prepend=every[:1] - 1) - 1
        run_words, run_lengths = codewords(code.run, int(runs.max(initial=0)) + 1)
        words = np.stack((run_words[runs], level_words[levels]), 1).ravel()
        lengths = np.stack((run_lengths[runs], level_lengths[levels]), 1).ravel()
        items = 2 * events
        item_ends = items + 2
        bounds = np.cumsum(lengths, dtype=np.int64)
        # A piece begins at its first weight: with a run of none.
        begins, ends = bounds[items] - int(run_lengths[0]), bounds[items + 1]
        if code.run.order is None:
            padding = _bit_list(int(run_words[0]), int(run_lengths[0]))
            padding += _bit_list(int(level_words[entries]), int(level_lengths[entries]))
    rows = positions // columns
    works = rows + events
    cuts = _balance(begins, ends, works, params.lanes, params.slots, params.parser_bits)
    firsts, lasts = cuts[:-1], cuts[1:]
    held = np.flatnonzero(lasts > firsts)
    firsts, lasts = firsts[held], lasts[held] - 1
    starts, bits, work, item_firsts, item_lasts = (
        np.zeros(params.substreams, np.int64) for _ in range(5)
    )
    starts[held] = positions[firsts]
    bits[held] = ends[lasts] - begins[firsts]
    work[held] = works[lasts] - works[firsts] + 2
    item_firsts[held], item_lasts[held] = items[firsts], item_ends[lasts]
    fillers = 0
    multiplied = int((events[lasts] - events[firsts] + 1).sum())
    if code.run is not None:
        words[items[firsts]] = run_words[0]
        lengths[items[firsts]] = run_lengths[0]
        fillers = multiplied - positions.size
    # As many beats as the longest takes, in whole words and in whole turns of the slots.
    beats = max(1, -(-int(bits.max()) // params.parser_bits)) * params.slots
    unit = max(params.beats_per_word, params.slots)
    beats = -(-beats // unit) * unit
    table = np.empty((params.substreams, beats // params.slots * params.parser_bits), np.uint8)
    _write(words, lengths, item_firsts, item_lasts, np.array(padding, np.uint8), table)
    return Substreams(
        starts=starts,
        bits=bits,
        work=work.reshape(params.lanes, params.slots).sum(axis=1),
        payload=_interleaved(table, params),
        multiplied=multiplied - fillers,
        fillers=fillers,
    )
