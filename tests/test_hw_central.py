"""The components around the lanes, each alone: dealer, row store, finisher, loader, read-out."""

import random
from dataclasses import replace
from typing import Any

import pytest
from tests.run_options import pause_seed, seeded
from tests.test_hw_requantizer import requantize

from egret.image_format import PacketKind
from egret.params import AcceleratorParams
from egret_hw.activation_loader import ActivationLoader
from egret_hw.dealer import Dealer, bias_write_layout, start_layout
from egret_hw.finisher import Finisher, output_layout
from egret_hw.layouts import code_write_layout, map_write_layout, vector_write_layout
from egret_hw.packet_reader import section_layout
from egret_hw.readout import ReadoutNode, sums_layout
from egret_hw.row_store import RowStore
from egret_sim.bank import bank_verilog
from egret_sim.benches.accelerator import PAUSES
from egret_sim.benches.central import (
    DealerRun,
    DealerSeen,
    FinisherJob,
    FinisherRun,
    FinisherSeen,
    LoaderCycle,
    LoaderRun,
    NodeRun,
    NodeSeen,
    StoreMatrix,
    StoreRun,
    StoreSeen,
)
from egret_sim.runner import run_bench


def make_params(name: str, **changes: Any) -> AcceleratorParams:
    fields = {
        "lanes": 1,
        "parser_bits": 1,
        "parser_cut": 1,
        "bus_bits": 32,
        "map_depth": 16,
        "weight_bits": 6,
        "activation_depth": 16,
        "row_depth": 32,
    }
    return AcceleratorParams(name=name, **{**fields, **changes})


ONE = make_params("one")
MANY = make_params("many", lanes=2, parser_bits=8, parser_cut=2, bus_bits=64, batch=3)
MANY = replace(MANY, activation_columns=4)
WIDE = make_params("wide", lanes=16, parser_bits=4, parser_cut=2, bus_bits=256)
PATTERNS = [(source, sink) for source in PAUSES for sink in PAUSES]
INT32 = (-(2**31), 2**31 - 1)


