"""Puts packets of the hardware image together by hand: fields, entries and strings of bits.

Written from chapter 2 of docs/format.md for the tests of the golden model and of the hardware; it
shares no code with the packer. What goes in is not judged, so that wrong packets can be made too.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import crc32c as independent_crc
import numpy as np

from egret.image_format import CODE_FIELDS, LOAD_FIELDS, MATRIX_FIELDS
from egret.params import AcceleratorParams

MATRIX, MAP, CODE, BIAS = 1, 2, 3, 4


@dataclass(frozen=True)
class Table:
    """A class table: suffix bits and offset of each class."""

    suffix_bits: tuple[int, ...]
    offsets: tuple[int, ...]
    golomb: bool = False

    @property
    def last(self) -> int:
        return len(self.suffix_bits) - 1

    def codeword(self, number: int) -> str:
        """Return the codeword that stands for a number: that of the first class which has it."""
        return codewords(self)[number]

    @property
    def longest(self) -> int:
        """The highest number such that all from 0 on have codewords."""
        return next(n for n in itertools.count() if n + 1 not in codewords(self))


@lru_cache
def codewords(table: Table) -> dict[int, str]:
    """Return the codeword of every number that has one."""
    found: dict[int, str] = {}
    for j, (bits, offset) in enumerate(zip(table.suffix_bits, table.offsets, strict=True)):
        tail = not table.golomb and j == table.last
        for suffix in range(2**bits):
            word = "0" * j + ("" if tail else "1") + (f"{suffix:0{bits}b}" if bits else "")
            found.setdefault(suffix + offset + (0 if tail else 2**bits), word)
    return found


def golomb(order: int, params: AcceleratorParams) -> Table:
    """Return the exp-Golomb code of an order."""
    bits = tuple(range(order, params.suffix_limit + 1))
    return Table(bits, tuple(-(2**order) for _ in bits), golomb=True)


def classes(*suffix_bits: int) -> Table:
    """Return the table whose classes number 0, 1, 2 ... in order."""
    offsets = []
    base = 0
    for j, bits in enumerate(suffix_bits):
        offsets.append(base if j == len(suffix_bits) - 1 else base - 2**bits)
        base += 2**bits
    return Table(suffix_bits, tuple(offsets))


@dataclass(frozen=True)
class Code:
    """A code: the level table, the run table of the run form, and what index 0 means."""

    level: Table
    run: Table | None = None
    dense: bool = False

    @property
    def zero(self) -> int | None:
        """The index that means the weight 0 by itself, if there is one."""
        return None if self.dense or self.run is not None else 0

    def encode(self, weights: Sequence[int | None], filler: int) -> str:
        """Return the bits of weights given as indices, None being a weight 0.

        Weights 0 are index 0 where that means 0, else part of a run, else fillers. Those at the
        end are written too.
        """
        if self.run is None:
            zero = filler if self.dense else 0
            return "".join(self.level.codeword(zero if i is None else i) for i in weights)
        bits = ""
        zeros = 0
        longest = self.run.longest
        for place, index in enumerate(weights):
            if index is None and zeros < longest and place + 1 < len(weights):
                zeros += 1
            else:
                bits += self.run.codeword(zeros)
                bits += self.level.codeword(filler if index is None else index)
                zeros = 0
        return bits

    def filling(self, filler: int) -> str:
        """Return bits which, repeated and cut off anywhere, mean zeros behind a range."""
        if self.level.golomb and (self.run is None or self.run.golomb):
            return "0"
        if self.run is not None:
            return self.run.codeword(0) + self.level.codeword(filler)
        return self.level.codeword(filler if self.dense else 0)


def little(value: int, size: int) -> bytes:
    """Return a number of `size` bytes, two's complement."""
    return (int(value) % 256**size).to_bytes(size, "little")


