"""The parser alone, against codewords written as plain strings."""

import random
from dataclasses import dataclass

import bitstring
import pytest

from egret_hw.parser import Parser
from egret_sim.bank import bank_verilog
from egret_sim.benches.parser import Cycle, Seen
from egret_sim.runner import run_bench

# width, cut, suffix limit; the limits are those of map depths 2, 1024 and 4096.
VARIANTS = {
    "w1_cut1": (1, 1, 10),
    "w4_cut4": (4, 4, 10),
    "w4_cut2": (4, 2, 7),
    "w8_cut4": (8, 4, 10),
    "w8_cut2": (8, 2, 12),
    "w16_cut4": (16, 4, 12),
}
ORDERS = range(8)
MODES = ("free", "gaps", "bubbles", "wrong")

# Indices 0 to 9, from the paper's table.
TABLE = {
    0: "1 010 011 00100 00101 00110 00111 0001000 0001001 0001010",
    1: "10 11 0100 0101 0110 0111 001000 001001 001010 001011",
    2: "100 101 110 111 01000 01001 01010 01011 01100 01101",
    3: "1000 1001 1010 1011 1100 1101 1110 1111 010000 010001",
}


def codeword(index: int, order: int) -> str:
    number = f"{index + 2**order:b}"
    return "0" * (len(number) - 1 - order) + number


@dataclass
class Run:
    order: int
    mode: str
    words: list[list[str]]
    indices: list[list[int]]
    sent: list[str]
    good_bits: list[int]
    cycles: list[Cycle]


