"""The search for codebooks against exhaustive searches and against what is really written."""

import itertools
from typing import Any

import numpy as np
import pytest

from egret.code_search import Codes, Statistics, _best_table, parse_codes, plan, plan_shared
from egret.codebook import MAX_VALUE, MIN_VALUE, Codebook, zigzag
from egret.codec import encode
from egret.errors import EgretError, FormatError
from egret.prefix_code import PrefixCode


def laplace(seed: int, count: int, scale: float, zeros: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = np.rint(random.laplace(0, scale, count)).astype(np.int32)
    return np.where(random.random(count) < zeros, 0, values).astype(np.int32)


def slow_bits(counts: list[int], suffix_bits: tuple[int, ...]) -> int | None:
    """Add up the bits of symbols 0, 1 … in a table; None where it has too few codewords."""
    total = symbol = 0
    for number, bits in enumerate(suffix_bits):
        last = number == len(suffix_bits) - 1
        mine = counts[symbol : symbol + 2**bits]
        total += sum(mine) * (number + (not last) + bits)
        symbol += 2**bits
    return total if symbol >= len(counts) else None


@pytest.mark.parametrize("seed", range(25))
def test_tables_are_the_best_there_are(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 9))
    counts = random.integers(1, 60, size) ** int(random.integers(1, 4))
    # A value for each symbol, so that the zigzag map is free and the table alone counts.
    values = np.repeat(np.array([(i >> 1) ^ -(i & 1) for i in range(size)], np.int32), counts)
    best = min(
        bits
        for classes in range(1, size + 1)
        for table in itertools.product(range(4), repeat=classes)
        if (bits := slow_bits(counts.tolist(), table)) is not None
    )
    found = plan(Statistics.of(values, 1 << 16), Codes((), run=False, table=True))
    assert found.code_bits <= best + 24, f"seed {seed}"
    assert found.cost <= best + 8 * 6, f"seed {seed}"
    # The dynamic program alone, whatever the map costs.
    bits, suffix_bits, _ = _best_table(np.arange(size), counts.astype(np.int64))
    assert bits == best == slow_bits(counts.tolist(), tuple(suffix_bits.tolist())), f"seed {seed}"


def test_a_table_never_has_more_than_sixteen_classes() -> None:
    # Halving frequencies would be coded best by one symbol to a class.
    values = np.repeat(np.arange(24), [1 << (23 - i) for i in range(24)]).astype(np.int32)
    found = plan(Statistics.of(values, 1 << 16), Codes((), run=False, table=True))
    assert len(found.book.level.suffix_bits) <= 16
    _, bits = encode(values, found.book, 1 << 16)
    assert int(bits.sum()) == found.code_bits


