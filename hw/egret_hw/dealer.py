"""Dealer: hands the entries of maps, codes, biases and starts to who holds them, one a cycle."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from egret.image_format import CLASSES, ENTRY_BITS, ENTRY_FIELDS, PacketKind
from egret.params import BIAS_BITS, AcceleratorParams
from egret_hw.layouts import code_write_layout, map_write_layout
from egret_hw.packet_reader import section_layout

__all__ = ["Dealer", "bias_write_layout", "start_layout"]

_SECTIONS = 4
_WIDE_BITS = 32


def bias_write_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a write to the bias memory: `enable`, `address`, `bias`."""
    return data.StructLayout(
        {
            "enable": 1,
            "address": (2 * params.row_depth - 1).bit_length(),
            "bias": signed(BIAS_BITS),
        }
    )


def start_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a dealt start.

    Returns
    -------
    data.StructLayout
        `enable`; `parity`; `substream`; `row`; `column`; `final`, the matrix's last one.
    """
    return data.StructLayout(
        {
            "enable": 1,
            "parity": 1,
            "substream": max(1, (params.substreams - 1).bit_length()),
            "row": ENTRY_BITS,
            "column": ENTRY_BITS,
            "final": 1,
        }
    )


class Dealer(wiring.Component):
    """Unpack words into entries behind a FIFO.

    The FIFO holds a full map, so that the bus brings the next sections while entries are dealt.

    Latency 3 cycles, throughput 1 entry a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    section : In(stream of section_layout)
        Sections, each before its words.
    words : In(stream.Signature(bus_bits))
        Their words.
    column_bits : In(array of 2)
        Column bits of the narrow starts of the matrix with each parity.
    map_write, code_write, bias_write : Out
        What was dealt, from registers.
    start : Out(start_layout)
        A start, from registers.
    coding : Out(1)
        A code's entries are still to be dealt, or were in the last cycle.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "section": In(stream.Signature(section_layout())),
                "words": In(stream.Signature(params.bus_bits)),
                "column_bits": In(data.ArrayLayout(4, 2)),
                "map_write": Out(map_write_layout(params)),
                "code_write": Out(code_write_layout()),
                "bias_write": Out(bias_write_layout(params)),
                "start": Out(start_layout(params)),
                "coding": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        per_word = params.bus_bits // ENTRY_BITS
        m.submodules.words = fifo = SyncFIFOBuffered(
            width=params.bus_bits, depth=max(32, params.map_depth // per_word)
        )
        # Beside each section, whether it is of one entry: its end is looked up in registers.
        m.submodules.sections = sections = SyncFIFO(
            width=section_layout().size + 1, depth=_SECTIONS
        )
        section = Signal(section_layout())
        single = Signal()
        begun = Signal()
        final = Signal()
        entry = Signal(range(per_word))
        number = Signal(ENTRY_BITS)
        section_ends = Signal()
        word_ends = Signal()
        deal = Signal()
        m.d.comb += [
            fifo.w_data.eq(self.words.payload),
            fifo.w_en.eq(self.words.valid),
            self.words.ready.eq(fifo.w_rdy),
            sections.w_data.eq(Cat(self.section.payload, self.section.payload.count == 1)),
            sections.w_en.eq(self.section.valid),
            self.section.ready.eq(sections.w_rdy),
            Cat(section, single).eq(sections.r_data),
            deal.eq(sections.r_rdy & fifo.r_rdy),
            section_ends.eq(Mux(begun, final, single)),
            # A section ends with its word.
            word_ends.eq(
                section_ends | (entry[1:] == per_word // 2 - 1) & (section.wide | entry[0])
            ),
            fifo.r_en.eq(deal & word_ends),
            sections.r_en.eq(deal & section_ends),
        ]
        with m.If(deal):
            m.d.sync += [
                number.eq(Mux(section_ends, 0, number + 1)),
                begun.eq(~section_ends),
                final.eq(number + 2 == section.count),
                entry.eq(Mux(word_ends, 0, entry + Mux(section.wide, 2, 1))),
            ]

        # The entry waits in a register, with what it is for.
        narrow = Signal(ENTRY_BITS, reset_less=True)
        wide = Signal(_WIDE_BITS, reset_less=True)
        held = Signal(section_layout(), reset_less=True)
        held_valid = Signal()
        held_number = Signal(ENTRY_BITS, reset_less=True)
        held_final = Signal()
        m.d.sync += [
            narrow.eq(fifo.r_data.word_select(entry, ENTRY_BITS)),
            wide.eq(fifo.r_data.word_select(entry[1:], _WIDE_BITS)),
            held.eq(section),
            held_valid.eq(deal),
            held_number.eq(number),
            held_final.eq(section_ends),
        ]
        suffix_bits, offset = (ENTRY_FIELDS[name] for name in ("suffix_bits", "offset"))
        column_bits = self.column_bits[held.parity]
        mask = Signal(ENTRY_BITS)
        m.d.comb += mask.eq((1 << column_bits) - 1)
        address = Signal(ENTRY_BITS)
        m.d.comb += address.eq(held.base + held_number)
        for write, kind in (
            (self.map_write, PacketKind.MAP),
            (self.code_write, PacketKind.CODE),
            (self.bias_write, PacketKind.BIAS),
            (self.start, PacketKind.MATRIX),
        ):
            m.d.sync += write.enable.eq(held_valid & (held.kind == kind))
        m.d.sync += [
            self.map_write.address.eq(address),
            self.map_write.value.eq(narrow),
            self.bias_write.address.eq(address),
            self.bias_write.bias.eq(wide),
            self.code_write.bank.eq(held.bank),
            self.code_write.run.eq(held_number[CLASSES.bit_length() - 1]),
            self.code_write.number.eq(held_number),
            self.code_write.suffix_bits.eq(narrow[suffix_bits.lsb :][: suffix_bits.width]),
            self.code_write.offset.eq(narrow[offset.lsb :][: offset.width]),
            self.start.parity.eq(held.parity),
            self.start.substream.eq(held_number),
            self.start.final.eq(held_final),
            self.start.row.eq(Mux(held.wide, wide[ENTRY_BITS:], narrow >> column_bits)),
            self.start.column.eq(Mux(held.wide, wide[:ENTRY_BITS], narrow & mask)),
        ]
        # How many codes are inside, from their announcement to their last entry's write.
        codes = Signal(range(_SECTIONS + 2))
        arrives = (
            self.section.valid & self.section.ready & (self.section.payload.kind == PacketKind.CODE)
        )
        leaves = self.code_write.enable & (
            self.code_write.run & (self.code_write.number == CLASSES - 1)
        )
        m.d.sync += codes.eq(codes + arrives - leaves)
        m.d.comb += self.coding.eq(codes.any())
        return m
