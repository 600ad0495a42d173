"""The baseline decoder: simulated against codewords of an obvious encoder."""

import random

import pytest
from amaranth.sim import Simulator, SimulatorContext
from benchmarks.baseline_lzc import LeadingZeroDecoder

LIMIT = 10
WIDTH = 32


def codeword(index: int, order: int) -> str:
    binary = f"{index + 2**order:b}"
    return "0" * (len(binary) - order - 1) + binary


def decode(
    bits: str, order: int, count: int, *, pauses: float = 0.0, seed: int = 0
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the first `count` symbols, as index and `bad`, and the cycle of each."""
    decoder = LeadingZeroDecoder(LIMIT, WIDTH)
    padded = bits + "1" * (-len(bits) % WIDTH + WIDTH)
    words = [int(padded[place : place + WIDTH], 2) for place in range(0, len(padded), WIDTH)]
    symbols: list[tuple[int, int]] = []
    cycles: list[int] = []

    async def bench(context: SimulatorContext) -> None:
        rng = random.Random(seed)
        context.set(decoder.order, order)
        held = None
        for cycle in range(40 + 40 * count):
            # A word that was offered stays until it is taken.
            if held is None and words and rng.random() >= pauses:
                held = words.pop(0)
            context.set(decoder.i.valid, held is not None)
            context.set(decoder.i.payload, held or 0)
            ready = rng.random() >= pauses
            context.set(decoder.o.ready, ready)
            if ready and context.get(decoder.o.valid):
                payload = context.get(decoder.o.payload)
                symbols.append((payload.index, payload.bad))
                cycles.append(cycle)
            if held is not None and context.get(decoder.i.ready):
                held = None
            await context.tick()
            if len(symbols) == count:
                return

    simulator = Simulator(decoder)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return symbols, cycles


@pytest.mark.parametrize("pauses", [0.0, 0.5])
@pytest.mark.parametrize("order", range(8))
def test_indices(order: int, pauses: float) -> None:
    seed = 10 * order + round(2 * pauses)
    rng = random.Random(seed)
    # Every length of codeword, up to the last index that the limit allows.
    last = 2 ** (LIMIT + 1) - 1 - 2**order
    indices = [0, last, last, last, 0, 0, 0]
    indices += [min(last, int(2 ** rng.uniform(0, LIMIT + 1)) - 1) for _ in range(200)]
    bits = "".join(codeword(index, order) for index in indices)
    symbols, _ = decode(bits, order, len(indices), pauses=pauses, seed=seed)
    assert symbols == [(index, 0) for index in indices], f"seed {seed}"


@pytest.mark.parametrize("index", [0, 1, 2 ** (LIMIT + 1) - 2])
def test_a_codeword_every_cycle(index: int) -> None:
    symbols, cycles = decode(codeword(index, 0) * 64, 0, 64)
    assert symbols == [(index, 0)] * 64
    assert cycles == list(range(cycles[0], cycles[0] + 64))


@pytest.mark.parametrize("order", range(8))
def test_too_many_zeros_are_marked(order: int) -> None:
    legal, illegal = (codeword(2**n - 2**order, order) for n in (LIMIT, LIMIT + 1))
    symbols, _ = decode(legal + illegal, order, 2)
    assert symbols[0] == (2**LIMIT - 2**order, 0)
    assert symbols[1][1] == 1


@pytest.mark.parametrize(("limit", "width"), [(10, 24), (10, 16), (16, 32)])
def test_a_word_holds_the_longest_codeword(limit: int, width: int) -> None:
    with pytest.raises(ValueError, match="word_bits must be a power of two"):
        LeadingZeroDecoder(limit, width)
