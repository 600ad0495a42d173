"""Parser: a bit-level state machine, unrolled, that reads W bits every cycle."""

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import CLASSES, ENTRY_FIELDS
from egret.params import CODE_NAMES, AcceleratorParams
from egret_hw.layouts import code_layout, code_write_layout

__all__ = [
    "CodeTables",
    "Marks",
    "Parser",
    "UnrolledParser",
    "machine_layout",
    "start_state",
    "state_layout",
    "step",
]

_COUNT_BITS = (CLASSES - 1).bit_length()
_SUFFIX_BITS = ENTRY_FIELDS["suffix_bits"].width


def state_layout() -> data.StructLayout:
    """Layout of the machine's state between two bits of a substream.

    Returns
    -------
    data.StructLayout
        `suffix`: `count` suffix bits are left; at 0 nothing is read any more, as a prefix was too
        long. Without `suffix`, `count` zero bits may come until the last class. At 0 its suffix
        begins, and in an exp-Golomb code the prefix is too long. `event`: the codeword is known to
        be multiplied; in the run form, it is a level.
    """
    return data.StructLayout({"count": _COUNT_BITS, "event": 1, "suffix": 1})


def machine_layout() -> data.StructLayout:
    """Layout of a code's settings as the steps use them.

    Returns
    -------
    data.StructLayout
        `run_form`, `dense`; and for the tables of runs and levels (without `run_form` both the
        levels'): `golomb`; `first`, the count before the first bit; `bare`: the last class has no
        suffix.
    """
    pair = data.ArrayLayout(1, 2)
    return data.StructLayout(
        {
            "run_form": 1,
            "dense": 1,
            "golomb": pair,
            "first": data.ArrayLayout(_COUNT_BITS, 2),
            "bare": pair,
        }
    )


def start_state(settings: data.View) -> Value:
    """Return the state before a substream's first bit."""
    event = ~settings.run_form & settings.dense
    return Cat(settings.first[event], event, Const(0, 1))


@dataclass(frozen=True)
class Marks:
    """What a step says of its bit.

    Parameters
    ----------
    end : Value
        A codeword ends.
    event : Value
        With `end`: it is multiplied. Without: its prefix is too long.
    """

    end: Value
    event: Value


def step(
    m: Module,
    settings: data.View,
    left: Value,
    state: data.View,
    bit: Value,
    name: str,
) -> tuple[data.View, Marks]:
    """Add the gates that read one bit.

    Parameters
    ----------
    m : Module
        Where to.
    settings : View
        `machine_layout`.
    left : Value
        Suffix bits behind a prefix that ends here; at count 0 one less.
    state : View
        `state_layout`, before the bit.
    bit : Value
        The bit.
    name : str
        Begins the signals' names.

    Returns
    -------
    View, Marks
        The state after the bit, and what there is to say of it.
    """
    after = Signal(state_layout(), name=f"{name}_state")
    end = Signal(name=f"{name}_end")
    event = Signal(name=f"{name}_event")
    bad = Signal(name=f"{name}_bad")
    last = Signal(name=f"{name}_last")
    table = state.event
    m.d.comb += [
        last.eq(state.suffix | ((state.count == 0) & ~settings.golomb[table])),
        event.eq(state.event | (~settings.run_form & (bit == last))),
    ]
    with m.If(state.suffix):
        m.d.comb += end.eq(state.count == 1)
    with m.Elif((state.count == 0) & settings.golomb[table]):
        m.d.comb += bad.eq(bit)
    with m.Elif(bit | (state.count == 0)):
        m.d.comb += end.eq(left == 0)
    with m.Else():
        m.d.comb += end.eq((state.count == 1) & settings.bare[table])

    with m.If(end):
        m.d.comb += after.event.eq(Mux(settings.run_form, ~state.event, settings.dense))
        m.d.comb += after.count.eq(settings.first[after.event])
    with m.Else():
        m.d.comb += [
            after.event.eq(event),
            after.suffix.eq(last | bit),
            after.count.eq(
                Mux(
                    state.suffix | ~(bit | last),
                    Mux(state.count == 0, 0, state.count - 1),
                    Mux(bad, 0, left),
                )
            ),
        ]
    return after, Marks(end=end, event=Mux(end, event, bad))


