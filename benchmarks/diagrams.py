"""Timing diagrams of the accelerator: what a simulation does, cycle by cycle, as pictures.

`make diagrams` writes them into docs/images. A small accelerator runs in Amaranth's own simulator;
its signals are sampled once a cycle, and only what was sampled is drawn.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Fragment, Value
from amaranth.sim import Simulator
from benchmarks.waves import MATRICES, Cell, Waves
from numpy.typing import NDArray

from egret.files import write_text
from egret.image import HardwareImage, build_matrices
from egret.image_format import CRC_BITS, ENTRY_BITS, MATRIX_BYTES
from egret.params import PRESETS, AcceleratorParams
from egret_hw.accelerator import Accelerator

__all__ = [
    "COLUMNS",
    "LANE",
    "PARAMS",
    "PICTURES",
    "STAGES",
    "Event",
    "Recording",
    "draw",
    "lane_events",
    "record",
    "section_spans",
]

PARAMS = dataclasses.replace(
    PRESETS["s"],
    name="diagrams",
    parser_cut=4,
    map_depth=16,
    activation_depth=16,
    row_depth=16,
)
"""The `s` preset with small memories, so that a simulation is short, and one substream a lane."""
COLUMNS = 12
"""Columns of every matrix."""
ROWS = (8, 12, 10)
LANE = 1
"""The lane that the life of a row is shown in."""

_SEED = 3
_ZEROS = 0.5
_PAUSE_BEHIND = 11
_PAUSE_CYCLES = 3
_QUIET_CYCLES = 8
_MULTIPLIER_DELAY = 3
"""Enabled cycles from an operation to its factors at the multiplier."""

STAGES = (
    "beat",
    "marks",
    "block",
    "taken",
    "task",
    "operation",
    "factors",
    "sum",
    "store",
    "walk",
    "output",
)
"""Where the parts of a row are seen, from the bus to the output stream."""

PICTURES = {
    "timing-handshake": (
        "The words of a matrix packet on the weight stream, cycle by cycle, with tvalid, tready, "
        "tdata and tlast; the source pauses amid the payload, the core behind the header and then "
        "for every payload word."
    ),
    "timing-row": (
        "One row of a matrix on its way through a lane and out: beats, the parser's marks, the "
        "block queue, the extractor, the positioner, the multiplier, the read-out chain, the row "
        "store, the finisher and the output stream."
    ),
    "timing-matrices": (
        "Three matrices back to back: while the lanes multiply one, they decode the next one, and "
        "the finisher walks over the rows of the one before."
    ),
}
"""The pictures' names, and what they show, for those who do not see them."""


@dataclass(frozen=True)
class Recording:
    """What a simulation did.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.
    image : HardwareImage
        What was run.
    weights : tuple of ndarray of int32, shape (rows, columns)
        Its matrices, columns as the accelerator counts them.
    inputs : tuple of ndarray of int8, shape (columns,)
        A vector for each, in the same order.
    signals : mapping of str to list of int
        What was sampled, one value a cycle.
    together : int
        Cycle from which the matrices run back to back; before it, the first one runs alone, and
        its source pauses once.
    """

    params: AcceleratorParams
    image: HardwareImage
    weights: tuple[NDArray[np.int32], ...]
    inputs: tuple[NDArray[np.int8], ...]
    signals: Mapping[str, Sequence[int]]
    together: int

    def moves(self, stream: str, start: int, *, until: str = "last") -> list[int]:
        """Return the cycles from `start` on in which a stream moves, to its field `until`."""
        return self.cycles(f"{stream}.valid", f"{stream}.ready", start, f"{stream}.{until}")

    def cycles(self, valid: str, enable: str, start: int, until: str) -> list[int]:
        """Return the cycles from `start` on with both signals high, to that with `until` too."""
        found = []
        for cycle in range(start, len(self.signals[valid])):
            if self.signals[valid][cycle] and self.signals[enable][cycle]:
                found.append(cycle)
                if self.signals[until][cycle]:
                    break
        return found


@dataclass(frozen=True)
class Event:
    """Something of one or more rows at a place of the accelerator, in one cycle.

    Parameters
    ----------
    stage : str
        One of `STAGES`.
    cycle : int
        When.
    rows : frozenset of int
        Rows that it belongs to.
    text : str
        What was seen, as it is drawn.
    values : tuple of int
        The same as numbers: at `operation` the column that is multiplied; at `factors` weight and
        activation; at `sum`, `store` and `output` the sum.
    """

    stage: str
    cycle: int
    rows: frozenset[int]
    text: str
    values: tuple[int, ...] = ()


