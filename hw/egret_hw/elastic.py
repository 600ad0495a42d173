"""Elastic buffer: cuts every path of a valid/ready stream at full rate."""

from amaranth.hdl import Module, Mux, ShapeLike, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ElasticBuffer"]


class ElasticBuffer(wiring.Component):
    """Two-entry buffer whose outputs, `ready` included, come from registers.

    Latency 1 cycle, throughput 1 transfer a cycle. Known in the field as a skid buffer.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the payload.

    Attributes
    ----------
    i : In(stream.Signature)
        Stream in.
    o : Out(stream.Signature)
        Stream out. `valid` holds and `payload` is stable until `ready`.
    level : Out(2)
        Entries held, 0 to 2.
    """

    def __init__(self, shape: ShapeLike) -> None:
        self._shape = shape
        super().__init__(
            {
                "i": In(stream.Signature(self._shape)),
                "o": Out(stream.Signature(self._shape)),
                "level": Out(2),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        # A payload that is not valid is not looked at: no reset has to reach it.
        payload = Signal(self._shape, reset_less=True)
        spare = Signal(self._shape, reset_less=True)
        spare_full = Signal()
        m.d.comb += [
            self.i.ready.eq(~spare_full),
            self.level.eq(self.o.valid + spare_full),
            self.o.payload.eq(payload),
        ]
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [
                payload.eq(Mux(spare_full, spare, self.i.payload)),
                self.o.valid.eq(spare_full | self.i.valid),
                spare_full.eq(0),
            ]
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += [spare.eq(self.i.payload), spare_full.eq(1)]
        return m
