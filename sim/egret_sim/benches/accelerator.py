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
from cocotbext.axi import AxiStreamBus, AxiStreamFrame, AxiStreamSink, AxiStreamSource

from egret_sim.runner import read_job, write_outcome

__all__ = ["PAUSES", "Frame", "Job", "Recording", "Status", "Step"]

CLOCK_NS = 10
STATUS = ("error", "position", "matrices", "cycles", "words", "stalls", "multiplies")


@dataclass(frozen=True)
class Step:
    """One step of a script.

    Parameters
    ----------
    kind : str
        "weights": queue `data` as a packet of the weight stream. "activations": queue
        `data` as a packet of the activation stream. "expect": wait until `count` frames in
        all have come out. "clear": pulse the soft reset. "reset": pulse `aresetn`.
        "wait": let `count` cycles pass. "status": record the status ports.
    data : bytes
        Packet, for the first two.
    count : int
        Frames or cycles.
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
        Pattern of pauses on every port, a key of `PAUSES`.
    seed : int
        Seed of the random pauses.
    timeout : int
        Cycles after which an "expect" gives up: a lock-up.
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
        The status ports at each "status" step.
    matrix_cycles : list of int
        The cycle counter at each accepted matrix.
    cycles : int
        Clock cycles simulated.
    locked_up : bool
        An "expect" timed out; the script was left there.
    """

    frames: list[Frame] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    matrix_cycles: list[int] = field(default_factory=list)
    cycles: int = 0
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


PAUSES = {
    "none": None,
    "random": _random_pauses,
    "bursts": _burst_pauses,
    "alternating": _alternating_pauses,
}
"""Patterns of idle cycles (sources) and back-pressure (sink)."""


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
        Clock(dut.aclk, CLOCK_NS, unit="ns").start()
        cocotb.start_soon(self._watch_matrices())
        common = {"clock": dut.aclk, "reset": dut.aresetn, "reset_active_level": False}
        self.weights = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_weight"), **common)
        self.activations = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_act"), **common)
        self.results = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis_out"), **common)
        for number, port in enumerate((self.weights, self.activations, self.results)):
            port.log.setLevel("WARNING")
            pattern = PAUSES[job.pause]
            if pattern is not None:
                port.set_pause_generator(pattern(random.Random(job.seed * 16 + number)))

    async def _watch_matrices(self) -> None:
        while True:
            await self.dut.status_matrices.value_change
            # A reset or a clear sets it to 0.
            if int(self.dut.status_matrices.value) != 0:
                self.recording.matrix_cycles.append(int(self.dut.status_cycles.value))

    async def reset(self) -> None:
        """Hold `aresetn` low for a few cycles."""
        self.dut.clear.value = 0
        self.dut.aresetn.value = 0
        await ClockCycles(self.dut.aclk, 4)
        self.dut.aresetn.value = 1
        await ClockCycles(self.dut.aclk, 2)

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
        started = cocotb.utils.get_sim_time("ns")
        for step in self.job.steps:
            match step.kind:
                case "weights":
                    self.weights.send_nowait(AxiStreamFrame(step.data))
                case "activations":
                    self.activations.send_nowait(AxiStreamFrame(step.data))
                case "expect":
                    if not await self.expect(step.count):
                        self.recording.locked_up = True
                        break
                case "clear":
                    self.dut.clear.value = 1
                    await RisingEdge(self.dut.aclk)
                    self.dut.clear.value = 0
                    await RisingEdge(self.dut.aclk)
                case "reset":
                    await self.reset()
                case "wait":
                    await ClockCycles(self.dut.aclk, step.count)
                case "status":
                    await RisingEdge(self.dut.aclk)
                    self.recording.statuses.append(
                        {name: int(getattr(self.dut, f"status_{name}").value) for name in STATUS}
                    )
                case unknown:
                    raise ValueError(f"unknown step {unknown!r}")
        elapsed = cocotb.utils.get_sim_time("ns") - started
        self.recording.cycles = round(elapsed / CLOCK_NS)
        return self.recording


@cocotb.test()
async def play_script(dut: Any) -> None:
    """Play the job's script and leave the recording."""
    write_outcome(await AcceleratorBench(dut, read_job()).play())
