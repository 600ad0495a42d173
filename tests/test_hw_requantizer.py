"""The requantiser alone, against exact fractions."""

import math
import random
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import pytest

from egret.params import AcceleratorParams
from egret_hw.readout import row_layout
from egret_hw.requantizer import Requantizer, result_layout
from egret_sim.bank import bank_verilog
from egret_sim.benches.accelerator import PAUSES
from egret_sim.benches.requantizer import Run, Seen
from egret_sim.runner import run_bench

LATENCY = 10
# Accumulators of 32 bits, and of fewer; few substreams and many.
VARIANTS = {
    params.name: params
    for params in (
        AcceleratorParams(
            name="batch1",
            lanes=1,
            parser_bits=4,
            parser_cut=4,
            bus_bits=32,
            weight_bits=16,
            activation_depth=256,
            row_depth=256,
        ),
        AcceleratorParams(
            name="batch3",
            lanes=4,
            parser_bits=4,
            parser_cut=2,
            bus_bits=64,
            batch=3,
            weight_bits=12,
            activation_depth=64,
            row_depth=128,
        ),
    )
}
INT32 = (-(2**31), 2**31 - 1)
MULTIPLIERS = (0, 1, 2, 3, 32768, 40503, 65535)
ROWS = 12


def requantize(result: int, multiplier: int, shift: int, relu: int) -> int:
    """Nearest int8 of result * multiplier / 2**shift, halves upwards."""
    exact = Fraction(result * multiplier, 2**shift)
    if shift:
        exact += Fraction(1, 2)
    value = min(127, max(-128, math.floor(exact)))
    return max(0, value) if relu else value


@dataclass(frozen=True)
class Case:
    """A run and its results: (row, vector, result, activation) in order."""

    run: Run
    expected: list[tuple[int, int, int, int]]


def words(entries: list[int], entry_bits: int, bus_bits: int) -> list[int]:
    """Join entries to bus words, lowest bits first."""
    each = bus_bits // entry_bits
    return [
        sum(entry % 2**entry_bits << entry_bits * place for place, entry in enumerate(group))
        for group in (entries[at : at + each] for at in range(0, len(entries), each))
    ]


