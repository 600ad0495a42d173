"""Queue: a first-in first-out buffer whose outputs, `ready` included, come from registers."""

from amaranth.hdl import Module, ShapeLike, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from egret_hw.elastic import ElasticBuffer

__all__ = ["Queue"]


class Queue(wiring.Component):
    """First-in first-out buffer in LUT memory; of registers where it is only two deep.

    Latency 2 cycles (1 where two deep), throughput 1 transfer a cycle.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the payload.
    depth : int
        Entries that it holds at least. A power of two.

    Attributes
    ----------
    i : In(stream.Signature)
        Stream in.
    o : Out(stream.Signature)
        Stream out. `valid` holds and `payload` is stable until `ready`.
    """

    def __init__(self, shape: ShapeLike, depth: int) -> None:
        self._shape = shape
        self._depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        depth = self._depth
        if depth == 2:
            m.submodules.buffer = buffer = ElasticBuffer(self._shape)
            wiring.connect(m, wiring.flipped(self.i), buffer.i)
            wiring.connect(m, buffer.o, wiring.flipped(self.o))
            return m
        m.submodules.entries = entries = memory.Memory(shape=self._shape, depth=depth, init=[])
        write, read = entries.write_port(), entries.read_port(domain="comb")
        # One bit more than an address tells a full memory from an empty one.
        written = Signal(depth.bit_length())
        taken = Signal(depth.bit_length())
        some = Signal()
        move = Signal()
        m.d.comb += [
            some.eq(written != taken),
            self.i.ready.eq((written[:-1] != taken[:-1]) | (written[-1] == taken[-1])),
            write.en.eq(self.i.valid & self.i.ready),
            write.addr.eq(written),
            write.data.eq(self.i.payload),
            read.addr.eq(taken),
            move.eq(some & (~self.o.valid | self.o.ready)),
        ]
        with m.If(write.en):
            m.d.sync += written.eq(written + 1)
        with m.If(move):
            m.d.sync += [taken.eq(taken + 1), self.o.payload.eq(read.data), self.o.valid.eq(1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m
