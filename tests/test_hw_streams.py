"""Elastic buffer, gearbox and fan-out alone, under every pattern of pauses."""

import random
from itertools import pairwise, product

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from tests.run_options import pause_seed

from egret.params import AcceleratorParams
from egret_hw.elastic import ElasticBuffer
from egret_hw.gearbox import Gearbox, beat_layout
from egret_hw.packet_reader import payload_layout
from egret_sim.bank import bank_verilog
from egret_sim.benches.accelerator import PAUSES
from egret_sim.benches.streams import Job, Run, Seen
from egret_sim.formal.streams import FannedQueues
from egret_sim.runner import run_bench

ELASTIC_BITS = {"elastic1": 1, "elastic20": 20}
# Bits of a word; lanes, bits of a lane, and bits between its cuts. With one beat in a word or
# many, and with fewer slots than that, as many, or more.
GEARBOXES = {
    name: AcceleratorParams(
        name=name, bus_bits=bus_bits, lanes=lanes, parser_bits=parser_bits, parser_cut=parser_cut
    )
    for name, (bus_bits, lanes, parser_bits, parser_cut) in {
        "gearbox1": (32, 8, 4, 4),
        "gearbox2": (32, 2, 8, 2),
        "gearbox4": (64, 1, 16, 4),
        "gearbox8": (128, 2, 8, 4),
        "gearbox32": (32, 1, 1, 1),
    }.items()
}
# Lanes at their own pace: one as the sink lets it, the other as it likes.
FANOUTS = {
    f"fanout{depth}": AcceleratorParams(
        name=f"fanout{depth}",
        bus_bits=32,
        lanes=2,
        parser_bits=4,
        parser_cut=4,
        input_depth=depth,
    )
    for depth in (2, 4, 16)
}
OTHER = ("other_valid", "other_ready", "other_payload")
PATTERNS = list(product(PAUSES, PAUSES))
TRANSFERS = 60
CUT_OFF = 7


def make_runs(bits: int, beats: int) -> list[Run]:
    """Every pair of patterns, each after a run that a reset cuts off with payloads inside."""
    runs = []
    for seed, (source, sink) in enumerate(PATTERNS):
        rng = random.Random(pause_seed(seed))
        payloads = [rng.getrandbits(bits) for _ in range(TRANSFERS)]
        runs.append(Run(payloads, "none", "alternating", pause_seed(1000 + seed), CUT_OFF))
        runs.append(Run(payloads, source, sink, pause_seed(2 * seed), TRANSFERS * (3 * beats + 5)))
    return runs


RUNS = {name: make_runs(bits, 1) for name, bits in ELASTIC_BITS.items()} | {
    name: make_runs(payload_layout(params).size, params.beats_per_word)
    for name, params in GEARBOXES.items()
}
RUNS |= {name: make_runs(beat_layout(p.beat_bits).size, 2) for name, p in FANOUTS.items()}


class TwoPaces(wiring.Component):
    """A fan-out to two queues: one is emptied by the sink, the other at bursts of its own."""

    def __init__(self, params: AcceleratorParams) -> None:
        self.dut = FannedQueues(params)
        ports = self.dut.signature.members
        own = len(self.dut.other.payload.as_value())
        outputs = dict(zip(OTHER, (Out(1), Out(1), Out(own)), strict=True))
        super().__init__({"i": ports["i"], "o": ports["o"], **outputs})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = self.dut
        wiring.connect(m, wiring.flipped(self.i), self.dut.i)
        wiring.connect(m, self.dut.o, wiring.flipped(self.o))
        cycle = Signal(7)
        m.d.sync += cycle.eq(cycle + 1)
        # Long pauses, then all of them, then every other cycle.
        m.d.comb += [
            self.dut.other.ready.eq(cycle[6] & (cycle[5] | cycle[0])),
            self.other_valid.eq(self.dut.other.valid),
            self.other_ready.eq(self.dut.other.ready),
            self.other_payload.eq(self.dut.other.payload),
        ]
        return m


@pytest.fixture(scope="module")
def recordings() -> dict[str, list[list[Seen]]]:
    members = {name: ElasticBuffer(bits) for name, bits in ELASTIC_BITS.items()} | {
        name: Gearbox(params) for name, params in GEARBOXES.items()
    }
    members |= {name: TwoPaces(params) for name, params in FANOUTS.items()}
    jobs = {name: Job(RUNS[name], bits, ("level",)) for name, bits in ELASTIC_BITS.items()} | {
        name: Job(RUNS[name], payload_layout(params).size) for name, params in GEARBOXES.items()
    }
    jobs |= {
        name: Job(RUNS[name], beat_layout(params.beat_bits).size, OTHER)
        for name, params in FANOUTS.items()
    }
    return run_bench(bank_verilog(members, "streams"), "streams", "egret_sim.benches.streams", jobs)


