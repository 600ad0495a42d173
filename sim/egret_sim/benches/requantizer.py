"""Bench of the requantiser: offers sums and records every cycle."""

from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import cocotb

from egret.params import BIAS_BITS, RESULT_BITS
from egret_sim.benches.ports import Ports, pauses, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = ["Run", "Seen"]


@dataclass(frozen=True)
class Run:
    """Settings, (sum, bias) pairs to offer, pauses, and cycles to play after a reset.

    `pace`: the enabled cycles are so far apart at least; above 1 the component has `ready`.
    """

    has_bias: int
    relu: int
    multiplier: int
    shift: int
    sums: list[tuple[int, int]]
    source: str
    enable: str
    seed: int
    cycles: int
    pace: int = 1


class Seen(NamedTuple):
    """A cycle as the rising edge sees it; the outputs are unsigned."""

    enable: int
    i_valid: int
    o_valid: int
    result: int
    activation: int
    busy: int
    ready: int


async def _play_run(ports: Ports, run: Run) -> list[Seen]:
    source, holds = pauses(run.source, run.seed), pauses(run.enable, run.seed + 1)
    rng = Random(run.seed)
    ports.drive(
        enable=0,
        i_valid=0,
        has_bias=run.has_bias,
        relu=run.relu,
        multiplier=run.multiplier,
        shift=run.shift,
        **({"restart": 0} if run.pace > 1 else {}),
    )
    await ports.reset()
    waiting = list(reversed(run.sums))
    seen = []
    idle = run.pace
    for _ in range(run.cycles):
        enable = int(idle >= run.pace and not next(holds))
        idle = 1 if enable else idle + 1
        valid = int(bool(waiting) and not next(source))
        # What is not valid may be anything, and so may what comes while nothing advances.
        i_sum, i_bias = waiting[-1] if valid and enable else _anything(rng)
        ports.drive(
            enable=enable,
            i_valid=valid,
            i_sum=i_sum % 2**RESULT_BITS,
            i_bias=i_bias % 2**BIAS_BITS,
        )
        await ports.settle()
        outputs = ports.read("o_valid", "o_result", "o_activation", "busy")
        ready = ports.read("ready") if run.pace > 1 else (1,)
        seen.append(Seen(enable, valid, *outputs, *ready))
        if valid and enable:
            waiting.pop()
        await ports.step()
    return seen


def _anything(rng: Random) -> tuple[int, int]:
    return rng.getrandbits(RESULT_BITS), rng.getrandbits(BIAS_BITS)


async def _play(ports: Ports, runs: list[Run]) -> list[list[Seen]]:
    return [await _play_run(ports, run) for run in runs]


@cocotb.test()
async def play_sums(dut: Any) -> None:
    """Play the job, runs by member of the bank, and leave what was seen."""
    write_outcome(await play_bank(dut, read_job(), _play))
