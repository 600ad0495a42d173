"""The accelerator: weight stream and activations in, results out."""

from itertools import pairwise

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    Module,
    Mux,
    ResetInserter,
    ResetSignal,
    Signal,
)
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import ErrorKind
from egret.params import ACTIVATION_BITS, RESULT_BITS, AcceleratorParams
from egret_hw.activation_loader import ActivationLoader
from egret_hw.elastic import ElasticBuffer
from egret_hw.gearbox import Gearbox
from egret_hw.lane import Lane, vector_write_layout
from egret_hw.packet_reader import PacketReader
from egret_hw.readout import ReadoutNode
from egret_hw.requantizer import Requantizer
from egret_hw.result_sender import ResultSender, output_layout
from egret_hw.table_dealer import TableDealer

__all__ = ["COUNTER_BITS", "Accelerator", "AcceleratorTop"]

COUNTER_BITS = 32
"""Width of the status counters; they wrap."""


class Accelerator(wiring.Component):
    """Core: everything but the names of the ports.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    clear : In(1)
        Soft reset: leave the error state. Packets under way are discarded to their end; results
        that were already accepted are still sent; the counters go to 0.
    weights : In(stream)
        Bus words of the hardware image: `data`, `last`.
    activations : In(stream)
        Columns: `data`, `last`.
    results : Out(stream of output_layout)
        Results.
    error, position
        Sticky error kind and position (docs/format.md, "Errors").
    matrices : Out(32)
        Good matrices since reset.
    cycles : Out(32)
        Cycles in which a packet was under way.
    words : Out(32)
        Bus words taken.
    stalls : Out(32)
        Cycles in which a bus word waited while a packet was under way.
    multiplies : Out(32)
        Weights multiplied, zeros not counted. Each is `batch` multiplications.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "clear": In(1),
                "weights": In(
                    stream.Signature(data.StructLayout({"data": params.bus_bits, "last": 1}))
                ),
                "activations": In(
                    stream.Signature(
                        data.StructLayout({"data": ACTIVATION_BITS * params.batch, "last": 1})
                    )
                ),
                "results": Out(stream.Signature(output_layout())),
                "error": Out(ErrorKind),
                "position": Out(32),
                "matrices": Out(COUNTER_BITS),
                "cycles": Out(COUNTER_BITS),
                "words": Out(COUNTER_BITS),
                "stalls": Out(COUNTER_BITS),
                "multiplies": Out(COUNTER_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        reader = PacketReader(params)
        m.submodules.reader = reader
        cancel = ResetInserter(reader.cancel)
        m.submodules.weights_in = weights_in = ElasticBuffer(self.weights.payload.shape())
        m.submodules.loader = loader = ActivationLoader(params)
        dealer = TableDealer(params)
        gearbox = Gearbox(params.bus_bits, params.beat_bits)
        requantizer = Requantizer(params)
        m.submodules.dealer = cancel(dealer)
        m.submodules.gearbox = cancel(gearbox)
        m.submodules.requantizer = cancel(requantizer)
        m.submodules.sender = sender = ResultSender(params)
        d = reader.descriptor
        wiring.connect(m, wiring.flipped(self.weights), weights_in.i)
        wiring.connect(m, weights_in.o, reader.i)
        wiring.connect(m, wiring.flipped(self.activations), loader.i)
        wiring.connect(m, reader.tables, dealer.i)
        wiring.connect(m, reader.payload, gearbox.i)
        wiring.connect(m, sender.o, wiring.flipped(self.results))

        # Which activation memory the present matrix reads; the other one takes its results.
        memory = Signal()
        vector_write = Signal(vector_write_layout(params))
        requantized = requantizer.o
        m.d.comb += [
            loader.setup.eq(reader.setup & d.load_activations),
            loader.cancel.eq(reader.cancel),
            loader.halted.eq(reader.halted),
            loader.columns.eq(d.columns),
            loader.memory.eq(memory),
            reader.clear.eq(self.clear),
            reader.loaded.eq(loader.loaded),
            reader.tables_done.eq(dealer.done),
            dealer.setup.eq(reader.setup),
            dealer.zigzag.eq(d.zigzag),
            dealer.map_entries.eq(d.map_entries),
        ]
        with m.If(loader.write.enable.any()):
            m.d.sync += vector_write.eq(loader.write)
        with m.Else():
            m.d.sync += [
                vector_write.enable.eq(
                    Mux(
                        requantizer.o_valid & requantizer.enable & d.keep_activations,
                        1 << requantized.vector,
                        0,
                    )
                ),
                vector_write.memory.eq(~memory),
                vector_write.address.eq(requantized.row),
            ]
            for vector in range(params.batch):
                m.d.sync += vector_write.activations[vector].eq(requantized.activation)

        lanes = [Lane(params) for _ in range(params.lanes)]
        nodes = [ReadoutNode(params) for _ in range(params.lanes)]
        all_ready = Cat(*(lane.i.ready for lane in lanes)).all()
        m.d.comb += gearbox.o.ready.eq(all_ready)
        flush = reader.ended & ~gearbox.o.valid
        table_write = Signal.like(dealer.write)
        m.d.sync += table_write.eq(dealer.write)
        for index, (lane, node) in enumerate(zip(lanes, nodes, strict=True)):
            m.submodules[f"lane_{index}"] = cancel(lane)
            m.submodules[f"readout_{index}"] = cancel(node)
            m.d.comb += [
                lane.selected.eq(table_write.address >> (params.slots.bit_length() - 1) == index),
                lane.start.eq(reader.start),
                lane.flush.eq(flush),
                lane.order.eq(d.order),
                lane.dense.eq(d.dense),
                lane.zigzag.eq(d.zigzag),
                lane.columns.eq(d.columns),
                lane.map_entries.eq(d.map_entries),
                lane.memory.eq(memory),
                lane.table_write.eq(table_write),
                lane.vector_write.eq(vector_write),
                lane.i.valid.eq(gearbox.o.valid & all_ready),
                lane.i.payload.eq(gearbox.o.payload.word_select(index, params.parser_bits)),
            ]
            row = lane.o.payload
            slot = row.slot if params.slots > 1 else 0
            m.d.comb += [
                node.lane.valid.eq(lane.o.valid),
                node.lane.payload.entry.eq(
                    row.row * params.substreams + index * params.slots + slot
                ),
                node.lane.payload.sums.eq(row.sums),
                lane.o.ready.eq(node.lane.ready),
            ]
        for node, behind in pairwise(nodes):
            wiring.connect(m, behind.o, node.behind)
        wiring.connect(m, nodes[0].o, requantizer.i)

        emits = d.emit_results | d.emit_activations
        m.d.comb += [
            requantizer.enable.eq(~(emits & sender.busy)),
            requantizer.has_bias.eq(d.has_bias),
            requantizer.relu.eq(d.relu),
            requantizer.multiplier.eq(d.multiplier),
            requantizer.shift.eq(d.shift),
            requantizer.rows_write.eq(reader.rows_write),
            requantizer.bias_write.eq(reader.bias_write),
            requantizer.word_address.eq(reader.word_address),
            requantizer.word.eq(reader.word),
            sender.write.eq(requantizer.o_valid & requantizer.enable & emits),
            sender.result.eq(requantized),
            sender.rows.eq(d.rows),
            sender.emit_results.eq(d.emit_results),
            sender.emit_activations.eq(d.emit_activations),
            sender.send.eq(reader.accept),
            sender.report.eq(reader.reject),
            sender.kind.eq(reader.error),
            reader.sender_busy.eq(sender.busy),
        ]
        # Registered, as `late_error` is: the last block may be the one that brings the error.
        m.d.sync += reader.drained.eq(
            ~(
                gearbox.o.valid
                | ~Cat(*(lane.idle for lane in lanes)).all()
                | Cat(*(node.busy for node in nodes)).any()
                | requantizer.busy
                | loader.busy
            )
        )
        with m.If(reader.accept & d.keep_activations):
            m.d.sync += memory.eq(~memory)

        # What only shows at the end: a wrong activation packet, then the lowest substream's error.
        m.d.sync += [reader.late_error.eq(ErrorKind.NONE), reader.late_position.eq(0)]
        for index, lane in reversed(list(enumerate(lanes))):
            for slot in reversed(range(params.slots)):
                with m.If(lane.bad_index[slot]):
                    m.d.sync += reader.late_error.eq(ErrorKind.INDEX)
                with m.Elif(lane.bad_prefix[slot]):
                    m.d.sync += reader.late_error.eq(ErrorKind.PREFIX)
                with m.Elif(lane.unfinished[slot]):
                    m.d.sync += reader.late_error.eq(ErrorKind.SHORT)
                with m.If(lane.bad_index[slot] | lane.bad_prefix[slot] | lane.unfinished[slot]):
                    m.d.sync += reader.late_position.eq(index * params.slots + slot)
        with m.If(loader.wrong_length & d.load_activations):
            m.d.sync += [
                reader.late_error.eq(ErrorKind.ACTIVATIONS),
                reader.late_position.eq(loader.received),
            ]

        multiplied = Signal(range(params.lanes + 1))
        m.d.sync += [
            multiplied.eq(sum(lane.multiply for lane in lanes)),
            self.multiplies.eq(self.multiplies + multiplied),
            self.matrices.eq(self.matrices + reader.accept),
            self.cycles.eq(self.cycles + reader.running),
            self.words.eq(self.words + (reader.i.valid & reader.i.ready)),
            self.stalls.eq(self.stalls + (reader.running & reader.i.valid & ~reader.i.ready)),
        ]
        with m.If(self.clear):
            m.d.sync += [
                counter.eq(0)
                for counter in (
                    multiplied,
                    self.multiplies,
                    self.matrices,
                    self.cycles,
                    self.words,
                    self.stalls,
                )
            ]
        m.d.comb += [self.error.eq(reader.error), self.position.eq(reader.position)]
        return m


class AcceleratorTop(wiring.Component):
    """Wrapper with AXI4-Stream names, `aclk` and an active-low `aresetn`.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        status = ("position", "matrices", "cycles", "words", "stalls", "multiplies")
        self._status = status
        super().__init__(
            {
                "aclk": In(1),
                "aresetn": In(1),
                "clear": In(1),
                "s_axis_weight_tvalid": In(1),
                "s_axis_weight_tready": Out(1),
                "s_axis_weight_tdata": In(params.bus_bits),
                "s_axis_weight_tlast": In(1),
                "s_axis_act_tvalid": In(1),
                "s_axis_act_tready": Out(1),
                "s_axis_act_tdata": In(ACTIVATION_BITS * params.batch),
                "s_axis_act_tlast": In(1),
                "m_axis_out_tvalid": Out(1),
                "m_axis_out_tready": In(1),
                "m_axis_out_tdata": Out(RESULT_BITS),
                "m_axis_out_tlast": Out(1),
                "m_axis_out_tuser": Out(1),
                "status_error": Out(4),
                **{f"status_{name}": Out(32) for name in status},
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.core = core = Accelerator(self.params)
        m.d.comb += [
            ClockSignal().eq(self.aclk),
            ResetSignal().eq(~self.aresetn),
            core.clear.eq(self.clear),
            core.weights.valid.eq(self.s_axis_weight_tvalid),
            core.weights.payload.data.eq(self.s_axis_weight_tdata),
            core.weights.payload.last.eq(self.s_axis_weight_tlast),
            self.s_axis_weight_tready.eq(core.weights.ready),
            core.activations.valid.eq(self.s_axis_act_tvalid),
            core.activations.payload.data.eq(self.s_axis_act_tdata),
            core.activations.payload.last.eq(self.s_axis_act_tlast),
            self.s_axis_act_tready.eq(core.activations.ready),
            self.m_axis_out_tvalid.eq(core.results.valid),
            self.m_axis_out_tdata.eq(core.results.payload.data),
            self.m_axis_out_tlast.eq(core.results.payload.last),
            self.m_axis_out_tuser.eq(core.results.payload.user),
            core.results.ready.eq(self.m_axis_out_tready),
            self.status_error.eq(core.error),
        ]
        for name in self._status:
            m.d.comb += getattr(self, f"status_{name}").eq(getattr(core, name))
        return m
