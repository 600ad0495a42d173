"""Bench of stream components: one stream in, one out, pauses on both."""

from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import cocotb

from egret_sim.benches.ports import Ports, pauses, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = ["Job", "Run", "Seen"]


@dataclass(frozen=True)
class Run:
    """From a reset on: payloads to send, pauses of the source and the sink, cycles to play."""

    payloads: list[int]
    source: str
    sink: str
    seed: int
    cycles: int


@dataclass(frozen=True)
class Job:
    """Runs of one component; `bits` of its payload in; outputs to record beside the streams."""

    runs: list[Run]
    bits: int
    outputs: tuple[str, ...] = ()


class Seen(NamedTuple):
    """A cycle as the rising edge sees it."""

    i_valid: int
    i_ready: int
    o_valid: int
    o_ready: int
    o_payload: int
    outputs: tuple[int, ...]


async def _play_run(ports: Ports, job: Job, run: Run) -> list[Seen]:
    source, sink = pauses(run.source, run.seed), pauses(run.sink, run.seed + 1)
    rng = Random(run.seed)
    waiting = list(reversed(run.payloads))
    offered = False
    seen = []
    ports.drive(i__valid=0, o__ready=0)
    await ports.reset()
    for _ in range(run.cycles):
        # What was offered stays until it is taken; without an offer the payload is anything.
        offered = offered or (bool(waiting) and not next(source))
        ready = int(not next(sink))
        payload = waiting[-1] if offered else rng.getrandbits(job.bits)
        ports.drive(i__valid=int(offered), i__payload=payload, o__ready=ready)
        await ports.settle()
        taken, valid = ports.read("i__ready", "o__valid")
        (result,) = ports.read("o__payload", valid="o__valid")
        seen.append(Seen(int(offered), taken, valid, ready, result, ports.read(*job.outputs)))
        if offered and taken:
            waiting.pop()
            offered = False
        await ports.step()
    return seen


async def _play(ports: Ports, job: Job) -> list[list[Seen]]:
    return [await _play_run(ports, job, run) for run in job.runs]


@cocotb.test()
async def play_streams(dut: Any) -> None:
    """Play the job, runs by member of the bank, and leave what was seen."""
    write_outcome(await play_bank(dut, read_job(), _play))
