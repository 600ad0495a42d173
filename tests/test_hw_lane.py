"""The lane: sums of rows worked out from weights, whose codewords are plain strings of bits."""

import random
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
from tests.run_options import seeded

from egret.params import AcceleratorParams
from egret_sim.bank import bank_verilog
from egret_sim.benches.lane import Code, LaneJob, LaneRig, MatrixRun, Outcome, Session
from egret_sim.runner import run_bench

SMALL = AcceleratorParams(
    name="small",
    lanes=1,
    parser_bits=4,
    parser_cut=4,
    bus_bits=32,
    suffix_limit=6,
    map_depth=32,
    weight_bits=7,
    activation_depth=16,
    row_depth=64,
    input_depth=4,
    block_depth=4,
)
VARIANTS = {
    "xs": replace(
        SMALL,
        parser_bits=1,
        parser_cut=1,
        codes=("eg-k",),
        input_depth=2,
        block_depth=2,
    ),
    "w4_eg": replace(SMALL, codes=("eg-k",), weight_bits=12, block_depth=2),
    "w4_run": replace(
        SMALL,
        codes=("eg-k", "eg-run"),
        suffix_limit=10,
        batch=2,
        input_depth=16,
        block_depth=16,
    ),
    "w4_all": replace(SMALL, activation_depth=32),
    "w4_micro": replace(SMALL, parser="microcode", input_depth=16, block_depth=16),
    "w8_micro": replace(SMALL, parser="microcode", parser_bits=8, suffix_limit=8),
    "w8_c4": replace(SMALL, parser_bits=8, parser_cut=2, batch=3, activation_columns=4),
}
SCENES = (
    "mixed",
    "sparse",
    "zeros",
    "dense",
    "column",
    "empty",
    "widest",
    "fillers",
    "prefix",
    "index",
    "many",
)
PAUSES = ("none", "random", "bursts", "alternating")


@dataclass(frozen=True)
class Table:
    """Classes of a code: (suffix bits, offset) each."""

    golomb: bool
    classes: list[tuple[int, int]]

    @cached_property
    def words(self) -> dict[int, str]:
        """Codewords of the symbols that have one."""
        found: dict[int, str] = {}
        for number, (suffix_bits, offset) in enumerate(self.classes):
            final = number == len(self.classes) - 1 and not self.golomb
            for suffix in range(2**suffix_bits):
                bits = f"{suffix:b}".zfill(suffix_bits) if suffix_bits else ""
                symbol = suffix + offset + (0 if final else 2**suffix_bits)
                found[symbol] = "0" * number + ("" if final else "1") + bits
        return found

    @property
    def symbols(self) -> list[int]:
        """Symbols that have a codeword."""
        return sorted(self.words)


@dataclass(frozen=True)
class Coding:
    """A code; `runs` is there in the run form."""

    dense: bool
    levels: Table
    runs: Table | None


def golomb(order: int, limit: int) -> Table:
    return Table(True, [(order + j, -(2**order)) for j in range(limit - order + 1)])


def random_table(rng: random.Random, limit: int, classes: int) -> Table:
    """Make classes whose symbols follow each other, with any suffix bits."""
    bits = [rng.randint(0, min(limit, 4)) for _ in range(classes)]
    if classes == 1:
        bits = [rng.randint(1, limit)]
    if rng.random() < 0.3:
        bits[-1] = limit
    base, found = 0, []
    for number, suffix_bits in enumerate(bits):
        final = number == classes - 1
        found.append((suffix_bits, base if final else base - 2**suffix_bits))
        base += 2**suffix_bits
    return Table(False, found)


def random_coding(rng: random.Random, params: AcceleratorParams, scene: str) -> Coding:
    def table() -> Table:
        if "eg-table" in params.codes and rng.random() < 0.7:
            return random_table(rng, params.suffix_limit, rng.choice((1, 2, 3, 5, 16)))
        return golomb(rng.randint(0, min(7, params.suffix_limit)), params.suffix_limit)

    run_form = "eg-run" in params.codes and rng.random() < 0.6
    dense = not run_form and (scene == "dense" or rng.random() < 0.2)
    return Coding(dense, table(), table() if run_form else None)


