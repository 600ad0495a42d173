"""Proofs of the packet reader: its streams, its error state, and that it never stands still."""

from amaranth.hdl import Mux
from amaranth.lib import wiring

from egret.image_format import ErrorKind, PacketKind
from egret.params import AcceleratorParams
from egret_hw.packet_reader import PacketReader
from egret_sim.formal.bench import Bench
from egret_sim.formal.solver import Proof

__all__ = ["READER_PROOFS", "reader_bench"]

_CYCLES = 4
"""In so many cycles it takes a word, while all that it may wait for is there."""
_STATES = (
    "Header",
    "Check",
    "Settle",
    "Abort",
    "Wipe",
    "Checked",
    "Body",
    "Payload",
    "CRC",
    "Report",
    "Halt",
    "Discard",
)
"""In the order in which they are numbered: as they are first named."""


def reader_bench(dut: wiring.Component) -> Bench:
    """Return the proof of a `PacketReader`, or of what should be one."""
    bench = Bench(dut)
    m = bench.m
    bench.offer(dut.i, "i")
    outputs = {"section": dut.section, "words": dut.words, "payload": dut.payload}
    for name, port in outputs.items():
        bench.accept(port, name)
    permissions = [
        bench.drive(getattr(dut, name), name)
        for name in ("may_allocate", "may_load_code", "may_load_bias", "may_send", "wiped")
    ]
    for name in ("clear", "parity", "banks_loaded", "kept", "in_flight", "sender_busy"):
        bench.drive(getattr(dut, name), name)
    for name in ("late", "late_error", "late_position"):
        bench.drive(getattr(dut, name), name)
    bench.assume(~dut.late | (dut.late_error != ErrorKind.NONE))

    # Streams. The tracker keeps the parity while a matrix is read; payload once allowed stays so.
    waits = dut.payload.valid & ~dut.payload.ready
    kept = dut.may_send & (dut.parity == bench.past(dut.parity))
    bench.assume(~bench.past(waits) | kept)
    leaves = dut.clear | dut.late
    for port in outputs.values():
        bench.check_stable(port, leaves)
    take = dut.i.valid & dut.i.ready
    passes = []
    for port, word in ((dut.words, dut.words.payload), (dut.payload, dut.payload.payload.data)):
        # A word leaves in the cycle in which it is taken, unchanged, for one side only.
        moves = port.valid & port.ready
        passes.append(moves)
        bench.check(~moves | (take & (word == dut.i.payload.data)))
    bench.check(~(passes[0] & passes[1]))
    bench.check(dut.payload_word == passes[1])

    # The error is sticky, and nothing is begun after it.
    failed = dut.error != ErrorKind.NONE
    was = bench.past(failed & ~leaves)
    same = (dut.error == bench.past(dut.error)) & (dut.position == bench.past(dut.position))
    bench.check(~was | same)
    bench.check(~bench.past(dut.halted & ~leaves) | dut.halted)
    bench.check(~(dut.settling | dut.halted | (dut.cancel & ~dut.clear)) | failed)
    bench.check(~failed | dut.settling | dut.halted | dut.cancel)
    silent = ~(dut.allocate | dut.load_code | dut.passed | dut.section.valid)
    silent &= ~(dut.words.valid | dut.payload.valid)
    bench.check(~failed | silent)
    # It is reported once.
    reported = bench.register(1, "reported")
    with m.If(leaves):
        m.d.sync += reported.eq(0)
    with m.Elif(dut.reject):
        m.d.sync += reported.eq(1)
    bench.check(~(reported & dut.reject))
    state = bench.tap("fsm_state", 4)
    bench.check(state < len(_STATES))
    bench.check(~reported | (state == _STATES.index("Halt")))

    # Matrices before the one that is wrong are waited for, no longer.
    allocated = bench.register(1, "allocated")
    with m.If(dut.wipe | dut.passed):
        m.d.sync += allocated.eq(0)
    with m.Elif(dut.allocate):
        m.d.sync += allocated.eq(1)
    bench.check(bench.tap("allocated") == allocated)
    is_matrix = bench.tap("is_matrix")
    for name in ("Checked", "Body", "Payload", "CRC"):
        here = state == _STATES.index(name)
        bench.check(~here | (is_matrix == (dut.matrix.kind == PacketKind.MATRIX)))
        if name != "Checked":
            bench.check(~here | (allocated == is_matrix))
    for name in ("Header", "Check", "Checked", "Discard"):
        bench.check(~allocated | (state != _STATES.index(name)))
    settled = dut.settling & (dut.in_flight == allocated)
    bench.check(~bench.past(settled & ~leaves) | ~dut.settling)

    # No lock-up: a word is taken while all that it waits for is there.
    there = dut.i.valid & ~leaves & ~dut.settling & ~dut.sender_busy
    for condition in (*permissions, *(port.ready for port in outputs.values())):
        there &= condition
    waited = bench.register(range(_CYCLES + 2), "waited")
    m.d.sync += waited.eq(Mux(there & ~take, waited + 1, 0))
    bench.check(waited < _CYCLES)
    return bench


def _proof(bus_bits: int, method: str, depth: int) -> Proof:
    params = AcceleratorParams(
        name="formal", lanes=1, parser_bits=4, parser_cut=4, bus_bits=bus_bits
    )
    return Proof(
        f"PacketReader, bus of {bus_bits} bits",
        "streams stable until ready, words unchanged, error sticky, no lock-up",
        method,
        depth,
        lambda: reader_bench(PacketReader(params)),
        # Whatever the CRC says: it may be right or wrong at any time.
        script=("cutpoint \\top.dut.crc*",),
    )


READER_PROOFS = (_proof(32, "induction", 5), _proof(64, "induction", 5))
"""Proofs of this module."""
