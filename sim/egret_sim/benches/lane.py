"""Bench of a lane: plays matrices as the accelerator's centre does, with pauses on every port."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import cocotb
from amaranth.hdl import Cat, Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from egret.params import AcceleratorParams
from egret_hw.lane import Lane, LaneSettings
from egret_hw.layouts import (
    code_layout,
    code_write_layout,
    lane_result_layout,
    map_write_layout,
    matrix_layout,
    start_write_layout,
    vector_write_layout,
)
from egret_hw.microcode import MicrocodeWriter
from egret_sim.benches.ports import Ports, pauses, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = ["Code", "LaneJob", "LaneRig", "MatrixRun", "Session", "Sums"]

_SETTLE = 3
"""Cycles between a matrix's last sum and the look at its errors."""
_TIMEOUT = 20_000


class LaneRig(wiring.Component):
    """A lane, and what writes its microcode where it has some.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    beat, beat_valid, beat_ready, sums, sums_valid, sums_ready
        The lane's streams.
    coded : In(1)
        A code's entries have been written.
    busy : Out(1)
        Its microcode is being written.
    codes, matrices, code_write, map_write, vector_write, start_write, go, clear_errors, multiply,
    bad_prefix, bad_index
        Of the lane and its `LaneSettings`, arrays by their elements.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        self._lane = Lane(params)
        super().__init__(
            {
                "beat": In(self._lane.i.payload.shape().size),
                "beat_valid": In(1),
                "beat_ready": Out(1),
                "sums": Out(lane_result_layout(params).size),
                "sums_valid": Out(1),
                "sums_ready": In(1),
                "coded": In(1),
                "busy": Out(1),
                "code_0": In(code_layout().size),
                "code_1": In(code_layout().size),
                "matrix_0": In(matrix_layout(params).size),
                "matrix_1": In(matrix_layout(params).size),
                "code_write": In(code_write_layout().size),
                "map_write": In(map_write_layout(params).size),
                "vector_write": In(vector_write_layout(params).size),
                "start_write": In(start_write_layout(params).size),
                "selected": In(1),
                "go": In(2),
                "clear_errors": In(2),
                "multiply": Out(1),
                "bad_prefix": Out(2 * params.slots),
                "bad_index": Out(2 * params.slots),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.submodules.lane = lane = self._lane
        m.submodules.settings = settings = LaneSettings(self._params)
        m.d.comb += [
            lane.i.payload.eq(self.beat),
            lane.i.valid.eq(self.beat_valid),
            self.beat_ready.eq(lane.i.ready),
            self.sums.eq(lane.o.payload),
            self.sums_valid.eq(lane.o.valid),
            lane.o.ready.eq(self.sums_ready),
            lane.codes[0].eq(self.code_0),
            lane.codes[1].eq(self.code_1),
            settings.codes.eq(lane.codes),
            settings.matrices[0].eq(self.matrix_0),
            settings.matrices[1].eq(self.matrix_1),
            settings.start_write.eq(self.start_write),
            lane.banks.eq(Cat(matrix.code_bank for matrix in settings.matrices)),
            lane.settings.eq(settings.o),
            lane.code_write.eq(self.code_write),
            lane.map_write.eq(self.map_write),
            lane.vector_write.eq(self.vector_write),
            lane.start_write.eq(self.start_write),
            lane.selected.eq(self.selected),
            lane.go.eq(self.go),
            lane.clear_errors.eq(self.clear_errors),
            self.multiply.eq(lane.multiply),
            self.bad_prefix.eq(lane.bad_prefix),
            self.bad_index.eq(lane.bad_index),
        ]
        if self._params.parser == "microcode":
            m.submodules.writer = writer = MicrocodeWriter(self._params)
            m.d.comb += [
                writer.start.eq(self.coded),
                writer.settings.eq(self.code_0),
                writer.code_write.eq(self.code_write),
                lane.microcode_write.eq(writer.microcode_write),
                self.busy.eq(writer.busy),
            ]
        return m


@dataclass(frozen=True)
class Code:
    """A code: its settings, and the entries (suffix bits, offset) of its tables."""

    settings: dict[str, int]
    levels: list[tuple[int, int]]
    runs: list[tuple[int, int]]


@dataclass(frozen=True)
class MatrixRun:
    """A matrix as the lane sees it.

    Parameters
    ----------
    bank : int
        Of its code.
    settings : dict of str to int
        Fields of `matrix_layout` other than the bank and the memory.
    positions : list of int
        Of each slot.
    beats : list of int
        In slot order, the same number for every slot.
    activations : list of list of int
        For every column those of the batch.
    """

    bank: int
    settings: dict[str, int]
    positions: list[int]
    beats: list[int]
    activations: list[list[int]]


@dataclass(frozen=True)
class Session:
    """Matrices that run one behind the other, and the tables that they share.

    Parameters
    ----------
    codes : list of Code
        One for each bank.
    values : list of int
        The value map.
    matrices : list of MatrixRun
    beats, sums, others : str
        Patterns of pauses: of the beats, of the taking of sums, of everything else.
    seed : int
    """

    codes: list[Code]
    values: list[int]
    matrices: list[MatrixRun]
    beats: str
    sums: str
    others: str
    seed: int


@dataclass(frozen=True)
class LaneJob:
    """Sessions for a lane of these parameters."""

    params: AcceleratorParams
    sessions: list[Session]


@dataclass
class Sums:
    """What came of a matrix.

    Parameters
    ----------
    rows : list of list of list of int
        Of each slot, its sums in order, each one for every vector of the batch.
    lasts : list of list of int
        Their `last` marks.
    bad_prefix, bad_index : int
        A bit for each slot, when all sums had come.
    began, ended : int
        Cycles in which the first beat was taken, and the last sum.
    beat_stalls : int
        Cycles in which one of its beats was offered and not taken.
    """

    rows: list[list[list[int]]]
    lasts: list[list[int]]
    bad_prefix: int = 0
    bad_index: int = 0
    began: int = -1
    ended: int = -1
    beat_stalls: int = 0


@dataclass
class Outcome:
    """Of a session: its matrices' sums, weights multiplied, and whether it ended."""

    sums: list[Sums] = field(default_factory=list)
    multiplies: int = 0
    locked_up: bool = False