def make_run(variant: str, order: int, mode: str) -> Run:
    width, cut, limit = VARIANTS[variant]
    slots = width // cut
    rng = random.Random(f"{variant} {order} {mode}")
    largest = 2 ** (limit + 1) - 1 - 2**order
    bits = 120 + rng.randrange(width)
    run = Run(order, mode, [], [], [], [], [])
    for slot in range(slots):
        indices = list(range(10)) if slot == 0 and order in TABLE and mode != "wrong" else []
        length = 0
        words = [codeword(index, order) for index in indices]
        while (length := sum(map(len, words))) < bits * (0.6 if mode == "wrong" else 1):
            spread = rng.choice((0, 0, 3, 8, largest.bit_length()))
            indices.append(min(largest, rng.randrange(2**spread)))
            if rng.random() < 0.05:
                indices[-1] = largest
            words.append(codeword(indices[-1], order))
        text = "".join(words)
        if mode == "wrong":
            text += "0" * (limit - order + 1 + rng.randrange(20))
        run.good_bits.append(length + limit - order if mode == "wrong" else len(text))
        run.indices.append(indices)
        run.words.append(words)
        run.sent.append(text)
    rounds = -(-max(map(len, run.sent)) // width)
    if mode == "wrong":
        run.sent = [text.ljust(rounds * width, "0") for text in run.sent]
    else:
        # Blocks are whole: what the shorter slots lack are ones, short codewords of index 0.
        for slot, text in enumerate(run.sent):
            missing = rounds * width - len(text)
            run.words[slot] += [codeword(0, order)] * missing
            run.indices[slot] += [0] * missing
            run.sent[slot] = (text + codeword(0, order) * missing)[: rounds * width]
            run.good_bits[slot] = rounds * width

    def garbage() -> int:
        return rng.getrandbits(width)

    run.cycles.append(Cycle(1, rng.getrandbits(1), order, rng.getrandbits(1), garbage()))
    position = [0] * slots
    turn = 0
    while min(position) < rounds * width:
        if mode in ("gaps", "bubbles") and rng.random() < 0.3:
            run.cycles.append(Cycle(0, 0, order, rng.getrandbits(1), garbage()))
            continue
        begin = position[turn]
        if begin >= rounds * width or (mode == "bubbles" and rng.random() < 0.3):
            run.cycles.append(Cycle(0, 1, order, 0, garbage()))
        else:
            block = run.sent[turn][begin : begin + width]
            run.cycles.append(Cycle(0, 1, order, 1, int(block, 2)))
            position[turn] += width
        turn = (turn + 1) % slots
    # The free run is cut off by the next start, with bits inside; the others run empty.
    if mode != "free":
        run.cycles += [Cycle(0, 1, order, 0, garbage()) for _ in range(slots + 2)]
    return run


RUNS = {
    (variant, order, mode): make_run(variant, order, mode)
    for variant in VARIANTS
    for order in ORDERS
    for mode in MODES
}


@pytest.fixture(scope="module")
def recordings() -> dict[tuple[str, int, str], list[Seen]]:
    members = {name: Parser(*variant) for name, variant in VARIANTS.items()}
    jobs = {
        variant: [cycle for key, run in RUNS.items() if key[0] == variant for cycle in run.cycles]
        for variant in VARIANTS
    }
    seen = run_bench(bank_verilog(members, "parsers"), "parsers", "egret_sim.benches.parser", jobs)
    split = {}
    for key, run in RUNS.items():
        split[key] = seen[key[0]][: len(run.cycles)]
        del seen[key[0]][: len(run.cycles)]
    return split


@dataclass
class Parsed:
    words: list[str]
    nonzero: list[bool]
    bad: list[int]
    bits: str


def gather(run: Run, seen: list[Seen], slots: int, width: int) -> list[Parsed]:
    """Follow each block through the pipeline, and put each slot's words together again."""
    inside: list[int | None] = [None] * slots
    turn = 0
    parsed = [Parsed([], [], [], "") for _ in range(slots)]
    opened = [""] * slots
    before = None
    for number, (cycle, out) in enumerate(zip(run.cycles, seen, strict=True)):
        if cycle.start:
            inside, turn = [None] * slots, 0
            continue
        at = f"cycle {number} of {run.order=} {run.mode=}"
        assert out.valid == (inside[-1] is not None), at
        assert out.busy == any(slot is not None for slot in inside), at
        if before is not None:
            assert out == before, f"{at}: changed while not enabled"
        before = None if cycle.enable else out
        if not cycle.enable:
            continue
        slot = inside[-1]
        if slot is not None:
            for position in range(width):
                mark = 1 << position
                bit = "1" if out.bits & mark else "0"
                if out.bad & mark:
                    parsed[slot].bad.append(len(parsed[slot].bits))
                parsed[slot].bits += bit
                opened[slot] += bit
                if out.end & mark:
                    parsed[slot].words.append(opened[slot])
                    parsed[slot].nonzero.append(bool(out.nonzero & mark))
                    opened[slot] = ""
        inside = [turn if cycle.valid else None, *inside[:-1]]
        turn = (turn + 1) % slots
    return parsed


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_codewords(
    variant: str, order: int, recordings: dict[tuple[str, int, str], list[Seen]]
) -> None:
    width, cut, _ = VARIANTS[variant]
    slots = width // cut
    for mode in MODES:
        run = RUNS[variant, order, mode]
        parsed = gather(run, recordings[variant, order, mode], slots, width)
        for slot, found in enumerate(parsed):
            where = f"{variant} {order=} {mode=} {slot=}"
            received = len(run.sent[slot]) - (width if mode == "free" else 0)
            assert found.bits == run.sent[slot][:received], where
            expected, length = [], 0
            for word in run.words[slot]:
                length += len(word)
                if length <= received:
                    expected.append(word)
            assert found.words == expected, where
            indices = run.indices[slot][: len(expected)]
            assert found.nonzero == [index != 0 for index in indices], where
            assert found.bad == list(range(run.good_bits[slot], received)), where
            if order == 0:
                assert [bitstring.Bits(bin=word).ue for word in found.words] == indices, where


@pytest.mark.parametrize("order", TABLE)
def test_table(order: int, recordings: dict[tuple[str, int, str], list[Seen]]) -> None:
    for variant, (width, cut, _) in VARIANTS.items():
        run = RUNS[variant, order, "gaps"]
        parsed = gather(run, recordings[variant, order, "gaps"], width // cut, width)
        assert parsed[0].words[:10] == TABLE[order].split(), variant
