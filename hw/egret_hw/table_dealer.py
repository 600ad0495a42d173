"""Table dealer: hands the map's and the counts' entries to the lanes, one a cycle."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from egret.image_format import ENTRY_BITS
from egret.params import AcceleratorParams
from egret_hw.lane import table_write_layout

__all__ = ["TableDealer"]

_SETTLE_CYCLES = 3


class TableDealer(wiring.Component):
    """Unpack words into entries behind a FIFO.

    The FIFO holds a full map, so that the bus brings the next sections while the entries are dealt.

    Latency 3 cycles, throughput 1 entry a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    setup : In(1)
        A packet with tables begins; its fields are valid from here on.
    zigzag, map_entries
        Descriptor fields.
    i : In(stream)
        Words of the map and of the counts section.
    write : Out(table_write_layout)
        Broadcast.
    done : Out(1)
        Every entry has reached the lanes.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "setup": In(1),
                "zigzag": In(1),
                "map_entries": In(ENTRY_BITS),
                "i": In(stream.Signature(params.bus_bits)),
                "write": Out(table_write_layout()),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        per_word = params.bus_bits // ENTRY_BITS
        words = -(-params.map_depth // per_word) + -(-params.substreams // per_word)
        # With two, the FIFO's inner memory has one word and its pointers no bits.
        depth = max(4, words)
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=params.bus_bits, depth=depth)
        entry = Signal(range(per_word))
        address = Signal(ENTRY_BITS)
        counting = Signal()
        dealing = Signal()
        settle = Signal(range(_SETTLE_CYCLES + 1))
        section_ends = Signal()
        m.d.comb += [
            fifo.w_data.eq(self.i.payload),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            section_ends.eq(address + 1 == Mux(counting, params.substreams, self.map_entries)),
            # A section ends with its word.
            fifo.r_en.eq(dealing & (section_ends | (entry == per_word - 1))),
            self.done.eq(~dealing & (settle == 0)),
        ]
        m.d.sync += [self.write.write_map.eq(0), self.write.write_count.eq(0)]
        with m.If(self.setup):
            m.d.sync += [
                dealing.eq(1),
                settle.eq(_SETTLE_CYCLES),
                counting.eq(self.zigzag),
                address.eq(0),
                entry.eq(0),
            ]
        with m.Elif(dealing & fifo.r_rdy):
            m.d.sync += [
                self.write.write_map.eq(~counting),
                self.write.write_count.eq(counting),
                self.write.address.eq(address),
                self.write.entry.eq(fifo.r_data.word_select(entry, ENTRY_BITS)),
                address.eq(Mux(section_ends, 0, address + 1)),
                entry.eq(Mux(section_ends, 0, entry + 1)),
            ]
            with m.If(section_ends):
                m.d.sync += [counting.eq(1), dealing.eq(~counting)]
        with m.Elif(~dealing & (settle != 0)):
            m.d.sync += settle.eq(settle - 1)
        return m