def pick_result(rng: random.Random, multiplier: int, shift: int) -> int:
    """A result that tells something: an extreme, a tie, near saturation, or any."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice((*INT32, INT32[0] + 1, 0, 1, -1))
    if kind == 1 and multiplier % 2 and 1 <= shift <= 31:
        # result * multiplier is half of 2**shift beyond a multiple of it.
        tie = pow(multiplier, -1, 2**shift) * 2 ** (shift - 1) % 2**shift
        near = tie + 2**shift * rng.randint(-130, 130) // max(1, multiplier) // 2**shift * 2**shift
        return min(INT32[1], max(INT32[0], near - rng.choice((0, 0, 0, 1))))
    if kind == 2 and multiplier:
        edge = rng.choice((-129, -128, -127, -1, 0, 1, 126, 127, 128)) * 2**shift
        near = edge // multiplier + rng.randint(-2, 2)
        return min(INT32[1], max(INT32[0], near))
    spread = rng.randint(1, 31)
    return rng.randrange(-(2**spread), 2**spread)


def make_cases(params: AcceleratorParams) -> list[Case]:
    rng = random.Random(params.name)
    entries = params.row_slots * params.substreams
    table = [rng.randrange(params.row_depth) for _ in range(entries)]
    # An entry without a row, and the highest places.
    table[5] = 0xFFFF
    table[-1], table[-2] = params.row_depth - 1, 0
    biases = [rng.choice((*INT32, 0, 1, -1)) for _ in range(16)]
    biases += [
        rng.randrange(-(2**spread), 2**spread)
        for spread in (rng.randint(1, 31) for _ in range(params.row_depth - 16))
    ]
    rng.shuffle(biases)
    usable = [place for place in range(entries) if table[place] < params.row_depth]
    low, high = -(2 ** (params.accumulator_bits - 1)), 2 ** (params.accumulator_bits - 1) - 1
    layout = row_layout(params)
    patterns = [(source, enable) for source in PAUSES for enable in PAUSES]
    settings = [(rng.choice(MULTIPLIERS), shift) for shift in range(64)]
    settings += [(multiplier, 0) for multiplier in MULTIPLIERS]
    settings += [(rng.randrange(2**15, 2**16), rng.randrange(16, 40)) for _ in range(25)]
    settings += [(rng.randrange(1, 2**16, 2), rng.randrange(1, 12)) for _ in range(20)]
    cases = []
    for number, (multiplier, shift) in enumerate(settings):
        has_bias, relu = int(rng.random() < 0.6), int(rng.random() < 0.4)
        rows, expected = [], []
        for count in range(ROWS):
            place = rng.choice(usable if count else [usable[-1], usable[-2]])
            row = table[place]
            bias = biases[row] if has_bias else 0
            sums = []
            for vector in range(params.batch):
                # The packer refuses a bias with which the result might not fit an int32.
                least, most = max(low, INT32[0] - bias), min(high, INT32[1] - bias)
                result = bias + min(most, max(least, pick_result(rng, multiplier, shift) - bias))
                sums.append(result - bias)
                activation = requantize(result, multiplier, shift, relu)
                expected.append((row, vector, result, activation))
            rows.append(layout.const({"entry": place, "sums": sums}).as_bits())
        source, enable = patterns[number % len(patterns)]
        cut_off = number % 8 == 7
        cycles = LATENCY + 9 if cut_off else (ROWS * params.batch + LATENCY) * 3 + 90
        run = Run(
            has_bias=has_bias,
            relu=relu,
            multiplier=multiplier,
            shift=shift,
            rows=rows,
            source=source,
            enable=enable,
            seed=rng.randrange(1000),
            cycles=cycles,
            table_words=[] if number else words(table, 16, params.bus_bits),
            bias_words=[] if number else words(biases, 32, params.bus_bits),
        )
        cases.append(Case(run, expected))
    return cases


CASES = {name: make_cases(params) for name, params in VARIANTS.items()}


@pytest.fixture(scope="module")
def recordings() -> dict[str, list[list[Seen]]]:
    members = {name: Requantizer(params) for name, params in VARIANTS.items()}
    jobs = {name: [case.run for case in cases] for name, cases in CASES.items()}
    verilog = bank_verilog(members, "requantizers")
    return run_bench(verilog, "requantizers", "egret_sim.benches.requantizer", jobs)


@pytest.mark.parametrize("name", VARIANTS)
def test_results(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    layout = result_layout(VARIANTS[name])
    for case, seen in zip(CASES[name], recordings[name], strict=True):
        run = case.run
        where = f"{name} m={run.multiplier} n={run.shift} bias={run.has_bias} {run.seed=}"
        outputs = [layout.from_bits(cycle.o) for cycle in seen if cycle.o_valid and cycle.enable]
        found = [(out.row, out.vector, out.result, out.activation) for out in outputs]
        if run.cycles < LATENCY + 10:
            assert found == case.expected[: len(found)], where
            continue
        assert found == case.expected, where
        assert not seen[-1].busy, where


@pytest.mark.parametrize("name", VARIANTS)
def test_pace(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    """A vector enters every enabled cycle and comes out ten enabled cycles later."""
    batch = VARIANTS[name].batch
    for case, seen in zip(CASES[name], recordings[name], strict=True):
        where = f"{name} {case.run.source=} {case.run.enable=} {case.run.seed=}"
        inside = [0] * LATENCY
        vector = 0
        for number, cycle in enumerate(seen):
            at = f"{where}: cycle {number}"
            assert cycle.o_valid == inside[-1], at
            assert cycle.busy == (cycle.i_valid or any(inside)), at
            if cycle.i_valid:
                assert cycle.i_ready == (cycle.enable and vector == batch - 1), at
            if cycle.enable:
                inside = [cycle.i_valid, *inside[:-1]]
                vector = (vector + cycle.i_valid) % batch


def test_cases_cover() -> None:
    """The drawn numbers hold ties of both signs, both saturations and the extremes."""
    seen: Counter[object] = Counter()
    for name, cases in CASES.items():
        for case in cases:
            run = case.run
            for _, _, result, _ in case.expected:
                product = result * run.multiplier
                value = Fraction(product, 2**run.shift)
                if abs(value) < 127 and (value + Fraction(1, 2)).denominator == 1:
                    tie = value.denominator == 2
                    seen["tie", value > 0] += tie
                seen["high"] += value > 200 and not run.relu
                seen["low"] += value < -200 and not run.relu
                seen["relu"] += value < -1 and bool(run.relu)
                seen["extreme", name, result] += result in INT32
    for what in (("tie", True), ("tie", False), "high", "low", "relu"):
        assert seen[what] >= 10, what
    for extreme in INT32:
        assert seen["extreme", "batch1", extreme] >= 10, extreme