def as_code(coding: Coding) -> Code:
    """Return what the hardware is told; entries behind the last class repeat it."""

    def entries(table: Table | None) -> list[tuple[int, int]]:
        classes = table.classes if table else [(0, 0)]
        return classes + [classes[-1]] * (16 - len(classes))

    runs = coding.runs
    settings = {
        "run_form": int(runs is not None),
        "dense": int(coding.dense),
        "level_golomb": int(coding.levels.golomb),
        "run_golomb": int(runs is not None and runs.golomb),
        "level_last": len(coding.levels.classes) - 1,
        "run_last": len(runs.classes) - 1 if runs else 0,
    }
    return Code(settings, entries(coding.levels), entries(runs))


@dataclass
class Stream:
    """A substream, and what must come of it."""

    text: str
    sums: list[list[int]]
    multiplies: int
    bad_prefix: bool = False
    bad_index: bool = False


class Row:
    """Adds a substream's weights up, row by row."""

    def __init__(self, column: int, activations: list[list[int]]) -> None:
        self._activations = activations
        self._column = column
        self.rows = [[0] * len(activations[0])]

    def place(self, weight: int) -> None:
        """Place the next weight."""
        if self._column == len(self._activations):
            self._column = 0
            self.rows.append([0] * len(self.rows[0]))
        for vector, activation in enumerate(self._activations[self._column]):
            self.rows[-1][vector] += weight * activation
        self._column += 1


def make_stream(
    rng: random.Random,
    scene: str,
    coding: Coding,
    values: list[int] | None,
    entries: int,
    start: int,
    activations: list[list[int]],
    longest: int,
) -> Stream:
    """Make a substream of random weights; `values` are those of the indices, None for zigzag."""
    runs = coding.runs
    symbols = [symbol for symbol in coding.levels.symbols if symbol <= entries]
    in_use = [symbol for symbol in symbols if symbol < entries]
    filler = entries if entries in symbols else None
    zero = 0 if runs is None and not coding.dense else None
    levels = [symbol for symbol in in_use if symbol != zero]
    row = Row(start, activations)
    stream = Stream("", row.rows, 0)
    wrong = coding.levels.golomb and (runs is None or runs.golomb)

    def weight_of(index: int) -> int:
        if index in (zero, entries):
            return 0
        if values is not None:
            return values[index]
        number = index + (runs is not None)
        return number // 2 if number % 2 == 0 else -(number + 1) // 2

    def write(index: int) -> None:
        stream.text += coding.levels.words[index]
        if index <= entries:
            row.place(weight_of(index))
        else:
            row.place(0)
            stream.bad_index = True
        stream.multiplies += index != zero and index < entries

    density = {"sparse": 0.05, "zeros": 0.0, "widest": 0.0}.get(scene, rng.choice((0.1, 0.4, 0.9)))
    count = 0 if scene == "empty" else rng.randint(1, 120)
    while count > 0 and len(stream.text) < longest:
        count -= 1
        if scene in ("prefix", "index") and rng.random() < 0.03:
            beyond = [symbol for symbol in coding.levels.symbols if symbol > entries]
            if scene == "prefix" and wrong:
                if runs:
                    first = rng.random() < 0.5
                    if first:
                        stream.text += runs.words[runs.symbols[0]]
                    table = coding.levels if first else runs
                else:
                    table = coding.levels
                stream.text += "0" * len(table.classes) + "1" + "1" * rng.randint(0, 20)
                stream.bad_prefix = True
                return stream
            if scene == "index" and beyond:
                if runs:
                    stream.text += runs.words[runs.symbols[0]]
                    for _ in range(runs.symbols[0]):
                        row.place(0)
                write(rng.choice(beyond))
                continue
        if runs:
            if not in_use and filler is None:
                break
            lengths = runs.symbols
            pick = min(lengths[-1], max(lengths[0], int(rng.expovariate(density + 0.01))))
            if scene == "dense":
                pick = lengths[0]
            if scene == "widest" and rng.random() < 0.1:
                pick = lengths[-1]
            length = max(symbol for symbol in lengths if symbol <= pick)
            stream.text += runs.words[length]
            for _ in range(length):
                row.place(0)
        use_filler = filler is not None and (scene == "fillers" or rng.random() < 0.02)
        if use_filler and filler is not None and (runs or rng.random() < 0.5):
            write(filler)
        elif levels and (runs or coding.dense or rng.random() < density):
            index = rng.choice(levels)
            if rng.random() < 0.6:
                index = min(levels, key=lambda symbol: len(coding.levels.words[symbol]))
            write(index)
        elif zero is not None and zero in symbols:
            # Long runs of zeros fill the counter of what is skipped.
            for _ in range(rng.choice((1, 1, 1, 5, 150)) if scene == "zeros" else 1):
                write(zero)
        else:
            write(rng.choice(symbols))
        if scene == "widest" and levels and rng.random() < 0.3 and runs is None:
            write(max(levels, key=lambda symbol: len(coding.levels.words[symbol])))
    return stream


