"""The AXI4-Lite slave alone: the register map through pauses on every channel."""

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import pytest
from tests.run_options import seeded

from egret.params import PRESETS, AcceleratorParams
from egret_hw.axi_lite import AxiLiteSlave
from egret_hw.registers import REGISTERS, Field, Kind, Register
from egret_sim.bank import bank_verilog
from egret_sim.benches.accelerator import PAUSES
from egret_sim.benches.axi_lite import CHANNELS, Cycle, Run, Write
from egret_sim.runner import run_bench

PARAMS = PRESETS["m-ddr3"]
OKAY, SLVERR = 0, 2
LATENCY = 3


def field(name: str, lsb: int, width: int, kind: Kind) -> Field:
    return Field(name, lsb, width, kind, "")


# Every kind in one word, a field across a byte's end, blocks far apart, the last address.
MIXED = (
    Register(
        "ALL",
        0x000,
        "",
        (
            field("held", 3, 10, Kind.HELD),
            field("live", 14, 3, Kind.LIVE),
            field("pulse", 20, 2, Kind.PULSE),
            Field("five", 28, 4, Kind.CONSTANT, "", lambda params: 5),
        ),
    ),
    Register("LONE", 0x104, "", (field("value", 0, 32, Kind.HELD),)),
    Register("LAST", 0xFFC, "", (field("value", 31, 1, Kind.LIVE),)),
)
TABLES = {"product": REGISTERS, "mixed": MIXED}


def fields(registers: tuple[Register, ...], kind: Kind) -> Iterator[tuple[Register, Field, int]]:
    """Yield the fields of a kind, with their place in the slave's port."""
    place = 0
    for register in registers:
        for each in register.fields:
            if each.kind is kind:
                yield register, each, place
                place += each.width


class Model:
    """What the specification says that the registers do."""

    def __init__(self, registers: tuple[Register, ...], params: AcceleratorParams) -> None:
        self.registers = registers
        self.params = params
        self.held = 0

    def port(self, kind: Kind, register: Register, each: Field) -> int:
        return next(
            place
            for other, found, place in fields(self.registers, kind)
            if (other, found) == (register, each)
        )

    def read(self, address: int, live: int) -> tuple[int, int]:
        for register in self.registers:
            if register.offset == address & ~3:
                word = 0
                for each in register.fields:
                    ones = 2**each.width - 1
                    if each.value is not None:
                        value = each.value(self.params)
                    elif each.kind is Kind.PULSE:
                        value = 0
                    else:
                        source = live if each.kind is Kind.LIVE else self.held
                        value = source >> self.port(each.kind, register, each) & ones
                    word |= value << each.lsb
                return word, OKAY
        return 0, SLVERR

    def write(self, write: Write) -> tuple[int, int]:
        """Write; return the response, and the pulses."""
        response, pulses = SLVERR, 0
        for register in self.registers:
            if register.offset != write.address & ~3:
                continue
            for each in register.fields:
                if each.kind not in (Kind.HELD, Kind.PULSE):
                    continue
                response = OKAY
                place = self.port(each.kind, register, each)
                for bit in range(each.width):
                    if not write.strobes >> (each.lsb + bit) // 8 & 1:
                        continue
                    one = write.word >> (each.lsb + bit) & 1
                    if each.kind is Kind.PULSE:
                        pulses |= one << place + bit
                    else:
                        self.held = self.held & ~(1 << place + bit) | one << place + bit
        return response, pulses


def random_address(rng: random.Random, registers: tuple[Register, ...]) -> int:
    """A register's address mostly, else any, and with any low bits."""
    known = rng.choice(registers).offset
    # A single wrong bit shows a decoder that looks at too few.
    near = known ^ 1 << rng.randrange(2, 12)
    return rng.choice((known, known, known, near, rng.randrange(0x1000))) & ~3 | rng.randrange(4)


