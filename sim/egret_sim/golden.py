"""The accelerator's reference: what it must answer, bit for bit.

Written from chapter 2 of docs/format.md and from nothing else, to be read beside it. It shares
no code with the codec, the packer or the hardware, so that an error in one of them shows. Speed
does not matter here: bits are characters of a string, read one codeword after the other.

Where the format leaves the answer to the packer (a rows table that names a row twice, a result
that does not fit int32, an activation nobody has written) the model refuses with
`FormatError` instead of guessing: such a packet has no right answer to compare with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from egret.errors import FormatError
from egret.image_format import (
    CODE_EG_K,
    CRC_POLYNOMIAL,
    DESCRIPTOR_BYTES,
    ENTRY_BITS,
    FIELDS,
    IMAGE_MAGIC,
    IMAGE_VERSION,
    ROW_UNUSED,
    ErrorKind,
)
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import (
    ACTIVATION_BITS,
    BIAS_BITS,
    MAX_ORDER,
    RESULT_BITS,
    SHIFT_BITS,
    AcceleratorParams,
)

__all__ = [
    "GoldenAccelerator",
    "LayerOutput",
    "Outcome",
    "crc32c",
    "descriptor_fault",
    "read_descriptor",
    "reference_forward",
    "split_packets",
]

ENTRY_BYTES = ENTRY_BITS // 8
BIAS_BYTES = BIAS_BITS // 8
CRC_BYTES = 4


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
        `emit_activations`. Empty after an error.
    results : np.ndarray
        Raw results, accumulator plus bias, int32 of shape (rows, B), whether sent or
        not. Shape (0, B) after an error, like `activations`.
    activations : np.ndarray
        Requantised results, int8 of shape (rows, B), whether sent or not.
    weights : int
        Codewords decoded: the matrix's rows × columns. 0 after an error, like the counts below.
    non_zeros : int
        Codewords whose weight is not 0 as a number.
    multiplied : int
        Codewords that go to a multiplier: all with `dense`, else those of an index
        other than 0. Larger than `non_zeros` where another index also maps to 0.
    code_bits : int
        Bits of the codewords alone, without the zeros that fill a substream.
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
class _Sections:
    """Bytes of a packet's sections: `(start, end)` without the padding, and the whole."""

    map: tuple[int, int]
    counts: tuple[int, int]
    rows: tuple[int, int]
    bias: tuple[int, int]
    payload: tuple[int, int]
    crc: tuple[int, int]

    @property
    def packet_bytes(self) -> int:
        return self.crc[1]


@dataclass(frozen=True)
class _Matrix:
    """The decoded payload: the weights that take part in the sums, and the counts."""

    weights: np.ndarray
    non_zeros: int
    multiplied: int
    code_bits: int


