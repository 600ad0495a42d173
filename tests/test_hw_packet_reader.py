"""The packet reader alone: every section and error, on every bus, with clears in every cycle.

Without `EGRET_FULL=1` some faults meet no pauses, and clears come in every other cycle.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import crc32c
import pytest
from tests.run_options import IS_FULL, pause_seed, seeded

from egret.image_format import CODE_FIELDS, LOAD_FIELDS, MATRIX_FIELDS, ErrorKind, Field, PacketKind
from egret.params import AcceleratorParams
from egret_hw.packet_reader import PacketReader, fields_layout, payload_layout, section_layout
from egret_sim.bank import bank_verilog
from egret_sim.benches.accelerator import PAUSES
from egret_sim.benches.central import ReaderCycle, ReaderRun
from egret_sim.runner import run_bench

MATRIX, MAP, CODE, BIAS = PacketKind
VARIANTS = {
    params.name: params
    for params in (
        # More beats in a word than slots, one slot, every code, one and several substreams.
        AcceleratorParams(
            name="bus32",
            lanes=2,
            parser_bits=4,
            parser_cut=4,
            bus_bits=32,
            map_depth=16,
            activation_depth=16,
            row_depth=32,
        ),
        # A payload of whole turns of the slots only, no table in a code.
        AcceleratorParams(
            name="bus64",
            lanes=1,
            parser_bits=16,
            parser_cut=1,
            bus_bits=64,
            codes=("eg-k", "eg-run"),
            map_depth=32,
            activation_depth=32,
            row_depth=32,
        ),
        # One bank of codes.
        AcceleratorParams(
            name="bus128",
            lanes=4,
            parser_bits=8,
            parser_cut=4,
            parser="microcode",
            bus_bits=128,
            map_depth=16,
            activation_depth=16,
            row_depth=64,
        ),
        # One beat in a word, fewer than slots; exp-Golomb codes alone.
        AcceleratorParams(
            name="bus256",
            lanes=32,
            parser_bits=8,
            parser_cut=2,
            bus_bits=256,
            codes=("eg-k",),
            map_depth=64,
            activation_depth=16,
            row_depth=16,
        ),
    )
}
KINDS: dict[int, dict[str, Field]] = {
    MATRIX: MATRIX_FIELDS,
    MAP: LOAD_FIELDS,
    CODE: CODE_FIELDS,
    BIAS: LOAD_FIELDS,
}
Fields = dict[str, int]
Event = tuple[Any, ...]


def pack(fields: Fields, more_bits: int = 0) -> int:
    """Return the header of some fields, as a number."""
    places = KINDS.get(fields["kind"], LOAD_FIELDS)
    return more_bits | sum(value << places[name].offset for name, value in fields.items())


def header_bytes(kind: int) -> int:
    return 24 if kind == MATRIX else 8


def body_bytes(fields: Fields, params: AcceleratorParams) -> int:
    """Return the bytes of the entries or starts."""
    match fields["kind"]:
        case PacketKind.MATRIX:
            return params.substreams * (4 if fields["wide_starts"] else 2)
        case PacketKind.CODE:
            return 64
        case PacketKind.MAP:
            return 2 * fields["count"]
        case _:
            return 4 * fields["count"]


def whole_words(count: int, params: AcceleratorParams) -> int:
    return -(-count // (params.bus_bits // 8))


def payload_unit(params: AcceleratorParams) -> int:
    """Return the fewest words whose beats are a multiple of the slots."""
    beats = params.bus_bits // (params.lanes * params.parser_bits)
    return next(words for words in range(1, 17) if words * beats % params.slots == 0)


def common(kind: int) -> Fields:
    return {"magic": 0x4745, "version": 2, "kind": kind}


def load(kind: int, base: int, count: int) -> Fields:
    return {**common(kind), "base": base, "count": count}


def code(params: AcceleratorParams, **changes: int) -> Fields:
    fields = dict.fromkeys(CODE_FIELDS, 0)
    fields |= common(CODE) | {"level_golomb": 1, "run_golomb": 0, "level_last": 4, **changes}
    if changes.get("run_form") and "eg-table" not in params.codes:
        fields["run_golomb"] = changes.get("run_golomb", 1)
    return fields


def matrix(params: AcceleratorParams, **changes: int) -> Fields:
    fields = dict.fromkeys(MATRIX_FIELDS, 0)
    fields |= common(MATRIX)
    fields |= {"rows": 3, "columns": 5, "map_entries": 4, "column_bits": 3}
    return fields | {"payload_words": payload_unit(params), **changes}


@dataclass
class Packet:
    """Header, body and payload of a packet, and what is done to its words.

    `cut`: words that it is cut down to; `extra`: words behind the CRC's; `flip`: bits turned over,
    as (word, bit).
    """

    fields: Fields
    more_bits: int = 0
    cut: int = 0
    extra: int = 0
    flip: tuple[tuple[int, int], ...] = ()

    def words(self, params: AcceleratorParams, rng: random.Random) -> list[int]:
        """Return the words, each with `last` above the data."""
        bus_bytes = params.bus_bits // 8
        kind = self.fields["kind"]
        raw = pack(self.fields, self.more_bits).to_bytes(header_bytes(kind), "little")
        # A damaged length must not make the packet long.
        sections = [raw, rng.randbytes(min(body_bytes(self.fields, params), 512))]
        if kind == MATRIX:
            sections.append(rng.randbytes(bus_bytes * min(self.fields["payload_words"], 40)))
        text = b"".join(
            part.ljust(whole_words(len(part), params) * bus_bytes, b"\0") for part in sections
        )
        text += crc32c.crc32c(text).to_bytes(bus_bytes, "little")
        found = [
            int.from_bytes(text[at : at + bus_bytes], "little")
            for at in range(0, len(text), bus_bytes)
        ]
        for word, bit in self.flip:
            found[word] ^= 1 << bit
        found += [rng.getrandbits(params.bus_bits) for _ in range(self.extra)]
        found = found[: self.cut or len(found)]
        found[-1] |= 1 << params.bus_bits
        return found


def is_good(raw: int, params: AcceleratorParams, loaded: set[int], *, kept: bool) -> bool:
    """Judge a header, as the words and the tables of the format's description do."""
    kind = raw >> 24 & 0xFF
    if raw & 0xFFFF != 0x4745 or raw >> 16 & 0xFF != 2 or kind not in KINDS:
        return False
    places = KINDS[kind]
    of = {name: raw >> place.offset & (1 << place.width) - 1 for name, place in places.items()}
    if pack(of) != raw:
        return False
    if kind in (MAP, BIAS):
        depth = params.map_depth if kind == MAP else 2 * params.row_depth
        return of["count"] >= 1 and of["base"] + of["count"] <= depth
    if kind == CODE:
        if of["bank"] >= params.code_banks or (of["run_form"] and of["dense"]):
            return False
        if of["run_form"] and "eg-run" not in params.codes:
            return False
        golomb = of["level_golomb"] and (of["run_golomb"] or not of["run_form"])
        return bool(golomb) or "eg-table" in params.codes
    most_rows = params.activation_depth if of["keep_activations"] else params.row_depth
    sends = of["keep_activations"] or of["emit_results"] or of["emit_activations"]
    rules = (
        1 <= of["rows"] <= most_rows,
        1 <= of["columns"] <= params.activation_depth,
        not (of["more"] and sends),
        not of["keep_activations"] or of["load_activations"] or kept,
        of["code_bank"] in loaded,
        not of["wide_starts"] or of["column_bits"] == 0,
        not of["zigzag"] or of["map_base"] == 0,
        1 <= of["map_entries"] <= params.map_depth,
        of["zigzag"] or of["map_base"] + of["map_entries"] <= params.map_depth,
        of["bias_base"] + of["rows"] <= 2 * params.row_depth
        if of["has_bias"]
        else of["bias_base"] == 0,
        of["payload_words"] >= 1,
        of["payload_words"] % payload_unit(params) == 0,
    )
    return all(rules)


