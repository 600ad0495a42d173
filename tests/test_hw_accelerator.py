"""The whole accelerator, simulated, against the golden model, bit for bit.

Packets are put together here from docs/format.md, and by the packer where a test says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import crc32c as independent_crc
import numpy as np
import pytest

from egret.image import build_image
from egret.image_format import FIELDS, ErrorKind
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_hw.rtl import generate_verilog, top_name
from egret_sim.benches.accelerator import PAUSES, Job, Recording, Step
from egret_sim.golden import GoldenAccelerator, Outcome, reference_forward
from egret_sim.runner import run_bench

BENCH = "egret_sim.benches.accelerator"

L4W4 = AcceleratorParams(
    name="l4w4",
    lanes=4,
    parser_bits=4,
    parser_cut=4,
    bus_bits=32,
    map_depth=64,
    activation_depth=64,
    row_depth=64,
)
SETS = [
    replace(L4W4, name="l1w1", lanes=1, parser_bits=1, parser_cut=1),
    L4W4,
    replace(L4W4, name="l2w8c2", lanes=2, parser_bits=8, weight_bits=8, row_depth=128),
    replace(L4W4, name="l2w4c2b3", lanes=2, parser_cut=2, batch=3),
    replace(L4W4, name="l1w16c4", lanes=1, parser_bits=16, weight_bits=16, map_depth=16),
    replace(L4W4, name="l8w4", lanes=8, bus_bits=64, map_depth=128, row_depth=128),
]
FAULTY = SETS[3]


@lru_cache
def verilog(params: AcceleratorParams) -> str:
    return generate_verilog(params)


def codeword(index: int, order: int) -> str:
    number = f"{index + 2**order:b}"
    return "0" * (len(number) - 1 - order) + number


def little(value: int, size: int) -> bytes:
    return (value % 256**size).to_bytes(size, "little")


def padded(data: bytes, params: AcceleratorParams) -> bytes:
    return data + bytes(-len(data) % (params.bus_bits // 8))


def with_crc(body: bytes, params: AcceleratorParams) -> bytes:
    return body + padded(little(independent_crc.crc32c(body), 4), params)


def payload_of(streams: Sequence[str], params: AcceleratorParams, extra_words: int) -> bytes:
    """Interleave one string of bits for each substream as the payload's beats."""
    lanes, width, slots = params.lanes, params.parser_bits, params.slots
    beats = slots * max(-(-len(bits) // width) for bits in streams)
    per_word = params.bus_bits // (lanes * width)
    words = max(1, -(-beats // per_word)) + extra_words
    data = b""
    for word in range(words):
        text = ""  # highest bit first, so later beats and higher lanes go in front
        for beat in range(word * per_word, (word + 1) * per_word):
            for lane in range(lanes):
                start = beat // slots * width
                bits = streams[lane * slots + beat % slots][start : start + width]
                text = bits.ljust(width, "0") + text
        data += little(int(text, 2), params.bus_bits // 8)
    return data


def packet(
    params: AcceleratorParams,
    indices: np.ndarray,
    table: Sequence[int] | None,
    *,
    order: int = 0,
    bias: Sequence[int] | None = None,
    deal: Sequence[Sequence[int]] | None = None,
    streams: Sequence[str] | None = None,
    extra_slots: int = 0,
    extra_words: int = 0,
    **fields: int,
) -> bytes:
    """Put a packet together.

    `table` is the value map, None for zigzag; `deal` the rows of each substream; `streams`
    replaces the substreams' bits; `fields` are descriptor fields that do not follow from these.
    """
    rows, columns = indices.shape
    if deal is None:
        deal = [range(s, rows, params.substreams) for s in range(params.substreams)]
    if streams is None:
        streams = [
            "".join(codeword(int(i), order) for row in mine for i in indices[row]) for mine in deal
        ]
    payload = payload_of(streams, params, extra_words)
    slots = max(1, *(len(mine) for mine in deal)) + extra_slots
    values = {
        "magic": 0x4745,
        "version": 1,
        "emit_results": 1,
        "has_bias": bias is not None,
        "zigzag": table is None,
        "order": order,
        "rows": rows,
        "columns": columns,
        "map_entries": params.map_depth if table is None else len(table),
        "row_slots": slots,
        "payload_words": len(payload) // (params.bus_bits // 8),
        "multiplier": 1,
        **fields,
    }
    descriptor = sum(
        int(value) << 32 * FIELDS[name].word + FIELDS[name].lsb for name, value in values.items()
    )
    dealt = [mine[r] if r < len(mine) else 0xFFFF for r in range(slots) for mine in deal]
    sections = [
        little(descriptor, 32),
        b"".join(little(value, 2) for value in table or ()),
        b"".join(little(len(mine), 2) for mine in deal),
        b"".join(little(row, 2) for row in dealt),
        b"".join(little(value, 4) for value in (() if bias is None else bias)),
        payload,
    ]
    return with_crc(b"".join(padded(section, params) for section in sections), params)


class Script:
    """Steps for the bench, and what the golden model says must come out."""

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        self.golden = GoldenAccelerator(params)
        self.steps: list[Step] = []
        self.frames: list[tuple[str, np.ndarray | ErrorKind]] = []
        self.statuses: list[tuple[str, dict[str, int]]] = []
        self.multiplies = 0
        self.error = {"error": 0, "position": 0}

    def send(self, what: str, packet: bytes, activations: np.ndarray | None = None) -> Outcome:
        """Queue a packet, and note what follows from it."""
        if activations is not None:
            self.steps.append(Step("activations", activations.tobytes()))
        self.steps.append(Step("weights", packet))
        outcome = self.golden.run_packet(packet, activations)
        if outcome.error is ErrorKind.NONE:
            self.frames += [(what, stream.ravel()) for stream in outcome.streams]
            self.multiplies += outcome.multiplied
        elif not outcome.discarded:
            self.frames.append((what, outcome.error))
        self.error = {"error": int(outcome.error), "position": outcome.position}
        return outcome

    def settle(self, what: str) -> None:
        """Wait for all that must have come out, and look at the status ports."""
        self.steps += [Step("expect", count=len(self.frames)), Step("wait", count=16)]
        self.steps.append(Step("status"))
        expected = {**self.error, "matrices": self.golden.good_matrices}
        if not self.error["error"]:  # how far a bad matrix gets is nobody's business
            expected["multiplies"] = self.multiplies
        self.statuses.append((what, expected))

    def clear(self) -> None:
        self.steps.append(Step("clear"))
        self.golden.clear()
        self.multiplies = 0

    def play(self, *, pause: str = "none", seed: int = 1) -> Recording:
        """Run the bench and compare."""
        recording = play(self.params, self.steps, pause=pause, seed=seed)
        for (what, expected), frame in zip(self.frames, recording.frames, strict=False):
            found = ErrorKind(frame.values[0]) if frame.error else frame.values
            if isinstance(expected, ErrorKind):
                assert found is expected, f"{what}: {found}"
                assert len(frame.values) == 1, what
            else:
                assert not frame.error, f"{what}: found {found!r}"
                np.testing.assert_array_equal(frame.values, expected, what)
        for (what, status), seen in zip(self.statuses, recording.statuses, strict=False):
            assert {name: seen[name] for name in status} == status, what
        assert not recording.locked_up, f"after {self.frames[len(recording.frames) - 1][0]}"
        assert len(recording.frames) == len(self.frames)
        assert len(recording.statuses) == len(self.statuses)
        return recording


def play(
    params: AcceleratorParams,
    steps: list[Step],
    *,
    pause: str = "none",
    seed: int = 1,
    timeout: int = 20_000,
) -> Recording:
    job = Job(steps, pause=pause, seed=seed, timeout=timeout)
    recording = run_bench(verilog(params), top_name(params), BENCH, job, seed=seed)
    assert isinstance(recording, Recording)
    return recording


def spread(params: AcceleratorParams, rows: int, rng: np.random.Generator) -> list[list[int]]:
    """Deal rows at random, evenly, unevenly, or all to one substream."""
    most = 2 * params.row_depth // params.substreams
    shuffled = rng.permutation(rows).tolist()
    deal: list[list[int]] = [[] for _ in range(params.substreams)]
    style = rng.integers(3)
    for number, row in enumerate(shuffled):
        substream = number % params.substreams
        if style == 1:
            substream = int(rng.integers(params.substreams))
        if style == 2:
            substream = number // most
        if len(deal[substream]) == most:
            substream = min(range(params.substreams), key=lambda s: len(deal[s]))
        deal[substream].append(row)
    return deal


KINDS = ("sparse", "medium", "uniform", "no zero", "all zero", "extreme")


def random_weights(
    params: AcceleratorParams, kind: str, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, list[int] | None, int]:
    """Return indices, value map (None for zigzag) and `dense`."""
    limit = 1 << (params.weight_bits - 1)
    entries = int(rng.choice([2, 5, params.map_depth // 2, params.map_depth]))
    if kind == "all zero":
        return np.zeros(shape, int), [0] if rng.random() < 0.5 else None, 0
    if kind == "extreme":  # only the largest magnitudes: accumulators at their limits
        table = [0, -limit, limit - 1]
        return rng.choice([1, 1, 1, 2], shape), table, 0
    ratio = {"sparse": 0.85, "medium": 0.5, "uniform": 0.0, "no zero": 0.3}[kind]
    if ratio:
        indices = rng.geometric(ratio, shape).clip(max=entries) - 1
    else:
        indices = rng.integers(0, entries, shape)
    if kind == "no zero":
        indices = indices.clip(min=1)
    if rng.random() < 0.4:
        return indices.clip(max=(1 << params.weight_bits) - 1), None, int(rng.integers(2))
    values = rng.integers(-limit, limit, params.map_depth)
    values[rng.random(params.map_depth) < 0.1] = 0  # zeros at other places too
    dense = int(rng.random() < 0.4)
    if not dense:
        values[0] = 0
    return indices, values[:entries].tolist(), dense


def random_bias(sums: np.ndarray, rng: np.random.Generator) -> tuple[list[int] | None, int]:
    """Return a bias for rows with these sums, if any, and roughly the bits of the results."""
    style = rng.integers(3)
    if style == 0:
        return None, 24
    if style == 1:
        return rng.integers(-(2**15), 2**15, len(sums)).tolist(), 24
    low, high = -(2**31), 2**31 - 1  # as far as the results, or the bias, may go
    up = rng.random(len(sums)) < 0.5
    bias = np.where(up, high - sums.max(axis=1), low - sums.min(axis=1))
    return bias.clip(low, high).tolist(), 31


def random_chain(script: Script, rng: np.random.Generator, length: int, what: str) -> None:
    """Send matrices of every kind back to back, each with its own order, map, bias and size."""
    params = script.params
    held = np.zeros((0, params.batch), np.int8)  # what the current activation memory holds
    for number in range(length):
        kind = str(rng.choice(KINDS))
        load = len(held) == 0 or rng.random() < 0.4
        keep = rng.random() < 0.5
        width = params.parser_bits
        x = None
        if load:
            columns = int(rng.integers(width, int(rng.choice([width, 24, 40])) + 1))
            if number == 1:
                columns = params.activation_depth
            x = rng.integers(-128, 128, (columns, params.batch)).astype(np.int8)
            if rng.random() < 0.3:
                x[:] = -128
            held = x
        columns = len(held)
        rows = int(rng.choice([1, 2, params.substreams + 1, int(rng.integers(3, 24))]))
        if number == 2:
            rows = params.activation_depth if keep else params.row_depth
            held = held[: max(width, 8)]
            columns = len(held)
            x = None if x is None else held
        indices, table, dense = random_weights(params, kind, (rows, columns), rng)
        order = (number + int(rng.integers(2))) % 8
        if columns < width:  # a narrow matrix is given zero columns
            zero = np.zeros((rows, width - columns), int)
            indices, dense = np.hstack([indices, zero]), 0
            if table is not None:
                table[0] = 0
            if x is not None:
                x = np.vstack([x, np.zeros((width - columns, params.batch), np.int8)])
        zigzag = (indices >> 1) ^ -(indices & 1)
        weights = zigzag if table is None else np.array(table)[indices]
        sums = weights[:, : len(held)] @ held.astype(int)
        bias, bits = random_bias(sums, rng)
        emits = int(rng.choice([0, 1, 1, 2, 2, 3, 3])) if number < length - 1 else 3
        label = f"{what}, matrix {number}: {kind} {indices.shape}, order {order}"
        data = packet(
            params,
            indices,
            table,
            order=order,
            bias=bias,
            deal=spread(params, rows, rng),
            extra_slots=int(rng.integers(2)) if rows < params.row_depth // 2 else 0,
            extra_words=int(rng.choice([0, 0, 1, 5])),
            load_activations=load,
            keep_activations=keep,
            emit_results=emits & 1,
            emit_activations=emits >> 1,
            relu=int(rng.integers(2)),
            dense=dense,
            multiplier=int(rng.choice([0, 1, int(rng.integers(2**15, 2**16)), 2**16 - 1])),
            shift=int(rng.choice([0, bits - 8, bits + 8, int(rng.integers(bits, 64))])),
        )
        outcome = script.send(label, data, x)
        assert outcome.error is ErrorKind.NONE, label
        if keep:
            held = outcome.activations
    script.settle(what)


def garbled(params: AcceleratorParams, rng: np.random.Generator) -> bytes:
    """Return a packet with a right CRC whose substreams are wrong, or hold random bits."""
    rows = int(rng.integers(1, 3 * params.substreams))
    columns = int(rng.integers(params.parser_bits, params.parser_bits + 25))
    order = int(rng.integers(0, 4))
    entries = int(rng.integers(2, params.map_depth))
    table = [0, *rng.integers(-8, 8, entries - 1).tolist()]
    # Substreams of this many bits fill the payload exactly.
    length = max(params.parser_bits, params.bus_bits // params.substreams)
    length *= int(rng.integers(1, 8))
    streams = []
    for _ in range(params.substreams):
        ones = rng.choice([0.25, 0.5, 0.9])
        noise = "".join("01"[bit] for bit in (rng.random(length) < ones) * 1)
        right = "".join(codeword(int(i), order) for i in rng.integers(0, entries, length))
        zeros = "0" * int(rng.integers(1, length))
        # The zero that is one too many is the payload's last bit.
        latest = ("1" * length + "0" * (params.suffix_limit + 1 - order))[-length:]
        ends = int(rng.integers(length))
        style = rng.choice(["noise", "right", "right", "padded", "zeros", "latest"])
        streams.append(
            {
                "noise": noise,
                "right": right,
                "padded": right[:ends] + "1" * length,
                "zeros": right[:ends] + zeros,
                "latest": latest,
            }[style][:length].ljust(length, "0")
        )
    return packet(
        params,
        np.zeros((rows, columns), int),
        table,
        order=order,
        streams=streams,
        load_activations=1,
    )


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("params", SETS, ids=lambda params: params.name)
def test_random_matrices(params: AcceleratorParams, pause: str) -> None:
    seed = 100 * SETS.index(params) + list(PAUSES).index(pause)
    rng = np.random.default_rng(seed)
    script = Script(params)
    for chain in range(2):
        random_chain(script, rng, 8, f"seed {seed}, chain {chain}")
    script.play(pause=pause, seed=seed + 1)


@pytest.mark.parametrize("params", SETS, ids=lambda params: params.name)
def test_packer_against_golden_and_plain_integers(params: AcceleratorParams) -> None:
    seed = SETS.index(params)
    rng = np.random.default_rng(seed)
    sizes = [40, 33, params.parser_bits, 5]
    layers = []
    for number, (columns, rows) in enumerate(pairwise(sizes)):
        values = np.rint(rng.laplace(size=(rows, columns)) * 1.5).astype(np.int32).clip(-7, 7)
        layers.append(
            IntegerLayer(
                name=f"layer{number}",
                weight=QuantizedTensor(values, 8),
                bias=rng.normal(size=rows).astype(np.float32) if number else None,
                input_scale=0.05,
                output_scale=0.05,
                multiplier=40000,
                shift=19,
                relu=number < 2,
            )
        )
    network = IntegerNetwork("random", tuple(layers))
    script = Script(params)
    for order in (None, 7):
        x = rng.integers(-128, 128, (params.batch, 40)).astype(np.int8)
        for number, made in enumerate(
            build_image(network, params, emit="all", order=order).packets
        ):
            what = f"seed {seed}, order {order}, {made.name}"
            outcome = script.send(what, made.data, None if number else x.T)
            plain = reference_forward(network, x)[number]
            np.testing.assert_array_equal(outcome.results, plain.results.T, what)
            np.testing.assert_array_equal(outcome.activations, plain.activations.T, what)
        script.settle(f"seed {seed}, order {order}")
    script.play(seed=seed + 1)


class Faults:
    """A small good matrix to damage; after each fault comes `clear`, then another good one."""

    def __init__(self, params: AcceleratorParams = FAULTY, seed: int = 1) -> None:
        self.script = Script(params)
        self.rng = np.random.default_rng(seed)
        self.indices = self.rng.geometric(0.5, (6, 8)).clip(max=5) - 1
        self.table = [0, 3, -2, 2047, -2048]
        self.word = params.bus_bits // 8
        bias = self.rng.integers(-1000, 1000, 6).tolist()
        self.packet = packet(
            params, self.indices, self.table, bias=bias, load_activations=1, multiplier=9, shift=9
        )
        other = self.rng.integers(0, 4, (4, 7))
        self.good = packet(
            params, other, [5, 0, -7, 1], order=2, dense=1, load_activations=1, keep_activations=1,
            emit_activations=1, multiplier=40000, shift=17,
        )  # fmt: skip

    def vector(self, columns: int = 8) -> np.ndarray:
        shape = (columns, self.script.params.batch)
        return self.rng.integers(-128, 128, shape).astype(np.int8)

    def section(self, name: str) -> int:
        """Return the byte at which the payload or the CRC word starts."""
        crc = len(self.packet) - self.word
        payload_words = int.from_bytes(self.packet[16:20], "little")
        return {"crc": crc, "payload": crc - payload_words * self.word}[name]

    def fault(
        self, what: str, packet: bytes, *, x: np.ndarray | None = None, recover: bool = True
    ) -> Outcome:
        outcome = self.script.send(what, packet, self.vector() if x is None else x)
        assert outcome.error is not ErrorKind.NONE, what
        self.script.settle(what)
        if recover:
            self.recover(what)
        return outcome

    def recover(self, what: str) -> None:
        self.script.clear()
        outcome = self.script.send(f"good after {what}", self.good, self.vector(7))
        assert outcome.error is ErrorKind.NONE
        self.script.settle(f"good after {what}")


def flips(faults: Faults, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """Yield the packet with each bit of these bytes flipped in turn, and the bit's number."""
    for bit in range(8 * first, 8 * last):
        data = bytearray(faults.packet)
        data[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(data)


def test_every_bit_of_the_payload_flipped_is_a_crc_error() -> None:
    faults = Faults()
    for bit, data in flips(faults, faults.section("payload"), len(faults.packet)):
        outcome = faults.fault(f"bit {bit}", data)
        assert outcome.error is ErrorKind.CRC
    faults.script.play()


@pytest.mark.parametrize("pause", ["none", "random"])
def test_every_bit_before_the_payload_flipped_is_an_error(pause: str) -> None:
    faults = Faults(seed=2)
    for bit, data in flips(faults, 0, faults.section("payload")):
        if pause == "none" or bit % 3 == 0:
            faults.fault(f"bit {bit}", data)
    faults.script.play(pause=pause)


def test_wrong_lengths_are_errors() -> None:
    faults = Faults(seed=3)
    word = faults.word
    for words in range(1, len(faults.packet) // word):
        outcome = faults.fault(f"{words} words", faults.packet[: words * word])
        assert outcome.error is ErrorKind.TRUNCATED
    for extra in (1, 2, 50):
        outcome = faults.fault(f"{extra} more words", faults.packet + bytes(extra * word))
        assert outcome.error is ErrorKind.OVERRUN
    # TLAST is missing: the next packet's words follow.
    outcome = faults.fault("two packets in one", faults.packet + faults.good)
    assert outcome.error is ErrorKind.OVERRUN
    for columns in (1, 7, 9, 30):
        outcome = faults.fault(f"{columns} columns", faults.packet, x=faults.vector(columns))
        assert outcome.error is ErrorKind.ACTIVATIONS
    # Both: what comes first in the list of errors.
    for data in (faults.packet[:-word], faults.packet + bytes(word)):
        for columns in (5, 20):
            faults.fault(f"{columns} columns too", data, x=faults.vector(columns))
    faults.script.play()


def test_wrong_crc_word_is_an_error_and_its_padding_counts() -> None:
    params = SETS[5]
    assert params.bus_bits == 64
    faults = Faults(params, seed=4)
    for bit, data in flips(faults, faults.section("crc"), len(faults.packet)):
        outcome = faults.fault(f"bit {bit}", data)
        assert (outcome.error, outcome.position) == (
            ErrorKind.CRC,
            len(data) // faults.word - 1,
        )
    faults.script.play()


@pytest.mark.parametrize("pause", ["none", "bursts"])
def test_nothing_is_looked_at_between_an_error_and_clear(pause: str) -> None:
    faults = Faults(seed=5)
    script = faults.script
    for number in range(4):
        faults.fault("a fault", faults.packet[: -faults.word], recover=False)
        for _ in range(number):
            outcome = script.send("discarded", faults.good, faults.vector(7))
            assert outcome.discarded
        script.steps.append(Step("wait", count=100 * number + 100))
        script.settle("still in error")
        faults.recover("discarded packets")
    script.play(pause=pause)


@pytest.mark.parametrize("params", SETS, ids=lambda params: params.name)
def test_codes_that_are_wrong_in_themselves(params: AcceleratorParams) -> None:
    seed = SETS.index(params)
    faults = Faults(params, seed=seed)
    if params.parser_bits > 8:
        wide = np.zeros((3, 16), int)
        faults.good = packet(params, wide, [-3], dense=1, load_activations=1)
    kinds = set()
    for number in range(200):
        data = garbled(params, faults.rng)
        columns = int.from_bytes(data[10:12], "little")
        what = f"seed {seed}, garbled {number}"
        outcome = faults.script.send(what, data, faults.vector(columns))
        faults.script.settle(what)
        kinds.add(outcome.error)
        if outcome.error is not ErrorKind.NONE:
            faults.script.clear()
        if number % 8 == 0:
            good_columns = int.from_bytes(faults.good[10:12], "little")
            faults.script.send(f"good after {what}", faults.good, faults.vector(good_columns))
            faults.script.settle(f"good after {what}")
    assert kinds >= {ErrorKind.PREFIX, ErrorKind.INDEX, ErrorKind.SHORT}
    faults.script.play()


INTERRUPTIONS = {
    # what happens: a bad packet or not, whether activations are there, first cycle
    "reset": (False, True, 6),  # both packets have begun by then
    "clear": (False, True, 24),  # and here the matrix has asked for its activations
    "clear while waiting for activations": (False, False, 6),
    "clear after an error": (True, False, 6),
}


@pytest.mark.parametrize("what", INTERRUPTIONS)
def test_reset_and_clear_in_any_cycle(what: str) -> None:
    bad, with_activations, first = INTERRUPTIONS[what]
    faults = Faults(seed=6)
    params = faults.script.params
    x, good_x = faults.vector(), faults.vector(7)
    data = bytearray(faults.packet)
    data[2] ^= bad  # the version
    golden = GoldenAccelerator(params)
    outcome = golden.run_packet(bytes(data), x)
    golden.clear()
    good = golden.run_packet(faults.good, good_x)
    cycles = range(first, 150)
    steps: list[Step] = []
    for cycle in cycles:
        if with_activations:
            steps.append(Step("activations", x.tobytes()))
        steps += [Step("weights", bytes(data)), Step("wait", count=cycle), Step(what.split()[0])]
        # The rest of the packet passes, and results already accepted leave.
        steps += [Step("wait", count=100), Step("activations", good_x.tobytes())]
        steps += [Step("weights", faults.good), Step("wait", count=200), Step("status")]
    steps.append(Step("expect", count=10**9))  # the frames that there are
    recording = play(params, steps, timeout=500)
    frames = iter(recording.frames)
    late = 0
    for cycle, status in zip(cycles, recording.statuses, strict=True):
        where = f"{what} in cycle {cycle}"
        frame = next(frames)
        # An interrupted packet gives the whole of its answer or none.
        if frame.error:
            assert bad, where
            assert frame.values.tolist() == [outcome.error], where
        elif frame.values.size != good.results.size:
            assert not bad, where
            np.testing.assert_array_equal(frame.values, outcome.results.ravel(), where)
        if frame.error or frame.values.size != good.results.size:
            late += 1
            frame = next(frames)
        for expected in good.streams:
            assert not frame.error, where
            np.testing.assert_array_equal(frame.values, expected.ravel(), where)
            if expected is not good.streams[-1]:
                frame = next(frames)
        assert (status["error"], status["matrices"]) == (0, 1), where
        assert status["multiplies"] == good.multiplied, where
    assert next(frames, None) is None
    assert 0 < late < len(cycles) or not (bad or with_activations)


@pytest.mark.parametrize("before", ["good matrix", "nothing", "waiting matrix"])
def test_clear_amid_a_long_activation_packet(before: str) -> None:
    """The next matrix waits for the rest of the packet, then takes activations of its own."""
    faults = Faults(FAULTY, seed=6)
    golden = GoldenAccelerator(FAULTY)
    own, others = faults.vector(), faults.vector(7)
    long = faults.rng.integers(-128, 128, (300, FAULTY.batch)).astype(np.int8)
    wrong = bytearray(faults.packet)
    wrong[2] ^= 1
    steps = []
    expected: list[np.ndarray] = []
    if before == "good matrix":
        steps += [Step("activations", own.tobytes()), Step("weights", faults.packet)]
        expected += golden.run_packet(faults.packet, own).streams
    if before == "waiting matrix":
        steps += [Step("weights", faults.packet)]
    else:
        steps += [Step("weights", bytes(wrong)), Step("expect", count=len(expected) + 1)]
    steps += [
        *(Step("activations", long.tobytes()), Step("wait", count=50), Step("clear")),
        *(Step("weights", faults.good), Step("activations", others.tobytes())),
    ]
    golden = GoldenAccelerator(FAULTY)
    expected += golden.run_packet(faults.good, others).streams
    frames = len(expected) + (before != "waiting matrix")
    recording = play(FAULTY, [*steps, Step("expect", count=frames), Step("status")], timeout=3000)
    assert not recording.locked_up
    good = [frame.values for frame in recording.frames if not frame.error]
    assert len(good) == len(expected)
    for found, stream in zip(good, expected, strict=True):
        np.testing.assert_array_equal(found, stream.ravel())
    assert recording.statuses[-1]["error"] == ErrorKind.NONE
    assert recording.statuses[-1]["matrices"] == 1
