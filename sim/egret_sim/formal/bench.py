"""What a proof is made of: a component, free inputs, assumptions and assertions around it."""

from amaranth.hdl import Assert, Assume, ClockDomain, Module, ShapeLike, Signal, Value
from amaranth.lib.wiring import Component, PureInterface

__all__ = ["Bench"]


class Bench:
    """A component whose inputs the solver chooses.

    The registers begin with their reset values; no reset comes later.

    Parameters
    ----------
    component : Component
        The component under proof, as submodule `dut`.

    Attributes
    ----------
    m : Module
        The design; what checks the component is added here.
    dut : Component
        The component.
    ports : list of Signal
        Clock and free inputs.
    taps : dict of str to str
        Free inputs that stand for signals inside the component, and the names of these.
    """

    def __init__(self, component: Component) -> None:
        self.m = Module()
        domain = ClockDomain("sync", reset_less=True)
        self.m.domains += domain
        self.dut = component
        self.m.submodules.dut = component
        self.ports: list[Signal] = [domain.clk]
        self.taps: dict[str, str] = {}
        self._started = Signal(name="started")
        self.m.d.sync += self._started.eq(1)
        self._pasts = 0

    def free(self, name: str, width: int = 1) -> Signal:
        """Return an input that may have any value in any cycle."""
        signal = Signal(width, name=name)
        self.ports.append(signal)
        return signal

    def constant(self, name: str, width: int = 1) -> Signal:
        """Return an input that may have any value, the same in all cycles."""
        signal = self.free(name, width)
        self.assume(~self._started | (signal == self.past(signal)))
        return signal

    def tap(self, path: str, width: int = 1) -> Signal:
        """Return a signal inside the component; `path` is its name, submodules' names before it.

        What is asserted of it strengthens an induction.
        """
        name = f"tap{len(self.taps)}"
        self.taps[name] = f"dut.{path}"
        return self.free(name, width)

    def past(self, value: Value) -> Signal:
        """Return the value of one cycle before; 0 at first."""
        self._pasts += 1
        signal = Signal(len(value), name=f"past{self._pasts}")
        self.m.d.sync += signal.eq(value)
        return signal

    def register(self, shape: ShapeLike, name: str) -> Signal:
        """Return a register of the proof itself."""
        return Signal(shape, name=name)

    def assume(self, condition: Value) -> None:
        """Let the solver choose only what meets a condition in every cycle."""
        self.m.d.comb += Assume(condition, src_loc_at=1)

    def check(self, condition: Value) -> None:
        """Assert a condition in every cycle."""
        self.m.d.comb += Assert(condition, src_loc_at=1)

    def drive(self, port: Value, name: str) -> Signal:
        """Connect a free input to an input of the component."""
        signal = self.free(name, len(Value.cast(port)))
        self.m.d.comb += Value.cast(port).eq(signal)
        return signal

    def offer(self, port: PureInterface, name: str) -> None:
        """Feed an input stream with anything that keeps to a stream's contract."""
        valid = self.drive(port.valid, f"{name}_valid")
        payload = self.drive(port.payload, f"{name}_payload")
        self.assume(~self.past(valid & ~port.ready) | (valid & (payload == self.past(payload))))

    def accept(self, port: PureInterface, name: str) -> None:
        """Let an output stream be ready at any time."""
        self.drive(port.ready, f"{name}_ready")

    def check_stable(self, port: PureInterface, excuse: Value) -> None:
        """Assert that valid holds, and the payload is stable, until ready.

        Parameters
        ----------
        port : stream
            Output of the component.
        excuse : Value
            In the cycle of it, and in the one behind it, what is offered may be withdrawn.
        """
        payload = Value.cast(port.payload)
        waited = self.past(port.valid & ~port.ready & ~excuse)
        kept = port.valid & (payload == self.past(payload))
        self.check(~waited | excuse | kept)
