"""Activation loader: takes one packet of the activation stream into an activation memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import ACTIVATION_BITS, AcceleratorParams
from egret_hw.lane import vector_write_layout

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
    setup : In(1)
        Take one packet: at once, or after the rest of a cancelled one has been discarded.
    cancel : In(1)
        Forget the packet; when it has begun, the rest of it is discarded.
    halted : In(1)
        Discard whatever comes.
    columns, memory
        Columns expected, and the activation memory to write; constant while busy.
    i : In(stream)
        `data`, batch vector b in bits 8b+7 : 8b, and `last`.
    write : Out(vector_write_layout)
        Writes.
    loaded : Out(1)
        Every column that will be written has been. From `setup` on it is low until then.
    busy : Out(1)
        The packet's last beat has not come.
    wrong_length : Out(1)
        The packet ended early or late; held until `setup`.
    received : Out
        Columns received when that was noticed.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        count_bits = params.activation_depth.bit_length()
        super().__init__(
            {
                "setup": In(1),
                "cancel": In(1),
                "halted": In(1),
                "columns": In(count_bits),
                "memory": In(1),
                "i": In(
                    stream.Signature(
                        data.StructLayout({"data": ACTIVATION_BITS * params.batch, "last": 1})
                    )
                ),
                "write": Out(vector_write_layout(params)),
                "loaded": Out(1),
                "busy": Out(1),
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
        wanted = Signal()
        m.d.comb += [
            self.i.ready.eq(ready & ~self.cancel),
            take.eq(self.i.valid & self.i.ready),
            last_column.eq(self.received + 1 == self.columns),
        ]
        with m.If(take):
            m.d.sync += in_packet.eq(~self.i.payload.last)
        m.d.sync += [
            self.write.enable.eq(0),
            self.write.address.eq(self.received),
            self.write.memory.eq(self.memory),
            self.write.activations.eq(self.i.payload.data),
        ]

        with m.If(self.setup):
            m.d.sync += [
                self.loaded.eq(0),
                self.wrong_length.eq(0),
                self.received.eq(0),
                wanted.eq(1),
            ]

        @contextmanager
        def state(name: str) -> Iterator[None]:
            """Open a state that `cancel` can leave."""
            with m.State(name):
                yield
                with m.If(self.cancel):
                    m.d.sync += wanted.eq(0)
                    with m.If(in_packet):
                        m.next = "Discard"
                    with m.Else():
                        m.next = "Idle"

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("Idle") | wanted)
            with state("Idle"):
                m.d.comb += ready.eq(self.halted)
                with m.If(self.setup | wanted):
                    m.d.sync += wanted.eq(0)
                    m.next = "Load"
            with state("Load"):
                m.d.comb += ready.eq(1)
                with m.If(take):
                    m.d.sync += [
                        self.write.enable.eq(~0),
                        self.received.eq(self.received + 1),
                        self.loaded.eq(self.i.payload.last | last_column),
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
