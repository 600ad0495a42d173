"""Benches of the components around the lanes: each plays its runs and records what happens.

Nothing is judged here. A run's class says which component it is for.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

import cocotb
from amaranth.lib import data

from egret.image_format import CODE_FIELDS, MATRIX_FIELDS, PacketKind
from egret.params import RESULT_BITS, AcceleratorParams
from egret_hw.dealer import bias_write_layout, start_layout
from egret_hw.finisher import job_layout
from egret_hw.packet_reader import fields_layout, section_layout
from egret_hw.readout import sums_layout
from egret_hw.row_store import walk_layout
from egret_sim.benches.ports import Ports, Sink, Source, pauses, play_bank
from egret_sim.runner import read_job, write_outcome

__all__ = [
    "DealerRun",
    "DealerSeen",
    "FinisherJob",
    "FinisherRun",
    "FinisherSeen",
    "LoaderCycle",
    "LoaderRun",
    "NodeRun",
    "NodeSeen",
    "ReaderCycle",
    "ReaderRun",
    "StoreMatrix",
    "StoreRun",
    "StoreSeen",
]

_PATIENCE = 20_000
"""Cycles after which a run that waits for something is given up."""
_QUIET = 100
"""Cycles without an event after which nothing happens any more: longer than any pause."""


@dataclass(frozen=True)
class DealerRun:
    """Sections of entries, each with its words, and the column bits of both parities."""

    params: AcceleratorParams
    sections: list[tuple[int, list[int]]]
    column_bits: int
    source: str
    seed: int


@dataclass
class DealerSeen:
    """Writes in order, (cycle, port, payload); cycles in which sections went in, and of coding."""

    writes: list[tuple[int, str, int]] = field(default_factory=list)
    announced: list[int] = field(default_factory=list)
    coding: list[int] = field(default_factory=list)


async def _play_dealer(ports: Ports, run: DealerRun) -> DealerSeen:
    seen = DealerSeen()
    rng = Random(run.seed)
    sections = deque(run.sections)
    starts = pauses(run.source, run.seed + 1)
    words = Source(ports, "words", run.params.bus_bits, run.source, run.seed)
    idle = cycle = 0
    ports.drive(section__valid=0, words__valid=0, column_bits=run.column_bits)
    await ports.reset()
    while idle < 50 and cycle < _PATIENCE:
        # A section comes where there is room for it, once the words before it have gone in.
        room = ports.read("section__ready")[0]
        announce = bool(sections and not words.waiting and room and not next(starts))
        payload = rng.getrandbits(section_layout().size)
        if announce:
            payload, entries = sections.popleft()
            words.waiting.extend(entries)
            seen.announced.append(cycle)
        ports.drive(section__valid=int(announce), section__payload=payload)
        words.drive()
        await ports.settle()
        words.taken()
        for port in ("map_write", "code_write", "bias_write", "start"):
            write = ports.read_write(port)
            # Every write's layout begins with `enable`.
            if write & 1:
                seen.writes.append((cycle, port, write))
                idle = 0
        if ports.read("coding")[0]:
            seen.coding.append(cycle)
        idle = 0 if sections or words.waiting else idle + 1
        cycle += 1
        await ports.step()
    return seen


@dataclass(frozen=True)
class StoreMatrix:
    """A matrix's bank, rows and parts: first row and sums, by vector, of each substream.

    Its rows are read in `walks` walks, of which the last one clears them.
    """

    bank: int
    rows: int
    starts: list[int]
    sums: list[list[list[int]]]
    walks: int


@dataclass(frozen=True)
class StoreRun:
    """Matrices to sum, pauses, and how the next sum is chosen.

    `order` is "any", "same" (the row of the sum before, where one has it) or "turns". At `cancel`,
    a cycle, what is under way is given up, and the next matrix is the first that was not begun.
    """

    params: AcceleratorParams
    matrices: list[StoreMatrix]
    source: str
    walking: str
    order: str
    seed: int
    cancel: int = -1


@dataclass
class StoreSeen:
    """What a run of the row store shows.

    `walks`: (matrix, row, sums) as read. `judged`: (matrix, cycle, beyond, beyond_substream) when
    it was complete. `offers`: (cycle, matrix, substream, part, ready, start). `cancelled`:
    matrices begun before the cancel.
    """

    walks: list[tuple[int, int, int]] = field(default_factory=list)
    judged: list[tuple[int, int, int, int]] = field(default_factory=list)
    offers: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    cancelled: int = 0
    finished: bool = False


class _StoreFeeder:
    """Chooses starts and sums of the matrices under way."""

    def __init__(self, run: StoreRun) -> None:
        self._run = run
        self._rng = Random(run.seed)
        self._turn = 0
        self._row: tuple[int, int] | None = None
        self.drop()

    def drop(self) -> None:
        self.starts: deque[tuple[int, int]] = deque()
        self.parts: dict[tuple[int, int], int] = {}
        self.offered: tuple[int, int, int] | None = None

    def add(self, number: int) -> None:
        substreams = len(self._run.matrices[number].starts)
        self.starts.extend((number, substream) for substream in range(substreams))

    def place(self, number: int, substream: int, part: int) -> tuple[int, int]:
        matrix = self._run.matrices[number]
        return matrix.bank, matrix.starts[substream] + part

    def choose(self) -> None:
        # Nothing is multiplied before all starts of its matrix are placed.
        placing = {number for number, _ in self.starts}
        ready = [one for one in self.parts if one[0] not in placing]
        if not ready:
            return
        if self._run.order == "turns":
            self._turn += 1
            key = ready[self._turn % len(ready)]
        else:
            key = self._rng.choice(ready)
            if self._run.order == "same":
                same = [one for one in ready if self.place(*one, self.parts[one]) == self._row]
                key = self._rng.choice(same or [key])
        self.offered = (*key, self.parts[key])
        self._row = self.place(*self.offered)

    def took_start(self) -> None:
        self.parts[self.starts.popleft()] = 0

    def took_sum(self) -> None:
        if self.offered is None:
            return
        number, substream, part = self.offered
        if part + 1 == len(self._run.matrices[number].sums[substream]):
            del self.parts[number, substream]
        else:
            self.parts[number, substream] = part + 1
        self.offered = None


def _walk(matrix: StoreMatrix, rng: Random, batch: int) -> Iterator[tuple[int, int]]:
    """Yield (row, clear) of each read; each row is read up to `batch` times in a row."""
    for walk in range(matrix.walks):
        for row in range(matrix.rows):
            repeats = rng.randint(1, batch)
            for again in range(repeats):
                yield row, int(walk == matrix.walks - 1 and again == repeats - 1)


async def _play_store(ports: Ports, run: StoreRun) -> StoreSeen:
    params, rng = run.params, Random(run.seed)
    sums, starts = sums_layout(params), start_layout(params)
    rows_layout = data.ArrayLayout(params.row_depth.bit_length(), 2)
    source, starting = pauses(run.source, run.seed), pauses(run.source, run.seed + 1)
    walking = pauses(run.walking, run.seed + 2)
    seen, feeder = StoreSeen(), _StoreFeeder(run)
    flying: deque[tuple[int, int]] = deque()
    rows, banks, parity = [0, 0], [0, 0], 0
    reads: deque[tuple[int, int]] = deque()
    pipe: list[tuple[int, int] | None] = [None, None]
    walked = release = -1
    wipe, cancelled = True, False
    begun = 0
    ports.drive(i__valid=0, start=0, release=0, cancel=0, walk=0, wipe=0)
    await ports.reset()
    for cycle in range(_PATIENCE):
        cancel = cycle == run.cancel
        if begun == len(run.matrices) and not flying and walked < 0 and not wipe:
            seen.finished = True
            break
        # Two matrices at most, of which the first one is read out.
        if not wipe and len(flying) < 2 and begun < len(run.matrices):
            matrix = run.matrices[begun]
            flying.append((begun, parity))
            rows[parity], banks[parity] = matrix.rows, matrix.bank
            feeder.add(begun)
            parity ^= 1
            begun += 1
        start = bool(feeder.starts) and not next(starting)
        start_bits = rng.getrandbits(starts.size) & ~1
        if start:
            number, substream = feeder.starts[0]
            fields: dict[str, Any] = {
                "enable": 1,
                "parity": dict(flying)[number],
                "substream": substream,
                "row": run.matrices[number].starts[substream],
                "column": rng.getrandbits(starts["column"].width),
                "final": rng.getrandbits(1),
            }
            start_bits = starts.const(fields).as_bits()
        if feeder.offered is None and not next(source):
            feeder.choose()
        sum_bits = rng.getrandbits(sums.size)
        if feeder.offered is not None:
            number, substream, part = feeder.offered
            matrix = run.matrices[number]
            fields = {
                "parity": dict(flying)[number],
                "substream": substream,
                "last": part + 1 == len(matrix.sums[substream]),
                "sums": matrix.sums[substream][part],
            }
            sum_bits = sums.const(fields).as_bits()
        walk = {
            "active": int(walked >= 0),
            "bank": rng.getrandbits(1),
            "enable": rng.getrandbits(1),
        }
        walk |= {"row": rng.randrange(params.row_depth), "clear": 0}
        if walked >= 0:
            walk["bank"] = run.matrices[walked].bank
            walk["enable"] = int(not next(walking))
            if reads:
                walk["row"], walk["clear"] = reads[0]
        ports.drive(
            start=start_bits,
            i__valid=int(feeder.offered is not None),
            i__payload=sum_bits,
            rows=rows_layout.const(rows).as_bits(),
            banks=banks[0] | banks[1] << 1,
            release=0 if release < 0 else 1 << release,
            cancel=int(cancel),
            walk=walk_layout(params).const(walk).as_bits(),
            wipe=int(wipe),
        )
        await ports.settle()
        ready, complete, beyond, substreams, wiped = ports.read(
            "i__ready", "complete", "beyond", "beyond_substream", "wiped"
        )
        if feeder.offered is not None:
            seen.offers.append((cycle, *feeder.offered, ready, int(start)))
            if ready:
                feeder.took_sum()
        if start:
            feeder.took_start()
        if release >= 0:
            flying.popleft()
            release = -1
        elif walked >= 0:
            if walk["enable"]:
                if pipe[1] is not None:
                    seen.walks.append((*pipe[1], ports.read("sums")[0]))
                pipe = [(walked, walk["row"]) if reads else None, pipe[0]]
                if reads:
                    reads.popleft()
                elif pipe == [None, None]:
                    if not cancelled:
                        release = flying[0][1]
                    walked = -1
        elif flying and complete >> flying[0][1] & 1:
            number, own = flying[0]
            width = sums["substream"].width
            lowest = substreams >> own * width & (1 << width) - 1
            seen.judged.append((number, cycle, beyond >> own & 1, lowest))
            if run.matrices[number].walks:
                walked = number
                reads.extend(_walk(run.matrices[number], rng, params.batch))
            else:
                release = own
        if wipe and wiped:
            wipe = cancelled = False
        if cancel:
            seen.cancelled = begun
            flying.clear()
            feeder.drop()
            release, parity, wipe, cancelled = -1, 0, True, True
        await ports.step()
    return seen


@dataclass(frozen=True)
class FinisherJob:
    """A job, sums by row and vector; `report`, an error kind to be sent behind it, or 0."""

    job: dict[str, int]
    sums: list[list[int]]
    report: int = 0


@dataclass(frozen=True)
class FinisherRun:
    """Jobs one after the other; `biases` fill the memory before."""

    params: AcceleratorParams
    biases: list[int]
    jobs: list[FinisherJob]
    sink: str
    seed: int


@dataclass
class FinisherSeen:
    """What a run of the finisher shows, each with its cycle.

    `beats`: payloads; `vectors`: writes; `clears`: (row, bank); `started`, `done`, `reported`:
    cycles only. `free_while_busy`: cycles in which both were claimed.
    """

    beats: list[tuple[int, int]] = field(default_factory=list)
    vectors: list[tuple[int, int]] = field(default_factory=list)
    clears: list[tuple[int, int, int]] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    reported: list[int] = field(default_factory=list)
    free_while_busy: int = 0
    unsteady: bool = False


async def _play_finisher(ports: Ports, run: FinisherRun) -> FinisherSeen:
    params, rng = run.params, Random(run.seed)
    seen = FinisherSeen()
    jobs, walks = job_layout(params), walk_layout(params)
    sums_shape = data.ArrayLayout(RESULT_BITS, params.batch)
    sink = Sink(ports, "o", run.sink, run.seed)
    ports.drive(start=0, report=0, bias_write=0, o__ready=0)
    for address, bias in enumerate(run.biases):
        write = {"enable": 1, "address": address, "bias": bias}
        ports.drive(bias_write=bias_write_layout(params).const(write).as_bits())
        await ports.step()
    ports.drive(bias_write=0)
    await ports.reset()
    waiting = deque(run.jobs)
    store: list[list[int]] = []
    pipe: list[list[int] | None] = [None, None]
    running, report, idle, cycle = False, 0, 0, 0
    gap = 0
    while idle < 30 and cycle < _PATIENCE:
        (may_report,) = ports.read("may_report")
        start = bool(waiting) and not running and not report and gap == 0
        reports = bool(report and not running and may_report)
        job_bits = rng.getrandbits(jobs.size)
        if start:
            job = waiting.popleft()
            job_bits = jobs.const(job.job).as_bits()
            store = [list(row) for row in job.sums]
            report = job.report
            seen.started.append(cycle)
            gap = rng.choice((0, 0, 1, 5))
        elif not running and gap:
            gap -= 1
        given = pipe[1] or [rng.getrandbits(RESULT_BITS) for _ in range(params.batch)]
        ports.drive(
            start=int(start),
            job=job_bits,
            report=int(reports),
            kind=report if reports else rng.getrandbits(3),
            sums=sums_shape.const([value % 2**RESULT_BITS for value in given]).as_bits(),
        )
        sink.drive()
        await ports.settle()
        walk_bits, busy, done, may_report = ports.read("walk", "busy", "done", "may_report")
        vector = ports.read_write("vector_write", params.batch * params.activation_columns)
        beat = sink.taken()
        if beat is not None:
            seen.beats.append((cycle, beat))
        if vector & (1 << params.batch * params.activation_columns) - 1:
            seen.vectors.append((cycle, vector))
        walk = walks.from_bits(walk_bits)
        if walk.active and walk.enable:
            read = store[walk.row] if walk.row < len(store) else None
            pipe = [list(read) if read else None, pipe[0]]
            if walk.clear:
                seen.clears.append((cycle, walk.row, walk.bank))
                if walk.row < len(store):
                    store[walk.row] = [0] * params.batch
        seen.free_while_busy += busy and may_report
        if done:
            seen.done.append(cycle)
        if reports:
            seen.reported.append(cycle)
            report = 0
        running = start or (running and not done)
        idle = 0 if waiting or running or report or beat is not None else idle + 1
        cycle += 1
        await ports.step()
    seen.unsteady = sink.unsteady
    return seen


@dataclass(frozen=True)
class LoaderRun:
    """Beats of packets, pauses, and how often things are cancelled."""

    params: AcceleratorParams
    beats: list[int]
    source: str
    cancels: float
    seed: int
    cycles: int


class LoaderCycle(NamedTuple):
    """A cycle as the rising edge sees it; `beat` is -1 where none is taken."""

    allow: int
    memory: int
    release: int
    cancel: int
    halted: int
    ready: int
    beat: int
    write: int
    beats: int
    ended: int


async def _play_loader(ports: Ports, run: LoaderRun) -> list[LoaderCycle]:
    params, rng = run.params, Random(run.seed)
    depth = params.activation_depth // params.activation_columns
    source = Source(ports, "i", params.activation_bus_bits + 1, run.source, run.seed, run.beats)
    log = []
    # What is to come, as (cancel, halted): with an error, halted up to another cancel.
    plan: deque[tuple[int, int]] = deque()
    ports.drive(allow=0, release=0, cancel=0, halted=0, i__valid=0)
    await ports.reset()
    for _ in range(run.cycles):
        beats, ended = ports.read("beats", "ended")
        # A packet that is too long for the memory is never used.
        stuck = beats == depth and not ended and rng.random() < 0.3
        if not plan and (stuck or rng.random() < run.cancels):
            plan.append((1, 0))
            if rng.random() < 0.5:
                plan.extend([(0, 0)] * rng.randrange(3) + [(0, 1)] * rng.randrange(12) + [(1, 1)])
        cancel, halted = plan.popleft() if plan else (0, 0)
        allow, memory = int(rng.random() < 0.3), rng.getrandbits(1)
        release = int(ended and rng.random() < 0.3)
        source.drive()
        ports.drive(allow=allow, memory=memory, release=release, cancel=cancel, halted=halted)
        await ports.settle()
        (ready,) = ports.read("i__ready")
        write = ports.read_write("write")
        beat = source.taken()
        taken = -1 if beat is None else beat
        log.append(
            LoaderCycle(allow, memory, release, cancel, halted, ready, taken, write, beats, ended)
        )
        await ports.step()
    return log


@dataclass(frozen=True)
class NodeRun:
    """Payloads on both inputs of a read-out node, and the pauses."""

    lane: list[int]
    behind: list[int]
    bits: int
    source: str
    sink: str
    seed: int


class NodeSeen(NamedTuple):
    """Payloads sent; the most taken from behind while one of the lane's waited."""

    results: list[int]
    overtaken: int
    unsteady: bool


