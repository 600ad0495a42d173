"""Bench of the parser: plays cycles and records every output in each."""

from typing import Any, NamedTuple

import cocotb

from egret_sim.benches.ports import Ports, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = ["Cycle", "Seen"]


class Cycle(NamedTuple):
    """Inputs of a cycle."""

    start: int
    enable: int
    order: int
    valid: int
    bits: int


class Seen(NamedTuple):
    """Outputs of a cycle."""

    valid: int
    bits: int
    end: int
    nonzero: int
    bad: int
    busy: int


async def _play(ports: Ports, cycles: list[Cycle]) -> list[Seen]:
    seen = []
    for cycle in cycles:
        ports.drive(
            start=cycle.start,
            enable=cycle.enable,
            order=cycle.order,
            i_valid=cycle.valid,
            i_bits=cycle.bits,
        )
        await ports.settle()
        seen.append(Seen(*ports.read("o_valid", "o_bits", "o_end", "o_nonzero", "o_bad", "busy")))
        await ports.step()
    return seen


@cocotb.test()
async def play_cycles(dut: Any) -> None:
    """Play the job, cycles by member of the bank, and leave what was seen."""
    write_outcome(await play_bank(dut, read_job(), _play))