def make_runs(name: str) -> list[Run]:
    registers = TABLES[name]
    rng = seeded(name)
    width = sum(each.width for _, each, _ in fields(registers, Kind.LIVE))
    constant = [register.offset for register in registers if not register.writable]
    runs = []
    for number in range(60):
        pattern = rng.choice([*PAUSES, None])
        patterns = {name: pattern or rng.choice(list(PAUSES)) for name in CHANNELS}
        writes = [
            Write(random_address(rng, registers), rng.randrange(2**32), rng.randrange(16))
            for _ in range(rng.randrange(12))
        ]
        reads = [random_address(rng, registers) for _ in range(rng.randrange(12))]
        if number % 3 == 0:
            writes = []
        elif number % 3 == 1:
            # Together with writes, only what these do not change.
            reads = [address for address in reads if address & ~3 in constant]
        else:
            reads = []
        if number < 2:
            patterns = dict.fromkeys(CHANNELS, "none")
            reads = [register.offset for register in registers] if number == 0 else []
            writes = [Write(register.offset, 2**32 - 1, 15) for register in registers] * number
        cycles = 60 + 60 * (len(writes) + len(reads))
        runs.append(Run(writes, reads, rng.randrange(2**width), patterns, number, cycles))
    return runs


@lru_cache
def played() -> tuple[dict[str, list[list[Cycle]]], dict[str, list[int]]]:
    members = {name: AxiLiteSlave(PARAMS, table) for name, table in TABLES.items()}
    verilog = bank_verilog(members, "axi_lite_bank")
    job = {name: make_runs(name) for name in TABLES}
    outcome: tuple[dict[str, list[list[Cycle]]], dict[str, list[int]]]
    outcome = run_bench(verilog, "axi_lite_bank", "egret_sim.benches.axi_lite", job)
    return outcome


def taken(run: list[Cycle], channel: str) -> list[int]:
    """Cycles in which a channel's transfers took place."""
    return [at for at, cycle in enumerate(run) if cycle.valid[channel] and cycle.ready[channel]]


@pytest.mark.parametrize("name", TABLES)
def test_reads_and_writes(name: str) -> None:
    model = Model(TABLES[name], PARAMS)
    for number, (run, seen) in enumerate(zip(make_runs(name), played()[0][name], strict=True)):
        where = f"run {number} of {name}"
        responses = [seen[at].payload["b"][0] for at in taken(seen, "b")]
        pulses = [cycle.pulses for cycle in seen if cycle.pulses]
        expected = [model.write(write) for write in run.writes]
        assert responses == [response for response, _ in expected], where
        assert pulses == [pulse for _, pulse in expected if pulse], where
        assert seen[-1].held == model.held, where
        words = [seen[at].payload["r"] for at in taken(seen, "r")]
        assert words == [model.read(address, run.live) for address in run.reads], where


@pytest.mark.parametrize("name", TABLES)
def test_handshakes(name: str) -> None:
    for number, seen in enumerate(played()[0][name]):
        for at, (cycle, following) in enumerate(pairwise(seen)):
            where = f"run {number} of {name}, cycle {at}"
            for channel in ("b", "r"):
                if cycle.valid[channel] and not cycle.ready[channel]:
                    assert following.valid[channel], where
                    assert following.payload[channel] == cycle.payload[channel], where
            for channel in ("aw", "w", "ar"):
                if cycle.ready[channel] and not cycle.valid[channel]:
                    assert following.ready[channel], where


@pytest.mark.parametrize("name", TABLES)
def test_latency(name: str) -> None:
    for number, seen in enumerate(played()[0][name]):
        where = f"run {number} of {name}"
        for channel, starts in (
            ("b", list(map(max, taken(seen, "aw"), taken(seen, "w")))),
            ("r", taken(seen, "ar")),
        ):
            ends = taken(seen, channel)
            assert len(ends) == len(starts), where
            for before, start, end in zip([-1, *ends], starts, ends, strict=False):
                assert before < start, where
                shown = [at for at in range(start, end + 1) if seen[at].valid[channel]]
                assert shown[0] == start + LATENCY, where
    unhindered = played()[0][name][0]
    gaps = {after - before for before, after in pairwise(taken(unhindered, "r"))}
    assert gaps == {LATENCY + 1}


def test_nothing_is_ready_or_valid_in_a_reset() -> None:
    # Before: both responses stand, the next transfers wait. After: all is ready.
    for name, seen in played()[1].items():
        assert seen == [0b00101, 0, 0, 0b11010], name
