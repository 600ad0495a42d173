"""Bench of parser, locator and extractor in a row, as a lane joins them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cocotb
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from egret_hw.extractor import Extractor
from egret_hw.locator import Locator
from egret_hw.parser import Parser
from egret_sim.benches.ports import Ports, pauses, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = ["Chain", "Event", "Issue", "Recording", "Run"]

_BLOCK_DEPTH = 2
_TIMEOUT = 5000


class Chain(wiring.Component):
    """Bits in, events out; the small buffer of blocks fills often.

    Parameters
    ----------
    width, cut, suffix_limit : int
        As of `Parser`.
    column_bits, row_bits : int
        As of `Locator`.

    Attributes
    ----------
    advance : In(1)
        Let parser and locator move when there is a place for a block.
    enable : Out(1)
        They move; the bits are taken.
    busy : Out(1)
        Something is inside.
    start, order, dense, columns, rows, i_valid, i_bits, bad, unfinished
        Of parser and locator.
    hold, issue, issue_last, o_valid, o_value, o_column, o_last, o_slot
        Of the extractor.
    """

    def __init__(
        self, width: int, cut: int, suffix_limit: int, column_bits: int, row_bits: int
    ) -> None:
        slots = width // cut
        value_bits = suffix_limit + 1
        self._parser = Parser(width, cut, suffix_limit)
        self._locator = Locator(width, slots, value_bits, column_bits, row_bits)
        self._extractor = Extractor(width, slots, value_bits, column_bits)
        super().__init__(
            {
                "start": In(1),
                "advance": In(1),
                "enable": Out(1),
                "order": In(3),
                "dense": In(1),
                "columns": In(column_bits + 1),
                "rows": In(row_bits * slots),
                "i_valid": In(1),
                "i_bits": In(width),
                "bad": Out(slots),
                "unfinished": Out(slots),
                "hold": In(1),
                "issue": Out(1),
                "issue_last": Out(1),
                "o_valid": Out(1),
                "o_value": Out(value_bits),
                "o_column": Out(column_bits),
                "o_last": Out(1),
                "o_slot": Out(max(1, (slots - 1).bit_length())),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.submodules.parser = parser = self._parser
        m.submodules.locator = locator = self._locator
        m.submodules.extractor = extractor = self._extractor
        m.submodules.blocks = blocks = SyncFIFO(width=locator.o.shape().size, depth=_BLOCK_DEPTH)
        m.d.comb += [
            self.enable.eq(self.advance & blocks.w_rdy),
            parser.start.eq(self.start),
            parser.enable.eq(self.enable),
            parser.order.eq(self.order),
            parser.i_valid.eq(self.i_valid),
            parser.i_bits.eq(self.i_bits),
            locator.start.eq(self.start),
            locator.enable.eq(self.enable),
            locator.dense.eq(self.dense),
            locator.columns.eq(self.columns),
            locator.rows.eq(self.rows),
            locator.i_valid.eq(parser.o_valid),
            locator.i_bits.eq(parser.o_bits),
            locator.i_end.eq(parser.o_end),
            locator.i_nonzero.eq(parser.o_nonzero),
            locator.i_bad.eq(parser.o_bad),
            self.bad.eq(locator.bad),
            self.unfinished.eq(locator.unfinished),
            blocks.w_data.eq(locator.o),
            blocks.w_en.eq(locator.o_valid & self.enable),
            extractor.i.payload.eq(blocks.r_data),
            extractor.i.valid.eq(blocks.r_rdy),
            blocks.r_en.eq(extractor.i.ready),
            extractor.hold.eq(self.hold),
            self.issue.eq(extractor.issue),
            self.issue_last.eq(extractor.issue_last),
            self.o_valid.eq(extractor.o_valid),
            self.o_value.eq(extractor.o.value),
            self.o_column.eq(extractor.o.column),
            self.o_last.eq(extractor.o.last),
            self.o_slot.eq(extractor.o.slot),
            self.busy.eq(parser.busy | locator.busy | blocks.r_rdy | extractor.busy),
        ]
        return m


@dataclass(frozen=True)
class Run:
    """From a start on: settings, the lane's bits, and the pauses.

    `blocks` holds None for a cycle without bits; `cut_off`, cycles after which a reset ends the
    run, 0 for never.
    """

    order: int
    dense: int
    columns: int
    rows: int
    blocks: list[int | None]
    pause: str
    hold: str
    seed: int
    cut_off: int = 0


class Issue(NamedTuple):
    """An event began."""

    cycle: int
    last: int
    hold: int


class Event(NamedTuple):
    """An event came out."""

    cycle: int
    value: int
    column: int
    last: int
    slot: int


@dataclass
class Recording:
    """What came out of a run; `stalls` counts cycles in which bits were offered and not taken."""

    events: list[Event] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    stalls: int = 0
    bad: int = 0
    unfinished: int = 0
    locked_up: bool = False


async def _play_run(ports: Ports, run: Run) -> Recording:
    advances, holds = pauses(run.pause, run.seed), pauses(run.hold, run.seed + 1)
    recording = Recording()
    ports.drive(
        start=1,
        order=run.order,
        dense=run.dense,
        columns=run.columns,
        rows=run.rows,
        hold=1,
    )
    await ports.step()
    ports.drive(start=0)
    taken = 0
    for cycle in range(run.cut_off or _TIMEOUT):
        block = run.blocks[taken] if taken < len(run.blocks) else None
        advance, hold = int(not next(advances)), int(next(holds))
        ports.drive(
            advance=advance,
            hold=hold,
            i_valid=int(block is not None),
            i_bits=run.seed & 1 if block is None else block,
        )
        await ports.settle()
        enable, issue, issue_last, valid, busy = ports.read(
            "enable", "issue", "issue_last", "o_valid", "busy"
        )
        if valid:
            outputs = ports.read("o_value", "o_column", "o_last", "o_slot")
            recording.events.append(Event(cycle, *outputs))
        if issue:
            recording.issues.append(Issue(cycle, issue_last, hold))
        if taken == len(run.blocks) and not busy:
            recording.bad, recording.unfinished = ports.read("bad", "unfinished")
            await ports.step()
            return recording
        if taken < len(run.blocks):
            taken += enable
            recording.stalls += int(advance and not enable)
        await ports.step()
    recording.locked_up = not run.cut_off
    return recording


async def _play(ports: Ports, runs: list[Run]) -> list[Recording]:
    recordings: list[Recording] = []
    for run in runs:
        if recordings and recordings[-1].locked_up:
            # What comes after a lock-up says nothing more, and takes long.
            recordings.append(Recording(locked_up=True))
            continue
        recordings.append(await _play_run(ports, run))
        if run.cut_off:
            await ports.reset()
    return recordings


@cocotb.test()
async def play_runs(dut: Any) -> None:
    """Play the job, runs by member of the bank, and leave the recordings."""
    write_outcome(await play_bank(dut, read_job(), _play))