def delivered(seen: list[Seen]) -> list[int]:
    return [cycle.o_payload for cycle in seen if cycle.o_valid and cycle.o_ready]


def check_stream(name: str, run: Run, seen: list[Seen], expected: list[int]) -> None:
    where = f"{name}, source {run.source}, sink {run.sink}, seed {run.seed}"
    found = delivered(seen)
    if run.cycles == CUT_OFF:
        assert found, where
        assert found == expected[: len(found)], where
    else:
        assert found == expected, where
        assert not seen[-1].o_valid, where
        assert seen[-1].i_ready, where
    for number, (now, then) in enumerate(pairwise(seen)):
        if now.o_valid and not now.o_ready:
            assert (then.o_valid, then.o_payload) == (1, now.o_payload), f"{where}: cycle {number}"


@pytest.mark.parametrize("name", ELASTIC_BITS)
def test_elastic_buffer(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    for run, seen in zip(RUNS[name], recordings[name], strict=True):
        check_stream(name, run, seen, run.payloads)
        held = 0
        for number, cycle in enumerate(seen):
            where = f"{name}, source {run.source}, sink {run.sink}, seed {run.seed}: {number}"
            # What is held alone decides ready and valid: both come from registers.
            assert cycle.outputs == (held,), where
            assert cycle.i_ready == (held < 2), where
            assert cycle.o_valid == (held > 0), where
            held += cycle.i_valid * cycle.i_ready - cycle.o_valid * cycle.o_ready


@pytest.mark.parametrize("name", GEARBOXES)
def test_gearbox(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    params = GEARBOXES[name]
    beats, beat_bits = params.beats_per_word, params.lanes * params.parser_bits
    for run, seen in zip(RUNS[name], recordings[name], strict=True):
        expected = []
        for payload in run.payloads:
            word = payload_layout(params).from_bits(payload)
            text = f"{word.data:0{params.bus_bits}b}"
            parts = [text[at : at + beat_bits] for at in range(0, params.bus_bits, beat_bits)]
            for beat, part in enumerate(reversed(parts)):
                # The first beat of every slot is one of the first C, its last one of the last C.
                fields = {
                    "bits": int(part, 2),
                    "first": word.first and beat < params.slots,
                    "last": word.last and beats - beat <= params.slots,
                    "parity": word.parity,
                }
                expected.append(beat_layout(beat_bits).const(fields).as_bits())
        check_stream(name, run, seen, expected)


@pytest.mark.parametrize("name", FANOUTS)
def test_fanout(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    """Every beat reaches every lane, whatever pace each keeps."""
    params = FANOUTS[name]
    layout, own = beat_layout(params.beat_bits), beat_layout(params.parser_bits)
    held_up = 0
    for run, seen in zip(RUNS[name], recordings[name], strict=True):
        where = f"{name}, source {run.source}, sink {run.sink}, seed {run.seed}"
        parts: list[list[int]] = [[], []]
        for payload in run.payloads:
            beat = layout.from_bits(payload)
            for lane in range(2):
                bits = beat.bits >> lane * params.parser_bits & ((1 << params.parser_bits) - 1)
                fields = {
                    "bits": bits,
                    "first": beat.first,
                    "last": beat.last,
                    "parity": beat.parity,
                }
                parts[lane].append(own.const(fields).as_bits())
        others = [cycle.outputs[2] for cycle in seen if cycle.outputs[0] and cycle.outputs[1]]
        found = [delivered(seen), others]
        for lane in range(2):
            assert found[lane] == parts[lane][: len(found[lane])], f"{where}, lane {lane}"
            if run.cycles != CUT_OFF:
                assert len(found[lane]) == len(run.payloads), f"{where}, lane {lane}"
        held_up += sum(cycle.i_valid and not cycle.i_ready for cycle in seen)
    assert held_up


@pytest.mark.parametrize("name", [*ELASTIC_BITS, *GEARBOXES])
def test_full_rate(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    """A source that never pauses keeps every cycle after the first full, whatever the sink."""
    beats = 1 if name in ELASTIC_BITS else GEARBOXES[name].beats_per_word
    for run, seen in zip(RUNS[name], recordings[name], strict=True):
        if run.source != "none" or run.cycles == CUT_OFF:
            continue
        used = [cycle.o_valid for cycle in seen if cycle.o_ready][: 1 + TRANSFERS * beats]
        first = 0 if not seen[0].o_ready else 1
        assert all(used[first : first + TRANSFERS * beats]), f"sink {run.sink}"
        if run.sink == "none":
            assert (
                sum(cycle.o_valid for cycle in seen[1 : 1 + TRANSFERS * beats]) == TRANSFERS * beats
            )