@dataclass
class Expected:
    """What a stretch of packets makes the reader do, up to its first error.

    `passed`: matrices that pass before the error; `late`: the error is that of a matrix which had
    passed, so that what follows it may or may not be begun.
    """

    events: list[Event] = field(default_factory=list)
    error: tuple[int, int] = (0, 0)
    passed: int = 0
    late: bool = False


def expect(
    packets: Sequence[list[int]],
    params: AcceleratorParams,
    late: dict[int, tuple[int, int]],
    begun: int,
) -> Expected:
    """Read packets, the first matrix of which is number `begun`, from a cleared state on."""
    expected = Expected()
    events = expected.events
    loaded: set[int] = set()
    number, parity, kept = begun, 0, False

    def fail(kind: ErrorKind, position: int) -> Expected:
        # The error of a matrix before comes first.
        if not expected.late:
            expected.error = (int(kind), position)
        return expected

    for packet in packets:
        data = [word & (1 << params.bus_bits) - 1 for word in packet]

        kind = data[0] >> 24 & 0xFF
        head = whole_words(header_bytes(kind), params)
        if len(data) < head:
            return fail(ErrorKind.TRUNCATED, len(data) - 1)
        raw = sum(word << params.bus_bits * at for at, word in enumerate(data[:head]))
        raw &= (1 << 8 * header_bytes(kind)) - 1
        if not is_good(raw, params, loaded, kept=kept):
            return fail(ErrorKind.DESCRIPTOR, 0)
        if len(data) == head:
            return fail(ErrorKind.TRUNCATED, head - 1)
        of = {
            name: raw >> place.offset & (1 << place.width) - 1
            for name, place in KINDS[kind].items()
        }
        section = {
            "kind": kind,
            "base": of.get("base"),
            "count": {MATRIX: params.substreams, CODE: 32}.get(PacketKind(kind), of.get("count")),
            "wide": kind == BIAS or of.get("wide_starts", 0),
            "parity": parity if kind == MATRIX else None,
            "bank": of.get("bank"),
        }
        if kind == MATRIX:
            events.append(("matrix", of))
            kept = bool(of["keep_activations"])
            number += 1
        if kind == CODE:
            events.append(("code", of))
            loaded.add(of["bank"])
        events.append(("section", section))
        body = head + whole_words(body_bytes(of, params), params)
        ends = body + of.get("payload_words", 0)
        events += [("body", word) for word in data[head:body]]
        beats = params.bus_bits // (params.lanes * params.parser_bits)
        for at, word in enumerate(data[body:ends]):
            first = at * beats < params.slots
            last = (ends - body - at - 1) * beats < params.slots
            events.append(("payload", word, int(first), int(last), parity))
        if len(data) <= ends:
            return fail(ErrorKind.TRUNCATED, len(data) - 1)
        if len(data) > ends + 1:
            return fail(ErrorKind.OVERRUN, ends)
        text = b"".join(word.to_bytes(params.bus_bits // 8, "little") for word in data[:ends])
        if data[ends] != crc32c.crc32c(text):
            return fail(ErrorKind.CRC, ends)
        if kind == MATRIX:
            events.append(("passed",))
            parity ^= 1
            if number - 1 in late and not expected.late:
                expected.error, expected.late = late[number - 1], True
            expected.passed += not expected.late
    return expected


def happened(log: Sequence[ReaderCycle], params: AcceleratorParams) -> list[Event]:
    """List what a stretch of cycles shows, in the order of the packets."""
    events: list[Event] = []
    for cycle in log:
        if cycle.matrix >= 0:
            layout = fields_layout(MATRIX_FIELDS)
            events.append(("matrix", fields_of(layout, cycle.matrix)))
        if cycle.code >= 0:
            events.append(("code", fields_of(fields_layout(CODE_FIELDS), cycle.code)))
        if cycle.section >= 0:
            events.append(("section", fields_of(section_layout(), cycle.section)))
        if cycle.body >= 0:
            events.append(("body", cycle.body))
        if cycle.payload >= 0:
            word = payload_layout(params).from_bits(cycle.payload)
            events.append(("payload", word.data, word.first, word.last, word.parity))
        if cycle.passed:
            events.append(("passed",))
    return events


def fields_of(layout: Any, bits: int) -> Fields:
    value = layout.from_bits(bits)
    return {name: int(value[name]) for name, _ in layout}


def agrees(found: Event, wanted: Event) -> bool:
    """Compare two events; a section's field that is None may be anything."""
    if found[0] != "section" or wanted[0] != "section":
        return found == wanted
    return all(
        value is None or int(found[1][name]) == int(value) for name, value in wanted[1].items()
    )


# Runs


def good_packets(params: AcceleratorParams, rng: random.Random) -> list[Packet]:
    """Draw a setup and matrices of every form."""
    banks = params.code_banks
    packets = [Packet(code(params, bank=bank)) for bank in range(banks)]
    for kind, depth in ((MAP, params.map_depth), (BIAS, 2 * params.row_depth)):
        count = rng.randint(1, depth)
        packets += [Packet(load(kind, 0, depth)), Packet(load(kind, depth - count, count))]
        packets.append(Packet(load(kind, depth - 1, 1)))
    unit = payload_unit(params)
    kept = 0
    for number in range(8):
        wide, zigzag, has_bias, more = (rng.getrandbits(1) for _ in range(4))
        entries = rng.randint(1, params.map_depth)
        rows = rng.choice((1, params.row_depth, rng.randint(1, params.row_depth)))
        keep = int(not more and rows <= params.activation_depth and rng.random() < 0.7)
        changes = {
            "rows": rows,
            "columns": rng.choice((1, params.activation_depth)),
            "load_activations": int(keep and not kept) or rng.getrandbits(1),
            "relu": rng.getrandbits(1),
            "keep_activations": keep,
            "emit_results": 0 if more else rng.getrandbits(1),
            "emit_activations": 0 if more else rng.getrandbits(1),
            "has_bias": has_bias,
            "zigzag": zigzag,
            "more": more,
            "code_bank": rng.randrange(banks),
            "wide_starts": wide,
            "column_bits": 0 if wide else rng.getrandbits(4),
            "shift": rng.getrandbits(6),
            "map_base": 0 if zigzag else params.map_depth - entries,
            "map_entries": entries,
            "multiplier": rng.getrandbits(16),
            "bias_base": 2 * params.row_depth - rows if has_bias else 0,
            "payload_words": unit * (1, 2, 3, rng.randint(1, 8))[number % 4],
        }
        packets.append(Packet(matrix(params, **changes)))
        kept = keep
    return packets


def broken_headers(params: AcceleratorParams) -> list[Packet]:
    """Return a packet for all that a header can have wrong, and for the nearest good ones."""
    depth, rows, columns = params.map_depth, params.row_depth, params.activation_depth
    unit = payload_unit(params)

    def of(**changes: int) -> Packet:
        return Packet(matrix(params, **changes))

    packets = [
        *(of(rows=value) for value in (0, rows, rows + 1, 2**16 - 1)),
        *(
            of(rows=value, keep_activations=1, load_activations=1)
            for value in (columns, columns + 1)
        ),
        of(keep_activations=1),
        *(of(columns=value) for value in (0, columns, columns + 1, 2**16 - 1)),
        of(more=1, keep_activations=1, load_activations=1),
        of(more=1, emit_results=1),
        of(more=1, emit_activations=1),
        of(more=1, relu=1, has_bias=1, load_activations=1),
        of(wide_starts=1, column_bits=1),
        of(wide_starts=1, column_bits=8),
        of(zigzag=1, map_base=1),
        of(zigzag=1, map_base=2**15),
        *(of(map_entries=value, zigzag=way) for value in (0, depth, depth + 1) for way in (0, 1)),
        of(map_base=1, map_entries=depth),
        of(map_base=depth - 4),
        of(map_base=depth),
        of(map_base=2**16 - 1, map_entries=2),
        of(has_bias=1, bias_base=2 * rows - 3),
        of(has_bias=1, bias_base=2 * rows - 2),
        of(has_bias=1, bias_base=2**16 - 1),
        of(bias_base=1),
        of(bias_base=2**15),
        of(payload_words=0),
        *(of(payload_words=unit + 1 << at) for at in range(4)),
        of(code_bank=1),
        *(
            Packet(load(kind, base, count))
            for kind, most in ((MAP, depth), (BIAS, 2 * rows))
            for base, count in (
                (0, 0),
                (most, 0),
                (0, most + 1),
                (1, most),
                (most, 1),
                (2**16 - 1, 1),
                (2**16 - 1, 2**16 - 1),
            )
        ),
        Packet(code(params, bank=1)),
        *(
            Packet(code(params, run_form=runs, dense=dense, level_golomb=level, run_golomb=run))
            for runs in (0, 1)
            for dense in (0, 1)
            for level in (0, 1)
            for run in (0, 1)
        ),
    ]
    for fields in (code(params), load(MAP, 0, 3), load(BIAS, 0, 1), matrix(params)):
        packets += [
            Packet(fields | {"magic": 0x4744}),
            Packet(fields | {"magic": 0xC745}),
            Packet(fields | {"version": 1}),
            Packet(fields | {"version": 3}),
            Packet(fields | {"version": 0x82}),
        ]
        places = KINDS[fields["kind"]]
        covered = sum((1 << place.width) - 1 << place.offset for place in places.values())
        packets += [
            Packet(fields, more_bits=1 << bit)
            for bit in range(8 * header_bytes(fields["kind"]))
            if not covered >> bit & 1
        ]
    packets += [
        Packet(load(MAP, 0, 3) | {"kind": kind}) for kind in (0, 5, 6, 9, 10, 12, 66, 130, 255)
    ]
    return packets


def make_run(
    params: AcceleratorParams, packets: Sequence[Packet], seed: int, source: str, answers: str
) -> tuple[ReaderRun, list[list[int]]]:
    rng = seeded(params.name, seed)
    texts = [packet.words(params, rng) for packet in packets]
    words = [word for text in texts for word in text]
    cycles = (
        len(words) * (8 if (source, answers) != ("none", "none") else 2) + 60 * len(texts) + 200
    )
    run = ReaderRun(params, words, source, answers, 12, pause_seed(seed), cycles)
    return run, texts


def make_runs(params: AcceleratorParams) -> dict[str, list[tuple[ReaderRun, list[list[int]]]]]:
    """Return runs by what they are about."""
    rng = seeded(params.name)
    runs: dict[str, list[tuple[ReaderRun, list[list[int]]]]] = {}

    def add(about: str, packets: Sequence[Packet], source: str, answers: str, **more: Any) -> None:
        run, texts = make_run(params, packets, len(runs) * 1000 + len(about), source, answers)
        run = replace(run, cycles=run.cycles + 100 * len(more.get("clears", ())), **more)
        runs.setdefault(about, []).append((run, texts))

    for source in PAUSES:
        for answers in PAUSES:
            add("good", good_packets(params, rng), source, answers)
    long = [Packet(code(params, bank=bank)) for bank in range(params.code_banks)]
    for number in range(5):
        wide = number & 1
        long.append(
            Packet(
                matrix(
                    params,
                    wide_starts=wide,
                    column_bits=0 if wide else 3,
                    payload_words=payload_unit(params) * -(-40 // payload_unit(params)),
                )
            )
        )
        long.append(Packet(load(MAP, 0, 3 + number)))
    add("pace", long, "none", "none", judging=0)
    # What is wrong, each behind a code and a good matrix, and cleared a few cycles later.
    setup = [Packet(code(params)), Packet(matrix(params))]
    keeping = [{"keep_activations": 1, "load_activations": load} for load in (1, 0, 0)]
    keeping += [{"load_activations": 1}, {"keep_activations": 1}]
    add(
        "headers",
        [
            # Results can be kept behind a matrix that keeps its own.
            *(setup[0], *(Packet(matrix(params, **kept)) for kept in keeping)),
            *(one for packet in broken_headers(params) for one in (setup[0], packet)),
        ],
        "none",
        "none",
        recover=3,
    )
    faults = []
    for packet in (
        Packet(code(params)),
        Packet(load(MAP, 2, 9)),
        Packet(load(BIAS, 2, 9)),
        Packet(matrix(params, payload_words=3 * payload_unit(params))),
        Packet(matrix(params, wide_starts=1, column_bits=0)),
    ):
        length = len(packet.words(params, rng))
        head = whole_words(header_bytes(packet.fields["kind"]), params)
        wrong = [replace(packet, cut=cut) for cut in range(1, length)]
        wrong += [replace(packet, extra=extra) for extra in (1, 2, 7)]
        wrong += [
            replace(packet, flip=((word, rng.randrange(params.bus_bits)),))
            for word in range(head, length)
        ]
        wrong += [replace(packet, flip=((length - 1, bit),)) for bit in (0, 31)]
        wrong.append(replace(packet, flip=((length - 1, params.bus_bits - 1),)))
        if packet.fields["kind"] == MATRIX:
            # A wrong header that is also cut, and one that is cut first.
            bad = {**packet.fields, "rows": 0}
            wrong += [Packet(bad, cut=cut) for cut in range(1, head + 3)]
        faults += [[*setup, one] for one in wrong]
    for number, pauses in enumerate((("none",) * 2, ("random",) * 2, ("bursts", "alternating"))):
        some = faults if IS_FULL or number == 0 else faults[number::3]
        add("faults", [one for fault in some for one in fault], *pauses, recover=7)
    # Matrices that turn out wrong only later, also while another error is being found.
    for seed in range(12):
        packets = []
        for _ in range(6):
            packets += [Packet(code(params)), *(Packet(matrix(params)) for _ in range(3))]
            packets += [Packet(load(MAP, 0, 2)), replace(rng.choice(faults)[-1])]
        late = {
            number: (rng.randint(5, 8), rng.getrandbits(32)) for number in rng.sample(range(15), 4)
        }
        pattern = rng.choice(list(PAUSES))
        add("late", packets, pattern, "random" if seed % 2 else "none", late=late, recover=seed)
    # A clear in every cycle of a stretch that holds an error, and several of them.
    stretch = [*setup, Packet(load(BIAS, 0, 4)), Packet(matrix(params), extra=2), *setup, setup[1]]
    length = sum(len(packet.words(params, rng)) for packet in stretch)
    every = (1 if params.bus_bits in (32, 128) else 3) * (1 if IS_FULL else 2)
    for at in range(8, length + 50, every):
        add("clears", stretch, "none", "none", clears=(at,), recover=11)
    for _ in range(30):
        clears = tuple(rng.sample(range(6 * length), 5))
        packets = [*stretch, *stretch]
        add("clears", packets, rng.choice(list(PAUSES)), "random", clears=clears, recover=4)
    return runs


RUNS = {name: make_runs(params) for name, params in VARIANTS.items()}
ABOUT = ("good", "pace", "headers", "faults", "late", "clears")


@pytest.fixture(scope="module")
def logs() -> dict[str, list[list[ReaderCycle]]]:
    members = {name: PacketReader(params) for name, params in VARIANTS.items()}
    jobs = {name: [run for about in ABOUT for run, _ in own[about]] for name, own in RUNS.items()}
    verilog = bank_verilog(members, "readers")
    return run_bench(verilog, "readers", "egret_sim.benches.central", jobs)


def select(
    logs: dict[str, list[list[ReaderCycle]]], name: str, about: str
) -> list[tuple[ReaderRun, list[list[int]], list[ReaderCycle]]]:
    before = sum(len(RUNS[name][other]) for other in ABOUT[: ABOUT.index(about)])
    own = RUNS[name][about]
    return [
        (run, texts, log)
        for (run, texts), log in zip(own, logs[name][before : before + len(own)], strict=True)
    ]


def stretches(log: Sequence[ReaderCycle]) -> list[list[ReaderCycle]]:
    """Cut a log behind every clear."""
    cuts = [0, *(number + 1 for number, cycle in enumerate(log) if cycle.clear), len(log)]
    return [list(log[first:last]) for first, last in pairwise(cuts)]


def check(
    name: str, run: ReaderRun, texts: list[list[int]], log: list[ReaderCycle]
) -> Counter[str]:
    """Compare a log with what its packets should have done; return what was met."""
    params = VARIANTS[name]
    met: Counter[str] = Counter()
    where = f"{name}, source {run.source}, answers {run.answers}, seed {run.seed}, {run.clears=}"
    words = [word for text in texts for word in text]
    ends = [number for number, word in enumerate(words) if word >> params.bus_bits]
    taken = begun = 0
    parts = stretches(log)
    for number, part in enumerate(parts):
        at = f"{where}: stretch {number}"
        cleared = number + 1 < len(parts)
        # A packet that a clear cuts in two is discarded.
        skipped = sum(end < taken for end in ends)
        if taken and words[taken - 1] >> params.bus_bits == 0:
            skipped += 1
        expected = expect(texts[skipped:], params, run.late, begun)
        found = happened(part, params)
        for one, wanted in zip(found, expected.events, strict=False):
            assert agrees(one, wanted), f"{at}: found {one}, expected {wanted}"
        assert len(found) <= len(expected.events), at
        errors = [(cycle.error, cycle.position) for cycle in part]
        rejects = [index for index, cycle in enumerate(part) if cycle.reject]
        halted = [cycle.halted for cycle in part]
        if not cleared:
            assert taken + sum(cycle.word >= 0 for cycle in part) == len(words), at
            assert bool(rejects) == (expected.error != (0, 0)), at
            if not expected.late:
                assert len(found) == len(expected.events), at
        if expected.error == (0, 0):
            assert set(errors) == {(0, 0)}, at
        assert not any(cycle.payload_word != (cycle.payload >= 0) for cycle in part), at
        assert not any(cycle.hasty for cycle in part), at
        assert all(cycle.ready == (cycle.word >= 0) for cycle in part if cycle.offered), at
        if rejects:
            (reject,) = rejects
            met[ErrorKind(expected.error[0]).name] += 1
            # The report leaves once, when it may; the error holds, and everything is discarded.
            assert set(errors[reject:]) == {expected.error}, at
            assert not part[reject].sender_busy, at
            assert part[reject - 1].cancel or part[reject - 1].sender_busy, at
            assert all(cycle.ready or cycle.clear for cycle in part[reject + 1 :]), at
            assert sum(cycle.cancel for cycle in part[:reject]) == 1, at
            # What was good is finished, and nothing else.
            assert sum(cycle.retired for cycle in part) == expected.passed, at
        # From giving the packet up on, also while its report waits.
        aborts = [index for index, cycle in enumerate(part) if cycle.cancel and not cycle.clear]
        begins = aborts[0] + 1 if aborts else len(part)
        assert not any(halted[:begins]), at
        assert all(halted[begins:]), at
        if number:
            # The row memory is brought to zeros before anything else.
            assert part[0].wipe, at
            assert not any(cycle.word >= 0 for cycle in part if cycle.wipe), at
        for cycle in part[:-1]:
            assert not cycle.wipe or cycle.error == 0, at
        if cleared:
            last = part[-1]
            assert last.cancel, at
            assert last.word < 0, at
            assert (last.passed, last.matrix, last.code, last.section) == (0, -1, -1, -1), at
            met[f"clear {state_of(part)}"] += 1
        taken += sum(cycle.word >= 0 for cycle in part)
        begun += sum(cycle.matrix >= 0 for cycle in part)
    return met


def state_of(part: list[ReaderCycle]) -> str:
    """Name what was going on in the last cycle of a stretch."""
    last = part[-1]
    if last.wipe:
        return "wipe"
    if last.halted:
        return "halted"
    if last.error:
        return "reporting"
    moved = [cycle for cycle in part if cycle.word >= 0]
    if not moved:
        return "fresh"
    if moved[-1].payload >= 0:
        return "payload"
    return "body" if moved[-1].body >= 0 else "other"


@pytest.mark.parametrize("about", [about for about in ABOUT if about != "pace"])
@pytest.mark.parametrize("name", VARIANTS)
def test_reader(name: str, about: str, logs: dict[str, list[list[ReaderCycle]]]) -> None:
    met: Counter[str] = Counter()
    for run, texts, log in select(logs, name, about):
        met += check(name, run, texts, log)
    wanted = {
        "good": set(),
        "headers": {"DESCRIPTOR"},
        "faults": {"DESCRIPTOR", "TRUNCATED", "OVERRUN", "CRC"},
        "late": {"ACTIVATIONS", "PREFIX", "INDEX", "ROW"},
        "clears": {"OVERRUN"}
        | {
            f"clear {state}"
            for state in ("wipe", "halted", "reporting", "body", "payload", "other")
        },
    }[about]
    assert {what for what in wanted if not met[what]} == set()


@pytest.mark.parametrize("name", VARIANTS)
def test_pace(name: str, logs: dict[str, list[list[ReaderCycle]]]) -> None:
    """A word a cycle, and one cycle in each packet in which its header is checked."""
    ((run, texts, log),) = select(logs, name, "pace")
    check(name, run, texts, log)
    cycles = [number for number, cycle in enumerate(log) if cycle.word >= 0]
    at = 0
    for number, text in enumerate(texts):
        own = cycles[at : at + len(text)]
        assert own[-1] - own[0] + 1 == len(text) + 1, f"packet {number}"
        if at:
            assert own[0] == cycles[at - 1] + 1, f"packet {number}"
        at += len(text)
    reading = [cycle.reading for cycle in log[cycles[0] : cycles[-1] + 1]]
    assert all(reading)
    assert not any(cycle.reading for cycle in log[cycles[-1] + 1 :])
