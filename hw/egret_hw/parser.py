"""Parser: a bit-level state machine, unrolled, that reads W bits every cycle."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import CLASSES, ENTRY_FIELDS
from egret.params import CODE_NAMES, MAX_ORDER, AcceleratorParams
from egret_hw.layouts import code_layout, code_write_layout
from egret_hw.table_memory import table_memory

__all__ = [
    "Machine",
    "Marks",
    "OrderMachine",
    "Parser",
    "RingParser",
    "TableMachine",
    "UnrolledParser",
]

_COUNT_BITS = (CLASSES - 1).bit_length()
_SUFFIX_BITS = ENTRY_FIELDS["suffix_bits"].width
_ORDER_BITS = MAX_ORDER.bit_length()


class Marks(NamedTuple):
    """What a step says of its bit.

    Parameters
    ----------
    end : Value
        A codeword ends.
    event : Value
        If so, it is a level that must be multiplied.
    bad : Value
        Its prefix is too long.
    """

    end: Value
    event: Value
    bad: Value


class Machine(Protocol):
    """The state machine over bits that a parser unrolls."""

    bits: int
    """Bits that a step reads."""
    settings_layout: data.StructLayout
    """What the steps need of a code."""
    start_layout: data.StructLayout
    """What the first step of a substream needs besides; zeros in all others."""
    state_layout: data.StructLayout
    initial: Mapping[str, int]
    """State before a substream's first bit, as a register's reset."""

    def settings(self, m: Module, bank: Value) -> data.View:
        """Return the settings of the code in a bank."""

    def start(self, settings: data.View) -> Value:
        """Return what the first step of a substream needs."""

    def step(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        state: data.View,
        bits: Value,
        name: str,
    ) -> tuple[data.View, list[Marks]]:
        """Add the gates that read bits.

        Parameters
        ----------
        m : Module
            Where to.
        settings, start, state : View
            Of the layouts above; the state before the bits.
        bits : Value
            The bits, the first in time lowest.
        name : str
            Begins the names of the signals.

        Returns
        -------
        View, list of Marks
            The state after the bits, and what there is to say of each.
        """


class OrderMachine:
    """The steps for exp-Golomb codes alone: two levels of LUT4s a bit.

    A count goes up from the order k with each zero bit of the prefix, so that it holds the number
    of suffix bits when the one bit comes; it goes down through the suffix and is 0 where the
    codeword ends. A step leaves its result half done: what is added to the count, and whether the
    next bit ends a codeword, needs a level of its own, which comes with the next step.

    Parameters
    ----------
    suffix_limit : int
        J.
    codes : ArrayView
        `code_layout` of each bank.
    """

    bits = 1
    settings_layout = data.StructLayout({"order": _ORDER_BITS, "zero": 1, "dense": 1})
    start_layout = data.StructLayout({})
    state_layout = data.StructLayout(
        {
            # Suffix bits are being read; they were when the count last changed.
            "suffix": 1,
            "down": 1,
            # The count, but for `carry` into (or borrow from) its two upper bits.
            "count": _COUNT_BITS,
            "carry": 1,
            # A codeword has just ended, so that the order is still to be put into the count.
            "ended": 1,
            # The next codeword bit that is no prefix zero ends a codeword: `short` and not `long`.
            "short": 1,
            "long": 1,
            # The index is not 0.
            "event": 1,
            # The count was at the limit before the last bit: a prefix that goes on is too long.
            "limit": 1,
            # A prefix was too long.
            "bad": 1,
        }
    )
    initial: Mapping[str, int] = MappingProxyType({"ended": 1})

    def __init__(self, suffix_limit: int, codes: data.View) -> None:
        self._suffix_limit = suffix_limit
        self._codes = codes

    def settings(self, m: Module, bank: Value) -> data.View:
        """Return the settings of the code in a bank."""
        settings = Signal(self.settings_layout)
        code = self._codes[bank]
        order = code.level_order[:_ORDER_BITS]
        m.d.comb += settings.eq(Cat(order, order == 0, code.dense))
        return settings

    def start(self, settings: data.View) -> Value:
        """Return nothing: in the initial state a codeword has just ended."""
        return Const(0, 0)

    def step(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        state: data.View,
        bits: Value,
        name: str,
    ) -> tuple[data.View, list[Marks]]:
        """Add the gates that read a bit; see `Machine`."""
        bit = bits[0]

        def gate(gate_name: str, value: Value) -> Value:
            signal = Signal(value.shape(), name=f"{name}_{gate_name}")
            m.d.comb += signal.eq(value)
            return signal

        # What the step before has left: the first level.
        order = state.ended.replicate(_ORDER_BITS) & settings.order
        carry2 = state.carry & (state.down ^ state.count[2])
        count = gate(
            "count",
            Cat(
                state.count[0] | order[0],
                state.count[1] | order[1],
                (state.count[2] ^ state.carry) | order[2],
                state.count[3] ^ carry2,
            ),
        )
        ending = gate("ending", (state.ended & settings.zero) | (state.short & ~state.long))
        event = gate("event", Mux(state.ended, settings.dense, state.event))
        too_long = ~state.suffix & (state.limit | state.bad)

        # The bit: the second level.
        after = Signal(self.state_layout, name=f"{name}_state")
        suffix = state.suffix
        m.d.comb += [
            after.suffix.eq((suffix | bit) & ~ending),
            after.ended.eq((suffix | bit) & ending),
            after.down.eq(suffix),
            after.count[0].eq(count[0] ^ (suffix | ~bit)),
            after.count[1].eq(count[1] ^ Mux(suffix, ~count[0], ~bit & count[0])),
            after.count[2:].eq(count[2:]),
            after.carry.eq(Mux(suffix, ~count[0] & ~count[1], ~bit & count[0] & count[1])),
            after.short.eq(Mux(suffix, count[1] & ~count[0], bit & ~count[1] & count[0])),
            after.long.eq(count[2] | count[3] | state.bad),
            after.event.eq(event | (suffix == bit)),
            after.limit.eq(count >= self._suffix_limit),
            after.bad.eq(state.bad | too_long),
        ]
        return after, [Marks(after.ended, after.event, too_long & bit)]


class PairMachine:
    """The steps of two bits for exp-Golomb codes alone: three levels of LUT4s.

    The count is that of `OrderMachine`. A step adds up to 2 to it or subtracts as much, and looks
    ahead: the flags say whether the first or the second bit of the next pair ends a codeword,
    if it is no prefix zero. It leaves its result half done, so that no path has a fourth level:
    `flip1` and `flip2` & `way` are still to be put into the count's upper bits, and where a
    codeword has ended the order stands in for the bits from 1 on.

    Parameters
    ----------
    suffix_limit : int
        J.
    codes : ArrayView
        `code_layout` of each bank.
    """

    bits = 2
    settings_layout = data.StructLayout(
        {"order": _ORDER_BITS, "zero": 1, "one": 1, "two": 1, "dense": 1}
    )
    start_layout = data.StructLayout({"zero": 1, "one": 1, "dense": 1})
    state_layout = data.StructLayout(
        {
            # Suffix bits are being read.
            "suffix": 1,
            # A codeword has ended among the two bits: the order is to be added.
            "load": 1,
            "count": _COUNT_BITS,
            "flip1": 1,
            "flip2": 1,
            "way": 1,
            # The next bit ends a codeword: one of the first two, and not `long`.
            "next_suffix": 1,
            "next_prefix": 1,
            "long": 1,
            # The bit behind it does: one of the first two, and `fits`.
            "second_suffix": 1,
            "second_prefix": 1,
            "fits": 1,
            # The index is not 0.
            "event": 1,
            # A prefix was too long.
            "bad": 1,
        }
    )
    initial: Mapping[str, int] = MappingProxyType({"load": 1})

    def __init__(self, suffix_limit: int, codes: data.View) -> None:
        self._suffix_limit = suffix_limit
        self._codes = codes

    def settings(self, m: Module, bank: Value) -> data.View:
        """Return the settings of the code in a bank."""
        settings = Signal(self.settings_layout)
        code = self._codes[bank]
        order = code.level_order[:_ORDER_BITS]
        m.d.comb += [
            settings.order.eq(order),
            settings.zero.eq(order == 0),
            settings.one.eq(order == 1),
            settings.two.eq(order == 2),
            settings.dense.eq(code.dense),
        ]
        return settings

    def start(self, settings: data.View) -> Value:
        """Return what the first step of a substream needs."""
        return Cat(settings.zero, settings.one, settings.dense)

    def step(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        state: data.View,
        bits: Value,
        name: str,
    ) -> tuple[data.View, list[Marks]]:
        """Add the gates that read two bits; see `Machine`."""

        def gate(gate_name: str, value: Value) -> Value:
            signal = Signal(value.shape(), name=f"{name}_{gate_name}")
            m.d.comb += signal.eq(value)
            return signal

        order, suffix = settings.order, state.suffix
        # First level: what the step before has left.
        count = gate(
            "count",
            Cat(
                state.count[0] ^ (state.load & order[0]),
                Mux(state.load, order[1], state.count[1]) ^ state.flip1,
                Mux(state.load, order[2], state.count[2]) ^ state.flip2,
                (~state.load & state.count[3]) ^ (state.flip2 & state.way),
            ),
        )
        next_ends = (state.next_suffix | state.next_prefix) & ~state.long
        next_ends = gate("next_ends", next_ends | start.zero)
        second_ends = (state.second_suffix | state.second_prefix) & state.fits
        second_ends = gate("second_ends", second_ends | start.one)
        event = gate("event", state.event | start.dense)

        # Second level. After `load`, what was counted does not matter.
        one, two = bits[0], bits[1]
        moving = gate("moving", suffix | one)
        end0 = gate("end0", moving & next_ends)
        load = gate("load", moving & (next_ends | second_ends))
        flip1 = gate("flip1", suffix | Mux(one, ~count[0], count[0] | ~two))
        event1 = gate("event1", event | (suffix == one) | (moving == two))
        beyond = gate("beyond", state.bad | (count > self._suffix_limit))
        at_limit = gate("at_limit", state.bad | (count >= self._suffix_limit))
        event_loaded = settings.dense | (next_ends & ~two)
        # The second bit is the first one of a codeword: a one bit begins the suffix.
        next_loaded = Mux(next_ends, two & (settings.zero | settings.one), settings.zero)
        second_loaded = Mux(next_ends, Mux(two, settings.two, settings.zero), settings.one)
        next_prefix = Mux(one, count[1], two & ~count[1]) & ~count[0]
        second_prefix = Mux(one, count[1], two & ~count[1]) & count[0]
        fits = ~count[3] & ~state.bad & (count[2] == suffix)
        second_suffix = suffix & ~count[0] & ~count[1]
        end1 = gate("end1", load & (second_ends | (two & settings.zero)))

        # Third level.
        after = Signal(self.state_layout, name=f"{name}_state")
        m.d.comb += [
            after.suffix.eq(
                Mux(load, next_ends & two & ~settings.zero, suffix | one | two),
            ),
            after.load.eq(load),
            after.count[0].eq(Mux(load, end0 & ~two, count[0] ^ (~suffix & (one | two)))),
            after.count[1:].eq(count[1:]),
            after.flip1.eq(Mux(load, end0 & ~two & order[0], flip1)),
            after.flip2.eq(
                Mux(end0, ~two & order[0] & order[1], flip1 & (count[1] ^ moving)),
            ),
            after.way.eq(Mux(load, order[2], count[2] ^ moving)),
            after.next_suffix.eq(Mux(load, next_loaded, suffix & count[0] & count[1])),
            after.next_prefix.eq(~load & ~suffix & next_prefix),
            after.long.eq(~load & (count[2] | count[3] | state.bad)),
            after.second_suffix.eq(Mux(load, second_loaded, second_suffix)),
            after.second_prefix.eq(~load & ~suffix & second_prefix),
            after.fits.eq(load | fits),
            after.event.eq(Mux(load, event_loaded, event1)),
            after.bad.eq(beyond),
        ]
        marks = [
            Marks(end0, event | (suffix == one), ~suffix & one & beyond),
            Marks(end1, Mux(next_ends, settings.dense, event1), ~suffix & ~one & two & at_limit),
        ]
        return after, marks


class TableMachine:
    """The steps for all codes.

    A count of the prefix's zeros addresses the table of suffix bits; what is read there is then
    counted down, and 0 where the codeword ends. What the prefix may still do is asked where the
    count is `last`.

    Parameters
    ----------
    m : Module
        Where the tables go.
    names : tuple of str
        Codes of `CODE_NAMES` that are possible.
    codes : sequence of View
        `code_layout` of each bank. All but the orders and offsets are in place before the code's
        entries are written.
    write : View
        `code_write_layout`. Entries behind a table's last class do not matter.
    """

    bits = 1
    settings_layout = data.StructLayout(
        {
            "bank": 1,
            "run_form": 1,
            "dense": 1,
            # For the tables of runs and of levels; without `run_form` both are the levels'.
            "last": data.ArrayLayout(_COUNT_BITS, 2),
            # After `last` zeros the suffix of the last class begins.
            "open": data.ArrayLayout(1, 2),
            # The zero behind `last` zeros ends a codeword without a suffix.
            "bare": data.ArrayLayout(1, 2),
            "order": data.ArrayLayout(_ORDER_BITS, 2),
        }
    )
    start_layout = data.StructLayout({"event": 1})
    state_layout = data.StructLayout(
        {
            # Zeros of the prefix, or bits of the suffix that are left.
            "count": _COUNT_BITS,
            # The codeword is known to be multiplied; in the run form it is a level.
            "event": 1,
            # The suffix is being read.
            "suffix": 1,
            # The prefix is too long; with `suffix`, nothing is read any more.
            "bad": 1,
        }
    )
    initial: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self, m: Module, names: tuple[str, ...], codes: Sequence[data.View], write: data.View
    ) -> None:
        self._bank_bits = len(codes) - 1
        self._banks = [Signal(self.settings_layout, name=f"bank{n}") for n in range(len(codes))]
        self._memories: list[memory.Memory] = []
        self._runs = CODE_NAMES[1] in names
        self._tables = CODE_NAMES[2] in names
        for number, (bank, code) in enumerate(zip(self._banks, codes, strict=True)):
            runs = code.run_form if self._runs else Const(0, 1)
            golomb = Cat(Mux(runs, code.run_golomb, code.level_golomb), code.level_golomb)
            m.d.comb += [
                bank.bank.eq(number),
                bank.run_form.eq(runs),
                bank.dense.eq(code.dense & ~runs),
                bank.last[0].eq(Mux(runs, code.run_last, code.level_last)),
                bank.last[1].eq(code.level_last),
            ]
            if self._tables:
                m.d.comb += bank.open.eq(~golomb)
            else:
                m.d.comb += bank.order[0].eq(Mux(runs, code.run_order, code.level_order))
                m.d.comb += bank.order[1].eq(code.level_order)
        if not self._tables:
            return
        written = Signal(self.settings_layout)
        m.d.comb += written.eq(self._chosen(write.bank))
        for table in range(2):
            # One cycle late: the address reaches many memories.
            held = Signal(
                data.StructLayout(
                    {"enable": 1, "bank": 1, "number": _COUNT_BITS, "left": _SUFFIX_BITS}
                ),
                name=f"write{table}",
            )
            entries = table_memory(_SUFFIX_BITS, len(codes) * CLASSES)
            m.submodules[f"table{table}"] = entries
            self._memories.append(entries)
            port = entries.write_port()
            # Without the run form, the levels' entries go to both tables.
            wanted = ~write.run if table else write.run == written.run_form
            last = (write.number == written.last[table]) & written.open[table]
            m.d.sync += [
                held.enable.eq(write.enable & wanted),
                held.bank.eq(write.bank),
                held.number.eq(write.number),
                # The suffix of an open class begins at its first bit, not before.
                held.left.eq(write.suffix_bits - last),
            ]
            m.d.comb += [
                port.en.eq(held.enable),
                port.addr.eq(self._address(held.bank, held.number)),
                port.data.eq(held.left),
            ]
            for number, bank in enumerate(self._banks):
                chosen = write.enable & wanted & ((write.bank == number) | (len(codes) == 1))
                bare = Signal(name=f"bare{number}{table}")
                m.d.comb += bank.bare[table].eq(bare & bank.open[table])
                with m.If(chosen & last):
                    m.d.sync += bare.eq(write.suffix_bits == 0)

    def _address(self, bank: Value, count: Value) -> Value:
        return Cat(count, bank[: self._bank_bits])

    def _chosen(self, bank: Value) -> Value:
        return Mux(bank, self._banks[-1], self._banks[0]) if self._bank_bits else self._banks[0]

    def _lookup(self, m: Module, settings: data.View, table: Value, count: Value) -> Value:
        """Return the suffix bits behind a prefix; behind an open one, one less."""
        if not self._tables:
            return (settings.order[table] + count)[:_SUFFIX_BITS]
        read = []
        for entries in self._memories:
            port = entries.read_port(domain="comb")
            m.d.comb += port.addr.eq(self._address(settings.bank, count))
            read.append(port.data)
        return Mux(table, read[1], read[0])

    def settings(self, m: Module, bank: Value) -> data.View:
        """Return the settings of the code in a bank."""
        chosen = Signal(self.settings_layout)
        settings = Signal(self.settings_layout)
        m.d.comb += [chosen.eq(self._chosen(bank)), settings.eq(chosen)]
        for table in range(2):
            # A last class without a suffix ends the class before it.
            m.d.comb += [
                settings.last[table].eq(chosen.last[table] - chosen.bare[table]),
                settings.open[table].eq(chosen.open[table] & ~chosen.bare[table]),
            ]
        return settings

    def start(self, settings: data.View) -> Value:
        """Return what the first step of a substream needs."""
        return settings.dense

    def step(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        state: data.View,
        bits: Value,
        name: str,
    ) -> tuple[data.View, list[Marks]]:
        """Add the gates that read a bit; see `Machine`."""

        def gate(gate_name: str, value: Value) -> Value:
            signal = Signal(value.shape(), name=f"{name}_{gate_name}")
            m.d.comb += signal.eq(value)
            return signal

        bit, count, suffix = bits[0], state.count, state.suffix
        table = gate("table", state.event | start.event)
        left = gate("left", self._lookup(m, settings, table, count))
        empty = gate("empty", left == 0)
        at_last = count == settings.last[table]
        opens = gate("opens", at_last & settings.open[table])
        closes = gate("closes", at_last & settings.bare[table])
        exceeds = gate("exceeds", at_last & ~settings.open[table] & ~settings.bare[table])

        # What is read from the table comes late; all else is prepared for it.
        loads = gate("loads", ~suffix & ~state.bad & (bit | opens))
        bare = gate("bare", closes & ~suffix & ~state.bad & ~bit)
        ends = gate("ends", bare | (suffix & (count == 1) & ~state.bad))
        event = gate("event", table | (~settings.run_form & (bit == (suffix | opens))))
        fresh = gate("fresh", Mux(settings.run_form, ~table, settings.dense))
        stays = gate("stays", (suffix | bit | opens) & ~ends)
        event_before = gate("event_before", Mux(ends, fresh, event))
        counted = gate("counted", Mux(suffix, count - 1, count + 1)[:_COUNT_BITS])

        after = Signal(self.state_layout, name=f"{name}_state")
        end = (loads & empty) | ends
        m.d.comb += [
            after.count.eq(Mux(loads, left, counted & ~bare.replicate(_COUNT_BITS))),
            after.event.eq(Mux(loads & empty, fresh, event_before)),
            after.suffix.eq(stays & ~(loads & empty)),
            after.bad.eq(state.bad | (exceeds & ~suffix & ~bit)),
        ]
        return after, [Marks(end, event, state.bad & ~suffix & bit)]


class RingParser(wiring.Component):
    """The ports of a parser, and what moves its ring of pipeline stages.

    The ring stands still amid a matrix while no bits come, and runs empty between matrices.

    Parameters
    ----------
    width : int
        W, bits a cycle.
    slots : int
        C, stages of the ring: a power of two.
    more : mapping of str to Member
        More ports.

    Attributes
    ----------
    enable : In(1)
        Advance.
    drain : In(1)
        Let the ring run empty amid a matrix too, which is lost.
    turn : Out(range(C))
        Slot whose bits enter next; the slots take turns.
    codes : In(ArrayLayout(code_layout(), 2))
        The codes by bank; constant while a matrix uses them.
    i_valid : In(1)
        The cycle carries bits of the slot whose turn it is.
    i_first, i_last : In(1)
        They are the slot's first or last ones of a matrix. The first restart its state.
    i_parity, i_bank : In(1)
        Their matrix's tag and code.
    i_bits : In(width)
        Bits, the most significant one first in time.
    o_valid, o_slot, o_first, o_last, o_parity : Out
        What entered, in the same order, and its slot.
    o_bits, o_end, o_event : Out(width)
        In order of time, position 0 first: the bit; a codeword ends at it; that codeword is a
        level that must be multiplied (in the run form every level, else not the first codeword of
        class 0, or `dense`). `o_event` without `o_end`: the prefix was too long; there are no more
        marks until the next `i_first`.
    """

    def __init__(self, width: int, slots: int, more: Mapping[str, wiring.Member]) -> None:
        self._width = width
        self._slots = slots
        slot_bits = max(1, (slots - 1).bit_length())
        super().__init__(
            {
                "enable": In(1),
                "drain": In(1),
                "turn": Out(slot_bits),
                "codes": In(data.ArrayLayout(code_layout(), 2)),
                **more,
                "i_valid": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "i_parity": In(1),
                "i_bank": In(1),
                "i_bits": In(width),
                "o_valid": Out(1),
                "o_slot": Out(slot_bits),
                "o_first": Out(1),
                "o_last": Out(1),
                "o_parity": Out(1),
                "o_bits": Out(width),
                "o_end": Out(width),
                "o_event": Out(width),
            }
        )

    def _moves(self, m: Module) -> Value:
        """Return whether the ring moves in an enabled cycle: when bits wait before it, or may."""
        if self._slots == 1:
            return Const(1, 1)
        amid = Signal()
        moves = Signal()
        with m.If(self.enable):
            m.d.sync += moves.eq(self.i_valid | ~amid | self.drain)
            with m.If(self.i_valid):
                m.d.sync += self.turn.eq(self.turn + 1)
                m.d.sync += amid.eq(~(self.i_last & self.turn.all()))
            with m.If(self.o_valid):
                m.d.sync += self.o_slot.eq(self.o_slot + 1)
        return moves


class UnrolledParser(RingParser):
    """Mark where codewords end, W bits a cycle whatever the data (docs/adr/0004).

    Parsing is a state machine over bits. `width` copies of its step stand in a chain; a register
    after every `cut` of them makes C = `width // cut` pipeline stages, which as many substreams
    fill in turn (C-slow), so that the loop over the state closes within one stage.

    Throughput `width` bits an enabled cycle. Latency C + 2 enabled cycles, if bits go on coming:
    amid a matrix, bits leave only as others follow. The C first beats of a matrix push out all of
    the one before.

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
    banks : int
        Codes that it holds at a time, 1 or 2.

    Attributes
    ----------
    code_write : In(code_write_layout())
        Writes a table's entry. All else in `codes` but orders and offsets is in place before.
    enable, drain, turn, codes, i_valid, i_first, i_last, i_parity, i_bank, i_bits
        See `RingParser`.
    o_valid, o_slot, o_first, o_last, o_parity, o_bits, o_end, o_event
        See `RingParser`.
    """

    def __init__(
        self, width: int, cut: int, suffix_limit: int, codes: tuple[str, ...], banks: int = 2
    ) -> None:
        if cut <= 0 or width % cut or width // cut & width // cut - 1:
            raise ValueError(f"cut must divide width = {width} by a power of two, not be {cut!r}")
        self._cut = cut
        self._suffix_limit = suffix_limit
        self._names = codes
        self._banks = banks
        super().__init__(width, width // cut, {"code_write": In(code_write_layout())})

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        machine: Machine
        if self._names == CODE_NAMES[:1]:
            kind = OrderMachine if self._cut % PairMachine.bits else PairMachine
            machine = kind(self._suffix_limit, self.codes)
        else:
            banks = [self.codes[bank] for bank in range(self._banks)]
            machine = TableMachine(m, self._names, banks, self.code_write)
        beat_layout = data.StructLayout(
            {
                "first": 1,
                "last": 1,
                "parity": 1,
                "bits": self._width,
                "end": self._width,
                "event": self._width,
                "bad": self._width,
                "settings": machine.settings_layout,
            }
        )
        valid = Signal(self._slots + 1)
        moves = self._moves(m)
        step = Signal()
        m.d.comb += step.eq(self.enable & moves)
        beat = Signal(beat_layout)
        start = Signal(machine.start_layout)
        settings = machine.settings(m, self.i_bank)
        with m.If(self.enable):
            m.d.sync += [
                start.eq(Mux(self.i_first, machine.start(settings), 0)),
                valid[0].eq(self.i_valid),
                beat.first.eq(self.i_first),
                beat.last.eq(self.i_last),
                beat.parity.eq(self.i_parity),
                beat.bits.eq(self.i_bits[::-1]),
                beat.settings.eq(settings),
            ]
        with m.If(step):
            m.d.sync += valid[1:].eq(valid)
        with m.If(self.enable & ~moves):
            # What leaves is shown once.
            m.d.sync += valid[-1].eq(0)

        states = [
            Signal(machine.state_layout, init=machine.initial, name=f"stage{index}_state")
            for index in range(self._slots)
        ]
        for index, held in enumerate(states):
            following = Signal(beat_layout, name=f"stage{index}_beat")
            found = Signal(beat_layout, name=f"stage{index}_found")
            m.d.comb += found.eq(beat)
            state = states[index - 1]
            for position in range(index * self._cut, (index + 1) * self._cut, machine.bits):
                bits = beat.bits[position : position + machine.bits]
                state, marks = machine.step(m, beat.settings, start, state, bits, f"bit{position}")
                start = machine.start_layout.const({})
                for place, mark in enumerate(marks, position):
                    m.d.comb += [
                        found.end[place].eq(mark.end),
                        found.event[place].eq(mark.event),
                        found.bad[place].eq(mark.bad),
                    ]
            with m.If(step):
                m.d.sync += following.eq(found)
            with m.If(step & valid[0] if self._slots == 1 else step):
                m.d.sync += held.eq(state)
            beat = following
        with m.If(self.enable & self.i_valid & self.i_first):
            m.d.sync += states[-1].eq(machine.state_layout.const(machine.initial))
        with m.If(self.enable):
            m.d.sync += [
                self.o_valid.eq(valid[-1]),
                self.o_first.eq(beat.first),
                self.o_last.eq(beat.last),
                self.o_parity.eq(beat.parity),
                self.o_bits.eq(beat.bits),
                self.o_end.eq(beat.end),
                self.o_event.eq((beat.end & beat.event) | beat.bad),
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
        super().__init__(
            params.parser_bits,
            params.parser_cut,
            params.suffix_limit,
            params.codes,
            params.code_banks,
        )
