"""Gearbox: cuts a bus word into the beats that the lanes read together."""

from amaranth.hdl import Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import AcceleratorParams
from egret_hw.packet_reader import payload_layout

__all__ = ["Gearbox", "beat_layout"]


def beat_layout(bits: int) -> data.StructLayout:
    """Layout of a beat.

    Returns
    -------
    data.StructLayout
        `bits`; `first`, `last`: its slot's first, last beat of a matrix; `parity`, which of the
        two matrices under way.
    """
    return data.StructLayout({"bits": bits, "first": 1, "last": 1, "parity": 1})


class Gearbox(wiring.Component):
    """Send a word's beats one after the other, lowest bits first.

    Latency 1 cycle, throughput 1 beat a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream of payload_layout)
        Words.
    o : Out(stream of beat_layout)
        Beats of all lanes.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "i": In(stream.Signature(payload_layout(params))),
                "o": Out(stream.Signature(beat_layout(params.beat_bits))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        beats = params.beats_per_word
        word = Signal(self.i.payload.shape(), reset_less=True)
        left = Signal(range(beats + 1))
        # With more beats in a word than slots, only the outermost beats are first or last.
        near_end = left <= params.slots if params.slots < beats else Const(1)
        m.d.comb += [
            self.o.valid.eq(left != 0),
            self.o.payload.bits.eq(word.data),
            self.o.payload.parity.eq(word.parity),
            self.o.payload.first.eq(word.first & (left > max(0, beats - params.slots))),
            self.o.payload.last.eq(word.last & near_end),
            self.i.ready.eq((left == 0) | ((left == 1) & self.o.ready)),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [word.eq(self.i.payload), left.eq(beats)]
        with m.Elif(self.o.valid & self.o.ready):
            m.d.sync += [word.data.eq(word.data >> params.beat_bits), left.eq(left - 1)]
        return m
