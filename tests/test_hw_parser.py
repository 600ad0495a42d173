"""The parsers alone, in logic and as microcode, against codewords cut out of strings of bits."""

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import bitstring
import pytest
from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tests.run_options import seeded

from egret.params import CODE_NAMES, AcceleratorParams
from egret_hw.layouts import code_layout, code_write_layout
from egret_hw.microcode import MicrocodeParser, MicrocodeWriter
from egret_hw.parser import Parser, UnrolledParser
from egret_sim.bank import bank_verilog
from egret_sim.benches.parser import Cycle, Seen
from egret_sim.runner import run_bench

MODES = ("free", "gaps", "bubbles")
EXP_GOLOMB, RUNS, TABLES = CODE_NAMES

# Indices 0 to 9, from the paper's table.
PAPER = {
    0: "1 010 011 00100 00101 00110 00111 0001000 0001001 0001010",
    1: "10 11 0100 0101 0110 0111 001000 001001 001010 001011",
    2: "100 101 110 111 01000 01001 01010 01011 01100 01101",
    3: "1000 1001 1010 1011 1100 1101 1110 1111 010000 010001",
}


@dataclass(frozen=True)
class Variant:
    """A parser under test."""

    width: int
    cut: int
    limit: int
    codes: tuple[str, ...]
    microcode: bool = False

    @property
    def slots(self) -> int:
        return self.width // self.cut

    @property
    def params(self) -> AcceleratorParams:
        return AcceleratorParams(
            name="parser",
            lanes=1,
            parser_bits=self.width,
            parser_cut=self.cut,
            bus_bits=32,
            parser="microcode" if self.microcode else "logic",
            codes=self.codes,
            suffix_limit=self.limit,
            map_depth=16,
        )

    def component(self) -> wiring.Component:
        if self.microcode:
            return Microcoded(self.params)
        if self.width > 16:
            return Logic(UnrolledParser(self.width, self.cut, self.limit, self.codes), self)
        return Logic(Parser(self.params), self)


VARIANTS = {
    "w1": Variant(1, 1, 10, CODE_NAMES),
    "w1_eg": Variant(1, 1, 8, (EXP_GOLOMB,)),
    "w4": Variant(4, 4, 10, CODE_NAMES),
    "w4_eg": Variant(4, 4, 10, (EXP_GOLOMB,)),
    "w4_eg_cut2": Variant(4, 2, 4, (EXP_GOLOMB,)),
    "w4_run": Variant(4, 2, 9, (EXP_GOLOMB, RUNS)),
    "w4_table": Variant(4, 4, 11, (EXP_GOLOMB, TABLES)),
    "w8": Variant(8, 4, 12, CODE_NAMES),
    "w8_run": Variant(8, 4, 12, (EXP_GOLOMB, RUNS)),
    "w8_cut2": Variant(8, 2, 5, CODE_NAMES),
    "w16_cut2": Variant(16, 2, 4, CODE_NAMES),
    "w64_eg": Variant(64, 4, 10, (EXP_GOLOMB,)),
    "w64_eg_cut2": Variant(64, 2, 12, (EXP_GOLOMB,)),
    "m4": Variant(4, 2, 10, CODE_NAMES, microcode=True),
    "m4_cut4": Variant(4, 4, 9, CODE_NAMES, microcode=True),
    "m8_cut4": Variant(8, 4, 12, CODE_NAMES, microcode=True),
    "m16": Variant(16, 2, 4, (EXP_GOLOMB, TABLES), microcode=True),
}


def bench_ports(variant: Variant) -> dict[str, wiring.Member]:
    """The ports of both parsers, and of the microcode's writer."""
    one = ("enable", "start", "drain", "i_valid", "i_first", "i_last", "i_parity", "i_bank")
    return {
        **{name: In(1) for name in one},
        "codes": In(data.ArrayLayout(code_layout(), 2)),
        "code_write": In(code_write_layout()),
        "i_bits": In(variant.width),
        "turn": Out(5),
        "o_slot": Out(5),
        **{name: Out(1) for name in ("busy", "o_valid", "o_first", "o_last", "o_parity")},
        **{name: Out(variant.width) for name in ("o_bits", "o_end", "o_event")},
    }


