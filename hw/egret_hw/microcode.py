"""The parser as microcode in block RAM, and what writes the microcode."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from egret.params import CODE_NAMES, AcceleratorParams
from egret_hw.layouts import (
    MICROCODE_ADDRESS_BITS,
    MICROCODE_WORD_BITS,
    block_slot_bits,
    code_layout,
    code_write_layout,
    microcode_write_layout,
)
from egret_hw.parser import CodeTables, start_state, state_layout, step

__all__ = ["MicrocodeParser", "MicrocodeWriter"]

_CUT = 4
_STATE_BITS = state_layout().size
_START = 2**_STATE_BITS - 1
"""Stands for the state before the first bit: no suffix is so long."""


def _word_layout() -> data.StructLayout:
    """Layout of a word of microcode: what four bits do to a state."""
    return data.StructLayout({"state": _STATE_BITS, "end": _CUT, "event": _CUT})


class MicrocodeParser(wiring.Component):
    """Mark where codewords end, W bits a cycle whatever the data, in block RAM (docs/adr/0004).

    The ports and what they say are those of `Parser`. A block RAM for every four bits holds the
    next state and the marks for each of 64 states and the four bits; C = W / 4 of them make a
    ring.

    Latency C + 1 enabled cycles, throughput W bits an enabled cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters; `parser_cut` is 4.

    Attributes
    ----------
    microcode_write : In(microcode_write_layout())
        Writes a word. No matrix is under way meanwhile.
    enable, turn, codes, i_valid, i_first, i_last, i_parity, i_bank, i_bits
        See `UnrolledParser`. The code is the one that the microcode was written for.
    o_valid, o_slot, o_first, o_last, o_parity, o_bits, o_end, o_event
        See `UnrolledParser`.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._width = params.parser_bits
        self._slots = params.slots
        turn_bits = block_slot_bits(params)
        super().__init__(
            {
                "enable": In(1),
                "turn": Out(turn_bits),
                "codes": In(data.ArrayLayout(code_layout(), 2)),
                "microcode_write": In(microcode_write_layout()),
                "i_valid": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "i_parity": In(1),
                "i_bank": In(1),
                "i_bits": In(self._width),
                "o_valid": Out(1),
                "o_slot": Out(turn_bits),
                "o_first": Out(1),
                "o_last": Out(1),
                "o_parity": Out(1),
                "o_bits": Out(self._width),
                "o_end": Out(self._width),
                "o_event": Out(self._width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        tags = {"valid": 1, "first": 1, "last": 1, "parity": 1}
        tag_layout = data.StructLayout(tags)
        bits = self.i_bits[::-1]
        tag = Signal(tag_layout, name="entering")
        m.d.comb += tag.eq(Cat(self.i_valid, self.i_first, self.i_last, self.i_parity))
        end, event = Const(0, 0), Const(0, 0)

        words = [Signal(_word_layout(), name=f"word{index}") for index in range(self._slots)]
        states = [Signal(_STATE_BITS, name=f"state{index}") for index in range(self._slots)]
        for index in range(self._slots):
            code = memory.Memory(
                shape=MICROCODE_WORD_BITS, depth=2**MICROCODE_ADDRESS_BITS, init=[]
            )
            m.submodules[f"code{index}"] = code
            write, read = code.write_port(), code.read_port()
            before = Signal(_STATE_BITS, name=f"before{index}")
            m.d.comb += before.eq(states[index - 1])
            if index == 0:
                m.d.comb += before.eq(states[-1] | self.i_first.replicate(_STATE_BITS))
            following = Signal(tag_layout, name=f"tag{index}")
            m.d.comb += [
                write.en.eq(self.microcode_write.enable),
                write.addr.eq(self.microcode_write.address),
                write.data.eq(self.microcode_write.word),
                # The first of the four bits is the address's highest one below the state.
                read.addr.eq(Cat(bits[index * _CUT : (index + 1) * _CUT][::-1], before)),
                words[index].eq(read.data),
            ]
            if self._slots == 1:
                m.d.comb += [read.en.eq(self.enable & tag.valid), states[0].eq(words[0].state)]
            else:
                kept = Signal(_STATE_BITS, name=f"kept{index}")
                m.d.comb += [
                    read.en.eq(self.enable),
                    states[index].eq(Mux(following.valid, words[index].state, kept)),
                ]
                with m.If(self.enable):
                    m.d.sync += kept.eq(states[index - 1])
            # The bits wait for the RAM, and the marks for the bits behind them.
            bits_held = Signal(self._width, name=f"bits{index}")
            end_held = Signal(self._width, name=f"end{index}")
            event_held = Signal(self._width, name=f"event{index}")
            with m.If(self.enable):
                m.d.sync += [
                    following.eq(tag),
                    bits_held.eq(bits),
                    end_held.eq(end),
                    event_held.eq(event),
                ]
            tag, bits = following, bits_held
            end = Cat(end_held[: index * _CUT], words[index].end)
            event = Cat(event_held[: index * _CUT], words[index].event)
        with m.If(self.enable):
            m.d.sync += [
                self.o_valid.eq(tag.valid),
                self.o_first.eq(tag.first),
                self.o_last.eq(tag.last),
                self.o_parity.eq(tag.parity),
                self.o_bits.eq(bits),
                self.o_end.eq(end),
                self.o_event.eq(event),
            ]
        if self._slots > 1:
            with m.If(self.enable):
                m.d.sync += [self.turn.eq(self.turn + 1), self.o_slot.eq(self.turn)]
        return m


class MicrocodeWriter(wiring.Component):
    """Computes the microcode of a code and broadcasts it to all parsers.

    Four of the parser's steps in a pipeline make a word a cycle; 1,030 cycles in all.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    start : In(1)
        Begin, for one cycle; not while `busy`.
    settings : In(code_layout())
        The code. All but orders and offsets is in place before its entries come, and constant
        while `busy`.
    code_write : In(code_write_layout())
        Collects the code's entries, before `start`.
    microcode_write : Out(microcode_write_layout())
        Broadcast.
    busy : Out(1)
        From the cycle behind `start` to the last word.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._suffix_limit = params.suffix_limit
        super().__init__(
            {
                "start": In(1),
                "settings": In(code_layout()),
                "code_write": In(code_write_layout()),
                "microcode_write": Out(microcode_write_layout()),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        tables = CodeTables(m, CODE_NAMES, self._suffix_limit, [self.settings], self.code_write)
        machine = tables.machine(Const(0, 1), "settings")

        running = Signal()
        address = Signal(MICROCODE_ADDRESS_BITS)
        with m.If(self.start):
            m.d.sync += [running.eq(1), address.eq(0)]
        with m.Elif(running):
            m.d.sync += address.eq(address + 1)
            with m.If(address.all()):
                m.d.sync += running.eq(0)

        stage_layout = data.StructLayout(
            {
                "valid": 1,
                "address": MICROCODE_ADDRESS_BITS,
                "state": state_layout(),
                "end": _CUT,
                "event": _CUT,
            }
        )
        entering = Signal(stage_layout)
        named = address[_CUT:]
        m.d.sync += [
            entering.valid.eq(running),
            entering.address.eq(address),
            entering.state.eq(Mux(named == _START, start_state(machine), named)),
        ]
        stages = [entering]
        for position in range(_CUT):
            before = stages[-1]
            state, marks = step(
                m,
                machine,
                tables.lookup(Const(0, 1), before.state.event, before.state.count),
                before.state,
                before.address[_CUT - 1 - position],
                f"bit{position}",
            )
            after = Signal(stage_layout, name=f"after{position}")
            m.d.sync += [
                after.eq(before),
                after.state.eq(state),
                after.end[position].eq(marks.end),
                after.event[position].eq(marks.event),
            ]
            stages.append(after)
        word = Signal(_word_layout())
        m.d.comb += [
            word.eq(Cat(stages[-1].state, stages[-1].end, stages[-1].event)),
            self.microcode_write.enable.eq(stages[-1].valid),
            self.microcode_write.address.eq(stages[-1].address),
            self.microcode_write.word.eq(word),
            self.busy.eq(running | Cat(stage.valid for stage in stages).any()),
        ]
        return m
