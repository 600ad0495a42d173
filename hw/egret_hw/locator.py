"""Locator: gives a parsed block its row and column, and keeps only blocks with work in them."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Locator", "block_layout"]


def block_layout(width: int, value_bits: int, column_bits: int, slots: int) -> data.StructLayout:
    """Layout of a located block, `width` bits of one substream.

    Returns
    -------
    data.StructLayout
        `bits`, `end` as from the parser, position 0 first in time; `event`, positions where a
        weight must be multiplied or a row ends; `last`, the position of a row's last codeword;
        `carry`, the open codeword's bits before this block as a number; `column`, the column of
        the first codeword that ends here; `slot`, the substream in its lane.
    """
    return data.StructLayout(
        {
            "bits": width,
            "end": width,
            "event": width,
            "last": width,
            "carry": value_bits,
            "column": column_bits,
            "slot": max(1, (slots - 1).bit_length()),
        }
    )


class Locator(wiring.Component):
    """Count codewords into rows and columns; drop the zeros.

    A block whose codewords are all zeros inside a row is not passed on, so zeros cost no cycle
    behind this point. Every substream has its own context (codewords left in the row, rows left,
    bits of the open codeword); the contexts rotate with the valid blocks, which arrive in slot
    order.

    Latency 2 enabled cycles, throughput 1 block an enabled cycle.

    Parameters
    ----------
    width : int
        W, bits of a block.
    slots : int
        C, substreams.
    value_bits : int
        Width of a codeword as a number, leading zeros aside.
    column_bits : int
        Width of a column number.
    row_bits : int
        Width of a count of rows.

    Attributes
    ----------
    start : In(1)
        Load the contexts.
    enable : In(1)
        Advance.
    dense : In(1)
        Index 0 is multiplied too.
    columns : In(column_bits + 1)
        Codewords of a row, at least `width`: a block then ends at most one row.
    rows : In(row_bits * slots)
        Rows of each substream, slot 0 in the lowest bits.
    i_valid, i_bits, i_end, i_nonzero, i_bad
        From the parser.
    o_valid : Out(1)
        A block with work is there.
    o : Out(block_layout)
        The block.
    bad : Out(slots)
        Sticky until `start`: the slot met a prefix beyond the limit, and stopped.
    unfinished : Out(slots)
        The slot still has rows to come.
    busy : Out(1)
        A block is inside.
    """

    def __init__(
        self, width: int, slots: int, value_bits: int, column_bits: int, row_bits: int
    ) -> None:
        self.width = width
        self.slots = slots
        self.value_bits = value_bits
        self.column_bits = column_bits
        self.row_bits = row_bits
        super().__init__(
            {
                "start": In(1),
                "enable": In(1),
                "dense": In(1),
                "columns": In(column_bits + 1),
                "rows": In(row_bits * slots),
                "i_valid": In(1),
                "i_bits": In(width),
                "i_end": In(width),
                "i_nonzero": In(width),
                "i_bad": In(width),
                "o_valid": Out(1),
                "o": Out(block_layout(width, value_bits, column_bits, slots)),
                "bad": Out(slots),
                "unfinished": Out(slots),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        width, slots = self.width, self.slots
        count_bits = width.bit_length()

        # First stage: what depends on this block alone.
        valid = Signal()
        bits = Signal(width)
        end = Signal(width)
        wanted = Signal(width)
        wrong = Signal(width)
        ended = [Signal(count_bits, name=f"ended_{position}") for position in range(width)]
        tail = Signal(width)
        open_from = Signal(width)
        for position in range(width):
            # A bit stays open (part of the codeword that the next block continues) when no
            # codeword ends at it or after it.
            m.d.comb += open_from[position].eq(~self.i_end[position:].any())
        with m.If(self.enable):
            m.d.sync += [
                valid.eq(self.i_valid),
                bits.eq(self.i_bits),
                end.eq(self.i_end),
                wanted.eq(self.i_end & (self.i_nonzero | self.dense.replicate(width))),
                wrong.eq(self.i_bad),
                tail.eq((self.i_bits & open_from)[::-1]),
            ]
            for position in range(width):
                m.d.sync += ended[position].eq(
                    sum(self.i_end[earlier] for earlier in range(position + 1))
                )

        # Second stage: the substream's context, slot 0 at the end of the ring first.
        context_layout = data.StructLayout(
            {
                "left": self.column_bits + 1,
                "rows": self.row_bits,
                "carry": self.value_bits,
                "slot": max(1, (slots - 1).bit_length()),
            }
        )
        ring = [Signal(context_layout, name=f"context_{index}") for index in range(slots)]
        context = ring[-1]
        after = Signal(context_layout)
        last = Signal(width)
        kept = Signal(width)
        row_ends = Signal()
        final = Signal()
        stop = Signal()
        for position in range(width):
            m.d.comb += last[position].eq(
                end[position] & (context.left == ended[position]) & context.rows.any()
            )
        before_last = [~last[:position].any() for position in range(width)]
        m.d.comb += [
            row_ends.eq(last.any()),
            final.eq(context.rows == 1),
            # After the substream's final row comes padding, which is not looked at.
            kept.eq(Mux(final, Cat(*before_last), context.rows.any().replicate(width))),
            stop.eq((wrong & kept).any()),
            after.left.eq(context.left - ended[-1] + Mux(row_ends, self.columns, 0)),
            after.rows.eq(Mux(stop, 0, context.rows - row_ends)),
            after.carry.eq(Mux(end.any(), tail, Cat(bits[::-1], context.carry))),
            after.slot.eq(context.slot),
        ]
        # A codeword that would end after a wrong prefix in the same block is not one.
        before_wrong = Cat(*(~(wrong & kept)[: position + 1].any() for position in range(width)))
        event = Signal(width)
        m.d.comb += event.eq((wanted | last) & kept & before_wrong)
        with m.If(self.enable):
            m.d.sync += [
                self.o_valid.eq(valid & event.any()),
                self.o.bits.eq(bits),
                self.o.end.eq(end),
                self.o.event.eq(event),
                self.o.last.eq(last),
                self.o.carry.eq(context.carry),
                self.o.column.eq(self.columns - context.left),
                self.o.slot.eq(context.slot),
            ]
            with m.If(valid):
                m.d.sync += ring[0].eq(after)
                for index in range(1, slots):
                    m.d.sync += ring[index].eq(ring[index - 1])
                with m.If(stop):
                    m.d.sync += self.bad.bit_select(context.slot, 1).eq(1)
        with m.If(self.start):
            m.d.sync += [valid.eq(0), self.o_valid.eq(0), self.bad.eq(0)]
            for slot in range(slots):
                entry = ring[slots - 1 - slot]
                m.d.sync += [
                    entry.left.eq(self.columns),
                    entry.rows.eq(self.rows.word_select(slot, self.row_bits)),
                    entry.carry.eq(0),
                    entry.slot.eq(slot),
                ]
        for entry in ring:
            with m.If(entry.rows.any()):
                m.d.comb += self.unfinished.bit_select(entry.slot, 1).eq(1)
        m.d.comb += self.busy.eq(valid | self.o_valid)
        return m
