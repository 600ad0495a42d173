"""Lists of faults on the whole accelerator, far from Python: every one of a kind, not a sample.

A small image (code, map, biases, one matrix) is damaged in every way of a list. After each fault
the core is cleared, and the whole image has to give the right results. What must be reported,
the results, the error's kind and its position, is the golden model's word.

`EGRET_FULL=1`, as `make faults` sets it, plays the whole lists, on Verilog that is kept in
hw/verilog too; without it they are cut short. The counts are printed (`pytest -s`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest
from tests.image_builder import Code, bias_packet, code_packet, coded_matrix, golomb, map_packet
from tests.run_options import IS_FULL, KEPT
from tests.small_accelerator import SMALL

from egret.image_format import ErrorKind, PacketKind
from egret.params import PRESETS, AcceleratorParams
from egret_hw.registers import register_named
from egret_hw.rtl import top_name
from egret_sim.fast import FastModel, Phase, PhaseRecord
from egret_sim.golden import GoldenAccelerator

SEED = 5

TARGETS = [SMALL, *(PRESETS[name] for name in ("xs-ice40", "s", "m-ddr3"))] if IS_FULL else [SMALL]
GARBAGE_WORDS = 1_000_000 if IS_FULL else 60_000
"""Bus words of garbage in each of two lists."""

TIMEOUT = 5_000
"""Cycles without any transfer that are a lock-up; microcode takes 1,034 to load."""
ERROR, POSITION, MATRICES, CONTROL = (
    register_named(name).offset for name in ("ERROR", "POSITION", "MATRICES", "CONTROL")
)
RESET = next(f for f in register_named("CONTROL").fields if f.name == "reset").mask


@lru_cache
def model(params: AcceleratorParams) -> FastModel:
    kept = KEPT / top_name(params) / f"{top_name(params)}.v"
    return FastModel(params, kept.read_text(encoding="utf-8") if kept.exists() else None)


@dataclass(frozen=True)
class Image:
    """A small image and the activations of its matrix, column 0 first."""

    params: AcceleratorParams
    tables: list[bytes]
    matrix: bytes
    columns: np.ndarray
    results: list[list[int]] = field(default_factory=list)

    @property
    def packets(self) -> list[bytes]:
        return [*self.tables, self.matrix]

    @property
    def activations(self) -> bytes:
        return self.params.pad_activations(self.columns[::-1].tobytes())


@lru_cache
def image(params: AcceleratorParams) -> Image:
    rng = np.random.default_rng(SEED)
    code = Code(golomb(1, params))
    top = 2 ** (params.weight_bits - 1)
    tables = [
        code_packet(params, code),
        map_packet(params, 2, [0, 3, -2, top - 1, -top]),
        bias_packet(params, 5, rng.integers(-1000, 1000, 6).tolist()),
    ]
    matrix = coded_matrix(
        params, rng.integers(-1, 5, (6, 8)), code, map_base=2, map_entries=5, has_bias=1,
        bias_base=5, emit_activations=1, multiplier=9, shift=9,
    )  # fmt: skip
    columns = rng.integers(-128, 128, (8, params.batch)).astype(np.int8)
    made = Image(params, tables, matrix, columns)
    golden = GoldenAccelerator(params)
    outcomes = [golden.run_packet(packet) for packet in tables]
    outcomes.append(golden.run_packet(matrix, columns[::-1]))
    assert all(outcome.error is ErrorKind.NONE for outcome in outcomes)
    return replace(made, results=[s.ravel().tolist() for s in outcomes[-1].streams])


@dataclass(frozen=True)
class Fault:
    """Packets that are wrong, and what a golden model says of them."""

    what: str
    packets: list[bytes]
    kind: ErrorKind
    position: int
    results: list[list[int]]
    takes: int
    """Packets of activations that it is given."""


def asks_for_activations(packet: bytes) -> bool:
    """Return whether a packet is read as a matrix that waits for activations."""
    return len(packet) > 8 and packet[3] == PacketKind.MATRIX and bool(packet[8] & 1)


def make_fault(what: str, whole: Image, packets: list[bytes]) -> Fault:
    golden = GoldenAccelerator(whole.params)
    kind, position, takes = ErrorKind.NONE, 0, 0
    results: list[list[int]] = []
    for packet in packets:
        asks = kind is ErrorKind.NONE and asks_for_activations(packet)
        takes += asks
        outcome = golden.run_packet(packet, whole.columns[::-1] if asks else None)
        results += [stream.ravel().tolist() for stream in outcome.streams]
        if kind is ErrorKind.NONE:
            kind, position = outcome.error, outcome.position
    return Fault(what, packets, kind, position, results, takes)


def phases_of(fault: Fault, whole: Image) -> list[Phase]:
    """Return the fault, and the good image behind it."""
    expected = len(fault.results) + (fault.kind is not ErrorKind.NONE)
    return [
        Phase(
            fault.packets,
            [whole.activations] * fault.takes,
            results=expected,
            may_fail=True,
            writes={CONTROL: RESET},
            reads=[ERROR, POSITION],
        ),
        good_phase(whole),
    ]


def good_phase(whole: Image) -> Phase:
    return Phase(
        whole.packets,
        [whole.activations],
        results=len(whole.results),
        matrices=1,
        writes={CONTROL: RESET},
        reads=[ERROR, POSITION, MATRICES],
    )


def check_good(what: str, whole: Image, record: PhaseRecord) -> None:
    where = f"good image after {what}"
    assert record.is_complete, f"{where}: locked up"
    assert not any(packet.is_error for packet in record.packets), where
    assert [packet.values.tolist() for packet in record.packets] == whole.results, where
    assert record.registers == {ERROR: 0, POSITION: 0, MATRICES: 1}, where


def check_faults(name: str, whole: Image, faults: list[Fault]) -> None:
    """Play all faults in one run of the simulator, and compare."""
    phases = [phase for fault in faults for phase in phases_of(fault, whole)]
    records = model(whole.params).run(phases, timeout=TIMEOUT)
    for fault, bad, good in zip(faults, records[::2], records[1::2], strict=False):
        what = f"{whole.params.name}, {name}: {fault.what}"
        assert bad.is_complete, f"{what}: locked up"
        found = [packet.values.tolist() for packet in bad.packets if not packet.is_error]
        assert found == fault.results, what
        errors = [packet.values.tolist() for packet in bad.packets if packet.is_error]
        assert errors == ([[fault.kind]] if fault.kind is not ErrorKind.NONE else []), what
        assert bad.registers == {ERROR: fault.kind, POSITION: fault.position}, what
        check_good(what, whole, good)
    assert len(records) == len(phases), f"{whole.params.name}: locked up at {faults[-1].what}"
    kinds = {kind.name: sum(fault.kind is kind for fault in faults) for kind in ErrorKind}
    report(name, whole.params, len(faults), ", ".join(f"{n} {k}" for k, n in kinds.items() if n))


def report(name: str, params: AcceleratorParams, count: int, found: str) -> None:
    print(f"faults: {params.name}: {name}: {count} faults ({found})")


def words_of(packet: bytes, params: AcceleratorParams) -> list[bytes]:
    size = params.bus_bits // 8
    return [packet[at : at + size] for at in range(0, len(packet), size)]


def damaged(whole: Image, number: int, packet: bytes) -> list[bytes]:
    """Return the image's packets up to this one, which is replaced."""
    return [*whole.packets[:number], packet]


