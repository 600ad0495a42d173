"""The whole accelerator, simulated, against the golden model, bit for bit.

Packets are put together by hand in tests/image_builder.py, and by the packer where a test says so.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from tests.image_builder import (
    Code,
    Table,
    bias_packet,
    classes,
    code_packet,
    coded_matrix,
    cut,
    golomb,
    map_packet,
    matrix_packet,
    random_cut,
)
from tests.run_options import IS_FULL, KEPT, generator, pause_seed

from egret.errors import CapacityError
from egret.image import MatrixPacket, build_image
from egret.image_format import CLASSES, ErrorKind, PacketKind
from egret.network import IntegerLayer, IntegerNetwork
from egret.params import CODE_NAMES, PRESETS, AcceleratorParams
from egret.quantize import QuantizedTensor
from egret_hw.registers import COUNTERS, REGISTERS, register_named
from egret_hw.rtl import generate_verilog, top_name
from egret_sim.benches.accelerator import PAUSES, TRICKLE, Job, Recording, Step
from egret_sim.golden import GoldenAccelerator, Outcome, read_header, reference_forward
from egret_sim.runner import run_bench

BENCH = "egret_sim.benches.accelerator"

L4W4 = AcceleratorParams(
    name="l4w4",
    lanes=4,
    parser_bits=4,
    parser_cut=4,
    bus_bits=32,
    map_depth=64,
    activation_depth=64,
    row_depth=64,
)
SETS = [
    replace(
        L4W4,
        name="l1w1",
        lanes=1,
        parser_bits=1,
        parser_cut=1,
        codes=("eg-k",),
        suffix_limit=8,
        weight_bits=8,
        input_depth=2,
        block_depth=2,
    ),
    L4W4,
    replace(L4W4, name="l4w4micro", parser="microcode", activation_columns=4),
    replace(
        L4W4,
        name="l2w4c2b3",
        lanes=2,
        parser_cut=2,
        batch=3,
        codes=("eg-k", "eg-run"),
        input_depth=2,
        block_depth=2,
    ),
    # A bus word is a beat, and a slot has every other one.
    replace(
        L4W4,
        name="l4w8c2",
        parser_bits=8,
        parser="microcode",
        row_depth=128,
        input_depth=4,
        activation_columns=2,
    ),
    replace(
        L4W4,
        name="l1w16c4",
        lanes=1,
        parser_bits=16,
        parser="microcode",
        weight_bits=16,
        activation_columns=16,
        map_depth=16,
        suffix_limit=4,
    ),
    replace(
        L4W4,
        name="l8w4",
        lanes=8,
        bus_bits=64,
        codes=("eg-k", "eg-table"),
        row_depth=256,
        block_depth=4,
        activation_columns=8,
    ),
    replace(L4W4, name="l2w8c4", lanes=2, parser_bits=8, parser_cut=2, bus_bits=128, batch=2),
]
FAULTY = SETS[3]
KEPT_PRESETS = [params for name, params in PRESETS.items() if IS_FULL or name == "xs-ice40"]


@lru_cache
def verilog(params: AcceleratorParams) -> str:
    """Return the Verilog of a set, for a preset that of the repository."""
    if params in KEPT_PRESETS:
        return (KEPT / top_name(params) / f"{top_name(params)}.v").read_text(encoding="utf-8")
    return generate_verilog(params)


def activation_packet(params: AcceleratorParams, x: np.ndarray) -> bytes:
    """Return the packet of activations of columns 0, 1 ..., of shape (columns, B)."""
    return params.pad_activations(x[::-1].tobytes())


class Script:
    """Steps for the bench, and what the golden model says must come out."""

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        self.golden = GoldenAccelerator(params)
        self.steps: list[Step] = []
        self.frames: list[tuple[str, np.ndarray | ErrorKind]] = []
        self.statuses: list[tuple[str, dict[str, int]]] = []
        self.start()

    def start(self) -> None:
        """Forget what a reset forgets."""
        self.counters = dict.fromkeys(("multiplies", "weights", "words", "payload_words"), 0)
        self.error = {"error": 0, "position": 0, "irq": 0}

    def send(self, what: str, packet: bytes, activations: np.ndarray | None = None) -> Outcome:
        """Queue a packet, and note what follows from it; column 0 of activations is the first."""
        if activations is not None:
            self.steps.append(Step("activations", activation_packet(self.params, activations)))
            activations = activations[::-1]
        self.steps.append(Step("weights", packet))
        outcome = self.golden.run_packet(packet, activations)
        if outcome.error is ErrorKind.NONE:
            self.frames += [(what, stream.ravel()) for stream in outcome.streams]
            fields = read_header(packet)
            counts = (
                outcome.multiplied,
                outcome.weights,
                len(packet) // (self.params.bus_bits // 8),
                fields.get("payload_words", 0),
            )
            for name, count in zip(self.counters, counts, strict=True):
                self.counters[name] += count
        elif not outcome.discarded:
            self.frames.append((what, outcome.error))
        failed = outcome.error is not ErrorKind.NONE
        self.error = {"error": outcome.error, "position": outcome.position, "irq": failed}
        return outcome

    def setup(self, *packets: bytes) -> None:
        """Queue load packets that are right."""
        for packet in packets:
            outcome = self.send("setup", packet)
            assert outcome.error is ErrorKind.NONE

    def settle(self, what: str) -> None:
        """Wait for all that must have come out, and look at the registers."""
        self.steps += [Step("sent"), Step("expect", count=len(self.frames))]
        self.steps += [Step("wait", count=16), Step("status")]
        expected = {**self.error, "matrices": self.golden.good_matrices}
        if not self.error["error"]:  # how far a bad matrix gets is nobody's business
            expected |= self.counters
        self.statuses.append((what, expected))

    def clear(self, step: str = "clear") -> None:
        self.steps.append(Step(step))
        self.golden.clear()
        self.start()

    def play(self, *, pause: str = "none", seed: int = 1) -> Recording:
        """Run the bench and compare."""
        recording = play(self.params, self.steps, pause=pause, seed=seed)
        for (what, expected), frame in zip(self.frames, recording.frames, strict=False):
            found = ErrorKind(frame.values[0]) if frame.error else frame.values
            if isinstance(expected, ErrorKind):
                assert found is expected, f"{what}: {found}"
                assert len(frame.values) == 1, what
            else:
                assert not frame.error, f"{what}: found {found!r}"
                np.testing.assert_array_equal(frame.values, expected, what)
        last = self.frames[len(recording.frames) - 1][0] if recording.frames else "the start"
        assert not recording.locked_up, f"after {last}: {recording.statuses[-1]}"
        for (what, status), seen in zip(self.statuses, recording.statuses, strict=False):
            assert {name: seen[name] for name in status} == status, what
            if not status["error"]:
                assert seen["words"] + seen["stalls"] + seen["starved"] == seen["cycles"], what
        assert len(recording.frames) == len(self.frames)
        assert len(recording.statuses) == len(self.statuses)
        return recording


def play(
    params: AcceleratorParams,
    steps: list[Step],
    *,
    pause: str = "none",
    seed: int = 1,
    timeout: int = 40_000,
) -> Recording:
    job = Job(steps, pause=pause, seed=pause_seed(seed), timeout=timeout)
    recording = run_bench(verilog(params), top_name(params), BENCH, job, seed=seed)
    assert isinstance(recording, Recording)
    return recording


def random_table(params: AcceleratorParams, numbers: int, rng: np.random.Generator) -> Table:
    """Return a table of classes that holds the numbers below `numbers`, and often more."""
    limit = params.suffix_limit
    while True:
        bits = rng.integers(0, int(rng.integers(1, limit + 1)) + 1, int(rng.integers(1, CLASSES)))
        if (2**bits).sum() < numbers:
            bits = np.append(bits, min(limit, (numbers - 1).bit_length()))
        offsets = classes(*bits.tolist()).offsets
        if (2**bits).sum() >= max(2, numbers) and max(offsets) < 2**11:
            return classes(*bits.tolist())


KINDS_OF_CODE = ("eg-k", "eg-k dense", "eg-run", "eg-table", "eg-table dense", "tables", "mixed")


def kinds_of_code(params: AcceleratorParams) -> list[str]:
    """Return the kinds that an accelerator knows."""
    run, table = (name in params.codes for name in CODE_NAMES[1:])
    known = {"eg-run": run, "tables": run and table, "mixed": run and table}
    known |= {"eg-table": table, "eg-table dense": table}
    return [kind for kind in KINDS_OF_CODE if known.get(kind, True)]


def random_code(
    params: AcceleratorParams, kind: str, entries: int, rng: np.random.Generator
) -> Code:
    """Return a code with a codeword for every index and for the filler."""
    highest = min(7, params.suffix_limit)
    # The highest order of a small suffix limit may have no codeword for the filler.
    orders = [k for k in range(highest + 1) if golomb(k, params).longest >= entries]
    eg_k = golomb(int(rng.choice(orders)), params)
    table = random_table(params, entries + 1, rng)
    runs = random_table(params, int(rng.integers(1, 40)), rng)
    match kind:
        case "eg-k":
            return Code(eg_k)
        case "eg-k dense":
            return Code(eg_k, dense=True)
        case "eg-run":
            return Code(eg_k, golomb(int(rng.integers(highest + 1)), params))
        case "eg-table":
            return Code(table)
        case "eg-table dense":
            return Code(table, dense=True)
        case "tables":
            return Code(table, runs)
        case _:
            other = golomb(int(rng.integers(highest + 1)), params)
            return Code(eg_k, runs) if rng.random() < 0.5 else Code(table, other)


KINDS_OF_MATRIX = ("sparse", "very sparse", "medium", "uniform", "all zero", "extreme", "skewed")


class Host:
    """Sends random matrices of every kind back to back, as a host would that uses everything."""

    def __init__(self, params: AcceleratorParams, rng: np.random.Generator, what: str) -> None:
        self.params = params
        self.rng = rng
        self.script = Script(params)
        self.what = what
        self.start()

    def start(self) -> None:
        """Begin as after a reset."""
        self.codes: list[tuple[Code, int] | None] = [None] * self.params.code_banks
        self.held = np.zeros((0, self.params.batch), np.int8)
        self.kept = False
        self.recent: list[dict[str, range]] = []

    def place(self, table: str, size: int, depth: int) -> int | None:
        """Return where a table may be written that nothing under way uses, if anywhere."""
        for base in self.rng.integers(0, depth - size + 1, 30).tolist():
            if all(
                base >= used[table].stop or base + size <= used[table].start for used in self.recent
            ):
                return int(base)
        return None

    def code(self, entries: int) -> tuple[int, Code]:
        """Return a bank and its code for so many entries, often a new one."""
        banks = self.params.code_banks
        bank = int(self.rng.integers(banks))
        held = self.codes[bank]
        if held is None or held[1] < entries or self.rng.random() < 0.5 / banks:
            kind = str(self.rng.choice(kinds_of_code(self.params)))
            held = random_code(self.params, kind, entries, self.rng), entries
            self.codes[bank] = held
            self.script.setup(code_packet(self.params, held[0], bank))
        return bank, held[0]

    def values(self, kind: str, entries: int) -> np.ndarray:
        limit = 1 << (self.params.weight_bits - 1)
        if kind == "extreme":  # only the largest magnitudes: accumulators at their limits
            return self.rng.choice([-limit, -limit, limit - 1], entries)
        values = self.rng.integers(-limit, limit, entries)
        values[self.rng.random(entries) < 0.1] = 0  # zeros at other places too
        return values

    def indices(self, kind: str, shape: tuple[int, int], entries: int) -> np.ndarray:
        """Return indices of weights, -1 where they are 0."""
        rng = self.rng
        indices = rng.geometric(float(rng.choice([0.1, 0.5])), shape).clip(max=entries) - 1
        if kind == "uniform":
            indices = rng.integers(0, entries, shape)
        zeros = {"sparse": 0.85, "very sparse": 0.99, "medium": 0.5, "all zero": 1.0}.get(kind, 0.0)
        indices[rng.random(shape) < zeros] = -1
        if kind == "skewed":  # zeros in one half, none in the other
            indices[: shape[0] // 2] = -1
        return indices

    def inputs(self, columns: int) -> np.ndarray:
        if self.rng.random() < 0.3:
            return np.full((columns, self.params.batch), -128, np.int8)
        return self.rng.integers(-128, 128, (columns, self.params.batch)).astype(np.int8)

    def bias(self, sums: np.ndarray) -> tuple[np.ndarray, int]:
        """Return biases for rows with these sums, and roughly the bits of the results."""
        rows = len(sums)
        if self.rng.random() < 0.5:
            return self.rng.integers(-(2**15), 2**15, rows), 24
        low, high = -(2**31), 2**31 - 1  # as far as the results, or the bias, may go
        up = self.rng.random(rows) < 0.5
        bias = np.where(up, high - sums.max(axis=1), low - sums.min(axis=1))
        return bias.clip(low, high), 31

    def shape(self, number: int, keep: bool) -> tuple[int, int]:
        """Return the size of a matrix whose input is free."""
        params, rng = self.params, self.rng
        rows = int(rng.choice([1, 2, params.substreams + 1, int(rng.integers(3, 24))]))
        columns = int(rng.choice([1, 2, 3, int(rng.integers(4, 40))]))
        if number % 8 == 2:
            columns = params.activation_depth
        if number % 8 == 4:
            rows = params.activation_depth if keep else params.row_depth
        return rows, columns

    def matrix(self, number: int, *, last: bool) -> None:
        """Send one matrix, in tiles of columns now and then."""
        rng, params = self.rng, self.params
        keep = not last and rng.random() < 0.5
        rows, columns = self.shape(number, keep)
        load = len(self.held) == 0 or rng.random() < 0.5
        tiles = int(rng.choice([1, 1, 1, 2, 3]))
        before = np.zeros((rows, params.batch), int)
        emits = 3 if last else int(rng.choice([0, 1, 1, 2, 2, 3, 3]))
        for tile in range(tiles):
            ends = tile == tiles - 1
            if load:
                self.held = self.inputs(columns)
            columns = len(self.held)
            fields: dict[str, Any] = {"load_activations": load, "more": 1, "emit_results": 0}
            if ends:
                fields = {
                    "load_activations": load,
                    # What is read again cannot be followed by results that are kept.
                    "keep_activations": keep and (load or self.kept),
                    "emit_results": emits & 1,
                    "emit_activations": emits >> 1,
                }
            label = f"{self.what}, matrix {number}, tile {tile}: {rows} x {columns}"
            before = self.tile(label, (rows, columns), before, fields, ends=ends)
            load = bool(rng.random() < 0.5)
            columns = self.shape(number, keep)[1]

    def tile(
        self,
        label: str,
        shape: tuple[int, int],
        before: np.ndarray,
        fields: dict[str, Any],
        *,
        ends: bool,
    ) -> np.ndarray:
        """Send a tile whose sums are added to those `before`; return the sums."""
        rng, params = self.rng, self.params
        kind = str(rng.choice(KINDS_OF_MATRIX))
        entries = int(rng.choice([1, 2, 5, params.map_depth // 2, params.map_depth]))
        entries = min(entries, (1 << params.weight_bits) - 1)
        base = None if rng.random() < 0.3 else self.place("map", entries, params.map_depth)
        bank, code = self.code(entries)
        indices = self.indices(kind, shape, entries)
        if base is None:
            numbers = np.arange(entries) + (code.run is not None)
            values = (numbers >> 1) ^ -(numbers & 1)
            fields = {**fields, "zigzag": 1}
        else:
            values = self.values(kind, entries)
            self.script.setup(map_packet(params, base, values.tolist()))
            fields = {**fields, "map_base": base}
        if code.zero is not None:
            indices[indices == code.zero] = -1
        weights = np.where(indices < 0, 0, values[indices])
        sums = before + weights @ self.held.astype(int)
        uses = {"map": range(base or 0, 0 if base is None else base + entries), "bias": range(0)}
        bits = 24
        if ends and rng.random() < 0.7:
            bias_base = self.place("bias", shape[0], 2 * params.row_depth)
            if bias_base is not None:
                bias, bits = self.bias(sums)
                self.script.setup(bias_packet(params, bias_base, bias.tolist()))
                fields = {**fields, "has_bias": 1, "bias_base": bias_base}
                uses["bias"] = range(bias_base, bias_base + shape[0])
        data = coded_matrix(
            params,
            indices,
            code,
            ranges=random_cut(params, shape, rng),
            trim=bool(rng.random() < 0.7),
            extra_words=int(rng.choice([0, 0, 1, 5])),
            code_bank=bank,
            map_entries=entries,
            relu=int(rng.integers(2)),
            multiplier=int(rng.choice([0, 1, int(rng.integers(2**15, 2**16)), 2**16 - 1])),
            shift=int(rng.choice([0, bits - 8, bits + 8, int(rng.integers(bits, 64))])),
            **fields,
        )
        label += f", {kind}, {entries} entries, {code}"
        x = self.held if fields["load_activations"] else None
        outcome = self.script.send(label, data, x)
        assert outcome.error is ErrorKind.NONE, label
        assert outcome.non_zeros == np.count_nonzero(weights), label
        self.recent = [*self.recent[-1:], uses]
        self.kept = bool(fields.get("keep_activations"))
        if self.kept:
            self.held = outcome.activations
        return sums

    def chain(self, length: int) -> None:
        """Send matrices back to back, each with its own code, map, bias and size."""
        for number in range(length):
            self.matrix(number, last=number == length - 1)
        self.script.settle(self.what)


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("params", SETS, ids=lambda params: params.name)
def test_random_matrices(params: AcceleratorParams, pause: str) -> None:
    seed = 100 * SETS.index(params) + list(PAUSES).index(pause)
    host = Host(params, generator(seed), f"seed {seed}")
    for _ in range(2):
        host.chain(12)
    host.script.clear()
    host.start()
    host.chain(6)
    host.script.play(pause=pause, seed=seed + 1)


@pytest.mark.parametrize("params", SETS, ids=lambda params: params.name)
def test_every_kind_of_code_from_matrix_to_matrix(params: AcceleratorParams) -> None:
    """Every kind of code follows every other one at once, with the two of two banks in turns."""
    rng = generator(SETS.index(params))
    script = Script(params)
    entries = params.map_depth // 2
    values = rng.integers(-100, 100, entries)
    values[0] = 0
    kinds = kinds_of_code(params)
    order = [kind for first in kinds for second in kinds for kind in (first, second)]
    script.setup(map_packet(params, 0, values.tolist()))
    for number, kind in enumerate(order):
        code = random_code(params, kind, entries, rng)
        bank = number % params.code_banks
        script.setup(code_packet(params, code, bank))
        indices = rng.integers(-1, entries, (7, 9))
        indices[rng.random(indices.shape) < 0.6] = -1
        indices[indices == code.zero] = -1
        x = rng.integers(-128, 128, (9, params.batch)).astype(np.int8)
        data = coded_matrix(
            params,
            indices,
            code,
            ranges=random_cut(params, indices.shape, rng),
            map_entries=entries,
            code_bank=bank,
            load_activations=int(number % 3 == 0),
        )
        what = f"{kind} at {number}, {code}"
        outcome = script.send(what, data, x if number % 3 == 0 else None)
        assert outcome.error is ErrorKind.NONE, what
        if kind not in order[:number]:
            row = indices[:1]
            data = coded_matrix(params, row, code, map_entries=entries, code_bank=bank)
            assert script.send(f"{what}, one row", data, x).error is ErrorKind.NONE
    script.settle("every code")
    script.play()


@pytest.mark.parametrize("params", SETS, ids=lambda params: params.name)
def test_corners(params: AcceleratorParams) -> None:
    """The sizes, places and tables at their limits, each beside the next."""
    rng = generator(7)
    script = Script(params)
    depth, limit = params.map_depth, 1 << (params.weight_bits - 1)
    table = rng.integers(-limit, limit, depth)
    table[[0, 1, -1]] = 0, -limit, limit - 1
    # Faster than they are dealt, so that the dealer's queues fill: of words, and of sections.
    script.setup(*[map_packet(params, 0, table.tolist())] * 3)
    script.setup(*(map_packet(params, place, [int(table[place])]) for place in range(12)))
    code = Code(golomb(0, params))
    rows, columns = params.row_depth, params.activation_depth
    biases = rng.integers(-(2**31), 2**31, 2 * rows)
    script.setup(bias_packet(params, 0, biases.tolist()), code_packet(params, code))

    def run(what: str, indices: np.ndarray, **fields: Any) -> None:
        x = np.full((indices.shape[1], params.batch), -128, np.int8)
        x[rng.random(x.shape) < 0.2] = 127
        data = coded_matrix(params, indices, code, map_entries=depth, **fields)
        outcome = script.send(what, data, x)
        assert outcome.error is ErrorKind.NONE, what

    one = np.full((1, 1), depth - 1)
    run("a single weight", one)
    # In turns, so that either place of a matrix under way has them.
    for bits in (15, 15, 8, 8):
        run(f"{bits} column bits", one, start_bits=bits)
    run("in the last range", one, ranges=[(0, 0)] * (params.substreams - 1) + [(0, 1)])
    run("a single zero", one - depth)
    run("a column", rng.integers(-1, depth, (rows, 1)))
    run("a row", rng.integers(-1, depth, (1, columns)))
    run("half of the largest matrix", rng.integers(-1, 2, (rows - 1, columns // 2 + 1)))
    run("the largest accumulators", np.full((3, columns), 1))
    run("the largest matrix of zeros", np.full((rows, columns), -1), trim=True)
    run("zeros written out", np.full((5, columns), -1), trim=False)
    corners = np.full((rows, columns), -1)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = 1
    run("the corners of the largest matrix", corners, trim=False)
    run("all in one range", corners, ranges=[(0, corners.size)] * 1 + [(0, 0)] * (
        params.substreams - 1
    ))  # fmt: skip
    run("far more words than needed", one, extra_words=200)
    ends = rng.integers(-1, depth, (9, 5))
    run("cut at the ends of rows", ends, ranges=row_ranges(params, ends.shape))
    if "eg-table" in params.codes:
        # A weight that counts in every bit, more than any lane multiplies.
        code = Code(golomb(0, params), dense=True)
        script.setup(code_packet(params, code))
        run("a product for every bit", np.zeros((rows, columns), int))
    script.settle("corners")
    script.play()


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_every_multiplier_bit_and_shift(params: AcceleratorParams) -> None:
    """Requantised results of matrices side by side, neither saturated nor all 0."""
    rng = np.random.default_rng(11)
    script = Script(params)
    code = Code(golomb(1, params))
    script.setup(map_packet(params, 0, [0, 3, -2, 60, -61]), code_packet(params, code))
    for shift in range(64):
        # A single bit of the multiplier, every fourth time with others: its product fills the range
        # of the shift, as far as 32 bits of bias go.
        multiplier = 1 << min(15, max(0, shift - 24 + shift % 8))
        multiplier |= 0x8001 if shift % 4 == 3 else 0
        most = min(2**30, (200 << shift) // multiplier)
        bias = rng.integers(-most, most + 1, 4)
        indices = rng.integers(0, 5, (4, 3))
        base = 8 * (shift % 8)
        script.setup(bias_packet(params, base, bias.tolist()))
        data = coded_matrix(
            params,
            indices,
            code,
            map_entries=5,
            has_bias=1,
            bias_base=base,
            multiplier=multiplier,
            shift=shift,
            emit_activations=1,
        )
        outcome = script.send(f"shift {shift}", data, np.ones((3, params.batch), np.int8))
        assert outcome.error is ErrorKind.NONE
    script.settle("every shift")
    script.play()


def row_ranges(params: AcceleratorParams, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Cut at ends of rows only, the last ranges being empty."""
    rows, columns = shape
    edges = [min(rows, s) * columns for s in range(params.substreams)] + [rows * columns]
    return list(pairwise(edges))


