"""Bench that does on the top's ports what a program asks for through a socket."""

import random
from multiprocessing.connection import Client
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

from egret_sim.benches.accelerator import PAUSES
from egret_sim.runner import CLOCK_NS, read_job, write_outcome

_RESET_CYCLES = 4
_POLL_CYCLES = 16
_QUIET_CYCLES = 64
"""So long without a result, no more are expected."""


class _Host:
    """The program's hands: every method answers (in time?, what)."""

    def __init__(self, dut: Any, job: dict[str, Any]) -> None:
        self._dut = dut
        self._timeout = job["timeout"]
        common = {"clock": dut.aclk, "reset": dut.aresetn, "reset_active_level": False}
        self._registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), **common)
        self._weights = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_weight"), **common)
        self._activations = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_act"), **common)
        self._results = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis_out"), **common)
        writes, reads = self._registers.write_if, self._registers.read_if
        ports = [self._weights, self._activations, self._results, writes, reads]
        for port in ports:
            port.log.setLevel("WARNING")
        channels = [writes.aw_channel, writes.w_channel, writes.b_channel]
        channels += [reads.ar_channel, reads.r_channel]
        generator = PAUSES[job["pause"]]
        if generator is not None:
            for number, channel in enumerate(ports[:3] + channels):
                rng = random.Random(job["seed"] * 16 + number)
                channel.set_pause_generator(generator(rng))

    async def read_register(self, offset: int) -> tuple[bool, Any]:
        answer = await self._registers.read(offset, 4)
        return True, (int.from_bytes(answer.data, "little"), answer.resp.name)

    async def write_register(self, offset: int, value: int) -> tuple[bool, Any]:
        answer = await self._registers.write(offset, value.to_bytes(4, "little"))
        return True, answer.resp.name

    async def send_weights(self, packet: bytes) -> tuple[bool, Any]:
        self._weights.send_nowait(AxiStreamFrame(packet))
        return True, None

    async def send_activations(self, packet: bytes) -> tuple[bool, Any]:
        self._activations.send_nowait(AxiStreamFrame(packet))
        return True, None

    async def receive(self) -> tuple[bool, Any]:
        waited = 0
        while self._results.empty():
            if waited >= self._timeout:
                return False, f"no result in {waited} cycles"
            await ClockCycles(self._dut.aclk, _POLL_CYCLES)
            waited += _POLL_CYCLES
        return True, bytes(self._results.recv_nowait().tdata)

    async def drain(self) -> tuple[bool, Any]:
        sources = self._weights, self._activations
        waited = quiet = left = 0
        while quiet < _QUIET_CYCLES:
            idle = all(port.idle() for port in (*sources, self._results))
            quiet = quiet + _POLL_CYCLES if idle and self._results.empty() else 0
            self._results.clear()
            waiting = sum(source.queue_occupancy_frames for source in sources)
            waited = waited + _POLL_CYCLES if waiting == left else 0
            left = waiting
            if waited >= self._timeout:
                return False, f"a packet was not taken in {waited} cycles"
            await ClockCycles(self._dut.aclk, _POLL_CYCLES)
        return True, None


@cocotb.test()
async def serve(dut: Any) -> None:
    """Serve until the program says that it is done, or is gone."""
    job = read_job()
    # A rising edge at time 0 would come before the first values of what the gates compute.
    Clock(dut.aclk, CLOCK_NS, unit="ns").start(start_high=False)
    host = _Host(dut, job)
    dut.aresetn.value = 0
    await ClockCycles(dut.aclk, _RESET_CYCLES)
    dut.aresetn.value = 1
    await ClockCycles(dut.aclk, 1)
    with Client(job["address"]) as connection:
        while True:
            try:
                operation, arguments = connection.recv()
            except EOFError:
                break
            if operation == "close":
                break
            connection.send(await getattr(host, operation)(*arguments))
    write_outcome(None)
