"""The golden model against packets put together by hand, bit by bit, in this file."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor

import crc32c as independent_crc
import numpy as np
import pytest

from egret.errors import FormatError
from egret.image_format import ErrorKind
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_sim.golden import (
    GoldenAccelerator,
    crc32c,
    reference_forward,
    split_packets,
)

# One lane, one bit a cycle: the payload is simply the codewords, first bit lowest in its word.
SERIAL = AcceleratorParams(
    name="serial",
    lanes=1,
    parser_bits=1,
    parser_cut=1,
    bus_bits=32,
    map_depth=1024,
    activation_depth=16,
    row_depth=16,
)

SHAPES = [
    SERIAL,
    replace(SERIAL, name="b3", batch=3),
    replace(SERIAL, name="w4", parser_bits=4, parser_cut=4),
    replace(SERIAL, name="w8c1", parser_bits=8, parser_cut=8, bus_bits=64),
    replace(SERIAL, name="w8c2", parser_bits=8, parser_cut=4, batch=3),
    replace(SERIAL, name="l4w4c1", lanes=4, parser_bits=4, parser_cut=4, batch=3),
    replace(SERIAL, name="l4w4c2", lanes=4, parser_bits=4, parser_cut=2, bus_bits=64),
    replace(SERIAL, name="l4w4c4", lanes=4, parser_bits=4, parser_cut=1, row_depth=32),
    replace(SERIAL, name="l4w8c4", lanes=4, parser_bits=8, parser_cut=2, row_depth=32),
    replace(SERIAL, name="l16w1", lanes=16, row_depth=32),
    replace(SERIAL, name="l16w4", lanes=16, parser_bits=4, parser_cut=4, bus_bits=64, row_depth=32),
]


def codeword(index: int, order: int) -> str:
    number = f"{index + 2**order:b}"
    return "0" * (len(number) - 1 - order) + number


def little(value: int, size: int) -> bytes:
    return (value % 256**size).to_bytes(size, "little")


def padded(data: bytes, params: AcceleratorParams) -> bytes:
    while len(data) % (params.bus_bits // 8):
        data += b"\0"
    return data


def with_crc(body: bytes, params: AcceleratorParams) -> bytes:
    return body + padded(little(independent_crc.crc32c(body), 4), params)


def payload_of(streams: Sequence[str], params: AcceleratorParams, words: int = 0) -> bytes:
    """Interleave one string of bits for each substream as the payload's beats."""
    lanes, width = params.lanes, params.parser_bits
    slots = width // params.parser_cut
    beats = max(slots * -(-len(bits) // width) for bits in streams)
    per_word = params.bus_bits // (lanes * width)
    words = words or max(1, -(-beats // per_word))
    data = b""
    for word in range(words):
        text = ""  # highest bit first, so later beats and higher lanes go in front
        for beat in range(word * per_word, (word + 1) * per_word):
            for lane in range(lanes):
                start = (beat // slots) * width
                bits = streams[lane * slots + beat % slots][start : start + width]
                text = bits.ljust(width, "0") + text
        data += little(int(text, 2), params.bus_bits // 8)
    return data


def packet(
    params: AcceleratorParams,
    indices: Sequence[Sequence[int]] | np.ndarray,
    table: Sequence[int] = (),
    *,
    order: int = 0,
    flags: int = 0b1001,  # load_activations, emit_results
    bias: Sequence[int] = (),
    multiplier: int = 1,
    shift: int = 0,
    map_entries: int | None = None,
    deal: Sequence[Sequence[int]] | None = None,
    streams: Sequence[str] | None = None,
    words: int = 0,
) -> bytes:
    """Put a packet together; `deal` lists each substream's rows, `streams` replaces its bits."""
    indices = np.asarray(indices)
    rows, columns = indices.shape
    substreams = params.lanes * params.parser_bits // params.parser_cut
    if deal is None:
        deal = [range(s, rows, substreams) for s in range(substreams)]
    if streams is None:
        streams = [
            "".join(codeword(int(i), order) for row in mine for i in indices[row]) for mine in deal
        ]
    payload = payload_of(streams, params, words)
    slots = max(len(mine) for mine in deal)
    entries = len(table) if map_entries is None else map_entries
    descriptor = [
        0x4745 | 1 << 16,
        flags | order << 12,
        rows | columns << 16,
        entries | slots << 16,
        len(payload) // (params.bus_bits // 8),
        multiplier | shift << 16,
        0,
        0,
    ]
    if bias:
        descriptor[1] |= 1 << 5
    body = b"".join(little(word, 4) for word in descriptor)
    body += padded(b"".join(little(value, 2) for value in table), params)
    body += padded(b"".join(little(len(mine), 2) for mine in deal), params)
    dealt = [mine[r] if r < len(mine) else 0xFFFF for r in range(slots) for mine in map(list, deal)]
    body += padded(b"".join(little(row, 2) for row in dealt), params)
    body += padded(b"".join(little(value, 4) for value in bias), params)
    return with_crc(body + payload, params)


def changed(data: bytes, params: AcceleratorParams, word: int, mask: int) -> bytes:
    """Flip bits of a descriptor word and make the CRC right again."""
    old = int.from_bytes(data[4 * word : 4 * word + 4], "little")
    body = data[: 4 * word] + little(old ^ mask, 4) + data[4 * word + 4 : -params.bus_bits // 8]
    return with_crc(body, params)


def vector(*values: int) -> np.ndarray:
    return np.array([[value] for value in values], dtype=np.int8)


def test_packet_written_out_in_words() -> None:
    # Rows (5, 0) and (-3, 5); codewords 010 1 011 010, first bit lowest: 0b01_0110_1010.
    words = [
        0x00014745,
        0x00000009,
        0x00020002,
        0x00020003,
        1,
        1,
        0,
        0,
        0x00050000,  # map 0, 5 ...
        0x0000FFFD,  # ... -3
        0x00000002,  # two rows in the only substream
        0x00010000,  # row 0, row 1
        0b0101101010,
    ]
    data = with_crc(b"".join(little(word, 4) for word in words), SERIAL)
    assert data == packet(SERIAL, [[1, 0], [2, 1]], [0, 5, -3])
    outcome = GoldenAccelerator(SERIAL).run_packet(data, vector(10, -20))
    assert outcome.error is ErrorKind.NONE
    assert outcome.position == 0
    assert not outcome.discarded
    assert [stream.tolist() for stream in outcome.streams] == [[[50], [-130]]]
    assert outcome.streams[0].dtype == np.int32
    assert outcome.results.tolist() == [[50], [-130]]
    assert outcome.activations.tolist() == [[50], [-128]]
    assert outcome.activations.dtype == np.int8
    assert (outcome.weights, outcome.non_zeros, outcome.code_bits) == (4, 3, 10)


PAPER_TABLE = {
    0: "1 010 011 00100 00101 00110 00111 0001000 0001001 0001010",
    1: "10 11 0100 0101 0110 0111 001000 001001 001010 001011",
    2: "100 101 110 111 01000 01001 01010 01011 01100 01101",
    3: "1000 1001 1010 1011 1100 1101 1110 1111 010000 010001",
}


@pytest.mark.parametrize("order", PAPER_TABLE)
def test_codewords_of_the_paper(order: int) -> None:
    bits = PAPER_TABLE[order].replace(" ", "")
    table = [0, 100, -200, 300, -400, 500, -600, 700, -800, 900]
    data = packet(SERIAL, np.arange(10)[:, None], table, order=order, streams=[bits])
    outcome = GoldenAccelerator(SERIAL).run_packet(data, vector(1))
    assert outcome.results[:, 0].tolist() == table
    assert outcome.code_bits == len(bits)


@pytest.mark.parametrize("order", range(8))
def test_longest_codewords_of_every_order(order: int) -> None:
    data = packet(SERIAL, [[1023], [0], [1022]], range(1024), order=order)
    outcome = GoldenAccelerator(SERIAL).run_packet(data, vector(2))
    assert outcome.results[:, 0].tolist() == [2046, 0, 2044]


@pytest.mark.parametrize("params", SHAPES, ids=lambda params: params.name)
@pytest.mark.parametrize("seed", range(3))
def test_random_matrices(params: AcceleratorParams, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, params.row_depth + 1))
    columns = int(rng.integers(params.parser_bits, params.activation_depth + 1))
    order = int(rng.integers(0, 4))
    table = [0, *rng.choice(np.r_[-2048:0, 1:2048], 19, replace=False).tolist()]
    indices = rng.geometric(0.4, (rows, columns)).clip(max=20) - 1
    substreams = params.lanes * params.parser_bits // params.parser_cut
    # Any dealing of the rows will do, as long as each is dealt once and the table has room.
    shuffled = rng.permutation(rows).tolist()
    deal = [sorted(shuffled[s::substreams], reverse=True) for s in range(substreams)]
    bias = rng.integers(-(2**20), 2**20, rows).tolist()
    x = rng.integers(-128, 128, (columns, params.batch), dtype=np.int8)
    data = packet(params, indices, table, order=order, deal=deal, bias=bias)
    outcome = GoldenAccelerator(params).run_packet(data, x)
    weights = np.array(table)[indices]
    np.testing.assert_array_equal(
        outcome.results, weights @ x.astype(int) + np.array(bias)[:, None], f"seed {seed}"
    )
    assert outcome.weights == rows * columns
    assert outcome.non_zeros == outcome.multiplied == np.count_nonzero(weights)
    assert outcome.code_bits == sum(len(codeword(int(i), order)) for i in indices.flat)


def requantised(results: Sequence[int], multiplier: int, shift: int, flags: int = 0) -> list[int]:
    data = packet(
        SERIAL,
        [[0]] * len(results),
        [0],
        bias=results,
        multiplier=multiplier,
        shift=shift,
        flags=0b10001 | flags,
    )
    outcome = GoldenAccelerator(SERIAL).run_packet(data, vector(0))
    assert outcome.results[:, 0].tolist() == list(results)
    assert outcome.streams[0].tolist() == outcome.activations.tolist()
    return [int(value) for value in outcome.streams[0][:, 0]]


def test_rounding_is_half_upwards() -> None:
    # By 2: -5 / 2 = -2.5 gives -2, 5 / 2 = 2.5 gives 3.
    assert requantised([-5, -3, -1, 0, 1, 3, 5], 1, 1) == [-2, -1, 0, 0, 1, 2, 3]
    assert requantised([-7, -6, -5, 5, 6, 7], 1, 2) == [-2, -1, -1, 1, 2, 2]
    assert requantised([-11, 11], 3, 3) == [-4, 4]  # ∓33 / 8 = ∓4.125
    assert requantised([-4, 4], 3, 3) == [-1, 2]  # ∓12 / 8 = ∓1.5


def test_no_shift_adds_no_half() -> None:
    assert requantised([-2, 0, 2], 3, 0) == [-6, 0, 6]


def test_saturation_and_relu() -> None:
    values = [127, 128, -128, -129, 2**31 - 1, -(2**31)]
    assert requantised(values, 1, 0) == [127, 127, -128, -128, 127, -128]
    assert requantised([5, -1, 0, -129, 128], 1, 0, flags=0b10) == [5, 0, 0, 0, 127]


def test_requantiser_on_the_edges_of_its_fields() -> None:
    assert requantised([2**31 - 1, -(2**31)], 65535, 63) == [0, 0]
    assert requantised([2**31 - 1, -(2**31)], 65535, 40) == [127, -128]
    assert requantised([12345], 0, 5) == [0]
    rng = np.random.default_rng(5)
    for _ in range(20):
        results = rng.integers(-(2**31), 2**31, 16).tolist()
        multiplier, shift = int(rng.integers(1, 65536)), int(rng.integers(38, 44))
        expected = [
            max(-128, min(127, floor(Fraction(r * multiplier, 2**shift) + Fraction(1, 2))))
            for r in results
        ]
        assert requantised(results, multiplier, shift) == expected, (multiplier, shift)


def test_flags_choose_the_output_streams() -> None:
    for flags, expected in [
        (0b00001, []),
        (0b01001, [[[300], [-4]]]),
        (0b10001, [[[127], [-4]]]),
        (0b11001, [[[300], [-4]], [[127], [-4]]]),
        (0b11011, [[[300], [-4]], [[127], [0]]]),
    ]:
        data = packet(SERIAL, [[1], [2]], [0, 150, -2], flags=flags)
        outcome = GoldenAccelerator(SERIAL).run_packet(data, vector(2))
        assert [stream.tolist() for stream in outcome.streams] == expected
        assert all(stream.dtype == np.int32 for stream in outcome.streams)
        assert outcome.results.tolist() == [[300], [-4]]


def test_zigzag_has_no_map() -> None:
    data = packet(SERIAL, np.arange(7)[:, None], flags=0b1001001, map_entries=7)
    outcome = GoldenAccelerator(SERIAL).run_packet(data, vector(10))
    assert outcome.results[:, 0].tolist() == [0, -10, 10, -20, 20, -30, 30]
    assert outcome.non_zeros == 6


def test_dense_multiplies_index_zero() -> None:
    indices = [[0, 1], [2, 0]]
    sparse = packet(SERIAL, indices, [0, 7, -1])
    dense = packet(SERIAL, indices, [7, 0, -1], flags=0b10001001)
    outcome = GoldenAccelerator(SERIAL).run_packet(sparse, vector(1, 10))
    assert outcome.results[:, 0].tolist() == [70, -1]
    assert (outcome.weights, outcome.non_zeros, outcome.multiplied) == (4, 2, 2)
    outcome = GoldenAccelerator(SERIAL).run_packet(dense, vector(1, 10))
    assert outcome.results[:, 0].tolist() == [7, 69]
    assert (outcome.weights, outcome.non_zeros, outcome.multiplied) == (4, 3, 4)
    contradiction = packet(SERIAL, indices, [7, 0, -1])
    with pytest.raises(FormatError, match="found 7 as entry 0, expected 0 without `dense`"):
        GoldenAccelerator(SERIAL).run_packet(contradiction, vector(1, 10))


@pytest.mark.parametrize("batch", [1, 3])
def test_two_matrices_chain(batch: int) -> None:
    params = replace(SERIAL, batch=batch)
    table = [0, 3, -2]
    first = np.array([[1, 2, 0], [0, 1, 1], [2, 2, 1], [1, 0, 0]])
    # The fourth column of the second layer is one of zeros, as for padding.
    second = np.array([[1, 0, 2, 0], [2, 1, 1, 0]])
    x = np.random.default_rng(1).integers(-20, 20, (3, batch), dtype=np.int8)
    accelerator = GoldenAccelerator(params)
    one = accelerator.run_packet(packet(params, first[:3], table, flags=0b111, shift=1), x)
    assert one.streams == ()
    two = accelerator.run_packet(packet(params, second, table, flags=0b1000))
    assert accelerator.good_matrices == 2
    hidden = np.array(table)[first[:3]] @ x.astype(int)
    hidden = np.maximum(0, (hidden + 1) // 2)
    assert hidden.max() > 0
    np.testing.assert_array_equal(one.activations, hidden)
    expected = np.array(table)[second[:, :3]] @ hidden
    np.testing.assert_array_equal(two.streams[0], expected)
    # Nothing was kept, so the input of the second matrix is still the current one.
    again = accelerator.run_packet(packet(params, second, table, flags=0b1000))
    np.testing.assert_array_equal(again.streams[0], expected)
    # A column that nobody has written has no value to multiply.
    second[0, 3] = 1
    with pytest.raises(FormatError, match="found 3 in the current memory"):
        accelerator.run_packet(packet(params, second, table, flags=0b1000))


def test_without_relu_negative_activations_chain() -> None:
    accelerator = GoldenAccelerator(SERIAL)
    accelerator.run_packet(packet(SERIAL, [[1]], [0, -2], flags=0b101), vector(5))
    outcome = accelerator.run_packet(packet(SERIAL, [[1]], [0, -2], flags=0b1000))
    assert outcome.results.tolist() == [[20]]


def test_crc() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    rng = np.random.default_rng(3)
    for size in (0, 1, 31, 100):
        data = rng.bytes(size)
        assert crc32c(data) == independent_crc.crc32c(data)


def failing(
    params: AcceleratorParams,
    data: bytes,
    activations: np.ndarray | None,
    *,
    ends_with_tlast: bool = True,
) -> tuple[ErrorKind, int]:
    """Return error and position, after checking what every error has in common."""
    good = packet(params, [[1] * params.parser_bits], [0, 1])
    good_input = np.ones((params.parser_bits, params.batch), dtype=np.int8)
    accelerator = GoldenAccelerator(params)
    accelerator.run_packet(good, good_input)
    assert accelerator.good_matrices == 1
    outcome = accelerator.run_packet(data, activations, ends_with_tlast=ends_with_tlast)
    assert outcome.error is not ErrorKind.NONE
    assert not outcome.discarded
    assert outcome.streams == ()
    assert outcome.results.size == outcome.activations.size == outcome.weights == 0
    ignored = accelerator.run_packet(good, good_input)
    assert ignored.discarded
    assert ignored.streams == ()
    assert (ignored.error, ignored.position) == (outcome.error, outcome.position)
    assert accelerator.good_matrices == 1
    accelerator.clear()
    assert accelerator.good_matrices == 0
    after = accelerator.run_packet(good, good_input)
    assert after.error is ErrorKind.NONE
    assert after.streams[0].tolist() == [[params.parser_bits] * params.batch]
    assert accelerator.good_matrices == 1
    return outcome.error, outcome.position


@pytest.mark.parametrize("bus_bits", [32, 64])
def test_every_single_bit_flip_is_caught(bus_bits: int) -> None:
    params = replace(SERIAL, bus_bits=bus_bits)
    data = packet(params, [[1, 0], [2, 1]], [0, 5, -3])
    word = bus_bits // 8
    crc_word = len(data) // word - 1
    accelerator = GoldenAccelerator(params)
    kinds = set()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        accelerator.clear()
        outcome = accelerator.run_packet(bytes(damaged), vector(10, -20))
        assert outcome.error is not ErrorKind.NONE, bit
        kinds.add(outcome.error)
        if bit >= 8 * 32:
            assert (outcome.error, outcome.position) == (ErrorKind.CRC, crc_word), bit
    assert {ErrorKind.DESCRIPTOR, ErrorKind.TRUNCATED, ErrorKind.OVERRUN, ErrorKind.CRC} == kinds


@pytest.mark.parametrize(
    ("word", "mask"),
    [
        (0, 1 << 3),  # magic
        (0, 3 << 16),  # version 2
        (0, 1 << 24),  # a bit without a field
        (1, 1 << 8),  # code
        (1, 8 << 12),  # order 8
        (2, 2),  # rows 0
        (2, 2 ^ 17),  # rows 17
        (2, 2 << 16),  # columns 0
        (2, (2 ^ 17) << 16),  # columns 17
        (3, 3),  # map entries 0
        (3, 3 ^ 1025),
        (3, 2 << 16),  # row slots 0
        (3, (2 ^ 33) << 16),  # row slots 33
        (4, 1),  # payload words 0
        (5, 1 << 22),
        (7, 1 << 31),
    ],
)
def test_descriptor_errors(word: int, mask: int) -> None:
    data = packet(SERIAL, [[1, 0], [2, 1]], [0, 5, -3])
    damaged = changed(data, SERIAL, word, mask)
    assert failing(SERIAL, damaged, vector(1, 2)) == (ErrorKind.DESCRIPTOR, 0)
    # It wins over the length: the descriptor alone tells.
    assert failing(SERIAL, damaged[:32], None) == (ErrorKind.DESCRIPTOR, 0)


def test_descriptor_limits_depend_on_the_parameters() -> None:
    deep = replace(SERIAL, row_depth=32, parser_bits=4, parser_cut=4)
    rows = np.ones((17, 4), dtype=int)
    x = np.ones((4, 1), dtype=np.int8)
    accelerator = GoldenAccelerator(deep)
    assert accelerator.run_packet(packet(deep, rows, [0, 1]), x).error is ErrorKind.NONE
    # Rows that are kept must fit an activation memory.
    assert failing(deep, packet(deep, rows, [0, 1], flags=0b101), x) == (ErrorKind.DESCRIPTOR, 0)
    # Fewer columns than bits a lane reads at once.
    assert failing(deep, packet(deep, rows[:, :3], [0, 1]), x) == (ErrorKind.DESCRIPTOR, 0)


@pytest.mark.parametrize("bus_bits", [32, 64])
def test_truncated_and_overrun(bus_bits: int) -> None:
    params = replace(SERIAL, bus_bits=bus_bits)
    word = bus_bits // 8
    data = packet(params, [[1, 0], [2, 1]], [0, 5, -3])
    words = len(data) // word
    for length in range(1, words):
        assert failing(params, data[: length * word], None) == (ErrorKind.TRUNCATED, length - 1)
    for tail in (bytes(word), bytes(5 * word)):
        assert failing(params, data + tail, None) == (ErrorKind.OVERRUN, words - 1)
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    overrun = (ErrorKind.OVERRUN, words - 1)
    assert failing(params, damaged, None, ends_with_tlast=False) == overrun
    with pytest.raises(FormatError, match="without TLAST"):
        GoldenAccelerator(params).run_packet(data[:-word], ends_with_tlast=False)


def test_activations_too_few_or_too_many() -> None:
    data = packet(SERIAL, [[1, 0, 2], [2, 1, 1]], [0, 5, -3])
    assert failing(SERIAL, data, vector(1)) == (ErrorKind.ACTIVATIONS, 1)
    assert failing(SERIAL, data, vector(1, 2)) == (ErrorKind.ACTIVATIONS, 2)
    assert failing(SERIAL, data, vector(1, 2, 3, 4)) == (ErrorKind.ACTIVATIONS, 3)
    assert failing(SERIAL, data, vector(*range(9))) == (ErrorKind.ACTIVATIONS, 3)
    # The CRC is looked at first, the lanes last.
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    assert failing(SERIAL, damaged, vector(1))[0] is ErrorKind.CRC
    short = packet(SERIAL, [[1, 0, 2]], [0, 5, -3], streams=["0101"])
    assert failing(SERIAL, short, vector(1)) == (ErrorKind.ACTIVATIONS, 1)


FOUR = replace(SERIAL, lanes=4, parser_bits=4, parser_cut=2, batch=2)
"""Eight substreams, two to a lane."""
COLUMNS = 4


def lanes_error(bad: dict[int, str], *, order: int = 0, rows: int = 8) -> tuple[ErrorKind, int]:
    """Run eight rows of index 1, one to a substream, some with other bits."""
    good = codeword(1, order) * COLUMNS
    streams = [bad.get(s, good) for s in range(8)]
    data = packet(
        FOUR,
        np.ones((rows, COLUMNS), dtype=int),
        [0, 1, 2],
        order=order,
        streams=streams,
        words=16,
    )
    return failing(FOUR, data, np.ones((COLUMNS, 2), dtype=np.int8))


def test_prefix() -> None:
    # Map depth 1024 and order up to 7: (1023 + 128) takes 11 bits, so J = 10.
    assert FOUR.suffix_limit == 10
    assert lanes_error({5: "1" + "0" * 11}) == (ErrorKind.PREFIX, 5)
    assert lanes_error({5: "1" + "0" * 10 + "1" + "0" * 10}) == (ErrorKind.INDEX, 5)
    assert lanes_error({2: "0" * 8}, order=3) == (ErrorKind.PREFIX, 2)
    assert lanes_error({2: "0" * 7 + "1" + "0" * 10}, order=3) == (ErrorKind.INDEX, 2)


def test_index() -> None:
    assert lanes_error({7: codeword(3, 0)}) == (ErrorKind.INDEX, 7)
    assert lanes_error({0: codeword(2, 0) * 3 + codeword(3, 0)}) == (ErrorKind.INDEX, 0)
    zigzag = packet(SERIAL, [[4]], flags=0b1001001, map_entries=4)
    assert failing(SERIAL, zigzag, vector(1)) == (ErrorKind.INDEX, 0)


def test_short() -> None:
    # A payload of one word is two beats of four bits a lane: four bits for each substream.
    for bits in ("1000", "1001", "1111", "1010"):
        streams = ["1111"] * 8
        streams[3] = bits
        data = packet(FOUR, [[0] * 4] * 8, [0, 1, 2], streams=streams)
        x = np.zeros((4, 2), dtype=np.int8)
        if bits == "1111":
            assert GoldenAccelerator(FOUR).run_packet(data, x).error is ErrorKind.NONE
        else:
            assert failing(FOUR, data, x) == (ErrorKind.SHORT, 3)


def test_lowest_substream_is_reported_with_its_own_first_error() -> None:
    prefix, index = "0" * 11, codeword(3, 0)
    assert lanes_error({6: index, 4: "1" + prefix}) == (ErrorKind.PREFIX, 4)
    assert lanes_error({6: prefix, 7: index}) == (ErrorKind.PREFIX, 6)
    assert lanes_error({1: index + prefix, 3: prefix}) == (ErrorKind.INDEX, 1)


def test_filling_bits_are_ignored() -> None:
    streams = [codeword(1, 0) * COLUMNS + "0" * 20 for _ in range(8)]
    streams[1] += "1" * 9
    data = packet(FOUR, np.ones((8, COLUMNS), dtype=int), [0, 1, 2], streams=streams)
    x = np.ones((COLUMNS, 2), dtype=np.int8)
    outcome = GoldenAccelerator(FOUR).run_packet(data, x)
    assert outcome.results.tolist() == [[4, 4]] * 8
    assert outcome.code_bits == 8 * 4 * 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packet(SERIAL, [[1]], [0, 2048]), "found 2048, expected a signed number of 12 bits"),
        (packet(SERIAL, [[0], [0]], [0], bias=[1, 2], deal=[[0, 0]]), "entry 1: found row 0"),
        (packet(SERIAL, [[0], [0]], [0], deal=[[0, 2]], streams=["11"]), "entry 1: found row 2"),
        (packet(SERIAL, [[0], [0]], [0], deal=[[0]]), "found 1 rows, expected 2"),
        (packet(SERIAL, [[1]], [0, 1], bias=[2**31 - 1]), "result of row 0: found 2147483648"),
    ],
)
def test_what_the_packer_must_not_do_has_no_answer(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        GoldenAccelerator(SERIAL).run_packet(data, vector(1))


def test_calls_that_no_stream_could_make() -> None:
    accelerator = GoldenAccelerator(SERIAL)
    data = packet(SERIAL, [[1]], [0, 1])
    with pytest.raises(FormatError, match="found none"):
        accelerator.run_packet(data)
    with pytest.raises(FormatError, match="int64 of shape"):
        accelerator.run_packet(data, np.ones((1, 1), dtype=np.int64))
    with pytest.raises(FormatError, match=r"int8 of shape \(1, 2\)"):
        accelerator.run_packet(data, np.ones((1, 2), dtype=np.int8))
    with pytest.raises(FormatError, match="13 bytes"):
        accelerator.run_packet(data[:13])
    accelerator.run_packet(data, vector(1))
    with pytest.raises(FormatError, match="without load_activations"):
        accelerator.run_packet(packet(SERIAL, [[1]], [0, 1], flags=0b1000), vector(1))


@pytest.mark.parametrize("params", [SERIAL, SHAPES[3], SHAPES[-1]], ids=lambda p: p.name)
def test_split_packets(params: AcceleratorParams) -> None:
    columns = 2 * params.parser_bits
    packets = [
        packet(params, np.ones((3, columns), dtype=int), [0, 1, 2]),
        packet(params, np.ones((1, columns), dtype=int), flags=0b1001001, map_entries=2),
        packet(params, np.ones((5, columns), dtype=int), [0, 9], bias=[1, 2, 3, 4, 5]),
    ]
    image = b"".join(packets)
    assert split_packets(image, params) == packets
    with pytest.raises(FormatError, match="no bytes"):
        split_packets(b"", params)
    with pytest.raises(FormatError, match=f"packet 2: found {len(packets[2]) - 1} bytes"):
        split_packets(image[:-1], params)
    with pytest.raises(FormatError, match="packet 3: found 4 bytes, expected a descriptor"):
        split_packets(image + b"EGRT", params)
    with pytest.raises(FormatError, match="packet 1: descriptor field magic: found 18253"):
        split_packets(packets[0] + changed(packets[1], params, 0, 8), params)


def layer(
    name: str,
    weights: np.ndarray,
    bias: np.ndarray | None,
    multiplier: int,
    shift: int,
    relu: bool,
) -> IntegerLayer:
    # With every scale 1 the float bias is the integer bias.
    return IntegerLayer(
        name=name,
        weight=QuantizedTensor(weights.astype(np.int32), step_log2=0),
        bias=None if bias is None else bias.astype(np.float32),
        input_scale=1.0,
        output_scale=1.0,
        multiplier=multiplier,
        shift=shift,
        relu=relu,
    )


def test_reference_forward_agrees_with_the_packets() -> None:
    params = replace(SERIAL, batch=3)
    rng = np.random.default_rng(11)
    table = [0, 1, -1, 2, -2, 60]
    first = rng.integers(0, 6, (9, 16))
    second = rng.integers(0, 6, (4, 9))
    bias = rng.integers(-300, 300, 9)
    network = IntegerNetwork(
        name="two",
        layers=(
            layer("first", np.array(table)[first], bias, 40000, 22, True),
            layer("second", np.array(table)[second], None, 1, 0, False),
        ),
    )
    inputs = rng.integers(-128, 128, (3, 16), dtype=np.int8)
    outputs = reference_forward(network, inputs)
    accelerator = GoldenAccelerator(params)
    one = accelerator.run_packet(
        packet(
            params,
            first,
            table,
            flags=0b111,
            bias=bias.tolist(),
            multiplier=40000,
            shift=22,
        ),
        inputs.T,
    )
    two = accelerator.run_packet(packet(params, second, table, flags=0b11000))
    assert [output.results.dtype for output in outputs] == [np.int32] * 2
    assert [output.activations.dtype for output in outputs] == [np.int8] * 2
    for packet_result, output in zip((one, two), outputs, strict=True):
        np.testing.assert_array_equal(packet_result.results.T, output.results)
        np.testing.assert_array_equal(packet_result.activations.T, output.activations)
    assert 0 < np.count_nonzero(one.activations) < one.activations.size
    assert two.activations.min() < 0
