"""The elastic buffer and the gearbox alone, under every pattern of pauses."""

import random
from itertools import pairwise, product

import pytest

from egret_hw.elastic import ElasticBuffer
from egret_hw.gearbox import Gearbox
from egret_sim.bank import bank_verilog
from egret_sim.benches.accelerator import PAUSES
from egret_sim.benches.streams import Job, Run, Seen
from egret_sim.runner import run_bench

ELASTIC_BITS = {"elastic1": 1, "elastic20": 20}
# Bits of a word and of a beat.
GEARBOX_BITS = {
    "gearbox1": (16, 16),
    "gearbox2": (32, 16),
    "gearbox4": (64, 16),
    "gearbox8": (8, 1),
}
PATTERNS = list(product(PAUSES, PAUSES))
TRANSFERS = 60
CUT_OFF = 7


def make_runs(bits: int, beats: int) -> list[Run]:
    """Every pair of patterns, each after a run that a reset cuts off with payloads inside."""
    runs = []
    for seed, (source, sink) in enumerate(PATTERNS):
        rng = random.Random(seed)
        payloads = [rng.getrandbits(bits) for _ in range(TRANSFERS)]
        runs.append(Run(payloads, "none", "alternating", 1000 + seed, CUT_OFF))
        runs.append(Run(payloads, source, sink, 2 * seed, TRANSFERS * (3 * beats + 5)))
    return runs


RUNS = {name: make_runs(bits, 1) for name, bits in ELASTIC_BITS.items()} | {
    name: make_runs(word, word // beat) for name, (word, beat) in GEARBOX_BITS.items()
}


@pytest.fixture(scope="module")
def recordings() -> dict[str, list[list[Seen]]]:
    members = {name: ElasticBuffer(bits) for name, bits in ELASTIC_BITS.items()} | {
        name: Gearbox(*bits) for name, bits in GEARBOX_BITS.items()
    }
    jobs = {name: Job(RUNS[name], bits, ("level",)) for name, bits in ELASTIC_BITS.items()} | {
        name: Job(RUNS[name], word) for name, (word, _) in GEARBOX_BITS.items()
    }
    return run_bench(bank_verilog(members, "streams"), "streams", "egret_sim.benches.streams", jobs)


def delivered(seen: list[Seen]) -> list[int]:
    return [cycle.o_payload for cycle in seen if cycle.o_valid and cycle.o_ready]


def check_stream(name: str, run: Run, seen: list[Seen], expected: list[int]) -> None:
    where = f"{name}, source {run.source}, sink {run.sink}, seed {run.seed}"
    found = delivered(seen)
    if run.cycles == CUT_OFF:
        assert found, where
        assert found == expected[: len(found)], where
    else:
        assert found == expected, where
        assert not seen[-1].o_valid, where
        assert seen[-1].i_ready, where
    for number, (now, then) in enumerate(pairwise(seen)):
        if now.o_valid and not now.o_ready:
            assert (then.o_valid, then.o_payload) == (1, now.o_payload), f"{where}: cycle {number}"


@pytest.mark.parametrize("name", ELASTIC_BITS)
def test_elastic_buffer(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    for run, seen in zip(RUNS[name], recordings[name], strict=True):
        check_stream(name, run, seen, run.payloads)
        held = 0
        for number, cycle in enumerate(seen):
            where = f"{name}, source {run.source}, sink {run.sink}, seed {run.seed}: {number}"
            # What is held alone decides ready and valid: both come from registers.
            assert cycle.outputs == (held,), where
            assert cycle.i_ready == (held < 2), where
            assert cycle.o_valid == (held > 0), where
            held += cycle.i_valid * cycle.i_ready - cycle.o_valid * cycle.o_ready


@pytest.mark.parametrize("name", GEARBOX_BITS)
def test_gearbox(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    word_bits, beat_bits = GEARBOX_BITS[name]
    for run, seen in zip(RUNS[name], recordings[name], strict=True):
        expected = []
        for word in run.payloads:
            text = f"{word:0{word_bits}b}"
            beats = [text[at : at + beat_bits] for at in range(0, word_bits, beat_bits)]
            expected += [int(beat, 2) for beat in reversed(beats)]
        check_stream(name, run, seen, expected)


@pytest.mark.parametrize("name", RUNS)
def test_full_rate(name: str, recordings: dict[str, list[list[Seen]]]) -> None:
    """A source that never pauses keeps every cycle after the first full, whatever the sink."""
    beats = 1 if name in ELASTIC_BITS else GEARBOX_BITS[name][0] // GEARBOX_BITS[name][1]
    for run, seen in zip(RUNS[name], recordings[name], strict=True):
        if run.source != "none" or run.cycles == CUT_OFF:
            continue
        used = [cycle.o_valid for cycle in seen if cycle.o_ready][: 1 + TRANSFERS * beats]
        first = 0 if not seen[0].o_ready else 1
        assert all(used[first : first + TRANSFERS * beats]), f"sink {run.sink}"
        if run.sink == "none":
            assert (
                sum(cycle.o_valid for cycle in seen[1 : 1 + TRANSFERS * beats]) == TRANSFERS * beats
            )
