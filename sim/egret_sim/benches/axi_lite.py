"""Bench of the AXI4-Lite slave: offers transfers on all channels and records every cycle."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import cocotb
from cocotb.triggers import FallingEdge, ReadOnly

from egret_sim.benches.ports import Ports, pauses, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = ["CHANNELS", "Cycle", "Run", "Write"]

CHANNELS = ("aw", "w", "b", "ar", "r")
"""A slave is offered the transfers of `aw`, `w` and `ar`, and offers those of the others."""
_OFFERED = {"aw": ("awaddr",), "w": ("wdata", "wstrb"), "ar": ("araddr",)}
_ANSWERED = {"b": ("bresp",), "r": ("rdata", "rresp")}


class Write(NamedTuple):
    """A write: byte address, word, strobes."""

    address: int
    word: int
    strobes: int


@dataclass(frozen=True)
class Run:
    """Transfers to offer, the live fields meanwhile, and each channel's pattern of pauses.

    `cycles` are played.
    """

    writes: list[Write]
    reads: list[int]
    live: int
    patterns: dict[str, str]
    seed: int
    cycles: int


class Cycle(NamedTuple):
    """A cycle as the rising edge sees it: valid, ready and payload by channel, and the outputs."""

    valid: dict[str, int]
    ready: dict[str, int]
    payload: dict[str, tuple[int, ...]]
    held: int
    pulses: int


async def _play_run(ports: Ports, run: Run) -> list[Cycle]:
    waiting: dict[str, list[tuple[int, ...]]] = {
        "aw": [(write.address,) for write in run.writes],
        "w": [(write.word, write.strobes) for write in run.writes],
        "ar": [(address,) for address in run.reads],
    }
    idle = {
        channel: pauses(run.patterns[channel], run.seed * len(CHANNELS) + place)
        for place, channel in enumerate(CHANNELS)
    }
    offered = dict.fromkeys(waiting, False)
    ports.drive(live=run.live)
    seen = []
    for _ in range(run.cycles):
        for channel, transfers in waiting.items():
            if not offered[channel] and transfers and not next(idle[channel]):
                offered[channel] = True
                ports.drive(**dict(zip(_OFFERED[channel], transfers[0], strict=True)))
            ports.drive(**{f"{channel}valid": int(offered[channel])})
        for channel in _ANSWERED:
            ports.drive(**{f"{channel}ready": int(not next(idle[channel]))})
        await ports.settle()
        valid = dict(zip(CHANNELS, ports.read(*(f"{name}valid" for name in CHANNELS)), strict=True))
        ready = dict(zip(CHANNELS, ports.read(*(f"{name}ready" for name in CHANNELS)), strict=True))
        payload = {name: ports.read(*_ANSWERED[name]) for name in _ANSWERED if valid[name]}
        seen.append(Cycle(valid, ready, payload, *ports.read("held", "pulses")))
        for channel, transfers in waiting.items():
            if valid[channel] and ready[channel]:
                transfers.pop(0)
                offered[channel] = False
        await ports.step()
    return seen


async def _play(ports: Ports, runs: list[Run]) -> list[list[Cycle]]:
    ports.drive(awvalid=0, wvalid=0, arvalid=0, bready=0, rready=0, awprot=0, arprot=0)
    return [await _play_run(ports, run) for run in runs]


async def _reset_amid_transfers(dut: Any, names: list[str]) -> dict[str, list[int]]:
    """Leave responses untaken, reset all, and return what is ready or valid in those cycles."""
    members = [Ports(dut, name) for name in names]
    for ports in members:
        ports.drive(awvalid=1, awaddr=0, wvalid=1, arvalid=1, araddr=0, bready=0, rready=0)
    for _ in range(6):
        await FallingEdge(dut.clk)
    seen: dict[str, list[int]] = {name: [] for name in names}
    for reset in (0, 1, 1, 0):
        dut.rst.value = reset
        await ReadOnly()
        for name, ports in zip(names, members, strict=True):
            outputs = ports.read("awready", "wready", "bvalid", "arready", "rvalid")
            seen[name].append(int("".join(map(str, outputs)), 2))
        await FallingEdge(dut.clk)
    return seen


@cocotb.test()
async def play_transfers(dut: Any) -> None:
    """Play the job, runs by member of the bank, and leave what was seen."""
    job = read_job()
    outcome = await play_bank(dut, job, _play)
    write_outcome((outcome, await _reset_amid_transfers(dut, list(job))))
