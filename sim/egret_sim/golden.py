"""The accelerator's reference: what it must answer, bit for bit.

Written from chapter 2 of docs/format.md and from nothing else, to be read beside it. It shares
no code with the codec, the packer or the hardware, so that an error in one of them shows. Speed
does not matter here: bits are characters of a string, read one codeword after the other.

Where the format makes something the packer's or the host's duty (a table that gives an index below
0, a value that does not fit, an entry nobody has written, a table overwritten while it may be in
use) the model refuses with `FormatError` instead of guessing: there is no right answer to compare
with.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from egret.errors import FormatError
from egret.image_format import (
    CLASSES,
    CODE_FIELDS,
    CRC_POLYNOMIAL,
    ENTRY_BITS,
    ENTRY_FIELDS,
    HEADER_BYTES,
    HEADER_FIELDS,
    IMAGE_MAGIC,
    IMAGE_VERSION,
    LOAD_FIELDS,
    MATRIX_BYTES,
    MATRIX_FIELDS,
    ErrorKind,
    Field,
    PacketKind,
)
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import (
    ACTIVATION_BITS,
    BIAS_BITS,
    MAX_ORDER,
    RESULT_BITS,
    AcceleratorParams,
)

__all__ = [
    "GoldenAccelerator",
    "LayerOutput",
    "Outcome",
    "crc32c",
    "header_fault",
    "read_header",
    "reference_forward",
    "split_packets",
]

ENTRY_BYTES = ENTRY_BITS // 8
BIAS_BYTES = BIAS_BITS // 8
WIDE_START_BYTES = 4
CRC_BYTES = 4

FIELDS_OF_KIND: dict[int, Mapping[str, Field]] = {
    PacketKind.MATRIX: MATRIX_FIELDS,
    PacketKind.MAP: LOAD_FIELDS,
    PacketKind.CODE: CODE_FIELDS,
    PacketKind.BIAS: LOAD_FIELDS,
}


@dataclass(frozen=True)
class Outcome:
    """What the accelerator does with one packet.

    Parameters
    ----------
    error : ErrorKind
        `NONE`, or the packet's first error. For a discarded packet, the error still reported.
    position : int
        Where the error is, in the unit of the table of errors; 0 without one.
    discarded : bool
        The packet was ignored because of an earlier error that has not been cleared. Nothing
        at all is sent for it. (For the packet that *causes* an error one beat is sent, with
        TUSER = 1, TLAST = 1 and the kind as data; it is not part of `streams`.)
    streams : tuple of np.ndarray
        Packets sent on the output stream, in order: int32 of shape (rows, B), sent row by row,
        vector 0 first. Raw results when `emit_results`, then activations, sign-extended, when
        `emit_activations`. Empty after an error and for a load packet.
    results : np.ndarray
        Raw results, accumulator plus bias, int32 of shape (rows, B), whether sent or
        not. Shape (0, B) after an error, for a load packet and with `more`, like `activations`.
    activations : np.ndarray
        Requantised results, int8 of shape (rows, B), whether sent or not.
    weights : int
        The matrix's rows × columns. 0 after an error and for a load packet, like the counts below.
    non_zeros : int
        Decoded weights that are not 0 as a number.
    multiplied : int
        Decoded weights that go to a multiplier: all but fillers and, where index 0 means 0, those
        of index 0. Larger than `non_zeros` where another index also stands for 0.
    code_bits : int
        Bits of the substreams, each up to the end of its last codeword that gives a weight
        other than 0.
    """

    error: ErrorKind
    position: int
    discarded: bool
    streams: tuple[np.ndarray, ...]
    results: np.ndarray
    activations: np.ndarray
    weights: int = 0
    non_zeros: int = 0
    multiplied: int = 0
    code_bits: int = 0


@dataclass(frozen=True)
class _Fault:
    """Why a packet is no good one."""

    kind: ErrorKind
    position: int


@dataclass(frozen=True)
class _Sections:
    """Bytes of a packet's sections, `(start, end)` without the padding; empty where absent."""

    entries: tuple[int, int]
    starts: tuple[int, int]
    payload: tuple[int, int]
    crc: tuple[int, int]


