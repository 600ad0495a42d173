"""Parser, locator and extractor: the events of rows written as plain strings."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from egret_sim.bank import bank_verilog
from egret_sim.benches.accelerator import PAUSES
from egret_sim.benches.extract import Chain, Recording, Run
from egret_sim.runner import run_bench

# width, cut, suffix limit, bits of a column number, bits of a row count
VARIANTS = {
    "w1_cut1": (1, 1, 10, 4, 3),
    "w4_cut4": (4, 4, 10, 4, 4),
    "w4_cut2": (4, 2, 7, 5, 3),
    "w8_cut4": (8, 4, 12, 4, 3),
    "w16_cut4": (16, 4, 10, 6, 4),
}
SCENES = ("mixed", "zeros", "dense", "narrow", "widest", "wrong", "short", "cut off")
ORDERS = range(8)


@dataclass(frozen=True)
class Case:
    """A run and what must come of it; events are (value, column, last, slot) in order."""

    run: Run
    events: list[tuple[int, int, int, int]]
    bad: int
    unfinished: int


def codeword(index: int, order: int) -> str:
    number = f"{index + 2**order:b}"
    return "0" * (len(number) - 1 - order) + number


def read_rows(
    text: str, order: int, limit: int, columns: int, rows: int, dense: int
) -> tuple[list[tuple[int, int, int, int]], str]:
    """Read codewords out of a string; events as (end, value, column, last), and how it ended."""
    events: list[tuple[int, int, int, int]] = []
    at = 0
    for place in range(rows * columns):
        one = text.find("1", at)
        zeros = (one if one >= 0 else len(text)) - at
        if zeros + order > limit:
            return events, "bad"
        end = one + zeros + order
        if one < 0 or end >= len(text):
            return events, "unfinished"
        value = int(text[one : end + 1], 2)
        column = place % columns
        last = int(column == columns - 1)
        if value != 2**order or dense or last:
            events.append((end, value, column, last))
        at = end + 1
    return events, "finished"


def make_text(
    rng: random.Random, scene: str, order: int, limit: int, columns: int, rows: int
) -> str:
    largest = 2 ** (limit + 1) - 1 - 2**order
    density = 0.0 if scene == "zeros" else rng.choice((0.05, 0.3, 0.8))
    indices = [0] * (rows * columns)
    for place in range(len(indices)):
        if rng.random() < density:
            indices[place] = min(largest, rng.randrange(2 ** rng.randint(1, limit + 1)))
    words = [codeword(index, order) for index in indices]
    if scene == "wrong" and words and rng.random() < 0.7:
        # One zero too many; what follows would be codewords again.
        words[rng.randrange(len(words))] = "0" * (limit - order + 1) + "1" * (limit + 1)
    return "".join(words)


def make_case(variant: str, order: int, scene: str) -> Case:
    width, cut, limit, column_bits, row_bits = VARIANTS[variant]
    slots = width // cut
    rng = random.Random(f"{variant} {order} {scene}")
    most = 2**column_bits
    columns = {"narrow": width, "widest": most}.get(scene, rng.randint(width, most))
    dense = int(scene == "dense")
    counts = [rng.randrange(min(2**row_bits, 3 + 240 // columns)) for _ in range(slots)]
    if scene == "narrow":
        counts[0] = 2**row_bits - 1
    if scene == "short":
        counts[-1] = max(counts[-1], 1)
    texts = [make_text(rng, scene, order, limit, columns, rows) for rows in counts]
    rounds = max(1, -(-max(map(len, texts)) // width))
    rounds = rng.randrange(rounds) if scene == "short" else rounds + rng.randrange(4)
    found: list[tuple[int, int, tuple[int, int, int, int]]] = []
    flags = {"bad": 0, "unfinished": 0}
    for slot, text in enumerate(texts):
        # Padding is not looked at, whatever it is.
        padding = rng.choice(("0", "1", "01", "0000001"))
        missing = max(0, rounds * width - len(text))
        text = (text + "".join(rng.choices(padding, k=missing)))[: rounds * width]
        texts[slot] = text
        events, outcome = read_rows(text, order, limit, columns, counts[slot], dense)
        if outcome in flags:
            flags[outcome] |= 1 << slot
        # Blocks come round by round, a round's in slot order, a block's events as they end.
        found += [(event[0] // width, slot, event) for event in events]
    blocks: list[int | None] = []
    for start in range(0, rounds * width, width):
        # Cycles without bits pass every slot's turn, so that the turns stay with the slots.
        if rng.random() < 0.2:
            blocks += [None] * slots
        blocks += [int(text[start : start + width], 2) for text in texts]
    patterns = sorted(PAUSES) if scene != "zeros" else ["none"]
    run = Run(
        order=order,
        dense=dense,
        columns=columns,
        rows=sum(count << row_bits * slot for slot, count in enumerate(counts)),
        blocks=blocks,
        pause=rng.choice(patterns),
        hold=rng.choice(patterns),
        seed=rng.randrange(1000),
        cut_off=len(blocks) // 2 + 1 if scene == "cut off" else 0,
    )
    expected = [(*event[1:], slot) for _, slot, event in sorted(found)]
    return Case(run, expected, flags["bad"], flags["unfinished"])


CASES = {
    (variant, scene, order): make_case(variant, order, scene)
    for variant in VARIANTS
    for order in ORDERS
    for scene in SCENES
}


@pytest.fixture(scope="module")
def recordings() -> dict[tuple[str, str, int], Recording]:
    members = {name: Chain(*variant) for name, variant in VARIANTS.items()}
    jobs = {name: [case.run for key, case in CASES.items() if key[0] == name] for name in VARIANTS}
    played = run_bench(bank_verilog(members, "chains"), "chains", "egret_sim.benches.extract", jobs)
    order = {name: iter(recorded) for name, recorded in played.items()}
    return {key: next(order[key[0]]) for key in CASES}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_events(
    variant: str, scene: str, recordings: dict[tuple[str, str, int], Recording]
) -> None:
    for order in ORDERS:
        case, recorded = CASES[variant, scene, order], recordings[variant, scene, order]
        run = case.run
        where = f"{variant} {scene} {order=} {run.columns=} {run.seed=}"
        events = [tuple(event[1:]) for event in recorded.events]
        assert not recorded.locked_up, where
        assert not any(issue.hold for issue in recorded.issues), where
        begun = [(issue.cycle + 2, issue.last) for issue in recorded.issues]
        came = [(event.cycle, event.last) for event in recorded.events]
        if run.cut_off:
            assert events == case.events[: len(events)], where
            assert came == begun[: len(came)], where
            continue
        assert events == case.events, where
        assert came == begun, where
        assert recorded.bad == case.bad, where
        assert recorded.unfinished == case.unfinished, where
        if scene == "zeros":
            # At most one row ends in a block: the bits never wait.
            assert recorded.stalls == 0, where


def test_scenes_cover() -> None:
    """The cases hold what the scenes are for."""
    for variant, (width, *_) in VARIANTS.items():
        slots = width // VARIANTS[variant][1]
        cases = [case for key, case in CASES.items() if key[0] == variant]
        assert any(case.bad for case in cases)
        assert any(case.unfinished for case in cases)
        assert any(case.run.columns == width for case in cases)
        seen = Counter(event[3] for case in cases for event in case.events)
        assert set(seen) == set(range(slots))
        row_bits = VARIANTS[variant][4]
        empty = [
            case
            for case in cases
            if any(not case.run.rows >> row_bits * slot & 2**row_bits - 1 for slot in range(slots))
        ]
        assert empty