def _components(fragment: Fragment, path: str = "") -> Iterator[tuple[str, Any]]:
    for origin in fragment.origins or ():
        if hasattr(origin, "signature"):
            yield path, origin
    for below, name, _ in fragment.subfragments:
        yield from _components(below, f"{path}.{name}" if path else name)


def _probes(fragment: Fragment) -> dict[str, Value]:
    """Return what is sampled, by name."""
    parts = dict(_components(fragment))
    core = parts[""]
    probes: dict[str, Value] = {}

    def stream(name: str, port: Any, *fields: str) -> None:
        probes[f"{name}.valid"] = port.valid
        probes[f"{name}.ready"] = port.ready
        for field in fields:
            probes[f"{name}.{field}"] = port.payload[field]

    stream("weights", core.weights, "data", "last")
    stream("activations", core.activations, "last")
    stream("results", core.results, "data", "last")
    # Results are signed.
    probes["results.data"] = core.results.payload.data.as_signed()
    start, tracker, finisher = parts["dealer"].start, parts["tracker"], parts["finisher"]
    probes |= {
        "start.enable": start.enable,
        "start.substream": start.substream,
        "start.row": start.row,
        "start.column": start.column,
        "reading": parts["reader"].reading,
        "writing": parts["writer"].busy,
        "parity": tracker.parity,
        "go.0": tracker.go[0],
        "go.1": tracker.go[1],
        "in_flight": tracker.in_flight,
        "judged": tracker.judged,
        "finisher.busy": finisher.busy,
        "finisher.enable": finisher.walk.enable,
        "finisher.row": finisher.walk.row,
    }
    store = parts["store"]
    stream("store", store.i, "substream", "last")
    probes["store.sum"] = store.i.payload.sums[0]
    for lane in range(core.params.lanes):
        name = f"lane_{lane}"
        own = parts[name]
        stream(f"{name}.i", own.i, "bits", "last", "parity")
        stream(f"{name}.o", own.o, "last")
        probes[f"{name}.o.sum"] = own.o.payload.sums[0]
        parser = parts[f"{name}.parser"]
        for field in ("enable", "o_valid", "o_last", "o_bits", "o_end", "o_event"):
            probes[f"{name}.{field}"] = getattr(parser, field)
        blocks, extractor = parts[f"{name}.blocks"], parts[f"{name}.extractor"]
        stream(f"{name}.blocks.i", blocks.i, "event", "last")
        stream(f"{name}.blocks.o", blocks.o, "event", "last")
        stream(f"{name}.tasks", extractor.o, "event", "flush", "number", "skip")
        operation, mac = parts[f"{name}.positioner"].o, parts[f"{name}.mac"]
        for field in ("multiply", "emit", "last", "column"):
            probes[f"{name}.{field}"] = operation[field]
        probes[f"{name}.advance"] = mac.enable
        multiplier = parts[f"{name}.mac.multiplier_0"]
        probes[f"{name}.weight"] = multiplier.a
        probes[f"{name}.activation"] = multiplier.b
    return probes


def _words(data: bytes, bits: int) -> list[tuple[int, bool]]:
    """Return a packet's bus words, each with whether it is the last one."""
    size = bits // 8
    starts = range(0, len(data), size)
    return [(int.from_bytes(data[at : at + size], "little"), at == starts[-1]) for at in starts]


