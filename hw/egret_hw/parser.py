"""Parser: a bit-level state machine, unrolled, that reads W bits every cycle."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
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
    ahead_layout: data.StructLayout
    """What is known of a step a cycle before."""
    state_layout: data.StructLayout
    initial: Mapping[str, int]
    """State before a substream's first bit, as a register's reset."""

    def settings(self, m: Module, bank: Value) -> data.View:
        """Return the settings of the code in a bank."""

    def start(self, settings: data.View) -> Value:
        """Return what the first step of a substream needs."""

    def ahead(self, settings: data.View, bits: Value) -> Value:
        """Return what is known a cycle before a step that reads bits."""

    def step(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        ahead: data.View,
        state: data.View,
        bits: Value,
        name: str,
    ) -> tuple[data.View, list[Marks]]:
        """Add the gates that read bits.

        Parameters
        ----------
        m : Module
            Where to.
        settings, start, ahead, state : View
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
    ahead_layout = data.StructLayout({})
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

    def ahead(self, settings: data.View, bits: Value) -> Value:
        """Return nothing: the steps are short."""
        return Const(0, 0)

    def step(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        ahead: data.View,
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
    ahead_layout = data.StructLayout(
        {
            # If the second bit is the first one of a codeword: it ends it, it begins a suffix; the
            # bit behind it ends the codeword, the one after that does.
            "ends": 1,
            "begins": 1,
            "next": 1,
            "second": 1,
            # It is a zero, and the order's lowest bit is set, its two lowest bits are.
            "low": 1,
            "low_two": 1,
        }
    )
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

    def ahead(self, settings: data.View, bits: Value) -> Value:
        """Return what is known a cycle before a step that reads bits."""
        two = bits[1]
        low = ~two & settings.order[0]
        return Cat(
            two & settings.zero,
            two & ~settings.zero,
            two & (settings.zero | settings.one),
            Mux(two, settings.two, settings.zero),
            low,
            low & settings.order[1],
        )

    def step(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        ahead: data.View,
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
        next_loaded = Mux(next_ends, ahead.next, settings.zero)
        second_loaded = Mux(next_ends, ahead.second, settings.one)
        next_prefix = Mux(one, count[1], two & ~count[1]) & ~count[0]
        second_prefix = Mux(one, count[1], two & ~count[1]) & count[0]
        fits = ~count[3] & ~state.bad & (count[2] == suffix)
        second_suffix = suffix & ~count[0] & ~count[1]
        end1 = gate("end1", load & (second_ends | ahead.ends))

        # Third level.
        after = Signal(self.state_layout, name=f"{name}_state")
        m.d.comb += [
            after.suffix.eq(
                Mux(load, next_ends & ahead.begins, suffix | one | two),
            ),
            after.load.eq(load),
            after.count[0].eq(Mux(load, end0 & ~two, count[0] ^ (~suffix & (one | two)))),
            after.count[1:].eq(count[1:]),
            after.flip1.eq(Mux(load, end0 & ahead.low, flip1)),
            after.flip2.eq(
                Mux(end0, ahead.low_two, flip1 & (count[1] ^ moving)),
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

    A count goes down with every bit. Before a codeword it is 15. In the prefix its complement is
    the number of zeros so far, and it addresses the table of suffix bits; what else the next bit
    may do to the prefix is asked where it is `last`. In the suffix it is one less than the bits
    that are left, so that from the last one it goes on to 15; a class without a suffix has 15 in
    the table.

    Parameters
    ----------
    m : Module
        Where the registers go.
    names : tuple of str
        Codes of `CODE_NAMES` that are possible.
    codes : sequence of View
        `code_layout` of each bank. All but the orders and offsets are in place before the code's
        entries are written, and everything three cycles before bits come.
    write : View
        `code_write_layout`. Entries behind a table's last class do not matter.
    """

    bits = 1
    settings_layout = data.StructLayout(
        {
            "bank": 1,
            "run_form": 1,
            "dense": 1,
            # For the tables of runs and of levels; without the run form both are the levels'.
            # The count at which something bounds the prefix:
            "last": data.ArrayLayout(_COUNT_BITS, 2),
            # Either bit is the first one of a suffix.
            "open": 2,
            # A zero bit ends the codeword, whose class has no suffix. If neither, it makes the
            # prefix too long.
            "bare": 2,
            # One less than the order, where there are no tables.
            "order": data.ArrayLayout(_COUNT_BITS, 2),
        }
    )
    start_layout = data.StructLayout({"event": 1})
    ahead_layout = data.StructLayout({})
    looked_layout = data.StructLayout({"left": _COUNT_BITS, "at_last": 1})
    state_layout = data.StructLayout(
        {
            "count": _COUNT_BITS,
            # The codeword is known to be multiplied; in the run form it is a level.
            "event": 1,
            # The suffix is being read, or the prefix; neither after a prefix that was too long.
            "suffix": 1,
            "prefix": 1,
            # The prefix is too long, and its one bit is still to come.
            "bad": 1,
        }
    )
    initial: Mapping[str, int] = MappingProxyType({"count": 2**_COUNT_BITS - 1, "prefix": 1})

    def __init__(
        self, m: Module, names: tuple[str, ...], codes: Sequence[data.View], write: data.View
    ) -> None:
        self._bank_bits = len(codes) - 1
        self._banks = [Signal(self.settings_layout, name=f"bank{n}") for n in range(len(codes))]
        has_runs, self._tables = (name in names for name in CODE_NAMES[1:])
        taken = Signal(code_write_layout())
        if self._tables:
            m.d.sync += taken.eq(write)
        for number, (bank, code) in enumerate(zip(self._banks, codes, strict=True)):
            runs = code.run_form if has_runs else Const(0, 1)
            m.d.comb += bank.bank.eq(number)
            m.d.sync += [bank.run_form.eq(runs), bank.dense.eq(code.dense & ~runs)]
            golomb = Cat(Mux(runs, code.run_golomb, code.level_golomb), code.level_golomb)
            classes = [Mux(runs, code.run_last, code.level_last), code.level_last]
            orders = [Mux(runs, code.run_order, code.level_order), code.level_order]
            for table in range(2):
                if not self._tables:
                    m.d.sync += [
                        bank.last[table].eq(~classes[table]),
                        bank.order[table].eq(orders[table] - 1),
                    ]
                    continue
                is_golomb = Signal(name=f"golomb{number}{table}")
                last = Signal(_COUNT_BITS, name=f"last{number}{table}")
                bare = Signal(name=f"bare{number}{table}")
                m.d.sync += [
                    is_golomb.eq(golomb[table]),
                    last.eq(classes[table]),
                    # A last class without a suffix ends the class before it.
                    bank.last[table].eq(~last + (bare & ~is_golomb)),
                    bank.open[table].eq(~bare & ~is_golomb),
                    bank.bare[table].eq(bare & ~is_golomb),
                ]
                wanted = ~taken.run if table else taken.run == bank.run_form
                chosen = (taken.bank == number) | (not self._bank_bits)
                with m.If(taken.enable & wanted & chosen & (taken.number == last)):
                    m.d.sync += bare.eq(taken.suffix_bits == 0)
        self._write = held = Signal(
            data.StructLayout(
                # Without the run form, the levels' entries go to both tables.
                {"enable": 2 * len(codes), "entry": _COUNT_BITS, "left": _COUNT_BITS}
            )
        )
        if self._tables:
            # One register more before the memories: there are many of them.
            enables, open_classes = [], Const(0, 1)
            for number, (bank, code) in enumerate(zip(self._banks, codes, strict=True)):
                chosen = taken.enable & ((taken.bank == number) | (not self._bank_bits))
                enables += [chosen & (taken.run == bank.run_form), chosen & ~taken.run]
                # The suffix of an open class begins at its first bit, not before.
                golomb = Mux(taken.run, code.run_golomb, code.level_golomb)
                last = Mux(taken.run, code.run_last, code.level_last)
                open_classes |= chosen & ~golomb & (taken.number == last)
            m.d.sync += [
                held.enable.eq(Cat(*enables)),
                held.entry.eq(~taken.number),
                held.left.eq(taken.suffix_bits - 1 - open_classes),
            ]

    def _lookup(self, m: Module, settings: data.View, table: Value, count: Value) -> Value:
        """Return the count behind a prefix's one bit."""
        if not self._tables:
            left = Mux(table, settings.order[1], settings.order[0]) + ~count
            return left[:_COUNT_BITS]
        held, read = self._write, []
        for enable in held.enable:
            # A memory for each step: the tools give up on one with many ports.
            entries = table_memory(_COUNT_BITS, CLASSES)
            m.submodules += entries
            writing, reading = entries.write_port(), entries.read_port(domain="comb")
            m.d.comb += [
                writing.en.eq(enable),
                writing.addr.eq(held.entry),
                writing.data.eq(held.left),
                reading.addr.eq(count),
            ]
            read.append(reading.data)
        runs, levels = read[:2]
        if self._bank_bits:
            runs, levels = (
                Mux(settings.bank, other, one)
                for one, other in zip(read[:2], read[2:], strict=True)
            )
        return Mux(table, levels, runs)

    def settings(self, m: Module, bank: Value) -> data.View:
        """Return the settings of the code in a bank."""
        settings = Signal(self.settings_layout)
        chosen = Mux(bank, self._banks[-1], self._banks[0]) if self._bank_bits else self._banks[0]
        m.d.comb += settings.eq(chosen)
        return settings

    def start(self, settings: data.View) -> Value:
        """Return what the first step of a substream needs."""
        return settings.dense

    def ahead(self, settings: data.View, bits: Value) -> Value:
        """Return nothing: the state is what matters."""
        return Const(0, 0)

    def look(self, m: Module, settings: data.View, state: data.View, name: str) -> data.View:
        """Add the gates that look up a state: the first part of a step."""
        count, table = state.count, state.event
        # Where a substream starts with `event` it has no runs, and both tables are one.
        looked = Signal(self.looked_layout, name=f"{name}_looked")
        m.d.comb += [
            looked.left.eq(self._lookup(m, settings, table, count)),
            looked.at_last.eq(count == Mux(table, settings.last[1], settings.last[0])),
        ]
        return looked

    def step(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        ahead: data.View,
        state: data.View,
        bits: Value,
        name: str,
    ) -> tuple[data.View, list[Marks]]:
        """Add the gates that read a bit; see `Machine`."""
        looked = self.look(m, settings, state, name)
        return self.take(m, settings, start, looked, state, bits, name)

    def take(
        self,
        m: Module,
        settings: data.View,
        start: data.View,
        looked: data.View,
        state: data.View,
        bits: Value,
        name: str,
    ) -> tuple[data.View, list[Marks]]:
        """Add the gates that read a bit where a state has been looked up."""

        def gate(gate_name: str, value: Value) -> Value:
            signal = Signal(value.shape(), name=f"{name}_{gate_name}")
            m.d.comb += signal.eq(value)
            return signal

        bit, count = bits[0], state.count
        suffix, prefix, table = state.suffix, state.prefix, state.event
        left, at_last = looked.left, looked.at_last
        opens = gate("opens", at_last & Mux(table, settings.open[1], settings.open[0]))
        bare = Mux(table, settings.bare[1], settings.bare[0])
        loads = gate("loads", prefix & (bit | opens))
        finishes = gate("finishes", suffix & (count == 0))
        ends = gate("ends", finishes | (prefix & ~bit & at_last & bare))
        stays = gate("stays", finishes | (prefix & ~bit & ~(at_last & ~bare)))
        # No suffix is longer than 12 bits, and less than none is 15.
        empty = gate("empty", left[3] & left[2])
        rises = gate("rises", bit == (suffix | opens))
        event = gate("event", table | start.event | (~settings.run_form & rises))
        fresh = gate("fresh", Mux(settings.run_form, ~table, settings.dense))
        unloaded = gate("unloaded", Mux(ends, fresh, event))
        counted = gate("counted", (count - 1)[:_COUNT_BITS])

        after = Signal(self.state_layout, name=f"{name}_state")
        m.d.comb += [
            after.count.eq(Mux(loads, left, counted | ends.replicate(_COUNT_BITS))),
            after.event.eq(Mux(loads & empty, fresh, unloaded)),
            after.suffix.eq(Mux(loads, ~empty, suffix & ~finishes)),
            after.prefix.eq((loads & empty) | stays),
            after.bad.eq(~bit & (state.bad | (prefix & at_last & ~bare & ~opens))),
        ]
        return after, [Marks((loads & empty) | ends, event, state.bad & bit)]


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
        steps = range(0, self._cut, machine.bits)
        ahead_layout = data.ArrayLayout(machine.ahead_layout, len(steps))

        def ahead(settings: data.View, bits: Value) -> Value:
            """Return what is known of the steps of a stage."""
            return Cat(machine.ahead(settings, bits[at : at + machine.bits]) for at in steps)

        known = Signal(ahead_layout)
        with m.If(self.enable):
            m.d.sync += [
                start.eq(Mux(self.i_first, machine.start(settings), 0)),
                known.eq(ahead(settings, self.i_bits[::-1])),
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
            for number, at in enumerate(steps):
                position = index * self._cut + at
                state, marks = machine.step(
                    m,
                    beat.settings,
                    start,
                    known[number],
                    state,
                    beat.bits[position : position + machine.bits],
                    f"bit{position}",
                )
                start = machine.start_layout.const({})
                for place, mark in enumerate(marks, position):
                    m.d.comb += [
                        found.end[place].eq(mark.end),
                        found.event[place].eq(mark.event),
                        found.bad[place].eq(mark.bad),
                    ]
            known_next = Signal(ahead_layout, name=f"stage{index}_known")
            bits_next = beat.bits[(index + 1) * self._cut :]
            with m.If(step):
                m.d.sync += following.eq(found)
                if len(bits_next):
                    m.d.sync += known_next.eq(ahead(beat.settings, bits_next))
            known = known_next
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
