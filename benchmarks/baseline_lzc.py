"""The textbook decoder of exp-Golomb codewords: the baseline that Egret's parser is compared with.

A window of the stream is aligned by a barrel shifter, its leading zeros are counted, their number
gives the codeword's length, a second shifter cuts the codeword out, and an adder moves the
window on: one codeword a cycle, and a loop through all of it.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["LeadingZeroDecoder"]

_ORDER_BITS = 3


def _count_leading_zeros(m: Module, bits: Value) -> tuple[Value, Value]:
    """Return the zeros before the first one, and whether there is no one; a tree by halves."""
    if len(bits) == 1:
        return Const(0, 0), ~bits
    half = 1 << ((len(bits) - 1).bit_length() - 1)
    late, late_none = _count_leading_zeros(m, bits[:-half])
    early, early_none = _count_leading_zeros(m, bits[-half:])
    count = Signal(half.bit_length(), name=f"zeros{len(bits)}")
    m.d.comb += count.eq(Cat(Mux(early_none, late, early)[: len(count) - 1], early_none))
    return count, early_none & late_none


class LeadingZeroDecoder(wiring.Component):
    """Decode one exp-Golomb codeword of order k a cycle, by leading-zero count and barrel shifter.

    Latency 4 cycles from a word to its first codeword, throughput one codeword a cycle: at the
    least 1 + k bits, which are all of it where the codeword of index 0 follows itself.

    Parameters
    ----------
    suffix_limit : int
        J: most suffix bits of a legal codeword, prefix zeros plus order. At most 15.
    word_bits : int
        Bits of a word of the stream, a power of two and at least the longest codeword's 2J + 1.

    Attributes
    ----------
    order : In(3)
        k; constant while there is a stream.
    i : In(stream)
        Words, the most significant bit first in time. A codeword comes out once the word behind the
        one it begins in is there.
    o : Out(stream)
        `index`, J + 1 bits, and `bad`: more zeros than any legal codeword begins with. After it
        nothing that comes means anything.

    Raises
    ------
    ValueError
        The word is too short.

    Notes
    -----
    Source: S.-M. Lei and M.-T. Sun, "An entropy coding system for digital HDTV applications", IEEE
    Transactions on Circuits and Systems for Video Technology 1(1), 1991, with the leading-zero
    count in the place of their table.
    """

    def __init__(self, suffix_limit: int = 10, word_bits: int = 32) -> None:
        if word_bits & (word_bits - 1) or word_bits < 2 * suffix_limit + 1:
            raise ValueError(
                f"word_bits must be a power of two from {2 * suffix_limit + 1} on, not {word_bits}"
            )
        self.suffix_limit = suffix_limit
        self.word_bits = word_bits
        symbol = data.StructLayout({"index": suffix_limit + 1, "bad": 1})
        super().__init__(
            {
                "order": In(_ORDER_BITS),
                "i": In(stream.Signature(word_bits)),
                "o": Out(stream.Signature(symbol)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        width, limit = self.word_bits, self.suffix_limit
        # The window begins `offset` bits into the first word and may reach into the second.
        first, second = Signal(width), Signal(width)
        first_here, second_here = Signal(), Signal()
        offset = Signal(range(width))

        window = Signal(width)
        m.d.comb += window.eq((Cat(second, first) << offset)[width:])
        zeros, none = _count_leading_zeros(m, window[-(limit + 1) :])
        # What does not need the count is added beside it.
        least, after = Signal(range(2 * width)), Signal(range(2 * width))
        m.d.comb += [least.eq(offset + 1 + self.order), after.eq(least + (zeros << 1))]
        crosses = after[len(offset)]
        enable, step = Signal(), Signal()
        m.d.comb += [
            enable.eq(self.o.ready | ~self.o.valid),
            step.eq(first_here & second_here & enable),
        ]
        taken = step & crosses
        m.d.comb += self.i.ready.eq(~second_here | taken)

        # Outside the loop: what is not part of the codeword is shifted out to the right; ahead of
        # it are zeros.
        cut, cut_valid, bad = Signal(2 * limit + 1), Signal(), Signal()
        counted = Signal(zeros.shape())
        excess = Signal(range(2 * limit + 1))
        m.d.comb += excess.eq(2 * limit - (counted << 1) - self.order)
        with m.If(enable):
            m.d.sync += [
                cut_valid.eq(step),
                cut.eq(window[-len(cut) :]),
                counted.eq(zeros),
                bad.eq(none),
                self.o.valid.eq(cut_valid),
                self.o.payload.index.eq((cut >> excess) - (1 << self.order)),
                self.o.payload.bad.eq(bad | (counted + self.order > limit)),
            ]
        with m.If(step):
            m.d.sync += offset.eq(after)
        with m.If(taken | ~first_here):
            m.d.sync += [first.eq(second), first_here.eq(second_here)]
        with m.If(self.i.ready | ~first_here):
            m.d.sync += second_here.eq(self.i.valid & self.i.ready)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += second.eq(self.i.payload)
        return m
