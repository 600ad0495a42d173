"""Activation loader: takes packets of the activation stream into the activation memories."""

from collections.abc import Iterator
from contextlib import contextmanager

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import ACTIVATION_BITS, AcceleratorParams
from egret_hw.layouts import vector_write_layout

__all__ = ["ActivationLoader"]


class ActivationLoader(wiring.Component):
    """Write a packet's beats to descending columns; hold it until it is used.

    The last column comes first, so that a packet can be taken before it is known how many columns
    it should have.

    Latency 1 cycle, throughput 1 beat a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    allow : In(1)
        A packet may begin.
    memory : In(1)
        The activation memory to write; sampled when it begins.
    release : In(1)
        The packet held has been used; the next one may begin.
    cancel : In(1)
        Forget the packet; when it has begun and not ended, the rest of it is discarded.
    halted : In(1)
        Discard whatever comes.
    i : In(stream)
        `data`, for the columns of a beat downwards one activation of each vector, and `last`.
    write : Out(vector_write_layout)
        Writes.
    beats : Out
        Beats taken of the present packet; no more than fill the memory.
    ended : Out(1)
        It has ended.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        self._depth = params.activation_depth // params.activation_columns
        super().__init__(
            {
                "allow": In(1),
                "memory": In(1),
                "release": In(1),
                "cancel": In(1),
                "halted": In(1),
                "i": In(
                    stream.Signature(
                        data.StructLayout({"data": params.activation_bus_bits, "last": 1})
                    )
                ),
                "write": Out(vector_write_layout(params)),
                "beats": Out(range(self._depth + 1)),
                "ended": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        in_packet = Signal()
        take = Signal()
        ready = Signal()
        memory = Signal()
        m.d.comb += [
            self.i.ready.eq(ready & ~self.cancel),
            take.eq(self.i.valid & self.i.ready),
        ]
        with m.If(take):
            m.d.sync += in_packet.eq(~self.i.payload.last)
        m.d.sync += [
            self.write.enable.eq(0),
            self.write.address.eq(~self.beats),
            self.write.memory.eq(memory),
        ]
        # A beat's first column has the highest address.
        column_bits = ACTIVATION_BITS * params.batch
        columns = [
            self.i.payload.data.word_select(column, column_bits)
            for column in reversed(range(params.activation_columns))
        ]
        for place, column in enumerate(columns):
            for vector in range(params.batch):
                m.d.sync += self.write.activations[place * params.batch + vector].eq(
                    column.word_select(vector, ACTIVATION_BITS)
                )

        @contextmanager
        def state(name: str) -> Iterator[None]:
            """Open a state that `cancel` can leave."""
            with m.State(name):
                yield
                with m.If(self.cancel):
                    m.d.sync += [self.beats.eq(0), self.ended.eq(0)]
                    with m.If(in_packet):
                        m.next = "Discard"
                    with m.Else():
                        m.next = "Idle"

        with m.FSM():
            with state("Idle"):
                m.d.comb += ready.eq(self.halted)
                m.d.sync += memory.eq(self.memory)
                with m.If(self.allow & ~self.halted):
                    m.next = "Load"
            with state("Load"):
                m.d.comb += ready.eq(1)
                with m.If(take):
                    m.d.sync += [
                        self.write.enable.eq(~0),
                        self.beats.eq(self.beats + 1),
                        self.ended.eq(self.i.payload.last),
                    ]
                    with m.If(self.i.payload.last | (self.beats == self._depth - 1)):
                        m.next = "Hold"
            with state("Hold"), m.If(self.release):
                m.d.sync += [self.beats.eq(0), self.ended.eq(0)]
                m.next = "Idle"
            with state("Discard"):
                m.d.comb += ready.eq(1)
                with m.If(take & self.i.payload.last):
                    m.next = "Idle"
        return m