@pytest.mark.parametrize("params", SETS, ids=lambda params: params.name)
def test_packer_against_golden_and_plain_integers(params: AcceleratorParams) -> None:
    seed = SETS.index(params)
    rng = generator(seed)
    layers = []
    for number, (columns, rows) in enumerate(pairwise([40, 33, 12, 5])):
        values = np.rint(rng.laplace(size=(rows, columns)) * 1.5).astype(np.int32).clip(-7, 7)
        values[rng.random(values.shape) < (0.0, 0.6, 0.9)[number]] = 0
        layers.append(
            IntegerLayer(
                name=f"layer{number}",
                weight=QuantizedTensor(values, 8),
                bias=rng.normal(size=rows).astype(np.float32) if number else None,
                input_scale=0.05,
                output_scale=0.05,
                multiplier=40000,
                shift=19,
                relu=number < 2,
            )
        )
    network = IntegerNetwork("random", tuple(layers))
    script = Script(params)
    for codes in ("auto", *params.codes):
        what = f"seed {seed}, codes {codes}"
        try:
            image = build_image(network, params, emit="all", codes=codes)
        except CapacityError:
            assert (codes, params.map_depth) == ("eg-table", 16), what
            continue
        script.setup(*(packet.data for packet in image.setup))
        for again in range(2):
            x = rng.integers(-128, 128, (params.batch, 40)).astype(np.int8)
            plain = reference_forward(network, x)
            for packet in image.packets:
                label = f"{what}, pass {again}, {packet.name}"
                if not isinstance(packet, MatrixPacket):
                    script.setup(packet.data)
                    continue
                # The packer turns the columns around, for hosts that send them from the front.
                taken = x[:, packet.first_column :][:, : packet.columns]
                outcome = script.send(
                    label, packet.data, taken.T[::-1] if packet.load_activations else None
                )
                if outcome.streams:
                    expected = plain[packet.layer]
                    np.testing.assert_array_equal(outcome.results, expected.results.T, label)
                    np.testing.assert_array_equal(
                        outcome.activations, expected.activations.T, label
                    )
        script.settle(what)
        script.clear()
    script.play(seed=seed + 1)