def _pack(layout: data.StructLayout, **values: int | list[int]) -> int:
    return int(layout.const(values).as_value().value)


class _Centre:
    """Plays a session; one call a cycle."""

    def __init__(self, ports: Ports, params: AcceleratorParams, session: Session) -> None:
        self.ports = ports
        self.params = params
        self.session = session
        count = len(session.matrices)
        slots = params.slots
        self.outcome = Outcome(
            [Sums([[] for _ in range(slots)], [[] for _ in range(slots)]) for _ in range(count)]
        )
        self.done = [False] * count
        self.rng = Random(session.seed)
        self.allocated = 0
        self.go = 0
        self.sent = 0

    async def write_tables(self) -> None:
        """Load codes and map, with nothing under way."""
        ports, session = self.ports, self.session
        layout = code_write_layout()
        for bank, code in enumerate(session.codes):
            settings = dict(code.settings)
            settings["level_order"], settings["level_offset"] = code.levels[0]
            settings["run_order"], settings["run_offset"] = code.runs[0]
            ports.drive(**{f"code_{bank}": _pack(code_layout(), **settings)})
            for run, entries in enumerate((code.levels, code.runs)):
                for number, (suffix_bits, offset) in enumerate(entries):
                    ports.drive(
                        code_write=_pack(
                            layout,
                            enable=1,
                            bank=bank,
                            run=run,
                            number=number,
                            suffix_bits=suffix_bits,
                            offset=offset,
                        )
                    )
                    await ports.step()
        ports.drive(code_write=0, coded=1)
        await ports.step()
        ports.drive(coded=0)
        for address, value in enumerate(session.values):
            ports.drive(
                map_write=_pack(
                    map_write_layout(self.params), enable=1, address=address, value=value
                )
            )
            await ports.step()
        ports.drive(map_write=0)
        await ports.settle()
        while ports.read("busy")[0]:
            await ports.step()
            await ports.settle()
        await ports.step()

    def start_writes(self) -> Iterator[dict[str, int]]:
        """Announce matrices and place their slots, as room comes."""
        layout = start_write_layout(self.params)
        for index, matrix in enumerate(self.session.matrices):
            # Its packet comes behind that of the one before, whose CRC and its header lie between.
            while self.sent < index or (index >= 2 and not self.done[index - 2]):
                yield {"start_write": 0}
            yield {"start_write": 0}
            parity = index & 1
            packed = _pack(
                matrix_layout(self.params),
                code_bank=matrix.bank,
                memory=parity,
                **matrix.settings,
            )
            yield {f"matrix_{parity}": packed, "start_write": 0}
            self.allocated = index + 1
            for slot, position in enumerate(matrix.positions):
                write = _pack(layout, enable=1, parity=parity, slot=slot, position=position)
                yield {"start_write": write, "selected": 1}
                # Another lane's.
                yield {"start_write": write ^ 1 << layout.size - 1, "selected": 0}
        while True:
            yield {"start_write": 0}

    def vector_writes(self) -> Iterator[dict[str, int]]:
        """Load activations, and let matrices go."""
        layout = vector_write_layout(self.params)
        depth, together = self.params.activation_depth, self.params.activation_columns
        batch = self.params.batch
        for index, matrix in enumerate(self.session.matrices):
            while self.allocated <= index or (index >= 2 and not self.done[index - 2]):
                yield {"vector_write": 0}
            columns = len(matrix.activations)
            for column, values in enumerate(matrix.activations):
                address, place = divmod((column - columns) % depth, together)
                write = _pack(
                    layout,
                    enable=2**batch - 1 << place * batch,
                    memory=index & 1,
                    address=address,
                    activations=([0] * place * batch + values + [0] * together * batch)[
                        : together * batch
                    ],
                )
                yield {"vector_write": write}
            # The starts come before.
            for _ in range(4 * self.params.slots):
                yield {"vector_write": 0}
            self.go |= 1 << (index & 1)
            yield {"vector_write": 0}
        while True:
            yield {"vector_write": 0}

    def beats(self) -> Iterator[dict[str, int]]:
        """Offer beats; sent on when one has been taken."""
        layout = data.StructLayout(
            {"bits": self.params.parser_bits, "first": 1, "last": 1, "parity": 1}
        )
        slots = self.params.slots
        for index, matrix in enumerate(self.session.matrices):
            while self.allocated <= index:
                yield {"beat_valid": 0, "beat": 0}
            for number, bits in enumerate(matrix.beats):
                beat = _pack(
                    layout,
                    bits=bits,
                    first=number < slots,
                    last=number >= len(matrix.beats) - slots,
                    parity=index & 1,
                )
                yield {"beat_valid": 1, "beat": beat, "matrix": index}
            self.sent = index + 1
        while True:
            yield {"beat_valid": 0, "beat": 0}

    def take_sums(self, cycle: int, packed: int) -> None:
        """Record sums of a matrix's row."""
        sums = lane_result_layout(self.params).from_bits(packed)
        index = next(
            at for at, done in enumerate(self.done) if not done and at & 1 == int(sums.parity)
        )
        recorded = self.outcome.sums[index]
        slot = int(sums.slot)
        recorded.rows[slot].append([int(value) for value in sums.sums])
        recorded.lasts[slot].append(int(sums.last))
        recorded.ended = cycle

    async def play(self) -> Outcome:
        """Play the session to its end."""
        ports, session, outcome = self.ports, self.session, self.outcome
        slots = self.params.slots
        ports.drive(start_write=0, vector_write=0, beat_valid=0, go=0, clear_errors=0, selected=0)
        await ports.reset()
        await self.write_tables()
        starts, vectors, beats = self.start_writes(), self.vector_writes(), self.beats()
        beat_pauses = pauses(session.beats, session.seed)
        sum_pauses = pauses(session.sums, session.seed + 1)
        start_pauses = pauses(session.others, session.seed + 2)
        vector_pauses = pauses(session.others, session.seed + 3)
        offered: dict[str, int] = {"beat_valid": 0}
        settling: dict[int, int] = {}
        clear = 0
        for cycle in range(_TIMEOUT):
            ports.drive(clear_errors=clear)
            clear = 0
            if next(start_pauses):
                ports.drive(start_write=0)
            else:
                ports.drive(**next(starts))
            if next(vector_pauses):
                ports.drive(vector_write=0)
            else:
                ports.drive(**next(vectors))
            if not offered["beat_valid"]:
                pause = next(beat_pauses)
                offered = {"beat_valid": 0, "beat": 0} if pause else next(beats)
            ports.drive(beat_valid=offered["beat_valid"], beat=offered["beat"])
            ports.drive(sums_ready=int(not next(sum_pauses)), go=self.go)
            await ports.settle()
            ready, valid, multiply = ports.read("beat_ready", "sums_valid", "multiply")
            outcome.multiplies += multiply
            if offered["beat_valid"]:
                recorded = outcome.sums[offered["matrix"]]
                if ready:
                    if recorded.began < 0:
                        recorded.began = cycle
                    offered = {"beat_valid": 0}
                else:
                    recorded.beat_stalls += 1
            packed, taken = ports.read("sums", "sums_ready")
            if valid and taken:
                self.take_sums(cycle, packed)
            flags = dict(
                zip(("bad_prefix", "bad_index"), ports.read("bad_prefix", "bad_index"), strict=True)
            )
            for index, recorded in enumerate(outcome.sums):
                if self.done[index] or not all(lasts and lasts[-1] for lasts in recorded.lasts):
                    continue
                settling[index] = settling.get(index, 0) + 1
                if settling[index] > _SETTLE:
                    shift, mask = (index & 1) * slots, (1 << slots) - 1
                    recorded.bad_prefix = flags["bad_prefix"] >> shift & mask
                    recorded.bad_index = flags["bad_index"] >> shift & mask
                    self.done[index] = True
                    self.go &= ~(1 << (index & 1))
                    clear |= 1 << (index & 1)
            await ports.step()
            if all(self.done):
                break
        outcome.locked_up = not all(self.done)
        return outcome


async def _play(ports: Ports, job: LaneJob) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for session in job.sessions:
        if outcomes and outcomes[-1].locked_up:
            # What comes after a lock-up says nothing more, and takes long.
            outcomes.append(Outcome(locked_up=True))
            continue
        outcomes.append(await _Centre(ports, job.params, session).play())
    return outcomes


@cocotb.test()
async def play_lanes(dut: Any) -> None:
    """Play the jobs by member of the bank, and leave what came of them."""
    write_outcome(await play_bank(dut, read_job(), _play))
