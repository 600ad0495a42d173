"""The parser as microcode in block RAM, and what writes the microcode."""

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from egret.params import CODE_NAMES, MICROCODE_BITS, AcceleratorParams
from egret_hw.layouts import (
    MICROCODE_ADDRESS_BITS,
    MICROCODE_WORD_BITS,
    code_layout,
    code_write_layout,
    microcode_write_layout,
)
from egret_hw.parser import RingParser, TableMachine
from egret_hw.primitives import BlockRam
from egret_hw.table_memory import table_memory

__all__ = ["MicrocodeParser", "MicrocodeWriter"]

_STATE_BITS = MICROCODE_ADDRESS_BITS - MICROCODE_BITS
"""A word's state is the machine's but for `bad`. No suffix is as long as these stand for:"""
_START = 0b111111
"""The state before the first bit; all bits are set."""
_TOO_LONG = 0b101111
"""The prefix is too long."""
_DEAD = 0b101110
"""Nothing is read any more."""


def _word_layout() -> data.StructLayout:
    """Layout of a word of microcode: what four bits do to a state."""
    return data.StructLayout({"state": _STATE_BITS, "end": MICROCODE_BITS, "event": MICROCODE_BITS})


class MicrocodeParser(RingParser):
    """Mark where codewords end, W bits a cycle whatever the data, in block RAM (docs/adr/0004).

    A block RAM for every four bits holds the next state and the marks for each of 64 states and the
    four bits. W / 4 of them make the ring. A block RAM with a register behind it is two of the
    ring's stages: with `parser_cut` = 2, C = W / 2. With `parser_cut` = 4 it has none, C = W / 4,
    and the clock is that of a block RAM.

    Throughput W bits an enabled cycle. Latency C + 2 enabled cycles, if bits go on coming:
    amid a matrix, bits leave only as others follow. The C first beats of a matrix push out all of
    the one before.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters; `parser_cut` is 2 or 4.

    Attributes
    ----------
    microcode_write : In(microcode_write_layout())
        Writes a word. No matrix is under way meanwhile.
    enable, drain, turn, codes, i_valid, i_first, i_last, i_parity, i_bank, i_bits
        See `RingParser`. The code is the one that the microcode was written for.
    o_valid, o_slot, o_first, o_last, o_parity, o_bits, o_end, o_event
        See `RingParser`.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._registers = MICROCODE_BITS // params.parser_cut
        super().__init__(
            params.parser_bits, params.slots, {"microcode_write": In(microcode_write_layout())}
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        width, slots = self._width, self._slots
        valid = Signal(slots + 1)
        moves = self._moves(m)
        step = Signal()
        m.d.comb += step.eq(self.enable & moves)
        tag_layout = data.StructLayout({"first": 1, "last": 1, "parity": 1, "bits": width})
        tags = [Signal(tag_layout, name=f"tag{index}") for index in range(slots + 1)]
        with m.If(self.enable):
            m.d.sync += [
                valid[0].eq(self.i_valid),
                tags[0].eq(Cat(self.i_first, self.i_last, self.i_parity, self.i_bits[::-1])),
            ]
        with m.If(step):
            m.d.sync += valid[1:].eq(valid)
            m.d.sync += [after.eq(before) for before, after in pairwise(tags)]
        with m.If(self.enable & ~moves):
            # What leaves is shown once.
            m.d.sync += valid[-1].eq(0)

        words = [
            Signal(_word_layout(), name=f"word{index}") for index in range(width // MICROCODE_BITS)
        ]
        ends, events = [], []
        for index, word in enumerate(words):
            before = words[index - 1].state
            if index == 0:
                before = before | tags[0].first.replicate(_STATE_BITS)
            bits = tags[index * self._registers].bits[
                index * MICROCODE_BITS : (index + 1) * MICROCODE_BITS
            ]
            # The first of the four bits is the address's highest one below the state.
            m.d.comb += word.eq(
                self._read(
                    m,
                    f"code{index}",
                    step & valid[0] if slots == 1 else step,
                    Cat(bits[::-1], before),
                )
            )
            # The marks wait for those of the bits behind.
            marks = Cat(word.end, word.event)
            for stage in range((index + 1) * self._registers, slots):
                held = Signal(2 * MICROCODE_BITS, name=f"marks{index}_{stage}")
                with m.If(step):
                    m.d.sync += held.eq(marks)
                marks = held
            ends.append(marks[:MICROCODE_BITS])
            events.append(marks[MICROCODE_BITS:])
        with m.If(self.enable):
            m.d.sync += [
                self.o_valid.eq(valid[-1]),
                self.o_first.eq(tags[-1].first),
                self.o_last.eq(tags[-1].last),
                self.o_parity.eq(tags[-1].parity),
                self.o_bits.eq(tags[-1].bits),
                self.o_end.eq(Cat(*ends)),
                self.o_event.eq(Cat(*events)),
            ]
        return m

    def _read(self, m: Module, name: str, enable: Value, address: Value) -> Value:
        """Add a block RAM, and return what is read from it."""
        write = self.microcode_write
        if self._registers == 2:
            ram = BlockRam(MICROCODE_WORD_BITS, 2**MICROCODE_ADDRESS_BITS, MICROCODE_WORD_BITS)
            m.submodules[name] = ram
            m.d.comb += [
                ram.write_enable.eq(write.enable),
                ram.write_address.eq(write.address),
                ram.write_value.eq(write.word),
                ram.enable.eq(enable),
                ram.address.eq(address),
            ]
            return ram.value
        code = table_memory(MICROCODE_WORD_BITS, 2**MICROCODE_ADDRESS_BITS)
        m.submodules[name] = code
        writing, reading = code.write_port(), code.read_port()
        m.d.comb += [
            writing.en.eq(write.enable),
            writing.addr.eq(write.address),
            writing.data.eq(write.word),
            reading.en.eq(enable),
            reading.addr.eq(address),
        ]
        return reading.data


class MicrocodeWriter(wiring.Component):
    """Computes the microcode of a code and broadcasts it to all parsers.

    Four of the parser's steps in a pipeline, two stages each, make a word a cycle; 1,034 cycles in
    all.

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
        machine = TableMachine(m, CODE_NAMES, [self.settings], self.code_write)
        settings = machine.settings(m, Const(0, 1))

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
                "state": machine.state_layout,
                "end": MICROCODE_BITS,
                "event": MICROCODE_BITS,
            }
        )
        entering = Signal(stage_layout)
        named = address[MICROCODE_BITS:]
        m.d.sync += [
            entering.valid.eq(running),
            entering.address.eq(address),
            entering.state.eq(named),
            entering.state.prefix.eq(~named[-1]),
        ]
        with m.If(named == _START):
            m.d.sync += [
                entering.state.eq(machine.state_layout.const(machine.initial)),
                entering.state.event.eq(machine.start(settings)),
            ]
        with m.If((named == _TOO_LONG) | (named == _DEAD)):
            m.d.sync += entering.state.suffix.eq(0)
            m.d.sync += entering.state.bad.eq(named == _TOO_LONG)
        begun = machine.start_layout.const({})
        stages = [entering]
        for position in range(MICROCODE_BITS):
            entered = stages[-1]
            before = Signal(stage_layout, name=f"before{position}")
            looked = Signal(machine.looked_layout, name=f"looked{position}")
            m.d.sync += [
                before.eq(entered),
                looked.eq(machine.look(m, settings, entered.state, f"bit{position}")),
            ]
            bit = before.address[MICROCODE_BITS - 1 - position]
            state, (marks,) = machine.take(
                m, settings, begun, looked, before.state, Cat(bit), f"bit{position}"
            )
            after = Signal(stage_layout, name=f"after{position}")
            m.d.sync += [
                after.eq(before),
                after.state.eq(state),
                after.end[position].eq(marks.end),
                after.event[position].eq((marks.end & marks.event) | marks.bad),
            ]
            stages += [before, after]
        found = stages[-1]
        wrong = Mux(found.state.bad, _TOO_LONG, _DEAD)
        reads = found.state.prefix | found.state.suffix
        named = Mux(reads, found.state.as_value()[:_STATE_BITS], wrong)
        word = Signal(_word_layout())
        # A cycle ahead, so that a register tells it.
        busy = Signal()
        m.d.sync += [
            busy.eq(self.start | running | Cat(stage.valid for stage in stages).any()),
            word.eq(Cat(named, found.end, found.event)),
            self.microcode_write.enable.eq(found.valid),
            self.microcode_write.address.eq(found.address),
        ]
        m.d.comb += [
            self.microcode_write.word.eq(word),
            self.busy.eq(busy),
        ]
        return m
