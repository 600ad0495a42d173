"""Finisher: walks over a matrix's rows, requantises them, and sends or keeps what comes out."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import ErrorKind
from egret.params import BIAS_BITS, MULTIPLIER_BITS, RESULT_BITS, SHIFT_BITS, AcceleratorParams
from egret_hw.dealer import bias_write_layout
from egret_hw.elastic import ElasticBuffer
from egret_hw.layouts import vector_write_layout
from egret_hw.requantizer import Requantizer, SerialRequantizer
from egret_hw.row_store import walk_layout
from egret_hw.table_memory import table_memory

__all__ = ["Finisher", "job_layout", "output_layout"]


def output_layout() -> data.StructLayout:
    """Layout of the output stream: `data`, 32 bits; `last`; `user`, an error report."""
    return data.StructLayout({"data": RESULT_BITS, "last": 1, "user": 1})


def job_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of what is to be done with a matrix's sums.

    Returns
    -------
    data.StructLayout
        Fields of the MATRIX header; `bank` of the row store; `memory`, the activation memory that
        the results are kept in.
    """
    return data.StructLayout(
        {
            "rows": params.row_depth.bit_length(),
            "bias_base": (2 * params.row_depth - 1).bit_length(),
            "has_bias": 1,
            "relu": 1,
            "keep_activations": 1,
            "emit_results": 1,
            "emit_activations": 1,
            "multiplier": MULTIPLIER_BITS,
            "shift": SHIFT_BITS,
            "bank": 1,
            "memory": 1,
        }
    )


