"""Packet reader: follows a matrix packet through its sections, checks it, and feeds the lanes."""

from collections.abc import Iterator
from contextlib import contextmanager

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc import Algorithm
from amaranth.lib.wiring import In, Out

from egret.image_format import (
    CODE_EG_K,
    CRC_BITS,
    CRC_POLYNOMIAL,
    DESCRIPTOR_BYTES,
    ENTRY_BITS,
    FIELDS,
    IMAGE_MAGIC,
    IMAGE_VERSION,
    ErrorKind,
)
from egret.params import BIAS_BITS, MAX_ORDER, AcceleratorParams

__all__ = ["PacketReader", "descriptor_layout"]

_POSITION_BITS = 32


def descriptor_layout() -> data.StructLayout:
    """Layout of the descriptor's fields, without the gaps between them."""
    return data.StructLayout({name: field.width for name, field in FIELDS.items()})


class PacketReader(wiring.Component):
    """Read packets of the weight stream (docs/format.md, chapter 2).

    One bus word a cycle while what it feeds keeps up, and seven cycles a packet beside that and the
    wait for the last results. No word is lost, and none is looked at after an error.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream)
        Bus words: `data` and `last`.
    clear : In(1)
        Leave the error state; a packet under way is discarded to its end.
    descriptor : Out(descriptor_layout)
        Fields of the present packet; constant while it runs.
    setup : Out(1)
        The descriptor is good; it wants activations where `descriptor.load_activations`.
    tables : Out(stream.Signature(bus_bits))
        Words of the map and of the counts.
    tables_done : In(1)
        The lanes hold the tables.
    rows_write, bias_write, word_address, word
        Whole words for the requantiser's tables.
    loaded : In(1)
        Activations are in place.
    start : Out(1)
        Tables and activations are in place; the payload begins.
    payload : Out(stream.Signature(bus_bits))
        Words of the payload.
    ended : Out(1)
        The payload and the CRC word have passed; wait for `drained`.
    drained : In(1)
        No result is under way.
    late_error, late_position : In
        Error that shows only once everything is drained, or NONE.
    sender_busy : In(1)
        The output stream is not ready for `accept` or `reject`.
    accept, reject : Out(1)
        The matrix is good; or an error is to be reported.
    cancel : Out(1)
        Empty the data path: the packet was given up.
    halted : Out(1)
        The error state: every input is discarded until `clear`.
    error, position
        Sticky error kind and its position.
    running : Out(1)
        A packet is under way, or its first word waits.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": params.bus_bits, "last": 1}))),
                "clear": In(1),
                "descriptor": Out(descriptor_layout()),
                "setup": Out(1),
                "tables": Out(stream.Signature(params.bus_bits)),
                "tables_done": In(1),
                "rows_write": Out(1),
                "bias_write": Out(1),
                "word_address": Out(16),
                "word": Out(params.bus_bits),
                "loaded": In(1),
                "start": Out(1),
                "payload": Out(stream.Signature(params.bus_bits)),
                "ended": Out(1),
                "drained": In(1),
                "late_error": In(ErrorKind),
                "late_position": In(_POSITION_BITS),
                "sender_busy": In(1),
                "accept": Out(1),
                "reject": Out(1),
                "cancel": Out(1),
                "halted": Out(1),
                "error": Out(ErrorKind),
                "position": Out(_POSITION_BITS),
                "running": Out(1),
            }
        )

    def _descriptor_good(self, raw: Value, d: data.View) -> Value:
        params = self.params
        covered = sum(((1 << field.width) - 1) << field.offset for field in FIELDS.values())
        most_rows = Mux(d.keep_activations, params.activation_depth, params.row_depth)
        return (
            ~(raw & ~Const(covered, len(raw))).any()
            & (d.magic == IMAGE_MAGIC)
            & (d.version == IMAGE_VERSION)
            & (d.code == CODE_EG_K)
            & (d.order <= MAX_ORDER)
            & d.rows.any()
            & (d.rows <= most_rows)
            & (d.columns >= params.parser_bits)
            & (d.columns <= params.activation_depth)
            & d.map_entries.any()
            & (d.map_entries <= params.map_depth)
            & d.row_slots.any()
            & (d.row_slots <= params.row_slots)
            & d.payload_words.any()
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        bus_bits = params.bus_bits
        d = self.descriptor
        word, last = self.i.payload.data, self.i.payload.last

        m.submodules.crc = crc = Algorithm(
            crc_width=CRC_BITS,
            polynomial=CRC_POLYNOMIAL,
            initial_crc=(1 << CRC_BITS) - 1,
            reflect_input=True,
            reflect_output=True,
            xor_output=(1 << CRC_BITS) - 1,
        )(data_width=bus_bits).create()

        ready = Signal()
        take = Signal()
        in_packet = Signal()
        offset = Signal(_POSITION_BITS)
        words = Signal(_POSITION_BITS)
        m.d.comb += [
            self.i.ready.eq(ready & ~self.clear),
            take.eq(self.i.valid & self.i.ready),
            crc.data.eq(word),
            crc.valid.eq(take),
            self.word.eq(word),
            self.word_address.eq(words),
            self.tables.payload.eq(word),
            self.payload.payload.eq(word),
        ]
        with m.If(take):
            m.d.sync += [in_packet.eq(~last), offset.eq(offset + 1), words.eq(words + 1)]

        raw = Signal(DESCRIPTOR_BYTES * 8)
        for name, field in FIELDS.items():
            m.d.comb += d[name].eq(raw[field.offset :][: field.width])

        # Lengths of the sections in words, ready two cycles after the descriptor.
        def words_for(entries: Value, entry_bits: int) -> Value:
            per_word = bus_bits // entry_bits
            return (entries + (per_word - 1)) >> (per_word.bit_length() - 1)

        map_words = Signal(ENTRY_BITS)
        rows_words = Signal(ENTRY_BITS)
        bias_words = Signal(ENTRY_BITS)
        m.d.sync += [
            map_words.eq(words_for(d.map_entries, ENTRY_BITS)),
            rows_words.eq(words_for(d.row_slots * params.substreams, ENTRY_BITS)),
            bias_words.eq(words_for(d.rows, BIAS_BITS)),
        ]

        good = Signal()
        truncated = Signal()
        m.d.sync += good.eq(self._descriptor_good(raw, d))

        def fail(kind: ErrorKind | Value, position: Value | int) -> None:
            m.d.sync += [self.error.eq(kind), self.position.eq(position)]
            m.next = "Abort"

        def section(
            count: Value | int, following: str, target: wiring.PureInterface | None
        ) -> None:
            """Pass `count` words, at least 1, on to `target`; then go to `following`."""
            if target is None:
                m.d.comb += ready.eq(1)
            else:
                m.d.comb += [
                    target.valid.eq(self.i.valid & ~self.clear),
                    ready.eq(target.ready),
                ]
            with m.If(take):
                with m.If(words + 1 == count):
                    m.d.sync += words.eq(0)
                    m.next = following
                with m.If(last):
                    fail(ErrorKind.TRUNCATED, offset)

        @contextmanager
        def state(name: str) -> Iterator[None]:
            """Open a state that `clear` can leave."""
            with m.State(name):
                yield
                with m.If(self.clear):
                    m.d.comb += self.cancel.eq(1)
                    m.d.sync += [self.error.eq(ErrorKind.NONE), self.position.eq(0)]
                    with m.If(in_packet):
                        m.next = "Discard"
                    with m.Else():
                        m.next = "Idle"

        with m.FSM() as fsm:
            with state("Descriptor"):
                m.d.comb += ready.eq(1)
                m.d.sync += truncated.eq(last)
                with m.If(take):
                    m.d.sync += raw.eq(Cat(raw[bus_bits:], word))
                    with m.If(words + 1 == DESCRIPTOR_BYTES * 8 // bus_bits):
                        m.next = "Check"
                    with m.Elif(last):
                        fail(ErrorKind.TRUNCATED, offset)
            with state("Check"):
                m.next = "Checked"
            with state("Checked"):
                m.d.sync += words.eq(0)
                with m.If(~good):
                    fail(ErrorKind.DESCRIPTOR, 0)
                with m.Elif(truncated):
                    fail(ErrorKind.TRUNCATED, offset - 1)
                with m.Else():
                    m.d.comb += self.setup.eq(1)
                    with m.If(d.zigzag):
                        m.next = "Counts"
                    with m.Else():
                        m.next = "Map"
            with state("Map"):
                section(map_words, "Counts", self.tables)
            with state("Counts"):
                section(-(-params.substreams * ENTRY_BITS // bus_bits), "Rows", self.tables)
            with state("Rows"):
                m.d.comb += self.rows_write.eq(take)
                section(rows_words, "Rows done", None)
            with state("Rows done"):
                with m.If(d.has_bias):
                    m.next = "Bias"
                with m.Else():
                    m.next = "Wait"
            with state("Bias"):
                m.d.comb += self.bias_write.eq(take)
                section(bias_words, "Wait", None)
            with state("Wait"), m.If(self.tables_done & (self.loaded | ~d.load_activations)):
                m.d.comb += self.start.eq(1)
                m.next = "Payload"
            with state("Payload"):
                section(d.payload_words, "CRC", self.payload)
            with state("CRC"):
                m.d.comb += [ready.eq(1), self.ended.eq(1)]
                with m.If(take):
                    with m.If(~last):
                        fail(ErrorKind.OVERRUN, offset)
                    with m.Elif(word != crc.crc):
                        fail(ErrorKind.CRC, offset)
                    with m.Else():
                        m.next = "Drain"
            with state("Drain"):
                m.d.comb += self.ended.eq(1)
                with m.If(self.drained):
                    with m.If(self.late_error != ErrorKind.NONE):
                        fail(self.late_error, self.late_position)
                    with m.Elif(~self.sender_busy):
                        m.d.comb += self.accept.eq(~self.clear)
                        m.next = "Idle"
            with state("Idle"):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [offset.eq(0), words.eq(0)]
                m.next = "Descriptor"
            with state("Abort"):
                m.d.comb += self.cancel.eq(1)
                m.next = "Report"
            with state("Report"), m.If(~self.sender_busy):
                m.d.comb += self.reject.eq(1)
                m.next = "Halt"
            with state("Halt"):
                m.d.comb += [ready.eq(1), self.halted.eq(1)]
            with state("Discard"):
                m.d.comb += ready.eq(1)
                with m.If(take & last):
                    m.next = "Idle"
            waiting = (fsm.ongoing("Descriptor") & (words == 0)) | fsm.ongoing("Idle")
            stopped = fsm.ongoing("Halt") | fsm.ongoing("Discard")
            m.d.comb += self.running.eq(~stopped & (~waiting | self.i.valid))
        return m
