"""Drives and reads a bank's members, clock cycle by clock cycle."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import repeat
from random import Random
from typing import Any, TypeVar

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from egret_sim.benches.accelerator import CLOCK_NS, PAUSES

__all__ = ["Ports", "pauses", "play_bank"]

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

    def drive(self, **values: int) -> None:
        """Set inputs."""
        for port, value in values.items():
            if self._driven.get(port) != value:
                getattr(self._dut, f"{self._name}__{port}").value = value
                self._driven[port] = value

    def read(self, *ports: str) -> tuple[int, ...]:
        """Return the unsigned values of ports."""
        return tuple(int(getattr(self._dut, f"{self._name}__{port}").value) for port in ports)

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
    Clock(dut.clk, CLOCK_NS, unit="ns").start()
    for name in jobs:
        getattr(dut, f"{name}_reset").value = 0
    dut.rst.value = 1
    await FallingEdge(dut.clk)
    await FallingEdge(dut.clk)
    dut.rst.value = 0

    async def one(name: str, job: JobT) -> OutcomeT:
        return await play(Ports(dut, name), job)

    tasks = {name: cocotb.start_soon(one(name, job)) for name, job in jobs.items()}
    return {name: await task for name, task in tasks.items()}
