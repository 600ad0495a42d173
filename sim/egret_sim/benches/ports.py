"""Drives and reads a bank's members, clock cycle by clock cycle."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from itertools import repeat
from random import Random
from typing import Any, TypeVar

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly
from cocotb.utils import get_sim_time

from egret.errors import EgretError
from egret_sim.benches.accelerator import PAUSES
from egret_sim.runner import CLOCK_NS, input_names

__all__ = ["Ports", "Sink", "Source", "pauses", "play_bank"]

JobT = TypeVar("JobT")
OutcomeT = TypeVar("OutcomeT")


def pauses(pattern: str, seed: int) -> Iterator[bool]:
    """Return an endless pattern of pauses, a key of `PAUSES`."""
    generator = PAUSES[pattern]
    return repeat(False) if generator is None else generator(Random(seed))


class Ports:
    """Ports of one member.

    A cycle is `drive`, `await settle()`, `read`, `await step()`: inputs change while the clock
    is low, and what is read is what the next rising edge sees.

    Parameters
    ----------
    dut : object
        Top module, a `Bank`.
    name : str
        Name of the member.
    """

    def __init__(self, dut: Any, name: str) -> None:
        self._dut = dut
        self._name = name
        self._driven: dict[str, int] = {}
        self._handles: dict[str, Any] = {}

    def _handle(self, port: str) -> Any:
        if port not in self._handles:
            self._handles[port] = getattr(self._dut, f"{self._name}__{port}")
        return self._handles[port]

    def drive(self, **values: int) -> None:
        """Set inputs."""
        for port, value in values.items():
            if self._driven.get(port) != value:
                self._handle(port).value = value
                self._driven[port] = value

    def read(self, *ports: str, valid: str = "") -> tuple[int, ...]:
        """Return the unsigned values of ports.

        Where the port `valid` is 0, the others are 0 if a bit of them is unknown, such as what a
        memory gives that was not read yet.
        """
        values = [self._handle(port).value for port in ports]
        counts = not valid or self.read(valid) != (0,)
        for number, (port, value) in enumerate(zip(ports, values, strict=True)):
            if not value.is_resolvable and not counts:
                values[number] = 0
            elif not value.is_resolvable:
                time = get_sim_time("ns")
                raise EgretError(f"{self._name}: {port}: found {value}, {time} ns from the start")
        return tuple(map(int, values))

    def read_write(self, port: str, enables: int = 1) -> int:
        """Return the unsigned value of a write to a memory, whose lowest bits are its enables.

        Where they are all 0, the value is 0 if a bit of it is unknown.
        """
        value = self._handle(port).value
        low = value[enables - 1 : 0]
        if not value.is_resolvable and low.is_resolvable and not int(low):
            return 0
        return self.read(port)[0]

    async def settle(self) -> None:
        """Wait until the inputs have passed through the gates."""
        await ReadOnly()

    async def step(self) -> None:
        """Let the rising edge pass."""
        await FallingEdge(self._dut.clk)

    async def reset(self) -> None:
        """Reset this member alone, for one cycle."""
        reset = getattr(self._dut, f"{self._name}_reset")
        reset.value = 1
        await self.step()
        reset.value = 0


class Source:
    """Offers payloads on a stream, each until it is taken, with pauses before it.

    Parameters
    ----------
    ports : Ports
        Ports of the member.
    stream : str
        Name of the stream.
    bits : int
        Width of the payload, which is anything while there is none.
    pattern : str
        Pattern of pauses, a key of `PAUSES`.
    seed : int
        Seed of the pauses and of what is on the port meanwhile.
    payloads : Iterable[int]
        What to offer.

    Attributes
    ----------
    waiting : deque[int]
        Payloads not taken yet, the offered one included.
    """

    def __init__(
        self,
        ports: Ports,
        stream: str,
        bits: int,
        pattern: str,
        seed: int,
        payloads: Iterable[int] = (),
    ) -> None:
        self.waiting = deque(payloads)
        self._ports = ports
        self._stream = stream
        self._bits = bits
        self._pauses = pauses(pattern, seed)
        self._rng = Random(seed)
        self._offered = False

    def drive(self, *, allowed: bool = True) -> bool:
        """Set the inputs of this cycle; return whether a payload is offered.

        Where not `allowed` none is begun to be offered.
        """
        self._offered = self._offered or (bool(self.waiting) and allowed and not next(self._pauses))
        payload = self.waiting[0] if self._offered else self._rng.getrandbits(self._bits)
        self._ports.drive(
            **{f"{self._stream}__valid": int(self._offered), f"{self._stream}__payload": payload}
        )
        return self._offered

    def taken(self) -> int | None:
        """Return the payload that this cycle's edge takes."""
        (ready,) = self._ports.read(f"{self._stream}__ready")
        if not (self._offered and ready):
            return None
        self._offered = False
        return self.waiting.popleft()

    def withdraw(self) -> None:
        """Forget everything."""
        self.waiting.clear()
        self._offered = False


class Sink:
    """Takes payloads from a stream, with pauses.

    Parameters
    ----------
    ports : Ports
        Ports of the member.
    stream : str
        Name of the stream.
    pattern : str
        Pattern of pauses, a key of `PAUSES`.
    seed : int
        Seed of the pauses.

    Attributes
    ----------
    unsteady : bool
        A payload has changed, or was withdrawn, before it was taken.
    """

    def __init__(self, ports: Ports, stream: str, pattern: str, seed: int) -> None:
        self.unsteady = False
        self._ports = ports
        self._stream = stream
        self._pauses = pauses(pattern, seed)
        self._ready = False
        self._held: int | None = None

    def drive(self) -> None:
        """Set the input of this cycle."""
        self._ready = not next(self._pauses)
        self._ports.drive(**{f"{self._stream}__ready": int(self._ready)})

    def taken(self) -> int | None:
        """Return the payload that this cycle's edge takes."""
        (valid,) = self._ports.read(f"{self._stream}__valid")
        (payload,) = self._ports.read(f"{self._stream}__payload", valid=f"{self._stream}__valid")
        offered = payload if valid else None
        if self._held is not None and offered != self._held:
            self.unsteady = True
        self._held = None if self._ready else offered
        return offered if self._ready else None


async def play_bank(
    dut: Any, jobs: Mapping[str, JobT], play: Callable[[Ports, JobT], Awaitable[OutcomeT]]
) -> dict[str, OutcomeT]:
    """Play each member's job, all at once.

    Parameters
    ----------
    dut : object
        Top module, a `Bank`.
    jobs : Mapping[str, JobT]
        Job of each member.
    play : callable
        Plays a job on ports, and returns the outcome.

    Returns
    -------
    dict[str, OutcomeT]
        Outcome of each member.
    """
    # A rising edge at time 0 would come before the first values of what the gates compute.
    Clock(dut.clk, CLOCK_NS, unit="ns").start(start_high=False)
    # Else a simulator that knows X lets registers without a reset begin with it.
    for name in input_names():
        if name != "clk":
            getattr(dut, name).value = 0
    dut.rst.value = 1
    await FallingEdge(dut.clk)
    await FallingEdge(dut.clk)
    dut.rst.value = 0

    async def one(name: str, job: JobT) -> OutcomeT:
        return await play(Ports(dut, name), job)

    tasks = {name: cocotb.start_soon(one(name, job)) for name, job in jobs.items()}
    return {name: await task for name, task in tasks.items()}
