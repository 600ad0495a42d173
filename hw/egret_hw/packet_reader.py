"""Packet reader: follows packets through their sections, checks them, passes their words on."""

from collections.abc import Iterator
from contextlib import contextmanager

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc import Algorithm
from amaranth.lib.wiring import In, Out

from egret.image_format import (
    CLASSES,
    CODE_FIELDS,
    CRC_BITS,
    CRC_POLYNOMIAL,
    ENTRY_BITS,
    HEADER_BYTES,
    HEADER_FIELDS,
    IMAGE_MAGIC,
    IMAGE_VERSION,
    LOAD_FIELDS,
    MATRIX_BYTES,
    MATRIX_FIELDS,
    ErrorKind,
    Field,
    PacketKind,
)
from egret.params import CODE_NAMES, AcceleratorParams

__all__ = [
    "POSITION_BITS",
    "PacketReader",
    "fields_layout",
    "payload_layout",
    "section_layout",
]

POSITION_BITS = 32
"""Width of an error's position."""

_WIDE_BITS = 32


def fields_layout(fields: dict[str, Field]) -> data.StructLayout:
    """Return the layout of a header's fields, without the gaps between them."""
    return data.StructLayout({name: field.width for name, field in fields.items()})


def section_layout() -> data.StructLayout:
    """Layout of what announces a section of entries.

    Returns
    -------
    data.StructLayout
        `kind`, of `PacketKind` (MATRIX: starts); `base`; `count`; `wide`, entries of 32 bits;
        `parity`, of a matrix; `bank`, of a code.
    """
    return data.StructLayout(
        {"kind": 3, "base": ENTRY_BITS, "count": ENTRY_BITS, "wide": 1, "parity": 1, "bank": 1}
    )


