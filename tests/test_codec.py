"""Chunks of codewords against bits written out by hand."""

import numpy as np
import pytest

from egret.codebook import Codebook
from egret.codec import MAX_CHUNK, choose_chunk, decode, encode
from egret.errors import EgretError, FormatError
from egret.prefix_code import PrefixCode

TABLE = PrefixCode.table((0, 1, 2))
"""Codewords 1, 010 and 011, then 00 and two bits (no one bit in the last class)."""
RUNS = PrefixCode.golomb(1)
"""Codewords 10, 11, 0100, 0101, 0110, 0111 …"""


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def text_of(values: np.ndarray, book: Codebook, chunk: int = MAX_CHUNK) -> list[str]:
    data, bits = encode(values, book, chunk)
    texts = []
    place = 0
    for count in bits.tolist():
        size = (count + 7) // 8
        text = "".join(f"{byte:08b}" for byte in data[place : place + size].tolist())
        assert set(text[count:]) <= {"0"}
        texts.append(text[:count])
        place += size
    assert place == data.size
    return texts


def stream(*texts: str) -> tuple[bytes, np.ndarray]:
    packed = b""
    for text in texts:
        size = (len(text) + 7) // 8
        packed += int(text.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")
    return packed, np.array([len(text) for text in texts], np.uint32)


def read(texts: list[str], book: Codebook, count: int, chunk: int = MAX_CHUNK) -> list[int]:
    out = np.full(count, 99, np.int32)
    decode(*stream(*texts), book, chunk, out)
    return out.tolist()


DIRECT = [
    # Zigzag numbers 0 1 2 3 4 are the values 0 -1 1 -2 2.
    (Codebook(PrefixCode.golomb(0)), numbers(0, -1, 1, -2), "1 010 011 00100"),
    (Codebook(PrefixCode.golomb(2)), numbers(0, -1, 2), "100 101 01000"),
    (Codebook(TABLE), numbers(0, -1, 1, -2, 2, -3, 3), "1 010 011 0000 0001 0010 0011"),
    (Codebook(PrefixCode.table((3,))), numbers(0, 3), "000 110"),
    (Codebook(PrefixCode.table((0, 0))), numbers(0, -1, 0), "1 0 1"),
    (Codebook(PrefixCode.table((0,))), numbers(0, 0, 0), ""),
    (Codebook(TABLE, None, numbers(5, -7, 100), "ranked"), numbers(5, 100, -7), "1 011 010"),
    (Codebook(TABLE, None, numbers(-1, 2, 50), "set"), numbers(50, -1, 2), "011 1 010"),
]
RUN_FORM = [
    # A run and a level in turns; without 0, zigzag indices 0 1 2 are the values -1 1 -2.
    (Codebook(PrefixCode.golomb(0), RUNS), numbers(0, 0, 1, -1), "0100 010 10 1"),
    (Codebook(PrefixCode.golomb(0), RUNS), numbers(-1, 0, 0, 0), "10 1 0101"),
    (Codebook(PrefixCode.golomb(0), RUNS), numbers(0, 0), "0100"),
    (Codebook(TABLE, TABLE, numbers(9, -4), "ranked"), numbers(0, 9, 0, 0, -4), "010 1 011 010"),
]


@pytest.mark.parametrize(("book", "values", "text"), DIRECT + RUN_FORM)
def test_codewords_are_those_written_by_hand(book: Codebook, values: np.ndarray, text: str) -> None:
    assert text_of(values, book) == [text.replace(" ", "")]
    assert read([text.replace(" ", "")], book, values.size) == values.tolist()


def test_runs_end_with_their_chunk() -> None:
    book = Codebook(PrefixCode.golomb(0), RUNS)
    values = numbers(0, 0, 0, -1, 0, 0, 0)
    assert text_of(values, book, 3) == ["0101", "101" + "0100", "11"]
    assert read(["0101", "1010100", "11"], book, 7, 3) == values.tolist()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9, 63])
@pytest.mark.parametrize("form", ["direct", "run"])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_chunks_comes_back(count: int, form: str, threads: int) -> None:
    random = np.random.default_rng(count)
    values = np.where(
        random.random(97 * count - 13) < 0.6, 0, np.rint(random.laplace(0, 40, 97 * count - 13))
    ).astype(np.int32)
    book = Codebook(PrefixCode.golomb(3), PrefixCode.golomb(0) if form == "run" else None)
    data, bits = encode(values, book, 97)
    assert bits.size == count
    out = np.empty_like(values)
    decode(data, bits, book, 97, out, threads=threads)
    assert out.tolist() == values.tolist()


def test_widest_values_and_long_codewords() -> None:
    values = np.array([-(1 << 23), (1 << 23) - 1, 0, 1, -(1 << 23), 0, 0, 7] * 5, np.int32)
    for book in (Codebook(PrefixCode.golomb(0)), Codebook(PrefixCode.golomb(7), RUNS)):
        data, bits = encode(values, book, 9)
        out = np.empty_like(values)
        decode(data, bits, book, 9, out)
        assert out.tolist() == values.tolist()


SET = Codebook(TABLE, None, numbers(5, -7, 100, 3, 2), "ranked")
RUN_BOOK = Codebook(PrefixCode.golomb(0), RUNS)