def bit_flips(whole: Image) -> Iterator[Fault]:
    """Every bit of every packet; every third one where the lists are cut short."""
    for number, packet in enumerate(whole.packets):
        for bit in range(0, 8 * len(packet), 1 if IS_FULL else 3):
            data = bytearray(packet)
            data[bit // 8] ^= 1 << bit % 8
            yield make_fault(
                f"packet {number}, bit {bit}", whole, damaged(whole, number, bytes(data))
            )


def truncations(whole: Image) -> Iterator[Fault]:
    """Every packet ended after every one of its words but the last, and each word left out."""
    for number, packet in enumerate(whole.packets):
        words = words_of(packet, whole.params)
        for place in range(len(words)):
            shorter = {
                "ends after": words[: place + 1],
                "lacks": words[:place] + words[place + 1 :],
            }
            for what, left in shorter.items():
                if left and left != words:
                    data = damaged(whole, number, b"".join(left))
                    yield make_fault(f"packet {number} {what} word {place}", whole, data)


def swaps_and_repeats(whole: Image) -> Iterator[Fault]:
    """Any two words of a packet swapped, every word repeated, and any two packets swapped."""
    for number, packet in enumerate(whole.packets):
        words = words_of(packet, whole.params)
        for first, second in combinations(range(len(words)), 2):
            if IS_FULL or second - first in (1, whole.params.slots):
                other = list(words)
                other[first], other[second] = other[second], other[first]
                data = damaged(whole, number, b"".join(other))
                yield make_fault(f"packet {number}, words {first} and {second}", whole, data)
        for place in range(len(words)):
            data = damaged(whole, number, b"".join([*words[: place + 1], *words[place:]]))
            yield make_fault(f"packet {number}, word {place} twice", whole, data)
    for number in range(len(whole.packets)):
        # Without its code a matrix is refused; without its map or biases it would run on others.
        if number != 0:
            packets = [whole.packets[number], *whole.packets]
            if number < len(whole.tables):
                yield make_fault(f"packet {number} first, and again", whole, packets)
    yield make_fault("the matrix first", whole, [whole.matrix, *whole.tables])


LISTS = {"bit flips": bit_flips, "truncation": truncations, "swaps, repeats": swaps_and_repeats}


@pytest.mark.parametrize("params", TARGETS, ids=lambda params: params.name)
@pytest.mark.parametrize("name", LISTS)
def test_every_fault_of_a_list(name: str, params: AcceleratorParams) -> None:
    whole = image(params)
    faults = list(LISTS[name](whole))
    # Nothing passes silently but what leaves the image as it was, or loads a table twice.
    harmless = {
        fault.what
        for fault in faults
        if fault.kind is ErrorKind.NONE and fault.packets[-1] not in whole.packets
    }
    assert not harmless
    check_faults(name, whole, faults)


@pytest.mark.parametrize("params", TARGETS, ids=lambda params: params.name)
def test_reset_in_every_cycle(params: AcceleratorParams) -> None:
    """The port `aresetn` in every cycle of the image's run; then the image is whole."""
    whole = image(params)
    run = replace(good_phase(whole), writes={})
    (record,) = model(params).run([run], timeout=TIMEOUT)
    check_good("nothing", whole, record)
    # Microcode is a thousand cycles of the same.
    step = 1 if IS_FULL or params.parser == "logic" else 17
    cycles = range(1, record.cycles + 1, step)
    phases = [phase for cycle in cycles for phase in (replace(run, limit=cycle), run)]
    records = model(params).run(phases, timeout=TIMEOUT)
    whole_runs = 0
    for cycle, cut, good in zip(cycles, records[::2], records[1::2], strict=False):
        what = f"a reset in cycle {cycle}"
        assert cut.is_complete, what
        assert cut.cycles == cycle, what
        # What came before the reset is right.
        found = [packet.values.tolist() for packet in cut.packets]
        assert not any(packet.is_error for packet in cut.packets), what
        for values, expected in zip(found, whole.results, strict=False):
            assert values == expected[: len(values)], what
        whole_runs += found == whole.results
        check_good(what, whole, good)
    assert len(records) == len(phases)
    assert 0 < whole_runs < len(cycles)
    report("reset in every cycle", params, len(cycles), f"{record.cycles} cycles")


def garbage_word(params: AcceleratorParams, rng: np.random.Generator) -> bytes:
    """Return a word, now and then one that begins like a packet."""
    word = rng.bytes(params.bus_bits // 8)
    if rng.random() < 0.5:
        kind = int(rng.integers(1, 5))
        word = b"\x45\x47\x02" + bytes([kind]) + word[4:]
    return word


@pytest.mark.parametrize("params", TARGETS, ids=lambda params: params.name)
def test_garbage_cleared_again_and_again(params: AcceleratorParams) -> None:
    """Packets of noise, half of them with a header's first word; each error is cleared."""
    whole = image(params)
    rng = np.random.default_rng(SEED)
    faults: list[Fault] = []
    words = 0
    while words < GARBAGE_WORDS:
        packets = []
        for _ in range(int(rng.integers(1, 4))):
            length = int(rng.choice([1, 2, 3, 9, int(rng.integers(1, 2000))]))
            noise = rng.bytes(length * params.bus_bits // 8)
            begin = garbage_word(params, rng)
            packets.append((begin + noise)[: len(noise)])
            words += length
        # It stays in the error state from the first packet on, or asks for activations.
        fault = make_fault(f"{len(faults)}", whole, [*whole.tables[:1], *packets])
        assert fault.kind is not ErrorKind.NONE
        faults.append(fault)
    check_faults("garbage", whole, faults)
    print(f"faults: {params.name}: {words} words of garbage, cleared {len(faults)} times")


@pytest.mark.parametrize("params", TARGETS, ids=lambda params: params.name)
def test_garbage_without_end(params: AcceleratorParams) -> None:
    """A flood of noise on both inputs: the first error stays, every word is taken."""
    whole = image(params)
    rng = np.random.default_rng(SEED)
    size = params.bus_bits // 8
    lengths = rng.integers(1, 3000, GARBAGE_WORDS // 1500)
    packets = [rng.bytes(int(length) * size) for length in lengths]
    columns = [params.pad_activations(rng.bytes(params.batch * int(n))) for n in lengths // 8 + 1]
    # A header that is right, so that the matrix is under way when the noise comes.
    packets[0] = whole.matrix[: 24 + size] + packets[0]
    first = make_fault("the first", whole, [*whole.tables, packets[0]])
    assert first.kind is ErrorKind.OVERRUN or first.kind is ErrorKind.TRUNCATED
    flood = Phase(
        [*whole.tables, *packets],
        [whole.activations, *columns],
        results=1,
        may_fail=True,
        reads=[ERROR, POSITION],
    )
    bad, good = model(params).run([flood, good_phase(whole)], timeout=TIMEOUT)
    assert bad.is_complete, "locked up"
    assert [packet.values.tolist() for packet in bad.packets] == [[first.kind]]
    assert bad.registers == {ERROR: first.kind, POSITION: first.position}
    check_good("a flood", whole, good)
    # One word a cycle once the error is there.
    words = sum(len(packet) for packet in flood.weights) // size
    assert bad.cycles < 1.01 * words + TIMEOUT
    report("garbage without end", params, len(lengths), f"{words} words in {bad.cycles} cycles")
