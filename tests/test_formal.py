"""The proofs can fail: broken components are caught, and `make formal` says so."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.hdl import Module, Signal

from egret.image_format import ErrorKind
from egret.params import CODE_NAMES, AcceleratorParams
from egret_hw.elastic import ElasticBuffer
from egret_hw.fanout import Fanout
from egret_hw.gearbox import Gearbox
from egret_hw.packet_reader import PacketReader
from egret_hw.parser import UnrolledParser
from egret_hw.queue import Queue
from egret_hw.readout import ReadoutNode
from egret_sim.formal import __main__ as command
from egret_sim.formal.bench import Bench
from egret_sim.formal.parsers import parser_bench
from egret_sim.formal.reader import reader_bench
from egret_sim.formal.solver import Proof, run_proof
from egret_sim.formal.streams import (
    FannedQueues,
    elastic_bench,
    fanout_bench,
    gearbox_bench,
    queue_bench,
    readout_bench,
)

PARAMS = AcceleratorParams(
    name="formal",
    lanes=4,
    parser_bits=4,
    parser_cut=2,
    bus_bits=32,
    activation_depth=16,
    row_depth=16,
)
PAIR = replace(PARAMS, lanes=2, parser_bits=1, parser_cut=1, input_depth=4)
CODES = CODE_NAMES[:1]


class ValidDrops(Queue):
    """Withdraws what it offers when more comes."""

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        with m.If(self.i.valid & ~self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m


class Overflows(ElasticBuffer):
    """Takes a third entry."""

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        m.d.comb += self.i.ready.eq(1)
        return m


class Stuck(Queue):
    """Takes nothing any more after a certain payload."""

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        with m.If(self.o.payload == 5):
            m.d.comb += self.i.ready.eq(0)
        return m


class AsksLate(Fanout):
    """Sends what the queues had room for a cycle earlier than it should ask."""

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        before, late, sent = Signal(), Signal(), Signal()
        m.d.sync += [
            before.eq(self.roomy.all()),
            late.eq(before),
            sent.eq(late & self.i.valid),
        ]
        m.d.comb += [self.i.ready.eq(late), self.valid.eq(sent)]
        return m


class MarksTooOften(Gearbox):
    """Marks every beat of a last word."""

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        with m.If(self.o.payload.parity & self.o.payload.first):
            m.d.comb += self.o.payload.last.eq(1)
        return m


class Starves(ReadoutNode):
    """Lets the lane wait for ever."""

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        with m.If(self.behind.valid):
            m.d.comb += self.lane.ready.eq(0)
        return m


class Forgets(PacketReader):
    """Forgets its error when a word comes."""

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        with m.If(self.halted & self.i.valid):
            m.d.sync += self.error.eq(ErrorKind.NONE)
        return m


class MissesEnd(UnrolledParser):
    """Misses the end of a codeword at a matrix's end."""

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        with m.If(self.enable & self.o_valid & self.o_last):
            m.d.sync += self.o_end.eq(0)
        return m


MUTANTS: dict[str, Callable[[], Bench]] = {
    "valid drops": lambda: queue_bench(ValidDrops(4, 4), 4, 0),
    "overflows": lambda: elastic_bench(Overflows(4)),
    "stuck": lambda: queue_bench(Stuck(4, 4), 4, 0),
    "asks late": lambda: fanout_bench(FannedQueues(PAIR, AsksLate(PAIR))),
    "marks": lambda: gearbox_bench(MarksTooOften(PARAMS)),
    "starves": lambda: readout_bench(Starves(PARAMS, 3), 3),
    "forgets": lambda: reader_bench(Forgets(PARAMS)),
    "misses": lambda: parser_bench(MissesEnd(4, 4, 4, CODES), 1, 4, CODES, True),
}


SAT = {"misses"}


@pytest.mark.parametrize("name", MUTANTS)
def test_broken_component_is_caught(name: str, tmp_path: Path) -> None:
    engine = "sat" if name in SAT else "z3"
    proof = Proof(name, "none", "bound", 12, MUTANTS[name], engine)
    outcome = run_proof(proof, tmp_path)
    assert outcome.status == "FAIL"
    assert list(outcome.folder.rglob("trace.vcd"))


@pytest.mark.parametrize(("method", "status"), [("induction", "UNKNOWN"), ("bound", "PASS")])
def test_what_shows_late_is_not_proved(method: str, status: str, tmp_path: Path) -> None:
    for engine in ("z3", "sat"):
        proof = Proof(engine, "a FIFO", method, 2, lambda: elastic_bench(Overflows(4)), engine)
        assert run_proof(proof, tmp_path).status == status


def test_command_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Proof("good", "a FIFO", "induction", 2, lambda: elastic_bench(ElasticBuffer(4)))
    bad = Proof("bad", "a FIFO", "bound", 6, lambda: elastic_bench(Overflows(4)))
    monkeypatch.setattr(command, "PROOFS", (good, bad))
    assert command.main(["--jobs", "1", "--folder", str(tmp_path), "good"]) == 0
    assert command.main(["--jobs", "1", "--folder", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    table = [line.split() for line in printed.out.splitlines()[-2:]]
    assert [(row[0], row[-1]) for row in table] == [("good", "PASS"), ("bad", "FAIL")]
    assert "bad: FAIL" in printed.err
    assert command.main(["nothing"]) == 1


def test_names_differ() -> None:
    names = [proof.name for proof in command.PROOFS]
    assert len(set(names)) == len(names)