@pytest.mark.parametrize(
    ("texts", "book", "count", "chunk", "message"),
    [
        (["1", "10"], Codebook(TABLE), 2, 1, "chunk 1: the codewords take another number of bits"),
        (["1", ""], Codebook(TABLE), 2, 1, "chunk 1: the codewords take another number of bits"),
        (["1", "01"], Codebook(TABLE), 2, 1, "chunk 1: the codewords take another number of bits"),
        (["1", "0010"], SET, 2, 1, "chunk 1: found an index that stands for no value"),
        (["0" * 60], RUN_BOOK, 1, 1, "chunk 0: found a prefix that no codeword has"),
        (["10" + "0" * 60], RUN_BOOK, 1, 1, "chunk 0: found a prefix that no codeword has"),
        (["0" * 60], Codebook(PrefixCode.golomb(0)), 1, 1, "chunk 0: found a prefix"),
        (["0101"], RUN_BOOK, 2, 2, "chunk 0: found a run of zeros that goes on beyond its chunk"),
        (["10" + "1", "0100"], RUN_BOOK, 2, 1, "chunk 1: found a run of zeros that goes on"),
    ],
)
@pytest.mark.parametrize("before", [0, 5])
def test_wrong_codewords_are_refused(
    texts: list[str], book: Codebook, count: int, chunk: int, message: str, before: int
) -> None:
    # Good chunks before it bring the bad one into the loop that decodes four at a time.
    good = text_of(np.full(chunk, 5 if book is SET else -1, np.int32), book)
    number = int(message.split(":")[0].removeprefix("chunk "))
    message = f"chunk {number + before}:" + message.split(":")[1]
    with pytest.raises(FormatError, match=f"^{message}"):
        read(good * before + texts, book, count + before * chunk, chunk)
    with pytest.raises(FormatError, match=f"^{message}"):
        read(good * before + texts + good * 6, book, count + (before + 6) * chunk, chunk)


def test_filling_must_be_zero() -> None:
    out = np.empty(2, np.int32)
    data, bits = stream("1", "1")
    for place, byte in ((0, b"\xc0\x80"), (1, b"\x80\x81")):
        with pytest.raises(FormatError, match=f"chunk {place}: is not filled up with zero bits"):
            decode(byte, bits, Codebook(TABLE), 1, out)
    decode(data, bits, Codebook(TABLE), 1, out)


def test_arguments_that_do_not_fit_are_refused() -> None:
    data, bits = stream("1", "1")
    out = np.empty(2, np.int32)
    with pytest.raises(FormatError, match="found 2 bytes of code, expected 3"):
        decode(data, np.array([1, 9], np.uint32), Codebook(TABLE), 1, out)
    with pytest.raises(FormatError, match="found 2 chunks, expected 1"):
        decode(data, bits, Codebook(TABLE), 2, out)
    with pytest.raises(FormatError, match="found chunks of 65537 weights, expected 1 to 65536"):
        decode(data, bits, Codebook(TABLE), MAX_CHUNK + 1, out)
    with pytest.raises(EgretError, match="found chunks of 0 weights"):
        encode(out, Codebook(TABLE), 0)


@pytest.mark.parametrize("form", [None, RUNS])
def test_values_without_a_codeword_are_refused(form: PrefixCode | None) -> None:
    book = Codebook(PrefixCode.golomb(0), form, numbers(1, 2, 1000), "ranked")
    with pytest.raises(EgretError, match=r"value 3 \(weight 2\)"):
        encode(numbers(1, 1000, 3), book, 3)
    with pytest.raises(EgretError, match="found value 8388608, expected -8388608 to 8388607"):
        encode(numbers(1 << 23), book, 3)
    with pytest.raises(EgretError, match="found value -8388609"):
        encode(numbers(-(1 << 23) - 1), book, 3)


def test_a_run_without_a_codeword_is_refused() -> None:
    book = Codebook(TABLE, PrefixCode.table((1,)))
    with pytest.raises(EgretError, match="the run of zeros before it, has no codeword"):
        encode(numbers(0, 0, -1), book, 3)
    with pytest.raises(EgretError, match="the run of zeros before it, has no codeword"):
        encode(numbers(0, 0), book, 3)


@pytest.mark.parametrize(
    ("shape", "zeros", "chunk"),
    [
        ((), 0, 1),
        ((0, 5), 0, 1),
        ((64, 64), 0, 4096),
        ((64, 144), 0, 2304),
        ((64, 144), 9000, 9216),
        ((4096, 4096), 0, MAX_CHUNK),
        ((3, 100_000), 0, 37_500),
    ],
)
def test_chunks_are_whole_rows_in_fours(shape: tuple[int, ...], zeros: int, chunk: int) -> None:
    assert choose_chunk(shape, zeros) == chunk


def test_chunks_never_grow_too_large() -> None:
    random = np.random.default_rng(3)
    for _ in range(500):
        shape = tuple(random.integers(1, 3000, random.integers(1, 4)).tolist())
        assert 1 <= choose_chunk(shape) <= MAX_CHUNK, shape


@pytest.mark.parametrize("threads", [1, 2])
def test_errors_count_chunks_from_the_tensors_first(threads: int) -> None:
    data, bits = stream(*["1"] * 6, "01")
    out = np.empty(7, np.int32)
    with pytest.raises(FormatError, match=r"^chunk 46: the codewords take"):
        decode(data, bits, Codebook(TABLE), 1, out, threads=threads, first=40)


@pytest.mark.parametrize("count", [1, 64, 65, 66, 300, 5000])
@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("run", [None, RUNS, PrefixCode.golomb(0), PrefixCode.golomb(7)])
def test_many_small_chunks_have_room(count: int, value: int, run: PrefixCode | None) -> None:
    # Each fills a byte with a codeword or two: more bytes than the bits alone would need.
    values = np.full(count, value, np.int32)
    for book in (Codebook(PrefixCode.golomb(0), run), Codebook(PrefixCode.golomb(3), run)):
        data, bits = encode(values, book, 1)
        assert data.size == int(((bits + 7) // 8).sum())
        out = np.empty(count, np.int32)
        decode(data, bits, book, 1, out)
        assert out.tolist() == values.tolist()