class Finisher(wiring.Component):
    """Go over the rows of a matrix that is known to be good, once or twice.

    With both kinds of output the raw results are sent in a first walk, the activations in a second
    one. The last walk leaves zeros in the row store.

    Latency 10 cycles from `start` to the first beat, throughput 1 vector of a row a cycle; with
    N = `params.requantizer_cycles` above 1, 2 + 7 N cycles, and a vector in N.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    start : In(1)
        Begin `job`; only while not `busy`.
    job : In(job_layout)
        What to do; sampled with `start`.
    walk : Out(walk_layout)
        Reads the row store.
    sums : In(array of batch)
        What it gives, two enabled cycles later.
    bias_write : In(bias_write_layout)
        Loads the bias memory.
    vector_write : Out(vector_write_layout)
        Results that become activations.
    report : In(1)
        Send one beat with `user` and `last` set, the error kind as data; only while `may_report`.
    kind : In
        Error kind, sampled with `report`.
    may_report : Out(1)
        The output is free.
    o : Out(stream of output_layout)
        The output stream.
    busy : Out(1)
        A job is being done.
    done : Out(1)
        Its last result is on its way, in this cycle.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "start": In(1),
                "job": In(job_layout(params)),
                "walk": Out(walk_layout(params)),
                "sums": In(data.ArrayLayout(signed(RESULT_BITS), params.batch)),
                "bias_write": In(bias_write_layout(params)),
                "vector_write": Out(vector_write_layout(params)),
                "report": In(1),
                "kind": In(ErrorKind),
                "may_report": Out(1),
                "o": Out(stream.Signature(output_layout())),
                "busy": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        batch = params.batch
        is_serial = params.requantizer_cycles > 1
        m.submodules.requantizer = requantizer = SerialRequantizer() if is_serial else Requantizer()
        m.submodules.buffer = buffer = ElasticBuffer(output_layout())
        m.submodules.biases = biases = table_memory(signed(BIAS_BITS), 2 * params.row_depth)
        bias_write, bias_read = biases.write_port(), biases.read_port()
        m.d.comb += [
            bias_write.en.eq(self.bias_write.enable),
            bias_write.addr.eq(self.bias_write.address),
            bias_write.data.eq(self.bias_write.bias),
        ]

        job = Signal(job_layout(params))
        row_shape = (params.row_depth - 1).bit_length()
        both = Signal()
        with m.If(self.start):
            m.d.sync += [
                job.eq(self.job),
                both.eq(self.job.emit_results & self.job.emit_activations),
                self.busy.eq(1),
            ]

        # What is read: every vector of every row, `second` in the second walk.
        enable = Signal()
        reading = Signal()
        row = Signal(row_shape)
        bias_address = Signal(bias_read.addr.shape())
        vector = Signal(range(max(2, batch)))
        second = Signal()
        last_vector = vector == batch - 1
        last_row = row + 1 == job.rows
        m.d.comb += [
            self.walk.active.eq(self.busy),
            self.walk.bank.eq(job.bank),
            self.walk.enable.eq(enable),
            self.walk.row.eq(row),
            self.walk.clear.eq(reading & last_vector & (second | ~both)),
            bias_read.addr.eq(bias_address),
            bias_read.en.eq(enable),
        ]
        with m.If(self.start):
            m.d.sync += [
                reading.eq(1),
                row.eq(0),
                vector.eq(0),
                second.eq(0),
                bias_address.eq(self.job.bias_base),
            ]
        with m.Elif(enable & reading):
            m.d.sync += vector.eq(Mux(last_vector, 0, vector + 1))
            with m.If(last_vector):
                m.d.sync += [row.eq(row + 1), bias_address.eq(bias_address + 1)]
                with m.If(last_row):
                    m.d.sync += [
                        row.eq(0),
                        bias_address.eq(job.bias_base),
                        second.eq(1),
                        reading.eq(both & ~second),
                    ]

        # Two stages of reading, then the requantiser.
        fetched = Signal(2)
        bias = Signal(signed(BIAS_BITS))
        vectors = [Signal.like(vector, name=f"vector_{stage}") for stage in range(2)]
        with m.If(enable):
            m.d.sync += [
                fetched.eq((fetched << 1) | reading),
                bias.eq(bias_read.data),
                vectors[0].eq(vector),
                vectors[1].eq(vectors[0]),
            ]
        m.d.comb += [
            requantizer.enable.eq(enable),
            requantizer.has_bias.eq(job.has_bias),
            requantizer.relu.eq(job.relu),
            requantizer.multiplier.eq(job.multiplier),
            requantizer.shift.eq(job.shift),
            requantizer.i_valid.eq(fetched[1]),
            requantizer.i_sum.eq(self.sums[vectors[1]]),
            requantizer.i_bias.eq(bias),
        ]

        # Results come in the same order, so counting tells which one it is.
        o_vector = Signal(range(max(2, batch)))
        o_row = Signal(row_shape)
        o_column = Signal((params.activation_depth - 1).bit_length())
        o_second = Signal()
        o_last_vector = o_vector == batch - 1
        o_last = o_last_vector & (o_row + 1 == job.rows)
        sends = job.emit_results | job.emit_activations
        o_activation = Signal()
        leaves = Signal()
        offers = requantizer.o_valid & sends
        moves = ~requantizer.o_valid | ~sends | buffer.i.ready
        if is_serial:
            # Idle between jobs, and ready for the next, so that all take equally long.
            m.d.comb += requantizer.restart.eq(self.start)
            moves &= requantizer.ready & self.busy
            offers &= requantizer.ready
        m.d.comb += [
            o_activation.eq(o_second | ~job.emit_results),
            enable.eq(moves),
            leaves.eq(requantizer.o_valid & enable),
            self.done.eq(self.busy & leaves & o_last & (o_second | ~both)),
        ]
        with m.If(self.start):
            m.d.sync += [
                o_vector.eq(0),
                o_row.eq(0),
                o_second.eq(0),
                o_column.eq(-self.job.rows),
            ]
        with m.Elif(leaves):
            m.d.sync += o_vector.eq(Mux(o_last_vector, 0, o_vector + 1))
            with m.If(o_last_vector):
                m.d.sync += [o_row.eq(o_row + 1), o_column.eq(o_column + 1)]
            with m.If(o_last):
                m.d.sync += [o_row.eq(0), o_second.eq(1)]
        with m.If(self.done):
            m.d.sync += self.busy.eq(0)
        with m.If(self.report):
            m.d.comb += [
                buffer.i.valid.eq(1),
                buffer.i.payload.data.eq(self.kind),
                buffer.i.payload.last.eq(1),
                buffer.i.payload.user.eq(1),
            ]
        with m.Else():
            m.d.comb += [
                buffer.i.valid.eq(offers),
                buffer.i.payload.data.eq(
                    Mux(o_activation, requantizer.o_activation, requantizer.o_result)
                ),
                buffer.i.payload.last.eq(o_last),
            ]
        m.d.comb += [
            self.o.payload.eq(buffer.o.payload),
            self.o.valid.eq(buffer.o.valid),
            buffer.o.ready.eq(self.o.ready),
            self.may_report.eq(~self.busy & buffer.i.ready),
        ]

        together = params.activation_columns
        place_bits = (together - 1).bit_length()
        m.d.sync += [
            self.vector_write.memory.eq(job.memory),
            self.vector_write.address.eq(o_column[place_bits:]),
        ]
        for place in range(together):
            for own in range(batch):
                number = place * batch + own
                m.d.sync += [
                    self.vector_write.enable[number].eq(
                        leaves
                        & job.keep_activations
                        & ~o_second
                        & (o_column[:place_bits] == place)
                        & (o_vector == own)
                    ),
                    self.vector_write.activations[number].eq(requantizer.o_activation),
                ]
        return m
