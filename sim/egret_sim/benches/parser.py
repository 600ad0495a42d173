"""Bench of the parsers: plays cycles and records every output in each."""

from typing import Any, NamedTuple

import cocotb

from egret_sim.benches.ports import Ports, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = ["Cycle", "Seen"]


class Cycle(NamedTuple):
    """Inputs of a cycle; structures as numbers."""

    enable: int
    codes: int
    code_write: int
    start: int
    drain: int
    i_valid: int
    i_first: int
    i_last: int
    i_parity: int
    i_bank: int
    i_bits: int


class Seen(NamedTuple):
    """Outputs of a cycle."""

    turn: int
    busy: int
    o_valid: int
    o_slot: int
    o_first: int
    o_last: int
    o_parity: int
    o_bits: int
    o_end: int
    o_event: int


_ALWAYS = 3
"""So many outputs count whether `o_valid` or not."""


async def _play(ports: Ports, cycles: list[Cycle]) -> list[Seen]:
    seen = []
    for cycle in cycles:
        ports.drive(**cycle._asdict())
        await ports.settle()
        always, offered = Seen._fields[:_ALWAYS], Seen._fields[_ALWAYS:]
        seen.append(Seen(*ports.read(*always), *ports.read(*offered, valid="o_valid")))
        await ports.step()
    return seen


@cocotb.test()
async def play_cycles(dut: Any) -> None:
    """Play the job, cycles by member of the bank, and leave what was seen."""
    write_outcome(await play_bank(dut, read_job(), _play))
