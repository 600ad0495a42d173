"""Fan-out: hands a beat to all lanes at once, as soon as each has room for it."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import AcceleratorParams
from egret_hw.gearbox import beat_layout

__all__ = ["Fanout"]


class Fanout(wiring.Component):
    """Send beats to the lanes, which take their parts of a beat together.

    What the lanes say of their room, and the beat, each cross the array from a register; in one
    cycle they would set its clock. So lanes are asked for room in advance, and take what comes.
    A single lane answers at once, and so do queues that are too small to be asked in advance.

    Latency `fanout_cycles`, 1 or 0; throughput 1 beat a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream of beat_layout)
        Beats.
    ready : In(lanes)
        Each lane takes a beat in this cycle.
    roomy : In(lanes)
        Each lane's queue has at least `FANOUT_SPARE` free entries.
    cancel : In(1)
        Forget what is on its way.
    valid : Out(1)
        There is a beat in `o`, which each lane takes.
    o : Out(beat_layout)
        The beat.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        layout = beat_layout(params.beat_bits)
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "ready": In(params.lanes),
                "roomy": In(params.lanes),
                "cancel": In(1),
                "valid": Out(1),
                "o": Out(layout),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        if not self.params.fanout_cycles:
            m.d.comb += [
                self.i.ready.eq(self.ready.all()),
                self.valid.eq(self.i.valid & self.ready.all()),
                self.o.eq(self.i.payload),
            ]
            return m
        room = Signal()
        beat = Signal(data.StructLayout({"valid": 1, "beat": self.o.shape()}))
        m.d.comb += [self.i.ready.eq(room), self.valid.eq(beat.valid), self.o.eq(beat.beat)]
        m.d.sync += [
            room.eq(self.roomy.all()),
            beat.valid.eq(self.i.valid & room),
            beat.beat.eq(self.i.payload),
        ]
        with m.If(self.cancel):
            m.d.sync += beat.valid.eq(0)
        return m
