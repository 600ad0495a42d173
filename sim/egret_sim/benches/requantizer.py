"""Bench of the requantiser: loads its tables, offers rows and records every cycle."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cocotb

from egret_sim.benches.ports import Ports, pauses, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = ["Run", "Seen"]


@dataclass(frozen=True)
class Run:
    """Settings, the tables' words when they change, rows to offer, and the pauses.

    `rows` are payloads of the row stream; `cycles`, cycles to play, of which the first follows
    a reset.
    """

    has_bias: int
    relu: int
    multiplier: int
    shift: int
    rows: list[int]
    source: str
    enable: str
    seed: int
    cycles: int
    table_words: list[int] = field(default_factory=list)
    bias_words: list[int] = field(default_factory=list)


class Seen(NamedTuple):
    """A cycle as the rising edge sees it; `o` is 0 where nothing is taken."""

    enable: int
    i_valid: int
    i_ready: int
    o_valid: int
    o: int
    busy: int


async def _load(ports: Ports, strobe: str, words: list[int]) -> None:
    for address, word in enumerate(words):
        ports.drive(**{strobe: 1}, word_address=address, word=word)
        await ports.step()
    ports.drive(**{strobe: 0})


async def _play_run(ports: Ports, run: Run) -> list[Seen]:
    source, holds = pauses(run.source, run.seed), pauses(run.enable, run.seed + 1)
    ports.drive(
        enable=0,
        i__valid=0,
        rows_write=0,
        bias_write=0,
        has_bias=run.has_bias,
        relu=run.relu,
        multiplier=run.multiplier,
        shift=run.shift,
    )
    await _load(ports, "rows_write", run.table_words)
    await _load(ports, "bias_write", run.bias_words)
    await ports.reset()
    # The settings pass a register.
    await ports.step()
    waiting = list(reversed(run.rows))
    offered = False
    seen = []
    for _ in range(run.cycles):
        offered = offered or (bool(waiting) and not next(source))
        enable = int(not next(holds))
        if offered:
            ports.drive(i__payload=waiting[-1])
        ports.drive(i__valid=int(offered), enable=enable)
        await ports.settle()
        ready, valid, busy = ports.read("i__ready", "o_valid", "busy")
        result = ports.read("o")[0] if valid and enable else 0
        seen.append(Seen(enable, int(offered), ready, valid, result, busy))
        if offered and ready:
            waiting.pop()
            offered = False
        await ports.step()
    return seen


async def _play(ports: Ports, runs: list[Run]) -> list[list[Seen]]:
    return [await _play_run(ports, run) for run in runs]


@cocotb.test()
async def play_rows(dut: Any) -> None:
    """Play the job, runs by member of the bank, and leave what was seen."""
    write_outcome(await play_bank(dut, read_job(), _play))
