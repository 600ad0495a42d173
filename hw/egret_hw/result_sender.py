"""Result sender: keeps a matrix's results until its CRC has passed, then streams them out."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from egret.image_format import ErrorKind
from egret.params import ACTIVATION_BITS, RESULT_BITS, AcceleratorParams
from egret_hw.requantizer import result_layout

__all__ = ["ResultSender", "output_layout"]

_FIFO_DEPTH = 4


def output_layout() -> data.StructLayout:
    """Layout of the output stream: `data`, 32 bits; `last`; `user`, an error report."""
    return data.StructLayout({"data": RESULT_BITS, "last": 1, "user": 1})


class ResultSender(wiring.Component):
    """Buffer of one matrix's results, and its reader.

    Latency 3 cycles from `send` to the first beat, throughput 1 beat a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    write : In(1)
        Store `result`; only while not `busy`.
    result : In(result_layout)
        The result.
    send : In(1)
        Stream the buffer out: a packet of raw results where `emit_results`, then one of
        activations where `emit_activations`.
    emit_results, emit_activations : In(1)
        Sampled with `send`.
    rows : In
        Rows, sampled with `send`.
    report : In(1)
        Send one beat with `user` and `last` set and the error kind as data.
    kind : In
        Error kind, sampled with `report`.
    o : Out(stream of output_layout)
        The stream.
    busy : Out(1)
        Sending; `send` and `report` are only given while not busy.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "write": In(1),
                "result": In(result_layout(params)),
                "send": In(1),
                "emit_results": In(1),
                "emit_activations": In(1),
                "rows": In(params.row_depth.bit_length()),
                "report": In(1),
                "kind": In(ErrorKind),
                "o": Out(stream.Signature(output_layout())),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        layout = result_layout(params)
        vector_bits = (params.batch - 1).bit_length()
        row_bits = layout["row"].width
        m.submodules.memory = memory = Memory(
            shape=data.StructLayout(
                {"result": signed(RESULT_BITS), "activation": signed(ACTIVATION_BITS)}
            ),
            depth=params.row_depth << vector_bits,
            init=[],
        )
        write, read = memory.write_port(), memory.read_port()
        m.submodules.fifo = fifo = SyncFIFO(width=output_layout().size, depth=_FIFO_DEPTH)
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(Cat(self.result.vector[:vector_bits], self.result.row)),
            write.data.result.eq(self.result.result),
            write.data.activation.eq(self.result.activation),
        ]

        rows = Signal(self.rows.shape())
        also_activations = Signal()
        activations = Signal()
        row = Signal(row_bits)
        vector = Signal(max(1, vector_bits))
        last_vector = vector == params.batch - 1
        last_beat = last_vector & (row + 1 == rows)
        reading = Signal()
        fetched = Signal(data.StructLayout({"valid": 1, "last": 1, "activations": 1}))
        room = Signal()
        beat = Signal(output_layout())
        m.d.comb += [
            read.addr.eq(Cat(vector[:vector_bits], row)),
            room.eq(fifo.level + fetched.valid < _FIFO_DEPTH),
        ]
        m.d.sync += [
            fetched.valid.eq(reading & room),
            fetched.last.eq(last_beat),
            fetched.activations.eq(activations),
        ]
        with m.If(reading & room):
            m.d.sync += vector.eq(Mux(last_vector, 0, vector + 1))
            with m.If(last_vector):
                m.d.sync += row.eq(row + 1)
            with m.If(last_beat):
                m.d.sync += [
                    row.eq(0),
                    activations.eq(1),
                    reading.eq(also_activations & ~activations),
                ]
        with m.If(self.send):
            m.d.sync += [
                rows.eq(self.rows),
                also_activations.eq(self.emit_activations),
                activations.eq(~self.emit_results),
                reading.eq(self.emit_results | self.emit_activations),
            ]
        with m.If(self.report):
            m.d.comb += [beat.data.eq(self.kind), beat.last.eq(1), beat.user.eq(1)]
        with m.Else():
            m.d.comb += [
                beat.data.eq(Mux(fetched.activations, read.data.activation, read.data.result)),
                beat.last.eq(fetched.last),
            ]
        m.d.comb += [
            fifo.w_data.eq(beat),
            fifo.w_en.eq(fetched.valid | self.report),
            self.o.payload.eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
            self.busy.eq(reading | fetched.valid | fifo.r_rdy),
        ]
        return m
