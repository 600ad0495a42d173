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


def _next_address(address: Value) -> Value:
    """Return what follows an address in a cycle through all of them.

    A shift register costs one LUT where a counter costs one for every bit.
    """
    taps = [address[tap] for tap in _TAPS[len(address)]]
    return Cat(reduce(xor, taps) ^ ~address[:-1].any(), address[:-1])


def _first_addresses(bits: int, count: int) -> int:
    """Return address 0 with the bits of `count` addresses that follow it below."""
    sequence = 0
    for _ in range(count):
        address = sequence & ((1 << bits) - 1)
        new = reduce(xor, (address >> tap & 1 for tap in _TAPS[bits]))
        sequence = sequence << 1 | new ^ (address & ((1 << bits - 1) - 1) == 0)
    return sequence


class Queue(wiring.Component):
    """First-in first-out buffer in LUT memory; of registers where it is only two deep.

    Latency 2 cycles (1 where two deep), throughput 1 transfer a cycle. `o` and `ready` come from
    registers.

    Parameters
    ----------
    shape : ShapeLike
        Shape of the payload.
    depth : int
        Entries that it holds, besides one that waits at the output. A power of two, 2 to 64.
    registered : bool
        With a register at the output. Without, where more than two deep, `o` comes from the
        memory, a cycle earlier.
    spare : int
        Free entries that `roomy` tells of, less than `depth`; 0 where nobody asks.

    Attributes
    ----------
    i : In(stream.Signature)
        Stream in.
    o : Out(stream.Signature)
        Stream out. `valid` holds and `payload` is stable until `ready`.
    roomy : Out(1)
        At least `spare` entries were free as the cycle began, for a source that asks some cycles
        before it sends; where more than two deep. From a register.
    """

    def __init__(
        self, shape: ShapeLike, depth: int, *, registered: bool = True, spare: int = 0
    ) -> None:
        self._shape = shape
        self._registered = registered
        self._depth = depth
        self._spare = spare
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "roomy": Out(1, init=1),
            }
        )

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
        bits = (depth - 1).bit_length()
        spare = self._spare
        # The address of the next write is at the top: below come the bits of those behind it.
        sequence = Signal(bits + spare, init=_first_addresses(bits, spare))
        written = sequence[spare:]
        following = Cat(_next_address(sequence[:bits])[0], sequence)
        next_written = following[spare:][:bits]
        taken = Signal(bits)
        room = Signal(init=1)
        some = Signal()
        move = Signal()
        next_taken = _next_address(taken)
        m.d.comb += [
            self.i.ready.eq(room),
            write.en.eq(self.i.valid & self.i.ready),
            write.addr.eq(written),
            write.data.eq(self.i.payload),
            read.addr.eq(taken),
        ]
        if self._registered:
            payload = Signal(self._shape, reset_less=True)
            m.d.comb += [
                move.eq(some & (~self.o.valid | self.o.ready)),
                self.o.payload.eq(payload),
            ]
            with m.If(move):
                m.d.sync += [self.o.valid.eq(1), payload.eq(read.data)]
            with m.Elif(self.o.ready):
                m.d.sync += self.o.valid.eq(0)
        else:
            m.d.comb += [
                move.eq(some & self.o.ready),
                self.o.valid.eq(some),
                self.o.payload.eq(read.data),
            ]
        with m.If(write.en):
            m.d.sync += sequence.eq(following)
        with m.If(move):
            m.d.sync += taken.eq(next_taken)
        # The last room is taken where the addresses meet behind a write, the last entry where they
        # meet behind a read.
        with m.If(move):
            m.d.sync += room.eq(1)
        with m.Elif(write.en & (next_written == taken)):
            m.d.sync += room.eq(0)
        with m.If(write.en):
            m.d.sync += some.eq(1)
        with m.Elif(move & (next_taken == written)):
            m.d.sync += some.eq(0)
        if spare:
            with m.If(write.en & ~move & (sequence[:bits] == taken)):
                m.d.sync += self.roomy.eq(0)
            with m.If(move & ~write.en & (sequence[1:][:bits] == taken)):
                m.d.sync += self.roomy.eq(1)
        return m
