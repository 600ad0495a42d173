"""The golden model against packets put together by hand."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any

import crc32c as independent_crc
import numpy as np
import pytest
from tests.image_builder import (
    CODE,
    MAP,
    MATRIX,
    Code,
    Table,
    bias_packet,
    classes,
    code_packet,
    coded_matrix,
    cut,
    golomb,
    little,
    make,
    map_packet,
    matrix_packet,
    random_cut,
    with_crc,
)

from egret.errors import FormatError
from egret.image_format import CODE_FIELDS, LOAD_FIELDS, MATRIX_FIELDS, ErrorKind
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_sim.golden import (
    GoldenAccelerator,
    Outcome,
    crc32c,
    header_fault,
    read_header,
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
EG0 = Code(golomb(0, SERIAL))

SHAPES = [
    SERIAL,
    replace(SERIAL, name="b3", batch=3),
    replace(SERIAL, name="w4", parser_bits=4, parser_cut=4, parser="microcode"),
    replace(SERIAL, name="w8c1", parser_bits=8, parser_cut=8, bus_bits=64),
    replace(SERIAL, name="w8c2", parser_bits=8, parser_cut=4, batch=3),
    replace(SERIAL, name="l4w4c1", lanes=4, parser_bits=4, parser_cut=4, batch=3),
    replace(SERIAL, name="l4w4c2", lanes=4, parser_bits=4, parser_cut=2, bus_bits=64),
    replace(SERIAL, name="l4w4c4", lanes=4, parser_bits=4, parser_cut=1, row_depth=32),
    replace(SERIAL, name="l4w8c4", lanes=4, parser_bits=8, parser_cut=2, row_depth=32),
    replace(SERIAL, name="l16w1", lanes=16, row_depth=32, bus_bits=128),
    replace(SERIAL, name="l16w4", lanes=16, parser_bits=4, parser_cut=4, bus_bits=64, row_depth=32),
    replace(SERIAL, name="l32w8", lanes=32, parser_bits=8, parser_cut=4, bus_bits=256),
]


def ready(
    params: AcceleratorParams, table: Sequence[int] = (), code: Code | None = None
) -> GoldenAccelerator:
    """Return an accelerator with a map, and a code in bank 0; order 0 when none is given."""
    accelerator = GoldenAccelerator(params)
    load(accelerator, code_packet(params, code or Code(golomb(0, params))))
    if len(table):
        load(accelerator, map_packet(params, 0, table))
    return accelerator


def load(accelerator: GoldenAccelerator, packet: bytes) -> None:
    outcome = accelerator.run_packet(packet)
    assert outcome.error is ErrorKind.NONE
    assert (outcome.streams, outcome.results.size, outcome.weights) == ((), 0, 0)


def matrix(
    params: AcceleratorParams,
    indices: Sequence[Sequence[int]] | np.ndarray,
    entries: int,
    code: Code | None = None,
    **fields: Any,
) -> bytes:
    code = code or Code(golomb(0, params))
    return coded_matrix(params, np.asarray(indices), code, map_entries=entries, **fields)


def serial(
    bits: str, shape: tuple[int, int], start: tuple[int, int] = (0, 0), **fields: Any
) -> bytes:
    """Return a packet of a single substream."""
    return matrix_packet(SERIAL, shape, [bits.replace(" ", "")], [start], **fields)


def vector(*values: int) -> np.ndarray:
    """Return the activations of columns 0, 1 ... as they are sent: the last column first."""
    return np.array([[value] for value in reversed(values)], dtype=np.int8)


def test_packets_written_out_in_words() -> None:
    # A map 0, 5, -3; exp-Golomb of order 0; the bias 100, -100.
    packets = [
        [0x01_02_4745, 0, 0, 0, 0, 0],
        [0x02_02_4745, 0x0003_0000, 0x0005_0000, 0x0000_FFFD],
        [
            0x03_02_4745,
            10 << 8 | 1 << 3,
            *(j | 0xFFF0 | (j + 1 | 0xFFF0) << 16 for j in (0, 2, 4, 6, 8)),
            10 | 0xFFF0,
            *[0] * 10,
        ],
        [0x04_02_4745, 0x0002_0000, 100, 2**32 - 100],
    ]
    # Rows (5, 0) and (-3, 5): codewords 010 1 011 010, first bit lowest in its word.
    packets[0] = [
        0x01_02_4745,
        0x0002_0002,
        1 << 0 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 16,
        3 << 16,
        6,
        1,
        0,
        0b01_0110_1010,
    ]
    data = [with_crc(b"".join(little(word, 4) for word in words), SERIAL) for words in packets]
    code = Code(golomb(0, SERIAL))
    assert data[1] == map_packet(SERIAL, 0, [0, 5, -3])
    assert data[2] == code_packet(SERIAL, code)
    assert data[3] == bias_packet(SERIAL, 0, [100, -100])
    assert data[0] == matrix(SERIAL, [[1, 0], [2, 1]], 3, has_bias=1, multiplier=6, shift=1)
    accelerator = GoldenAccelerator(SERIAL)
    for packet in data[1:]:
        load(accelerator, packet)
    outcome = accelerator.run_packet(data[0], vector(10, -20))
    assert outcome.error is ErrorKind.NONE
    assert (outcome.position, outcome.discarded) == (0, False)
    assert [stream.tolist() for stream in outcome.streams] == [[[150], [-230]]]
    assert outcome.streams[0].dtype == np.int32
    assert outcome.results.tolist() == [[150], [-230]]
    assert outcome.activations.tolist() == [[127], [-128]]
    assert outcome.activations.dtype == np.int8
    assert (outcome.weights, outcome.non_zeros, outcome.multiplied) == (4, 3, 3)
    assert outcome.code_bits == 10


def run_serial(
    bits: str,
    code: Code,
    table: Sequence[int],
    columns: int,
    rows: int = 1,
    x: np.ndarray | None = None,
    **fields: Any,
) -> Outcome:
    """Run a single substream with activations of 1; its results are the sums of its weights."""
    entries = len(table)
    filling = code.filling(entries)
    data = matrix_packet(
        SERIAL,
        (rows, columns),
        [bits.replace(" ", "")],
        [(0, 0)],
        filling=filling,
        map_entries=entries,
        **fields,
    )
    x = vector(*[1] * columns) if x is None else x
    return ready(SERIAL, table, code).run_packet(data, x)


PAPER_TABLE = {
    0: "1 010 011 00100 00101 00110 00111 0001000 0001001 0001010",
    1: "10 11 0100 0101 0110 0111 001000 001001 001010 001011",
    2: "100 101 110 111 01000 01001 01010 01011 01100 01101",
    3: "1000 1001 1010 1011 1100 1101 1110 1111 010000 010001",
}


@pytest.mark.parametrize("order", PAPER_TABLE)
def test_codewords_of_the_paper(order: int) -> None:
    table = [0, 100, -200, 300, -400, 500, -600, 700, -800, 900]
    bits = PAPER_TABLE[order]
    outcome = run_serial(bits, Code(golomb(order, SERIAL)), table, columns=1, rows=10)
    assert outcome.results[:, 0].tolist() == table
    assert outcome.code_bits == len(bits.replace(" ", ""))


@pytest.mark.parametrize("order", range(8))
def test_longest_codewords_of_every_order(order: int) -> None:
    code = Code(golomb(order, SERIAL))
    bits = "".join(code.level.codeword(index) for index in (1023, 0, 1022))
    outcome = run_serial(bits, code, range(1024), columns=1, rows=3)
    assert outcome.results[:, 0].tolist() == [1023, 0, 1022]


def test_table_by_hand() -> None:
    # Classes of 1, 0 and 2 suffix bits: 0, 1 | 2 | 3 to 6; the last one has no one bit.
    table = Table((1, 0, 2), (-2, 1, 3))
    assert table == classes(1, 0, 2)
    bits = "10 11 01 0000 0001 0010 0011 10"
    outcome = run_serial(bits, Code(table), [0, 10, 20, 30, 40, 50, 60], columns=1, rows=8)
    assert outcome.results[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 0]
    # Offsets may skip numbers, overlap, and lead below what the suffix says.
    odd = Table((1, 2, 0), (-2, -1, 5))  # 0, 1 | 3 to 6 | 5
    outcome = run_serial("11 0110 00 10 0111", Code(odd), range(7), columns=1, rows=5)
    assert outcome.results[:, 0].tolist() == [1, 5, 5, 0, 6]


def test_table_of_a_single_class_is_a_fixed_length_code() -> None:
    outcome = run_serial("101 000 111 001", Code(classes(3)), range(8), columns=1, rows=4)
    assert outcome.results[:, 0].tolist() == [5, 0, 7, 1]
    assert (outcome.multiplied, outcome.code_bits) == (3, 12)


def test_table_of_sixteen_classes() -> None:
    table = classes(*[0] * 15, 10)
    bits = "".join(table.codeword(number) for number in (0, 14, 15, 1000))
    assert bits == "1" + "0" * 14 + "1" + "0" * 25 + "0" * 15 + f"{985:010b}"
    outcome = run_serial(bits, Code(table), range(1024), columns=1, rows=4)
    assert outcome.results[:, 0].tolist() == [0, 14, 15, 1000]


def test_run_form_by_hand() -> None:
    # Runs of order 1, levels of order 0: index 0 is a value like any other.
    code = Code(golomb(0, SERIAL), golomb(1, SERIAL))
    table = [7, 9, -4]
    # 2 zeros, 7 | no zeros, -4 | 0 zeros, 9 | 5 zeros, 7: runs go on over the ends of rows.
    bits = "0100 1  10 011  10 010  0111 1"
    outcome = run_serial(bits, code, table, columns=4, rows=4, x=vector(1, 10, 20, 100))
    assert outcome.results[:, 0].tolist() == [140 - 400, 9, 140, 0]
    assert (outcome.non_zeros, outcome.multiplied) == (4, 4)
    assert outcome.code_bits == len(bits.replace(" ", ""))
    # A run at the end without a level means nothing.
    assert run_serial(bits + "11", code, table, columns=4, rows=4).error is ErrorKind.NONE


def test_run_form_with_tables_and_fillers() -> None:
    code = Code(classes(0, 2), classes(1, 1))  # levels 0 to 4, runs 0 to 3
    # Four zeros: a run of 3 and a filler (index 3 = map_entries); then a run of 0 and 5.
    bits = "01 010  10 1  11 000 11 1"
    outcome = run_serial(bits, code, [5, 6, 7], columns=9, x=vector(*range(1, 10)))
    assert outcome.results.tolist() == [[5 * 5 + 6 * 7 + 5 * 9]]
    assert (outcome.non_zeros, outcome.multiplied) == (3, 3)
    accelerator = ready(SERIAL, [5, 6, 7], code)
    # The rest of the word, filled with fillers behind runs of 0, cut off anywhere.
    assert code.filling(3) == "10010"
    data = serial(bits, (1, 9), map_entries=3, filling="10010")
    outcome = accelerator.run_packet(data, vector(*range(1, 10)))
    assert outcome.results.tolist() == [[25 + 42 + 45]]
    assert outcome.code_bits == len(bits.replace(" ", ""))


def test_filler_is_zero_in_every_form() -> None:
    for code, bits in [
        (EG0, "010 00100 011"),
        (Code(golomb(0, SERIAL), golomb(0, SERIAL)), "1 010 1 00100 1 011"),
        (Code(golomb(0, SERIAL), dense=True), "010 00100 011"),
    ]:
        for zigzag in (0, 1):
            outcome = run_serial(bits, code, [0, 3, -3], columns=1, rows=3, zigzag=zigzag)
            assert outcome.results[1, 0] == 0
            assert (outcome.results != 0).sum() == outcome.multiplied == 2


def test_zigzag_has_no_map() -> None:
    numbers = [0, 1, 2, 3, 4, 5, 6]
    plain = "".join(EG0.level.codeword(n) for n in numbers)
    accelerator = ready(SERIAL)
    data = serial(plain, (7, 1), map_entries=1024, zigzag=1)
    outcome = accelerator.run_packet(data, vector(10))
    assert outcome.results[:, 0].tolist() == [0, -10, 10, -20, 20, -30, 30]
    assert outcome.multiplied == 6
    # In the run form index 0 is -1: zero is not coded.
    run = Code(golomb(0, SERIAL), golomb(0, SERIAL))
    accelerator = ready(SERIAL, code=run)
    bits = "".join("1" + run.level.codeword(n) for n in numbers)
    data = serial(bits, (7, 1), map_entries=7, zigzag=1)
    outcome = accelerator.run_packet(data, vector(10))
    assert outcome.results[:, 0].tolist() == [-10, 10, -20, 20, -30, 30, -40]


def test_dense_multiplies_index_zero() -> None:
    dense = Code(golomb(0, SERIAL), dense=True)
    outcome = run_serial("1 010 011 1", dense, [7, 0, -1], columns=2, rows=2, x=vector(1, 10))
    assert outcome.results[:, 0].tolist() == [7, 69]
    assert (outcome.weights, outcome.non_zeros, outcome.multiplied) == (4, 3, 4)
    # Without `dense` index 0 is 0 whatever the map says.
    outcome = run_serial("1 010 011 1", EG0, [7, 0, -1], columns=2, rows=2, x=vector(1, 10))
    assert outcome.results[:, 0].tolist() == [0, -1]
    assert (outcome.non_zeros, outcome.multiplied) == (1, 2)


def test_map_base_and_banks() -> None:
    accelerator = GoldenAccelerator(SERIAL)
    fixed = Code(classes(2), dense=True)
    load(accelerator, map_packet(SERIAL, 100, [0, 3, 4, 5, 6]))
    load(accelerator, code_packet(SERIAL, EG0, bank=0))
    load(accelerator, code_packet(SERIAL, fixed, bank=1))
    data = serial("010 011", (1, 2), map_base=101, map_entries=3)
    assert accelerator.run_packet(data, vector(1, 10)).results.tolist() == [[54]]
    data = serial("00 01 10 11", (1, 4), map_base=100, map_entries=4, code_bank=1)
    assert accelerator.run_packet(data, vector(1, 1, 1, 1)).results.tolist() == [[12]]
    # Both stay.
    data = serial("010", (1, 4), map_base=103, map_entries=2, load_activations=0)
    assert accelerator.run_packet(data).results.tolist() == [[6]]
    # And may be replaced in parts, when nothing uses them.
    for _ in range(2):
        data = serial("010", (1, 4), map_base=103, map_entries=2, load_activations=0)
        assert accelerator.run_packet(data).results.tolist() == [[6]]
    load(accelerator, map_packet(SERIAL, 101, [50, 60]))
    data = serial("010 011", (1, 4), map_base=100, map_entries=3, load_activations=0)
    assert accelerator.run_packet(data).results.tolist() == [[110]]


KINDS_OF_CODE = {
    "eg-k": lambda params, k: Code(golomb(k, params)),
    "eg-k dense": lambda params, k: Code(golomb(k, params), dense=True),
    "eg-run": lambda params, k: Code(golomb(k, params), golomb((3 * k + 1) % 8, params)),
    "eg-table": lambda params, k: Code(classes(k % 3, 2, 4, 10)),
    "eg-table dense": lambda params, k: Code(classes(5, k), dense=True),
    "tables": lambda params, k: Code(classes(k % 3, 5), classes(k % 2, 1, 4)),
    "table of runs": lambda params, k: Code(golomb(k, params), classes(2, 3)),
    "table of levels": lambda params, k: Code(classes(1, k % 4, 5), golomb(k, params)),
}


@pytest.mark.parametrize("kind", KINDS_OF_CODE)
@pytest.mark.parametrize("params", SHAPES, ids=lambda params: params.name)
def test_random_matrices(params: AcceleratorParams, kind: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng([SHAPES.index(params), list(KINDS_OF_CODE).index(kind), seed])
        what = f"{params.name}, {kind}, seed {seed}"
        code = KINDS_OF_CODE[kind](params, int(rng.integers(8)))
        shape = (
            int(rng.integers(1, params.row_depth + 1)),
            int(rng.integers(1, params.activation_depth + 1)),
        )
        entries = 20
        table = rng.integers(-2048, 2048, entries)
        table[rng.random(entries) < 0.1] = 0
        indices = rng.geometric(0.3, shape).clip(max=entries) - 1
        indices[rng.random(shape) < rng.choice([0.0, 0.5, 0.95])] = -1
        indices[indices == (-1 if code.zero is None else code.zero)] = -1
        weights = np.where(indices < 0, 0, table[indices])
        bias = rng.integers(-(2**20), 2**20, shape[0]).tolist()
        x = rng.integers(-128, 128, (shape[1], params.batch), dtype=np.int8)
        accelerator = ready(params, table.tolist(), code)
        load(accelerator, bias_packet(params, 3, bias))
        data = matrix(
            params,
            indices,
            entries,
            code,
            ranges=random_cut(params, shape, rng),
            trim=bool(rng.integers(2)),
            extra_words=int(rng.integers(3)),
            wide_starts=int(rng.integers(2)),
            has_bias=1,
            bias_base=3,
        )
        outcome = accelerator.run_packet(data, x[::-1])
        assert outcome.error is ErrorKind.NONE, what
        expected = weights @ x.astype(int) + np.array(bias)[:, None]
        np.testing.assert_array_equal(outcome.results, expected, what)
        assert outcome.weights == weights.size, what
        assert outcome.non_zeros == np.count_nonzero(weights), what
        assert outcome.multiplied == np.count_nonzero(indices >= 0), what


def test_ranges_may_be_cut_anywhere() -> None:
    params = replace(SERIAL, lanes=4, name="four")
    x = np.arange(1, 6, dtype=np.int8)[:, None]
    weights = np.arange(1, 16).reshape(3, 5)
    for places in ([0, 0, 0], [15, 15, 15], [1, 2, 3], [5, 10, 15], [3, 7, 14], [4, 6, 6]):
        data = matrix(params, weights, 16, ranges=cut(params, (3, 5), places))
        outcome = ready(params, range(16)).run_packet(data, x[::-1])
        assert outcome.results.tolist() == (weights @ x).tolist(), places


def test_what_two_ranges_say_of_one_weight_is_added() -> None:
    params = replace(SERIAL, lanes=2, name="two")
    data = matrix_packet(params, (2, 2), ["010011", "010"], [(0, 1), (1, 0)], map_entries=3)
    outcome = ready(params, [0, 3, 5]).run_packet(data, vector(1, 10))
    assert outcome.results[:, 0].tolist() == [30, 5 + 3]


def test_starts_of_every_width() -> None:
    for fields in ({"wide_starts": 1, "column_bits": 0}, {"column_bits": 4}, {"column_bits": 3}):
        bits = int(fields["column_bits"]) or 16
        packet = make(
            SERIAL,
            {
                "kind": MATRIX,
                "rows": 9,
                "columns": 7,
                "load_activations": 1,
                "emit_results": 1,
                "map_entries": 2,
                "payload_words": 1,
                **fields,
            },
            little(8 << bits | 6, 4 if bits == 16 else 2),
            little(0b010, 4),
        )
        outcome = ready(SERIAL, [0, 5]).run_packet(packet, vector(0, 0, 0, 0, 0, 0, 3))
        assert outcome.results[:, 0].tolist() == [0] * 8 + [15]


def requantised(results: Sequence[int], multiplier: int, shift: int, relu: int = 0) -> list[int]:
    accelerator = ready(SERIAL, [0])
    load(accelerator, bias_packet(SERIAL, 5, results))
    data = serial(
        "1",
        (len(results), 1),
        map_entries=1,
        has_bias=1,
        bias_base=5,
        multiplier=multiplier,
        shift=shift,
        relu=relu,
        emit_results=0,
        emit_activations=1,
    )
    outcome = accelerator.run_packet(data, vector(0))
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
    assert requantised([5, -1, 0, -129, 128], 1, 0, relu=1) == [5, 0, 0, 0, 127]


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
    for emit_results, emit_activations, relu, expected in [
        (0, 0, 0, []),
        (1, 0, 0, [[[300], [-4]]]),
        (0, 1, 0, [[[127], [-4]]]),
        (1, 1, 0, [[[300], [-4]], [[127], [-4]]]),
        (1, 1, 1, [[[300], [-4]], [[127], [0]]]),
    ]:
        data = serial(
            "010 011",
            (2, 1),
            map_entries=3,
            emit_results=emit_results,
            emit_activations=emit_activations,
            relu=relu,
        )
        outcome = ready(SERIAL, [0, 150, -2]).run_packet(data, vector(2))
        assert [stream.tolist() for stream in outcome.streams] == expected
        assert all(stream.dtype == np.int32 for stream in outcome.streams)
        assert outcome.results.tolist() == [[300], [-4]]


@pytest.mark.parametrize("batch", [1, 3])
def test_two_matrices_chain(batch: int) -> None:
    params = replace(SERIAL, batch=batch)
    table = [0, 3, -2]
    first = np.array([[1, 2, 0], [0, 1, 1], [2, 2, 1]])
    second = np.array([[1, 0, 2], [2, 1, 1]])
    x = np.random.default_rng(1).integers(-20, 20, (3, batch), dtype=np.int8)
    accelerator = ready(params, table)
    one = accelerator.run_packet(
        matrix(params, first, 3, keep_activations=1, emit_results=0, relu=1, shift=1), x[::-1]
    )
    assert one.streams == ()
    two = accelerator.run_packet(matrix(params, second, 3, load_activations=0))
    assert accelerator.good_matrices == 2
    hidden = np.maximum(0, (np.array(table)[first] @ x.astype(int) + 1) // 2)
    assert hidden.max() > 0
    np.testing.assert_array_equal(one.activations, hidden)
    np.testing.assert_array_equal(two.streams[0], np.array(table)[second] @ hidden)
    # Nothing was kept, so the input of the second matrix is still the current one.
    again = accelerator.run_packet(matrix(params, second, 3, load_activations=0))
    np.testing.assert_array_equal(again.streams[0], two.streams[0])
    narrow = matrix(params, second[:, :2], 3, load_activations=0)
    with pytest.raises(FormatError, match="activations: found 3, expected one for each of 2"):
        accelerator.run_packet(narrow)


def test_what_is_read_again_cannot_be_followed_by_results_that_are_kept() -> None:
    fields: dict[str, Any] = {"map_entries": 2, "load_activations": 0}
    for kept in (0, 1):
        accelerator = ready(SERIAL, [0, 3])
        first = serial("010", (1, 1), map_entries=2, keep_activations=kept)
        assert accelerator.run_packet(first, vector(2)).error is ErrorKind.NONE
        again = serial("010", (1, 1), keep_activations=1, **fields)
        if not kept:
            assert failing(accelerator, again) == (ErrorKind.DESCRIPTOR, 0)
            continue
        assert accelerator.run_packet(again).results.tolist() == [[18]]
        for expected in (54, 54):
            assert accelerator.run_packet(serial("010", (1, 1), **fields)).results == expected
        assert failing(accelerator, again) == (ErrorKind.DESCRIPTOR, 0)


def test_several_columns_a_beat() -> None:
    params = replace(SERIAL, activation_columns=4)
    weights = np.arange(1, 8)[None]
    data = matrix(params, weights, 8)
    x = np.arange(1, 8, dtype=np.int8)[::-1, None]
    outcome = ready(params, range(8)).run_packet(data, x)
    assert outcome.results.tolist() == [[sum(n * n for n in range(1, 8))]]
    # What fills the last beat is not told from columns.
    outcome = ready(params, range(8)).run_packet(data, np.append(x, [[0]], axis=0).astype(np.int8))
    assert outcome.results.tolist() == [[140]]
    for columns, beats in ((1, 1), (4, 1), (9, 2), (12, 2), (30, 2)):
        many = np.ones((columns, 1), np.int8)
        assert failing(ready(params, range(8)), data, many) == (ErrorKind.ACTIVATIONS, beats)


def test_without_relu_negative_activations_chain() -> None:
    accelerator = ready(SERIAL, [0, -2])
    accelerator.run_packet(serial("010", (1, 1), map_entries=2, keep_activations=1), vector(5))
    outcome = accelerator.run_packet(serial("010", (1, 1), map_entries=2, load_activations=0))
    assert outcome.results.tolist() == [[20]]


def test_more_adds_tiles_of_columns() -> None:
    rng = np.random.default_rng(3)
    weights = rng.integers(0, 5, (6, 48))
    x = rng.integers(-128, 128, (48, 1), dtype=np.int8)
    accelerator = ready(SERIAL, range(5))
    load(accelerator, bias_packet(SERIAL, 0, range(6)))
    for tile in range(3):
        part = slice(16 * tile, 16 * tile + 16)
        last = tile == 2
        data = matrix(
            SERIAL, weights[:, part], 5, more=not last, emit_results=last, has_bias=1, shift=7
        )
        outcome = accelerator.run_packet(data, x[part][::-1])
        assert outcome.error is ErrorKind.NONE
        assert outcome.weights == 96
        assert accelerator.good_matrices == tile + 1
        if not last:
            assert (outcome.streams, outcome.results.shape) == ((), (0, 1))
    expected = weights @ x.astype(int) + np.arange(6)[:, None]
    np.testing.assert_array_equal(outcome.streams[0], expected)
    # The next matrix begins anew.
    outcome = accelerator.run_packet(matrix(SERIAL, weights[:, :16], 5), x[15::-1])
    np.testing.assert_array_equal(outcome.results, weights[:, :16] @ x[:16].astype(int))


def test_crc() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    rng = np.random.default_rng(3)
    for size in (0, 1, 31, 100):
        data = rng.bytes(size)
        assert crc32c(data) == independent_crc.crc32c(data)


def failing(
    accelerator: GoldenAccelerator,
    data: bytes,
    activations: np.ndarray | None = None,
    *,
    ends_with_tlast: bool = True,
) -> tuple[ErrorKind, int]:
    """Return error and position, after checking what every error has in common."""
    params = accelerator.params
    setup = [code_packet(params, Code(golomb(0, params))), map_packet(params, 0, [0, 1])]
    good, good_input = matrix(params, [[1, 1]], 2), np.ones((2, params.batch), dtype=np.int8)
    count = accelerator.good_matrices
    outcome = accelerator.run_packet(data, activations, ends_with_tlast=ends_with_tlast)
    assert outcome.error is not ErrorKind.NONE
    assert not outcome.discarded
    assert outcome.streams == ()
    assert outcome.results.size == outcome.activations.size == outcome.weights == 0
    for packet in (setup[0], good):
        ignored = accelerator.run_packet(packet, good_input)
        assert ignored.discarded
        assert ignored.streams == ()
        assert (ignored.error, ignored.position) == (outcome.error, outcome.position)
    assert accelerator.good_matrices == count
    accelerator.clear()
    assert accelerator.good_matrices == 0
    for packet in setup:
        load(accelerator, packet)
    after = accelerator.run_packet(good, good_input)
    assert after.error is ErrorKind.NONE
    assert after.streams[0].tolist() == [[2] * params.batch]
    assert accelerator.good_matrices == 1
    return outcome.error, outcome.position


def small(params: AcceleratorParams = SERIAL) -> GoldenAccelerator:
    return ready(params, [0, 5, -3])


def small_matrix(params: AcceleratorParams = SERIAL, **fields: Any) -> bytes:
    return matrix(params, [[1, 0], [2, 1]], 3, **fields)


@pytest.mark.parametrize("bus_bits", [32, 64, 256])
@pytest.mark.parametrize("kind", ["matrix", "map", "code", "bias"])
def test_every_single_bit_flip_is_caught(bus_bits: int, kind: str) -> None:
    params = replace(SERIAL, bus_bits=bus_bits)
    data = {
        "matrix": small_matrix(params, extra_words=2),
        "map": map_packet(params, 7, [1, 2, 3]),
        "code": code_packet(params, Code(golomb(2, params), classes(1, 3))),
        "bias": bias_packet(params, 1, [-1, 7]),
    }[kind]
    word = bus_bits // 8
    crc_word = len(data) // word - 1
    accelerator = small(params)
    start = dict(vars(accelerator))
    header = 24 if kind == "matrix" else 8
    kinds = set()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        vars(accelerator).update(start)
        # A load packet damaged into a matrix has activations too.
        outcome = accelerator.run_packet(bytes(damaged), vector(10, -20))
        assert outcome.error is not ErrorKind.NONE, bit
        kinds.add(outcome.error)
        if bit >= 8 * header:
            assert (outcome.error, outcome.position) == (ErrorKind.CRC, crc_word), bit
    assert kinds >= {ErrorKind.DESCRIPTOR, ErrorKind.CRC}
    assert kinds <= {
        ErrorKind.DESCRIPTOR, ErrorKind.TRUNCATED, ErrorKind.OVERRUN, ErrorKind.CRC
    }  # fmt: skip
    if kind in ("matrix", "map") and bus_bits == 32:
        assert {ErrorKind.TRUNCATED, ErrorKind.OVERRUN} < kinds


GOOD_MATRIX = {
    "kind": MATRIX,
    "rows": 2,
    "columns": 2,
    "load_activations": 1,
    "emit_results": 1,
    "map_entries": 3,
    "column_bits": 1,
    "payload_words": 1,
}
GOOD_CODE = {"kind": CODE, "level_golomb": 1, "level_last": 10}


@pytest.mark.parametrize(
    ("good", "change"),
    [
        (GOOD_MATRIX, {"magic": 0x4746}),
        (GOOD_MATRIX, {"version": 1}),
        (GOOD_MATRIX, {"version": 3}),
        (GOOD_MATRIX, {"rows": 0}),
        (GOOD_MATRIX, {"rows": 33}),
        (GOOD_MATRIX, {"rows": 17, "keep_activations": 1}),
        (GOOD_MATRIX, {"columns": 0}),
        (GOOD_MATRIX, {"columns": 17}),
        (GOOD_MATRIX, {"more": 1}),
        (GOOD_MATRIX, {"more": 1, "emit_results": 0, "keep_activations": 1}),
        (GOOD_MATRIX, {"more": 1, "emit_results": 0, "emit_activations": 1}),
        (GOOD_MATRIX, {"code_bank": 1}),
        (GOOD_MATRIX, {"wide_starts": 1}),
        (GOOD_MATRIX, {"map_entries": 0}),
        (GOOD_MATRIX, {"map_entries": 1025}),
        (GOOD_MATRIX, {"map_base": 1022}),
        (GOOD_MATRIX, {"map_base": 1024, "map_entries": 1}),
        (GOOD_MATRIX, {"zigzag": 1, "map_base": 1}),
        (GOOD_MATRIX, {"zigzag": 1, "map_entries": 0}),
        (GOOD_MATRIX, {"bias_base": 1}),
        (GOOD_MATRIX, {"has_bias": 1, "bias_base": 63}),
        (GOOD_MATRIX, {"payload_words": 0}),
        (GOOD_CODE, {"bank": 1, "parser": 1}),
        (GOOD_CODE, {"dense": 1, "run_form": 1, "run_golomb": 1}),
        (GOOD_CODE, {"run_form": 1, "run_golomb": 1, "codes": 0}),
        (GOOD_CODE, {"level_golomb": 0, "codes": 1}),
        (GOOD_CODE, {"run_form": 1, "run_golomb": 0, "codes": 1}),
        ({"kind": MAP, "count": 1}, {"count": 0}),
        ({"kind": MAP, "count": 1}, {"base": 1024}),
        ({"kind": MAP, "count": 5}, {"base": 1020}),
        ({"kind": 4, "count": 5}, {"base": 60}),
    ],
)
def test_descriptor_errors(good: dict[str, int], change: dict[str, int]) -> None:
    params = replace(SERIAL, row_depth=32)
    change = dict(change)
    if "codes" in change:
        params = replace(params, codes=[("eg-k",), ("eg-k", "eg-run")][change.pop("codes")])
    if change.pop("parser", 0):
        params = replace(params, parser_bits=4, parser_cut=4, parser="microcode")
    accelerator = ready(params, [0, 5, -3])
    damaged = make(params, {**good, **change})
    data = make(params, good)
    columns = good.get("columns", 1)
    x = np.zeros((columns, 1), np.int8)
    # The header alone tells: it wins over the length.
    assert accelerator.run_packet(data, x).error is ErrorKind.TRUNCATED
    assert header_fault(data, params) is None
    accelerator = ready(params, [0, 5, -3])
    fault = header_fault(damaged, params)
    name = next(iter(change))
    if name != "code_bank":
        assert fault is not None
    assert failing(accelerator, damaged, x) == (ErrorKind.DESCRIPTOR, 0)
    accelerator = ready(params, [0, 5, -3])
    header = 24 if good["kind"] == MATRIX else 8
    assert failing(accelerator, damaged[:header], x) == (ErrorKind.DESCRIPTOR, 0)
    # A word less of the header says nothing yet.
    accelerator = ready(params, [0, 5, -3])
    assert failing(accelerator, damaged[: header - 4], x)[0] is ErrorKind.TRUNCATED


def test_limits_of_the_fields_are_allowed() -> None:
    params = replace(SERIAL, row_depth=32, lanes=2, parser_bits=4, parser_cut=2)
    for fields in (
        {"rows": 32, "columns": 16},
        {"rows": 16, "keep_activations": 1},
        {"map_base": 1021},
        {"map_entries": 1024},
        {"zigzag": 1, "map_entries": 1024},
        {"has_bias": 1, "bias_base": 62},
        {"column_bits": 15},
        {"wide_starts": 1, "column_bits": 0},
        {"more": 1, "emit_results": 0},
        {"shift": 63, "multiplier": 65535},
    ):
        assert header_fault(make(params, {**GOOD_MATRIX, **fields}), params) is None, fields
    for code in ({"level_golomb": 0}, {"run_form": 1}, {"dense": 1, "bank": 1}):
        assert header_fault(make(params, {**GOOD_CODE, **code}), params) is None, code
    assert header_fault(make(params, {"kind": MAP, "count": 4, "base": 1020}), params) is None
    assert header_fault(make(params, {"kind": 4, "count": 64}), params) is None


@pytest.mark.parametrize(
    ("fields", "kind"), [(MATRIX_FIELDS, 1), (LOAD_FIELDS, 2), (CODE_FIELDS, 3), (LOAD_FIELDS, 4)]
)
def test_bits_without_a_field_are_zero(fields: dict, kind: int) -> None:
    good = {1: GOOD_MATRIX, 3: GOOD_CODE}.get(kind, {"kind": kind, "count": 1})
    data = make(SERIAL, good)
    covered = sum(((1 << field.width) - 1) << field.offset for field in fields.values())
    free = [bit for bit in range(192 if kind == 1 else 64) if not covered >> bit & 1]
    assert len(free) == {1: 12, 3: 19}.get(kind, 0)
    for bit in free:
        damaged = bytearray(data)
        damaged[bit // 8] |= 1 << bit % 8
        assert header_fault(bytes(damaged), SERIAL) is not None, bit


def test_unknown_kinds() -> None:
    for kind in (0, 5, 255):
        data = bytearray(map_packet(SERIAL, 0, [1]))
        data[3] = kind
        assert failing(small(), bytes(data)) == (ErrorKind.DESCRIPTOR, 0)
        assert read_header(bytes(data))["kind"] == kind


def test_payload_gives_every_slot_as_many_beats() -> None:
    params = replace(SERIAL, parser_bits=16, parser_cut=4, bus_bits=32)
    assert (params.slots, params.beats_per_word) == (4, 2)
    for words, good in ((1, False), (2, True), (3, False), (4, True)):
        data = make(params, {**GOOD_MATRIX, "payload_words": words})
        assert (header_fault(data, params) is None) == good


def test_a_code_must_be_loaded() -> None:
    accelerator = GoldenAccelerator(SERIAL)
    load(accelerator, code_packet(SERIAL, EG0, bank=1))
    assert failing(accelerator, small_matrix()) == (ErrorKind.DESCRIPTOR, 0)
    accelerator = GoldenAccelerator(SERIAL)
    load(accelerator, code_packet(SERIAL, EG0, bank=1))
    load(accelerator, map_packet(SERIAL, 0, [0, 5, -3]))
    outcome = accelerator.run_packet(small_matrix(code_bank=1), vector(10, -20))
    assert outcome.results.tolist() == [[50], [-130]]
    accelerator.clear()
    assert failing(accelerator, small_matrix(code_bank=1)) == (ErrorKind.DESCRIPTOR, 0)


@pytest.mark.parametrize("bus_bits", [32, 64])
@pytest.mark.parametrize("kind", ["matrix", "map", "code", "bias"])
def test_truncated_and_overrun(bus_bits: int, kind: str) -> None:
    params = replace(SERIAL, bus_bits=bus_bits)
    word = bus_bits // 8
    data = {
        "matrix": small_matrix(params),
        "map": map_packet(params, 7, [1, 2, 3]),
        "code": code_packet(params, Code(golomb(2, params), classes(1, 3))),
        "bias": bias_packet(params, 1, [-1, 7]),
    }[kind]
    words = len(data) // word
    for length in range(1, words):
        expected = (ErrorKind.TRUNCATED, length - 1)
        assert failing(small(params), data[: length * word]) == expected
    for tail in (bytes(word), bytes(5 * word)):
        assert failing(small(params), data + tail) == (ErrorKind.OVERRUN, words - 1)
    damaged = data[: 1 - word] + bytes([data[1 - word] ^ 1]) + data[2 - word :]
    assert len(damaged) == len(data)
    assert failing(small(params), damaged)[0] is ErrorKind.CRC
    overrun = (ErrorKind.OVERRUN, words - 1)
    assert failing(small(params), damaged, ends_with_tlast=False) == overrun
    with pytest.raises(FormatError, match="without TLAST"):
        small(params).run_packet(data[:-word], ends_with_tlast=False)


def test_crc_word_must_be_padded_with_zeros() -> None:
    params = replace(SERIAL, bus_bits=128)
    data = small_matrix(params)
    for byte in range(len(data) - 12, len(data)):
        damaged = bytearray(data)
        damaged[byte] = 1
        expected = (ErrorKind.CRC, len(data) // 16 - 1)
        assert failing(small(params), bytes(damaged), vector(1, 2)) == expected


def test_activations_too_few_or_too_many() -> None:
    data = matrix(SERIAL, [[1, 0, 2], [2, 1, 1]], 3)
    for count, position in ((1, 1), (2, 2), (4, 3), (9, 3)):
        expected = (ErrorKind.ACTIVATIONS, position)
        assert failing(small(), data, vector(*range(count))) == expected
    # The CRC is looked at first, the substreams last.
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    assert failing(small(), damaged, vector(1))[0] is ErrorKind.CRC
    index = serial("00101", (1, 3), map_entries=3)
    assert failing(small(), index, vector(1, 2, 3)) == (ErrorKind.INDEX, 0)
    assert failing(small(), index, vector(1)) == (ErrorKind.ACTIVATIONS, 1)


FOUR = replace(SERIAL, lanes=4, parser_bits=4, parser_cut=2, batch=2)
"""Eight substreams, two to a lane."""
COLUMNS = 4


def lanes_error(
    bad: dict[int, str], code: Code | None = None, entries: int = 3, rows: int = 8
) -> tuple[ErrorKind, int]:
    """Run eight rows of index 1, one to a substream, some with other bits."""
    code = code or Code(golomb(0, FOUR))
    good = code.encode([1] * COLUMNS, entries)
    streams = [bad.get(s, good) for s in range(8)]
    starts = [(s, 0) for s in range(8)]
    filling = code.filling(entries)
    data = matrix_packet(
        FOUR, (rows, COLUMNS), streams, starts, filling=filling, extra_words=4, map_entries=entries
    )
    accelerator = ready(FOUR, range(entries), code)
    return failing(accelerator, data, np.ones((COLUMNS, 2), dtype=np.int8))


def test_prefix() -> None:
    # J = 10: eleven zeros before the one bit are too many.
    assert FOUR.suffix_limit == 10
    assert lanes_error({5: "1" + "0" * 11 + "1"}) == (ErrorKind.PREFIX, 5)
    assert lanes_error({5: "1" + "0" * 10 + "1" + "0" * 10}) == (ErrorKind.INDEX, 5)
    third = Code(golomb(3, FOUR))
    assert lanes_error({2: "0" * 8 + "1"}, third) == (ErrorKind.PREFIX, 2)
    assert lanes_error({2: "0" * 7 + "1" + "0" * 10}, third) == (ErrorKind.INDEX, 2)
    # The order decides in each of both tables, and so does the turn.
    runs = Code(golomb(0, FOUR), golomb(3, FOUR))
    assert lanes_error({2: "0" * 8 + "1"}, runs) == (ErrorKind.PREFIX, 2)
    assert lanes_error({2: "1000" + "0" * 11 + "1"}, runs) == (ErrorKind.PREFIX, 2)
    assert lanes_error({2: "1000" + "0" * 10 + "1" + "0" * 10}, runs) == (ErrorKind.INDEX, 2)
    # What follows is not looked at.
    assert lanes_error({2: "0" * 11 + "1" + "00101"}) == (ErrorKind.PREFIX, 2)


def test_zeros_at_the_end_are_no_prefix() -> None:
    for code in (EG0, Code(golomb(0, SERIAL), golomb(2, SERIAL)), Code(golomb(7, SERIAL))):
        bits = code.encode([1], 3) + "0" * 200
        outcome = run_serial(bits, code, [0, 5, 0], columns=1)
        assert (outcome.error, outcome.results.tolist()) == (ErrorKind.NONE, [[5]])


def test_a_codeword_cut_off_does_not_count() -> None:
    for bits in ("0" * 28 + "0001", "0" * 29 + "001", "0" * 24 + "00001000"):
        outcome = run_serial(bits[-32:], Code(classes(*[0] * 12, 9)), [0] * 13, columns=1)
        assert outcome.error is ErrorKind.NONE
    # Without its last bit the word's last codeword, 0010100, is not there: index 19.
    outcome = run_serial("1" * 27 + "00101", EG0, [0] * 3, columns=16)
    assert outcome.error is ErrorKind.INDEX
    outcome = run_serial("1" * 28 + "0010", EG0, [0] * 3, columns=16)
    assert outcome.error is ErrorKind.NONE


def test_index() -> None:
    word = golomb(0, FOUR).codeword
    assert lanes_error({7: word(4)}) == (ErrorKind.INDEX, 7)
    assert lanes_error({0: word(2) * 3 + word(4)}) == (ErrorKind.INDEX, 0)
    # In the run form too; runs may be longer than the map.
    runs = Code(golomb(0, FOUR), golomb(0, FOUR))
    assert lanes_error({7: "1" + word(4)}, runs) == (ErrorKind.INDEX, 7)
    zigzag = serial(word(5), (1, 1), map_entries=4, zigzag=1)
    assert failing(ready(SERIAL), zigzag, vector(1)) == (ErrorKind.INDEX, 0)
    # It counts in what lies beyond the matrix too.
    late = serial("1" * 20 + word(4), (1, 1), map_entries=3)
    assert failing(small(), late, vector(1)) == (ErrorKind.INDEX, 0)


def test_row() -> None:
    # Index 1 once too often: in row 8.
    assert lanes_error({7: "010" * 5}) == (ErrorKind.ROW, 7)
    assert lanes_error({2: "010" * 24 + "011"}) == (ErrorKind.ROW, 2)
    assert lanes_error({6: "010" * 9, 7: "010" * 5}) == (ErrorKind.ROW, 6)
    # Zeros, and sums that are 0, are no error, however far they go.
    accelerator = ready(SERIAL, [0, 5, -5])
    for bits in ("1" * 31, "010" + "1" * 20, "010 1 010 011", "010 1 1 010 1 1 1 1 011 010"):
        accelerator.clear()
        accelerator = ready(SERIAL, [0, 5, -5])
        outcome = accelerator.run_packet(serial(bits, (1, 2), map_entries=3), vector(1, 1))
        wanted = ErrorKind.ROW if bits.endswith("011 010") else ErrorKind.NONE
        assert outcome.error is wanted, bits
    runs = Code(golomb(0, SERIAL), golomb(7, SERIAL))
    far = runs.run.codeword(1023) if runs.run else ""
    bits = (far + "1") * 3 + far + "011"
    accelerator = ready(SERIAL, [0, 5], runs)
    assert (
        failing(accelerator, serial(bits, (1, 1), map_entries=1), vector(1))[0] is ErrorKind.INDEX
    )
    accelerator = ready(SERIAL, [5], runs)
    assert failing(accelerator, serial(far + "1", (1, 1), map_entries=1), vector(1)) == (
        ErrorKind.ROW,
        0,
    )
    # A start beyond the last row, of a range that is not empty.
    beyond = serial("010", (1, 2), (7, 1), map_entries=3)
    assert failing(small(), beyond, vector(1, 1)) == (ErrorKind.ROW, 0)
    # The sum of one vector of the batch is enough.
    batch = replace(SERIAL, batch=2)
    data = matrix_packet(batch, (1, 1), ["1010"], [(0, 0)], map_entries=3)
    for x, kind in (([0, 0], ErrorKind.NONE), ([0, 3], ErrorKind.ROW)):
        outcome = small(batch).run_packet(data, np.array([x], np.int8))
        assert outcome.error is kind


def test_lowest_substream_is_reported_with_its_own_first_error() -> None:
    prefix, index, row = "0" * 11 + "1", "00101", "010" * 40
    assert lanes_error({6: index, 4: "1" + prefix}) == (ErrorKind.PREFIX, 4)
    assert lanes_error({6: prefix, 7: index}) == (ErrorKind.PREFIX, 6)
    assert lanes_error({1: index + prefix, 3: prefix}) == (ErrorKind.INDEX, 1)
    assert lanes_error({0: row, 3: prefix}) == (ErrorKind.PREFIX, 3)
    assert lanes_error({0: row, 3: index}) == (ErrorKind.INDEX, 3)
    assert lanes_error({0: row, 3: row}) == (ErrorKind.ROW, 0)


SETUP = map_packet(SERIAL, 0, [0, 5, 2048])
BIASES = bias_packet(SERIAL, 0, [1, 2])


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([SETUP, serial("011", (1, 1), map_entries=3)], "found 2048, expected a signed number"),
        ([SETUP, serial("00100", (1, 1), map_entries=4)], "found nothing in entry 3 of the map"),
        ([serial("010", (1, 1), (0, 1), column_bits=1)], "found column 1, expected 0 to 0"),
        ([SETUP, serial("1", (1, 1), has_bias=1)], "found nothing in entry 0 of the bias"),
        (
            [bias_packet(SERIAL, 0, [2**31 - 1]), SETUP, serial("010", (1, 1), has_bias=1)],
            "result of row 0: found 2147483652, expected an int32",
        ),
        (
            [serial("1", (2, 1), more=1, emit_results=0), serial("1", (3, 1))],
            "rows: found 3, expected the 2",
        ),
        ([SETUP, serial("1", (1, 1)), SETUP], "map entries 0 to 2: found in use"),
        (
            [SETUP, serial("1", (1, 1)), serial("1", (1, 1), zigzag=1), SETUP],
            "found in use by one of",
        ),
        (
            [BIASES, serial("1", (2, 1), has_bias=1), BIASES],
            "bias entries 0 to 1: found in use",
        ),
        ([code_packet(SERIAL, Code(Table((11,), (0,))))], "found 11 suffix bits, expected 0 to 10"),
        ([code_packet(SERIAL, Code(Table((1, 2), (-3, 0))))], "found a codeword for -1"),
        ([code_packet(SERIAL, Code(Table((1, 2), (-2, -1))))], "class 1: found a codeword for -1"),
        ([code_packet(SERIAL, Code(classes(0)))], "level table: found a codeword without bits"),
        (
            [code_packet(SERIAL, Code(Table((1, 2), (-1, 2))))],
            "class 0: found a first codeword for 1",
        ),
        (
            [code_packet(SERIAL, Code(Table((1, 2), (-2, 0))))],
            "class 1: found a first codeword for 0",
        ),
        (
            [code_packet(SERIAL, Code(classes(1), classes(0)))],
            "run table: found a codeword without",
        ),
        ([code_packet(SERIAL, EG0, level_last=9)], "level table, class 10: found an entry behind"),
        ([code_packet(SERIAL, EG0, level_last=11)], "expected an exp-Golomb code"),
        (
            [code_packet(SERIAL, Code(replace(classes(1, 2), golomb=True)))],
            "expected an exp-Golomb",
        ),
        (
            [code_packet(SERIAL, Code(EG0.level, EG0.level), run_form=0)],
            "expected zeros without run",
        ),
    ],
)
def test_what_the_sender_must_not_do_has_no_answer(packets: list[bytes], message: str) -> None:
    accelerator = ready(SERIAL)
    for packet in packets[:-1]:
        loads = read_header(packet).get("load_activations")
        assert accelerator.run_packet(packet, vector(1) if loads else None).error is ErrorKind.NONE
    loads = read_header(packets[-1]).get("load_activations")
    with pytest.raises(FormatError, match=message):
        accelerator.run_packet(packets[-1], vector(1) if loads else None)


def test_tables_out_of_use_may_be_overwritten() -> None:
    accelerator = ready(SERIAL, [0, 5, -3])
    one = serial("010", (1, 1), map_entries=3)
    for _ in range(2):
        load(accelerator, map_packet(SERIAL, 3, [0, 9]))
        load(accelerator, bias_packet(SERIAL, 0, [1]))
        assert accelerator.run_packet(one, vector(2)).results.tolist() == [[10]]
    other = serial("010", (1, 1), map_base=3, map_entries=2)
    zigzag = serial("010", (1, 1), zigzag=1)
    assert accelerator.run_packet(other, vector(2)).results.tolist() == [[18]]
    assert accelerator.run_packet(zigzag, vector(2)).results.tolist() == [[-2]]
    load(accelerator, map_packet(SERIAL, 0, [0, 6]))
    assert accelerator.run_packet(one, vector(2)).results.tolist() == [[12]]


def test_calls_that_no_stream_could_make() -> None:
    accelerator = small()
    data = serial("010", (1, 1), map_entries=3)
    with pytest.raises(FormatError, match="found none"):
        accelerator.run_packet(data)
    with pytest.raises(FormatError, match="int64 of shape"):
        accelerator.run_packet(data, np.ones((1, 1), dtype=np.int64))
    with pytest.raises(FormatError, match=r"int8 of shape \(1, 2\)"):
        accelerator.run_packet(data, np.ones((1, 2), dtype=np.int8))
    with pytest.raises(FormatError, match="13 bytes"):
        accelerator.run_packet(data[:13])
    with pytest.raises(FormatError, match="activations: found none, expected one for each of 1"):
        accelerator.run_packet(serial("010", (1, 1), map_entries=3, load_activations=0))
    accelerator.run_packet(data, vector(1))
    with pytest.raises(FormatError, match="without load_activations"):
        accelerator.run_packet(serial("1", (1, 1), load_activations=0), vector(1))
    with pytest.raises(FormatError, match="without load_activations"):
        accelerator.run_packet(code_packet(SERIAL, EG0), vector(1))


@pytest.mark.parametrize("params", [SERIAL, SHAPES[3], SHAPES[-1]], ids=lambda p: p.name)
def test_split_packets(params: AcceleratorParams) -> None:
    packets = [
        code_packet(params, Code(golomb(1, params))),
        map_packet(params, 5, [1, 2, 3]),
        matrix(params, np.ones((3, 7), dtype=int), 3),
        bias_packet(params, 0, [1, 2, 3, 4, 5]),
        matrix(params, np.ones((1, 2), dtype=int), 2, zigzag=1, wide_starts=1),
    ]
    image = b"".join(packets)
    assert split_packets(image, params) == packets
    with pytest.raises(FormatError, match="no bytes"):
        split_packets(b"", params)
    with pytest.raises(FormatError, match=f"packet 4: found {len(packets[4]) - 1} bytes"):
        split_packets(image[:-1], params)
    for rest in (b"EGRT", packets[2][:20]):
        with pytest.raises(FormatError, match=rf"packet 5: found {len(rest)} bytes, expected a he"):
            split_packets(image + rest, params)
    damaged = bytes([packets[1][0] ^ 8]) + packets[1][1:]
    with pytest.raises(FormatError, match="packet 1: header field magic: found 18253"):
        split_packets(packets[0] + damaged, params)


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
    params = replace(SERIAL, batch=3, lanes=4, parser_bits=4, parser_cut=2)
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
    accelerator = ready(params, table)
    load(accelerator, bias_packet(params, 4, bias.tolist()))
    one = accelerator.run_packet(
        matrix(
            params,
            first,
            6,
            keep_activations=1,
            relu=1,
            has_bias=1,
            bias_base=4,
            multiplier=40000,
            shift=22,
        ),
        inputs.T[::-1],
    )
    two = accelerator.run_packet(matrix(params, second, 6, load_activations=0, emit_activations=1))
    assert [output.results.dtype for output in outputs] == [np.int32] * 2
    assert [output.activations.dtype for output in outputs] == [np.int8] * 2
    for packet_result, output in zip((one, two), outputs, strict=True):
        np.testing.assert_array_equal(packet_result.results.T, output.results)
        np.testing.assert_array_equal(packet_result.activations.T, output.activations)
    assert 0 < np.count_nonzero(one.activations) < one.activations.size
    assert two.activations.min() < 0
