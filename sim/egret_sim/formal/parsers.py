"""Proofs that the unrolled parsers mark what a serial machine marks."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Const, Mux, Signal, Value
from amaranth.lib import wiring

from egret.params import CODE_NAMES, MAX_ORDER
from egret_hw.parser import UnrolledParser
from egret_sim.formal.bench import Bench
from egret_sim.formal.serial import SerialCode, SerialState, serial_start, serial_step
from egret_sim.formal.solver import Proof

__all__ = ["PARSER_PROOFS", "parser_bench"]

_CLASSES = 3
"""Classes of a table in the proofs with tables: the entries are written one a cycle."""
_SETTLE = 3
"""Cycles from a code to the first bits that are read by it."""


def _order_code(bench: Bench, limit: int, runs: bool) -> SerialCode:
    """Return an exp-Golomb code of any orders, in both banks."""
    dut, m = bench.dut, bench.m
    orders = (bench.constant("level_order", 4), bench.constant("run_order", 4))
    run_form = bench.constant("run_form") if runs else Const(0, 1)
    dense = bench.constant("dense")
    bench.assume(~(run_form & dense))
    for order in orders:
        bench.assume(order <= min(MAX_ORDER, limit))
    last = tuple((limit - order)[:4] for order in orders)
    for code in dut.codes:
        m.d.comb += [
            code.run_form.eq(run_form),
            code.dense.eq(dense),
            code.level_golomb.eq(1),
            code.run_golomb.eq(run_form),
            code.level_last.eq(last[0]),
            code.run_last.eq(last[1]),
            code.level_order.eq(orders[0]),
            code.run_order.eq(orders[1]),
        ]

    def size(run: Value, number: Value) -> Value:
        return (Mux(run, orders[1], orders[0]) + number)[:4]

    golomb = Const(1, 1)
    return SerialCode(run_form, dense, (golomb, golomb), (last[0], last[1]), size)


def _table_code(bench: Bench, limit: int) -> tuple[SerialCode, Value]:
    """Return a code with any tables, and when they have been written."""
    dut, m = bench.dut, bench.m
    run_form, dense = bench.constant("run_form"), bench.constant("dense")
    bench.assume(~(run_form & dense))
    golomb = (bench.constant("level_golomb"), bench.constant("run_golomb"))
    last = (bench.constant("level_last", 2), bench.constant("run_last", 2))
    sizes = [
        [bench.constant(f"size_{table}_{number}", 4) for number in range(_CLASSES)]
        for table in ("level", "run")
    ]
    for table in range(2):
        for size in sizes[table]:
            bench.assume(size <= limit)
        bench.assume(last[table] < _CLASSES)
        bench.assume(golomb[table] | last[table].any() | sizes[table][0].any())
    for code in dut.codes:
        m.d.comb += [
            code.run_form.eq(run_form),
            code.dense.eq(dense),
            code.level_golomb.eq(golomb[0]),
            code.run_golomb.eq(golomb[1]),
            code.level_last.eq(last[0]),
            code.run_last.eq(last[1]),
        ]
    # An entry a cycle behind the settings, then the cycles that the last one takes to arrive.
    entries = Array(size for table in sizes for size in table)
    written = bench.register(range(len(entries) + _SETTLE + 1), "written")
    done = written == len(entries) + _SETTLE
    m.d.sync += written.eq(written + ~done)
    m.d.comb += [
        dut.code_write.enable.eq(written < len(entries)),
        dut.code_write.run.eq(written >= _CLASSES),
        dut.code_write.number.eq(Mux(written < _CLASSES, written, written - _CLASSES)),
        dut.code_write.suffix_bits.eq(entries[written]),
    ]

    def size_of(run: Value, number: Value) -> Value:
        return entries[number + Mux(run, _CLASSES, 0)]

    return SerialCode(run_form, dense, golomb, last, size_of), done


def parser_bench(
    dut: wiring.Component, slots: int, limit: int, codes: tuple[str, ...], pauses: bool
) -> Bench:
    """Return the proof of a parser, or of what should be one.

    Parameters
    ----------
    dut : UnrolledParser
        The parser, of one bank where it has tables.
    slots : int
        Its C.
    limit : int
        Its J.
    codes : tuple of str
        Its codes.
    pauses : bool
        Let `enable` and `i_valid` pause. Without, marks must come after the latency that
        is stated.
    """
    bench = Bench(dut)
    m = bench.m
    width = len(dut.i_bits)
    tables = CODE_NAMES[2] in codes
    begun: Value = Const(1, 1)
    if tables:
        code, begun = _table_code(bench, limit)
    else:
        code = _order_code(bench, limit, CODE_NAMES[1] in codes)
        # The machine for several codes keeps what it needs of them in registers.
        if CODE_NAMES[1] in codes:
            settled = bench.register(range(_SETTLE + 1), "settled")
            begun = settled == _SETTLE
            m.d.sync += settled.eq(settled + ~begun)
    if pauses:
        bench.drive(dut.enable, "enable")
        bench.drive(dut.i_valid, "i_valid")
    else:
        m.d.comb += [dut.enable.eq(1), dut.i_valid.eq(begun)]
    bench.assume(begun | ~dut.i_valid)
    for name in ("i_first", "i_last", "i_parity", "i_bank", "i_bits"):
        bench.drive(getattr(dut, name), name)
    takes = dut.enable & dut.i_valid

    # Slots take turns; a matrix begins and ends in all of them in one round.
    turn = bench.register(range(slots), "turn_expected")
    ever = bench.register(1, "ever")
    first, final = bench.register(1, "round_first"), bench.register(1, "round_last")
    with m.If(takes):
        m.d.sync += [turn.eq(turn + 1), ever.eq(1), first.eq(dut.i_first), final.eq(dut.i_last)]
    bench.assume(~takes | (turn != 0) | (ever & ~final) | dut.i_first)
    if slots > 1:
        bench.check(dut.turn == turn)
        same = (dut.i_first == first) & (dut.i_last == final)
        bench.assume(~takes | (turn == 0) | same)

    states = Array(Signal(SerialState, name=f"serial{slot}") for slot in range(slots))
    held = Signal(SerialState, name="held")
    m.d.comb += held.eq(states[turn])
    state = Signal(SerialState, name="before")
    m.d.comb += state.eq(Mux(dut.i_first, serial_start(m, code, "start"), held))
    marks = []
    for position in range(width):
        bit = dut.i_bits[width - 1 - position]
        state, ends, event = serial_step(m, code, state, bit, f"bit{position}")
        marks.append((bit, ends, event))
        if not pauses and not tables:
            # Zeros behind a prefix that is too long show nothing for as long as one likes, so that
            # no induction over the ports can tell where a parser stands in them.
            open_prefix = ~code.of(state.run, code.golomb)
            legal = open_prefix | (state.zeros <= code.of(state.run, code.last))
            bench.assume(~takes | (~state.over & legal))
            bench.check(~takes | (state.left <= limit))
    with m.If(takes):
        m.d.sync += Value.cast(states[turn]).eq(state)
    expected = Cat(
        dut.i_first,
        dut.i_last,
        dut.i_parity,
        turn,
        *(Cat(*column) for column in zip(*marks, strict=True)),
    )
    shown = Cat(
        dut.o_first,
        dut.o_last,
        dut.o_parity,
        dut.o_slot[: len(turn)],
        dut.o_bits,
        dut.o_end,
        dut.o_event,
    )
    latency = slots + 2
    if not pauses:
        if not tables:
            for slot in range(slots):
                # Strengthens the induction: of legal codewords none makes a parser stop.
                bench.check(~bench.tap(f"stage{slot}_state.bad"))
        # Stage after stage; one more bit tells that there is something.
        line = [Cat(takes, expected)]
        line += [bench.register(len(line[0]), f"line{index}") for index in range(latency)]
        for before, after in pairwise(line):
            m.d.sync += after.eq(before)
        bench.check(dut.o_valid == line[-1][0])
        bench.check(~dut.o_valid | (shown == line[-1][1:]))
        return bench
    # What has entered and not left, the oldest first; shown at most once.
    inside = [bench.register(len(expected), f"inside{index}") for index in range(latency + 1)]
    count = bench.register(range(len(inside) + 1), "count")
    leaves = dut.o_valid & dut.enable
    bench.check(~leaves | count.any())
    bench.check(count < len(inside))
    bench.check(~leaves | (shown == inside[0]))
    m.d.sync += count.eq(count + takes - leaves)
    for index, entry in enumerate(inside):
        behind = inside[index + 1] if index + 1 < len(inside) else entry
        with m.If(takes & (count - leaves == index)):
            m.d.sync += entry.eq(expected)
        with m.Elif(leaves):
            m.d.sync += entry.eq(behind)
    return bench


def _proof(
    cut: int, limit: int, codes: tuple[str, ...], pauses: bool, method: str, depth: int
) -> Proof:
    banks = 1 if CODE_NAMES[2] in codes else 2
    what = "pauses, prefix errors" if pauses else "full speed"
    return Proof(
        f"UnrolledParser W=4, cut {cut}, J={limit}, {'+'.join(codes)}, {what}",
        "equals the serial machine",
        method,
        depth,
        lambda: parser_bench(
            UnrolledParser(4, cut, limit, codes, banks), 4 // cut, limit, codes, pauses
        ),
        "sat",
    )


PARSER_PROOFS = (
    _proof(4, 4, CODE_NAMES[:1], False, "induction", 7),
    _proof(2, 4, CODE_NAMES[:1], False, "induction", 11),
    _proof(4, 4, CODE_NAMES[:2], False, "bound", 12),
    _proof(4, 4, CODE_NAMES[:1], True, "bound", 8),
    _proof(2, 4, CODE_NAMES[:1], True, "bound", 8),
    _proof(4, 4, CODE_NAMES, False, "bound", 14),
)
"""Proofs of this module."""