@dataclass(frozen=True)
class _Fault:
    """Why a packet is no matrix."""

    kind: ErrorKind
    position: int


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data` (RFC 3720 section 12.1), one bit after the other."""
    reflected = int(f"{CRC_POLYNOMIAL:032b}"[::-1], 2)
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (reflected if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def read_descriptor(packet: bytes) -> dict[str, int]:
    """Return the descriptor's fields by name, unchecked; `packet` holds at least 32 bytes."""
    words = [int.from_bytes(packet[4 * i : 4 * i + 4], "little") for i in range(8)]
    return {
        name: (words[field.word] >> field.lsb) & ((1 << field.width) - 1)
        for name, field in FIELDS.items()
    }


def descriptor_fault(packet: bytes, params: AcceleratorParams) -> str | None:
    """Return what is wrong with the descriptor that `packet` begins with.

    Parameters
    ----------
    packet : bytes
        At least the 32 bytes of the descriptor.
    params : AcceleratorParams
        The accelerator that would read it.

    Returns
    -------
    str or None
        The first field out of its range, the value found and the values expected; None when
        every field is in range and every bit outside the fields is zero.
    """
    fields = read_descriptor(packet)
    rest = int.from_bytes(packet[:DESCRIPTOR_BYTES], "little")
    for name, field in FIELDS.items():
        rest -= fields[name] << (32 * field.word + field.lsb)
    if rest != 0:
        return "descriptor: found ones in bits that no field covers, expected zeros"
    most_rows = params.activation_depth if fields["keep_activations"] else params.row_depth
    most_slots = 2 * params.row_depth // params.substreams
    ranges = {
        "magic": (IMAGE_MAGIC, IMAGE_MAGIC),
        "version": (IMAGE_VERSION, IMAGE_VERSION),
        "code": (CODE_EG_K, CODE_EG_K),
        "order": (0, MAX_ORDER),
        "rows": (1, most_rows),
        "columns": (params.parser_bits, params.activation_depth),
        "map_entries": (1, params.map_depth),
        "row_slots": (1, most_slots),
        "payload_words": (1, 2**32 - 1),
        "shift": (0, (1 << SHIFT_BITS) - 1),
    }
    for name, (low, high) in ranges.items():
        if not low <= fields[name] <= high:
            expected = str(low) if low == high else f"{low} to {high}"
            return f"descriptor field {name}: found {fields[name]}, expected {expected}"
    return None


def _sections(fields: Mapping[str, int], params: AcceleratorParams) -> _Sections:
    word = params.bus_bits // 8
    at = 0

    def take(size: int) -> tuple[int, int]:
        nonlocal at
        start = at
        at += -(-size // word) * word
        return start, start + size

    take(DESCRIPTOR_BYTES)
    return _Sections(
        map=take(0 if fields["zigzag"] else fields["map_entries"] * ENTRY_BYTES),
        counts=take(params.substreams * ENTRY_BYTES),
        rows=take(fields["row_slots"] * params.substreams * ENTRY_BYTES),
        bias=take(fields["rows"] * BIAS_BYTES if fields["has_bias"] else 0),
        payload=take(fields["payload_words"] * word),
        crc=take(word),
    )


def _entries(packet: bytes, span: tuple[int, int], size: int, *, signed: bool) -> list[int]:
    return [
        int.from_bytes(packet[at : at + size], "little", signed=signed)
        for at in range(span[0], span[1], size)
    ]


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


def _read_codeword(bits: str, at: int, order: int, limit: int) -> tuple[int, int] | ErrorKind:
    """Return the index that starts at bit `at` and the bit after it, or what is wrong."""
    zeros = 0
    while True:
        if at == len(bits):
            return ErrorKind.SHORT
        if bits[at] == "1":
            break
        zeros += 1
        at += 1
        if zeros + order > limit:
            return ErrorKind.PREFIX
    at += 1
    suffix_bits = zeros + order
    if at + suffix_bits > len(bits):
        return ErrorKind.SHORT
    suffix = int("0" + bits[at : at + suffix_bits], 2)
    return (1 << suffix_bits) + suffix - (1 << order), at + suffix_bits


def _value(index: int, fields: Mapping[str, int], table: list[int], weight_bits: int) -> int:
    if index == 0 and not fields["dense"]:
        return 0
    value = (index >> 1) ^ -(index & 1) if fields["zigzag"] else table[index]
    if not -(1 << (weight_bits - 1)) <= value < 1 << (weight_bits - 1):
        raise FormatError(
            f"value of index {index}: found {value}, expected a signed number of {weight_bits} bits"
        )
    return value


@lru_cache(maxsize=64)
def _decode(packet: bytes, params: AcceleratorParams) -> _Matrix | _Fault:
    """Decode the payload of a packet of the right length with a good descriptor.

    Cached, because a test set sends the same packets again and again.
    """
    fields = read_descriptor(packet)
    sections = _sections(fields, params)
    crc_word = int.from_bytes(packet[slice(*sections.crc)], "little")
    if crc_word != crc32c(packet[: sections.crc[0]]):
        return _Fault(ErrorKind.CRC, sections.crc[0] // (params.bus_bits // 8))
    table = _entries(packet, sections.map, ENTRY_BYTES, signed=True)
    if table and table[0] != 0 and not fields["dense"]:
        raise FormatError(f"map section: found {table[0]} as entry 0, expected 0 without `dense`")
    counts = _entries(packet, sections.counts, ENTRY_BYTES, signed=False)
    dealt = _entries(packet, sections.rows, ENTRY_BYTES, signed=False)
    if max(counts) > fields["row_slots"]:
        raise FormatError(
            f"counts section: found {max(counts)} rows in a substream, expected at most the "
            f"{fields['row_slots']} of row_slots"
        )
    owner_of_row: dict[int, int] = {}
    for substream in range(params.substreams):
        for r in range(counts[substream]):
            row = dealt[r * params.substreams + substream]
            if row == ROW_UNUSED or row >= fields["rows"] or row in owner_of_row:
                raise FormatError(
                    f"rows section, substream {substream}, entry {r}: found row {row}, expected "
                    f"each of 0 to {fields['rows'] - 1} once"
                )
            owner_of_row[row] = substream
    if len(owner_of_row) != fields["rows"]:
        raise FormatError(
            f"rows section: found {len(owner_of_row)} rows, expected {fields['rows']}"
        )

    weights = np.zeros((fields["rows"], fields["columns"]), dtype=np.int64)
    non_zeros = multiplied = code_bits = 0
    streams = _substreams(packet[slice(*sections.payload)], params)
    for substream, bits in enumerate(streams):
        at = 0
        for r in range(counts[substream]):
            row = dealt[r * params.substreams + substream]
            for column in range(fields["columns"]):
                read = _read_codeword(bits, at, fields["order"], params.suffix_limit)
                if isinstance(read, ErrorKind):
                    return _Fault(read, substream)
                index, at = read
                if index >= fields["map_entries"]:
                    return _Fault(ErrorKind.INDEX, substream)
                value = _value(index, fields, table, params.weight_bits)
                weights[row, column] = value
                non_zeros += value != 0
                multiplied += bool(fields["dense"]) or index != 0
        code_bits += at
    weights.setflags(write=False)
    return _Matrix(weights, non_zeros, multiplied, code_bits)


def _requantise(result: int, multiplier: int, shift: int, relu: bool) -> int:
    half = 1 << (shift - 1) if shift > 0 else 0
    # Python's >> of a negative number rounds towards minus infinity: the floor of the division.
    activation = (result * multiplier + half) >> shift
    top = 1 << (ACTIVATION_BITS - 1)
    activation = max(-top, min(top - 1, activation))
    return max(0, activation) if relu else activation


class _Memory:
    """An activation memory: `activation_depth` entries of B numbers, some never written."""

    def __init__(self, params: AcceleratorParams) -> None:
        self.values = np.zeros((params.activation_depth, params.batch), dtype=np.int64)
        self.written = 0

    def fill(self, values: np.ndarray) -> None:
        self.values[: len(values)] = values
        self.written = len(values)


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
        Matrices that ended without error since the start or the last `clear`.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        self.clear()

    def clear(self) -> None:
        """Reset: clear the error and the count; both activation memories become unknown."""
        self._fault: _Fault | None = None
        self._current = _Memory(self.params)
        self._other = _Memory(self.params)
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
            the descriptor says are TRUNCATED, more are OVERRUN.
        activations : np.ndarray, optional
            One packet of the activation stream up to its TLAST: int8 of shape (n, B), n not
            necessarily `columns`. Needed when the packet has `load_activations` and gets as far;
            refused when the packet is good and has not.
        ends_with_tlast : bool
            False when the last word of `packet` carries no TLAST either.

        Returns
        -------
        Outcome
            Results, or the error that wins: DESCRIPTOR, then TRUNCATED or OVERRUN, then CRC,
            then ACTIVATIONS, then the lowest substream's.

        Raises
        ------
        FormatError
            The format does not say what the accelerator does: no whole words, more
            words still to come, no activations, or a packet against the packer's duties.
        """
        if self._fault is not None:
            return self._failed(self._fault, discarded=True)
        fault = self._frame_fault(packet, ends_with_tlast)
        if fault is not None:
            return self._fail(fault)
        fields = read_descriptor(packet)
        matrix = _decode(packet, self.params)
        if isinstance(matrix, _Fault) and matrix.kind is ErrorKind.CRC:
            return self._fail(matrix)
        if fields["load_activations"]:
            fault = self._load(activations, fields["columns"])
            if fault is not None:
                return self._fail(fault)
        elif activations is not None:
            raise FormatError("activations: found a packet, expected none without load_activations")
        if isinstance(matrix, _Fault):
            return self._fail(matrix)
        return self._multiply(packet, fields, matrix)

    def _fail(self, fault: _Fault) -> Outcome:
        self._fault = fault
        return self._failed(fault, discarded=False)

    def _failed(self, fault: _Fault, *, discarded: bool) -> Outcome:
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
        if len(packet) >= DESCRIPTOR_BYTES:
            if descriptor_fault(packet, self.params) is not None:
                return _Fault(ErrorKind.DESCRIPTOR, 0)
            sections = _sections(read_descriptor(packet), self.params)
            total = sections.packet_bytes // word
        if total is None or words < total:
            if not ends_with_tlast:
                raise FormatError(
                    f"packet: found {words} bus words without TLAST, expected "
                    f"{'a descriptor' if total is None else f'{total} words'}"
                )
            return _Fault(ErrorKind.TRUNCATED, words - 1)
        if words > total or not ends_with_tlast:
            return _Fault(ErrorKind.OVERRUN, total - 1)
        return None

    def _load(self, activations: np.ndarray | None, columns: int) -> _Fault | None:
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
        if len(activations) != columns:
            # Noticed at TLAST when it comes early, else on the last column, where it is missing.
            return _Fault(ErrorKind.ACTIVATIONS, min(len(activations), columns))
        self._current.fill(activations)
        return None

    def _multiply(self, packet: bytes, fields: Mapping[str, int], matrix: _Matrix) -> Outcome:
        rows, columns = fields["rows"], fields["columns"]
        # Zero columns may lie beyond what was written: 0 times whatever is there is 0.
        if np.any(matrix.weights[:, self._current.written :] != 0):
            raise FormatError(
                f"activations: found {self._current.written} in the current memory, expected "
                f"one for each column that is not zero, of {columns}"
            )
        accumulators = matrix.weights @ self._current.values[:columns]
        bias_span = _sections(fields, self.params).bias
        bias = _entries(packet, bias_span, BIAS_BYTES, signed=True) or [0] * rows

        results = np.zeros((rows, self.params.batch), dtype=np.int32)
        activations = np.zeros((rows, self.params.batch), dtype=np.int8)
        top = 1 << (RESULT_BITS - 1)
        for row in range(rows):
            for vector in range(self.params.batch):
                result = int(accumulators[row, vector]) + bias[row]
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
            self._other.fill(activations)
            self._current, self._other = self._other, self._current
        self.good_matrices += 1
        return Outcome(
            error=ErrorKind.NONE,
            position=0,
            discarded=False,
            streams=tuple(streams),
            results=results,
            activations=activations,
            weights=rows * columns,
            non_zeros=matrix.non_zeros,
            multiplied=matrix.multiplied,
            code_bits=matrix.code_bits,
        )


def split_packets(image: bytes, params: AcceleratorParams) -> list[bytes]:
    """Cut a file of well-formed packets where their descriptors say.

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
        Empty, a descriptor out of range, or a last packet cut short; the message names the
        packet by its number from 0.
    """
    if len(image) == 0:
        raise FormatError("hardware image: found no bytes, expected at least one packet")
    packets: list[bytes] = []
    at = 0
    while at < len(image):
        where = f"hardware image, packet {len(packets)}"
        left = len(image) - at
        if left < DESCRIPTOR_BYTES:
            raise FormatError(
                f"{where}: found {left} bytes, expected a descriptor of {DESCRIPTOR_BYTES}"
            )
        descriptor = image[at : at + DESCRIPTOR_BYTES]
        fault = descriptor_fault(descriptor, params)
        if fault is not None:
            raise FormatError(f"{where}: {fault}")
        size = _sections(read_descriptor(descriptor), params).packet_bytes
        if left < size:
            raise FormatError(f"{where}: found {left} bytes, expected {size}")
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