class Faults:
    """Small good packets to damage; after each fault comes `clear`, then another good matrix."""

    def __init__(self, params: AcceleratorParams = FAULTY, seed: int = 1) -> None:
        self.script = Script(params)
        self.rng = generator(seed)
        self.word = params.bus_bits // 8
        indices = self.rng.geometric(0.5, (6, 8)).clip(max=5) - 1
        self.code = Code(golomb(1, params))
        table = [0, 3, -2, 2 ** (params.weight_bits - 1) - 1, -(2 ** (params.weight_bits - 1))]
        self.setup = [
            code_packet(params, self.code),
            map_packet(params, 2, table),
            bias_packet(params, 5, self.rng.integers(-1000, 1000, 6).tolist()),
        ]
        self.matrix = coded_matrix(
            params, indices, self.code, map_base=2, map_entries=5, has_bias=1, bias_base=5,
            multiplier=9, shift=9,
        )  # fmt: skip
        other = self.rng.integers(0, 4, (4, 7))
        good = Code(golomb(2, params), dense=True)
        bank = params.code_banks - 1
        self.good_setup = [
            code_packet(params, good, bank),
            map_packet(params, 0, [5, 0, -7, 1]),
        ]
        self.good = coded_matrix(
            params, other, good, code_bank=bank, map_entries=4, keep_activations=1,
            emit_activations=1, multiplier=40000, shift=17,
        )  # fmt: skip

    def packet(self, x: np.ndarray) -> bytes:
        return activation_packet(self.script.params, x)

    def vector(self, columns: int = 8) -> np.ndarray:
        shape = (columns, self.script.params.batch)
        return self.rng.integers(-128, 128, shape).astype(np.int8)

    def fault(
        self,
        what: str,
        packet: bytes,
        *,
        x: np.ndarray | None = None,
        recover: bool = True,
    ) -> Outcome:
        """Send a packet that is wrong; a matrix gets activations, which may come to nothing."""
        outcome = self.script.send(what, packet, x)
        assert outcome.error is not ErrorKind.NONE, what
        self.script.settle(what)
        if recover:
            self.recover(what)
        return outcome

    def recover(self, what: str) -> None:
        self.script.clear()
        self.script.setup(*self.good_setup)
        outcome = self.script.send(f"good after {what}", self.good, self.vector(7))
        assert outcome.error is ErrorKind.NONE
        self.script.settle(f"good after {what}")
        self.script.clear()