def padded(data: bytes, params: AcceleratorParams) -> bytes:
    """Fill up to a whole bus word."""
    return data + bytes(-len(data) % (params.bus_bits // 8))


def with_crc(body: bytes, params: AcceleratorParams) -> bytes:
    """Add the CRC word."""
    return body + padded(little(independent_crc.crc32c(body), 4), params)


def make(params: AcceleratorParams, fields: dict[str, int], *sections: bytes) -> bytes:
    """Return a packet of header fields and further sections."""
    kind = fields["kind"]
    places = {MATRIX: MATRIX_FIELDS, CODE: CODE_FIELDS}.get(kind, LOAD_FIELDS)
    values = {"magic": 0x4745, "version": 2, **fields}
    header = sum(int(value) << places[name].offset for name, value in values.items())
    body = little(header, 24 if kind == MATRIX else 8)
    return with_crc(b"".join(padded(section, params) for section in (body, *sections)), params)


def map_packet(params: AcceleratorParams, base: int, values: Sequence[int]) -> bytes:
    """Return a packet that fills the map memory from `base` on."""
    section = b"".join(little(value, 2) for value in values)
    return make(params, {"kind": MAP, "base": base, "count": len(values)}, section)


def bias_packet(params: AcceleratorParams, base: int, values: Sequence[int]) -> bytes:
    """Return a packet that fills the bias memory from `base` on."""
    section = b"".join(little(value, 4) for value in values)
    return make(params, {"kind": BIAS, "base": base, "count": len(values)}, section)


def code_packet(params: AcceleratorParams, code: Code, bank: int = 0, **fields: int) -> bytes:
    """Return a packet that loads a code; `fields` replace header fields."""
    section = b""
    for table in (code.level, code.run):
        pairs = zip(table.suffix_bits, table.offsets, strict=True) if table else ()
        entries = b"".join(little(bits | offset << 4, 2) for bits, offset in pairs)
        section += entries.ljust(32, b"\0")
    values = {
        "kind": CODE,
        "bank": bank,
        "run_form": code.run is not None,
        "dense": code.dense,
        "level_golomb": code.level.golomb,
        "run_golomb": code.run is not None and code.run.golomb,
        "level_last": code.level.last,
        "run_last": 0 if code.run is None else code.run.last,
    }
    return make(params, {**values, **fields}, section)


def payload_of(
    params: AcceleratorParams, streams: Sequence[str], filling: str = "0", extra_words: int = 0
) -> bytes:
    """Interleave one string of bits for each substream, filled up, as the payload's words."""
    width, slots, per_word = params.parser_bits, params.slots, params.beats_per_word
    beats = slots * max(-(-len(bits) // width) for bits in streams)
    words = max(1, -(-beats // per_word)) + extra_words
    while words * per_word % slots:
        words += 1
    length = words * per_word // slots * width
    full = [bits + (filling * length)[: length - len(bits)] for bits in streams]
    data = b""
    for word in range(words):
        text = ""  # highest bit first, so later beats and higher lanes go in front
        for beat in range(word * per_word, (word + 1) * per_word):
            for lane in range(params.lanes):
                start = beat // slots * width
                text = full[lane * slots + beat % slots][start : start + width] + text
        data += little(int(text, 2), params.bus_bits // 8)
    return data


def matrix_packet(
    params: AcceleratorParams,
    shape: tuple[int, int],
    streams: Sequence[str],
    starts: Sequence[tuple[int, int]],
    *,
    filling: str = "0",
    extra_words: int = 0,
    wide_starts: int = 0,
    start_bits: int = 0,
    **fields: int,
) -> bytes:
    """Return a matrix packet.

    `streams` are the substreams' bits, without the filling; `starts` the row and column of each,
    where a column has `start_bits` if it is not 0; `fields` the header fields that do not follow
    from these, or replace them.
    """
    rows, columns = shape
    column_bits = 16 if wide_starts else start_bits or (columns - 1).bit_length()
    size = 4 if wide_starts else 2
    if any(row << column_bits >= 256**size for row, _ in starts):
        return matrix_packet(
            params, shape, streams, starts, filling=filling, extra_words=extra_words,
            wide_starts=1, **fields,
        )  # fmt: skip
    payload = payload_of(params, streams, filling, extra_words)
    values = {
        "kind": MATRIX,
        "rows": rows,
        "columns": columns,
        "load_activations": 1,
        "emit_results": 1,
        "wide_starts": wide_starts,
        "column_bits": 0 if wide_starts else column_bits,
        "map_entries": params.map_depth,
        "multiplier": 1,
        "payload_words": len(payload) // (params.bus_bits // 8),
        **fields,
    }
    section = b"".join(little(row << column_bits | column, size) for row, column in starts)
    return make(params, values, section, payload)


def cut(
    params: AcceleratorParams, shape: tuple[int, int], places: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the ranges, (first, end) in row-major order, between S - 1 places to cut at."""
    edges = [0, *sorted(places), shape[0] * shape[1]]
    assert len(edges) == params.substreams + 1
    return list(itertools.pairwise(edges))


def random_cut(
    params: AcceleratorParams, shape: tuple[int, int], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Cut a matrix about evenly, anywhere, or so that most ranges are empty."""
    size, count = shape[0] * shape[1], params.substreams
    even = np.arange(1, count) * size // count
    anywhere = rng.integers(0, size + 1, count - 1)
    uneven = rng.choice([0, size, int(rng.integers(0, size + 1))], count - 1)
    return cut(params, shape, [even, anywhere, uneven][int(rng.integers(3))].tolist())


def coded_matrix(
    params: AcceleratorParams,
    weights: np.ndarray,
    code: Code,
    *,
    ranges: Sequence[tuple[int, int]] | None = None,
    trim: bool = True,
    **fields: Any,
) -> bytes:
    """Return the packet of a matrix given as indices, -1 being a weight 0.

    `trim` leaves the zeros at the end of each range out.
    """
    shape = weights.shape
    assert len(shape) == 2
    filler = fields.get("map_entries", params.map_depth)
    if ranges is None:
        step = weights.size // params.substreams
        ranges = cut(params, shape, [step * (s + 1) for s in range(params.substreams - 1)])
    streams = []
    for first, end in ranges:
        mine = [
            None if index in (-1, code.zero) else int(index) for index in weights.flat[first:end]
        ]
        while trim and mine and mine[-1] is None:
            mine.pop()
        streams.append(code.encode(mine, filler))
    starts = [divmod(first, shape[1]) for first, _ in ranges]
    return matrix_packet(params, shape, streams, starts, filling=code.filling(filler), **fields)