def join(m: Module, outer: wiring.Component, parser: wiring.Component) -> None:
    """Connect the ports that have the same name."""
    for name, member in parser.signature.members.items():
        if name in outer.signature.members:
            inside, outside = getattr(parser, name), getattr(outer, name)
            m.d.comb += inside.eq(outside) if member.flow == In else outside.eq(inside)


class Logic(wiring.Component):
    """A parser in logic behind the bench's ports."""

    def __init__(self, parser: wiring.Component, variant: Variant) -> None:
        self._parser = parser
        super().__init__(bench_ports(variant))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.parser = self._parser
        join(m, self, self._parser)
        return m


class Microcoded(wiring.Component):
    """A microcoded parser and its writer behind the bench's ports."""

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        super().__init__(
            bench_ports(Variant(params.parser_bits, params.parser_cut, params.suffix_limit, ()))
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.parser = parser = MicrocodeParser(self._params)
        m.submodules.writer = writer = MicrocodeWriter(self._params)
        join(m, self, parser)
        m.d.comb += [
            writer.start.eq(self.start),
            writer.settings.eq(self.codes[0]),
            writer.code_write.eq(self.code_write),
            parser.microcode_write.eq(writer.microcode_write),
            self.busy.eq(writer.busy),
        ]
        return m


@dataclass(frozen=True)
class Table:
    """Classes of codewords: suffix bits, and what a codeword stands for beyond its number."""

    golomb: bool
    suffix_bits: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def last(self) -> int:
        return len(self.suffix_bits) - 1


@dataclass(frozen=True)
class Code:
    run_form: bool
    dense: bool
    level: Table
    run: Table


EMPTY = Table(False, (0,), (0,))
WRITER_CYCLES = 1035


def golomb_table(order: int, limit: int) -> Table:
    classes = limit - order + 1
    return Table(True, tuple(range(order, limit + 1)), (-(2**order),) * classes)


def class_table(suffix_bits: tuple[int, ...]) -> Table:
    """Codewords number 0, 1, 2 and so on, class after class."""
    offsets, base = [], 0
    for number, bits in enumerate(suffix_bits):
        offsets.append(base - (2**bits if number < len(suffix_bits) - 1 else 0))
        base += 2**bits
    return Table(False, suffix_bits, tuple(offsets))


def random_table(rng: random.Random, limit: int, golomb: bool) -> Table:
    if golomb:
        return golomb_table(rng.randint(0, min(7, limit)), limit)
    last = rng.choice((0, 1, 2, 3, rng.randrange(16), 15))
    largest = rng.choice((1, 3, limit))
    bits = [rng.randint(0, largest) for _ in range(last + 1)]
    bits[-1] = rng.choice((bits[-1], 0, limit))
    if last == 0 and bits[0] == 0:
        bits[0] = rng.randint(1, limit)
    return class_table(tuple(bits))


def random_code(rng: random.Random, variant: Variant, number: int) -> Code:
    """A code that the parser knows; numbers that follow each other lead to every kind of them."""
    form = number % 3 if RUNS in variant.codes else 1 + number % 2
    golomb = TABLES not in variant.codes or bool(number // 3 % 2)
    level = random_table(rng, variant.limit, golomb)
    if form:
        return Code(False, form == 2, level, EMPTY)
    golomb = TABLES not in variant.codes or rng.random() < 0.5
    return Code(True, False, level, random_table(rng, variant.limit, golomb))


@dataclass
class Reading:
    """What docs/format.md says of a substream."""

    ends: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    bad: int | None = None


def read_substream(code: Code, text: str) -> Reading:
    reading = Reading()
    begin, run = 0, code.run_form
    while True:
        table = code.run if run else code.level
        rest = text[begin:]
        zeros = len(rest) - len(rest.lstrip("0"))
        if not table.golomb and zeros >= table.last:
            zeros = table.last
            suffix_at = begin + zeros
        elif zeros == len(rest):
            return reading
        elif zeros > table.last:
            reading.bad = begin + zeros
            return reading
        else:
            suffix_at = begin + zeros + 1
        bits = table.suffix_bits[zeros]
        suffix = text[suffix_at : suffix_at + bits]
        if len(suffix) < bits:
            return reading
        after = suffix_at + bits
        number = (0 if suffix_at == begin + zeros else 2**bits) + int("0" + suffix, 2)
        index = number + table.offsets[zeros]
        reading.ends.append(after - 1)
        if not run and (code.run_form or code.dense or index != 0):
            reading.events.append(after - 1)
        reading.words.append(text[begin:after])
        reading.indices.append(index)
        begin, run = after, code.run_form and not run


def codeword(table: Table, rng: random.Random) -> str:
    number = min(rng.randrange(16), rng.randrange(16), table.last)
    bits = table.suffix_bits[number]
    stop = "1" if table.golomb or number < table.last else ""
    return "0" * number + stop + "".join(rng.choice("01") for _ in range(bits))


def random_text(rng: random.Random, code: Code, length: int) -> str:
    """Codewords, any bits, or ever longer runs of zeros."""
    kind = rng.choice(("words", "words", "first", "bits", "zeros"))
    text, run = "", code.run_form
    while len(text) < length:
        table = code.run if run else code.level
        run = code.run_form and not run
        if kind == "words":
            text += codeword(table, rng)
        elif kind == "first":
            # Codewords near the first one of class 0.
            text += ("" if table.last == 0 else "1") + "0" * table.suffix_bits[0]
            text += rng.choice(("", "", codeword(table, rng)))
        elif kind == "bits":
            text += rng.choice("01")
        else:
            text += "0" * rng.randrange(1 + len(text) // 4) + "1"
    return text[:length]


@dataclass
class Matrix:
    """Bits of every slot, and the code to be loaded before them, or already loaded."""

    code: Code
    bank: int
    load: bool
    mode: str
    texts: list[str]
    readings: list[Reading]


@dataclass
class Plan:
    """Cycles to play; which beat (matrix, round, slot) enters in each."""

    matrices: list[Matrix]
    cycles: list[Cycle]
    entering: list[tuple[int, int, int] | None]


class Pipeline:
    """What is inside a parser: a register, the ring of C stages, the outputs."""

    def __init__(self, slots: int) -> None:
        self.inside: list[tuple[int, int, int] | None] = [None] * (slots + 2)
        self._amid = False
        self._drain = 0

    def enable(self, entering: tuple[int, int, int] | None, last: bool, drain: int) -> None:
        """Pass an enabled cycle; `last` when the last beat of a matrix enters."""
        waiting, *ring, _ = self.inside
        shown = ring[-1]
        if waiting or not self._amid or self._drain or len(ring) == 1:
            ring = [waiting, *ring[:-1]]
        else:
            ring[-1] = None
        self.inside = [entering, *ring, shown]
        self._drain = drain
        if entering:
            self._amid = not last


def code_number(code: Code) -> int:
    level, run = code.level, code.run
    fields = {
        "run_form": int(code.run_form),
        "dense": int(code.dense),
        "level_golomb": int(level.golomb),
        "run_golomb": int(run.golomb),
        "level_last": level.last,
        "run_last": run.last,
        "level_order": level.suffix_bits[0],
        "run_order": run.suffix_bits[0],
        "level_offset": level.offsets[0],
        "run_offset": run.offsets[0],
    }
    return code_layout().const(fields).as_bits()


def code_writes(code: Code, bank: int) -> list[int]:
    """Entries in a CODE packet's order."""
    writes = []
    for run, table in enumerate((code.level, code.run)):
        for number in range(16):
            used = number <= table.last and (code.run_form or not run)
            fields = {
                "enable": 1,
                "bank": bank,
                "run": run,
                "number": number,
                "suffix_bits": table.suffix_bits[number] if used else 0,
                "offset": table.offsets[number] % 4096 - 2048 if used else 0,
            }
            writes.append(code_write_layout().const(fields).as_bits())
    return writes


def make_matrices(name: str) -> list[Matrix]:
    variant = VARIANTS[name]
    rng = seeded("matrices of", name)
    matrices: list[Matrix] = []
    code, bank = Code(False, False, EMPTY, EMPTY), 0
    for number in range(12 if variant.microcode else 24):
        load = variant.microcode or number < len(PAPER) or rng.random() < 0.7
        if load:
            bank = 0 if variant.microcode else 1 - bank
            code = random_code(rng, variant, number)
        rounds = rng.choice((1, 2, 3)) if rng.random() < 0.3 else 10 + 120 // variant.width
        paper = PAPER.get(number, "").replace(" ", "")
        if paper:
            code = Code(False, False, golomb_table(number, variant.limit), EMPTY)
            rounds += len(paper) // variant.width
        length = rounds * variant.width
        texts = [random_text(rng, code, length) for _ in range(variant.slots)]
        texts[0] = (paper + texts[0])[:length]
        readings = [read_substream(code, text) for text in texts]
        matrices.append(Matrix(code, bank, load, MODES[number % len(MODES)], texts, readings))
    return matrices


@cache
def make_plan(name: str) -> Plan:
    variant = VARIANTS[name]
    width, slots = variant.width, variant.slots
    rng = seeded("plan of", name)
    matrices = make_matrices(name)
    plan = Plan(matrices, [], [])
    beats = [
        (number, beat, slot)
        for number, matrix in enumerate(matrices)
        for beat in range(len(matrix.texts[0]) // width)
        for slot in range(slots)
    ]
    # In the end a matrix breaks off.
    del beats[-1 - len(matrices[-1].texts[0]) // width * slots // 2 :]
    pipeline = Pipeline(slots)
    settings = [0, 0]
    writes: list[tuple[int, int]] = []
    ready, waiting = 0, 0
    while beats or any(pipeline.inside):
        while ready < len(matrices) and not matrices[ready].load:
            ready += 1
        write, start = 0, 0
        if writes:
            if rng.random() < 0.8:
                write, start = writes.pop(0)
                waiting = WRITER_CYCLES if start and variant.microcode else 0
                ready += start
        elif waiting:
            waiting -= 1
        elif ready < len(matrices):
            # A code may be replaced when every matrix that uses it has left the pipeline.
            bank, code = matrices[ready].bank, matrices[ready].code
            oldest = min(beat[0] for beat in (*pipeline.inside, *beats[:1]) if beat)
            if all(matrices[number].bank != bank for number in range(oldest, ready)):
                settings[bank] = code_number(code)
                writes = [(entry, 0) for entry in code_writes(code, bank)] + [(0, 1)]
        mode = matrices[beats[0][0]].mode if beats else "gaps"
        enable = mode == "free" or rng.random() < 0.7
        drain = int(not beats)
        enters = bool(beats) and beats[0][0] < ready and not waiting
        enters = enters and (mode != "bubbles" or rng.random() < 0.7)
        first, last, parity, bank, bits = (rng.getrandbits(n) for n in (1, 1, 1, 1, width))
        ends = False
        if enters:
            number, beat, slot = beats[0]
            text = matrices[number].texts[slot]
            first, last = int(beat == 0), int((beat + 1) * width == len(text))
            ends = bool(last) and slot == slots - 1
            parity, bank = number % 2, matrices[number].bank
            bits = int(text[beat * width : (beat + 1) * width], 2)
        plan.cycles.append(
            Cycle(
                enable=int(enable),
                codes=settings[0] | settings[1] << code_layout().size,
                code_write=write,
                start=start,
                drain=drain,
                i_valid=int(enters),
                i_first=first,
                i_last=last,
                i_parity=parity,
                i_bank=bank,
                i_bits=bits,
            )
        )
        plan.entering.append(beats.pop(0) if enters and enable else None)
        if enable:
            pipeline.enable(plan.entering[-1], ends, drain)
    return plan


@pytest.fixture(scope="module")
def recordings() -> dict[str, list[Seen]]:
    members = {name: variant.component() for name, variant in VARIANTS.items()}
    jobs = {name: make_plan(name).cycles for name in VARIANTS}
    seen: dict[str, list[Seen]] = run_bench(
        bank_verilog(members, "parsers"), "parsers", "egret_sim.benches.parser", jobs
    )
    return seen


def marks(reading: Reading, begin: int, width: int) -> tuple[int, int]:
    """`o_end` and `o_event` of the beat that begins at a bit."""
    events = [*reading.events, *([] if reading.bad is None else [reading.bad])]
    end, event = (
        sum(1 << at - begin for at in places if begin <= at < begin + width)
        for places in (reading.ends, events)
    )
    return end, event


@pytest.mark.parametrize("name", VARIANTS)
def test_marks(name: str, recordings: dict[str, list[Seen]]) -> None:
    variant, plan = VARIANTS[name], make_plan(name)
    width, slots = variant.width, variant.slots
    pipeline = Pipeline(slots)
    turn = 0
    before = None
    for at, (cycle, entering, seen) in enumerate(
        zip(plan.cycles, plan.entering, recordings[name], strict=True)
    ):
        where = f"{name}, cycle {at}"
        assert seen.turn == turn, where
        if before is not None:
            assert seen._replace(busy=0) == before._replace(busy=0), f"{where}: not enabled"
        leaving = pipeline.inside[-1]
        assert seen.o_valid == (leaving is not None), where
        if leaving is not None:
            number, beat, slot = leaving
            matrix = plan.matrices[number]
            where = f"{where}: matrix {number}, beat {beat}, slot {slot}, {matrix.code}"
            text = matrix.texts[slot]
            bits = text[beat * width : (beat + 1) * width]
            assert f"{seen.o_bits:0{width}b}"[::-1] == bits, where
            assert seen.o_slot == slot, where
            assert seen.o_first == (beat == 0), where
            assert seen.o_last == ((beat + 1) * width == len(text)), where
            assert seen.o_parity == number % 2, where
            expected = marks(matrix.readings[slot], beat * width, width)
            assert (seen.o_end, seen.o_event) == expected, f"{where}: {text[: beat * width]} {bits}"
        before = None if cycle.enable else seen
        if cycle.enable:
            ends = bool(entering) and bool(cycle.i_last) and turn == slots - 1
            pipeline.enable(entering, ends, cycle.drain)
            turn = (turn + 1) % slots if entering else turn
    assert not any(pipeline.inside)


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].microcode])
def test_writer(name: str, recordings: dict[str, list[Seen]]) -> None:
    cycles = make_plan(name).cycles
    busy = [seen.busy for seen in recordings[name]]
    starts = [at for at, cycle in enumerate(cycles) if cycle.start]
    assert len(starts) > len(PAPER)
    for start in starts:
        assert busy[start : start + WRITER_CYCLES + 1] == [0] + [1] * (WRITER_CYCLES - 1) + [0]
    assert sum(busy) == len(starts) * (WRITER_CYCLES - 1)


def test_plans() -> None:
    """The plans hold what they are meant to."""
    found: Counter[str] = Counter()
    for name, variant in VARIANTS.items():
        for matrix in make_plan(name).matrices:
            code = matrix.code
            for slot, reading in enumerate(matrix.readings):
                kind = "runs" if code.run_form else "dense" if code.dense else "levels"
                table = "golomb" if code.level.golomb else "table"
                found[f"{kind} {table} {name[0]}"] += len(reading.ends)
                found["too long"] += reading.bad is not None
                # Read on after the error, more codewords would be found.
                found["dead"] += reading.bad is not None and reading.bad + 40 < len(
                    matrix.texts[slot]
                )
                for word in reading.words:
                    found[f"longest {variant.limit}"] = max(
                        len(word), found[f"longest {variant.limit}"]
                    )
            found["one class"] += code.level.last == 0
            found["bare"] += not code.level.golomb and code.level.suffix_bits[-1] == 0
    for kind in ("runs", "levels", "dense"):
        for table in ("golomb", "table"):
            for parser in "wm":
                assert found[f"{kind} {table} {parser}"] > 20, (kind, table, parser, found)
    for feature in ("too long", "dead", "one class", "bare"):
        assert found[feature] > 10, (feature, found)
    assert found["longest 12"] >= 25


@pytest.mark.parametrize("order", PAPER)
def test_paper(order: int) -> None:
    """The reference itself reads the paper's table, and bitstring's codewords of order 0."""
    code = Code(False, False, golomb_table(order, 10), EMPTY)
    reading = read_substream(code, PAPER[order].replace(" ", ""))
    assert reading.words == PAPER[order].split()
    assert reading.indices == list(range(10))
    if order == 0:
        assert [bitstring.Bits(bin=word).ue for word in reading.words] == reading.indices