def payload_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a payload word.

    Returns
    -------
    data.StructLayout
        `data`; `first`, `last`: the word holds first, last beats of slots; `parity`.
    """
    return data.StructLayout({"data": params.bus_bits, "first": 1, "last": 1, "parity": 1})


def _view(raw: Value, fields: dict[str, Field]) -> dict[str, Value]:
    return {name: raw[field.offset :][: field.width] for name, field in fields.items()}


def _uncovered(raw: Value, fields: dict[str, Field]) -> Value:
    covered = sum(((1 << field.width) - 1) << field.offset for field in fields.values())
    return (raw & ~Const(covered, len(raw))).any()


class PacketReader(wiring.Component):
    """Read packets of the weight stream (docs/format.md, chapter 2).

    One bus word a cycle while what it feeds keeps up, and one cycle a packet beside that, in which
    its header is checked. No word is lost, and none is looked at after an error.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream)
        Bus words: `data` and `last`.
    clear : In(1)
        Leave the error state, or give up the packet under way, which is discarded to its end.
    matrix : Out(layout of MATRIX_FIELDS)
        Header of the matrix that `allocate` is for.
    code : Out(layout of CODE_FIELDS)
        Header of the code that `load_code` is for.
    allocate : Out(1)
        A matrix begins.
    may_allocate : In(1)
        There is room for it.
    parity : In(1)
        The parity that it gets.
    load_code : Out(1)
        A code begins.
    may_load_code : In(1)
        No matrix under way uses the bank `code.bank`.
    may_load_bias : In(1)
        The finisher does not read biases.
    banks_loaded : In(code_banks)
        Banks that hold a code.
    section : Out(stream of section_layout)
        Sections of entries, each before its words.
    words : Out(stream.Signature(bus_bits))
        Words of these sections.
    may_send : In(1)
        Every code is in place: payload may go on.
    payload : Out(stream of payload_layout)
        Words of the payload.
    passed : Out(1)
        The matrix's packet has ended with the right CRC.
    kept : In(1)
        The last matrix allocated keeps its results.
    in_flight : In(2)
        Matrices allocated and not judged yet.
    late : In(1)
        A matrix turned out wrong only when it was judged, with `late_error` at `late_position`.
    sender_busy : In(1)
        The output stream is not ready for `reject`.
    reject : Out(1)
        The error is to be reported on the output stream.
    cancel : Out(1)
        Empty the data path.
    wipe : Out(1)
        Bring the row memory to zeros. Held until `wiped`.
    wiped : In(1)
        That has been done.
    settling : Out(1)
        The packet under way is wrong, and those before it are being finished.
    halted : Out(1)
        The error state: every input is discarded until `clear`.
    error, position
        Sticky error kind and its position.
    reading : Out(1)
        A packet is under way, or its first word waits.
    payload_word : Out(1)
        A payload word is taken in this cycle.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": params.bus_bits, "last": 1}))),
                "clear": In(1),
                "matrix": Out(fields_layout(MATRIX_FIELDS)),
                "code": Out(fields_layout(CODE_FIELDS)),
                "allocate": Out(1),
                "may_allocate": In(1),
                "parity": In(1),
                "load_code": Out(1),
                "may_load_code": In(1),
                "may_load_bias": In(1),
                "banks_loaded": In(params.code_banks),
                "section": Out(stream.Signature(section_layout())),
                "words": Out(stream.Signature(params.bus_bits)),
                "may_send": In(1),
                "payload": Out(stream.Signature(payload_layout(params))),
                "passed": Out(1),
                "kept": In(1),
                "in_flight": In(2),
                "late": In(1),
                "late_error": In(ErrorKind),
                "late_position": In(POSITION_BITS),
                "sender_busy": In(1),
                "reject": Out(1),
                "cancel": Out(1),
                "wipe": Out(1),
                "wiped": In(1),
                "settling": Out(1),
                "halted": Out(1),
                "error": Out(ErrorKind),
                "position": Out(POSITION_BITS),
                "reading": Out(1),
                "payload_word": Out(1),
            }
        )

    def _matrix_good(self, raw: Value, loaded: Value) -> Value:
        params = self.params
        d = _view(raw, MATRIX_FIELDS)
        most_rows = Mux(d["keep_activations"], params.activation_depth, params.row_depth)
        sends = d["keep_activations"] | d["emit_results"] | d["emit_activations"]
        # Words, so that the payload's beats are a multiple of the slots.
        whole = max(1, params.slots // params.beats_per_word)
        return (
            ~_uncovered(raw, MATRIX_FIELDS)
            & d["rows"].any()
            & (d["rows"] <= most_rows)
            & d["columns"].any()
            & (d["columns"] <= params.activation_depth)
            & ~(d["more"] & sends)
            & ~(d["keep_activations"] & ~d["load_activations"] & ~self.kept)
            & ~(d["wide_starts"] & d["column_bits"].any())
            & ~(d["zigzag"] & d["map_base"].any())
            & d["map_entries"].any()
            & (d["map_entries"] <= params.map_depth)
            & (d["zigzag"] | (d["map_base"] + d["map_entries"] <= params.map_depth))
            & Mux(
                d["has_bias"],
                d["bias_base"] + d["rows"] <= 2 * params.row_depth,
                ~d["bias_base"].any(),
            )
            & d["payload_words"].any()
            & (d["payload_words"][: whole.bit_length() - 1] == 0)
            & (d["code_bank"] < params.code_banks)
            & loaded.bit_select(d["code_bank"][: (params.code_banks - 1).bit_length()], 1)
        )

    def _load_good(self, raw: Value) -> Value:
        params = self.params
        d = _view(raw, LOAD_FIELDS)
        depth = Mux(d["kind"] == PacketKind.MAP, params.map_depth, 2 * params.row_depth)
        return (
            ~_uncovered(raw, LOAD_FIELDS)
            & ((d["kind"] == PacketKind.MAP) | (d["kind"] == PacketKind.BIAS))
            & d["count"].any()
            & (d["base"] + d["count"] <= depth)
        )

    def _code_good(self, raw: Value) -> Value:
        params = self.params
        d = _view(raw, CODE_FIELDS)
        runs, tables = (name in params.codes for name in CODE_NAMES[1:])
        good = ~_uncovered(raw, CODE_FIELDS) & (d["bank"] < params.code_banks)
        good &= ~(d["run_form"] & d["dense"])
        if not runs:
            good &= ~d["run_form"]
        if not tables:
            good &= d["level_golomb"] & (~d["run_form"] | d["run_golomb"])
        return good

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        bus_bits = params.bus_bits
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
        offset = Signal(POSITION_BITS)
        words = Signal(POSITION_BITS)
        m.d.comb += [
            self.i.ready.eq(ready & ~self.clear),
            take.eq(self.i.valid & self.i.ready),
            crc.data.eq(word),
            crc.valid.eq(take),
            crc.start.eq(~in_packet),
            self.words.payload.eq(word),
            self.payload.payload.data.eq(word),
            self.payload.payload.parity.eq(self.parity),
        ]
        with m.If(take):
            m.d.sync += [
                in_packet.eq(~last),
                offset.eq(Mux(last, 0, offset + 1)),
                words.eq(words + 1),
            ]

        # The header. Its kind is known with its first word, whatever the bus's width.
        header_bits = -(-MATRIX_BYTES * 8 // bus_bits) * bus_bits
        padded = Signal(header_bits)
        raw = padded[: MATRIX_BYTES * 8]
        # Of the count of words only the bits that a header needs.
        header_word = words[: max(1, (header_bits // bus_bits - 1).bit_length())]
        kind_field = HEADER_FIELDS["kind"]
        kind_held = raw[kind_field.offset :][: kind_field.width]
        kind_now = Mux(header_word == 0, word[kind_field.offset :][: kind_field.width], kind_held)
        last_header_word = Mux(
            kind_now == PacketKind.MATRIX,
            header_bits // bus_bits - 1,
            -(-HEADER_BYTES * 8 // bus_bits) - 1,
        )
        for fields, target in ((MATRIX_FIELDS, self.matrix), (CODE_FIELDS, self.code)):
            for name, value in _view(raw, fields).items():
                m.d.comb += target[name].eq(value)
        matrix, code = self.matrix, self.code
        is_matrix = Signal()
        is_code = Signal()
        common_good = Signal()
        kind_good = Signal()
        truncated = Signal()
        m.d.sync += [
            is_matrix.eq(kind_held == PacketKind.MATRIX),
            is_code.eq(kind_held == PacketKind.CODE),
            common_good.eq((matrix.magic == IMAGE_MAGIC) & (matrix.version == IMAGE_VERSION)),
        ]
        short = raw[: HEADER_BYTES * 8]
        with m.If(kind_held == PacketKind.MATRIX):
            m.d.sync += kind_good.eq(self._matrix_good(raw, self.banks_loaded))
        with m.Elif(kind_held == PacketKind.CODE):
            m.d.sync += kind_good.eq(self._code_good(short))
        with m.Else():
            m.d.sync += kind_good.eq(self._load_good(short))

        # The section of entries behind the header, and its words.
        load = _view(raw, LOAD_FIELDS)
        section = Signal(section_layout())
        body_words = Signal(ENTRY_BITS)
        count = Signal(ENTRY_BITS)
        wide = Signal()
        with m.If(kind_held == PacketKind.MATRIX):
            m.d.comb += [count.eq(params.substreams), wide.eq(matrix.wide_starts)]
        with m.Elif(kind_held == PacketKind.CODE):
            m.d.comb += count.eq(2 * CLASSES)
        with m.Else():
            m.d.comb += [count.eq(load["count"]), wide.eq(kind_held == PacketKind.BIAS)]

        def words_for(entry_bits: int) -> Value:
            per_word = bus_bits // entry_bits
            return (count + (per_word - 1)) >> (per_word.bit_length() - 1)

        m.d.sync += [
            section.kind.eq(kind_held),
            section.base.eq(load["base"]),
            section.count.eq(count),
            section.wide.eq(wide),
            section.bank.eq(code.bank),
        ]
        m.d.comb += [
            body_words.eq(Mux(wide, words_for(_WIDE_BITS), words_for(ENTRY_BITS))),
            self.section.payload.eq(section),
            self.section.payload.parity.eq(self.parity),
        ]

        # Words left of the section, and whether this is its last one: a register, for `take` is
        # known late.
        left = Signal(matrix.payload_words.shape())
        final = Signal()

        def begin_section(total: Value) -> None:
            m.d.sync += [left.eq(total), final.eq(total == 1)]

        allocated = Signal()
        allowed = Signal()
        with m.If(is_matrix):
            m.d.comb += allowed.eq(self.may_allocate & self.section.ready)
        with m.Elif(is_code):
            m.d.comb += allowed.eq(self.may_load_code & self.section.ready)
        with m.Else():
            # Entries of the map or, wide, biases.
            m.d.comb += allowed.eq(self.section.ready & (~section.wide | self.may_load_bias))

        # First and last beats of the slots: words at either end of the payload.
        edge = max(1, params.slots // params.beats_per_word)
        m.d.comb += [
            self.payload.payload.first.eq(words < edge),
            self.payload.payload.last.eq(left <= edge),
        ]

        # The position goes with the words, whether they are right or not: what finds one wrong is
        # known late in its cycle, and 32 registers would wait for it.
        position = Signal(POSITION_BITS)
        m.d.comb += self.position.eq(Mux(self.error == ErrorKind.NONE, 0, position))

        def fail(kind: ErrorKind) -> None:
            m.d.sync += self.error.eq(kind)
            m.next = "Settle"

        def pass_words(following: str) -> None:
            """Take words of a section, at least 1; go to `following` behind its last one."""
            m.d.sync += position.eq(offset)
            with m.If(take):
                m.d.sync += [left.eq(left - 1), final.eq(left == 2)]
                with m.If(final):
                    m.d.sync += words.eq(0)
                    m.next = following
                with m.If(last):
                    fail(ErrorKind.TRUNCATED)

        def pass_body() -> None:
            m.d.comb += [
                self.words.valid.eq(self.i.valid & ~self.clear),
                ready.eq(self.words.ready),
            ]
            with m.If(is_matrix):
                pass_words("Payload")
                with m.If(take & final):
                    begin_section(matrix.payload_words)
            with m.Else():
                pass_words("CRC")

        @contextmanager
        def state(name: str) -> Iterator[None]:
            """Open a state that `clear`, or a matrix that turns out wrong, can leave."""
            with m.State(name):
                yield
                with m.If(self.late):
                    m.d.sync += [
                        self.error.eq(self.late_error),
                        position.eq(self.late_position),
                    ]
                    m.next = "Abort"
                with m.If(self.clear):
                    m.d.comb += self.cancel.eq(1)
                    m.d.sync += [self.error.eq(ErrorKind.NONE), offset.eq(0)]
                    m.next = "Wipe"

        with m.FSM(init="Wipe") as fsm:
            with state("Header"):
                m.d.comb += ready.eq(1)
                m.d.sync += [truncated.eq(last), position.eq(offset)]
                with m.If(take):
                    m.d.sync += padded.word_select(header_word, bus_bits).eq(word)
                    with m.If(header_word == last_header_word):
                        m.next = "Check"
                    with m.Elif(last):
                        fail(ErrorKind.TRUNCATED)
            with state("Check"):
                m.d.sync += words.eq(0)
                begin_section(body_words)
                m.next = "Checked"
            with state("Checked"):
                with m.If(~common_good | ~kind_good):
                    m.d.sync += position.eq(0)
                    fail(ErrorKind.DESCRIPTOR)
                with m.Elif(truncated):
                    # The header's last word ended the packet, and with it its offset.
                    m.d.sync += position.eq(
                        Mux(
                            is_matrix,
                            header_bits // bus_bits - 1,
                            -(-HEADER_BYTES * 8 // bus_bits) - 1,
                        )
                    )
                    fail(ErrorKind.TRUNCATED)
                with m.Elif(allowed & ~self.clear & ~self.late):
                    m.d.comb += [
                        self.section.valid.eq(1),
                        self.allocate.eq(is_matrix),
                        self.load_code.eq(is_code),
                    ]
                    m.d.sync += allocated.eq(is_matrix)
                    m.next = "Body"
                    pass_body()
            with state("Body"):
                pass_body()
            with state("Payload"):
                m.d.comb += [
                    self.payload.valid.eq(self.i.valid & self.may_send & ~self.clear),
                    ready.eq(self.payload.ready & self.may_send),
                    self.payload_word.eq(take),
                ]
                pass_words("CRC")
            with state("CRC"):
                m.d.comb += ready.eq(1)
                m.d.sync += position.eq(offset)
                with m.If(take):
                    m.d.sync += words.eq(0)
                    with m.If(~last):
                        fail(ErrorKind.OVERRUN)
                    with m.Elif(word != crc.crc):
                        fail(ErrorKind.CRC)
                    with m.Else():
                        m.d.comb += self.passed.eq(is_matrix)
                        m.d.sync += allocated.eq(0)
                        m.next = "Header"
            with state("Settle"):
                m.d.comb += self.settling.eq(1)
                with m.If(self.in_flight == allocated):
                    # What was before the error is finished and sent.
                    m.next = "Abort"
            with state("Abort"):
                m.d.comb += self.cancel.eq(1)
                m.next = "Report"
            with state("Report"):
                m.d.comb += self.halted.eq(1)
                with m.If(~self.sender_busy):
                    m.d.comb += self.reject.eq(1)
                    m.next = "Halt"
            with state("Halt"):
                m.d.comb += [ready.eq(1), self.halted.eq(1)]
            with state("Wipe"):
                m.d.comb += self.wipe.eq(1)
                m.d.sync += [words.eq(0), offset.eq(0), allocated.eq(0)]
                with m.If(self.wiped):
                    with m.If(in_packet):
                        m.next = "Discard"
                    with m.Else():
                        m.next = "Header"
            with state("Discard"):
                m.d.comb += ready.eq(1)
                with m.If(take & last):
                    m.d.sync += [words.eq(0), offset.eq(0)]
                    m.next = "Header"
            waiting = fsm.ongoing("Header") & (words == 0)
            stopped = fsm.ongoing("Halt") | fsm.ongoing("Discard") | fsm.ongoing("Wipe")
            m.d.comb += self.reading.eq(~stopped & (~waiting | self.i.valid))
        return m