@dataclass(frozen=True)
class _Table:
    """A class table: (suffix bits, offset) of the classes 0 to `last`."""

    golomb: bool
    classes: tuple[tuple[int, int], ...]

    @property
    def last(self) -> int:
        return len(self.classes) - 1

    @property
    def lowest(self) -> list[int]:
        """What the first codeword of each class stands for."""
        return [
            offset if j == self.last and not self.golomb else (1 << suffix_bits) + offset
            for j, (suffix_bits, offset) in enumerate(self.classes)
        ]


@dataclass(frozen=True)
class _Code:
    """What a CODE packet says."""

    dense: bool
    level: _Table
    run: _Table | None


@dataclass(frozen=True)
class _Matrix:
    """The decoded payload.

    `weights` has shape (rows, columns); `beyond` lists what lies below it as (substream, row,
    column, weight); `fault` is the PREFIX or INDEX error, if there is one.
    """

    weights: np.ndarray
    beyond: tuple[tuple[int, int, int, int], ...]
    fault: _Fault | None
    non_zeros: int
    multiplied: int
    code_bits: int


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data` (RFC 3720 section 12.1), one bit after the other."""
    reflected = int(f"{CRC_POLYNOMIAL:032b}"[::-1], 2)
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (reflected if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def _read_fields(data: bytes, fields: Mapping[str, Field]) -> dict[str, int]:
    number = int.from_bytes(data, "little")
    return {
        name: (number >> (32 * field.word + field.lsb)) & ((1 << field.width) - 1)
        for name, field in fields.items()
    }


def _header_bytes(packet: bytes) -> int:
    """Return the size of the header that `packet`, at least one 32-bit word, begins with."""
    kind = _read_fields(packet[:4], HEADER_FIELDS)["kind"]
    return MATRIX_BYTES if kind == PacketKind.MATRIX else HEADER_BYTES


def read_header(packet: bytes) -> dict[str, int]:
    """Return the fields of a packet's header by name, unchecked.

    Parameters
    ----------
    packet : bytes
        Holds at least the header.

    Returns
    -------
    dict of str to int
        Only magic, version and kind when the kind is unknown.
    """
    header = packet[: _header_bytes(packet)]
    kind = _read_fields(header, HEADER_FIELDS)["kind"]
    return _read_fields(header, FIELDS_OF_KIND.get(kind, HEADER_FIELDS))


def _load_ranges(fields: Mapping[str, int], depth: int) -> dict[str, tuple[int, int]]:
    return {"base": (0, depth - 1), "count": (1, depth - fields["base"])}


def _code_ranges(
    fields: Mapping[str, int], params: AcceleratorParams
) -> dict[str, tuple[int, int]]:
    run_form = fields["run_form"]
    tables = int("eg-table" in params.codes)
    return {
        "bank": (0, params.code_banks - 1),
        "run_form": (0, int("eg-run" in params.codes)),
        "dense": (0, 1 - run_form),
        "level_golomb": (1 - tables, 1),
        "run_golomb": (run_form * (1 - tables), 1),
    }


def _matrix_ranges(
    fields: Mapping[str, int], params: AcceleratorParams
) -> dict[str, tuple[int, int]]:
    most_rows = params.activation_depth if fields["keep_activations"] else params.row_depth
    no_results = 1 - fields["more"]
    highest_base = 2 * params.row_depth - fields["rows"]
    return {
        "rows": (1, most_rows),
        "columns": (1, params.activation_depth),
        "keep_activations": (0, no_results),
        "emit_results": (0, no_results),
        "emit_activations": (0, no_results),
        "code_bank": (0, params.code_banks - 1),
        "column_bits": (0, 0 if fields["wide_starts"] else 15),
        "map_base": (0, 0 if fields["zigzag"] else params.map_depth - 1),
        "map_entries": (1, params.map_depth - fields["map_base"]),
        "bias_base": (0, highest_base if fields["has_bias"] else 0),
        "payload_words": (1, 2**32 - 1),
    }


def header_fault(packet: bytes, params: AcceleratorParams) -> str | None:
    """Return what is wrong with the header that `packet` begins with.

    Whether a matrix fits what was before it, its code and its activations, is not looked at.

    Parameters
    ----------
    packet : bytes
        At least the header.
    params : AcceleratorParams
        The accelerator that would read it.

    Returns
    -------
    str or None
        The first field out of its range, the value found and the values expected; None when
        every field is in range and every bit outside the fields is zero.
    """
    fields = read_header(packet)
    ranges = {
        "magic": (IMAGE_MAGIC, IMAGE_MAGIC),
        "version": (IMAGE_VERSION, IMAGE_VERSION),
        "kind": (min(PacketKind), max(PacketKind)),
    }
    match fields["kind"]:
        case PacketKind.MATRIX:
            ranges |= _matrix_ranges(fields, params)
        case PacketKind.MAP:
            ranges |= _load_ranges(fields, params.map_depth)
        case PacketKind.CODE:
            ranges |= _code_ranges(fields, params)
        case PacketKind.BIAS:
            ranges |= _load_ranges(fields, 2 * params.row_depth)
    for name, (low, high) in ranges.items():
        if not low <= fields[name] <= high:
            expected = str(low) if low == high else f"{low} to {high}"
            return f"header field {name}: found {fields[name]}, expected {expected}"
    rest = int.from_bytes(packet[: _header_bytes(packet)], "little")
    for name, field in FIELDS_OF_KIND[fields["kind"]].items():
        rest -= fields[name] << (32 * field.word + field.lsb)
    if rest != 0:
        return "header: found ones in bits that no field covers, expected zeros"
    if fields["kind"] == PacketKind.MATRIX:
        beats = fields["payload_words"] * params.beats_per_word
        if beats % params.slots != 0:
            return (
                f"header field payload_words: found {fields['payload_words']}, expected a number "
                f"whose beats are a multiple of {params.slots}"
            )
    return None


def _sections(fields: Mapping[str, int], params: AcceleratorParams) -> _Sections:
    word = params.bus_bits // 8
    at = 0

    def take(size: int) -> tuple[int, int]:
        nonlocal at
        start = at
        at += -(-size // word) * word
        return start, start + size

    entries = starts = payload = 0
    match fields["kind"]:
        case PacketKind.MATRIX:
            start_bytes = WIDE_START_BYTES if fields["wide_starts"] else ENTRY_BYTES
            starts = params.substreams * start_bytes
            payload = fields["payload_words"] * word
        case PacketKind.MAP:
            entries = fields["count"] * ENTRY_BYTES
        case PacketKind.CODE:
            entries = 2 * CLASSES * ENTRY_BYTES
        case PacketKind.BIAS:
            entries = fields["count"] * BIAS_BYTES
    take(MATRIX_BYTES if fields["kind"] == PacketKind.MATRIX else HEADER_BYTES)
    return _Sections(
        entries=take(entries), starts=take(starts), payload=take(payload), crc=take(word)
    )


def _entries(packet: bytes, span: tuple[int, int], size: int, *, signed: bool) -> list[int]:
    return [
        int.from_bytes(packet[at : at + size], "little", signed=signed)
        for at in range(span[0], span[1], size)
    ]


def _read_table(
    entries: list[bytes], last: int, golomb: bool, what: str, params: AcceleratorParams
) -> _Table:
    """Make a table of its 16 entries, which must be as the format asks of a packer."""
    limit = params.suffix_limit
    classes: list[tuple[int, int]] = []
    for j, entry in enumerate(entries):
        where = f"code section, {what} table, class {j}"
        fields = _read_fields(entry, ENTRY_FIELDS)
        suffix_bits, offset = fields["suffix_bits"], fields["offset"]
        if offset >= 1 << (ENTRY_FIELDS["offset"].width - 1):
            offset -= 1 << ENTRY_FIELDS["offset"].width
        if j > last:
            if (suffix_bits, offset) != (0, 0):
                raise FormatError(f"{where}: found an entry behind the last class, expected zeros")
            continue
        if suffix_bits > limit:
            raise FormatError(f"{where}: found {suffix_bits} suffix bits, expected 0 to {limit}")
        classes.append((suffix_bits, offset))
    order = classes[0][0]
    if golomb and (
        order > MAX_ORDER
        or classes != [(order + j, -(1 << order)) for j in range(limit - order + 1)]
    ):
        raise FormatError(
            f"code section, {what} table: found {classes}, expected an exp-Golomb code"
        )
    if not golomb and classes[0][0] == last == 0:
        raise FormatError(f"code section, {what} table: found a codeword without bits")
    table = _Table(golomb, tuple(classes))
    for j, lowest in enumerate(table.lowest):
        if lowest < 0:
            raise FormatError(
                f"code section, {what} table, class {j}: found a codeword for {lowest}, "
                "expected 0 or more"
            )
    return table


def _read_code(packet: bytes, fields: Mapping[str, int], params: AcceleratorParams) -> _Code:
    start, end = _sections(fields, params).entries
    entries = [packet[at : at + ENTRY_BYTES] for at in range(start, end, ENTRY_BYTES)]
    level = _read_table(
        entries[:CLASSES], fields["level_last"], bool(fields["level_golomb"]), "level", params
    )
    run = None
    if fields["run_form"]:
        run = _read_table(
            entries[CLASSES:], fields["run_last"], bool(fields["run_golomb"]), "run", params
        )
    elif any(map(any, entries[CLASSES:])):
        raise FormatError("code section, run table: found entries, expected zeros without run_form")
    if not fields["run_form"] and not fields["dense"]:
        for j, lowest in enumerate(level.lowest):
            if (lowest == 0) != (j == 0):
                raise FormatError(
                    f"code section, level table, class {j}: found a first codeword for {lowest}, "
                    f"expected {'one for' if j == 0 else 'none for'} index 0, which is zero"
                )
    return _Code(bool(fields["dense"]), level, run)


def _substreams(payload: bytes, params: AcceleratorParams) -> list[str]:
    """Deal the payload's beats to the substreams, each a string of '0' and '1' in time order."""
    width = params.parser_bits
    word_bytes = params.bus_bits // 8
    streams: list[list[str]] = [[] for _ in range(params.substreams)]
    beat_number = 0
    for at in range(0, len(payload), word_bytes):
        word = int.from_bytes(payload[at : at + word_bytes], "little")
        for place in range(params.beats_per_word):
            beat = (word >> (place * params.beat_bits)) & ((1 << params.beat_bits) - 1)
            for lane in range(params.lanes):
                bits = (beat >> (lane * width)) & ((1 << width) - 1)
                slot = beat_number % params.slots
                streams[lane * params.slots + slot].append(f"{bits:0{width}b}")
            beat_number += 1
    return ["".join(pieces) for pieces in streams]


def _read_codeword(bits: str, at: int, table: _Table) -> tuple[int, int] | ErrorKind | None:
    """Read the codeword that starts at bit `at`.

    Returns its number and the bit after it, `PREFIX`, or None when it is not complete.
    """
    one = bits.find("1", at)
    if not table.golomb and (one < 0 or one - at >= table.last):
        # The last class: its zeros, no one bit.
        suffix_at = at + table.last
        suffix_bits, number = table.classes[table.last]
    elif one < 0:
        return None
    elif one - at > table.last:
        return ErrorKind.PREFIX
    else:
        suffix_at = one + 1
        suffix_bits, offset = table.classes[one - at]
        number = (1 << suffix_bits) + offset
    end = suffix_at + suffix_bits
    if end > len(bits):
        return None
    return number + int("0" + bits[suffix_at:end], 2), end


@dataclass
class _Substream:
    """What a substream holds: (zeros before it, index, bit after it) for each level."""

    levels: list[tuple[int, int, int]]
    prefix_error: bool


def _read_substream(bits: str, code: _Code) -> _Substream:
    levels: list[tuple[int, int, int]] = []
    at = zeros = 0
    while True:
        if code.run is not None:
            read = _read_codeword(bits, at, code.run)
            if read is None or isinstance(read, ErrorKind):
                return _Substream(levels, prefix_error=read is not None)
            zeros, at = read
        read = _read_codeword(bits, at, code.level)
        if read is None or isinstance(read, ErrorKind):
            return _Substream(levels, prefix_error=read is not None)
        index, at = read
        levels.append((zeros, index, at))


def _value(
    index: int,
    fields: Mapping[str, int],
    code: _Code,
    table: tuple[int | None, ...],
    weight_bits: int,
) -> int:
    """Return the value of an index below `map_entries` that is not 0 by its form."""
    if fields["zigzag"]:
        number = index if code.run is None else index + 1
        value: int | None = (number >> 1) ^ -(number & 1)
    else:
        value = table[fields["map_base"] + index]
    if value is None:
        raise FormatError(
            f"value of index {index}: found nothing in entry {fields['map_base'] + index} of the "
            "map memory, expected a MAP packet before"
        )
    if not -(1 << (weight_bits - 1)) <= value < 1 << (weight_bits - 1):
        raise FormatError(
            f"value of index {index}: found {value}, expected a signed number of {weight_bits} bits"
        )
    return value


def _read_starts(
    packet: bytes, fields: Mapping[str, int], params: AcceleratorParams
) -> list[tuple[int, int]]:
    """Return row and column at which each substream begins."""
    size = WIDE_START_BYTES if fields["wide_starts"] else ENTRY_BYTES
    column_bits = 16 if fields["wide_starts"] else fields["column_bits"]
    starts = []
    span = _sections(fields, params).starts
    for substream, entry in enumerate(_entries(packet, span, size, signed=False)):
        row, column = entry >> column_bits, entry & ((1 << column_bits) - 1)
        if column >= fields["columns"]:
            raise FormatError(
                f"start of substream {substream}: found column {column}, expected 0 to "
                f"{fields['columns'] - 1}"
            )
        starts.append((row, column))
    return starts


@lru_cache(maxsize=64)
def _decode(
    packet: bytes, params: AcceleratorParams, code: _Code, table: tuple[int | None, ...]
) -> _Matrix:
    """Decode the payload of a matrix packet of the right length and with a good header.

    Cached, because a test set sends the same packets again and again.
    """
    fields = read_header(packet)
    rows, columns = fields["rows"], fields["columns"]
    weights = np.zeros((rows, columns), dtype=np.int64)
    beyond: list[tuple[int, int, int, int]] = []
    fault: _Fault | None = None
    non_zeros = multiplied = code_bits = 0
    starts = _read_starts(packet, fields, params)
    streams = _substreams(packet[slice(*_sections(fields, params).payload)], params)
    for substream, (bits, (row, column)) in enumerate(zip(streams, starts, strict=True)):
        read = _read_substream(bits, code)
        bad_index = False
        used = 0
        position = row * columns + column
        for zeros, index, end in read.levels:
            position += zeros
            if index > fields["map_entries"]:
                bad_index = True
            elif index == fields["map_entries"]:
                pass  # a filler
            elif index != 0 or code.dense or code.run is not None:
                value = _value(index, fields, code, table, params.weight_bits)
                multiplied += 1
                if value != 0:
                    non_zeros += 1
                    used = end
                    row, column = divmod(position, columns)
                    if row < rows:
                        weights[row, column] += value
                    else:
                        beyond.append((substream, row, column, value))
            position += 1
        if fault is None and (bad_index or read.prefix_error):
            fault = _Fault(ErrorKind.INDEX if bad_index else ErrorKind.PREFIX, substream)
        code_bits += used
    weights.setflags(write=False)
    return _Matrix(weights, tuple(beyond), fault, non_zeros, multiplied, code_bits)


def _requantise(result: int, multiplier: int, shift: int, relu: bool) -> int:
    half = 1 << (shift - 1) if shift > 0 else 0
    # Python's >> of a negative number rounds towards minus infinity: the floor of the division.
    activation = (result * multiplier + half) >> shift
    top = 1 << (ACTIVATION_BITS - 1)
    activation = max(-top, min(top - 1, activation))
    return max(0, activation) if relu else activation


class GoldenAccelerator:
    """The accelerator as its user sees it: packets in, results or an error out.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator modelled.

    Attributes
    ----------
    params : AcceleratorParams
    good_matrices : int
        Matrix packets that ended without error since the start or the last `clear`.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        self.clear()

    def clear(self) -> None:
        """Reset: clear the error and the count; tables and activations become unknown."""
        self._fault: _Fault | None = None
        self._map: list[int | None] = [None] * self.params.map_depth
        self._bias: list[int | None] = [None] * (2 * self.params.row_depth)
        self._codes: list[_Code | None] = [None] * self.params.code_banks
        # Entries of the map and of the bias memory that the last two matrices used.
        self._recent: deque[dict[str, range]] = deque(maxlen=2)
        # Whether the last matrix kept its results.
        self._kept = False
        self._activations: np.ndarray | None = None
        self._sums: np.ndarray | None = None
        self.good_matrices = 0

    def run_packet(
        self,
        packet: bytes,
        activations: np.ndarray | None = None,
        *,
        ends_with_tlast: bool = True,
    ) -> Outcome:
        """Send one packet on the weight stream and return everything that follows.

        Parameters
        ----------
        packet : bytes
            The packet's bus words up to and including the word with TLAST. Fewer words than
            the header says are TRUNCATED, more are OVERRUN.
        activations : np.ndarray, optional
            One packet of the activation stream up to its TLAST: int8 of shape (n, B), the last
            column first, without the zeros that fill its last beat; n is not necessarily `columns`.
            Needed when the packet has `load_activations` and gets as far; refused when the
            packet is good and has not.
        ends_with_tlast : bool
            False when the last word of `packet` carries no TLAST either.

        Returns
        -------
        Outcome
            Results, or the error that wins: DESCRIPTOR, then TRUNCATED or OVERRUN, then CRC,
            then ACTIVATIONS, then the lowest substream's PREFIX or INDEX, then ROW.

        Raises
        ------
        FormatError
            The format does not say what the accelerator does: no whole words, more
            words still to come, no activations, or a packet against its sender's duties.
        """
        if self._fault is not None:
            return self._empty(self._fault, discarded=True)
        fault = self._frame_fault(packet, ends_with_tlast)
        if fault is not None:
            return self._fail(fault)
        fields = read_header(packet)
        crc_at, crc_end = _sections(fields, self.params).crc
        if int.from_bytes(packet[crc_at:crc_end], "little") != crc32c(packet[:crc_at]):
            return self._fail(_Fault(ErrorKind.CRC, crc_at // (self.params.bus_bits // 8)))
        loads = fields["kind"] == PacketKind.MATRIX and fields["load_activations"]
        if activations is not None and not loads:
            raise FormatError("activations: found a packet, expected none without load_activations")
        if fields["kind"] == PacketKind.MATRIX:
            return self._run_matrix(packet, fields, activations)
        self._load_table(packet, fields)
        return self._empty(_Fault(ErrorKind.NONE, 0), discarded=False)

    def _fail(self, fault: _Fault) -> Outcome:
        self._fault = fault
        return self._empty(fault, discarded=False)

    def _empty(self, fault: _Fault, *, discarded: bool) -> Outcome:
        """Return an outcome without results."""
        shape = (0, self.params.batch)
        return Outcome(
            error=fault.kind,
            position=fault.position,
            discarded=discarded,
            streams=(),
            results=np.zeros(shape, dtype=np.int32),
            activations=np.zeros(shape, dtype=np.int8),
        )

    def _frame_fault(self, packet: bytes, ends_with_tlast: bool) -> _Fault | None:
        word = self.params.bus_bits // 8
        if len(packet) == 0 or len(packet) % word != 0:
            raise FormatError(
                f"packet: found {len(packet)} bytes, expected one or more bus words of {word} bytes"
            )
        words = len(packet) // word
        total = None
        if len(packet) >= _header_bytes(packet):
            if header_fault(packet, self.params) is not None:
                return _Fault(ErrorKind.DESCRIPTOR, 0)
            fields = read_header(packet)
            if fields["kind"] == PacketKind.MATRIX and not self._can_run(fields):
                return _Fault(ErrorKind.DESCRIPTOR, 0)
            total = _sections(fields, self.params).crc[1] // word
        if total is None or words < total:
            if not ends_with_tlast:
                raise FormatError(
                    f"packet: found {words} bus words without TLAST, expected "
                    f"{'a header' if total is None else f'{total} words'}"
                )
            return _Fault(ErrorKind.TRUNCATED, words - 1)
        if words > total or not ends_with_tlast:
            return _Fault(ErrorKind.OVERRUN, total - 1)
        return None

    def _can_run(self, fields: Mapping[str, int]) -> bool:
        """Return whether a matrix fits what was before it."""
        reads_again = not fields["load_activations"] and not self._kept
        return self._codes[fields["code_bank"]] is not None and not (
            reads_again and fields["keep_activations"]
        )

    def _load_table(self, packet: bytes, fields: Mapping[str, int]) -> None:
        span = _sections(fields, self.params).entries
        if fields["kind"] == PacketKind.CODE:
            self._codes[fields["bank"]] = _read_code(packet, fields, self.params)
            return
        name, memory, size = {
            PacketKind.MAP: ("map", self._map, ENTRY_BYTES),
            PacketKind.BIAS: ("bias", self._bias, BIAS_BYTES),
        }[PacketKind(fields["kind"])]
        base, count = fields["base"], fields["count"]
        for used in self._recent:
            if base < used[name].stop and used[name].start < base + count:
                raise FormatError(
                    f"{name} entries {base} to {base + count - 1}: found in use by one of the two "
                    f"matrices before, expected others than {used[name].start} to "
                    f"{used[name].stop - 1}"
                )
        memory[base : base + count] = _entries(packet, span, size, signed=True)

    def _run_matrix(
        self, packet: bytes, fields: Mapping[str, int], activations: np.ndarray | None
    ) -> Outcome:
        rows, columns = fields["rows"], fields["columns"]
        if fields["load_activations"]:
            fault = self._load_activations(activations, columns)
            if fault is not None:
                return self._fail(fault)
        if self._activations is None or len(self._activations) != columns:
            found = "none" if self._activations is None else str(len(self._activations))
            raise FormatError(f"activations: found {found}, expected one for each of {columns}")
        code = self._codes[fields["code_bank"]]
        assert code is not None  # else DESCRIPTOR
        matrix = _decode(packet, self.params, code, tuple(self._map))
        fault = matrix.fault or self._row_fault(matrix)
        if fault is not None:
            return self._fail(fault)

        map_base, map_entries = fields["map_base"], 0 if fields["zigzag"] else fields["map_entries"]
        bias_base, biases = fields["bias_base"], rows if fields["has_bias"] else 0
        self._recent.append(
            {
                "map": range(map_base, map_base + map_entries),
                "bias": range(bias_base, bias_base + biases),
            }
        )
        sums = matrix.weights @ self._activations
        if self._sums is not None:
            if len(self._sums) != rows:
                raise FormatError(
                    f"rows: found {rows}, expected the {len(self._sums)} of the packet with `more`"
                )
            sums = sums + self._sums
        self._sums = sums if fields["more"] else None
        if fields["more"]:
            outcome = self._empty(_Fault(ErrorKind.NONE, 0), discarded=False)
            results, quantised, streams = outcome.results, outcome.activations, outcome.streams
        else:
            results, quantised, streams = self._finish(sums, fields)
        self._kept = bool(fields["keep_activations"])
        self.good_matrices += 1
        return Outcome(
            error=ErrorKind.NONE,
            position=0,
            discarded=False,
            streams=streams,
            results=results,
            activations=quantised,
            weights=rows * columns,
            non_zeros=matrix.non_zeros,
            multiplied=matrix.multiplied,
            code_bits=matrix.code_bits,
        )

    def _load_activations(self, activations: np.ndarray | None, columns: int) -> _Fault | None:
        if activations is None:
            raise FormatError("activations: found none, expected a packet for load_activations")
        if (
            activations.dtype != np.int8
            or activations.ndim != 2
            or activations.shape[1] != self.params.batch
            or len(activations) == 0
        ):
            raise FormatError(
                f"activations: found {activations.dtype} of shape {activations.shape}, expected "
                f"int8 of shape (columns, {self.params.batch})"
            )
        in_beat = self.params.activation_columns
        beats, needed = -(-len(activations) // in_beat), -(-columns // in_beat)
        if beats != needed:
            # Noticed at TLAST when it comes early, else on the last beat, where it is missing.
            return _Fault(ErrorKind.ACTIVATIONS, min(beats, needed))
        received = np.zeros((beats * in_beat, self.params.batch), np.int64)
        received[: len(activations)] = activations
        self._activations = received[:columns][::-1]
        return None

    def _row_fault(self, matrix: _Matrix) -> _Fault | None:
        """Return the ROW error of the lowest substream with a sum beyond the last row."""
        assert self._activations is not None
        sums: dict[tuple[int, int], np.ndarray] = {}
        for substream, row, column, value in matrix.beyond:
            product = value * self._activations[column]
            sums[substream, row] = sums.get((substream, row), 0) + product
        wrong = [substream for (substream, _), part in sums.items() if part.any()]
        return _Fault(ErrorKind.ROW, min(wrong)) if wrong else None

    def _finish(
        self, sums: np.ndarray, fields: Mapping[str, int]
    ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        """Return results, activations and what is sent of them."""
        results = np.zeros(sums.shape, dtype=np.int32)
        activations = np.zeros(sums.shape, dtype=np.int8)
        top = 1 << (RESULT_BITS - 1)
        for row in range(len(sums)):
            bias = self._bias_of(row, fields) if fields["has_bias"] else 0
            for vector in range(self.params.batch):
                result = int(sums[row, vector]) + bias
                if not -top <= result < top:
                    raise FormatError(f"result of row {row}: found {result}, expected an int32")
                results[row, vector] = result
                activations[row, vector] = _requantise(
                    result, fields["multiplier"], fields["shift"], bool(fields["relu"])
                )
        streams = []
        if fields["emit_results"]:
            streams.append(results)
        if fields["emit_activations"]:
            streams.append(activations.astype(np.int32))
        if fields["keep_activations"]:
            self._activations = activations.astype(np.int64)
        return results, activations, tuple(streams)

    def _bias_of(self, row: int, fields: Mapping[str, int]) -> int:
        entry = fields["bias_base"] + row
        bias = self._bias[entry]
        if bias is None:
            raise FormatError(
                f"bias of row {row}: found nothing in entry {entry} of the bias memory, expected "
                "a BIAS packet before"
            )
        return bias


def split_packets(image: bytes, params: AcceleratorParams) -> list[bytes]:
    """Cut a file of well-formed packets where their headers say.

    Parameters
    ----------
    image : bytes
        The whole file. Checksums and payloads are not looked at.
    params : AcceleratorParams
        The accelerator it was made for.

    Returns
    -------
    list of bytes
        The packets in order, each with its CRC word.

    Raises
    ------
    FormatError
        Empty, a header out of range, or a last packet cut short; the message names the
        packet by its number from 0.
    """
    if len(image) == 0:
        raise FormatError("hardware image: found no bytes, expected at least one packet")
    packets: list[bytes] = []
    at = 0
    while at < len(image):
        where = f"hardware image, packet {len(packets)}"
        rest = image[at : at + MATRIX_BYTES]
        if len(rest) < HEADER_BYTES or len(rest) < _header_bytes(rest):
            raise FormatError(f"{where}: found {len(rest)} bytes, expected a header")
        fault = header_fault(rest, params)
        if fault is not None:
            raise FormatError(f"{where}: {fault}")
        size = _sections(read_header(rest), params).crc[1]
        if len(image) - at < size:
            raise FormatError(f"{where}: found {len(image) - at} bytes, expected {size}")
        packets.append(image[at : at + size])
        at += size
    return packets


@dataclass(frozen=True)
class LayerOutput:
    """What one layer gives for every input vector.

    Parameters
    ----------
    results : np.ndarray
        Accumulator plus bias, int32 of shape (n, rows).
    activations : np.ndarray
        Requantised results, int8 of shape (n, rows).
    """

    results: np.ndarray
    activations: np.ndarray


def _layer_forward(layer: IntegerLayer, inputs: np.ndarray) -> LayerOutput:
    exact = inputs.astype(np.int64) @ layer.weight.values.astype(np.int64).T
    if layer.bias_integer is not None:
        exact = exact + layer.bias_integer.astype(np.int64)
    results = exact.astype(np.int32)
    if not np.array_equal(results, exact):
        raise FormatError(f"layer {layer.name}: a result does not fit int32")
    scaled = exact * np.int64(layer.multiplier)
    if layer.shift > 0:
        scaled = (scaled + (np.int64(1) << np.int64(layer.shift - 1))) >> np.int64(layer.shift)
    activations = np.clip(scaled, 0 if layer.relu else -128, 127).astype(np.int8)
    return LayerOutput(results, activations)


def reference_forward(network: IntegerNetwork, inputs: np.ndarray) -> list[LayerOutput]:
    """Run a network on its integer matrices, without bits or packets in between.

    A second, independent way to the numbers that `GoldenAccelerator` gets from the image.

    Parameters
    ----------
    network : IntegerNetwork
        Layers with their integer weights, biases and requantiser.
    inputs : np.ndarray
        int8 of shape (n, features), as `IntegerNetwork.quantize_input` gives.

    Returns
    -------
    list of LayerOutput
        One for each layer in the order in which they run; each layer's activations are the
        next one's input.

    Raises
    ------
    FormatError
        A result does not fit int32; the message names the layer.
    """
    outputs: list[LayerOutput] = []
    for layer in network.layers:
        outputs.append(_layer_forward(layer, inputs))
        inputs = outputs[-1].activations
    return outputs