async def _play_node(ports: Ports, run: NodeRun) -> NodeSeen:
    lane = Source(ports, "lane", run.bits, run.source, run.seed, run.lane)
    behind = Source(ports, "behind", run.bits, run.source, run.seed + 1, run.behind)
    sink = Sink(ports, "o", run.sink, run.seed + 2)
    results: list[int] = []
    overtaken = waits = 0
    ports.drive(lane__valid=0, behind__valid=0, o__ready=0)
    await ports.reset()
    for _ in range(4 * (len(run.lane) + len(run.behind)) + 100):
        offered = lane.drive()
        behind.drive()
        sink.drive()
        await ports.settle()
        waits = waits if offered and lane.taken() is None else 0
        waits += behind.taken() is not None and offered
        overtaken = max(overtaken, waits)
        result = sink.taken()
        if result is not None:
            results.append(result)
        await ports.step()
    return NodeSeen(results, overtaken, sink.unsteady)


@dataclass(frozen=True)
class ReaderRun:
    """Bus words, and what the components around the packet reader do.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.
    words : list of int
        Words, with `last` above the data.
    source : str
        Pauses of the words.
    answers : str
        Pauses of everything that the packet reader waits for.
    judging : int
        Most cycles until a matrix that has passed is judged.
    late : dict[int, tuple[int, int]]
        Error kind and position of matrices, numbered as they begin, that turn out wrong.
    recover : int
        Cycles in the error state after which it is cleared; negative: never.
    clears : tuple of int
        Other cycles in which it is cleared.
    seed : int
        Seed.
    cycles : int
        Most cycles to play; fewer where nothing happens any more.
    """

    params: AcceleratorParams
    words: list[int]
    source: str
    answers: str
    judging: int
    seed: int
    cycles: int
    late: dict[int, tuple[int, int]] = field(default_factory=dict)
    recover: int = -1
    clears: tuple[int, ...] = ()


