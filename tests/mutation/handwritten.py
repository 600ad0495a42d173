"""Mistakes of the kinds that designers make, each as a change of one place of the source."""

from tests.mutation.mutants import Mistake

__all__ = ["LOGIC_MISTAKES", "MICROCODE_MISTAKES"]

MICROCODE_MISTAKES = (
    Mistake(
        "width short by one: half of the largest step has no bit",
        "requantizer.py",
        "half = Signal(_PRODUCT_BITS - 1)",
        "half = Signal(_PRODUCT_BITS - 2)",
    ),
    Mistake(
        "wrong signedness: the multiplicand of the requantiser",
        "requantizer.py",
        "multiplicand = Signal(signed(RESULT_BITS))",
        "multiplicand = Signal(RESULT_BITS)",
    ),
    Mistake(
        "saturation off by one",
        "requantizer.py",
        "Mux(value >= limit, limit - 1, value)",
        "Mux(value > limit, limit - 1, value)",
    ),
    Mistake(
        "rounding: halves go down",
        "requantizer.py",
        "half.eq((1 << shift) >> 1)",
        "half.eq(((1 << shift) - 1) >> 1)",
    ),
    Mistake(
        "dropped carry: the last of all rows is compared without it",
        "finisher.py",
        "last_row = row + 1 == job.rows",
        "last_row = (row + 1)[:row_shape] == job.rows",
    ),
    Mistake(
        "stale register: the second walk goes on where the biases of the first ended",
        "finisher.py",
        "bias_address.eq(job.bias_base),\n                        second.eq(1),",
        "second.eq(1),",
    ),
    Mistake(
        "swapped handshake: the next word comes when a beat is offered, not when it is taken",
        "gearbox.py",
        "((left == 1) & self.o.ready)",
        "((left == 1) & self.o.valid)",
    ),
    Mistake(
        "swapped multiplexer: wide starts take the column for the row",
        "dealer.py",
        "Mux(held.wide, wide[ENTRY_BITS:], narrow >> column_bits)",
        "Mux(held.wide, wide[:ENTRY_BITS], narrow >> column_bits)",
    ),
    Mistake(
        "off by one: a lane says that it has room for another beat than it has",
        "queue.py",
        "write.en & ~move & (sequence[:bits] == taken)",
        "write.en & ~move & (sequence[1:][:bits] == taken)",
    ),
    Mistake(
        "swapped banks: starts go where the other matrix's rows are",
        "row_store.py",
        "starts = self.start.enable & (self.start.parity == parity)",
        "starts = self.start.enable & (self.start.parity != parity)",
    ),
    Mistake(
        "missed cancel: sums of the lanes reach rows that have been forgotten",
        "accelerator.py",
        "nodes[0].o.valid & ~lanes_cancel",
        "nodes[0].o.valid",
    ),
    Mistake(
        "missed reset: rows beyond the matrix are remembered after it",
        "row_store.py",
        "m.d.sync += [ended[parity].eq(0), self.beyond[parity].eq(0)]",
        "m.d.sync += ended[parity].eq(0)",
    ),
    Mistake(
        "hazard: a sum is read while the one two cycles before it is added",
        "row_store.py",
        "second.after_second.eq(is_same(done))",
        "second.after_second.eq(0)",
    ),
    Mistake(
        "off-by-one count: the longest vector ends one beat early",
        "activation_loader.py",
        "(self.beats == self._depth - 1)",
        "(self.beats == self._depth - 2)",
    ),
    Mistake(
        "dropped error: a code's checksum is not looked at",
        "packet_reader.py",
        "with m.Elif(word != crc.crc):",
        "with m.Elif((word != crc.crc) & ~is_code):",
    ),
    Mistake(
        "run off by one: a code's run table has one class less",
        "parser.py",
        "[Mux(runs, code.run_last, code.level_last), code.level_last]",
        "[Mux(runs, code.run_last - 1, code.level_last), code.level_last]",
    ),
    Mistake(
        "stale register: a matrix counts as checked when the one before it was",
        "tracker.py",
        "passed[p].eq(0),",
        "passed[p].eq(passed[p]),",
    ),
    Mistake(
        "overflow: a queue is never called full",
        "queue.py",
        "m.d.sync += room.eq(0)",
        "m.d.sync += room.eq(1)",
    ),
)
"""Of the configuration with microcode."""

LOGIC_MISTAKES = (
    Mistake(
        "forgotten case: only the first matrix keeps its code",
        "tracker.py",
        "Cat(busy[p] & (self.matrices[p].code_bank == bank) for p in range(2)).any()",
        "Cat(busy[p] & (self.matrices[p].code_bank == bank) for p in range(1)).any()",
    ),
    Mistake(
        "forgotten wait: a matrix adds to rows that are still being sent",
        "tracker.py",
        "& (finishing.keep_activations | (finishing.bank == self.row_banks[p]))",
        "& finishing.keep_activations",
    ),
    Mistake(
        "limit off by one: one row more than there is room for is accepted",
        "packet_reader.py",
        '(d["rows"] <= most_rows)',
        '(d["rows"] <= most_rows + 1)',
    ),
    Mistake(
        "swapped vectors: a row's last vector clears it, told by the wrong count",
        "finisher.py",
        "reading & last_vector & (second | ~both)",
        "reading & (vector == 0) & (second | ~both)",
    ),
    Mistake(
        "dropped error: prefixes are searched, wrong indices are not",
        "tracker.py",
        "m.d.sync += [any_bad[p].eq(prefixes[p].any() | indices[p].any()) for p in range(2)]",
        "m.d.sync += [any_bad[p].eq(prefixes[p].any()) for p in range(2)]",
    ),
)
"""Of the configuration with parsers in logic."""
