"""Extractor: takes the non-zeros out of located blocks, one a cycle."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret_hw.locator import block_layout

__all__ = ["Extractor", "event_layout"]


def event_layout(value_bits: int, column_bits: int, slots: int) -> data.StructLayout:
    """Layout of an event.

    Returns
    -------
    data.StructLayout
        `value`, the codeword as a number, index + 2**k; `column`; `last`, the row ends with it;
        `slot`, the substream in its lane.
    """
    return data.StructLayout(
        {
            "value": value_bits,
            "column": column_bits,
            "last": 1,
            "slot": max(1, (slots - 1).bit_length()),
        }
    )


class Extractor(wiring.Component):
    """Turn a block into its events, in order, one a cycle.

    A codeword without its prefix is the binary number index + 2**k, so the bits from the end of
    the codeword before it up to its own end are its value, whatever zeros lead.

    Latency 2 cycles, throughput 1 event a cycle; a block of n events takes n cycles.

    Parameters
    ----------
    width, slots, value_bits, column_bits : int
        As of `Locator`.

    Attributes
    ----------
    i : In(stream of block_layout)
        Blocks with at least one event.
    hold : In(1)
        Begin no event in this cycle.
    issue : Out(1)
        An event begins in this cycle; `issue_last` says whether it ends a row.
    o_valid : Out(1)
        An event is there; it is not held.
    o : Out(event_layout)
        The event.
    busy : Out(1)
        An event is inside.
    """

    def __init__(self, width: int, slots: int, value_bits: int, column_bits: int) -> None:
        self.width = width
        self.value_bits = value_bits
        self.column_bits = column_bits
        self._block = block_layout(width, value_bits, column_bits, slots)
        self._event = event_layout(value_bits, column_bits, slots)
        super().__init__(
            {
                "i": In(stream.Signature(self._block)),
                "hold": In(1),
                "issue": Out(1),
                "issue_last": Out(1),
                "o_valid": Out(1),
                "o": Out(self._event),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        width = self.width
        block = self.i.payload
        taken = Signal(width)
        pending = Signal(width)
        chosen = Signal(width)
        m.d.comb += pending.eq(block.event & ~taken)
        for position in range(width):
            m.d.comb += chosen[position].eq(pending[position] & ~pending[:position].any())
        m.d.comb += [
            self.issue.eq(self.i.valid & ~self.hold),
            self.issue_last.eq((chosen & block.last).any()),
            self.i.ready.eq(self.issue & (pending == chosen)),
        ]
        with m.If(self.issue):
            m.d.sync += taken.eq(Mux(self.i.ready, 0, taken | chosen))

        value = Signal(self.value_bits)
        row_began = Signal()
        skipped = Signal(width.bit_length())
        for position in range(width):
            own = [
                block.bits[earlier] & ~block.end[earlier:position].any()
                for earlier in range(position)
            ] + [block.bits[position]]
            carry = Mux(block.end[:position].any(), 0, block.carry) if position else block.carry
            counted = [
                block.end[earlier] & ~block.last[earlier:position].any()
                for earlier in range(position)
            ]
            with m.If(chosen[position]):
                m.d.comb += [
                    value.eq(Cat(*reversed(own), carry)),
                    row_began.eq(block.last[:position].any() if position else 0),
                    skipped.eq(sum(counted) if counted else 0),
                ]

        valid = Signal()
        base = Signal(self.column_bits)
        offset = Signal(width.bit_length())
        held = Signal(self._event)
        m.d.sync += [
            valid.eq(self.issue),
            base.eq(Mux(row_began, 0, block.column)),
            offset.eq(skipped),
            held.value.eq(value),
            held.last.eq(self.issue_last),
            held.slot.eq(block.slot),
            self.o_valid.eq(valid),
            self.o.eq(held),
            self.o.column.eq(base + offset),
        ]
        m.d.comb += self.busy.eq(valid | self.o_valid)
        return m