CASES = {
    "dense": laplace(1, 5000, 9.0),
    "sparse": laplace(2, 5000, 20.0, 0.9),
    "few": laplace(3, 60, 100.0),
    "zeros": np.zeros(300, np.int32),
    "one value": np.full(300, -7, np.int32),
    "two values": np.tile(np.array([1000, -1000], np.int32), 200),
    "uniform": np.random.default_rng(4).integers(-128, 128, 5000).astype(np.int32),
    "extreme": np.array([MIN_VALUE, MAX_VALUE, 0, 0, 5] * 7, np.int32),
    "skewed": laplace(5, 5000, 3.0) * 17 + 5000,
    "empty": np.empty(0, np.int32),
}
CODES = ["auto", "eg-k", "eg-0", "eg-7", "eg-run", "eg-table", "eg-3,eg-run"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("codes", CODES)
def test_costs_are_those_of_what_is_written(case: str, codes: str) -> None:
    values = CASES[case]
    found = plan(Statistics.of(values, 512), parse_codes(codes))
    _, bits = encode(values, found.book, 512)
    assert int(bits.sum()) == found.code_bits
    assert 8 * len(found.book.data) == found.book_bits
    again = Codebook.from_bytes(found.book.data)
    assert again.data == found.book.data
    assert again.name == found.book.name
    assert (again.values is None) == (found.book.values is None)
    if again.values is not None and found.book.values is not None:
        assert again.values.tolist() == found.book.values.tolist()


@pytest.mark.parametrize("codes", ["eg-k", "eg-4", "eg-run", "eg-table"])
def test_a_forced_code_is_used(codes: str) -> None:
    for case in ("dense", "sparse"):
        name = plan(Statistics.of(CASES[case], 512), parse_codes(codes)).book.name
        allowed = {
            "eg-k": [f"eg-{order}" for order in range(8)],
            "eg-table": ["eg-table", "eg-table-run"],
        }
        assert name in allowed.get(codes, [codes])


def test_ties_go_to_the_simpler_code() -> None:
    # Exactly an exp-Golomb distribution: a table has the same code bits and is longer to write.
    counts = [4, 4, 1, 1, 1, 1]
    values = np.repeat(np.array([0, -1, 1, -2, 2, -3], np.int32), counts)
    np.random.default_rng(0).shuffle(values)
    assert plan(Statistics.of(values, 1 << 16)).book.name == "eg-1"


def test_runs_are_chosen_when_zeros_prevail() -> None:
    assert plan(Statistics.of(CASES["sparse"], 512)).book.is_run
    assert not plan(Statistics.of(CASES["dense"], 512)).book.is_run


def test_statistics_add_up() -> None:
    values = CASES["sparse"]
    both = Statistics.of(values[:2048], 512) + Statistics.of(values[2048:], 512)
    whole = Statistics.of(values, 512)
    for field in ("numbers", "counts", "runs", "run_counts"):
        assert getattr(both, field).tolist() == getattr(whole, field).tolist()
    assert whole.weights == 5000
    assert whole.zeros == int((values == 0).sum())
    distinct, counts = np.unique(values, return_counts=True)
    assert dict(zip(whole.distinct.tolist(), whole.counts.tolist(), strict=True)) == dict(
        zip(distinct.tolist(), counts.tolist(), strict=True)
    )


def test_runs_are_counted_to_the_end_of_each_chunk() -> None:
    found = Statistics.of(np.array([0, 0, 5, 0, 0, 0, 0, 7, 0], np.int32), 4)
    # Chunks 0 0 5 0 / 0 0 0 7 / 0.
    assert dict(zip(found.runs.tolist(), found.run_counts.tolist(), strict=True)) == {
        2: 1,
        1: 2,
        3: 1,
    }


def test_wide_and_narrow_values_are_counted_alike() -> None:
    wide = np.array([MIN_VALUE, 0, 0, 3, MAX_VALUE], np.int32)
    found = Statistics.of(wide, 5)
    assert found.numbers.tolist() == sorted(set(zigzag(wide).tolist()))
    assert found.runs.tolist() == [0, 2]
    assert found.run_counts.tolist() == [2, 1]


def test_sharing_saves_bits_and_keeps_costs_exact() -> None:
    tensors = [laplace(seed, 1500, 6.0 + seed % 3, 0.9) for seed in range(12)]
    statistics = [Statistics.of(values, 1500) for values in tensors]
    books, numbers, code_bits = plan_shared(statistics)
    alone = [plan(one) for one in statistics]
    assert len(books) < len(tensors)
    shared = sum(code_bits) + sum(8 * len(book.data) for book in books)
    assert shared < sum(one.cost for one in alone)
    for values, number, bits in zip(tensors, numbers, code_bits, strict=True):
        assert int(encode(values, books[number], 1500)[1].sum()) == bits


def test_tensors_that_differ_keep_their_own_codebooks() -> None:
    statistics = [Statistics.of(laplace(1, 20000, 2.0), 20000)]
    statistics.append(Statistics.of(laplace(2, 20000, 400.0), 20000))
    books, numbers, _ = plan_shared(statistics)
    assert len(books) == 2
    assert numbers[0] != numbers[1]


@pytest.mark.parametrize("codes", ["", "eg-8", "eg", "eg-table,huffman", "EG-0", [], [3], 7])
def test_unknown_codes_are_refused(codes: Any) -> None:
    with pytest.raises(EgretError, match="codes: found"):
        parse_codes(codes)


def test_values_that_cannot_be_coded_are_refused() -> None:
    with pytest.raises(EgretError, match="found value 8388608, expected -8388608 to 8388607"):
        Statistics.of(np.array([1 << 23], np.int32), 1)


def bits_of(text: str) -> bytes:
    text = text.replace(" ", "")
    size = (len(text) + 7) // 8
    return int("0" + text.ljust(8 * size, "0"), 2).to_bytes(size, "big")


def test_codebooks_written_by_hand() -> None:
    plain = Codebook.from_bytes(bits_of("00 011 00"))
    assert (plain.name, plain.map_kind, plain.limit) == ("eg-3", "zigzag", 1 << 24)
    run = Codebook.from_bytes(bits_of("01 010 001 00"))
    assert run.run == PrefixCode.golomb(1)
    assert (run.name, run.level.order, run.limit) == ("eg-run", 2, (1 << 24) - 1)
    # Three classes (EG-0 of 2), 1 suffix bit, then none, then 2: zigzag of -1 and of +2.
    table = Codebook.from_bytes(bits_of("10 011 010 010 00101 00"))
    assert table.level == PrefixCode.table((1, 0, 2))
    # a = 0, p = 0, two pairs: 1 skipped, 2 members; 1 skipped (coded as 0), 1 member.
    members = Codebook.from_bytes(bits_of("00 000 01 000 000 011 010 010 1 1"))
    assert members.values is not None
    assert members.values.tolist() == [-1, 1, 2]
    # The same set in ranked order for a table of classes 0, 0 and 0: first the last, then the
    # first number. Three classes; set; a = p = 0; class 0: skip 2, take 1; class 1: skip 0, take 1.
    ranked = Codebook.from_bytes(
        bits_of("10 011 1 1 1 10 000 000 011 010 010 1 1 000 000 011 1 1 1")
    )
    assert ranked.values is not None
    assert ranked.values.tolist() == [2, -1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("00 011 11", "found value map 3, expected 0 to 2"),
        ("", "ends too early"),
        ("10 000010001 1", "found a table of 17 classes"),
        ("10 1 000011010 00", "found suffix bits"),
        ("10 010 1 010 00", "found suffix bits"),
        ("00 000 01 000 000 010 1", "ends too early"),
        ("10 1 1 01 000 000 010 1 010", "found 2 values for the 1 codewords"),
        ("00 011 00 1", "goes on after its end"),
        ("00 011 00 0" + 8 * "0", "goes on after its end"),
        ("00 000 01 000 111 010 1 " + "0" * 14 + "1" + "0" * 21, "reaches beyond"),
    ],
)
def test_codebooks_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Codebook.from_bytes(bits_of(text))


def test_codebooks_that_cannot_be_written_are_refused() -> None:
    table = PrefixCode.table((1,))
    with pytest.raises(FormatError, match="two of a kind"):
        Codebook(table, PrefixCode.golomb(0))
    with pytest.raises(FormatError, match="does not fit its values"):
        Codebook(table, None, np.array([1], np.int32))
    with pytest.raises(FormatError, match="found 3 values, expected at most 2"):
        Codebook(table, None, np.array([0, 1, 2], np.int32), "set")
    with pytest.raises(FormatError, match="not in ascending order"):
        Codebook(table, None, np.array([1, 0], np.int32), "set")
    with pytest.raises(FormatError, match="a value twice or out of range"):
        Codebook(table, None, np.array([1, 1], np.int32), "ranked")
    with pytest.raises(FormatError, match="a value twice or out of range"):
        Codebook(table, table, np.array([0, 1], np.int32), "set")