def flips(packet: bytes, first: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the packet with each bit of these bytes flipped in turn, and the bit's number."""
    for bit in range(8 * first, 8 * end):
        data = bytearray(packet)
        data[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(data)


def asks_for_activations(packet: bytes) -> bool:
    """Return whether the packet is read as a matrix that waits for activations."""
    return packet[3] == PacketKind.MATRIX and bool(packet[8] & 1)


WHOLE_FAULTS = [SETS[0], FAULTY, SETS[2]]
"""A serial parser, interleaved ones, microcode."""


@pytest.mark.parametrize("params", WHOLE_FAULTS, ids=lambda params: params.name)
def test_every_bit_of_a_matrix_packet_flipped_is_an_error(params: AcceleratorParams) -> None:
    faults = Faults(params)
    for bit, data in flips(faults.matrix, 0, len(faults.matrix)):
        faults.script.setup(*faults.setup)
        x = faults.vector() if asks_for_activations(data) else None
        outcome = faults.fault(f"bit {bit}", data, x=x)
        assert outcome.error is ErrorKind.CRC or bit < 24 * 8
    faults.script.play()


@pytest.mark.parametrize("which", range(3), ids=["code", "map", "bias"])
def test_every_bit_of_a_load_packet_flipped_is_an_error(which: int) -> None:
    faults = Faults(seed=2)
    packet = faults.setup[which]
    for bit, data in flips(packet, 0, len(packet)):
        if which == 0:
            # A code is loaded, should the packet become a matrix.
            faults.script.setup(packet)
        x = faults.vector() if asks_for_activations(data) else None
        outcome = faults.fault(f"bit {bit}", data, x=x)
        assert outcome.error is ErrorKind.CRC or bit < 8 * 8
    faults.script.play()


@pytest.mark.parametrize("pause", ["random", "bursts"])
def test_bits_flipped_with_pauses(pause: str) -> None:
    faults = Faults(seed=9)
    for number, (bit, data) in enumerate(flips(faults.matrix, 0, len(faults.matrix))):
        if number % 5 == 0:
            faults.script.setup(*faults.setup)
            x = faults.vector() if asks_for_activations(data) else None
            faults.fault(f"bit {bit}", data, x=x)
    faults.script.play(pause=pause)


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_nothing_is_sent_before_the_crc_word_is_right(params: AcceleratorParams) -> None:
    # So slowly that the lanes have done all they can before it comes; and behind matrices that
    # were right.
    faults = Faults(params, seed=10)
    for bit, data in flips(faults.matrix, len(faults.matrix) - 4, len(faults.matrix)):
        if bit % 8 == 5:
            faults.script.setup(*faults.setup)
            # Two or three, for either place that a matrix under way has.
            for _ in range(2 + bit // 8 % 2):
                faults.script.send("good", faults.matrix, faults.vector())
            faults.script.settle("good")
            outcome = faults.fault(f"bit {bit}", data, x=faults.vector())
            assert outcome.error is ErrorKind.CRC
    faults.script.play(pause=TRICKLE)


@pytest.mark.parametrize("params", [SETS[2]], ids=lambda params: params.name)
def test_bits_flipped_of_microcode(params: AcceleratorParams) -> None:
    faults = Faults(params, seed=11)
    code = faults.setup[0]
    for bit, data in flips(code, 8, len(code)):
        if bit % 61 == 0 or bit >= 8 * (len(code) - 4):
            assert faults.fault(f"bit {bit}", data).error is ErrorKind.CRC
    faults.script.play()


@pytest.mark.parametrize("params", [SETS[1], SETS[2], FAULTY, SETS[6]], ids=lambda p: p.name)
def test_weights_wait_for_activations(params: AcceleratorParams) -> None:
    # More than all queues hold.
    faults = Faults(params, seed=12)
    script = faults.script
    script.setup(*faults.setup)
    indices = faults.rng.geometric(0.4, (24, 40)).clip(max=5) - 1
    matrix = coded_matrix(
        params, indices, faults.code, map_base=2, map_entries=5, multiplier=9, shift=9
    )
    for number in range(3):
        script.send(f"matrix {number}", matrix, faults.vector(40))
        late = script.steps.pop(-2)
        assert late.kind == "activations"
        script.steps += [Step("wait", count=1000), late]
    script.settle("the last one")
    script.play()


@pytest.mark.parametrize("params", [FAULTY, SETS[2], SETS[6]], ids=lambda params: params.name)
def test_wrong_lengths_are_errors(params: AcceleratorParams) -> None:
    faults = Faults(params, seed=3)
    word = faults.word
    for number, packet in enumerate([*faults.setup, faults.matrix]):
        waits = number == len(faults.setup)
        for words in range(1, len(packet) // word):
            faults.script.setup(*faults.setup)
            x = faults.vector() if waits else None
            outcome = faults.fault(f"{number}: {words} words", packet[: words * word], x=x)
            assert outcome.error is ErrorKind.TRUNCATED
        # More words; and no TLAST, so that the next packet's words follow.
        for tail in (bytes(word), bytes(50 * word), faults.good_setup[0], packet):
            faults.script.setup(*faults.setup)
            x = faults.vector() if waits else None
            outcome = faults.fault(f"{number}: {len(tail)} bytes more", packet + tail, x=x)
            assert outcome.error is ErrorKind.OVERRUN
    faults.script.play()


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_wrong_numbers_of_activations_are_errors(params: AcceleratorParams) -> None:
    faults = Faults(params, seed=3)
    for columns in (1, 4, 9, 30):
        faults.script.setup(*faults.setup)
        outcome = faults.fault(f"{columns} columns", faults.matrix, x=faults.vector(columns))
        assert outcome.error is ErrorKind.ACTIVATIONS
        faults.script.setup(*faults.setup)
        what = f"{columns} columns behind a good matrix"
        faults.script.send(what, faults.matrix, faults.vector())
        outcome = faults.fault(what, faults.matrix, x=faults.vector(columns))
        assert outcome.error is ErrorKind.ACTIVATIONS
    # Both: what comes first in the list of errors.
    damaged = bytearray(faults.matrix)
    damaged[-1] ^= 1
    for data in (faults.matrix[: -faults.word], faults.matrix + bytes(faults.word), bytes(damaged)):
        for columns in (3, 20):
            faults.script.setup(*faults.setup)
            faults.fault(f"{columns} columns too", data, x=faults.vector(columns))
    faults.script.play()


def test_the_padding_of_the_crc_word_counts() -> None:
    params = SETS[6]
    assert params.bus_bits == 64
    faults = Faults(params, seed=4)
    for bit, data in flips(faults.matrix, len(faults.matrix) - faults.word, len(faults.matrix)):
        faults.script.setup(*faults.setup)
        outcome = faults.fault(f"bit {bit}", data, x=faults.vector())
        assert (outcome.error, outcome.position) == (
            ErrorKind.CRC,
            len(data) // faults.word - 1,
        )
    faults.script.play()


@pytest.mark.parametrize("params", WHOLE_FAULTS, ids=lambda params: params.name)
def test_matrices_before_an_error_are_finished(params: AcceleratorParams) -> None:
    """One to three good matrices run when a packet is wrong, be it at once or at its end."""
    faults = Faults(params, seed=8)
    wrong_header, wrong_end = bytearray(faults.matrix), bytearray(faults.matrix)
    wrong_header[0] ^= 1
    wrong_end[-1] ^= 1
    reading = coded_matrix(
        params, np.full((5, 8), 1), faults.code, map_base=2, map_entries=5, load_activations=0
    )
    for count in range(1, 4):
        for packet in (wrong_header, wrong_end, faults.matrix[: -faults.word], faults.setup[0][:4]):
            script = faults.script
            script.setup(*faults.setup)
            what = f"{count} matrices before {bytes(packet).hex()}"
            script.send(what, faults.matrix, faults.vector())
            for _ in range(count - 1):
                script.send(what, reading)
            waits = len(packet) > 12
            # It takes activations of its own, which a matrix before must not see.
            faults.fault(what, bytes(packet), x=faults.vector() if waits else None)
    faults.script.play()


@pytest.mark.parametrize("pause", ["none", "bursts"])
def test_nothing_is_looked_at_between_an_error_and_clear(pause: str) -> None:
    faults = Faults(seed=5)
    script = faults.script
    for number in range(4):
        script.setup(*faults.setup)
        damaged = faults.matrix[: -faults.word]
        faults.fault("a fault", damaged, x=faults.vector(), recover=False)
        for _ in range(number):
            for packet in (*faults.good_setup, faults.good):
                waits = packet is faults.good
                outcome = script.send("discarded", packet, faults.vector(7) if waits else None)
                assert outcome.discarded
        script.steps.append(Step("wait", count=100 * number + 100))
        script.settle("still in error")
        faults.recover("discarded packets")
    script.play(pause=pause)


def test_a_code_that_was_not_loaded_is_an_error() -> None:
    for params in (FAULTY, SETS[2]):
        faults = Faults(params)
        outcome = faults.fault("no code", faults.matrix, x=faults.vector())
        assert outcome.error is ErrorKind.DESCRIPTOR
        if params.code_banks == 2:
            faults.script.setup(*faults.good_setup)
            outcome = faults.fault("only the other code", faults.matrix, x=faults.vector())
            assert outcome.error is ErrorKind.DESCRIPTOR
        faults.script.play()


def garbled(
    params: AcceleratorParams, code: Code, entries: int, rng: np.random.Generator
) -> tuple[bytes, int]:
    """Return a matrix with a right CRC whose substreams are wrong or hold noise; its columns."""
    rows = int(rng.integers(1, params.row_depth // 2))
    columns = int(rng.choice([1, 2, int(rng.integers(3, 40)), params.activation_depth]))
    length = max(params.parser_bits, params.bus_bits // params.substreams)
    length *= int(rng.integers(1, 8))
    filling = code.filling(entries)
    streams = []
    for _ in range(params.substreams):
        ones = rng.choice([0.25, 0.5, 0.9])
        noise = "".join("01"[bit] for bit in (rng.random(length) < ones) * 1)
        right = code.encode(rng.integers(0, entries, length).tolist(), entries)
        late = (right[: int(rng.integers(length))] + "0" * length)[: length - 1] + "1"
        ends = int(rng.integers(length))
        style = rng.choice(["noise", "right", "right", "zeros", "late", "little", "little"])
        bits = {
            "noise": noise,
            "right": right,
            "zeros": right[:ends] + "0" * length,
            "late": late,
            "little": code.encode([1, *[None] * 3, 1], entries) if entries > 1 else "",
        }[str(style)]
        streams.append((bits + filling * length)[:length])
    starts = [
        (int(rng.integers(rows + 2)), int(rng.integers(columns))) for _ in range(params.substreams)
    ]
    data = matrix_packet(
        params,
        (rows, columns),
        streams,
        starts,
        filling=filling,
        map_entries=entries,
        wide_starts=int(rng.integers(2)),
    )
    return data, columns


@pytest.mark.parametrize("params", SETS, ids=lambda params: params.name)
def test_codes_that_are_wrong_in_themselves(params: AcceleratorParams) -> None:
    seed = SETS.index(params)
    faults = Faults(params, seed=seed)
    kinds = set()
    known = kinds_of_code(params)
    for number in range(150):
        entries = int(faults.rng.integers(1, params.map_depth))
        code = random_code(params, known[number % len(known)], entries, faults.rng)
        data, columns = garbled(params, code, entries, faults.rng)
        what = f"seed {seed}, garbled {number}: {code}"
        values = faults.rng.integers(-8, 8, params.map_depth)
        faults.script.setup(code_packet(params, code), map_packet(params, 0, values.tolist()))
        outcome = faults.script.send(what, data, faults.vector(columns))
        kinds.add(outcome.error)
        faults.script.settle(what)
        faults.recover(what)
    assert kinds == {ErrorKind.NONE, ErrorKind.PREFIX, ErrorKind.INDEX, ErrorKind.ROW}
    faults.script.play()


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_errors_of_the_second_of_two_matrices(params: AcceleratorParams) -> None:
    faults = Faults(params, seed=12)
    kinds = set()
    for number in range(60):
        what = f"garbled {number} behind a good one"
        values = faults.rng.integers(-8, 8, params.map_depth)
        faults.script.setup(*faults.setup[::2], map_packet(params, 0, values.tolist()))
        faults.script.send(what, faults.matrix, faults.vector())
        entries = int(faults.rng.integers(5, params.map_depth))
        data, columns = garbled(params, faults.code, entries, faults.rng)
        outcome = faults.script.send(what, data, faults.vector(columns))
        kinds.add(outcome.error)
        faults.script.settle(what)
        faults.recover(what)
    assert kinds >= {ErrorKind.PREFIX, ErrorKind.INDEX, ErrorKind.ROW}
    # A wrong index in each substream, of the first and of the second.
    for number in range(2 * params.substreams):
        what = f"a wrong index in substream {number // 2}, matrix {number % 2}"
        faults.script.setup(*faults.setup)
        if number % 2:
            faults.script.send(what, faults.matrix, faults.vector())
        weights = np.full((1, 4 * params.substreams), -1)
        weights[0, 4 * (number // 2)] = 3
        data = coded_matrix(params, weights, faults.code, map_entries=2)
        outcome = faults.script.send(what, data, faults.vector(weights.size))
        assert outcome.error is ErrorKind.INDEX
        faults.script.settle(what)
        faults.recover(what)
    faults.script.play()


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_the_longest_codewords_and_longer_ones(params: AcceleratorParams) -> None:
    """The longest prefix is a wrong index here; one more zero is an error of its own."""
    faults = Faults(params, seed=15)
    for bank, order in product(range(params.code_banks), range(8)):
        code = Code(golomb(order, params))
        others = [code_packet(params, Code(code.level, golomb(7 - order, params)), 1 - bank)]
        longest = params.suffix_limit - order
        for zeros, kind in ((longest, ErrorKind.INDEX), (longest + 1, ErrorKind.PREFIX)):
            what = f"order {order} in bank {bank}, {zeros} zeros"
            faults.script.setup(*others[: params.code_banks - 1])
            faults.script.setup(code_packet(params, code, bank), map_packet(params, 0, [0, 1]))
            streams = ["0" * zeros + "1" + "0" * (zeros + order)]
            streams += [""] * (params.substreams - 1)
            data = matrix_packet(
                params, (1, 8), streams, [(0, 0)] * params.substreams, filling=code.filling(2),
                map_entries=2, code_bank=bank,
            )  # fmt: skip
            outcome = faults.fault(what, data, x=faults.vector())
            assert outcome.error is kind, what
    faults.script.play()


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_sizes_beyond_the_limits_are_errors(params: AcceleratorParams) -> None:
    faults = Faults(params, seed=13)
    starts = [(0, 0)] * params.substreams
    rows, columns = params.row_depth + 1, params.activation_depth + 1
    for shape, keep in (
        ((rows, 8), 0),
        ((2 * params.row_depth, 8), 0),
        ((8, columns), 0),
        ((params.activation_depth + 1, 8), 1),
    ):
        faults.script.setup(*faults.setup)
        data = matrix_packet(
            params, shape, ["0"] * params.substreams, starts, keep_activations=keep
        )
        outcome = faults.fault(f"{shape}", data)
        assert outcome.error is ErrorKind.DESCRIPTOR
    faults.script.play()


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_a_code_waits_until_no_matrix_uses_its_bank(params: AcceleratorParams) -> None:
    """Matrices in the lanes' queues, for want of activations, when their bank gets another code."""
    rng = np.random.default_rng(14)
    script = Script(params)
    bank = params.code_banks - 1
    script.setup(map_packet(params, 0, [0, 3, -2, 60, -61]))
    for number in range(48):
        # One matrix before every other one, so that either parity waits.
        for _ in range(number % 2):
            code = Code(golomb(0, params))
            script.setup(code_packet(params, code, 0))
            data = coded_matrix(params, np.ones((1, 2), int), code, map_entries=5)
            script.send("before", data, np.ones((2, params.batch), np.int8))
        for order in (number % 3, 2 - number % 3 + 1):
            code = Code(golomb(order, params))
            script.setup(code_packet(params, code, bank))
            indices = rng.integers(1, 5, (1 + number % 4, 2 + number))
            x = rng.integers(-128, 128, (indices.shape[1], params.batch)).astype(np.int8)
            place = len(script.steps)
            data = coded_matrix(params, indices, code, map_entries=5, code_bank=bank)
            outcome = script.send(f"order {order}, {indices.shape}", data, x)
            assert outcome.error is ErrorKind.NONE
            # Its activations come when the packet behind it has long been offered.
            late = script.steps.pop(place)
            script.setup(code_packet(params, Code(golomb(5, params)), bank))
            script.steps += [Step("wait", count=200), late]
    script.settle("codes that wait")
    script.play()


INTERRUPTIONS = {
    # what happens: a bad packet or not, whether activations are there
    "reset": (False, True),
    "clear": (False, True),
    "clear while waiting for activations": (False, False),
    "clear after an error": (True, False),
}


@pytest.mark.parametrize("what", INTERRUPTIONS)
def test_reset_and_clear_in_any_cycle_of_a_matrix(what: str) -> None:
    bad, with_activations = INTERRUPTIONS[what]
    faults = Faults(seed=6)
    params = faults.script.params
    x = faults.vector(7)
    # Of as many columns as the good one, so that it does not matter whose activations are taken.
    weights = coded_matrix(params, faults.rng.integers(-1, 5, (9, 7)), faults.code, map_base=2,
                           map_entries=5)  # fmt: skip
    data = bytearray(weights)
    data[2] ^= bad  # the version
    golden = GoldenAccelerator(params)
    for packet in faults.setup:
        golden.run_packet(packet)
    outcome = golden.run_packet(bytes(data), x[::-1])
    golden.clear()
    for packet in faults.good_setup:
        golden.run_packet(packet)
    good = golden.run_packet(faults.good, x[::-1])
    cycles = range(130)
    steps: list[Step] = []
    for cycle in cycles:
        steps += [Step("weights", packet) for packet in faults.setup]
        steps += [Step("sent"), Step("wait", count=100)]
        if with_activations:
            steps.append(Step("activations", faults.packet(x)))
        steps += [Step("weights", bytes(data)), Step("wait", count=4 + cycle)]
        steps += [Step(what.split()[0])]
        # The rest of the packet passes, and results already accepted leave.
        steps += [Step("wait", count=100)]
        steps += [Step("weights", packet) for packet in faults.good_setup]
        steps += [Step("weights", faults.good), Step("offer", faults.packet(x))]
        steps += [Step("wait", count=300), Step("status"), Step("clear")]
    steps.append(Step("expect", count=10**9))  # the frames that there are
    recording = play(params, steps, timeout=500)
    frames = iter(recording.frames)
    late = 0
    for cycle, status in zip(cycles, recording.statuses, strict=False):
        where = f"{what} in cycle {cycle}"
        frame = next(frames)
        # An interrupted packet gives the whole of its answer or none.
        if frame.error:
            assert bad, where
            assert frame.values.tolist() == [outcome.error], where
        elif frame.values.size != good.results.size:
            assert not bad, where
            np.testing.assert_array_equal(frame.values, outcome.results.ravel(), where)
        if frame.error or frame.values.size != good.results.size:
            late += 1
            frame = next(frames)
        for expected in good.streams:
            assert not frame.error, where
            np.testing.assert_array_equal(frame.values, expected.ravel(), where)
            if expected is not good.streams[-1]:
                frame = next(frames)
        assert (status["error"], status["matrices"], status["irq"]) == (0, 1, 0), where
        assert status["multiplies"] == good.multiplied, where
    assert next(frames, None) is None
    assert 0 < late < len(cycles) or not with_activations


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
@pytest.mark.parametrize("step", ["reset", "clear"])
def test_reset_and_clear_amid_everything(params: AcceleratorParams, step: str) -> None:
    """Setup, codes that change, matrices side by side: stopped in any cycle, and again at rest."""
    faults = Faults(params, seed=7)
    x = faults.vector(7)
    packets: list[tuple[bytes, np.ndarray | None]] = [(packet, None) for packet in faults.setup]
    for number in range(4):
        # Every other one keeps its results, which are the activations of the next.
        keeps = int(number % 2 == 0)
        indices = faults.rng.integers(-1, 5, (9, 7) if keeps else (6, 9))
        code = Code(golomb(number, params))
        bank = number % params.code_banks
        packets.append((code_packet(params, code, bank), None))
        data = coded_matrix(
            params,
            indices,
            code,
            map_base=2,
            map_entries=5,
            code_bank=bank,
            load_activations=keeps,
            keep_activations=keeps,
            multiplier=9,
            shift=9,
        )
        packets.append((data, x if number % 2 == 0 else None))
    golden = GoldenAccelerator(params)
    expected = [
        stream.ravel()
        for data, taken in packets
        for stream in golden.run_packet(data, None if taken is None else taken[::-1]).streams
    ]
    golden.clear()
    for packet in faults.good_setup:
        golden.run_packet(packet)
    good = golden.run_packet(faults.good, x[::-1])
    # Microcode takes a thousand cycles to make.
    span, stride, rest = (600, 3, 300) if params.parser == "logic" else (6500, 47, 1500)
    steps: list[Step] = []
    cycles = range(1, span, stride)
    for cycle in cycles:
        for data, taken in packets:
            if taken is not None:
                steps.append(Step("activations", faults.packet(taken)))
            steps.append(Step("weights", data))
        steps += [Step("wait", count=cycle), Step("flush"), Step(step), Step("wait", count=200)]
        # Where a packet was about to begin it was an error, without its tables.
        steps += [Step("clear"), Step("wait", count=20)]
        steps += [Step("weights", packet) for packet in faults.good_setup]
        steps += [Step("offer", faults.packet(x)), Step("weights", faults.good)]
        steps += [Step("wait", count=rest), Step("status"), Step("clear")]
    steps.append(Step("expect", count=10**9))
    recording = play(params, steps, timeout=500)
    frames = iter(recording.frames)
    most = 0
    for cycle, status in zip(cycles, recording.statuses, strict=False):
        where = f"{step} in cycle {cycle}"
        came = 0
        frame = next(frames)
        while frame.values.size != good.results.size:
            if frame.error:
                assert frame.values.tolist() == [ErrorKind.DESCRIPTOR], where
            else:
                np.testing.assert_array_equal(frame.values, expected[came], where)
                came += 1
            frame = next(frames)
        most = max(most, came)
        for stream in good.streams:
            np.testing.assert_array_equal(frame.values, stream.ravel(), where)
            if stream is not good.streams[-1]:
                frame = next(frames)
        assert (status["error"], status["matrices"]) == (0, 1), where
        assert status["multiplies"] == good.multiplied, where
    assert next(frames, None) is None
    # The last one was read when nothing more came.
    assert len(recording.statuses) == len(cycles) + 1
    assert most == len(expected)


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_clear_while_results_are_kept(params: AcceleratorParams) -> None:
    """Activations that wait are taken at once, and not where results are still being kept."""
    faults = Faults(params, seed=9)
    x = faults.vector(7)
    indices = faults.rng.integers(-1, 5, (40, 7))
    fields: dict[str, Any] = {"map_base": 2, "map_entries": 5}
    first = coded_matrix(params, indices[:3], faults.code, **fields)
    keeps = coded_matrix(
        params, indices, faults.code, **fields, keep_activations=1, multiplier=9, shift=9
    )
    golden = GoldenAccelerator(params)
    for packet in faults.good_setup:
        golden.run_packet(packet)
    good = golden.run_packet(faults.good, x[::-1])
    cycles = range(100)
    steps: list[Step] = []
    for cycle in cycles:
        steps += [Step("weights", packet) for packet in (*faults.setup, first, keeps)]
        steps += [Step("activations", faults.packet(x))] * 4
        steps += [Step("sent"), Step("wait", count=cycle), Step("clear")]
        steps += [Step("weights", packet) for packet in (*faults.good_setup, faults.good)]
        rest = 1500 if params.parser == "microcode" else 300
        steps += [Step("wait", count=rest), Step("status"), Step("flush"), Step("clear")]
    steps.append(Step("expect", count=10**9))
    recording = play(params, steps, timeout=1500)
    frames = iter(recording.frames)
    for cycle, status in zip(cycles, recording.statuses, strict=False):
        frame = next(frames)
        while frame.values.size != good.results.size:
            frame = next(frames)
        for stream in good.streams:
            np.testing.assert_array_equal(frame.values, stream.ravel(), f"clear in cycle {cycle}")
            if stream is not good.streams[-1]:
                frame = next(frames)
        assert (status["error"], status["matrices"]) == (0, 1), cycle
    assert next(frames, None) is None


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_clear_while_sums_are_on_their_way(params: AcceleratorParams) -> None:
    """None of them counts as a substream's last one of the next matrix, or reaches its rows."""
    faults = Faults(params, seed=10)
    x, long = faults.vector(7), faults.vector(60)
    fields: dict[str, Any] = {"map_base": 2, "map_entries": 5}
    under_way = coded_matrix(params, faults.rng.integers(1, 5, (10, 7)), faults.code, **fields)
    # A row in one substream, multiplied long after the last bits: were another one counted in its
    # place, it would be sent before.
    dense = Code(golomb(0, params), dense=True)
    setup = [code_packet(params, dense), map_packet(params, 0, [3])]
    late = coded_matrix(
        params,
        np.zeros((1, 60), np.int64),
        dense,
        ranges=cut(params, (1, 60), [0] * (params.substreams - 1)),
        map_entries=1,
    )
    golden = GoldenAccelerator(params)
    for packet in setup:
        golden.run_packet(packet)
    (expected,) = golden.run_packet(late, long[::-1]).streams
    cycles = range(45)
    steps: list[Step] = []
    for cycle in cycles:
        steps += [Step("weights", packet) for packet in (*faults.setup, under_way)]
        steps += [Step("activations", faults.packet(x)), Step("sent")]
        steps += [Step("wait", count=cycle), Step("clear")]
        steps += [Step("weights", packet) for packet in (*setup, late)]
        steps += [Step("activations", faults.packet(long)), Step("sent")]
        steps += [Step("wait", count=400), Step("status"), Step("clear")]
    recording = play(params, [*steps, Step("expect", count=10**9)], timeout=3000)
    found = [frame for frame in recording.frames if frame.values.size == expected.size]
    assert len(found) == len(cycles)
    for cycle, frame, status in zip(cycles, found, recording.statuses, strict=False):
        where = f"clear {cycle} cycles after the last word"
        assert not frame.error, where
        np.testing.assert_array_equal(frame.values, expected.ravel(), where)
        assert (status["error"], status["matrices"]) == (ErrorKind.NONE, 1), where


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
@pytest.mark.parametrize("before", ["good matrix", "nothing", "waiting matrix"])
def test_clear_amid_a_long_activation_packet(params: AcceleratorParams, before: str) -> None:
    """The next matrix waits for the rest of the packet, then takes activations of its own."""
    faults = Faults(params, seed=6)
    golden = GoldenAccelerator(params)
    own, others = faults.vector(), faults.vector(7)
    long = faults.rng.integers(-128, 128, (300, params.batch)).astype(np.int8)
    wrong = bytearray(faults.matrix)
    wrong[2] ^= 1
    steps = [Step("weights", packet) for packet in faults.setup]
    for packet in faults.setup:
        golden.run_packet(packet)
    expected: list[np.ndarray] = []
    if before == "good matrix":
        steps += [Step("activations", faults.packet(own)), Step("weights", faults.matrix)]
        expected += golden.run_packet(faults.matrix, own[::-1]).streams
    if before == "waiting matrix":
        # All of it is read before the packet comes, which is an error as soon as it is longer.
        steps += [Step("weights", faults.matrix), Step("sent")]
        amid = Step("expect", count=1)
    else:
        steps += [Step("weights", bytes(wrong)), Step("expect", count=len(expected) + 1)]
        amid = Step("wait", count=50)
    steps += [
        *(Step("activations", faults.packet(long)), amid, Step("clear")),
        *(Step("weights", packet) for packet in faults.good_setup),
        *(Step("weights", faults.good), Step("activations", faults.packet(others))),
    ]
    golden = GoldenAccelerator(params)
    for packet in faults.good_setup:
        golden.run_packet(packet)
    expected += golden.run_packet(faults.good, others[::-1]).streams
    frames = len(expected) + 1
    recording = play(params, [*steps, Step("expect", count=frames), Step("status")], timeout=3000)
    assert not recording.locked_up
    good = [frame.values for frame in recording.frames if not frame.error]
    assert len(good) == len(expected)
    for found, stream in zip(good, expected, strict=True):
        np.testing.assert_array_equal(found, stream.ravel())
    assert recording.statuses[-1]["error"] == ErrorKind.NONE
    assert recording.statuses[-1]["matrices"] == 1


@pytest.mark.parametrize("params", [FAULTY, SETS[2]], ids=lambda params: params.name)
def test_registers_of_the_top(params: AcceleratorParams) -> None:
    """Every register by its offset, through the ports of the top; what is not there is refused."""
    steps: list[Step] = []
    expected: list[int | None] = []
    okay, slverr = 0, 2

    def read(offset: int, value: int | None, answer: int = okay) -> None:
        steps.append(Step("read", count=offset))
        expected.extend((value, answer))

    def write(offset: int, value: int, answer: int = okay) -> None:
        steps.append(Step("write", value.to_bytes(4, "little"), offset))
        expected.append(answer)

    for register in REGISTERS:
        counts = register in COUNTERS or register.name in ("ERROR", "POSITION", "SCRATCH")
        read(register.offset, 0 if counts else register.constant(params))
    scratch, control = (register_named(name).offset for name in ("SCRATCH", "CONTROL"))
    for value in (2**32 - 1, 0x12345678, 0xEDCBA987, 0):
        write(scratch, value)
        read(scratch, value)
    for bit in range(2, 12):
        # No register beside the table's, whichever bit of the address is wrong.
        offset = scratch ^ 1 << bit
        known = [register for register in REGISTERS if register.offset == offset]
        write(offset, 2**32 - 1, okay if known and known[0].writable else slverr)
        if not known:
            read(offset, 0, slverr)
    read(scratch, 0)
    # Masked, then not.
    masked = register_named("CONTROL").field("mask_irq").mask
    write(control, masked)
    steps += [Step("weights", bytes(params.bus_bits // 8)), Step("wait", count=50), Step("status")]
    read(control, masked)
    read(register_named("ERROR").offset, ErrorKind.TRUNCATED)
    write(control, 0)
    steps.append(Step("status"))
    write(control, register_named("CONTROL").field("reset").mask)
    steps += [Step("wait", count=2 * params.row_depth), Step("status")]
    read(control, 0)
    recording = play(params, steps, timeout=1000)
    assert len(recording.reads) == len(expected)
    for place, (wanted, found) in enumerate(zip(expected, recording.reads, strict=True)):
        assert wanted in (None, found), place
    errors = [(status["error"], status["irq"]) for status in recording.statuses]
    assert errors == [(ErrorKind.TRUNCATED, 0), (ErrorKind.TRUNCATED, 1), (ErrorKind.NONE, 0)]


def test_every_matrix_has_its_strobe() -> None:
    faults = Faults()
    script = faults.script
    script.setup(*faults.setup)
    for number in range(5):
        script.send(f"matrix {number}", faults.matrix, faults.vector())
    script.settle("five matrices")
    recording = script.play()
    assert len(recording.matrix_cycles) == 5
    assert recording.matrix_cycles == sorted(recording.matrix_cycles)


@pytest.mark.parametrize("params", KEPT_PRESETS, ids=lambda params: params.name)
def test_verilog_of_the_repository(params: AcceleratorParams) -> None:
    """Matrices back to back, an error, and one more: short, for the slowest simulator's sake."""
    faults = Faults(params, seed=11)
    faults.script.setup(*faults.setup)
    for number in range(4):
        faults.script.send(f"matrix {number}", faults.matrix, faults.vector())
    damaged = bytearray(faults.matrix)
    damaged[-faults.word - 1] ^= 16
    outcome = faults.fault("a bit of the payload", bytes(damaged), x=faults.vector())
    assert outcome.error is ErrorKind.CRC
    recording = faults.script.play(pause="random", seed=3)
    assert len(recording.matrix_cycles) == 5
