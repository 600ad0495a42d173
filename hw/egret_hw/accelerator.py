"""The accelerator: weight stream and activations in, results out."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import ErrorKind
from egret.params import AcceleratorParams
from egret_hw.activation_loader import ActivationLoader
from egret_hw.dealer import Dealer
from egret_hw.elastic import ElasticBuffer
from egret_hw.fanout import Fanout
from egret_hw.finisher import Finisher, output_layout
from egret_hw.gearbox import Gearbox
from egret_hw.lane import Lane, LaneSettings
from egret_hw.layouts import (
    code_layout,
    code_write_layout,
    map_write_layout,
    microcode_write_layout,
    start_write_layout,
    vector_write_layout,
)
from egret_hw.microcode import MicrocodeWriter
from egret_hw.packet_reader import POSITION_BITS, PacketReader
from egret_hw.readout import ReadoutNode
from egret_hw.registers import COUNTERS, REGISTER_BITS
from egret_hw.row_store import RowStore
from egret_hw.tracker import MatrixTracker

__all__ = ["Accelerator", "status_layout"]


def status_layout() -> data.StructLayout:
    """Layout of the status.

    Returns
    -------
    data.StructLayout
        `error`, sticky kind; `position`; the counters of `egret_hw.registers.COUNTERS`.
    """
    return data.StructLayout(
        {
            "error": ErrorKind,
            "position": POSITION_BITS,
            **{register.name.lower(): REGISTER_BITS for register in COUNTERS},
        }
    )


class Accelerator(wiring.Component):
    """Core: everything but the bus wrapper.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    clear : In(1)
        Soft reset: leave the error state. Packets under way are discarded to their end; results
        that are being sent are sent in full; the counters go to 0. The first words after it wait
        for `row_depth` cycles.
    weights : In(stream)
        Bus words of the hardware image: `data`, `last`.
    activations : In(stream)
        Columns: `data`, `last`.
    results : Out(stream of output_layout)
        Results.
    status : Out(status_layout)
        Error and counters.
    matrix_done : Out(1)
        A matrix has turned out good, in this cycle; its results follow.
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
                        data.StructLayout({"data": params.activation_bus_bits, "last": 1})
                    )
                ),
                "results": Out(stream.Signature(output_layout())),
                "status": Out(status_layout()),
                "matrix_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        m.submodules.reader = reader = PacketReader(params)
        cancel = ResetInserter(reader.cancel)
        m.submodules.weights_in = weights_in = ElasticBuffer(self.weights.payload.shape())
        m.submodules.loader = loader = ActivationLoader(params)
        m.submodules.store = store = RowStore(params)
        m.submodules.finisher = finisher = Finisher(params)
        dealer = Dealer(params)
        gearbox = Gearbox(params)
        tracker = MatrixTracker(params)
        m.submodules.dealer = cancel(dealer)
        m.submodules.gearbox = cancel(gearbox)
        m.submodules.tracker = cancel(tracker)
        wiring.connect(m, wiring.flipped(self.weights), weights_in.i)
        wiring.connect(m, weights_in.o, reader.i)
        wiring.connect(m, wiring.flipped(self.activations), loader.i)
        wiring.connect(m, reader.section, dealer.section)
        wiring.connect(m, reader.words, dealer.words)
        wiring.connect(m, reader.payload, gearbox.i)
        wiring.connect(m, finisher.o, wiring.flipped(self.results))

        # Codes: settings by bank, held here; tables go to the lanes, microcode through its writer.
        codes = Signal(data.ArrayLayout(code_layout(), 2))
        loaded = Signal(params.code_banks)
        busy_coding = Signal()
        was_coding = Signal()
        microcode_write = Signal(microcode_write_layout())
        m.d.sync += was_coding.eq(dealer.coding)
        if params.parser == "microcode":
            writer = MicrocodeWriter(params)
            m.submodules.writer = cancel(writer)
            m.d.comb += [
                writer.start.eq(was_coding & ~dealer.coding),
                writer.settings.eq(codes[0]),
                writer.code_write.eq(dealer.code_write),
                busy_coding.eq(dealer.coding | was_coding | writer.busy),
            ]
            m.d.sync += microcode_write.eq(writer.microcode_write)
        else:
            m.d.comb += busy_coding.eq(dealer.coding | was_coding)
        code = reader.code
        for bank in range(params.code_banks):
            held = codes[bank]
            with m.If(reader.load_code & (code.bank == bank)):
                m.d.sync += loaded[bank].eq(1)
                m.d.sync += [
                    held[name].eq(code[name])
                    for name in (
                        "run_form",
                        "dense",
                        "level_golomb",
                        "run_golomb",
                        "level_last",
                        "run_last",
                    )
                ]
            written = dealer.code_write
            with m.If(written.enable & (written.bank == bank) & (written.number == 0)):
                with m.If(written.run):
                    m.d.sync += [
                        held.run_order.eq(written.suffix_bits),
                        held.run_offset.eq(written.offset),
                    ]
                with m.Else():
                    m.d.sync += [
                        held.level_order.eq(written.suffix_bits),
                        held.level_offset.eq(written.offset),
                    ]
        with m.If(reader.cancel):
            m.d.sync += loaded.eq(0)

        may_send = Signal()
        m.d.sync += [
            may_send.eq(~busy_coding),
            # From registers: once the first two are true, only the reader's next packet makes them
            # false, whose header takes longer than that.
            reader.may_allocate.eq(tracker.may_allocate),
            reader.may_load_code.eq(
                ~busy_coding
                & ~tracker.banks_in_use.bit_select(
                    code.bank[: (params.code_banks - 1).bit_length()], 1
                )
            ),
            # A third matrix, before the two that a load must spare, may be with the finisher.
            reader.may_load_bias.eq(~finisher.busy & ~tracker.finish),
        ]
        m.d.comb += [
            reader.clear.eq(self.clear),
            reader.parity.eq(tracker.parity),
            reader.banks_loaded.eq(loaded),
            # A code that has just been announced shows in `busy_coding` one cycle later.
            reader.may_send.eq(may_send & ~busy_coding),
            reader.kept.eq(tracker.kept),
            reader.in_flight.eq(tracker.in_flight),
            reader.late.eq(tracker.late),
            reader.late_error.eq(tracker.late_error),
            reader.late_position.eq(tracker.late_position),
            reader.sender_busy.eq(~finisher.may_report),
            reader.wiped.eq(store.wiped),
            tracker.allocate.eq(reader.allocate),
            tracker.header.eq(reader.matrix),
            tracker.passed.eq(reader.passed),
            tracker.cancel.eq(reader.cancel),
            tracker.load_beats.eq(loader.beats),
            tracker.load_ended.eq(loader.ended),
            tracker.complete.eq(store.complete),
            tracker.beyond.eq(store.beyond),
            tracker.beyond_substream.eq(store.beyond_substream),
            tracker.finishing.eq(finisher.busy),
            loader.allow.eq(tracker.load_allow),
            loader.memory.eq(tracker.load_memory),
            loader.release.eq(tracker.load_release),
            loader.cancel.eq(reader.cancel),
            loader.halted.eq(reader.halted),
            dealer.column_bits.eq(tracker.column_bits),
            store.start.eq(dealer.start),
            store.rows.eq(tracker.rows),
            store.banks.eq(tracker.row_banks),
            store.release.eq(tracker.release),
            store.cancel.eq(reader.cancel),
            store.walk.eq(finisher.walk),
            store.wipe.eq(reader.wipe),
            finisher.start.eq(tracker.finish),
            finisher.job.eq(tracker.job),
            finisher.sums.eq(store.sums),
            finisher.bias_write.eq(dealer.bias_write),
            finisher.report.eq(reader.reject),
            finisher.kind.eq(reader.error),
        ]

        # Broadcasts to the lanes, each from a register.
        vector_write = Signal(vector_write_layout(params))
        map_write = Signal(map_write_layout(params))
        code_write = Signal(code_write_layout())
        start_write = Signal(start_write_layout(params))
        start_lane = Signal(range(max(2, params.lanes)))
        final = Signal()
        start = dealer.start
        slot_bits = (params.slots - 1).bit_length()
        matrices = tracker.matrices
        start_columns = Mux(start.parity, matrices[1].columns, matrices[0].columns)
        m.d.sync += [
            vector_write.eq(Mux(loader.write.enable.any(), loader.write, finisher.vector_write)),
            map_write.eq(dealer.map_write),
            code_write.eq(dealer.code_write),
            start_write.enable.eq(start.enable),
            start_write.parity.eq(start.parity),
            start_write.slot.eq(start.substream[:slot_bits]),
            start_write.position.eq(start.column - start_columns - 1),
            start_lane.eq(start.substream[slot_bits:]),
            final.eq(start.enable & start.final),
            tracker.placed.eq(0),
        ]
        with m.If(final):
            m.d.sync += tracker.placed.eq(1 << start_write.parity)
        with m.If(reader.cancel):
            # What is on its way must not reach lanes and books that have just been emptied.
            m.d.sync += [
                start_write.enable.eq(0),
                final.eq(0),
                tracker.placed.eq(0),
                was_coding.eq(0),
            ]
        # More leading zeros than a table's last class has belong to its suffix, so that the entries
        # behind it repeat it.
        written = dealer.code_write
        settings = Mux(written.bank, codes[1].as_value(), codes[0].as_value())
        settings = data.View(code_layout(), settings)
        last = Mux(written.run, settings.run_last, settings.level_last)
        with m.If(written.number > last):
            m.d.sync += [
                code_write.suffix_bits.eq(code_write.suffix_bits),
                code_write.offset.eq(code_write.offset),
            ]

        # The array is emptied a cycle later: its resets are long wires.
        lanes_cancel = Signal()
        m.d.sync += lanes_cancel.eq(reader.cancel)
        cancel_lanes = ResetInserter(lanes_cancel)
        lane_settings = LaneSettings(params)
        m.submodules.lane_settings = cancel_lanes(lane_settings)
        m.d.comb += [
            lane_settings.codes.eq(codes),
            lane_settings.matrices.eq(matrices),
            lane_settings.start_write.eq(start_write),
        ]
        lanes = [Lane(params) for _ in range(params.lanes)]
        nodes = [ReadoutNode(params, params.lanes - 1 - index) for index in range(params.lanes)]
        m.submodules.fanout = fanout = Fanout(params)
        wiring.connect(m, gearbox.o, fanout.i)
        beat = fanout.o
        m.d.comb += [
            fanout.ready.eq(Cat(lane.i.ready for lane in lanes)),
            fanout.roomy.eq(Cat(lane.roomy for lane in lanes)),
            fanout.cancel.eq(reader.cancel),
        ]
        bad_prefix = []
        bad_index = []
        for index, (lane, node) in enumerate(zip(lanes, nodes, strict=True)):
            m.submodules[f"lane_{index}"] = cancel_lanes(lane)
            m.submodules[f"readout_{index}"] = cancel_lanes(node)
            m.d.comb += [
                lane.codes.eq(codes),
                lane.banks.eq(Cat(matrix.code_bank for matrix in matrices)),
                lane.settings.eq(lane_settings.o),
                lane.code_write.eq(code_write),
                lane.microcode_write.eq(microcode_write),
                lane.map_write.eq(map_write),
                lane.vector_write.eq(vector_write),
                lane.start_write.eq(start_write),
                lane.selected.eq(start_lane == index),
                lane.drain.eq(reader.settling),
                lane.go.eq(tracker.go),
                lane.clear_errors.eq(tracker.release),
                lane.i.valid.eq(fanout.valid),
                lane.i.payload.bits.eq(beat.bits.word_select(index, params.parser_bits)),
                lane.i.payload.first.eq(beat.first),
                lane.i.payload.last.eq(beat.last),
                lane.i.payload.parity.eq(beat.parity),
                node.lane.valid.eq(lane.o.valid),
                node.lane.payload.parity.eq(lane.o.payload.parity),
                node.lane.payload.substream.eq(
                    (index << slot_bits) | lane.o.payload.slot[:slot_bits]
                ),
                node.lane.payload.last.eq(lane.o.payload.last),
                node.lane.payload.sums.eq(lane.o.payload.sums),
                lane.o.ready.eq(node.lane.ready),
            ]
            bad_prefix.append(lane.bad_prefix)
            bad_index.append(lane.bad_index)
        for node, behind in pairwise(nodes):
            wiring.connect(m, behind.o, node.behind)
        m.d.comb += [
            store.i.valid.eq(nodes[0].o.valid & ~lanes_cancel),
            store.i.payload.eq(nodes[0].o.payload),
            nodes[0].o.ready.eq(store.i.ready),
        ]
        for flags, errors in ((tracker.bad_prefix, bad_prefix), (tracker.bad_index, bad_index)):
            m.d.comb += flags.eq(
                Cat(
                    error[parity * params.slots :][: params.slots]
                    for parity in range(2)
                    for error in errors
                )
            )

        status = self.status
        counters = {
            name: Signal(REGISTER_BITS, name=name)
            for name in (register.name.lower() for register in COUNTERS)
        }
        running = Signal()
        multiplied = Signal(range(params.lanes + 1))
        multiplies = Array(lane.multiply for lane in lanes)
        m.d.comb += [
            running.eq(reader.reading | tracker.in_flight.any() | finisher.busy),
            multiplied.eq(Mux(lanes_cancel, 0, sum(multiplies))),
            status.error.eq(reader.error),
            status.position.eq(reader.position),
            self.matrix_done.eq(tracker.judged),
        ]
        waits = reader.i.valid & ~reader.i.ready
        for name, step in {
            "matrices": tracker.judged,
            "cycles": running,
            "words": reader.i.valid & reader.i.ready,
            "payload_words": reader.payload_word,
            "stalls": running & waits,
            "starved": running & ~reader.i.valid,
            "multiplies": multiplied,
            "weights": Mux(tracker.judged, tracker.weights, 0),
        }.items():
            # From a register: what is counted is known late in its cycle.
            held = Signal.like(Value.cast(step), name=f"{name}_step")
            m.d.sync += [held.eq(step), counters[name].eq(counters[name] + held)]
            m.d.comb += status[name].eq(counters[name])
            with m.If(self.clear):
                m.d.sync += [held.eq(0), counters[name].eq(0)]
        return m
