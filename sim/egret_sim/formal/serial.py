"""A parser as docs/format.md describes it, bit after bit; it shares nothing with the RTL."""

from collections.abc import Callable
from dataclasses import dataclass

from amaranth.hdl import Const, Module, Signal, Value
from amaranth.lib import data

__all__ = ["SerialCode", "SerialState", "serial_start", "serial_step"]

SerialState = data.StructLayout(
    {
        # The codeword is a run; else a level.
        "run": 1,
        # Zeros of its prefix so far; one more than are allowed stands for any more.
        "zeros": 5,
        # Its suffix is being read, and so many bits of it are left.
        "reading": 1,
        "left": 4,
        # It is of class 0, and no suffix bit was a one.
        "least": 1,
        # A prefix was too long: nothing is read any more.
        "over": 1,
    }
)
"""State between two bits."""


@dataclass(frozen=True)
class SerialCode:
    """A code.

    Attributes
    ----------
    run_form, dense : Value
        As in a CODE packet.
    golomb, last : sequence of Value
        As in a CODE packet, for levels and for runs.
    size : callable
        Suffix bits of a class: of the runs' table or not, and the class's number.
    """

    run_form: Value
    dense: Value
    golomb: tuple[Value, Value]
    last: tuple[Value, Value]
    size: Callable[[Value, Value], Value]

    def of(self, run: Value, pair: tuple[Value, Value]) -> Value:
        """Return what belongs to the runs' or to the levels' table."""
        return (run.replicate(len(pair[0])) & pair[1]) | (~run).replicate(len(pair[0])) & pair[0]


def _begin(m: Module, code: SerialCode, state: data.View, run: Value) -> None:
    """Begin a codeword."""
    m.d.comb += [state.eq(0), state.run.eq(run), state.least.eq(1)]
    # With a single class there is no prefix.
    with m.If(~code.of(run, code.golomb) & (code.of(run, code.last) == 0)):
        m.d.comb += [state.reading.eq(1), state.left.eq(code.size(run, Const(0, 5)))]


def serial_start(m: Module, code: SerialCode, name: str) -> data.View:
    """Return the state before a substream's first bit."""
    state = Signal(SerialState, name=name)
    _begin(m, code, state, code.run_form)
    return state


def serial_step(
    m: Module, code: SerialCode, state: data.View, bit: Value, name: str
) -> tuple[data.View, Signal, Signal]:
    """Read a bit.

    Parameters
    ----------
    m : Module
        Where to.
    code : SerialCode
        The code.
    state : View
        State before the bit.
    bit : Value
        The bit.
    name : str
        Begins the names of the signals.

    Returns
    -------
    View, Signal, Signal
        State after the bit; a codeword ends; that codeword must be multiplied, or, if none ends,
        the prefix is too long.
    """
    after = Signal(SerialState, name=f"{name}_after")
    ends, event = Signal(name=f"{name}_ends"), Signal(name=f"{name}_event")
    level = Signal(name=f"{name}_level")
    golomb, last = code.of(state.run, code.golomb), code.of(state.run, code.last)
    m.d.comb += [
        after.eq(state),
        # In the run form every level; else all but the codeword of index 0, or all.
        level.eq(~state.run & (code.run_form | code.dense | ~after.least)),
    ]
    entered = Signal(5, name=f"{name}_entered")
    m.d.comb += entered.eq(state.zeros + ~bit)
    with m.If(state.over):
        pass
    with m.Elif(state.reading):
        m.d.comb += [
            after.left.eq(state.left - 1),
            after.least.eq(state.least & ~bit),
            ends.eq(state.left == 1),
        ]
    with m.Elif(golomb & bit & (state.zeros > last)):
        m.d.comb += [after.over.eq(1), event.eq(1)]
    with m.Elif(golomb & ~bit & (state.zeros > last)):
        pass
    with m.Elif(bit | (~golomb & (entered == last))):
        size = code.size(state.run, entered)
        m.d.comb += [
            after.least.eq(entered == 0),
            after.reading.eq(1),
            after.left.eq(size),
            ends.eq(size == 0),
        ]
    with m.Else():
        m.d.comb += after.zeros.eq(entered)
    following = Signal(SerialState, name=f"{name}_following")
    _begin(m, code, following, code.run_form & ~state.run)
    result = Signal(SerialState, name=f"{name}_state")
    m.d.comb += result.eq(after)
    with m.If(ends):
        m.d.comb += [result.eq(following), event.eq(level)]
    return result, ends, event