class ReaderCycle(NamedTuple):
    """A cycle as the rising edge sees it; -1 where nothing is transferred.

    `hasty`: something was begun that was not allowed.
    """

    clear: int
    offered: int
    word: int
    section: int
    body: int
    payload: int
    matrix: int
    code: int
    passed: int
    retired: int
    late: int
    cancel: int
    wipe: int
    reject: int
    sender_busy: int
    halted: int
    error: int
    position: int
    reading: int
    ready: int
    payload_word: int
    hasty: int


@dataclass
class _Flight:
    number: int
    passed: bool = False
    wait: int = 0


async def _play_reader(ports: Ports, run: ReaderRun) -> list[ReaderCycle]:
    params, rng = run.params, Random(run.seed)
    source = Source(ports, "i", params.bus_bits + 1, run.source, run.seed, run.words)
    sinks = [
        Sink(ports, name, run.answers, run.seed + number)
        for number, name in enumerate(("section", "words", "payload"), start=1)
    ]
    answers = [pauses(run.answers, run.seed + number) for number in range(4, 9)]
    flying: deque[_Flight] = deque()
    begun = parity = loaded = kept = halted_for = quiet = 0
    wiping = rng.randint(1, 6)
    log = []
    await ports.reset()
    for cycle in range(run.cycles):
        if quiet == _QUIET and cycle > max(run.clears, default=0):
            break
        clear = cycle in run.clears or (run.recover >= 0 and halted_for > run.recover)
        halted_for = 0 if clear else halted_for
        may_allocate, may_load, may_bias, may_send, sender_free = (
            not next(pause) for pause in answers
        )
        late = retired = 0
        kind, position = rng.randrange(9), rng.getrandbits(32)
        if flying and flying[0].passed:
            if flying[0].wait:
                flying[0].wait -= 1
            elif flying[0].number in run.late:
                late = 1
                kind, position = run.late[flying[0].number]
                flying[0].passed = False
            else:
                retired = 1
        in_flight = len(flying)
        may_allocate = may_allocate and in_flight < 2
        ports.drive(
            clear=int(clear),
            may_allocate=int(may_allocate),
            parity=parity,
            may_load_code=int(may_load),
            may_load_bias=int(may_bias),
            banks_loaded=loaded,
            kept=kept,
            may_send=int(may_send),
            in_flight=in_flight,
            late=late,
            late_error=kind,
            late_position=position,
            sender_busy=int(not sender_free),
            wiped=int(wiping == 0),
        )
        offered = int(source.drive())
        for sink in sinks:
            sink.drive()
        await ports.settle()
        word = source.taken()
        section, body, payload = (sink.taken() for sink in sinks)
        allocate, load_code = ports.read("allocate", "load_code")
        matrix = ports.read("matrix")[0] if allocate else -1
        code = ports.read("code")[0] if load_code else -1
        passed, cancel, wipe, reject, halted = ports.read(
            "passed", "cancel", "wipe", "reject", "halted"
        )
        error, position_seen, reading, ready, payload_word = ports.read(
            "error", "position", "reading", "i__ready", "payload_word"
        )
        biases = section is not None and (
            section_layout().from_bits(section).kind == PacketKind.BIAS
        )
        hasty = (
            (allocate and not may_allocate)
            or (load_code and not may_load)
            or (biases and not may_bias)
            or (payload is not None and not may_send)
        )
        taken = (-1 if one is None else one for one in (word, section, body, payload))
        log.append(
            ReaderCycle(
                int(clear),
                offered,
                next(taken),
                next(taken),
                next(taken),
                next(taken),
                matrix,
                code,
                passed,
                retired,
                late,
                cancel,
                wipe,
                reject,
                int(not sender_free),
                halted,
                error,
                position_seen,
                reading,
                ready,
                payload_word,
                int(hasty),
            )
        )
        wiping = (rng.randint(1, 6) if wiping == 0 else wiping - 1) if wipe else rng.randint(1, 6)
        halted_for += halted
        happens = source.waiting or passed or retired or cancel or wipe or reject
        quiet = 0 if happens else quiet + 1
        if allocate:
            flying.append(_Flight(begun))
            begun += 1
            kept = int(fields_layout(MATRIX_FIELDS).from_bits(matrix).keep_activations)
        if load_code:
            bank = fields_layout(CODE_FIELDS).from_bits(code).bank
            loaded |= 1 << bank
        if retired:
            flying.popleft()
        if passed and flying:
            flying[-1].passed = True
            flying[-1].wait = rng.randint(0, run.judging)
            parity ^= 1
        if cancel:
            flying.clear()
            parity = loaded = kept = 0
        await ports.step()
    return log


async def _play(ports: Ports, runs: list[Any]) -> list[Any]:
    players: dict[type, Any] = {
        DealerRun: _play_dealer,
        StoreRun: _play_store,
        FinisherRun: _play_finisher,
        LoaderRun: _play_loader,
        NodeRun: _play_node,
        ReaderRun: _play_reader,
    }
    return [await players[type(run)](ports, run) for run in runs]


@cocotb.test()
async def play_components(dut: Any) -> None:
    """Play the job, runs by member of the bank, and leave what was seen."""
    write_outcome(await play_bank(dut, read_job(), _play))