class CodeTables:
    """Settings and tables of codes, as the steps use them.

    Parameters
    ----------
    m : Module
        Where the gates go.
    codes : tuple of str
        Codes of `CODE_NAMES` that are possible.
    suffix_limit : int
        J.
    settings : sequence of View
        `code_layout` of each bank. All but the orders and offsets are in place before the code's
        entries are written.
    write : View
        `code_write_layout`.
    """

    def __init__(
        self,
        m: Module,
        codes: tuple[str, ...],
        suffix_limit: int,
        settings: Sequence[data.View],
        write: data.View,
    ) -> None:
        self._m = m
        self._suffix_limit = suffix_limit
        self._machines = [
            Signal(machine_layout(), name=f"machine{bank}") for bank in range(len(settings))
        ]
        self._memories: list[memory.Memory] = []
        self._bank_bits = len(settings) - 1
        tables = CODE_NAMES[2] in codes
        for machine, code in zip(self._machines, settings, strict=True):
            runs = code.run_form if CODE_NAMES[1] in codes else Const(0, 1)
            golomb = Cat(Mux(runs, code.run_golomb, code.level_golomb), code.level_golomb)
            last = [Mux(runs, code.run_last, code.level_last), code.level_last]
            m.d.comb += [
                machine.run_form.eq(runs),
                machine.dense.eq(code.dense),
                machine.golomb.eq(golomb if tables else 3),
            ]
            m.d.comb += [
                machine.first[table].eq(last[table] + machine.golomb[table]) for table in range(2)
            ]
        if not tables:
            return
        machine = self.machine(write.bank, "written")
        for table in range(2):
            entries = memory.Memory(shape=_SUFFIX_BITS, depth=len(settings) * CLASSES, init=[])
            m.submodules[f"table{table}"] = entries
            self._memories.append(entries)
            port = entries.write_port()
            count = Signal(_COUNT_BITS, name=f"count{table}")
            ending = Signal(name=f"ending{table}")
            # Without the run form, the levels' entries go to both tables.
            wanted = ~write.run if table else write.run == machine.run_form
            m.d.comb += [
                count.eq(machine.first[table] - write.number),
                ending.eq((count == 0) & ~machine.golomb[table]),
                port.en.eq(write.enable & wanted),
                port.addr.eq(self._address(write.bank, count)),
                port.data.eq(write.suffix_bits - ending),
            ]
            for bank, held in enumerate(self._machines):
                chosen = port.en & ((write.bank == bank) | (len(settings) == 1))
                bare = Signal(name=f"bare{bank}{table}")
                m.d.comb += held.bare[table].eq(bare & ~held.golomb[table])
                with m.If(chosen & (count == 0)):
                    m.d.sync += bare.eq(write.suffix_bits == 0)

    def _address(self, bank: Value, count: Value) -> Value:
        return Cat(count, bank[: self._bank_bits])

    def machine(self, bank: Value, name: str) -> data.View:
        """Return the `machine_layout` of a bank."""
        chosen = Signal(machine_layout(), name=f"{name}_machine")
        self._m.d.comb += chosen.eq(
            Mux(bank, self._machines[-1], self._machines[0])
            if self._bank_bits
            else self._machines[0]
        )
        return chosen

    def lookup(self, bank: Value, table: Value, count: Value) -> Value:
        """Return the suffix bits behind a prefix; at count 0 one less."""
        if not self._memories:
            return (self._suffix_limit + 1 - count)[:_SUFFIX_BITS]
        read = []
        for entries in self._memories:
            port = entries.read_port(domain="comb")
            self._m.d.comb += port.addr.eq(self._address(bank, count))
            read.append(port.data)
        return Mux(table, read[1], read[0])


