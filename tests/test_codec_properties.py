"""What holds for the codec whatever the values: random alphabets, shapes, chunks and codes."""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.handmade import unzigzag, word, zigzag

from egret.code_search import Statistics, parse_codes, plan, plan_shared
from egret.codebook import MAX_VALUE, MIN_VALUE, Codebook
from egret.codec import MAX_CHUNK, decode, encode
from egret.errors import EgretError, FormatError
from egret.prefix_code import PrefixCode

CHECKED = settings(derandomize=True, deadline=None, max_examples=120, print_blob=True)
ALPHABETS = (
    "all zero",
    "one value",
    "two symbols",
    "extremes",
    "uniform",
    "wide uniform",
    "geometric",
    "sparse",
    "alternating runs",
    "runs of a chunk",
    "zeros at chunk ends",
)


def make_values(kind: str, size: int, chunk: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Values of one kind of alphabet, int32."""
    numbers = np.arange(size)
    signs = rng.choice([-1, 1], size)
    if kind == "all zero":
        values: NDArray[Any] = np.zeros(size)
    elif kind == "one value":
        values = np.full(size, rng.choice([-1, 3, MAX_VALUE, MIN_VALUE]))
    elif kind == "two symbols":
        values = rng.choice(rng.integers(-9, 9, 2), size, p=[0.9, 0.1])
    elif kind == "extremes":
        values = rng.choice([MIN_VALUE, MIN_VALUE + 1, -1, 0, 1, MAX_VALUE - 1, MAX_VALUE], size)
    elif kind == "uniform":
        values = rng.integers(-8, 8, size)
    elif kind == "wide uniform":
        values = rng.integers(MIN_VALUE, MAX_VALUE + 1, size)
    elif kind == "geometric":
        values = signs * (rng.geometric(rng.choice([0.02, 0.3, 0.8]), size) - 1)
    elif kind == "sparse":
        values = signs * rng.geometric(0.4, size) * (rng.random(size) < 0.05)
    elif kind == "alternating runs":
        length = int(rng.integers(1, 20))
        values = np.where(numbers // length % 2, 0, signs * rng.integers(1, 5, size))
    elif kind == "runs of a chunk":
        # Whole chunks of zeros, now and then one place early or late.
        shift = int(rng.integers(-1, 2))
        values = np.where((numbers + shift) // chunk % 2, 0, signs)
    else:
        values = signs * rng.integers(1, 4, size)
        values[numbers % chunk >= max(1, chunk - int(rng.integers(1, 4)))] = 0
    return np.asarray(values, np.int32)


@st.composite
def tensors(draw: st.DrawFn, largest: int = 4000) -> tuple[NDArray[np.int32], int]:
    """Values and a chunk."""
    kind = draw(st.sampled_from(ALPHABETS))
    chunk = draw(
        st.one_of(
            st.integers(1, 9), st.integers(1, 1000), st.sampled_from([MAX_CHUNK - 1, MAX_CHUNK])
        )
    )
    edges = [edge for edge in (chunk - 1, chunk, chunk + 1, 4 * chunk, 5 * chunk) if edge < largest]
    size = draw(st.one_of(st.integers(0, 9), st.integers(0, largest), st.sampled_from([0, *edges])))
    seed = draw(st.integers(0, 2**32 - 1))
    note(f"{kind}, {size} values, chunk {chunk}, seed {seed}")
    return make_values(kind, size, chunk, np.random.default_rng(seed)), chunk


@st.composite
def tables(draw: st.DrawFn, symbols: int) -> PrefixCode:
    """A table with at least so many symbols."""
    suffix_bits = draw(st.lists(st.integers(0, 6), max_size=15))
    missing = symbols - sum(2**bits for bits in suffix_bits)
    suffix_bits.append(max(0, (max(1, missing) - 1).bit_length()))
    if draw(st.booleans()):
        # The large class somewhere else.
        suffix_bits.insert(0, suffix_bits.pop())
    return PrefixCode.table(tuple(suffix_bits))


@st.composite
def books(draw: st.DrawFn, values: NDArray[np.int32], chunk: int) -> Codebook:
    """A codebook that can write these values in such chunks."""
    is_run, is_table = draw(st.booleans()), draw(st.booleans())
    counts = Counter(values.tolist())
    if is_run:
        del counts[0]
    map_kind = draw(st.sampled_from(["zigzag", "set", "ranked"]))
    members = sorted(counts, key=lambda value: (-counts[value], value))
    if map_kind != "zigzag":
        extra = draw(st.lists(st.integers(MIN_VALUE, MAX_VALUE), max_size=3))
        members += sorted({*extra} - {*members} - ({0} if is_run else set()))
        if map_kind == "set":
            members.sort(key=zigzag)
        symbols = len(members)
    else:
        symbols = max(map(zigzag, members), default=0) + 1
    if is_table:
        level = draw(tables(max(1, symbols)))
        run = draw(tables(min(chunk, values.size) + 1)) if is_run else None
    else:
        level = PrefixCode.golomb(draw(st.integers(0, 7)))
        run = PrefixCode.golomb(draw(st.integers(0, 7))) if is_run else None
    array = None if map_kind == "zigzag" else np.array(members, np.int32)
    return Codebook(level, run, array, map_kind)


def definition(values: Sequence[int], book: Codebook) -> str:
    """One chunk's codewords, by the definition."""
    level, run = book.level, book.run

    def level_word(value: int) -> str:
        if book.values is None:
            index = zigzag(value) - (run is not None)
        else:
            index = book.values.tolist().index(value)
        return word(level.suffix_bits, index, level.order is None)

    if run is None:
        return "".join(map(level_word, values))
    text = ""
    zeros = 0
    for value in values:
        if value == 0:
            zeros += 1
        else:
            text += word(run.suffix_bits, zeros, run.order is None) + level_word(value)
            zeros = 0
    return text + (word(run.suffix_bits, zeros, run.order is None) if zeros else "")


def decoded(
    data: NDArray[np.uint8], bits: NDArray[np.uint32], book: Codebook, chunk: int, size: int
) -> NDArray[np.int32]:
    # What was there before must not shine through.
    out = np.full(size, 123_456_789, np.int32)
    decode(data, bits, book, chunk, out)
    return out


@CHECKED
@given(st.data())
def test_round_trip_with_any_codebook(data: st.DataObject) -> None:
    values, chunk = data.draw(tensors())
    book = data.draw(books(values, chunk))
    code, bits = encode(values, book, chunk)
    assert bits.size == math.ceil(values.size / chunk)
    assert code.size == sum((int(count) + 7) // 8 for count in bits)
    np.testing.assert_array_equal(decoded(code, bits, book, chunk, values.size), values)
    # The same from the codebook as it is written.
    again = Codebook.from_bytes(book.data)
    assert again.data == book.data
    assert (again.name, again.map_kind) == (book.name, book.map_kind)
    assert book.map_bits + book.table_bits == 8 * len(book.data)
    np.testing.assert_array_equal(decoded(code, bits, again, chunk, values.size), values)


@CHECKED
@given(st.data())
def test_bits_are_those_of_the_definition(data: st.DataObject) -> None:
    values, chunk = data.draw(tensors(200))
    book = data.draw(books(values, chunk))
    code, bits = encode(values, book, chunk)
    text = ""
    for number, first in enumerate(range(0, values.size, chunk)):
        part = definition(values[first : first + chunk].tolist(), book)
        assert bits[number] == len(part)
        text += part + "0" * (-len(part) % 8)
    assert "".join(f"{byte:08b}" for byte in code.tolist()) == text


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", ALPHABETS)
def test_large_tensors_in_threads(kind: str, threads: int) -> None:
    rng = np.random.default_rng(ALPHABETS.index(kind))
    for chunk in (1000, MAX_CHUNK):
        values = make_values(kind, 5 * MAX_CHUNK + 77, chunk, rng)
        for book in (
            Codebook(PrefixCode.golomb(3)),
            Codebook(PrefixCode.golomb(0), PrefixCode.golomb(2)),
            Codebook(PrefixCode.table((2, 24)), PrefixCode.table((0, 3, 17))),
        ):
            code, bits = encode(values, book, chunk)
            out = np.full(values.size, -1, np.int32)
            decode(code, bits, book, chunk, out, threads=threads)
            np.testing.assert_array_equal(out, values)


@CHECKED
@given(st.data())
def test_damaged_code_is_refused_or_still_in_range(data: st.DataObject) -> None:
    values, chunk = data.draw(tensors(300))
    book = data.draw(books(values, chunk))
    code, bits = encode(values, book, chunk)
    if code.size == 0:
        return
    place = data.draw(st.integers(0, 8 * code.size - 1))
    code[place // 8] ^= np.uint8(1 << place % 8)
    try:
        found = decoded(code, bits, book, chunk, values.size)
    except FormatError:
        return
    assert found.min() >= MIN_VALUE
    assert found.max() <= MAX_VALUE
    # What is read has exactly these codewords: every chunk's bits were used up.
    again, lengths = encode(found, book, chunk)
    assert (again.tobytes(), lengths.tolist()) == (code.tobytes(), bits.tolist())


@CHECKED
@given(
    st.lists(st.integers(MIN_VALUE, MAX_VALUE), min_size=1, max_size=30),
    st.integers(MIN_VALUE, MAX_VALUE),
    st.booleans(),
)
def test_a_value_outside_the_map_is_refused(known: list[int], value: int, is_run: bool) -> None:
    members = sorted({*known} - {value, 0 if is_run else value}, key=zigzag)
    run = PrefixCode.golomb(0) if is_run else None
    book = Codebook(PrefixCode.golomb(0), run, np.array(members, np.int32), "set")
    if is_run and value == 0:
        return
    with pytest.raises(EgretError, match="no codeword"):
        encode(np.array([*members, value], np.int32), book, 7)


@pytest.mark.parametrize("value", [MIN_VALUE - 1, MAX_VALUE + 1, -(2**31), 2**31 - 1])
def test_values_out_of_range_are_refused(value: int) -> None:
    book = Codebook(PrefixCode.golomb(0))
    with pytest.raises(EgretError, match=str(value)):
        encode(np.array([0, value], np.int32), book, 2)


@pytest.mark.parametrize("chunk", [-1, 0, MAX_CHUNK + 1])
def test_chunks_out_of_range_are_refused(chunk: int) -> None:
    book = Codebook(PrefixCode.golomb(0))
    with pytest.raises(EgretError, match=str(chunk)):
        encode(np.zeros(3, np.int32), book, chunk)


def test_every_number_has_its_value() -> None:
    values = np.array([unzigzag(number) for number in range(2**10)], np.int32)
    book = Codebook(PrefixCode.table((10,)))
    code, bits = encode(values, book, 1024)
    numbers = np.arange(2**10)
    expected = "".join(f"{number:010b}" for number in numbers)
    assert "".join(f"{byte:08b}" for byte in code.tolist()) == expected
    assert bits.tolist() == [10 * 1024]


FORCED = (*(f"eg-{order}" for order in range(8)), "eg-k", "eg-run", "eg-table")
# Codebooks are compared without the bits that fill up their last byte.
FILLING = 7


def huffman_bits(counts: Sequence[int]) -> int:
    """Bits of all codewords of a Huffman code; none where there is one symbol."""
    heap = list(counts)
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        bits += joined
        heapq.heappush(heap, joined)
    return bits


def entropy_bits(counts: Sequence[int]) -> float:
    total = sum(counts)
    return -sum(count * math.log2(count / total) for count in counts)


@CHECKED
@given(tensors())
def test_every_forced_code_takes_the_bits_that_its_plan_says(
    tensor: tuple[NDArray[np.int32], int],
) -> None:
    values, chunk = tensor
    statistics = Statistics.of(values, chunk)
    counts = list(Counter(values.tolist()).values())
    costs = {}
    for codes in FORCED:
        found = plan(statistics, parse_codes(codes))
        kinds = {"eg-k": "eg-", "eg-table": "eg-table"}
        assert found.book.name.startswith(kinds.get(codes, codes)), codes
        code, bits = encode(values, found.book, chunk)
        assert found.code_bits == bits.sum(), codes
        assert found.book_bits == 8 * len(found.book.data), codes
        np.testing.assert_array_equal(decoded(code, bits, found.book, chunk, values.size), values)
        if not found.book.is_run:
            # Nothing that gives every value a codeword beats Huffman's code, nor that the entropy.
            assert found.code_bits >= huffman_bits(counts) >= entropy_bits(counts) - 1e-6
        costs[codes] = found.code_bits + found.book_bits
    assert costs["eg-k"] <= min(costs[f"eg-{order}"] for order in range(8)) + FILLING


@CHECKED
@given(tensors())
def test_no_forced_code_is_cheaper_than_the_choice(
    tensor: tuple[NDArray[np.int32], int],
) -> None:
    values, chunk = tensor
    statistics = Statistics.of(values, chunk)
    costs = {}
    for codes in FORCED:
        found = plan(statistics, parse_codes(codes))
        costs[codes] = found.code_bits + found.book_bits
    chosen = plan(statistics)
    assert chosen.code_bits + chosen.book_bits <= min(costs.values()) + FILLING, costs


@CHECKED
@given(tensors(1500), st.integers(1, 4))
def test_statistics_of_blocks_are_those_of_the_whole(
    tensor: tuple[NDArray[np.int32], int], chunks: int
) -> None:
    values, chunk = tensor
    whole = Statistics.of(values, chunk)
    joined = Statistics.empty()
    # A whole number of chunks, and not more than some twenty blocks.
    block = chunk * max(chunks, values.size // chunk // 20)
    for first in range(0, values.size, block):
        joined = joined + Statistics.of(values[first : first + block], chunk)
    for name in ("numbers", "counts", "runs", "run_counts"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name), err_msg=name)
    assert whole.weights == values.size
    assert whole.zeros == np.count_nonzero(values == 0)
    assert sorted(whole.distinct.tolist()) == sorted(set(values.tolist()))


@settings(CHECKED, max_examples=40)
@given(st.lists(tensors(600), max_size=6), st.sampled_from(["auto", *FORCED]))
def test_shared_codebooks_write_every_tensor_and_cost_no_more(
    several: list[tuple[NDArray[np.int32], int]], codes: str
) -> None:
    allowed = parse_codes(codes)
    statistics = [Statistics.of(values, chunk) for values, chunk in several]
    shared, numbers, code_bits = plan_shared(statistics, allowed)
    assert len(numbers) == len(code_bits) == len(several)
    assert set(numbers) == set(range(len(shared)))
    for (values, chunk), number, expected in zip(several, numbers, code_bits, strict=True):
        code, bits = encode(values, shared[number], chunk)
        assert bits.sum() == expected
        back = decoded(code, bits, shared[number], chunk, values.size)
        np.testing.assert_array_equal(back, values)
    alone = [plan(one, allowed) for one in statistics]
    together = sum(code_bits) + sum(8 * len(book.data) for book in shared)
    assert together <= sum(one.code_bits + one.book_bits for one in alone)
