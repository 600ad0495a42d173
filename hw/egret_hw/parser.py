"""Exp-Golomb parser: a bit-level state machine, unrolled, that reads W bits every cycle."""

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Parser"]

_ORDER_BITS = 3


@dataclass(frozen=True)
class _Marks:
    """What one unrolled step says of its bit."""

    end: Value
    nonzero: Value
    bad: Value


class Parser(wiring.Component):
    """Mark where codewords end, W bits a cycle whatever the data (docs/adr/0004).

    An exp-Golomb parser is a state machine over bits: the suffix bits that the prefix has
    promised so far, or those still to come. `width` copies of its step stand in a chain; a
    register after every `cut` of them makes `width // cut` pipeline stages, which as many
    substreams fill in turn (C-slow), so that the loop over the state closes within one stage.

    The prefix is counted from the order k upwards: the terminating one bit then finds the number
    of suffix bits, prefix zeros plus k, in the counter.

    Latency `width // cut` enabled cycles, throughput `width` bits an enabled cycle.

    Parameters
    ----------
    width : int
        W, bits a cycle.
    cut : int
        Bits a pipeline stage.
    suffix_limit : int
        Most suffix bits of a legal codeword.

    Attributes
    ----------
    start : In(1)
        Begin anew: every substream at the first bit of a codeword.
    enable : In(1)
        Advance the pipeline.
    order : In(3)
        Exp-Golomb order k; constant from `start` on.
    i_valid : In(1)
        The cycle carries bits of the substream whose turn it is. Without it the substream's
        state passes unchanged.
    i_bits : In(width)
        Bits, the most significant one first in time.
    o_valid : Out(1)
        `i_valid`, after the latency; the other outputs belong to the same cycle.
    o_bits, o_end, o_nonzero, o_bad : Out(width)
        In order of time, position 0 first: the bit; whether a codeword ends at it; whether that
        codeword's index is not 0; whether the prefix exceeds the limit at it.
    busy : Out(1)
        Some stage holds bits.
    """

    def __init__(self, width: int, cut: int, suffix_limit: int) -> None:
        if cut <= 0 or width % cut:
            raise ValueError(f"cut must be a divisor of width = {width}, not {cut!r}")
        self.width = width
        self.cut = cut
        self.suffix_limit = suffix_limit
        super().__init__(
            {
                "start": In(1),
                "enable": In(1),
                "order": In(_ORDER_BITS),
                "i_valid": In(1),
                "i_bits": In(width),
                "o_valid": Out(1),
                "o_bits": Out(width),
                "o_end": Out(width),
                "o_nonzero": Out(width),
                "o_bad": Out(width),
                "busy": Out(1),
            }
        )

    def _step(self, m: Module, state: Value, bit: Value, name: str) -> tuple[Value, _Marks]:
        """Chain one bit's step after `state`; return the next state and the bit's marks."""
        after = Signal(state.shape(), name=f"{name}_state")
        end = Signal(name=f"{name}_end")
        full = Signal(name=f"{name}_full")
        nonzero = state.nonzero | Mux(state.suffix, bit, ~bit)
        m.d.comb += full.eq(state.count == self.suffix_limit)
        with m.If(state.suffix):
            m.d.comb += [
                end.eq(state.count == 1),
                after.suffix.eq(~end),
                after.count.eq(state.count - 1),
            ]
        with m.Elif(bit):
            m.d.comb += [
                end.eq(state.count == 0),
                after.suffix.eq(~end),
                after.count.eq(state.count),
            ]
        with m.Else():
            m.d.comb += after.count.eq(Mux(full, state.count, state.count + 1))
        m.d.comb += after.nonzero.eq(nonzero & ~end)
        with m.If(end):
            m.d.comb += after.count.eq(self.order)
        return after, _Marks(end=end, nonzero=nonzero, bad=~state.suffix & ~bit & full)

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        stages = self.width // self.cut
        state_layout = data.StructLayout(
            {"suffix": 1, "count": self.suffix_limit.bit_length(), "nonzero": 1}
        )
        marks_layout = data.StructLayout(
            {
                "bits": self.width,
                "end": self.width,
                "nonzero": self.width,
                "bad": self.width,
            }
        )
        states = [Signal(state_layout, name=f"stage{index}_state") for index in range(stages)]
        marks = [Signal(marks_layout, name=f"stage{index}_marks") for index in range(stages)]
        valid = Signal(stages)

        first_marks = Signal(marks_layout)
        m.d.comb += first_marks.bits.eq(self.i_bits[::-1])
        for index in range(stages):
            before = states[index - 1]
            taken = marks[index - 1] if index else first_marks
            present = valid[index - 1] if index else self.i_valid
            state: Value = before
            found = Signal(marks_layout, name=f"stage{index}_found")
            m.d.comb += found.eq(taken)
            for position in range(index * self.cut, (index + 1) * self.cut):
                state, mark = self._step(m, state, taken.bits[position], f"bit{position}")
                m.d.comb += [
                    found.end[position].eq(mark.end),
                    found.nonzero[position].eq(mark.nonzero),
                    found.bad[position].eq(mark.bad),
                ]
            with m.If(self.enable):
                m.d.sync += [
                    valid[index].eq(present),
                    marks[index].eq(found),
                    states[index].eq(Mux(present, state, before)),
                ]
            with m.If(self.start):
                m.d.sync += [
                    valid[index].eq(0),
                    states[index].suffix.eq(0),
                    states[index].count.eq(self.order),
                    states[index].nonzero.eq(0),
                ]

        m.d.comb += [
            self.o_valid.eq(valid[-1]),
            self.o_bits.eq(marks[-1].bits),
            self.o_end.eq(marks[-1].end),
            self.o_nonzero.eq(marks[-1].nonzero),
            self.o_bad.eq(marks[-1].bad),
            self.busy.eq(valid.any()),
        ]
        return m