def record(params: AcceleratorParams = PARAMS) -> Recording:
    """Run matrices through the accelerator and sample its signals.

    The first matrix runs alone, its source pausing once, then all of them back to back.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator; one vector at a time, one substream a lane, microcode.

    Returns
    -------
    Recording
    """
    rng = np.random.default_rng(_SEED)
    weights = []
    inputs = []
    for rows in ROWS:
        values = rng.integers(1, 4, (rows, COLUMNS)) * rng.choice([-1, 1], (rows, COLUMNS))
        values[rng.random((rows, COLUMNS)) < _ZEROS] = 0
        weights.append(values.astype(np.int32))
        inputs.append(rng.integers(-99, 100, COLUMNS).astype(np.int8))
    # The packer turns columns around, and the host sends the last one first: here they are named
    # as the accelerator counts them.
    image = build_matrices(
        {f"matrix {number}": values[:, ::-1] for number, values in enumerate(weights)},
        params,
        codes="eg-k",
    )
    vectors = [
        _words(params.pad_activations(vector[::-1].tobytes()), params.activation_bus_bits)
        for vector in inputs
    ]
    packets = [_words(packet.data, params.bus_bits) for packet in image.packets]
    setup = [word for packet in image.setup for word in _words(packet.data, params.bus_bits)]
    pause: list[tuple[int, bool] | None] = [None] * _PAUSE_CYCLES
    alone = [*packets[0][:_PAUSE_BEHIND], *pause, *packets[0][_PAUSE_BEHIND:]]

    core = Accelerator(params)
    fragment = Fragment.get(core, None)
    probes = _probes(fragment)
    busy = [probes[name] for name in ("reading", "writing", "in_flight", "finisher.busy")]
    signals: dict[str, list[int]] = {name: [] for name in probes}
    together = 0

    async def play(
        ctx: Any, words: Sequence[tuple[int, bool] | None], columns: Sequence[tuple[int, bool]]
    ) -> None:
        """Send both streams, a word of None being a pause of a cycle, and wait for the end."""
        ports = ((core.weights, list(words)), (core.activations, list(columns)))
        quiet = 0
        while quiet < _QUIET_CYCLES:
            for port, items in ports:
                item = items[0] if items else None
                ctx.set(port.valid, item is not None)
                if item is not None:
                    ctx.set(port.payload.data, item[0])
                    ctx.set(port.payload.last, item[1])
            for name, probe in probes.items():
                signals[name].append(int(ctx.get(probe)))
            rest = any(items for _, items in ports) or any(ctx.get(part) for part in busy)
            quiet = 0 if rest else quiet + 1
            for port, items in ports:
                if items and (items[0] is None or ctx.get(port.ready)):
                    items.pop(0)
            await ctx.tick()

    async def bench(ctx: Any) -> None:
        nonlocal together
        ctx.set(core.results.ready, 1)
        await play(ctx, setup, [])
        for samples in signals.values():
            samples.clear()
        await play(ctx, alone, vectors[0])
        together = len(signals["reading"])
        await play(
            ctx,
            [word for packet in packets for word in packet],
            [column for vector in vectors for column in vector],
        )

    simulator = Simulator(fragment)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return Recording(params, image, tuple(weights), tuple(inputs), signals, together)


def _marks(bits: int, width: int, marks: str = "01") -> str:
    """Return bits in order of time, position 0 first, as characters."""
    return "".join(marks[bits >> at & 1] for at in range(width))