def fill(rng: random.Random, coding: Coding, entries: int, text: str, bits: int) -> str:
    """Fill a substream up with what means nothing but zeros."""
    runs = coding.runs
    if coding.levels.golomb and (runs is None or runs.golomb):
        return text + "0" * (bits - len(text))
    index = entries if runs or coding.dense else 0
    word = coding.levels.words.get(index)
    if word is None:
        return ""
    if runs:
        word = runs.words[min(runs.symbols)] + word
    return (text + word * bits)[:bits]


@dataclass
class Case:
    """A session and what must come of its matrices: for each one its slots' streams."""

    session: Session
    expected: list[list[Stream]]


def make_matrix(
    rng: random.Random,
    params: AcceleratorParams,
    scene: str,
    codings: list[Coding],
    values: list[int],
) -> tuple[MatrixRun, list[Stream]] | None:
    bank = rng.randrange(len(codings))
    coding = codings[bank]
    columns = 1 if scene == "column" else rng.randint(1, params.activation_depth)
    if scene == "widest":
        columns = params.activation_depth
    zigzag = rng.random() < 0.3
    most = params.map_depth
    if zigzag:
        most = min(most, 2**params.weight_bits - 1)
    entries = rng.choice((most, rng.randint(1, most)))
    base = 0 if zigzag else rng.randint(0, params.map_depth - entries)
    largest = 127 if scene == "widest" else 20
    activations = [
        [rng.choice((-128, rng.randint(-largest, largest))) for _ in range(params.batch)]
        for _ in range(columns)
    ]
    starts = [rng.randrange(columns) for _ in range(params.slots)]
    table = None if zigzag else values[base : base + entries]
    streams = [
        make_stream(
            rng, scene, coding, table, entries, start, activations, 200 + 30 * params.parser_bits
        )
        for start in starts
    ]
    width = params.parser_bits
    rounds = max(1, -(-max(len(stream.text) for stream in streams) // width)) + rng.choice(
        (0, 0, 3)
    )
    texts = []
    for stream in streams:
        if stream.bad_prefix:
            padding = "".join(rng.choices("01", k=rounds * width))
            texts.append((stream.text + padding)[: rounds * width])
        else:
            texts.append(fill(rng, coding, entries, stream.text, rounds * width))
    if not all(len(text) == rounds * width for text in texts):
        return None
    beats = [
        int(text[at : at + width], 2) for at in range(0, rounds * width, width) for text in texts
    ]
    settings = {
        "zigzag": int(zigzag),
        "columns": columns,
        "map_base": base,
        "map_entries": entries,
    }
    positions = [start - 1 - columns for start in starts]
    return MatrixRun(bank, settings, positions, beats, activations), streams


def make_case(name: str, scene: str, number: int) -> Case:
    params = VARIANTS[name]
    rng = seeded(name, scene, number)
    codings = [random_coding(rng, params, scene) for _ in range(params.code_banks)]
    low, high = -(2 ** (params.weight_bits - 1)), 2 ** (params.weight_bits - 1) - 1
    values = [
        rng.choice((low, high)) if scene == "widest" else rng.randint(low, high)
        for _ in range(params.map_depth)
    ]
    count = {"many": 12, "empty": 6}.get(scene, 4)
    matrices: list[MatrixRun] = []
    expected: list[list[Stream]] = []
    while len(matrices) < count:
        made = make_matrix(rng, params, scene, codings, values)
        if made is None:
            codings = [random_coding(rng, params, scene) for _ in range(params.code_banks)]
            matrices, expected = [], []
            continue
        matrices.append(made[0])
        expected.append(made[1])
    session = Session(
        [as_code(coding) for coding in codings],
        values,
        matrices,
        beats=rng.choice(PAUSES),
        sums=rng.choice(PAUSES),
        others=rng.choice(PAUSES),
        seed=rng.randrange(1000),
    )
    return Case(session, expected)


def make_paced_case(name: str, pace: str) -> Case:
    """Make a long substream whose codewords need no more than a beat a cycle, and no pauses."""
    params = VARIANTS[name]
    rng = seeded(name, pace)
    columns = params.activation_depth
    if pace == "sparse":
        # A run and a level take 7 to 10 bits together.
        runs = golomb(2, params.suffix_limit)
        coding = Coding(False, golomb(1, params.suffix_limit), runs)
        pairs = [(run, level) for run in range(28) for level in range(14)]
        pairs = [
            (run, level)
            for run, level in pairs
            if 7 <= len(runs.words[run] + coding.levels.words[level]) <= 10
        ]
        words = [rng.choice(pairs) for _ in range(400)]
    else:
        # Five bits a weight: fours and sixes in any order.
        coding = Coding(True, golomb(3, params.suffix_limit), None)
        words = [(0, rng.choice((rng.randrange(8), rng.randrange(8, 24)))) for _ in range(400)]
    activations = [[rng.randint(-128, 127) for _ in range(params.batch)] for _ in range(columns)]
    row = Row(0, activations)
    text = ""
    for run, level in words:
        for _ in range(run):
            row.place(0)
        number = level + (pace == "sparse")
        row.place(number // 2 if number % 2 == 0 else -(number + 1) // 2)
        text += (coding.runs.words[run] if coding.runs else "") + coding.levels.words[level]
    width = params.parser_bits
    text += "0" * (-len(text) % width)
    beats = [int(text[at : at + width], 2) for at in range(0, len(text), width)]
    settings = {
        "zigzag": 1,
        "columns": columns,
        "map_base": 0,
        "map_entries": params.map_depth,
    }
    matrix = MatrixRun(0, settings, [-1 - columns], beats, activations)
    code = as_code(coding)
    session = Session([code] * params.code_banks, [], [matrix], "none", "none", "none", 1)
    return Case(session, [[Stream(text, row.rows, len(words))]])


LATENCY = 20
"""More cycles than a beat takes to become a sum, at the most."""
PACED = {
    ("w4_run", "sparse"),
    ("w4_micro", "sparse"),
    ("w4_micro", "dense"),
}
ROUNDS = 1
CASES = {
    (name, scene, number): make_case(name, scene, number)
    for name in VARIANTS
    for scene in SCENES
    for number in range(ROUNDS)
}
PACED_CASES = {(name, pace): make_paced_case(name, pace) for name, pace in sorted(PACED)}


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str, int], Outcome]:
    members = {name: LaneRig(params) for name, params in VARIANTS.items()}
    paced = {(name, f"paced {pace}", 0): case for (name, pace), case in PACED_CASES.items()}
    cases = {**CASES, **paced}
    jobs = {
        name: LaneJob(params, [case.session for key, case in cases.items() if key[0] == name])
        for name, params in VARIANTS.items()
    }
    played = run_bench(bank_verilog(members, "lanes"), "lanes", "egret_sim.benches.lane", jobs)
    order = {name: iter(recorded) for name, recorded in played.items()}
    return {key: next(order[key[0]]) for key in cases}


