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
    """Write a packet's beats to ascending columns; check its length.

    Latency 1 cycle, throughput 1 column (of every vector in the batch) a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    start : In(1)
        Take one packet; only while `idle`.
    columns, memory
        Columns expected, and the activation memory to write; sampled with `start`.
    cancel : In(1)
        Forget the packet; when it has begun, the rest of it is discarded.
    halted : In(1)
        Discard whatever comes.
    i : In(stream)
        `data`, batch vector b in bits 8b+7 : 8b, and `last`.
    write : Out(vector_write_layout)
        Writes.
    idle : Out(1)
        A packet may be asked for.
    done : Out(1)
        Every column that will be written has been, in this cycle, and the packet's length is known.
    wrong_length : Out(1)
        The packet ended early or late; valid with `done`.
    received : Out
        Columns received when that was noticed.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        count_bits = params.activation_depth.bit_length()
        super().__init__(
            {
                "start": In(1),
                "columns": In(count_bits),
                "memory": In(1),
                "cancel": In(1),
                "halted": In(1),
                "i": In(
                    stream.Signature(
                        data.StructLayout({"data": ACTIVATION_BITS * params.batch, "last": 1})
                    )
                ),
                "write": Out(vector_write_layout(params)),
                "idle": Out(1),
                "done": Out(1),
                "wrong_length": Out(1),
                "received": Out(count_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        in_packet = Signal()
        last_column = Signal()
        take = Signal()
        ready = Signal()
        columns = Signal.like(self.columns)
        memory = Signal()
        address = Signal.like(self.write.address)
        m.d.comb += [
            self.i.ready.eq(ready & ~self.cancel),
            take.eq(self.i.valid & self.i.ready),
            last_column.eq(self.received + 1 == columns),
        ]
        with m.If(take):
            m.d.sync += in_packet.eq(~self.i.payload.last)
        m.d.sync += [
            self.write.enable.eq(0),
            self.write.address.eq(address),
            self.write.memory.eq(memory),
            self.write.activations.eq(self.i.payload.data),
            self.done.eq(0),
        ]

        @contextmanager
        def state(name: str) -> Iterator[None]:
            """Open a state that `cancel` can leave."""
            with m.State(name):
                yield
                with m.If(self.cancel):
                    m.d.sync += self.done.eq(0)
                    with m.If(in_packet):
                        m.next = "Discard"
                    with m.Else():
                        m.next = "Idle"

        with m.FSM():
            with state("Idle"):
                m.d.comb += [ready.eq(self.halted), self.idle.eq(1)]
                with m.If(self.start):
                    m.d.sync += [
                        self.received.eq(0),
                        columns.eq(self.columns),
                        memory.eq(self.memory),
                        address.eq(-self.columns),
                    ]
                    m.next = "Load"
            with state("Load"):
                m.d.comb += ready.eq(1)
                with m.If(take):
                    m.d.sync += [
                        self.write.enable.eq(~0),
                        address.eq(address + 1),
                        self.received.eq(self.received + 1),
                        self.done.eq(self.i.payload.last | last_column),
                        self.wrong_length.eq(self.i.payload.last != last_column),
                    ]
                    with m.If(self.i.payload.last):
                        m.next = "Idle"
                    with m.Elif(last_column):
                        m.next = "Discard"
            with state("Discard"):
                m.d.comb += ready.eq(1)
                with m.If(take & self.i.payload.last):
                    m.next = "Idle"
        return m
