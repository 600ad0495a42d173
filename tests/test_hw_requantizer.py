"""The requantisers alone, against exact fractions."""

import math
import random
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import pytest
from tests.run_options import seeded

from egret_hw.requantizer import Requantizer, SerialRequantizer
from egret_sim.bank import bank_verilog
from egret_sim.benches.accelerator import PAUSES
from egret_sim.benches.requantizer import Run, Seen
from egret_sim.runner import run_bench

LATENCY = {"parallel": 6, "serial": 5}
PACE = {"parallel": 1, "serial": 17}
INT32 = (-(2**31), 2**31 - 1)
MULTIPLIERS = (0, 1, 2, 3, 32768, 40503, 65535)
SUMS = 24


def requantize(result: int, multiplier: int, shift: int, relu: int) -> int:
    """Nearest int8 of result * multiplier / 2**shift, halves upwards."""
    exact = Fraction(result * multiplier, 2**shift)
    if shift:
        exact += Fraction(1, 2)
    value = min(127, max(-128, math.floor(exact)))
    return max(0, value) if relu else value


@dataclass(frozen=True)
class Case:
    """A run and its results: (result, activation) in order."""

    run: Run
    expected: list[tuple[int, int]]


def pick_result(rng: random.Random, multiplier: int, shift: int) -> int:
    """A result that tells something: an extreme, a tie, near saturation, or any."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice((*INT32, INT32[0] + 1, 0, 1, -1))
    if kind in (1, 5) and multiplier % 2 and 1 <= shift <= 31:
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


def pick_bias(rng: random.Random, result: int) -> int:
    """A bias, extremes among them, that leaves a sum which is an int32 too."""
    spread = rng.randint(1, 32)
    bias = rng.choice((*INT32, 0, rng.randrange(-(2**spread), 2**spread)))
    return min(result - INT32[0], INT32[1], max(result - INT32[1], INT32[0], bias))


def make_cases(name: str) -> list[Case]:
    rng = seeded("requantizer")
    latency, pace = LATENCY[name], PACE[name]
    patterns = [(source, enable) for source in PAUSES for enable in PAUSES]
    settings = [(rng.choice(MULTIPLIERS), shift) for shift in range(64)]
    settings += [(multiplier, 0) for multiplier in MULTIPLIERS]
    settings += [(rng.randrange(2**15, 2**16), rng.randrange(16, 40)) for _ in range(25)]
    settings += [(rng.randrange(1, 2**16, 2), rng.randrange(1, 12)) for _ in range(20)]
    cases = []
    for number, (multiplier, shift) in enumerate(settings):
        has_bias, relu = int(rng.random() < 0.6), int(rng.random() < 0.4)
        sums, expected = [], []
        for _ in range(SUMS):
            # The packer refuses a bias with which the result might not fit an int32.
            result = pick_result(rng, multiplier, shift)
            bias = pick_bias(rng, result)
            sums.append((result - bias if has_bias else result, bias))
            expected.append((result, requantize(result, multiplier, shift, relu)))
        source, enable = patterns[number % len(patterns)]
        run = Run(
            has_bias=has_bias,
            relu=relu,
            multiplier=multiplier,
            shift=shift,
            sums=sums,
            source=source,
            enable=enable,
            seed=rng.randrange(1000),
            # Every eighth run is cut off by the next one's reset, with sums inside.
            cycles=(latency + 9) * pace
            if number % 8 == 7
            else (SUMS + latency) * (pace + 3) * min(pace, 3) + 90,
            pace=pace,
        )
        cases.append(Case(run, expected))
    return cases


CASES = {name: make_cases(name) for name in PACE}


@pytest.fixture(scope="module")
def recordings() -> dict[str, list[list[Seen]]]:
    members = {"parallel": Requantizer(), "serial": SerialRequantizer()}
    verilog = bank_verilog(members, "requantizers")
    jobs = {name: [case.run for case in cases] for name, cases in CASES.items()}
    played: dict[str, list[list[Seen]]] = run_bench(
        verilog, "requantizers", "egret_sim.benches.requantizer", jobs
    )
    return played


@pytest.mark.parametrize("name", PACE)
def test_results(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    for case, seen in zip(CASES[name], recordings[name], strict=True):
        run = case.run
        where = f"m={run.multiplier} n={run.shift} bias={run.has_bias} {run.seed=}"
        found = [
            ((cycle.result + 2**31) % 2**32 - 2**31, (cycle.activation + 128) % 256 - 128)
            for cycle in seen
            if cycle.o_valid and cycle.enable
        ]
        if run.cycles <= (LATENCY[name] + 9) * run.pace:
            assert found == case.expected[: len(found)], where
            continue
        assert found == case.expected, where
        assert not seen[-1].busy, where


@pytest.mark.parametrize("name", PACE)
def test_pace(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    """A sum enters every enabled cycle and comes out `LATENCY` enabled cycles later."""
    for case, seen in zip(CASES[name], recordings[name], strict=True):
        where = f"{case.run.source=} {case.run.enable=} {case.run.seed=}"
        inside = [0] * LATENCY[name]
        idle = PACE[name]
        for number, cycle in enumerate(seen):
            at = f"{where}: cycle {number}"
            assert cycle.o_valid == inside[-1], at
            assert cycle.busy == any(inside), at
            assert cycle.ready == (idle >= PACE[name]), at
            idle = 1 if cycle.enable else idle + 1
            if cycle.enable:
                inside = [cycle.i_valid, *inside[:-1]]


def test_cases_cover() -> None:
    """The drawn numbers hold ties of both signs, both saturations and the extremes."""
    seen: Counter[object] = Counter()
    # Both play the same ones.
    for case in CASES["parallel"]:
        run = case.run
        for (i_sum, i_bias), (result, _) in zip(run.sums, case.expected, strict=True):
            value = Fraction(result * run.multiplier, 2**run.shift)
            if abs(value) < 127 and value.denominator == 2:
                seen["tie", value > 0] += 1
            seen["high"] += value > 200 and not run.relu
            seen["low"] += value < -200 and not run.relu
            seen["relu"] += value < -1 and bool(run.relu)
            seen["result", result] += result in INT32
            seen["bias", i_bias] += bool(run.has_bias) and i_bias in INT32
            seen["sum", i_sum] += bool(run.has_bias) and i_sum in INT32
    for what in (("tie", True), ("tie", False), "high", "low", "relu"):
        assert seen[what] >= 10, what
    for extreme in INT32:
        for what in ("result", "bias", "sum"):
            assert seen[what, extreme] >= 10, (what, extreme)
