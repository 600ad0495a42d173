"""Lane: decodes its substreams, maps indices to weights and multiplies the non-zeros."""

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import CODE_NAMES, FANOUT_SPARE, AcceleratorParams
from egret_hw.collector import Collector, block_layout
from egret_hw.extractor import Extractor
from egret_hw.layouts import (
    code_layout,
    code_write_layout,
    lane_result_layout,
    map_write_layout,
    matrix_layout,
    microcode_write_layout,
    start_write_layout,
    vector_write_layout,
)
from egret_hw.mac import Mac
from egret_hw.microcode import MicrocodeParser
from egret_hw.parser import Parser
from egret_hw.positioner import Positioner, lane_settings_layout
from egret_hw.queue import Queue

__all__ = ["Lane", "LaneSettings"]


class LaneSettings(wiring.Component):
    """What the lanes' back ends need to know of the newest matrix, worked out once.

    Latency 1 cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    codes : In(array of 2 code_layout)
        Codes, by bank.
    matrices : In(array of 2 matrix_layout)
        Matrices, by parity.
    start_write : In(start_write_layout)
        Tells which one is the newest.
    o : Out(lane_settings_layout)
        The settings.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        super().__init__(
            {
                "codes": In(data.ArrayLayout(code_layout(), 2)),
                "matrices": In(data.ArrayLayout(matrix_layout(params), 2)),
                "start_write": In(start_write_layout(params)),
                "o": Out(lane_settings_layout(params)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self._params
        runs = CODE_NAMES[1] in params.codes
        tables = CODE_NAMES[2] in params.codes
        newest = Signal()
        with m.If(self.start_write.enable):
            m.d.sync += newest.eq(self.start_write.parity)
        matrix = Signal(matrix_layout(params))
        code = Signal(code_layout())
        m.d.comb += [
            matrix.eq(Mux(newest, self.matrices[1], self.matrices[0])),
            code.eq(
                Mux(matrix.code_bank, self.codes[1], self.codes[0])
                if params.code_banks > 1
                else self.codes[0]
            ),
        ]
        offset = Const(0, 1) if tables else code.level_offset
        first = code.run_form if runs else Const(0, 1)
        m.d.sync += [
            self.o.columns.eq(matrix.columns),
            self.o.memory.eq(matrix.memory),
            self.o.zigzag.eq(matrix.zigzag),
            self.o.bank.eq(matrix.code_bank),
            self.o.run_offset.eq(code.run_offset),
            self.o.base.eq(Mux(matrix.zigzag, first, matrix.map_base) + offset),
            self.o.limit.eq(matrix.map_entries - offset),
        ]
        return m


class Lane(wiring.Component):
    """One lane: W bits in, sums of rows out.

    The lane runs free: it stalls only when it has no bits, or when its blocks of non-zeros wait
    for the multiplier. Zeros are dropped before that and cost no cycle of it. It may read the
    bits of a matrix while the one before it is still multiplied.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream)
        Beats in slot order: `bits`, the most significant one first in time; `first`, `last`, the
        slot's first or last one of a matrix; `parity`, of the matrix.
    codes : In(array of 2 code_layout)
        Codes, by bank; constant while a matrix uses them.
    banks : In(2)
        Bank of the code of the matrix with each parity; constant while it is under way.
    settings : In(lane_settings_layout)
        From `LaneSettings`, which serves all lanes.
    code_write, microcode_write, map_write, vector_write : In
        Broadcasts of tables and activations. Entries behind a code table's last class repeat it.
    start_write : In(start_write_layout)
        With `selected`, places a slot; all slots of a matrix are placed in order, after it has
        gone to `LaneSettings`, and not before the matrix two before it has sent its last sums.
    drain : In(1)
        No more beats of the matrix under way will come: those of the one before must not wait.
    go : In(2)
        The matrix with this parity may be multiplied: its activations are in place.
    clear_errors : In(2)
        Clear the errors of this parity.
    o : Out(stream of lane_result_layout)
        Sums of rows.
    roomy : Out(1)
        There is room for `FANOUT_SPARE` beats, where `fanout_cycles` is not 0.
    multiply : Out(1)
        A weight that is not 0 by its form was multiplied.
    bad_prefix, bad_index : Out(2 * C)
        Bit parity * C + slot, sticky: a prefix was too long; an index lay beyond the map.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        beat = data.StructLayout({"bits": params.parser_bits, "first": 1, "last": 1, "parity": 1})
        super().__init__(
            {
                "i": In(stream.Signature(beat)),
                "codes": In(data.ArrayLayout(code_layout(), 2)),
                "banks": In(2),
                "settings": In(lane_settings_layout(params)),
                "code_write": In(code_write_layout()),
                "microcode_write": In(microcode_write_layout()),
                "map_write": In(map_write_layout(params)),
                "vector_write": In(vector_write_layout(params)),
                "start_write": In(start_write_layout(params)),
                "selected": In(1),
                "drain": In(1),
                "go": In(2),
                "clear_errors": In(2),
                "o": Out(stream.Signature(lane_result_layout(params))),
                "roomy": Out(1),
                "multiply": Out(1),
                "bad_prefix": Out(2 * params.slots),
                "bad_index": Out(2 * params.slots),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self._params
        slots = params.slots
        spare = FANOUT_SPARE if params.fanout_cycles else 0
        m.submodules.input = beats = Queue(self.i.payload.shape(), params.input_depth, spare=spare)
        m.submodules.blocks = blocks = Queue(
            block_layout(params), params.block_depth, registered=False
        )
        m.submodules.collector = collector = Collector(params)
        m.submodules.extractor = extractor = Extractor(params)
        m.submodules.positioner = positioner = Positioner(params)
        m.submodules.mac = mac = Mac(params)
        parser: Parser | MicrocodeParser
        if params.parser == "microcode":
            parser = MicrocodeParser(params)
            m.d.comb += parser.microcode_write.eq(self.microcode_write)
        else:
            parser = Parser(params)
            m.d.comb += parser.code_write.eq(self.code_write)
        m.submodules.parser = parser

        # The front: one enable moves it, as long as there is room for blocks. A beat waits for its
        # slot's turn.
        beat = beats.o.payload
        turn = Signal((slots - 1).bit_length())
        mine = Signal()
        enable = blocks.i.ready
        run_forms = [
            Mux(bank, self.codes[1].run_form, self.codes[0].run_form)
            if params.code_banks > 1
            else self.codes[0].run_form
            for bank in self.banks
        ]
        m.d.comb += [
            mine.eq(parser.turn == turn if slots > 1 else 1),
            beats.o.ready.eq(enable & mine),
            parser.enable.eq(enable),
            parser.drain.eq(self.drain),
            parser.codes.eq(self.codes),
            parser.i_valid.eq(beats.o.valid & mine),
            parser.i_first.eq(beat.first),
            parser.i_last.eq(beat.last),
            parser.i_parity.eq(beat.parity),
            parser.i_bank.eq(self.banks.bit_select(beat.parity, 1)),
            parser.i_bits.eq(beat.bits),
            collector.enable.eq(enable),
            collector.i_valid.eq(parser.o_valid),
            collector.i_slot.eq(parser.o_slot),
            collector.i_last.eq(parser.o_last),
            collector.i_parity.eq(parser.o_parity),
            collector.i_run_form.eq(Mux(parser.o_parity, run_forms[1], run_forms[0])),
            collector.i_bits.eq(parser.o_bits),
            collector.i_end.eq(parser.o_end),
            collector.i_event.eq(parser.o_event),
            blocks.i.valid.eq(collector.o_valid),
            blocks.i.payload.eq(collector.o),
        ]
        with m.If(beats.o.valid & beats.o.ready):
            m.d.sync += turn.eq(turn + 1)
        wiring.connect(m, wiring.flipped(self.i), beats.i)
        m.d.comb += self.roomy.eq(beats.roomy)

        # The back: one enable, which falls when a sum cannot leave.
        wiring.connect(m, blocks.o, extractor.i)
        wiring.connect(m, extractor.o, positioner.i)
        wiring.connect(m, mac.o, wiring.flipped(self.o))
        m.d.comb += [
            positioner.enable.eq(mac.enable),
            positioner.settings.eq(self.settings),
            positioner.code_write.eq(self.code_write),
            positioner.start_write.eq(self.start_write),
            positioner.selected.eq(self.selected),
            positioner.go.eq(self.go),
            mac.settings.eq(self.settings),
            mac.map_write.eq(self.map_write),
            mac.vector_write.eq(self.vector_write),
            mac.i.eq(positioner.o),
            self.multiply.eq(mac.multiply),
        ]
        for flags, found in ((self.bad_prefix, collector), (self.bad_index, mac)):
            for parity in range(2):
                for slot in range(slots):
                    # A register between is as many LUTs less: the flag needs none of its own.
                    here = Signal(name=f"bad_{parity}_{slot}")
                    flag = flags[parity * slots + slot]
                    matches = found.bad & (found.bad_parity == parity)
                    m.d.sync += here.eq(matches & (found.bad_slot == slot if slots > 1 else 1))
                    with m.If(here):
                        m.d.sync += flag.eq(1)
                    with m.If(self.clear_errors[parity]):
                        m.d.sync += flag.eq(0)
        return m
