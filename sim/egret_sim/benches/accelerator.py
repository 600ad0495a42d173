"""Bench of the whole accelerator: plays a script on its ports and records what comes out.

The script is a list of steps; the bench itself judges nothing, so that the same bench serves
good streams, faults and measurements. The caller compares with the golden model.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

from egret_hw.registers import register_named
from egret_sim.runner import CLOCK_NS, read_job, write_outcome

__all__ = ["PAUSES", "TRICKLE", "Frame", "Job", "Recording", "Status", "Step"]

STATUS = (
    "error",
    "position",
    "matrices",
    "cycles",
    "words",
    "stalls",
    "starved",
    "multiplies",
    "weights",
    "payload_words",
)
"""Registers that a "status" step reads."""


@dataclass(frozen=True)
class Step:
    """One step of a script.

    Parameters
    ----------
    kind : str
        "weights", "activations": queue `data` as a packet of that stream. "offer": queue it as
        activations, unless others still wait. "flush": drop the packets that have not begun.
        "expect": wait until `count` frames in all have come out. "clear": order a soft reset.
        "reset": pulse `aresetn`. "wait": let `count` cycles pass. "sent": wait until all packets of
        the weight stream have been taken. "status": read the registers of `STATUS`. "read",
        "write": access the register at `count`, all 32 bits.
    data : bytes
        Packet, for the first three; what "write" writes, lowest byte first.
    count : int
        Frames or cycles; address of a register.
    """

    kind: str
    data: bytes = b""
    count: int = 0


@dataclass(frozen=True)
class Job:
    """What to play.

    Parameters
    ----------
    steps : list of Step
        The script.
    pause : str
        Pattern of pauses on every port, a key of `PAUSES` or `TRICKLE`.
    seed : int
        Seed of the random pauses.
    timeout : int
        Cycles that an "expect" waits for a frame, and a "sent" for the next packet to begin, before
        they give up: a lock-up.
    """

    steps: list[Step]
    pause: str = "none"
    seed: int = 1
    timeout: int = 200_000


@dataclass(frozen=True)
class Frame:
    """A packet of the output stream: `values` int32, and whether TUSER marked it an error."""

    values: np.ndarray
    error: bool


Status = dict[str, int]


@dataclass
class Recording:
    """What came out, in order.

    Parameters
    ----------
    frames : list of Frame
        Packets of the output stream.
    statuses : list of dict
        What each "status" step found: the registers of `STATUS`, in lower case; `irq`, the
        port; and `clock`, the cycle in which reading ended.
    matrix_cycles : list of int
        Cycle of each strobe of `matrix_done`.
    cycles : int
        Clock cycles simulated.
    reads : list of int
        What each "read" found and how it was answered (RRESP), how each "write" was (BRESP).
    locked_up : bool
        An "expect" or "sent" timed out; the script was left there, after a last status.
    """

    frames: list[Frame] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    matrix_cycles: list[int] = field(default_factory=list)
    cycles: int = 0
    reads: list[int] = field(default_factory=list)
    locked_up: bool = False


def _random_pauses(rng: random.Random) -> Iterator[bool]:
    while True:
        yield rng.random() < 0.5


def _burst_pauses(rng: random.Random) -> Iterator[bool]:
    while True:
        for paused in (False, True):
            for _ in range(rng.randint(1, 40)):
                yield paused


def _alternating_pauses(rng: random.Random) -> Iterator[bool]:
    while True:
        yield True
        yield False


def _trickle(_: random.Random) -> Iterator[bool]:
    while True:
        for cycle in range(1, 1 + _TRICKLE_CYCLES):
            yield cycle < _TRICKLE_CYCLES


PAUSES = {
    "none": None,
    "random": _random_pauses,
    "bursts": _burst_pauses,
    "alternating": _alternating_pauses,
}
"""Patterns of idle cycles (sources) and back-pressure (sink)."""
TRICKLE = "trickle"
"""One more: a transfer in 64 cycles at most, so that what came before is worked off."""
_TRICKLE_CYCLES = 64
_GENERATORS = {**PAUSES, TRICKLE: _trickle}


class AcceleratorBench:
    """Drivers of the accelerator's ports.

    Parameters
    ----------
    dut : object
        The top module.
    job : Job
        What to play.
    """

    def __init__(self, dut: Any, job: Job) -> None:
        self.dut = dut
        self.job = job
        self.recording = Recording()
        # A rising edge at time 0 would come before the first values of what the gates compute.
        Clock(dut.aclk, CLOCK_NS, unit="ns").start(start_high=False)
        cocotb.start_soon(self._watch_matrices())
        common = {"clock": dut.aclk, "reset": dut.aresetn, "reset_active_level": False}
        self.weights = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_weight"), **common)
        self.activations = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_act"), **common)
        self.results = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis_out"), **common)
        self.registers = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), **common)
        writing, reading = self.registers.write_if, self.registers.read_if
        for number, port in enumerate(
            (
                self.weights,
                self.activations,
                self.results,
                writing.aw_channel,
                writing.w_channel,
                writing.b_channel,
                reading.ar_channel,
                reading.r_channel,
            )
        ):
            port.log.setLevel("WARNING")
            pattern = _GENERATORS[job.pause]
            if pattern is not None:
                port.set_pause_generator(pattern(random.Random(job.seed * 16 + number)))
        for interface in (writing, reading):
            interface.log.setLevel("WARNING")

    @property
    def clock(self) -> int:
        """Cycles since the start."""
        return int(cocotb.utils.get_sim_time("ns") // CLOCK_NS)

    async def _watch_matrices(self) -> None:
        while True:
            await RisingEdge(self.dut.matrix_done)
            self.recording.matrix_cycles.append(self.clock)

    async def reset(self) -> None:
        """Hold `aresetn` low for a few cycles."""
        self.dut.aresetn.value = 0
        await ClockCycles(self.dut.aclk, 4)
        self.dut.aresetn.value = 1
        await ClockCycles(self.dut.aclk, 2)

    async def read_status(self) -> None:
        """Read the registers."""
        status = {
            name: await self.registers.read_dword(register_named(name.upper()).offset)
            for name in STATUS
        }
        status["irq"] = int(self.dut.irq.value)
        status["clock"] = self.clock
        self.recording.statuses.append(status)

    async def sent(self) -> bool:
        """Wait until every word of the weight stream has been taken; return whether in time."""
        left, waited = self.weights.count(), 0
        while not self.weights.idle():
            if waited >= self.job.timeout:
                return False
            await ClockCycles(self.dut.aclk, 16)
            waited += 16
            if self.weights.count() < left:
                left, waited = self.weights.count(), 0
        return True

    async def expect(self, count: int) -> bool:
        """Wait for `count` frames in all; return whether they came in time."""
        waited = 0
        while len(self.recording.frames) < count:
            if self.results.empty():
                if waited >= self.job.timeout:
                    return False
                await ClockCycles(self.dut.aclk, 16)
                waited += 16
                continue
            waited = 0
            frame = self.results.recv_nowait()
            users = frame.tuser if isinstance(frame.tuser, list) else [frame.tuser]
            self.recording.frames.append(
                Frame(np.frombuffer(bytes(frame.tdata), "<i4"), any(users))
            )
        return True

    async def play(self) -> Recording:
        """Play the script."""
        await self.reset()
        for step in self.job.steps:
            match step.kind:
                case "weights":
                    self.weights.send_nowait(AxiStreamFrame(step.data))
                case "activations":
                    self.activations.send_nowait(AxiStreamFrame(step.data))
                case "offer":
                    if self.activations.idle():
                        self.activations.send_nowait(AxiStreamFrame(step.data))
                case "flush":
                    self.weights.clear()
                    self.activations.clear()
                case "expect":
                    if not await self.expect(step.count):
                        self.recording.locked_up = True
                        break
                case "sent":
                    if not await self.sent():
                        self.recording.locked_up = True
                        break
                case "clear":
                    control = register_named("CONTROL")
                    order = next(field for field in control.fields if field.name == "reset")
                    await self.registers.write_dword(control.offset, order.mask)
                case "reset":
                    await self.reset()
                case "wait":
                    await ClockCycles(self.dut.aclk, step.count)
                case "status":
                    await self.read_status()
                case "read":
                    found = await self.registers.read(step.count, 4)
                    self.recording.reads += [int.from_bytes(found.data, "little"), int(found.resp)]
                case "write":
                    answer = await self.registers.write(step.count, step.data)
                    self.recording.reads.append(int(answer.resp))
                case unknown:
                    raise ValueError(f"unknown step {unknown!r}")
        if self.recording.locked_up:
            await self.read_status()
        self.recording.cycles = self.clock
        return self.recording


@cocotb.test()
async def play_script(dut: Any) -> None:
    """Play the job's script and leave the recording."""
    write_outcome(await AcceleratorBench(dut, read_job()).play())