class UnrolledParser(wiring.Component):
    """Mark where codewords end, W bits a cycle whatever the data (docs/adr/0004).

    Parsing is a state machine over bits. `width` copies of its step stand in a chain; a register
    after every `cut` of them makes C = `width // cut` pipeline stages, which as many substreams
    fill in turn (C-slow), so that the loop over the state closes within one stage.

    Latency C + 1 enabled cycles, throughput `width` bits an enabled cycle.

    Parameters
    ----------
    width : int
        W, bits a cycle.
    cut : int
        Bits a pipeline stage: a divisor of W, C a power of two.
    suffix_limit : int
        J, most suffix bits of a codeword.
    codes : tuple of str
        Codes that it knows, of `CODE_NAMES`.

    Attributes
    ----------
    enable : In(1)
        Advance everything.
    turn : Out(range(C))
        Slot whose bits may enter in this cycle.
    codes : In(ArrayLayout(code_layout(), 2))
        The codes by bank; constant while a matrix uses them.
    code_write : In(code_write_layout())
        Writes a table's entry. All else in `codes` but orders and offsets is in place before.
    i_valid : In(1)
        The cycle carries bits of the slot whose turn it is. Without it its state passes unchanged.
    i_first, i_last : In(1)
        They are the slot's first or last ones of a matrix. The first restart its state.
    i_parity, i_bank : In(1)
        Their matrix's tag and code.
    i_bits : In(width)
        Bits, the most significant one first in time.
    o_valid, o_slot, o_first, o_last, o_parity : Out
        What entered, after the latency, and its slot.
    o_bits, o_end, o_event : Out(width)
        In order of time, position 0 first: the bit; a codeword ends at it; that codeword is a
        level that must be multiplied (in the run form every level, else not the first codeword of
        class 0, or `dense`). `o_event` without `o_end`: the prefix was too long; there are no more
        marks until the next `i_first`.
    """

    def __init__(self, width: int, cut: int, suffix_limit: int, codes: tuple[str, ...]) -> None:
        if cut <= 0 or width % cut or width // cut & width // cut - 1:
            raise ValueError(f"cut must divide width = {width} by a power of two, not be {cut!r}")
        self._width = width
        self._cut = cut
        self._suffix_limit = suffix_limit
        self._codes = codes
        self._slots = width // cut
        self._turn_bits = max(1, (self._slots - 1).bit_length())
        super().__init__(
            {
                "enable": In(1),
                "turn": Out(self._turn_bits),
                "codes": In(data.ArrayLayout(code_layout(), 2)),
                "code_write": In(code_write_layout()),
                "i_valid": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "i_parity": In(1),
                "i_bank": In(1),
                "i_bits": In(width),
                "o_valid": Out(1),
                "o_slot": Out(self._turn_bits),
                "o_first": Out(1),
                "o_last": Out(1),
                "o_parity": Out(1),
                "o_bits": Out(width),
                "o_end": Out(width),
                "o_event": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        tables = CodeTables(
            m, self._codes, self._suffix_limit, [self.codes[0], self.codes[1]], self.code_write
        )
        beat_layout = data.StructLayout(
            {
                "valid": 1,
                "first": 1,
                "last": 1,
                "parity": 1,
                "bank": 1,
                "bits": self._width,
                "end": self._width,
                "event": self._width,
                "machine": machine_layout(),
            }
        )
        beat = Signal(beat_layout)
        with m.If(self.enable):
            m.d.sync += [
                beat.valid.eq(self.i_valid),
                beat.first.eq(self.i_first),
                beat.last.eq(self.i_last),
                beat.parity.eq(self.i_parity),
                beat.bank.eq(self.i_bank),
                beat.bits.eq(self.i_bits[::-1]),
                beat.machine.eq(tables.machine(self.i_bank, "entering")),
            ]
        states = [Signal(state_layout(), name=f"stage{n}_state") for n in range(self._slots)]
        for index, held in enumerate(states):
            before = states[index - 1]
            taken: data.View = before
            if index == 0:
                taken = Signal(state_layout(), name="taken")
                start = start_state(beat.machine)
                m.d.comb += taken.eq(Mux(beat.first, start, before))
            following = Signal(beat_layout, name=f"stage{index}_beat")
            found = Signal(beat_layout, name=f"stage{index}_found")
            m.d.comb += found.eq(beat)
            state = taken
            for position in range(index * self._cut, (index + 1) * self._cut):
                left = tables.lookup(beat.bank, state.event, state.count)
                state, marks = step(
                    m, beat.machine, left, state, beat.bits[position], f"bit{position}"
                )
                m.d.comb += [
                    found.end[position].eq(marks.end),
                    found.event[position].eq(marks.event),
                ]
            with m.If(self.enable):
                m.d.sync += [following.eq(found), held.eq(Mux(beat.valid, state, before))]
            beat = following
        if self._slots > 1:
            with m.If(self.enable):
                m.d.sync += [self.turn.eq(self.turn + 1), self.o_slot.eq(self.turn)]
        m.d.comb += [
            self.o_valid.eq(beat.valid),
            self.o_first.eq(beat.first),
            self.o_last.eq(beat.last),
            self.o_parity.eq(beat.parity),
            self.o_bits.eq(beat.bits),
            self.o_end.eq(beat.end),
            self.o_event.eq(beat.event),
        ]
        return m


class Parser(UnrolledParser):
    """The parser of an accelerator's lane, in logic: `UnrolledParser`.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        super().__init__(params.parser_bits, params.parser_cut, params.suffix_limit, params.codes)
