"""Queue: a first-in first-out buffer in LUT memory."""

from functools import reduce
from operator import xor

from amaranth.hdl import Cat, Module, ShapeLike, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from egret_hw.elastic import ElasticBuffer
from egret_hw.table_memory import table_memory

__all__ = ["Queue"]

_TAPS = {1: (0,), 2: (1, 0), 3: (2, 1), 4: (3, 2), 5: (4, 2), 6: (5, 4)}
"""Bits of a shift register whose sum makes it pass through all states but 0, by its length."""


def _next_address(address: Signal) -> Value:
    """Return what follows an address in a cycle through all of them.

    A shift register costs one LUT where a counter costs one for every bit.
    """
    taps = [address[tap] for tap in _TAPS[len(address)]]
    return Cat(reduce(xor, taps) ^ ~address[:-1].any(), address[:-1])


class Queue(wiring.Component):
    """First-in first-out buffer in LUT memory; of registers where it is only two deep.

    Latency 2 cycles (1 where two deep), throughput 1 transfer a cycle. `o` comes from registers,
    `ready` from two levels of logic behind registers.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the payload.
    depth : int
        Entries that it holds, besides one that waits at the output. A power of two, 2 to 64.

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
        m.submodules.entries = entries = table_memory(self._shape, depth)
        write, read = entries.write_port(), entries.read_port(domain="comb")
        written = Signal((depth - 1).bit_length())
        taken = Signal.like(written)
        # Equal addresses: it is full or empty, as the last that changed it was a write or not.
        grew = Signal()
        move = Signal()
        payload = Signal(self._shape, reset_less=True)
        m.d.comb += [
            self.i.ready.eq((written != taken) | ~grew),
            move.eq(((written != taken) | grew) & (~self.o.valid | self.o.ready)),
            write.en.eq(self.i.valid & self.i.ready),
            write.addr.eq(written),
            write.data.eq(self.i.payload),
            read.addr.eq(taken),
            self.o.payload.eq(payload),
        ]
        with m.If(write.en):
            m.d.sync += written.eq(_next_address(written))
        with m.If(move):
            m.d.sync += [taken.eq(_next_address(taken)), payload.eq(read.data)]
        with m.If(write.en != move):
            m.d.sync += grew.eq(write.en)
        with m.If(move):
            m.d.sync += self.o.valid.eq(1)
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m