def signed(number: int, bits: int) -> int:
    """Read a field's unsigned value as two's complement."""
    return (number + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


# The dealer


def make_section(rng: random.Random, params: AcceleratorParams, kind: int, wide: bool) -> int:
    depth = {PacketKind.MAP: params.map_depth, PacketKind.BIAS: 2 * params.row_depth}
    count = {PacketKind.CODE: 32, PacketKind.MATRIX: params.substreams}.get(PacketKind(kind), 0)
    base = 0
    if not count:
        count = rng.choice((1, 2, rng.randint(1, depth[PacketKind(kind)]), depth[PacketKind(kind)]))
        base = rng.randint(0, depth[PacketKind(kind)] - count)
    fields = {
        "kind": kind,
        "base": base,
        "count": count,
        "wide": wide or kind == PacketKind.BIAS,
        "parity": rng.getrandbits(1),
        "bank": rng.getrandbits(1),
    }
    return section_layout().const(fields).as_bits()


def make_dealer_runs(params: AcceleratorParams) -> list[DealerRun]:
    runs = []
    for seed, source in enumerate([*PAUSES, "none", "none", "random"]):
        rng = seeded(params.name, seed)
        kinds = [(kind, wide) for kind in PacketKind for wide in (False, kind == PacketKind.MATRIX)]
        # Several sections of one entry in a row, and several codes, wait together.
        kinds = kinds * 3 + [(PacketKind.CODE, False)] * 4
        if seed % 2:
            rng.shuffle(kinds)
        sections = []
        for kind, wide in kinds:
            section = make_section(rng, params, kind, wide)
            fields = section_layout().from_bits(section)
            words = -(-fields.count * (32 if fields.wide else 16) // params.bus_bits)
            sections.append((section, [rng.getrandbits(params.bus_bits) for _ in range(words)]))
        runs.append(DealerRun(params, sections, rng.getrandbits(8), source, pause_seed(seed)))
    return runs


DEALERS = {f"dealer_{params.name}": params for params in (ONE, MANY, WIDE)}
DEALER_RUNS = {name: make_dealer_runs(params) for name, params in DEALERS.items()}


def dealt(run: DealerRun) -> list[tuple[str, int]]:
    """Every write that the sections ask for, as (port, payload)."""
    params = run.params
    writes = []
    for section, words in run.sections:
        fields = section_layout().from_bits(section)
        text = b"".join(word.to_bytes(params.bus_bits // 8, "little") for word in words)
        size = 4 if fields.wide else 2
        column_bits = run.column_bits >> 4 * fields.parity & 15
        for number in range(fields.count):
            entry = int.from_bytes(text[size * number : size * (number + 1)], "little")
            match PacketKind(fields.kind):
                case PacketKind.MAP:
                    value = {"address": fields.base + number, "value": signed(entry, 16)}
                    layout, port = map_write_layout(params), "map_write"
                case PacketKind.BIAS:
                    value = {"address": fields.base + number, "bias": signed(entry, 32)}
                    layout, port = bias_write_layout(params), "bias_write"
                case PacketKind.CODE:
                    value = {
                        "bank": fields.bank,
                        "run": number // 16,
                        "number": number % 16,
                        "suffix_bits": entry % 16,
                        "offset": signed(entry // 16, 12),
                    }
                    layout, port = code_write_layout(), "code_write"
                case PacketKind.MATRIX:
                    row, column = divmod(entry, 2 ** (16 if fields.wide else column_bits))
                    value = {
                        "parity": fields.parity,
                        "substream": number,
                        "row": row,
                        "column": column,
                        "final": number == params.substreams - 1,
                    }
                    layout, port = start_layout(params), "start"
            writes.append((port, layout.const({"enable": 1, **value}).as_bits()))
    return writes


# The row store


def make_store_matrix(
    rng: random.Random, params: AcceleratorParams, bank: int, rows: int, walks: int, dense: bool
) -> StoreMatrix:
    bits = params.accumulator_bits
    starts, sums = [], []
    for substream in range(params.substreams):
        start = rng.randint(0, rows - 1)
        if dense:
            # The parts of a matrix that is cut evenly, most rows shared by two substreams.
            start = substream * rows // params.substreams
        if rng.random() < 0.1:
            start = rng.choice((rows, params.row_depth, params.row_depth + 1, 2**16 - 1))
        parts = rng.randint(1, max(1, rows - start)) + rng.choice((0, 0, 0, 1, 3))
        own = []
        for part in range(parts):
            zero = start + part >= rows and rng.random() < 0.8
            own.append(
                [
                    0 if zero else rng.randrange(-(2 ** (bits - 1)), 2 ** (bits - 1))
                    for _ in range(params.batch)
                ]
            )
        starts.append(start)
        sums.append(own)
    return StoreMatrix(bank, rows, starts, sums, walks)


def make_store_runs(params: AcceleratorParams) -> list[StoreRun]:
    runs = []
    orders = ("any", "same", "turns")
    for seed, (source, walking) in enumerate(PATTERNS * 4):
        rng = seeded(params.name, seed)
        matrices = []
        bank, rows = 0, 0
        for _ in range(8):
            rows = rows or rng.choice((1, 2, 5, params.row_depth, rng.randint(1, params.row_depth)))
            walks = rng.choice((0, 1, 1, 2))
            matrices.append(
                make_store_matrix(rng, params, bank, rows, walks, dense=rng.random() < 0.6)
            )
            # The sums of a matrix with more behind it stay in their bank.
            if walks:
                bank, rows = 1 - bank, 0
        cancel = rng.randint(40, 600) if seed >= 2 * len(PATTERNS) else -1
        runs.append(
            StoreRun(params, matrices, source, walking, orders[seed % 3], pause_seed(seed), cancel)
        )
    return runs


STORES = {f"store_{params.name}": params for params in (ONE, MANY)}
STORE_RUNS = {name: make_store_runs(params) for name, params in STORES.items()}


def row_sums(matrices: list[StoreMatrix], row: int) -> list[int]:
    """A row's sums over all parts of some matrices."""
    parts = [
        matrix.sums[substream][row - start]
        for matrix in matrices
        for substream, start in enumerate(matrix.starts)
        if 0 <= row - start < len(matrix.sums[substream])
    ]
    return [sum(own) for own in zip(*parts, strict=True)]


# The finisher


def make_finisher_runs(params: AcceleratorParams) -> list[FinisherRun]:
    runs = []
    is_serial = params.requantizer_cycles > 1
    order = seeded(params.name).sample(range(32), 32)
    for seed, sink in enumerate([*PAUSES] * (1 if is_serial else 2)):
        rng = seeded(params.name, seed)
        biases = [
            rng.choice((*INT32, 0, rng.randint(*INT32), rng.randint(-1000, 1000)))
            for _ in range(2 * params.row_depth)
        ]
        jobs = []
        # Where every result takes many cycles the runs share all flags.
        for flags in order[seed::4] if is_serial else rng.sample(range(32), 32):
            keep = flags & 1
            most = params.activation_depth if keep else params.row_depth
            rows = rng.choice((1, 2, most, rng.randint(1, most)))
            has_bias = flags >> 1 & 1
            job = {
                "rows": rows,
                "bias_base": rng.choice((0, 2 * params.row_depth - rows)) if has_bias else 0,
                "has_bias": has_bias,
                "relu": flags >> 2 & 1,
                "keep_activations": keep,
                "emit_results": flags >> 3 & 1,
                "emit_activations": flags >> 4 & 1,
                "multiplier": rng.choice((1, 3, 255, rng.getrandbits(16))),
                "shift": rng.choice((0, 1, 8, rng.randrange(64))),
                "bank": rng.getrandbits(1),
                "memory": rng.getrandbits(1),
            }
            sums = []
            for row in range(rows):
                bias = biases[job["bias_base"] + row] if has_bias else 0
                spread = rng.choice((4, 12, 20, 32))
                results = [rng.randint(-(2 ** (spread - 1)), 2 ** (spread - 1) - 1)] * params.batch
                results = [result + rng.randint(-3, 3) for result in results]
                sums.append(
                    [
                        min(max(result, INT32[0], INT32[0] + bias), INT32[1], INT32[1] + bias)
                        - bias
                        for result in results
                    ]
                )
            report = rng.choice((0, 0, rng.randint(1, 8)))
            jobs.append(FinisherJob(job, sums, report))
        runs.append(FinisherRun(params, biases, jobs, sink, pause_seed(seed)))
    return runs


SERIAL = replace(ONE, name="serial", vendor="ice40")
FINISHERS = {f"finisher_{params.name}": params for params in (ONE, MANY, SERIAL)}
FINISHER_RUNS = {name: make_finisher_runs(params) for name, params in FINISHERS.items()}


# The activation loader


def make_loader_runs(params: AcceleratorParams) -> list[LoaderRun]:
    runs = []
    bits = 8 * params.batch * params.activation_columns
    depth = params.activation_depth // params.activation_columns
    for seed, (source, cancels) in enumerate(
        (source, cancels) for source in PAUSES for cancels in (0.0, 0.02, 0.1)
    ):
        rng = seeded(params.name, seed)
        beats = []
        for _ in range(120):
            count = rng.choice((1, 2, depth, depth + rng.randint(1, 5), rng.randint(1, depth)))
            beats += [rng.getrandbits(bits) for _ in range(count)]
            beats[-1] |= 1 << bits
        runs.append(LoaderRun(params, beats, source, cancels, pause_seed(seed), 2500))
    return runs


LOADERS = {f"loader_{params.name}": params for params in (ONE, MANY)}
LOADER_RUNS = {name: make_loader_runs(params) for name, params in LOADERS.items()}


# The read-out node


def make_node_runs() -> list[NodeRun]:
    runs = []
    bits = sums_layout(ONE).size
    for seed, (source, sink) in enumerate(PATTERNS):
        rng = random.Random(pause_seed(seed))
        # The lowest bit tells the inputs apart.
        lane = [rng.getrandbits(bits) & ~1 for _ in range(40)]
        behind = [rng.getrandbits(bits) | 1 for _ in range(60)]
        runs.append(NodeRun(lane, behind, bits, source, sink, pause_seed(seed)))
    return runs


# Lanes behind each node.
NODES = {"node_1": 1, "node_3": 3}
NODE_RUNS = make_node_runs()


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    members = {
        **{name: Dealer(params) for name, params in DEALERS.items()},
        **{name: RowStore(params) for name, params in STORES.items()},
        **{name: Finisher(params) for name, params in FINISHERS.items()},
        **{name: ActivationLoader(params) for name, params in LOADERS.items()},
        **{name: ReadoutNode(ONE, behind) for name, behind in NODES.items()},
    }
    jobs = {**DEALER_RUNS, **STORE_RUNS, **FINISHER_RUNS, **LOADER_RUNS}
    jobs |= dict.fromkeys(NODES, NODE_RUNS)
    verilog = bank_verilog(members, "central")
    return run_bench(verilog, "central", "egret_sim.benches.central", jobs)


@pytest.mark.parametrize("name", DEALERS)
def test_dealer(name: str, seen: dict[str, list[DealerSeen]]) -> None:
    for run, found in zip(DEALER_RUNS[name], seen[name], strict=True):
        where = f"{name}, source {run.source}, seed {run.seed}"
        assert [(port, write) for _, port, write in found.writes] == dealt(run), where
        # A code counts from behind its announcement to its last write.
        coding: set[int] = set()
        number = 0
        for (section, _), announced in zip(run.sections, found.announced, strict=True):
            fields = section_layout().from_bits(section)
            number += fields.count
            if fields.kind == PacketKind.CODE:
                coding |= set(range(announced + 1, found.writes[number - 1][0] + 1))
        assert set(found.coding) == coding, where


@pytest.mark.parametrize("name", DEALERS)
def test_dealer_pace(name: str, seen: dict[str, list[DealerSeen]]) -> None:
    """An entry a cycle while words come, the first one three cycles behind its word."""
    for run, found in zip(DEALER_RUNS[name], seen[name], strict=True):
        if run.source == "none":
            first, last = found.writes[0][0], found.writes[-1][0]
            assert first == found.announced[0] + 4, f"{name}, seed {run.seed}"
            assert last - first + 1 == len(found.writes), f"{name}, seed {run.seed}"


@pytest.mark.parametrize("name", STORES)
def test_row_store(name: str, seen: dict[str, list[StoreSeen]]) -> None:
    params = STORES[name]
    width = 32 * params.batch
    overtaken = 0
    for run, found in zip(STORE_RUNS[name], seen[name], strict=True):
        where = (
            f"{name}, source {run.source}, walk {run.walking}, {run.order}, "
            f"cancel {run.cancel}, seed {run.seed}"
        )
        assert found.finished, where
        reads: dict[int, list[tuple[int, int]]] = {}
        for number, row, read in found.walks:
            reads.setdefault(number, []).append((row, read))
        for number, matrix in enumerate(run.matrices):
            at = f"{where}: matrix {number}"
            if number not in reads:
                lost = found.cancelled - 2 <= number < found.cancelled
                assert matrix.walks == 0 or lost, at
                continue
            # What was to be added to, unless a cancel came between.
            first = number
            while first and not run.matrices[first - 1].walks and first != found.cancelled:
                first -= 1
            expected = []
            for row in range(matrix.rows):
                sums = row_sums(run.matrices[first : number + 1], row) or [0] * params.batch
                expected.append(
                    sum(value % 2**32 << 32 * vector for vector, value in enumerate(sums))
                )
            rows = [row for row, _ in reads[number]]
            order = [row for row, before in zip(rows, [-1, *rows], strict=False) if row != before]
            if matrix.rows > 1:
                assert order == [*range(matrix.rows)] * matrix.walks, at
            for row, read in reads[number]:
                assert f"{read:0{width}b}" == f"{expected[row]:0{width}b}", f"{at}, row {row}"
        judged = [number for number, *_ in found.judged]
        if not found.cancelled:
            assert judged == [*range(len(run.matrices))], where
        for number, _, beyond, lowest in found.judged:
            matrix = run.matrices[number]
            wrong = [
                substream
                for substream, start in enumerate(matrix.starts)
                for part, sums in enumerate(matrix.sums[substream])
                if start + part >= matrix.rows and any(sums)
            ]
            assert beyond == bool(wrong), f"{where}: matrix {number}"
            if wrong:
                assert lowest == min(wrong), f"{where}: matrix {number}"
        overtaken += any(
            one[1] > other[1] for one, other in zip(found.offers, found.offers[1:], strict=False)
        )
    assert overtaken or name == "store_one"


@pytest.mark.parametrize("name", STORES)
def test_row_store_pace(name: str, seen: dict[str, list[StoreSeen]]) -> None:
    """A sum a cycle, also of one row, also while the next matrix's starts come."""
    params = STORES[name]
    same = beside = 0
    for run, found in zip(STORE_RUNS[name], seen[name], strict=True):
        taken: dict[int, tuple[int, int]] = {}
        for cycle, number, substream, part, ready, start in found.offers:
            assert ready, f"{name}, source {run.source}, seed {run.seed}, {cycle}"
            beside += start
            matrix = run.matrices[number]
            place = (matrix.bank, matrix.starts[substream] + part)
            if place[1] < matrix.rows:
                taken[cycle] = place
                same += place in (taken.get(cycle - 1), taken.get(cycle - 2))
        last = {number: cycle for cycle, number, *_ in found.offers}
        ends: dict[int, int] = {}
        for number, cycle, *_ in found.judged:
            assert cycle >= last[number] + 4, f"{name}, seed {run.seed}"
            ends[cycle - last[number]] = number
        assert 4 in ends or not found.judged, f"{name}, seed {run.seed}"
    assert same > 100 or params is ONE
    assert beside > 20


Numbers = tuple[int, ...]


def finished(
    job: FinisherJob, biases: list[int], batch: int
) -> tuple[list[Numbers], list[Numbers]]:
    """(data, last, user) of every beat, and (writes, memory, column - columns, vector, value)."""
    fields = job.job
    results, activations = [], []
    for row, sums in enumerate(job.sums):
        for own in sums:
            result = own + (biases[fields["bias_base"] + row] if fields["has_bias"] else 0)
            results.append(result)
            activations.append(
                requantize(result, fields["multiplier"], fields["shift"], fields["relu"])
            )
    beats: list[Numbers] = []
    for send, values in (("emit_results", results), ("emit_activations", activations)):
        if fields[send]:
            for number, value in enumerate(values):
                beats.append((value % 2**32, number == len(values) - 1, 0))
    if job.report:
        beats.append((job.report, 1, 1))
    writes: list[Numbers] = []
    if fields["keep_activations"]:
        for number, value in enumerate(activations):
            row, vector = divmod(number, batch)
            writes.append((1, fields["memory"], row - fields["rows"], vector, value))
    return beats, writes


@pytest.mark.parametrize("name", FINISHERS)
def test_finisher(name: str, seen: dict[str, list[FinisherSeen]]) -> None:
    params = FINISHERS[name]
    for run, found in zip(FINISHER_RUNS[name], seen[name], strict=True):
        where = f"{name}, sink {run.sink}, seed {run.seed}"
        assert not found.unsteady, where
        assert not found.free_while_busy, where
        assert len(found.started) == len(found.done) == len(run.jobs), where
        beats: list[Numbers] = []
        writes: list[Numbers] = []
        clears: list[Numbers] = []
        for job in run.jobs:
            own_beats, own_writes = finished(job, run.biases, params.batch)
            beats += own_beats
            writes += own_writes
            clears += [(row, job.job["bank"]) for row in range(job.job["rows"])]
        layout = output_layout()
        sent = [layout.from_bits(beat) for _, beat in found.beats]
        assert [(beat.data, beat.last, beat.user) for beat in sent] == beats, where
        written = []
        for _, bits in found.vectors:
            write = vector_write_layout(params).from_bits(bits)
            vector = write.enable.bit_length() - 1
            own = write.activations[vector]
            place, vector = divmod(vector, params.batch)
            column = write.address * params.activation_columns + place - params.activation_depth
            written.append((write.enable.bit_count(), write.memory, column, vector, own))
        assert written == writes, where
        assert [(row, bank) for _, row, bank in found.clears] == clears, where
        # The last write follows in the cycle behind `done`.
        jobs = zip(run.jobs, found.started, found.done, strict=True)
        for job, start, done in jobs:
            if job.job["keep_activations"]:
                count = job.job["rows"] * params.batch
                own = [cycle for cycle, _ in found.vectors if start < cycle <= done + 1]
                assert len(own) == count, where


@pytest.mark.parametrize("name", FINISHERS)
def test_finisher_pace(name: str, seen: dict[str, list[FinisherSeen]]) -> None:
    """The first beat comes ten cycles after the start, then one a cycle; or more of both."""
    params = FINISHERS[name]
    pace, first = (17, 2 + 7 * 17) if params is SERIAL else (1, 10)
    for run, found in zip(FINISHER_RUNS[name], seen[name], strict=True):
        if run.sink != "none":
            continue
        for job, start, done in zip(run.jobs, found.started, found.done, strict=True):
            walks = max(1, job.job["emit_results"] + job.job["emit_activations"])
            values = walks * job.job["rows"] * params.batch
            end = start + first - 1 + pace * (values - 1)
            assert done == end, f"{name}, seed {run.seed}"
            if job.job["emit_results"] or job.job["emit_activations"]:
                cycles = [cycle for cycle, _ in found.beats if start < cycle <= done + 1]
                assert cycles == [*range(start + first, end + 2, pace)]


@pytest.mark.parametrize("name", LOADERS)
def test_loader(name: str, seen: dict[str, list[list[LoaderCycle]]]) -> None:
    params = LOADERS[name]
    layout = vector_write_layout(params)
    together = params.activation_columns
    bits = 8 * params.batch * together
    most = params.activation_depth // together
    met = set()
    for run, log in zip(LOADER_RUNS[name], seen[name], strict=True):
        # What the loader is about, and the beats of its packet.
        state, memory, beats, ended, in_packet = "idle", 0, 0, 0, False
        write: int | None = None
        for number, cycle in enumerate(log):
            where = f"{name}, source {run.source}, {run.cancels=}, seed {run.seed}: cycle {number}"
            if write is None:
                assert not cycle.write & (1 << params.batch * together) - 1, where
            else:
                assert cycle.write == write, where
            assert (cycle.beats, cycle.ended) == (beats, ended), where
            takes = state in ("load", "discard") or (state == "idle" and cycle.halted)
            assert cycle.ready == (takes and not cycle.cancel), where
            write = None
            if cycle.beat >= 0:
                last = cycle.beat >> bits
                in_packet = not last
                if state == "load":
                    # Columns from the packet's last one downwards, the highest in the lowest bits.
                    columns = [
                        [
                            signed(cycle.beat >> 8 * (params.batch * place + vector) & 255, 8)
                            for vector in range(params.batch)
                        ]
                        for place in range(together)
                    ]
                    fields = {
                        "enable": 2 ** (params.batch * together) - 1,
                        "memory": memory,
                        "address": most - 1 - beats,
                        "activations": [one for own in reversed(columns) for one in own],
                    }
                    write = layout.const(fields).as_bits()
                    beats, ended = beats + 1, last
                    if last or beats == most:
                        state = "hold"
                elif state == "discard" and last:
                    state = "idle"
            elif state == "hold" and cycle.release:
                state, beats, ended = "idle", 0, 0
            elif state == "idle" and cycle.allow and not cycle.halted:
                state, memory = "load", cycle.memory
            if cycle.cancel:
                met.add((state, in_packet))
                state, beats, ended = "discard" if in_packet else "idle", 0, 0
    assert met >= {("idle", False), ("idle", True), ("load", False), ("load", True)}
    assert met >= {("hold", False), ("hold", True), ("discard", True)}


@pytest.mark.parametrize("name", NODES)
def test_readout_node(name: str, seen: dict[str, list[NodeSeen]]) -> None:
    for run, (found, overtaken, unsteady) in zip(NODE_RUNS, seen[name], strict=True):
        where = f"source {run.source}, sink {run.sink}, seed {run.seed}"
        assert [one for one in found if not one & 1] == run.lane, where
        assert [one for one in found if one & 1] == run.behind, where
        assert not unsteady, where
        assert overtaken <= NODES[name], where
        if run.source == "none":
            # While both wait the lane takes one turn for each that all lanes behind it had.
            behind = [0] + [1] * NODES[name]
            both = min(len(run.lane), len(run.behind) // NODES[name])
            assert [one & 1 for one in found][: both * len(behind)] == behind * both, where
