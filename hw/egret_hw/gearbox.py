"""Gearbox: cuts a bus word into the beats that the lanes read together."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Gearbox"]


class Gearbox(wiring.Component):
    """Send a word's beats one after the other, lowest bits first.

    Latency 1 cycle, throughput 1 beat a cycle.

    Parameters
    ----------
    word_bits : int
        Width of a word.
    beat_bits : int
        Width of a beat; divides `word_bits`.

    Attributes
    ----------
    i : In(stream.Signature(word_bits))
        Words.
    o : Out(stream.Signature(beat_bits))
        Beats.
    """

    def __init__(self, word_bits: int, beat_bits: int) -> None:
        if word_bits % beat_bits:
            raise ValueError(f"beat_bits must divide word_bits = {word_bits}, not {beat_bits!r}")
        self.word_bits = word_bits
        self.beat_bits = beat_bits
        super().__init__(
            {"i": In(stream.Signature(word_bits)), "o": Out(stream.Signature(beat_bits))}
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        beats = self.word_bits // self.beat_bits
        word = Signal(self.word_bits)
        left = Signal(range(beats + 1))
        m.d.comb += [
            self.o.valid.eq(left != 0),
            self.o.payload.eq(word),
            self.i.ready.eq((left == 0) | ((left == 1) & self.o.ready)),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [word.eq(self.i.payload), left.eq(beats)]
        with m.Elif(self.o.valid & self.o.ready):
            m.d.sync += [word.eq(word >> self.beat_bits), left.eq(left - 1)]
        return m