def without_zeros_at_end(rows: list[list[int]]) -> list[list[int]]:
    count = max((at + 1 for at, row in enumerate(rows) if any(row)), default=0)
    return rows[:count]


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", VARIANTS)
def test_sums(name: str, scene: str, outcomes: dict[tuple[str, str, int], Outcome]) -> None:
    for number in range(ROUNDS):
        case, outcome = CASES[name, scene, number], outcomes[name, scene, number]
        where = f"{name} {scene} {number}"
        assert not outcome.locked_up, where
        multiplies = 0
        for index, (sums, streams) in enumerate(zip(outcome.sums, case.expected, strict=True)):
            for slot, stream in enumerate(streams):
                here = f"{where} matrix {index} slot {slot} {case.session.matrices[index]}"
                assert bool(sums.bad_prefix >> slot & 1) == stream.bad_prefix, here
                assert bool(sums.bad_index >> slot & 1) == stream.bad_index, here
                rows = sums.rows[slot]
                assert without_zeros_at_end(rows) == without_zeros_at_end(stream.sums), here
                lasts = sums.lasts[slot]
                assert lasts == [0] * (len(lasts) - 1) + [1], here
                multiplies += stream.multiplies
        assert outcome.multiplies == multiplies, where


@pytest.mark.parametrize(("name", "pace"), sorted(PACED))
def test_takes_a_beat_every_cycle(
    name: str, pace: str, outcomes: dict[tuple[str, str, int], Outcome]
) -> None:
    case, outcome = PACED_CASES[name, pace], outcomes[name, f"paced {pace}", 0]
    (matrix,), (sums,) = case.session.matrices, outcome.sums
    (stream,) = case.expected[0]
    assert sums.rows[0] == stream.sums
    assert outcome.multiplies == stream.multiplies
    assert sums.beat_stalls == 0
    assert sums.ended - sums.began <= len(matrix.beats) + 2 * LATENCY