def lane_events(recording: Recording, lane: int = LANE) -> list[Event]:
    """Follow the first matrix that runs with others through a lane, and out.

    What belongs to which row is found by counting: codewords are the weights of the lane's range in
    order, tasks and operations its non-zeros in order, sums its rows in order.

    Parameters
    ----------
    recording : Recording
        What was sampled.
    lane : int
        The lane.

    Returns
    -------
    list of Event
        By stage; within one, in order.
    """
    signals, since = recording.signals, recording.together
    width = recording.params.parser_bits
    name = f"lane_{lane}"
    own = {
        signal.removeprefix(f"{name}."): samples
        for signal, samples in signals.items()
        if signal.startswith(f"{name}.")
    }
    values = recording.weights[0]
    rows, columns = values.shape
    start = next(
        cycle
        for cycle in range(since, len(signals["reading"]))
        if signals["start.enable"][cycle] and signals["start.substream"][cycle] == lane
    )
    first_row = signals["start.row"][start]
    first = first_row * columns + signals["start.column"][start]
    events: list[Event] = []

    def add(
        stage: str, cycle: int, found: Sequence[int], text: str, numbers: tuple[int, ...] = ()
    ) -> None:
        events.append(Event(stage, cycle, frozenset(found), text, numbers))

    # What the parser marks, and with it the beats that it was given.
    at = first
    events_at = []
    shares: list[list[int]] = []
    parsed = recording.cycles(f"{name}.o_valid", f"{name}.enable", since, f"{name}.o_last")
    for cycle in parsed:
        shares.append([])
        ends, multiplied = own["o_end"][cycle], own["o_event"][cycle]
        for place in range(width):
            if at < values.size:
                shares[-1].append(at // columns)
            if multiplied >> place & 1:
                events_at.append(at)
            at += ends >> place & 1
    # Behind the range's last weight there is only filling.
    sums = recording.moves(f"{name}.o", since)
    last_row = first_row + len(sums) - 1
    shares = [[row for row in share if row <= last_row] for share in shares]
    for cycle, share in zip(recording.moves(f"{name}.i", since), shares, strict=True):
        add("beat", cycle, share, _marks(own["i.bits"][cycle], width)[::-1])
    for cycle, share in zip(parsed, shares, strict=True):
        marks = _marks(own["o_end"][cycle], width, ".|")
        kinds = _marks(own["o_event"][cycle], width)
        text = "".join(
            "×" if kind == "1" else mark for mark, kind in zip(marks, kinds, strict=True)
        )
        add("marks", cycle, share, text)

    event_rows = [position // columns for position in events_at]
    for stage, stream in (("block", "blocks.i"), ("taken", "blocks.o")):
        left = iter(event_rows)
        for cycle in recording.moves(f"{name}.{stream}", since):
            count = own[f"{stream}.event"][cycle].bit_count()
            found = [next(left) for _ in range(count)]
            add(stage, cycle, found or [last_row], f"{count}×" if count else "end")
    left = iter(event_rows)
    for cycle in recording.moves(f"{name}.tasks", since, until="flush"):
        if own["tasks.event"][cycle]:
            add("task", cycle, [next(left)], f"+{own['tasks.skip'][cycle]}")
        else:
            add("task", cycle, [last_row], "end")

    # Operations, and the factors that they bring to the multiplier.
    left = iter(event_rows)
    row = first_row
    for cycle in range(since, len(own["advance"])):
        if not own["advance"][cycle]:
            continue
        if own["multiply"][cycle]:
            depth = recording.params.activation_depth
            column = (own["column"][cycle] + columns) % depth
            row_of = next(left)
            add("operation", cycle, [row_of], f"c{column}", (column,))
            seen = cycle
            for _ in range(_MULTIPLIER_DELAY):
                seen = next(later + 1 for later in range(seen, cycle + 99) if own["advance"][later])
            factors = own["weight"][seen], own["activation"][seen]
            add("factors", seen, [row_of], f"{factors[0]}×{factors[1]}", factors)
        if own["emit"][cycle]:
            add("operation", cycle, [row], "emit")
            row += 1
            if own["last"][cycle]:
                break

    for row, cycle in enumerate(sums, first_row):
        total = own["o.sum"][cycle]
        add("sum", cycle, [row], str(total), (total,))
    row = first_row
    for cycle in range(since, len(signals["store.valid"])):
        moved = signals["store.valid"][cycle] and signals["store.ready"][cycle]
        if moved and signals["store.substream"][cycle] == lane:
            total = signals["store.sum"][cycle]
            add("store", cycle, [row], str(total), (total,))
            row += 1
            if signals["store.last"][cycle]:
                break
    walk = recording.cycles("finisher.busy", "finisher.enable", since, "results.last")[:rows]
    for cycle in walk:
        row = signals["finisher.row"][cycle]
        add("walk", cycle, [row], str(row))
    for row, cycle in enumerate(recording.moves("results", since)):
        total = signals["results.data"][cycle]
        add("output", cycle, [row], str(total), (total,))
    return sorted(events, key=lambda event: STAGES.index(event.stage))


def section_spans(recording: Recording) -> list[tuple[str, int, int]]:
    """Return the sections of the packet that runs alone, and where its words lie.

    Returns
    -------
    list of (str, int, int)
        Name, first word and the word behind the last one.
    """
    params = recording.params
    packet = recording.image.matrices[0]
    sizes = {
        "header": -(-MATRIX_BYTES * 8 // params.bus_bits),
        "starts": -(-params.substreams * ENTRY_BITS // params.bus_bits),
        "payload": packet.payload_words,
        "CRC": -(-CRC_BITS // params.bus_bits),
    }
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return [(name, at, end) for name, (at, end) in zip(sizes, pairwise(ends), strict=True)]


_TAKEN = "#e6f1ef"
_SOURCE_WAITS = "#e8eaf5"
_CORE_WAITS = "#f8ebdd"
_SECTION_FILLS = {"header": "#dfe2f3", "starts": "#d3e8e5", "payload": "#f5e0c8", "CRC": "#e4e7eb"}


def _handshake(recording: Recording) -> str:
    signals, params = recording.signals, recording.params
    valid, ready = signals["weights.valid"], signals["weights.ready"]
    taken = recording.moves("weights", 0)
    last = taken[-1]
    waves = Waves(range(last + 3), zero=0, step=30, margin=120)
    waves.title(
        "A matrix packet on the weight stream",
        f"{params.lanes} lanes of {params.parser_bits} bits on a bus of {params.bus_bits}: "
        f"a payload word lasts {params.beats_per_word} cycles.",
    )
    waves.axis()
    top = waves.at
    waves.gap()
    cycles = range(last + 3)
    waves.levels("tvalid", valid)
    waves.levels("tready", ready)
    first_of = [0, *(cycle + 1 for cycle in taken)]
    # A word is there from the first valid cycle behind the last one taken.
    shown = [
        next(at for at in range(first, cycle + 1) if valid[at])
        for first, cycle in zip(first_of, taken, strict=False)
    ]
    waves.cells(
        "tdata",
        (
            Cell(
                first,
                cycle + 1,
                f"{signals['weights.data'][cycle]:0{params.bus_bits // 4}x}",
                upright=True,
            )
            for first, cycle in zip(shown, taken, strict=True)
        ),
        height=68,
    )
    waves.cells(
        "section",
        (
            Cell(shown[at], taken[end - 1] + 1, name, fill=_SECTION_FILLS[name], bold=True)
            for name, at, end in section_spans(recording)
        ),
    )
    waves.levels("tlast", [a & b for a, b in zip(signals["weights.last"], valid, strict=True)])
    moving = set(taken)
    waves.shade((c for c in cycles if c in moving), top, _TAKEN)
    waves.shade((c for c in cycles if not valid[c] and c < last), top, _SOURCE_WAITS)
    waves.shade((c for c in cycles if valid[c] and not ready[c]), top, _CORE_WAITS)
    waves.grid(top)
    waves.legend(
        (
            (_TAKEN, "#2f7f79", "a word moves: tvalid and tready"),
            (_SOURCE_WAITS, "#5a67a8", "the source pauses"),
            (_CORE_WAITS, "#b8702a", "the core pauses"),
        )
    )
    return waves.svg("Handshake of the weight stream", PICTURES["timing-handshake"])


_ROW_NAMES = {
    "beat": "bits into the input queue",
    "marks": "parser's marks",
    "block": "block into the queue",
    "taken": "block to the extractor",
    "task": "task: weights skipped",
    "operation": "positioner: column",
    "factors": "weight × activation",
    "sum": "sum leaves the lane",
    "store": "sum to the row store",
    "walk": "finisher reads row",
    "output": "result on m_axis_out",
}
_OTHER = ("#ffffff", "#c3cbd3")
_OWN = ("#f5e0c8", "#b8702a")


def _whole_row(events: Sequence[Event]) -> int:
    """Return a row whose parts all lie in the lane: not the range's first or last one."""
    rows = sorted({row for event in events if event.stage == "sum" for row in event.rows})
    return rows[len(rows) // 2]


def _row(recording: Recording) -> str:
    events = lane_events(recording)
    row = _whole_row(events)
    span = {
        stage: [event.cycle for event in events if event.stage == stage and row in event.rows]
        for stage in STAGES
    }
    zero = span["beat"][0]
    parts = (
        ("Into the lane", STAGES[:6], [*range(zero - 1, span["operation"][-1] + 2)]),
        (
            "Out of the lane",
            STAGES[5:],
            [
                *range(span["operation"][0] - 1, span["store"][-1] + 2),
                *range(span["walk"][0] - 2, span["output"][-1] + 3),
            ],
        ),
    )
    waves = Waves(parts[0][2], zero=zero, step=30, margin=180)
    waves.title(
        f"Row {row} of a matrix in lane {LANE}",
        "Filled: what belongs to the row. × is a weight that will be multiplied, | one that is 0, "
        "2× a block with two to multiply; a block without vanishes. emit ends a row.",
    )
    for number, (title, stages, cycles) in enumerate(parts):
        if number:
            waves.gap(4)
            waves.restart(cycles)
        waves.title(title)
        waves.axis()
        top = waves.at
        waves.gap()
        for stage in stages:
            waves.cells(
                _ROW_NAMES[stage],
                (
                    Cell(
                        event.cycle,
                        event.cycle + 1,
                        event.text.replace("×", "\n×") if stage == "factors" else event.text,
                        *(_OWN if row in event.rows else _OTHER),
                        bold=row in event.rows,
                    )
                    for event in events
                    if event.stage == stage
                ),
                height=34 if stage == "factors" else 22,
            )
        waves.grid(top)
        waves.cut(top, "the other lanes; judging")
    return waves.svg("Life of a row", PICTURES["timing-row"])


def _matrices(recording: Recording) -> str:
    signals, params, since = recording.signals, recording.params, recording.together
    end = max(cycle for cycle, valid in enumerate(signals["results.valid"]) if valid) + 4
    waves = Waves(range(since, end), zero=since, step=6, margin=160)
    waves.title(
        "Three matrices back to back",
        "; ".join(
            f"{number}: {rows} × {columns}"
            for number, (rows, columns) in enumerate(w.shape for w in recording.weights)
        )
        + f". {params.lanes} lanes of {params.parser_bits} bits, a bus of {params.bus_bits}.",
    )
    waves.axis(10)
    top = waves.at
    waves.gap()
    cycles = range(since, end)

    def spans(found: Iterable[tuple[int, int]]) -> list[Cell]:
        """Join cycles that follow each other with the same number, of a matrix, into boxes."""
        cells: list[Cell] = []
        numbers: list[int] = []
        for cycle, number in found:
            if cells and cells[-1].end == cycle and numbers[-1] == number:
                cells[-1] = dataclasses.replace(cells[-1], end=cycle + 1)
            else:
                stroke, fill = MATRICES[number]
                cells.append(Cell(cycle, cycle + 1, fill=fill, stroke=stroke))
                numbers.append(number)
        return [
            dataclasses.replace(cell, text=str(number), bold=True)
            if cell.end - cell.first > 2
            else cell
            for cell, number in zip(cells, numbers, strict=True)
        ]

    def counted(active: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
        """Return the active cycles, each with how many ends came before it."""
        found = []
        number = 0
        for cycle in cycles:
            if active[cycle]:
                found.append((cycle, number))
                number += bool(ends[cycle])
        return found

    def moving(stream: str) -> list[int]:
        pairs = zip(signals[f"{stream}.valid"], signals[f"{stream}.ready"], strict=True)
        return [valid & ready for valid, ready in pairs]

    waves.cells("weight stream, words", spans(counted(moving("weights"), signals["weights.last"])))
    waves.cells(
        "activation stream", spans(counted(moving("activations"), signals["activations.last"]))
    )
    waves.levels("parity being read", signals["parity"])
    for lane in range(params.lanes):
        own = f"lane_{lane}"
        waves.cells(
            f"lane {lane} decodes",
            spans(counted(signals[f"{own}.o_valid"], signals[f"{own}.o_last"])),
            height=16,
            space=3,
        )
        works = [
            a | b for a, b in zip(signals[f"{own}.multiply"], signals[f"{own}.emit"], strict=True)
        ]
        waves.cells("multiplies", spans(counted(works, signals[f"{own}.last"])), height=16, space=9)
    for parity in range(2):
        waves.levels(f"go, parity {parity}", signals[f"go.{parity}"])
    found = []
    ended = [0] * params.substreams
    stored = moving("store")
    for cycle in cycles:
        if stored[cycle]:
            substream = signals["store.substream"][cycle]
            found.append((cycle, ended[substream]))
            ended[substream] += signals["store.last"][cycle]
    waves.cells("sums to the row store", spans(found))
    judged = counted(signals["judged"], signals["judged"])
    waves.cells("judged", spans(judged))
    done = [
        signals["finisher.busy"][cycle] & ~signals["finisher.busy"][cycle + 1]
        for cycle in range(end)
    ]
    waves.cells("finisher at work", spans(counted(signals["finisher.busy"], done)))
    waves.cells("output stream", spans(counted(moving("results"), signals["results.last"])))
    waves.grid(top, 10)
    waves.legend((fill, stroke, f"matrix {n}") for n, (stroke, fill) in enumerate(MATRICES))
    return waves.svg("Three matrices under way", PICTURES["timing-matrices"])


def draw(recording: Recording) -> dict[str, str]:
    """Draw every picture.

    Parameters
    ----------
    recording : Recording
        What was sampled.

    Returns
    -------
    dict of str to str
        SVG by name of `PICTURES`.
    """
    drawers = (_handshake, _row, _matrices)
    return {name: drawer(recording) for name, drawer in zip(PICTURES, drawers, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, and write the pictures.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line.

    Returns
    -------
    int
        0.
    """
    parser = argparse.ArgumentParser(description="Draw the accelerator's timing diagrams.")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(__file__).parent.parent / "docs" / "images",
        help="folder (default: docs/images)",
    )
    output = parser.parse_args(arguments).output
    for name, picture in draw(record()).items():
        path = output / f"{name}.svg"
        write_text(path, picture)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
